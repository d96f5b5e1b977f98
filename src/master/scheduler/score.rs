//! Which of the nodes that fit is best: the emptier one, the one with fewer pods of the same controller, the one that is preferred.
//! Pure; a score is between 0 and 100 times its weight (weights are kube-scheduler's defaults).

use super::cache::{Node, Offer, for_score};
use super::filter::{Candidate, is_tolerated, matches};

const SCORE_MAX: i64 = 100;
const LEAST_ALLOCATED_WEIGHT: i64 = 1;
const SPREAD_WEIGHT: i64 = 2;
const AFFINITY_WEIGHT: i64 = 2;
const TAINT_WEIGHT: i64 = 3;

/// The place in `nodes` of the best one. Of equal ones the first is taken: the caller begins its round at another node each time.
pub fn best(candidate: &Candidate, nodes: &[(&Node, &Offer)]) -> Option<usize> {
    let siblings = normalised(nodes, |node, _| -i64::from(of_same_owner(candidate, node)));
    let preferred = normalised(nodes, |node, offer| preference(candidate, node, offer));
    let tainted = normalised(nodes, |_, offer| -intolerable(candidate, offer));
    let total = |index: usize| {
        let (node, offer) = nodes[index];
        LEAST_ALLOCATED_WEIGHT * least_allocated(candidate, node, offer)
            + SPREAD_WEIGHT * siblings[index]
            + AFFINITY_WEIGHT * preferred[index]
            + TAINT_WEIGHT * tainted[index]
    };
    let mut best: Option<(i64, usize)> = None;
    for index in 0..nodes.len() {
        let score = total(index);
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, index));
        }
    }
    best.map(|(_, index)| index)
}

/// The share that stays free, of CPU and memory on average.
fn least_allocated(candidate: &Candidate, node: &Node, offer: &Offer) -> i64 {
    let (cpu, memory) = for_score(&candidate.requests);
    let free = |total: i64, used: i64| if total <= 0 || used > total { 0 } else { (total - used).saturating_mul(SCORE_MAX) / total };
    let cpu = free(offer.allocatable.cpu_milli, node.used_for_score.0 + cpu);
    let memory = free(offer.allocatable.memory_bytes, node.used_for_score.1 + memory);
    (cpu + memory) / 2
}

fn of_same_owner(candidate: &Candidate, node: &Node) -> u32 {
    candidate.pod.metadata.controller().and_then(|owner| node.by_owner.get(&owner.uid)).copied().unwrap_or_default()
}

fn preference(candidate: &Candidate, node: &Node, offer: &Offer) -> i64 {
    let preferred = &candidate.pod.spec.affinity.node_affinity.preferred;
    preferred.iter().filter(|each| matches(&each.preference, node, offer)).map(|each| each.weight).sum()
}

fn intolerable(candidate: &Candidate, offer: &Offer) -> i64 {
    let soft = offer.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !is_tolerated(taint, &candidate.pod.spec.tolerations)).count() as i64
}

/// Stretches raw scores to 0–100; all the same are all 100.
fn normalised(nodes: &[(&Node, &Offer)], raw: impl Fn(&Node, &Offer) -> i64) -> Vec<i64> {
    let raw: Vec<i64> = nodes.iter().map(|(node, offer)| raw(node, offer)).collect();
    let (lowest, highest) = (raw.iter().min().copied().unwrap_or_default(), raw.iter().max().copied().unwrap_or_default());
    let scale = |score: i64| if highest == lowest { SCORE_MAX } else { (score - lowest) * SCORE_MAX / (highest - lowest) };
    raw.into_iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::master::scheduler::cache::Cache;
    use crate::master::scheduler::cache::tests::object;
    use crate::master::scheduler::pod::Pod;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn chosen(cache: &Cache, pod: &Pod) -> String {
        let nodes: Vec<_> = cache.nodes().iter().map(|node| (node, node.offer.as_ref().unwrap())).collect();
        nodes[best(&Candidate::new(pod), &nodes).unwrap()].0.name.to_string()
    }

    fn cache(changes: [Value; 2]) -> Cache {
        let mut cache = Cache::default();
        for (name, change) in ["a", "b"].into_iter().zip(changes) {
            let mut node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "100"}}});
            json_patch::merge(&mut node, &change);
            cache.set_node(name, Offer::read(node.to_string().as_bytes()).unwrap());
        }
        cache
    }

    #[test]
    fn the_emptier_node_wins() {
        let mut nodes = cache([json!({}), json!({})]);
        nodes.charge(&object("x"), "a", &pod(json!({})));
        assert_eq!(chosen(&nodes, &pod(json!({}))), "b");
    }

    #[test]
    fn pods_of_one_owner_spread() {
        let owned = pod(json!({"metadata": {"ownerReferences": [{"uid": "set", "controller": true}]}}));
        let mut nodes = cache([json!({}), json!({})]);
        nodes.charge(&object("x"), "a", &owned);
        nodes.charge(&object("y"), "b", &pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "2"}}}]}})));
        assert_eq!(chosen(&nodes, &owned), "b");
    }

    #[test]
    fn preferences_and_soft_taints_count() {
        let plain = pod(json!({}));
        let tainted = cache([json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}), json!({})]);
        assert_eq!(chosen(&tainted, &plain), "b");
        let labelled = cache([json!({}), json!({"metadata": {"labels": {"disktype": "ssd"}}})]);
        let term = json!({"matchExpressions": [{"key": "disktype", "operator": "In", "values": ["ssd"]}]});
        let wishing = pod(json!({"spec": {"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": term}],
        }}}}));
        assert_eq!(chosen(&labelled, &wishing), "b");
    }
}
