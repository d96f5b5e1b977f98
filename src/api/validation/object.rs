//! Whether an object is valid, and whether it may replace what it was: metadata for every kind, the rules of the kind where there
//! are any, and the closed sets of the schema table for the rest. The object must be defaulted before.

use serde_json::Value;

use super::report::{Node, Report};
use super::{access, data, ingress, metadata, names, pod, selector, service, storage, workload};
use crate::api::schema::{Kind, Message, Resource, Type, element};
use crate::api::status::Cause;

/// Checks an object that is created (`old` is none) or that replaces `old`. Empty if it is fine; otherwise the causes of a 422.
pub fn object(resource: &Resource, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    subresource(resource, "", value, old)
}

/// Checks an object that is written through one of its subresources, which may change other parts of it: of `status`,
/// only metadata is looked at; `ephemeralcontainers`, `resize` and `binding` of a Pod may change what a plain update may not.
pub fn subresource(resource: &Resource, name: &str, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut report = Report::default();
    let object = Node::root(value);
    let old = old.map(Node::root);
    metadata::check(&mut report, resource, &object.get("metadata"));
    if let Some(old) = &old {
        metadata::check_update(&mut report, &object.get("metadata"), &old.get("metadata"));
    }
    if name != "status" {
        by_kind(&mut report, resource, name, &object, old.as_ref());
    }
    report.causes
}

fn by_kind(report: &mut Report, resource: &Resource, name: &str, object: &Node, old: Option<&Node>) {
    match (resource.group, resource.kind) {
        ("", "Pod") => match old {
            None => pod::check(report, object),
            Some(old) => {
                let free: &[&str] = match name {
                    "ephemeralcontainers" => &["ephemeralContainers"],
                    "resize" => &["resources"],
                    "binding" => &["nodeName"],
                    _ => &[],
                };
                pod::check_update(report, object, old, free);
            }
        },
        ("", "PodTemplate") => pod::check_template(report, &object.get("template"), &[]),
        ("", "ReplicationController") => {
            report.not_negative(&object.at("spec.replicas"));
            if object.at("spec.selector").is_empty() {
                report.required(&object.at("spec.selector"), "");
            }
            pod::check_template(report, &object.at("spec.template"), &[]);
        }
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => workload::check(report, resource.kind, object, old),
        ("batch", "Job") => workload::job(report, object, old),
        ("batch", "CronJob") => workload::cron_job(report, object),
        ("", "Service") => service::check(report, object, old),
        ("", "ConfigMap") => data::config_map(report, object, old),
        ("", "Secret") => data::secret(report, object, old),
        ("", "Namespace") => namespace(report, object),
        ("", "Node") => node(report, object),
        ("", "PersistentVolumeClaim") => storage::claim(report, object, old),
        ("", "PersistentVolume") => storage::volume(report, object),
        ("networking.k8s.io", "Ingress") => ingress::check(report, object),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => access::role(report, object, resource.namespaced),
        ("rbac.authorization.k8s.io", _) => access::binding(report, object, old),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(report, object, old),
        ("scheduling.k8s.io", "PriorityClass") => priority_class(report, object, old),
        ("policy", "PodDisruptionBudget") => disruption_budget(report, object),
        ("autoscaling", _) => autoscaler(report, object),
        ("coordination.k8s.io", "Lease") => {
            let duration = object.at("spec.leaseDurationSeconds");
            if duration.int().is_some_and(|seconds| seconds <= 0) {
                report.invalid(&duration, "must be greater than 0");
            }
        }
        _ => closed_sets(report, resource.schema(), object),
    }
}

fn namespace(report: &mut Report, object: &Node) {
    let list = object.at("spec.finalizers");
    for item in list.items() {
        let item = item.named(list.path.clone());
        report.all(&item, names::qualified(item.text()));
        if !item.text().contains('/') && item.text() != "kubernetes" {
            report.invalid(&item, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}

fn node(report: &mut Report, object: &Node) {
    object.at("spec.podCIDRs").items().for_each(|range| report.all(&range, names::address_range(range.text())));
    let taints = object.at("spec.taints");
    selector::taints(report, &taints.named("metadata.taints"));
}

/// Priorities above this are the system's.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class(report: &mut Report, object: &Node, old: Option<&Node>) {
    let (value, name) = (object.get("value"), object.at("metadata.name"));
    let system = matches!(name.text(), "system-node-critical" | "system-cluster-critical");
    if name.text().starts_with("system-") && !system {
        report.forbidden(&name, "priority class names with 'system-' prefix are reserved for system use only");
    }
    if !system && value.int().is_some_and(|value| value > USER_PRIORITY_MAX) {
        report.forbidden(&value, "maximum allowed value of a user defined priority is 1000000000");
    }
    report.one_of(&object.get("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    let Some(old) = old else { return };
    if value.value != old.get("value").value {
        report.forbidden(&value, "may not be changed in an update.");
    }
    report.immutable(&object.get("preemptionPolicy"), &old.get("preemptionPolicy"));
}

fn disruption_budget(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if least.is_set() && most.is_set() {
        report.invalid(&spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for share in [&least, &most] {
        match share.value {
            Value::String(text) => report.all(share, names::percent(text)),
            _ => report.not_negative(share),
        }
    }
    selector::label_selector(report, &spec.get("selector"));
    report.one_of(&spec.get("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
}

fn autoscaler(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    let (least, most) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    if least.int().is_some_and(|number| number < 1) {
        report.invalid(&least, "must be greater than or equal to 1");
    }
    if most.int().unwrap_or(0) < 1 {
        report.wrong(&most, &most.int().unwrap_or(0).into(), "must be greater than 0");
    }
    if let (Some(low), Some(high)) = (least.int(), most.int())
        && high < low
    {
        report.invalid(&most, "must be greater than or equal to `minReplicas`");
    }
    for key in ["kind", "name"] {
        let field = spec.get("scaleTargetRef").get(key);
        if field.is_empty() {
            report.required(&field, "");
        } else {
            report.all(&field, names::path_segment(field.text()));
        }
    }
}

/// Values outside the closed sets of the table, anywhere but in the status.
fn closed_sets(report: &mut Report, kind: Kind, object: &Node) {
    for field in kind.message.json_fields() {
        if !matches!(field.name(), "status" | "metadata") {
            enums(report, field.ty(), &object.get(field.name()));
        }
    }
}

fn enums(report: &mut Report, ty: Type, node: &Node) {
    if !node.is_set() {
        return;
    }
    match ty {
        Type::Enum(values) if !values.iter().any(|value| value == node.text()) => {
            let mut values: Vec<&str> = values.iter().collect();
            values.sort_unstable();
            report.not_supported(node, &values);
        }
        Type::Message(message) => fields(report, message, node),
        Type::List(of) => node.items().for_each(|item| enums(report, element(of), &item)),
        Type::Map(of) => node.entries().for_each(|(key, _)| enums(report, element(of), &node.entry(key))),
        _ => {}
    }
}

fn fields(report: &mut Report, message: Message, node: &Node) {
    message.json_fields().for_each(|field| enums(report, field.ty(), &node.get(field.name())));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema::{kind_of, resource, resource_of_kind};
    use crate::api::{defaults, testdata};

    #[test]
    fn objects_are_refused_for_what_upstream_refuses_them() {
        let lines = testdata::lines(include_bytes!("../testdata/validation.jsonl.zst"));
        for line in &lines {
            let kind = kind_of(line["in"]["apiVersion"].as_str().unwrap(), line["in"]["kind"].as_str().unwrap()).unwrap();
            let resource = resource_of_kind(kind.group, kind.version, kind.name).unwrap();
            let defaulted = |object: &Value| {
                let mut object = object.clone();
                defaults::apply(kind, &mut object);
                object
            };
            let old = line.get("old").map(defaulted);
            let causes = object(resource, &defaulted(&line["in"]), old.as_ref());
            let text = |field: &str, reason: &str, message: &str| format!("{field} {reason} {message}");
            let mut ours: Vec<String> = causes.iter().map(|cause| text(&cause.field, &cause.reason, &cause.message)).collect();
            let field = |cause: &Value, key: &str| cause[key].as_str().unwrap().to_owned();
            let theirs = line["causes"].as_array().unwrap().iter();
            let mut theirs: Vec<String> =
                theirs.map(|cause| text(&field(cause, "field"), &field(cause, "reason"), &field(cause, "message"))).collect();
            for list in [&mut ours, &mut theirs] {
                list.sort();
                list.dedup();
            }
            assert_eq!(ours, theirs, "{}", line["in"]);
        }
        assert_eq!(lines.len(), 366);
    }

    fn check(group: &str, plural: &str, mut value: Value, old: Option<Value>) -> Vec<String> {
        let resource = resource(group, "v1", plural).unwrap();
        defaults::apply(resource.schema(), &mut value);
        let old = old.map(|mut old| {
            defaults::apply(resource.schema(), &mut old);
            old
        });
        object(resource, &value, old.as_ref()).into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn what_cannot_change_stays() {
        let claim = |modes: Value, size: &str| {
            let spec = json!({"accessModes": modes, "resources": {"requests": {"storage": size}}});
            json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
        };
        let old = claim(json!(["ReadWriteOnce"]), "1Gi");
        assert_eq!(check("", "persistentvolumeclaims", claim(json!(["ReadWriteOnce"]), "2Gi"), Some(old.clone())), Vec::<String>::new());
        assert_eq!(check("", "persistentvolumeclaims", claim(json!(["ReadOnlyMany"]), "1Gi"), Some(old)).len(), 1);
        let binding = |role: &str| json!({"metadata": {"name": "a", "namespace": "b"}, "roleRef": {"kind": "Role", "name": role}});
        assert_eq!(
            check("rbac.authorization.k8s.io", "rolebindings", binding("y"), Some(binding("x"))),
            ["roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"y\"}: cannot change \
                    roleRef"]
        );
    }

    #[test]
    fn kinds_without_rules_of_their_own_keep_to_closed_sets() {
        let slice =
            json!({"metadata": {"name": "a", "namespace": "b"}, "addressType": "IPv4", "endpoints": [], "ports": [{"protocol": "X"}]});
        assert_eq!(
            check("discovery.k8s.io", "endpointslices", slice, None),
            ["ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\""]
        );
        let role = json!({"metadata": {"name": "system:a", "namespace": "b"}, "rules": [{"resources": ["pods"]}]});
        assert_eq!(check("rbac.authorization.k8s.io", "roles", role, None).len(), 2);
    }

    #[test]
    fn subresources_may_change_what_is_theirs() {
        let pods = resource("", "v1", "pods").unwrap();
        let pod = |node: Value| json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": [{"name": "a", "image": "x"}], "nodeName": node}});
        let (old, new) = (pod(Value::Null), pod(json!("n")));
        assert_eq!(subresource(pods, "binding", &new, Some(&old)), Vec::new());
        assert_eq!(object(pods, &new, Some(&old)).len(), 1);
        assert_eq!(subresource(pods, "status", &new, Some(&old)), Vec::new());
    }
}
