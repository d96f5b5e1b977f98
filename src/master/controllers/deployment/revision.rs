//! How a Deployment tells its ReplicaSets apart and keeps their history: the template's hash and the annotations that carry revisions and
//! sizes. Pure text work; it never decides how many pods there are.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::workloads::ReplicaSet;

/// Label on ReplicaSets and pods: which template they are of.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Number of the rollout, on the Deployment and on each of its ReplicaSets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet that was rolled back to, separated by commas.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// `spec.replicas` of the Deployment when the ReplicaSet was last sized: a difference means that somebody scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with maxSurge added.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations that a ReplicaSet does not take over from its Deployment.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The longest revision history kept, in characters; the oldest revisions go first.
const HISTORY_MAX: usize = 2000;

/// The revision of a set; 0 if it carries none.
pub fn of(set: &ReplicaSet) -> i64 {
    parse(&set.metadata.annotations)
}

fn parse(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Takes the Deployment's annotations over.
pub fn inherit(annotations: &mut BTreeMap<String, String>, deployment: &BTreeMap<String, String>) {
    let own = |key: &str| OWN.contains(&key);
    annotations.extend(deployment.iter().filter(|(key, _)| !own(key)).map(|(key, value)| (key.clone(), value.clone())));
}

/// Makes `number` the revision unless a higher one is there already, and remembers the one it replaces.
pub fn advance(annotations: &mut BTreeMap<String, String>, number: i64) {
    if parse(annotations) >= number {
        return;
    }
    let Some(replaced) = annotations.insert(REVISION.to_owned(), number.to_string()) else { return };
    let history = annotations.get(REVISION_HISTORY).map(String::as_str).unwrap_or_default();
    let mut revisions: Vec<&str> = history.split(',').filter(|each| !each.is_empty()).collect();
    revisions.push(&replaced);
    while revisions.iter().map(|each| each.len() + 1).sum::<usize>() > HISTORY_MAX {
        revisions.remove(0);
    }
    let history = revisions.join(",");
    annotations.insert(REVISION_HISTORY.to_owned(), history);
}

/// A short name for a template: equal templates have equal ones. `collisions` makes another one for a template whose first name was taken.
pub fn template_hash(template: &Value, collisions: i64) -> String {
    // Kubernetes hashes Go's print-out of its struct, which nobody else can repeat; what matters is the alphabet and that it is stable.
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = template.to_string().into_bytes();
    if collisions != 0 {
        bytes.extend(collisions.to_le_bytes());
    }
    // FNV-1a, 32 bits.
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rolling_back_keeps_the_old_revision_in_the_history() {
        let mut annotations = BTreeMap::new();
        advance(&mut annotations, 1);
        assert_eq!(annotations.get(REVISION_HISTORY), None);
        advance(&mut annotations, 3);
        advance(&mut annotations, 5);
        advance(&mut annotations, 4);
        assert_eq!((annotations[REVISION].as_str(), annotations[REVISION_HISTORY].as_str()), ("5", "1,3"));
    }

    #[test]
    fn the_history_stays_bounded() {
        let mut annotations = BTreeMap::new();
        for number in 1..2000 {
            advance(&mut annotations, number);
        }
        assert!(annotations[REVISION_HISTORY].len() <= HISTORY_MAX);
        assert!(annotations[REVISION_HISTORY].ends_with(",1998"));
    }

    #[test]
    fn a_set_takes_over_the_users_annotations_only() {
        let mut annotations = BTreeMap::new();
        let from = ["a", REVISION, "kubectl.kubernetes.io/last-applied-configuration"].map(|key| (key.to_owned(), "x".to_owned()));
        inherit(&mut annotations, &from.into());
        assert_eq!(annotations, [("a".to_owned(), "x".to_owned())].into());
    }

    #[test]
    fn the_hash_tells_templates_and_collisions_apart() {
        let hash = template_hash(&json!({"spec": {"a": 1, "b": 2}}), 0);
        assert_eq!(hash, template_hash(&json!({"spec": {"b": 2, "a": 1}}), 0));
        assert_ne!(hash, template_hash(&json!({"spec": {"a": 1, "b": 3}}), 0));
        assert_ne!(hash, template_hash(&json!({"spec": {"a": 1, "b": 2}}), 1));
    }
}
