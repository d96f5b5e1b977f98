//! Decides for one ReplicaSet or ReplicationController which pods to make, which to delete first, and what its status says.
//! Pure: it never reads a clock or the store.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::api::workloads::{Condition, Pod, ReplicaSet, ReplicaSetStatus};
use crate::base::time::Timestamp;

/// Pods made or deleted by one pass at most; the rest follows in the next (`BurstReplicas`).
pub const BURST_MAX: usize = 500;

/// Annotation that makes a pod go earlier (lower) or later (higher) when replicas are taken away; core/v1 PodDeletionCost.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[derive(Debug, PartialEq, Eq)]
pub enum Op {
    /// Make this many pods from the template.
    Create(usize),
    /// Delete these, given by their place in the list of owned pods.
    Delete(Vec<usize>),
}

/// What brings `owned` to the number asked for, if anything is missing or too much. `siblings` are all pods of all ReplicaSets with the
/// same owner, these included: of two pods, the one on the fuller node goes first.
pub fn plan(set: &ReplicaSet, owned: &[Pod], siblings: &[Pod]) -> Option<Op> {
    if set.metadata.is_deleting() {
        return None;
    }
    let active: Vec<usize> = (0..owned.len()).filter(|index| owned[*index].is_active()).collect();
    let desired = usize::try_from(set.replicas()).unwrap_or_default();
    match desired.cmp(&active.len()) {
        Ordering::Equal => None,
        Ordering::Greater => Some(Op::Create((desired - active.len()).min(BURST_MAX))),
        Ordering::Less => {
            let surplus = (active.len() - desired).min(BURST_MAX);
            Some(Op::Delete(first_to_go(owned, active, siblings, surplus)))
        }
    }
}

fn first_to_go(owned: &[Pod], mut active: Vec<usize>, siblings: &[Pod], count: usize) -> Vec<usize> {
    if count < active.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in siblings.iter().filter(|pod| pod.is_active()) {
            *on_node.entry(&pod.spec.node_name).or_default() += 1;
        }
        let crowd = |pod: &Pod| on_node.get(pod.spec.node_name.as_str()).copied().unwrap_or_default();
        active.sort_by(|a, b| compare(&owned[*a], &owned[*b], crowd(&owned[*a]), crowd(&owned[*b])));
        active.truncate(count);
    }
    active
}

/// Orders pods by who goes first (upstream `ActivePodsWithRanks`): not placed, pending, not ready, cheap, on a crowded node, ready for a
/// shorter time, restarted more often, younger.
fn compare(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize) -> Ordering {
    let placed = |pod: &Pod| !pod.spec.node_name.is_empty();
    let phase = |pod: &Pod| match pod.status.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |pod: &Pod| pod.metadata.annotations.get(DELETION_COST).and_then(|cost| cost.parse::<i32>().ok()).unwrap_or_default();
    placed(a)
        .cmp(&placed(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(|| youngest_first(a.ready_since(), b.ready_since()))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| youngest_first(a.metadata.creation_timestamp, b.metadata.creation_timestamp))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn youngest_first(a: Option<Timestamp>, b: Option<Timestamp>) -> Ordering {
    b.cmp(&a)
}

fn restarts(pod: &Pod) -> i64 {
    pod.status.container_statuses.iter().map(|status| status.restart_count).max().unwrap_or_default()
}

/// The status that `owned` amounts to. `failure` is what hindered making or deleting pods in this pass, as reason and message.
pub fn status(set: &ReplicaSet, owned: &[Pod], failure: Option<(&str, String)>, now: Timestamp) -> ReplicaSetStatus {
    let active = || owned.iter().filter(|pod| pod.is_active());
    let count = |test: &dyn Fn(&Pod) -> bool| active().filter(|pod| test(pod)).count() as i64;
    let template_labels = set.spec.template["metadata"]["labels"].as_object();
    let fully_labeled = |pod: &Pod| {
        template_labels
            .is_none_or(|labels| labels.iter().all(|(key, value)| pod.metadata.labels.get(key).map(String::as_str) == value.as_str()))
    };
    let available = |pod: &Pod| pod.available_at(set.spec.min_ready_seconds).is_some_and(|at| at <= now);
    let mut conditions = set.status.conditions.clone();
    let failing = conditions.iter().any(|condition| condition.kind == "ReplicaFailure");
    match failure {
        Some((reason, message)) if !failing => conditions.push(Condition {
            kind: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: Some(now),
            ..Condition::default()
        }),
        None => conditions.retain(|condition| condition.kind != "ReplicaFailure"),
        Some(_) => (),
    }
    ReplicaSetStatus {
        replicas: active().count() as i64,
        fully_labeled_replicas: count(&fully_labeled),
        ready_replicas: count(&Pod::is_ready),
        available_replicas: count(&available),
        terminating_replicas: Some(owned.iter().filter(|pod| pod.metadata.is_deleting() && !pod.is_finished()).count() as i64),
        observed_generation: set.metadata.generation,
        conditions,
    }
}

/// When the next ready pod will have been ready for `minReadySeconds`, so that the status changes without any event.
pub fn next_available(set: &ReplicaSet, owned: &[Pod], now: Timestamp) -> Option<Timestamp> {
    let due = owned.iter().filter(|pod| pod.is_active()).filter_map(|pod| pod.available_at(set.spec.min_ready_seconds));
    due.filter(|at| *at > now).min()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    fn set(replicas: i64) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": 10, "template": {"metadata": {"labels": {"app": "web"}}}},
        }))
        .unwrap()
    }

    /// A pod that ran and was ready for a minute on node `a`, with `change` merged over it.
    fn pod(name: &str, change: Value) -> Pod {
        let at = |seconds_ago: i64| Timestamp(NOW.0 - seconds_ago * 1_000_000).to_string();
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "labels": {"app": "web"}, "creationTimestamp": at(100)},
            "spec": {"nodeName": "a"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(60)}]},
        });
        json_patch::merge(&mut value, &change);
        serde_json::from_value(value).unwrap()
    }

    fn ready(seconds_ago: i64) -> Value {
        let at = Timestamp(NOW.0 - seconds_ago * 1_000_000).to_string();
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]}})
    }

    #[test]
    fn as_many_pods_are_made_as_are_missing() {
        let deleting = pod("a", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let failed = pod("b", json!({"status": {"phase": "Failed"}}));
        assert_eq!(plan(&set(3), &[deleting, failed, pod("c", json!({}))], &[]), Some(Op::Create(2)));
        assert_eq!(plan(&set(1), &[pod("c", json!({}))], &[]), None);
        assert_eq!(plan(&set(2000), &[], &[]), Some(Op::Create(BURST_MAX)));
    }

    #[test]
    fn a_set_that_is_being_deleted_makes_nothing() {
        let mut going = set(3);
        going.metadata.deletion_timestamp = Some(NOW);
        assert_eq!(plan(&going, &[], &[]), None);
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let first_of = |a: Pod, b: Pod, why: &str| {
            let siblings = [a.clone(), b.clone(), pod("other", json!({"spec": {"nodeName": "crowded"}}))];
            assert_eq!(plan(&set(1), &[a, b], &siblings), Some(Op::Delete(vec![1])), "{why}");
        };
        let usual = || pod("usual", json!({}));
        first_of(usual(), pod("x", json!({"spec": {"nodeName": null}})), "not placed");
        first_of(usual(), pod("x", json!({"status": {"phase": "Pending"}})), "pending");
        first_of(usual(), pod("x", json!({"status": {"conditions": []}})), "not ready");
        first_of(usual(), pod("x", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})), "cheap");
        first_of(usual(), pod("x", json!({"spec": {"nodeName": "crowded"}})), "doubled up");
        first_of(usual(), pod("x", ready(5)), "ready for a shorter time");
        first_of(usual(), pod("x", json!({"status": {"containerStatuses": [{"restartCount": 2}]}})), "restarted");
        first_of(usual(), pod("x", json!({"metadata": {"creationTimestamp": NOW.to_string()}})), "younger");
    }

    #[test]
    fn the_status_counts_what_is_there() {
        let owned = [
            pod("a", json!({})),
            pod("b", ready(3)),
            pod("c", json!({"metadata": {"labels": {"app": "other"}}, "status": {"phase": "Pending", "conditions": []}})),
            pod("d", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("e", json!({"status": {"phase": "Succeeded"}})),
        ];
        let status = status(&set(3), &owned, None, NOW);
        assert_eq!((status.replicas, status.fully_labeled_replicas, status.ready_replicas, status.available_replicas), (3, 2, 2, 1));
        assert_eq!((status.terminating_replicas, status.observed_generation), (Some(1), 3));
        assert_eq!(next_available(&set(3), &owned, NOW), Some(Timestamp(NOW.0 + 7_000_000)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let mut set = set(3);
        set.status = status(&set, &[], Some(("FailedCreate", "quota".to_owned())), NOW);
        let condition = &set.status.conditions[0];
        assert_eq!((condition.kind.as_str(), condition.reason.as_str()), ("ReplicaFailure", "FailedCreate"));
        assert_eq!(status(&set, &[], Some(("FailedCreate", "again".to_owned())), NOW).conditions[0].message, "quota");
        assert_eq!(status(&set, &[], None, NOW).conditions, []);
    }
}
