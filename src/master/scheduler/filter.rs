//! Which nodes a pod fits on, and the sentence that says why not, in kube-scheduler's words. Each refusal explains itself.
//! Pure; it compares one pod with one node.

use std::collections::BTreeMap;

use super::cache::{Node, Offer, Taint};
use super::pod::{HostPort, Pod, Resources, Term, Toleration};

/// A pod with what is worked out once for all nodes.
pub struct Candidate<'a> {
    pub pod: &'a Pod,
    pub requests: Resources,
    pub ports: Vec<HostPort>,
}

impl<'a> Candidate<'a> {
    pub fn new(pod: &'a Pod) -> Self {
        Self { pod, requests: pod.requests(), ports: pod.host_ports() }
    }
}

/// Why a pod does not fit on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Cordoned,
    Tainted(Taint),
    /// Neither nodeSelector nor required affinity is satisfied.
    Affinity,
    Ports,
    /// Names of what the node has too little of; `pods` is the number of pods. `ever`: it would be too little even if the node were empty.
    Insufficient {
        what: Vec<String>,
        ever: bool,
    },
    /// Too many pods of its kind in this part of the topology; or the node is in none (`labelled: false`).
    Spread {
        labelled: bool,
    },
    /// Nobody is near whom the pod wants.
    Alone,
    /// Somebody is near whom the pod does not want.
    Shunned,
    /// Somebody is near who does not want the pod.
    Resented,
}

impl Refusal {
    /// The reasons, as counted in the message of `FailedScheduling`.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Cordoned => vec!["node(s) were unschedulable".to_owned()],
            Self::Tainted(Taint { key, value, .. }) => vec![format!("node(s) had untolerated taint {{{key}: {value}}}")],
            Self::Affinity => vec!["node(s) didn't match Pod's node affinity/selector".to_owned()],
            Self::Ports => vec!["node(s) didn't have free ports for the requested pod ports".to_owned()],
            Self::Insufficient { what, .. } => {
                let reason = |what: &String| if what == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {what}") };
                what.iter().map(reason).collect()
            }
            Self::Spread { labelled: true } => vec!["node(s) didn't match pod topology spread constraints".to_owned()],
            Self::Spread { labelled: false } => {
                vec!["node(s) didn't match pod topology spread constraints (missing required label)".to_owned()]
            }
            Self::Alone => vec!["node(s) didn't match pod affinity rules".to_owned()],
            Self::Shunned => vec!["node(s) didn't match pod anti-affinity rules".to_owned()],
            Self::Resented => vec!["node(s) didn't satisfy existing pods anti-affinity rules".to_owned()],
        }
    }

    /// Whether the pod would fit if others left the node.
    pub fn is_about_others(&self) -> bool {
        matches!(
            self,
            Self::Ports | Self::Insufficient { ever: false, .. } | Self::Spread { labelled: true } | Self::Shunned | Self::Resented
        )
    }
}

/// Judges what concerns the pod and the node alone, in upstream's order: the first that refuses speaks. What other pods have to say
/// comes after that ([`super::neighbours`]).
///
/// # Errors
/// Why the pod does not fit.
pub fn check(candidate: &Candidate, node: &Node, offer: &Offer) -> Result<(), Refusal> {
    let pod = candidate.pod;
    if offer.unschedulable {
        let cordon = Taint { key: "node.kubernetes.io/unschedulable".to_owned(), value: String::new(), effect: "NoSchedule".to_owned() };
        if !is_tolerated(&cordon, &pod.spec.tolerations) {
            return Err(Refusal::Cordoned);
        }
    }
    if let Some(taint) = untolerated(pod, offer) {
        return Err(Refusal::Tainted(taint.clone()));
    }
    if !is_attracted(pod, node, offer) {
        return Err(Refusal::Affinity);
    }
    if candidate.ports.iter().any(|port| node.ports.iter().any(|taken| taken.conflicts_with(port))) {
        return Err(Refusal::Ports);
    }
    let mut what: Vec<String> = Vec::new();
    if node.pods + 1 > offer.pods_max {
        what.push("pods".to_owned());
    }
    let mut ever = false;
    for (name, asked) in candidate.requests.asked() {
        let total = offer.allocatable.of(name);
        if asked > total - node.used.of(name) {
            what.push(name.to_owned());
            ever |= asked > total;
        }
    }
    if what.is_empty() { Ok(()) } else { Err(Refusal::Insufficient { what, ever }) }
}

fn untolerated<'a>(pod: &Pod, offer: &'a Offer) -> Option<&'a Taint> {
    let forbids = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    offer.taints.iter().filter(forbids).find(|taint| !is_tolerated(taint, &pod.spec.tolerations))
}

/// Whether no taint of the node keeps the pod away.
pub fn is_tolerated_here(pod: &Pod, offer: &Offer) -> bool {
    untolerated(pod, offer).is_none()
}

/// core/v1 `Toleration.ToleratesTaint`.
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        (toleration.effect.is_empty() || toleration.effect == taint.effect)
            && (toleration.key.is_empty() || toleration.key == taint.key)
            && match toleration.operator.as_str() {
                "" | "Equal" => toleration.value == taint.value,
                "Exists" => true,
                _ => false,
            }
    })
}

/// Whether nodeSelector and required node affinity are satisfied.
pub fn is_attracted(pod: &Pod, node: &Node, offer: &Offer) -> bool {
    pod.spec.node_selector.iter().all(|(key, value)| offer.labels.get(key) == Some(value))
        && pod
            .spec
            .affinity
            .node_affinity
            .required
            .as_ref()
            .is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node, offer)))
}

/// Whether a node satisfies a term; the only field that may be asked for is `metadata.name`.
pub fn matches(term: &Term, node: &Node, offer: &Offer) -> bool {
    let is_empty = term.match_expressions.is_empty() && term.match_fields.is_empty();
    !is_empty
        && term.match_expressions.iter().all(|each| each.matches(offer.labels.get(&each.key).map(String::as_str)))
        && term.match_fields.iter().all(|each| each.key == "metadata.name" && each.matches(Some(&node.name)))
}

/// The message of `FailedScheduling`: how many nodes gave which reason, and that making room by preemption would not help.
pub fn explain(pod: &Pod, refusals: &[Refusal]) -> String {
    if refusals.is_empty() {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons = histogram(refusals.iter().flat_map(Refusal::reasons));
    let all = refusals.len();
    let preemption = if pod.spec.preemption_policy == "Never" {
        "not eligible due to preemptionPolicy=Never.".to_owned()
    } else {
        let verdict = |refusal: &Refusal| match refusal.is_about_others() {
            true => "No preemption victims found for incoming pod".to_owned(),
            false => "Preemption is not helpful for scheduling".to_owned(),
        };
        format!("0/{all} nodes are available: {}.", histogram(refusals.iter().map(verdict)))
    };
    format!("0/{all} nodes are available: {reasons}. preemption: {preemption}")
}

/// `2 this, 1 that`, in the order of the texts, as upstream sorts them.
fn histogram(reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::master::scheduler::cache::Cache;
    use crate::master::scheduler::cache::tests::object;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn asking(cpu: &str) -> Value {
        json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]})
    }

    /// A cache with one node `a` of two CPUs and three pods, with `change` merged over it.
    fn cache(change: Value) -> Cache {
        let mut node = json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/hostname": "a", "disktype": "ssd"}},
            "spec": {},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}},
        });
        json_patch::merge(&mut node, &change);
        let mut cache = Cache::default();
        cache.set_node("a", Offer::read(node.to_string().as_bytes()).unwrap());
        cache
    }

    fn verdict(cache: &Cache, pod: &Pod) -> Result<(), Refusal> {
        let node = &cache.nodes()[0];
        check(&Candidate::new(pod), node, node.offer.as_ref().unwrap())
    }

    #[test]
    fn messages_are_those_of_kube_scheduler() {
        let says = |cache: &Cache, pod: &Pod, expected: &str| {
            assert_eq!(explain(pod, &[verdict(cache, pod).unwrap_err()]), expected);
        };
        let plain = cache(json!({}));
        says(
            &plain,
            &pod(asking("3")),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        );
        let mut busy = cache(json!({}));
        busy.charge(&object("x"), "a", &pod(asking("1500m")));
        says(
            &busy,
            &pod(asking("1")),
            "0/1 nodes are available: 1 Insufficient cpu. \
             preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
        );
        says(
            &plain,
            &pod(json!({"nodeSelector": {"disktype": "hdd"}})),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
             preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        );
        says(
            &cache(json!({"spec": {"taints": [{"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"}]}})),
            &pod(json!({})),
            "0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/master: }. \
             preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        );
        says(
            &cache(json!({"spec": {"unschedulable": true}})),
            &pod(json!({})),
            "0/1 nodes are available: 1 node(s) were unschedulable. \
             preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        );
        says(
            &cache(json!({"status": {"allocatable": {"pods": "0"}}})),
            &pod(json!({"preemptionPolicy": "Never"})),
            "0/1 nodes are available: 1 Too many pods. preemption: not eligible due to preemptionPolicy=Never.",
        );
        assert_eq!(explain(&pod(json!({})), &[]), "no nodes available to schedule pods");
    }

    #[test]
    fn reasons_of_several_nodes_are_counted_and_sorted_as_text() {
        let short = |what: &[&str]| Refusal::Insufficient { what: what.iter().map(|each| (*each).to_owned()).collect(), ever: false };
        let refusals = [short(&["memory", "cpu"]), Refusal::Affinity, short(&["cpu"]), Refusal::Cordoned];
        assert_eq!(
            explain(&pod(json!({})), &refusals),
            "0/4 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector, \
             1 node(s) were unschedulable, 2 Insufficient cpu. preemption: 0/4 nodes are available: \
             2 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn tolerations_open_tainted_nodes() {
        let tainted = cache(
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}, {"key": "soft", "effect": "PreferNoSchedule"}]}}),
        );
        let check = |toleration: Value, fits: bool| {
            let pod = pod(json!({"tolerations": [toleration]}));
            assert_eq!(verdict(&tainted, &pod).is_ok(), fits, "{toleration}");
        };
        check(json!({"key": "k", "value": "v"}), true);
        check(json!({"key": "k", "operator": "Equal", "value": "other"}), false);
        check(json!({"key": "k", "operator": "Exists"}), true);
        check(json!({"operator": "Exists"}), true);
        check(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), false);
        let cordoned = cache(json!({"spec": {"unschedulable": true}}));
        let pod = pod(json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}));
        assert_eq!(verdict(&cordoned, &pod), Ok(()));
    }

    #[test]
    fn affinity_terms_are_alternatives_of_joint_requirements() {
        let plain = cache(json!({}));
        let check = |terms: Value, fits: bool| {
            let pod = pod(json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
            }}}));
            assert_eq!(verdict(&plain, &pod).is_ok(), fits, "{terms}");
        };
        let ssd = json!({"key": "disktype", "operator": "In", "values": ["ssd"]});
        let none = json!({"key": "zone", "operator": "Exists"});
        check(json!([{"matchExpressions": [ssd]}]), true);
        check(json!([{"matchExpressions": [ssd, none]}]), false);
        check(json!([{"matchExpressions": [none]}, {"matchExpressions": [ssd]}]), true);
        check(json!([{}]), false);
        check(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]), true);
        check(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]), false);
    }

    #[test]
    fn host_ports_and_the_number_of_pods_are_limits() {
        let with_port = pod(json!({"containers": [{"ports": [{"hostPort": 80}]}]}));
        let mut taken = cache(json!({}));
        taken.charge(&object("x"), "a", &with_port);
        assert_eq!(verdict(&taken, &with_port), Err(Refusal::Ports));
        taken.charge(&object("y"), "a", &pod(json!({})));
        assert_eq!(verdict(&taken, &pod(json!({}))), Ok(()));
        taken.charge(&object("z"), "a", &pod(json!({})));
        assert_eq!(verdict(&taken, &pod(json!({}))).unwrap_err().reasons(), ["Too many pods"]);
    }
}
