//! The environment of a container, and the references to fields and resources of the pod that volumes make as well.

use super::names;
use super::report::{Node, Report};

const ONE_OF_SOURCES: &str = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
const MORE_THAN_ONE: &str = "may not have more than one field specified at a time";
/// Fields of the pod that the environment may show.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of the pod that a volume may show.
const VOLUME_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

pub(super) fn check(report: &mut Report, container: &Node) {
    for variable in container.get("env").items() {
        let name = variable.get("name");
        if name.is_empty() {
            report.required(&name, "");
        } else {
            report.all(&name, names::environment_name(name.text()));
        }
        let from = variable.get("valueFrom");
        if !from.is_set() {
            continue;
        }
        if !variable.get("value").is_empty() {
            report.wrong(&from, &"".into(), "may not be specified when `value` is not empty");
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        match sources.iter().filter(|source| from.get(source).is_set()).count() {
            0 => report.wrong(&from, &"".into(), ONE_OF_SOURCES),
            1 => {}
            _ => report.wrong(&from, &"".into(), MORE_THAN_ONE),
        }
        field_reference(report, &from.get("fieldRef"), &ENV_FIELDS);
        resource_reference(report, &from.get("resourceFieldRef"));
        for key in ["configMapKeyRef", "secretKeyRef"] {
            let reference = from.get(key);
            if reference.is_set() {
                let key = reference.get("key");
                if key.is_empty() {
                    report.required(&key, "");
                } else {
                    report.all(&key, names::config_key(key.text()));
                }
            }
        }
    }
    let list = container.get("envFrom");
    for source in list.items() {
        let prefix = source.get("prefix");
        if !prefix.is_empty() {
            report.all(&prefix, names::environment_name(prefix.text()));
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let reference = source.get(key);
            if reference.is_set() {
                count += 1;
                let name = reference.get("name");
                if name.is_empty() {
                    report.required(&name, "");
                } else {
                    report.all(&name, names::subdomain(name.text()));
                }
            }
        }
        match count {
            0 => report.wrong(&list, &"".into(), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => report.wrong(&list, &"".into(), MORE_THAN_ONE),
        }
    }
}

/// A reference to a field of the pod. `fields` are those allowed besides single labels and annotations.
fn field_reference(report: &mut Report, reference: &Node, fields: &[&str]) {
    if !reference.is_set() {
        return;
    }
    let path = reference.get("fieldPath");
    if path.is_empty() {
        return report.required(&path, "");
    }
    if let Some(key) = subscript(path.text()) {
        let problems = names::qualified(&key.to_lowercase());
        problems.iter().for_each(|problem| report.wrong(reference, &key.into(), problem));
        return;
    }
    let known = ENV_FIELDS.contains(&path.text()) || VOLUME_FIELDS.contains(&path.text());
    if !known {
        report.invalid(&path, format!("error converting fieldPath: field label not supported: {}", path.text()));
    } else if !fields.contains(&path.text()) {
        report.not_supported(&path, fields);
    }
}

/// The key in `metadata.labels['key']` or `metadata.annotations['key']`.
fn subscript(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("metadata.labels").or_else(|| path.strip_prefix("metadata.annotations"))?;
    rest.strip_prefix("['")?.strip_suffix("']")
}

fn resource_reference(report: &mut Report, reference: &Node) {
    if !reference.is_set() {
        return;
    }
    let resource = reference.get("resource");
    if resource.is_empty() {
        return report.required(&resource, "");
    }
    if !RESOURCES.contains(&resource.text()) && !resource.text().contains(".hugepages-") {
        return report.not_supported(&resource, &RESOURCES);
    }
    let divisor = reference.get("divisor");
    let text = if divisor.text().is_empty() { "0" } else { divisor.text() };
    let (allowed, names): (&[&str], &str) = if resource.text().ends_with("cpu") {
        (&["0", "1m", "1"], "1m and 1 are supported with the cpu resource")
    } else {
        (
            &["0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with this resource",
        )
    };
    if !allowed.contains(&text) {
        report.wrong(&divisor, resource.value, format!("only divisor's values {names}"));
    }
}

/// Items of a downward API volume.
pub(super) fn downward_item(report: &mut Report, volume: &Node, item: &Node) {
    let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
    // Upstream names the volume here, not the item.
    let below = |key: &str| item.get(key).named(format!("{}.{key}", volume.path));
    let path = below("path");
    if path.is_empty() {
        report.required(&path, "");
    } else if let Some(problem) = names::local_path(path.text()) {
        report.invalid(&path, problem);
    }
    match (field.is_set(), resource.is_set()) {
        (true, true) => report.wrong(volume, &"resource".into(), "fieldRef and resourceFieldRef can not be specified simultaneously"),
        (true, false) => field_reference(report, &below("fieldRef"), &VOLUME_FIELDS),
        (false, true) => resource_reference(report, &below("resourceFieldRef")),
        (false, false) => report.required(volume, "one of fieldRef and resourceFieldRef is required"),
    }
}
