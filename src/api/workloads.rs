//! Read views of the objects that controllers compare: pods, ReplicaSets, ReplicationControllers, Deployments, and the metadata they share.
//! Only the fields that are acted on; a view is never written back, because that would drop all others.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::base::time::Timestamp;

/// The part of `metadata` (meta/v1 ObjectMeta) that says what an object is, whose it is and whether it is going.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    #[serde(deserialize_with = "instant")]
    pub creation_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "instant")]
    pub deletion_timestamp: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
}

impl ObjectMeta {
    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// The owner that manages this object, if any: at most one reference has `controller: true`.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// meta/v1 OwnerReference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// meta/v1 LabelSelector. An empty one matches everything; one that is absent matches nothing, which is why users hold an `Option`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: BTreeMap<String, String>,
    pub match_expressions: Vec<Requirement>,
}

/// meta/v1 LabelSelectorRequirement; node selectors use the same form with `Gt` and `Lt` besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether a label of this value (`None`: absent) satisfies the requirement. An operator that is not known satisfies nothing.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|each| each == value);
        match (self.operator.as_str(), value) {
            ("In", Some(value)) => listed(value),
            ("NotIn", Some(value)) => !listed(value),
            ("NotIn" | "DoesNotExist", None) | ("Exists", Some(_)) => true,
            ("Gt" | "Lt", Some(value)) => {
                let bound = self.values.first().and_then(|bound| bound.parse::<i64>().ok());
                let (Some(bound), Ok(value)) = (bound, value.parse::<i64>()) else { return false };
                if self.operator == "Gt" { value > bound } else { value < bound }
            }
            _ => false,
        }
    }
}

impl LabelSelector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|each| each.matches(labels.get(&each.key).map(String::as_str)))
    }

    /// Whether it has no requirement; controllers take such a selector for a mistake, not for «everything».
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

/// A condition of a workload's status; Deployments alone have `lastUpdateTime`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(deserialize_with = "instant", serialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<Timestamp>,
    #[serde(deserialize_with = "instant", serialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
}

/// A number, or a share of another number in percent; util/intstr.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

impl IntOrString {
    /// The number meant, where a percentage is of `total`, rounded up or down. Text that is no percentage is an error of validation; it
    /// counts as 0.
    pub fn of(&self, total: i64, round_up: bool) -> i64 {
        match self {
            Self::Int(number) => *number,
            Self::String(text) => {
                let percent: i64 = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or_default();
                let product = percent.saturating_mul(total);
                if round_up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) }
            }
        }
    }
}

/// apps/v1 Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deployment {
    pub metadata: ObjectMeta,
    pub spec: DeploymentSpec,
    pub status: DeploymentStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: Option<i64>,
    pub selector: Option<LabelSelector>,
    /// Kept whole: it becomes the ReplicaSet's, field by field.
    pub template: Value,
    pub strategy: Strategy,
    pub min_ready_seconds: i64,
    pub revision_history_limit: Option<i64>,
    pub paused: bool,
    pub progress_deadline_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub kind: String,
    pub rolling_update: Option<RollingUpdate>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_unavailable: Option<IntOrString>,
    pub max_surge: Option<IntOrString>,
}

/// The status of a Deployment; written as well as read, for the controller is its only writer and knows all of its fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub updated_replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub unavailable_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// apps/v1 ReplicaSet and v1 ReplicationController, which differ in the form of the selector only.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSet {
    pub metadata: ObjectMeta,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: Option<i64>,
    #[serde(deserialize_with = "selector")]
    pub selector: Option<LabelSelector>,
    pub template: Value,
    pub min_ready_seconds: i64,
}

/// The status of a ReplicaSet or ReplicationController; its controller is the only writer and knows all of its fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub fully_labeled_replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub ready_replicas: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub available_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl ReplicaSet {
    /// `spec.replicas`; the API defaults it to 1.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }
}

/// A v1 Pod as those see it who count pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
}

/// A container's named ports, for Services that name them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: i64,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    pub conditions: Vec<Condition>,
    pub container_statuses: Vec<ContainerStatus>,
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub restart_count: i64,
}

impl Pod {
    /// Neither finished nor asked to go: it counts as one of the replicas.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.metadata.is_deleting()
    }

    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Since when the pod is ready; `None` if it is not. A ready pod without a readable time was ready always.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let ready = self.status.conditions.iter().find(|each| each.kind == "Ready" && each.status == "True")?;
        Some(ready.last_transition_time.unwrap_or_default())
    }

    pub fn is_ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// When the pod has been, or will have been, ready for `min_ready_seconds`; `None` if it is not ready. Zero asks no clock:
    /// the node's may be years ahead of ours.
    pub fn available_at(&self, min_ready_seconds: i64) -> Option<Timestamp> {
        let since = self.ready_since()?;
        Some(if min_ready_seconds <= 0 { Timestamp::default() } else { Timestamp(since.0 + min_ready_seconds * 1_000_000) })
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// An RFC 3339 instant; absent, null or unreadable ones are `None`.
fn instant<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|text| Timestamp::parse(&text)))
}

fn seconds<S: serde::Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(at),
        None => to.serialize_none(),
    }
}

/// A LabelSelector, or the plain map of a ReplicationController, which means `matchLabels`.
fn selector<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LabelSelector>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Plain(BTreeMap<String, String>),
        Full(LabelSelector),
    }
    Ok(Option::<Form>::deserialize(from)?.map(|form| match form {
        Form::Plain(match_labels) => LabelSelector { match_labels, ..LabelSelector::default() },
        Form::Full(full) => full,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let check = |text: &str, total, up, down| {
            let value = IntOrString::String(text.to_owned());
            assert_eq!((value.of(total, true), value.of(total, false)), (up, down), "{text} of {total}");
        };
        check("25%", 3, 1, 0);
        check("25%", 4, 1, 1);
        check("25%", 10, 3, 2);
        check("100%", 7, 7, 7);
        check("0%", 7, 0, 0);
        assert_eq!(IntOrString::Int(2).of(10, true), 2);
    }

    #[test]
    fn selectors_match_as_the_api_says() {
        let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned()), ("size".to_owned(), "7".to_owned())].into();
        let check = |selector: Value, expected| {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(parsed.matches(&labels), expected, "{selector}");
        };
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "db"}}), false);
        for (operator, values, expected) in [
            ("In", json!(["web", "db"]), true),
            ("NotIn", json!(["web"]), false),
            ("Exists", json!([]), true),
            ("DoesNotExist", json!([]), false),
            ("Sometimes", json!([]), false),
        ] {
            check(json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}), expected);
        }
        check(json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["x"]}]}), true);
        check(json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["6"]}]}), true);
        check(json!({"matchExpressions": [{"key": "size", "operator": "Lt", "values": ["7"]}]}), false);
    }

    #[test]
    fn replication_controllers_read_like_replica_sets() {
        let plain: ReplicaSet = serde_json::from_value(json!({"spec": {"selector": {"app": "web"}}})).unwrap();
        let full: ReplicaSet = serde_json::from_value(json!({"spec": {"selector": {"matchLabels": {"app": "web"}}}})).unwrap();
        assert_eq!(plain.spec.selector.unwrap().match_labels, full.spec.selector.unwrap().match_labels);
    }

    #[test]
    fn conditions_survive_a_round_trip() {
        let condition = json!({"type": "Available", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-02T03:04:05Z"});
        let view: Condition = serde_json::from_value(condition.clone()).unwrap();
        assert_eq!(serde_json::to_value(&view).unwrap(), condition);
    }
}
