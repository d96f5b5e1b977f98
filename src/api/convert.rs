//! Reads manifests of versions that are served no more (extensions/v1beta1, apps/v1beta1 and v1beta2, …) as the version that replaced
//! them. Objects of served versions are left alone.

use serde_json::{Map, Value, json};

/// Old group versions whose kinds kept their fields: (old, kinds, new).
const RENAMED: [(&str, &[&str], &str); 13] = [
    ("extensions/v1beta1", &["Deployment", "DaemonSet", "ReplicaSet"], "apps/v1"),
    ("extensions/v1beta1", &["Ingress", "NetworkPolicy"], "networking.k8s.io/v1"),
    ("apps/v1beta1", &["Deployment", "StatefulSet", "ControllerRevision"], "apps/v1"),
    ("apps/v1beta2", &["Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "ControllerRevision"], "apps/v1"),
    ("networking.k8s.io/v1beta1", &["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"], "networking.k8s.io/v1"),
    ("batch/v1beta1", &["CronJob"], "batch/v1"),
    ("policy/v1beta1", &["PodDisruptionBudget", "Eviction"], "policy/v1"),
    ("autoscaling/v2beta2", &["HorizontalPodAutoscaler"], "autoscaling/v2"),
    ("rbac.authorization.k8s.io/v1beta1", &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"], "rbac.authorization.k8s.io/v1"),
    ("scheduling.k8s.io/v1beta1", &["PriorityClass"], "scheduling.k8s.io/v1"),
    ("storage.k8s.io/v1beta1", &["StorageClass", "CSIDriver", "CSINode", "VolumeAttachment"], "storage.k8s.io/v1"),
    ("coordination.k8s.io/v1beta1", &["Lease"], "coordination.k8s.io/v1"),
    ("node.k8s.io/v1beta1", &["RuntimeClass"], "node.k8s.io/v1"),
];

/// Makes an object of a version that is no longer served one of the version that is. If it did, gives the sentence that tells the user.
pub fn to_served(object: &mut Value) -> Option<String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (old, kind) = (text("apiVersion").to_owned(), text("kind").to_owned());
    let (_, _, new) = RENAMED.iter().find(|(version, kinds, _)| *version == old && kinds.contains(&kind.as_str()))?;
    object["apiVersion"] = (*new).into();
    let mut said = format!("{old} {kind} is served no more and was read as {new}");
    match kind.as_str() {
        "Deployment" | "DaemonSet" | "ReplicaSet" | "StatefulSet" => {
            let given_selector = workload(object, &old, &kind);
            if given_selector {
                said += ", its selector taken from the labels of its template";
            }
        }
        "Ingress" => ingress(object),
        // In the old version an empty selector chose nothing, in the new one it chooses all.
        "PodDisruptionBudget" if object.pointer("/spec/selector") == Some(&json!({})) => {
            object["spec"]["selector"] =
                json!({"matchExpressions": [{"key": "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match", "operator": "Exists"}]});
        }
        _ => {}
    }
    Some(said)
}

/// Whether it had to be given a selector.
fn workload(object: &mut Value, old: &str, kind: &str) -> bool {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    // Removed since: what they asked for is no longer done by the server.
    spec.remove("rollbackTo");
    spec.remove("templateGeneration");
    let labels = spec.get("template").and_then(|template| template.pointer("/metadata/labels")).cloned();
    let chosen = spec.get("selector").is_some_and(|selector| selector.as_object().is_some_and(|selector| !selector.is_empty()));
    let given = !chosen && labels.is_some();
    if let (false, Some(labels)) = (chosen, labels) {
        spec.insert("selector".into(), json!({"matchLabels": labels}));
    }
    // These waited for the pods to be deleted by hand unless they were told otherwise.
    if matches!((old, kind), ("extensions/v1beta1", "DaemonSet") | ("apps/v1beta1", "StatefulSet"))
        && spec.get("updateStrategy").and_then(|strategy| strategy.get("type")).is_none()
    {
        spec.insert("updateStrategy".into(), json!({"type": "OnDelete"}));
    }
    given
}

fn ingress(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut default) = spec.remove("backend") {
        backend(&mut default);
        spec.insert("defaultBackend".into(), default);
    }
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten();
    for rule in rules {
        for path in rule.pointer_mut("/http/paths").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(path) = path.as_object_mut() {
                path.entry("pathType").or_insert_with(|| "ImplementationSpecific".into());
                path.get_mut("backend").into_iter().for_each(backend);
            }
        }
    }
}

/// `serviceName` and `servicePort` became `service.name` and `service.port`.
fn backend(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let (name, port) = (map.remove("serviceName"), map.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = Map::new();
    service.extend(name.map(|name| ("name".to_owned(), name)));
    service.extend(port.map(|port| ("port".to_owned(), if port.is_string() { json!({"name": port}) } else { json!({"number": port}) })));
    map.insert("service".into(), service.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mut object: Value, expected: Value) {
        assert!(to_served(&mut object).is_some(), "{object}");
        assert_eq!(object, expected);
        assert_eq!(to_served(&mut object), None);
    }

    #[test]
    fn old_workloads_choose_the_pods_of_their_template() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {}});
        check(
            json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "spec": {"rollbackTo": {}, "template": template}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
        );
        check(
            json!({"apiVersion": "apps/v1beta2", "kind": "ReplicaSet", "spec": {"selector": {"matchLabels": {"c": "d"}}, "template": template}}),
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "spec": {"selector": {"matchLabels": {"c": "d"}}, "template": template}}),
        );
        check(
            json!({"apiVersion": "extensions/v1beta1", "kind": "DaemonSet", "spec": {"template": {}}}),
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {"template": {}, "updateStrategy": {"type": "OnDelete"}}}),
        );
    }

    #[test]
    fn the_user_is_told_what_was_done() {
        let template = json!({"metadata": {"labels": {"a": "b"}}});
        let mut object = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "spec": {"template": template}});
        let said =
            "extensions/v1beta1 Deployment is served no more and was read as apps/v1, its selector taken from the labels of its template";
        assert_eq!(to_served(&mut object).unwrap(), said);
    }

    #[test]
    fn old_ingresses_name_their_service_anew() {
        check(
            json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "Ingress", "spec": {"backend": {"serviceName": "d", "servicePort": "http"},
                "rules": [{"http": {"paths": [{"path": "/", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {"defaultBackend": {"service": {"name": "d", "port": {"name": "http"}}},
                "rules": [{"http": {"paths": [{"path": "/", "pathType": "ImplementationSpecific", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        );
    }

    #[test]
    fn served_versions_are_left_alone() {
        for (version, kind) in [("apps/v1", "Deployment"), ("v1", "Pod"), ("example.com/v1beta1", "Ingress"), ("extensions/v1beta1", "Pod")]
        {
            let mut object = json!({"apiVersion": version, "kind": kind});
            assert_eq!(to_served(&mut object), None);
        }
    }
}
