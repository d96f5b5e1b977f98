//! Whether an object is valid, and whether it may replace what it was: metadata for every kind, the rules of the kind where there
//! are any, and the closed sets of the schema table for the rest. The object must be defaulted before.

use serde_json::Value;

use super::report::{Node, Report};
use super::{metadata, names, pod, selector, service, workload};
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
        ("", "PodTemplate") => pod::check_template(report, &object.get("template")),
        ("", "ReplicationController") => {
            report.not_negative(&object.at("spec.replicas"));
            if object.at("spec.selector").is_empty() {
                report.required(&object.at("spec.selector"), "");
            }
            pod::check_template(report, &object.at("spec.template"));
        }
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => workload::check(report, resource.kind, object, old),
        ("batch", "Job") => workload::job(report, object, old),
        ("batch", "CronJob") => workload::cron_job(report, object),
        ("", "Service") => service::check(report, object, old),
        ("", "ConfigMap") => config_map(report, object, old),
        ("", "Secret") => secret(report, object, old),
        ("", "Namespace") => namespace(report, object),
        ("", "Node") => node(report, object),
        ("", "PersistentVolumeClaim") => claim(report, object, old),
        ("", "PersistentVolume") => volume(report, object),
        ("networking.k8s.io", "Ingress") => ingress(report, object),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => role(report, object, resource.namespaced),
        ("rbac.authorization.k8s.io", _) => binding(report, object, old),
        ("storage.k8s.io", "StorageClass") => storage_class(report, object, old),
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

/// Bytes in the values of one ConfigMap or Secret.
const DATA_MAX_BYTES: usize = 1 << 20;

fn config_map(report: &mut Report, object: &Node, old: Option<&Node>) {
    let (data, binary) = (object.get("data"), object.get("binaryData"));
    for (key, _) in data.entries() {
        let entry = data.entry(key);
        names::config_key(key).iter().for_each(|problem| report.wrong(&entry, &key.as_str().into(), problem));
        if binary.entry(key).is_set() {
            report.wrong(&entry, &key.as_str().into(), "duplicate of key present in binaryData");
        }
    }
    for (key, _) in binary.entries() {
        names::config_key(key).iter().for_each(|problem| report.wrong(&binary.entry(key), &key.as_str().into(), problem));
    }
    let size: usize = data.entries().map(|(_, value)| value.as_str().map_or(0, str::len)).sum::<usize>() + decoded(&binary);
    if size > DATA_MAX_BYTES {
        report.too_long(&data.named("[]"), DATA_MAX_BYTES);
    }
    if let Some(old) = old {
        sealed(report, object, old, &["data", "binaryData"]);
    }
}

/// Bytes of base64 values once they are decoded, closely enough.
fn decoded(node: &Node) -> usize {
    node.entries().map(|(_, value)| value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)).sum()
}

/// `immutable: true` cannot be taken back, and nothing below `keys` can change.
fn sealed(report: &mut Report, object: &Node, old: &Node, keys: &[&str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.get("immutable").bool() {
        return;
    }
    if !object.get("immutable").bool() {
        report.forbidden(&object.get("immutable"), DETAIL);
    }
    for key in keys {
        if object.get(key).value != old.get(key).value {
            report.forbidden(&object.get(key), DETAIL);
        }
    }
}

fn secret(report: &mut Report, object: &Node, old: Option<&Node>) {
    let data = object.get("data");
    for (key, _) in data.entries() {
        names::config_key(key).iter().for_each(|problem| report.wrong(&data.entry(key), &key.as_str().into(), problem));
    }
    if decoded(&data) > DATA_MAX_BYTES {
        report.too_long(&data, DATA_MAX_BYTES);
    }
    let required: &[&str] = match object.get("type").text() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/service-account-token" => {
            let account = object.at("metadata.annotations").entry("kubernetes.io/service-account.name");
            if account.is_empty() {
                report.required(&account, "");
            }
            &[]
        }
        "kubernetes.io/basic-auth" if !data.entry("username").is_set() && !data.entry("password").is_set() => &["username", "password"],
        _ => &[],
    };
    for key in required {
        let entry = data.entry(key);
        if !entry.is_set() {
            report.required(&entry, "");
        } else if matches!(*key, ".dockerconfigjson" | ".dockercfg") && !is_json(entry.text()) {
            report.wrong(&entry, &"<secret contents redacted>".into(), "invalid character: the content is no JSON");
        }
    }
    if let Some(old) = old {
        report.immutable(&object.get("type"), &old.get("type"));
        sealed(report, object, old, &["data"]);
    }
}

fn is_json(base64: &str) -> bool {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap_or_default();
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok()
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

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(report: &mut Report, list: &Node) {
    if list.is_empty() {
        report.required(list, "at least 1 access mode is required");
    }
    list.items()
        .filter(|mode| !ACCESS_MODES.contains(&mode.text()))
        .for_each(|mode| report.not_supported(&mode.named(list.path.clone()), &ACCESS_MODES));
}

fn claim(report: &mut Report, object: &Node, old: Option<&Node>) {
    let spec = object.get("spec");
    if let Some(old) = old {
        let free = ["resources", "volumeName", "volumeAttributesClassName", "storageClassName"];
        let rest = |node: &Node| {
            let mut map = node.map().cloned().unwrap_or_default();
            // The volume's name is written once, when the claim is bound.
            let bound = !node.get("volumeName").is_empty() && !old.at("spec.volumeName").is_empty();
            free.iter().filter(|key| !bound || !matches!(**key, "volumeName" | "storageClassName")).for_each(|key| {
                map.remove(*key);
            });
            map
        };
        if rest(&spec) != rest(&old.get("spec")) {
            report.forbidden(
                &spec,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        return;
    }
    access_modes(report, &spec.get("accessModes"));
    let storage = spec.at("resources.requests").entry("storage");
    let storage = storage.named(format!("{}.resources[storage]", spec.path));
    if !storage.is_set() {
        report.required(&storage, "");
    }
    selector::label_selector(report, &spec.get("selector"));
    report.one_of(&spec.get("volumeMode"), &["Block", "Filesystem"]);
}

fn volume(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    access_modes(report, &spec.get("accessModes"));
    if spec.get("capacity").is_empty() {
        report.required(&spec.get("capacity"), "");
    }
    report.one_of(&spec.get("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
    report.one_of(&spec.get("volumeMode"), &["Block", "Filesystem"]);
    let own = [
        "accessModes",
        "capacity",
        "persistentVolumeReclaimPolicy",
        "volumeMode",
        "claimRef",
        "storageClassName",
        "mountOptions",
        "nodeAffinity",
        "volumeAttributesClassName",
    ];
    match spec.entries().filter(|(key, _)| !own.contains(&key.as_str())).count() {
        0 => report.required(&spec, "must specify a volume type"),
        1 => {}
        _ => report.forbidden(&spec, "may not specify more than 1 volume type"),
    }
}

fn ingress(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    let default = spec.get("defaultBackend");
    if spec.get("rules").is_empty() && !default.is_set() {
        report.invalid(&spec.get("rules"), "either `defaultBackend` or `rules` must be specified");
    }
    if default.is_set() {
        backend(report, &default);
    }
    for rule in spec.get("rules").items() {
        let host = rule.get("host");
        if !host.is_empty() {
            report.all(&host, names::subdomain(host.text().strip_prefix("*.").unwrap_or(host.text())));
        }
        let http = rule.get("http");
        if http.is_set() && http.get("paths").is_empty() {
            report.required(&http.get("paths"), "");
        }
        for path in http.get("paths").items() {
            let (kind, text) = (path.get("pathType"), path.get("path"));
            match kind.text() {
                "" => report.required(&kind, "pathType must be specified"),
                "Exact" | "Prefix" if !text.text().starts_with('/') => report.wrong(&text, &text.text().into(), "must be an absolute path"),
                "Exact" | "Prefix" | "ImplementationSpecific" => {}
                _ => report.not_supported(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
            }
            backend(report, &path.get("backend"));
        }
    }
}

fn backend(report: &mut Report, node: &Node) {
    let (service, resource) = (node.get("service"), node.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => report.invalid(node, "cannot set both resource and service backends"),
        (false, false) => report.required(node, "resource or service backend is required"),
        (false, true) => {}
        (true, false) => {
            let (name, port) = (service.get("name"), service.get("port"));
            if name.is_empty() {
                report.required(&name, "");
            } else {
                report.all(&name, names::label_1035(name.text()));
            }
            match (port.get("name").is_empty(), port.get("number").int().unwrap_or(0)) {
                (false, 0) => report.all(&port.get("name"), names::port_name(port.get("name").text())),
                (false, _) => report.invalid(node, "cannot set both port name & port number"),
                (true, 0) => report.required(node, "port name or number is required"),
                (true, _) => report.between(&port.get("number"), 1, 65535),
            }
        }
    }
}

fn role(report: &mut Report, object: &Node, namespaced: bool) {
    for rule in object.get("rules").items() {
        let (verbs, urls) = (rule.get("verbs"), rule.get("nonResourceURLs"));
        if verbs.is_empty() {
            report.required(&verbs, "verbs must contain at least one value");
        }
        if !urls.is_empty() {
            if namespaced {
                report.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if !rule.get("apiGroups").is_empty() || !rule.get("resources").is_empty() {
                report.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if rule.get("apiGroups").is_empty() {
            report.required(&rule.get("apiGroups"), "resource rules must supply at least one api group");
        }
        if rule.get("resources").is_empty() {
            report.required(&rule.get("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn binding(report: &mut Report, object: &Node, old: Option<&Node>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let role = object.get("roleRef");
    if role.get("apiGroup").text() != GROUP {
        report.not_supported(&role.get("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if object.at("metadata.namespace").is_empty() { &["ClusterRole"] } else { &["ClusterRole", "Role"] };
    if !kinds.contains(&role.get("kind").text()) {
        report.not_supported(&role.get("kind"), kinds);
    }
    if role.get("name").is_empty() {
        report.required(&role.get("name"), "");
    }
    for subject in object.get("subjects").items() {
        let (kind, name, namespace) = (subject.get("kind"), subject.get("name"), subject.get("namespace"));
        if name.is_empty() {
            report.required(&name, "");
        }
        match kind.text() {
            "ServiceAccount" => {
                if !name.is_empty() {
                    report.all(&name, names::subdomain(name.text()));
                }
                if namespace.is_empty() {
                    report.required(&namespace, "");
                }
            }
            "User" | "Group" if subject.get("apiGroup").text() != GROUP => report.not_supported(&subject.get("apiGroup"), &[GROUP]),
            "User" | "Group" => {}
            _ => report.not_supported(&kind, &["Group", "ServiceAccount", "User"]),
        }
    }
    if old.is_some_and(|old| old.get("roleRef").value != role.value) {
        report.invalid(&role, "cannot change roleRef");
    }
}

fn storage_class(report: &mut Report, object: &Node, old: Option<&Node>) {
    let provisioner = object.get("provisioner");
    if provisioner.is_empty() {
        report.required(&provisioner, "");
    } else {
        report.all(&provisioner, names::qualified(&provisioner.text().to_lowercase()));
    }
    report.one_of(&object.get("reclaimPolicy"), &["Delete", "Retain"]);
    report.one_of(&object.get("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
    let Some(old) = old else { return };
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if object.get(key).value != old.get(key).value {
            report.forbidden(&object.get(key), &format!("updates to {key} are forbidden."));
        }
    }
    report.immutable(&object.get("volumeBindingMode"), &old.get("volumeBindingMode"));
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
        let claim = |modes: Value, size: &str| json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}}});
        let old = claim(json!(["ReadWriteOnce"]), "1Gi");
        assert_eq!(check("", "persistentvolumeclaims", claim(json!(["ReadWriteOnce"]), "2Gi"), Some(old.clone())), Vec::<String>::new());
        assert_eq!(check("", "persistentvolumeclaims", claim(json!(["ReadOnlyMany"]), "1Gi"), Some(old)).len(), 1);
        let binding = |role: &str| json!({"metadata": {"name": "a", "namespace": "b"}, "roleRef": {"kind": "Role", "name": role}});
        assert_eq!(
            check("rbac.authorization.k8s.io", "rolebindings", binding("y"), Some(binding("x"))),
            [
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"y\"}: cannot change roleRef"
            ]
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
