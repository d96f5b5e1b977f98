//! Where a pod may be because of the pods that are there already: required pod affinity and anti-affinity, and topology spread
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity>).
//! Worked out once for a pod, then asked for each node. A pod without such wishes, among pods without them, costs nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::cache::{Cache, Node, Offer};
use super::filter::{Refusal, is_attracted, is_tolerated_here};
use super::pod::{Pod, PodTerm, SpreadConstraint};
use crate::api::workloads::LabelSelector;

type Labels = BTreeMap<String, String>;

/// Labels of a namespace by its name; empty if there is no such namespace.
pub type NamespaceLabels<'a> = &'a dyn Fn(&str) -> Labels;

#[derive(Default)]
pub struct Neighbours {
    /// Of each required affinity term: its topology key, and the domains where a pod that it wants is.
    wanted: Vec<(String, HashSet<String>)>,
    /// No pod anywhere is as wanted, but the pod itself is: the first of its kind may go anywhere.
    is_first: bool,
    /// Domains (key and value) where a pod is that this one cannot stand.
    shunned: HashSet<(String, String)>,
    /// Domains where a pod is that cannot stand this one.
    resented: HashSet<(String, String)>,
    spread: Vec<Spread>,
}

struct Spread {
    key: String,
    max_skew: i64,
    /// Matching pods by domain.
    counts: HashMap<String, i64>,
    least: i64,
    /// 1 if the pod counts itself.
    own: i64,
}

impl Neighbours {
    pub fn of(pod: &Pod, cache: &Cache, namespaces: NamespaceLabels) -> Self {
        let mut neighbours = Self::default();
        let wanted = &pod.spec.affinity.pod_affinity.required;
        let shunned = &pod.spec.affinity.pod_anti_affinity.required;
        neighbours.resent(pod, cache, namespaces);
        if !wanted.is_empty() {
            let all = |labels: &Labels, namespace: &str| wanted.iter().all(|term| selects(term, pod, namespace, labels, namespaces));
            neighbours.wanted = wanted.iter().map(|term| (term.topology_key.clone(), HashSet::new())).collect();
            let mut anyone = false;
            for neighbour in cache.neighbours() {
                if all(neighbour.labels, neighbour.namespace) {
                    anyone = true;
                    for (key, domains) in &mut neighbours.wanted {
                        domains.extend(neighbour.offer.labels.get(key).cloned());
                    }
                }
            }
            neighbours.is_first = !anyone && all(&pod.metadata.labels, &pod.metadata.namespace);
        }
        for term in shunned {
            let those = cache.neighbours().filter(|other| selects(term, pod, other.namespace, other.labels, namespaces));
            let domain = |labels: &Labels| Some((term.topology_key.clone(), labels.get(&term.topology_key)?.clone()));
            neighbours.shunned.extend(those.filter_map(|other| domain(&other.offer.labels)));
        }
        let hard = pod.spec.topology_spread_constraints.iter().filter(|each| each.when_unsatisfiable != "ScheduleAnyway");
        neighbours.spread = hard.map(|constraint| Spread::of(constraint, pod, cache)).collect();
        neighbours
    }

    fn resent(&mut self, pod: &Pod, cache: &Cache, namespaces: NamespaceLabels) {
        for (other, terms) in cache.touchy() {
            for term in terms {
                let Some(value) = other.offer.labels.get(&term.topology_key) else { continue };
                if selects_for(term, other.labels, other.namespace, &pod.metadata.namespace, &pod.metadata.labels, namespaces) {
                    self.resented.insert((term.topology_key.clone(), value.clone()));
                }
            }
        }
    }

    /// # Errors
    /// Why the pod's neighbours speak against this node, in upstream's order.
    pub fn check(&self, offer: &Offer) -> Result<(), Refusal> {
        for spread in &self.spread {
            let Some(value) = offer.labels.get(&spread.key) else { return Err(Refusal::Spread { labelled: false }) };
            let count = spread.counts.get(value).copied().unwrap_or_default();
            if count + spread.own - spread.least > spread.max_skew {
                return Err(Refusal::Spread { labelled: true });
            }
        }
        for (key, domains) in &self.wanted {
            if !offer.labels.get(key).is_some_and(|value| self.is_first || domains.contains(value)) {
                return Err(Refusal::Alone);
            }
        }
        let is_in = |domains: &HashSet<(String, String)>| domains.iter().any(|(key, value)| offer.labels.get(key) == Some(value));
        if is_in(&self.shunned) {
            return Err(Refusal::Shunned);
        }
        if is_in(&self.resented) {
            return Err(Refusal::Resented);
        }
        Ok(())
    }
}

impl Spread {
    fn of(constraint: &SpreadConstraint, pod: &Pod, cache: &Cache) -> Self {
        let key = &constraint.topology_key;
        let selector = with_keys(constraint.label_selector.as_ref(), &constraint.match_label_keys, &[], &pod.metadata.labels);
        let counted = |labels: &Labels| selector.as_ref().is_some_and(|selector| selector.matches(labels));
        let is_eligible = |node: &Node, offer: &Offer| {
            (constraint.node_affinity_policy == "Ignore" || is_attracted(pod, node, offer))
                && (constraint.node_taints_policy != "Honor" || is_tolerated_here(pod, offer))
        };
        let mut counts: HashMap<String, i64> = HashMap::new();
        for node in cache.nodes() {
            if let Some(offer) = node.offer.as_ref().filter(|offer| is_eligible(node, offer))
                && let Some(value) = offer.labels.get(key)
            {
                counts.entry(value.clone()).or_default();
            }
        }
        for other in cache.neighbours() {
            if let Some(count) = other.offer.labels.get(key).and_then(|value| counts.get_mut(value))
                && !other.is_ending
                && other.namespace == pod.metadata.namespace
                && counted(other.labels)
            {
                *count += 1;
            }
        }
        let too_few = (counts.len() as i64) < constraint.min_domains;
        let least = if too_few { 0 } else { counts.values().min().copied().unwrap_or_default() };
        let own = i64::from(counted(&pod.metadata.labels));
        Self { key: key.clone(), max_skew: constraint.max_skew, counts, least, own }
    }
}

/// Whether a term of `pod` means a pod of these labels in this namespace.
fn selects(term: &PodTerm, pod: &Pod, namespace: &str, labels: &Labels, namespaces: NamespaceLabels) -> bool {
    selects_for(term, &pod.metadata.labels, &pod.metadata.namespace, namespace, labels, namespaces)
}

fn selects_for(term: &PodTerm, own: &Labels, home: &str, namespace: &str, labels: &Labels, namespaces: NamespaceLabels) -> bool {
    let selector = with_keys(term.label_selector.as_ref(), &term.match_label_keys, &term.mismatch_label_keys, own);
    let at_home = term.namespaces.is_empty() && term.namespace_selector.is_none() && namespace == home;
    let by_name = term.namespaces.iter().any(|each| each == namespace);
    let by_labels =
        || term.namespace_selector.as_ref().is_some_and(|selector| selector.is_empty() || selector.matches(&namespaces(namespace)));
    selector.is_some_and(|selector| selector.matches(labels)) && (at_home || by_name || by_labels())
}

/// A selector with the requirements that `matchLabelKeys` and `mismatchLabelKeys` add from the pod's own labels. None selects nothing.
fn with_keys(selector: Option<&LabelSelector>, matching: &[String], differing: &[String], own: &Labels) -> Option<LabelSelector> {
    let mut selector = selector?.clone();
    for (keys, operator) in [(matching, "In"), (differing, "NotIn")] {
        for (key, value) in keys.iter().filter_map(|key| own.get_key_value(key)) {
            let requirement =
                crate::api::workloads::Requirement { key: key.clone(), operator: operator.to_owned(), values: vec![value.clone()] };
            selector.match_expressions.push(requirement);
        }
    }
    Some(selector)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::schema;
    use crate::master::store::{Key, Object};

    /// Nodes a, b, c in zones x, x, y.
    fn cache() -> Cache {
        let mut cache = Cache::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
            let node = json!({"metadata": {"labels": {"host": name, "zone": zone}}});
            cache.set_node(name, Offer::read(node.to_string().as_bytes()).unwrap());
        }
        cache
    }

    fn pod(name: &str, app: &str, spec: Value) -> (Arc<Object>, Pod) {
        let value = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}}, "spec": spec});
        let labels = [("app".to_owned(), app.to_owned())].into();
        let key = Key::new(schema::resource("", "v1", "pods").unwrap(), "default", name);
        let object =
            Object { key, revision: 1, uid: name.to_owned(), labels, node: Box::default(), json: value.to_string().into_bytes().into() };
        (Arc::new(object), serde_json::from_value(value).unwrap())
    }

    fn put(cache: &mut Cache, node: &str, (object, pod): (Arc<Object>, Pod)) {
        cache.charge(&object, node, &pod);
    }

    fn verdicts(cache: &Cache, pod: &Pod) -> Vec<Option<String>> {
        let neighbours = Neighbours::of(pod, cache, &|_| Labels::new());
        let mut nodes: Vec<&Node> = cache.nodes().iter().collect();
        nodes.sort_by_key(|node| node.name.clone());
        nodes.iter().map(|node| neighbours.check(node.offer.as_ref().unwrap()).err().map(|refusal| refusal.reasons().remove(0))).collect()
    }

    fn term(field: &str, key: &str, app: &str) -> Value {
        let term = json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]);
        json!({"affinity": {field: {"requiredDuringSchedulingIgnoredDuringExecution": term}}})
    }

    #[test]
    fn pods_keep_away_from_those_they_shun_and_those_that_shun_them() {
        let anti = "node(s) didn't match pod anti-affinity rules".to_owned();
        let resented = "node(s) didn't satisfy existing pods anti-affinity rules".to_owned();
        let mut cache = cache();
        put(&mut cache, "a", pod("one", "web", term("podAntiAffinity", "zone", "db")));
        let (_, web) = pod("two", "web", term("podAntiAffinity", "host", "web"));
        assert_eq!(verdicts(&cache, &web), [Some(anti), None, None]);
        let (_, db) = pod("three", "db", json!({}));
        assert_eq!(verdicts(&cache, &db), [Some(resented.clone()), Some(resented), None]);
        cache.discharge("one");
        assert_eq!(verdicts(&cache, &db), [None, None, None]);
    }

    #[test]
    fn pods_go_where_those_are_that_they_want() {
        let alone = Some("node(s) didn't match pod affinity rules".to_owned());
        let mut cache = cache();
        let (_, wanting) = pod("w", "web", term("podAffinity", "zone", "db"));
        assert_eq!(verdicts(&cache, &wanting), [alone.clone(), alone.clone(), alone.clone()]);
        put(&mut cache, "a", pod("d", "db", json!({})));
        assert_eq!(verdicts(&cache, &wanting), [None, None, alone]);
        let (_, first) = pod("f", "fresh", term("podAffinity", "zone", "fresh"));
        assert_eq!(verdicts(&cache, &first), [None, None, None], "the first of its kind");
    }

    #[test]
    fn topology_spread_keeps_the_skew() {
        let spread = |key: &str| {
            json!({"topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}},
            }]})
        };
        let full = Some("node(s) didn't match pod topology spread constraints".to_owned());
        let mut cache = cache();
        put(&mut cache, "a", pod("one", "web", json!({})));
        let (_, by_zone) = pod("two", "web", spread("zone"));
        assert_eq!(verdicts(&cache, &by_zone), [full.clone(), full, None]);
        let (_, by_rack) = pod("three", "web", spread("rack"));
        let missing = Some("node(s) didn't match pod topology spread constraints (missing required label)".to_owned());
        assert_eq!(verdicts(&cache, &by_rack), [missing.clone(), missing.clone(), missing]);
    }
}
