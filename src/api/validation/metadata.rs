//! What holds for every object: its name, namespace, labels, annotations, owners and finalizers, and what of them may never change
//! (apimachinery/pkg/api/validation/objectmeta.go).

use serde_json::Value;

use super::names;
use super::report::{Node, Report};
use crate::api::schema::Resource;

const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

/// Checks `metadata` of an object of `resource`.
pub(super) fn check(report: &mut Report, resource: &Resource, metadata: &Node) {
    let name = metadata.get("name");
    let prefix = metadata.get("generateName");
    if !prefix.is_empty() {
        // What is appended ends in a letter, whatever the prefix ends in.
        let stem = prefix.text().strip_suffix('-').map_or_else(|| prefix.text().to_owned(), |stem| format!("{stem}a"));
        report.all(&prefix, name_problems(resource, &stem));
    }
    if name.is_empty() {
        report.required(&name, "name or generateName is required");
    } else {
        report.all(&name, name_problems(resource, name.text()));
    }
    let namespace = metadata.get("namespace");
    if !resource.namespaced {
        if !namespace.is_empty() {
            report.forbidden(&namespace, "not allowed on this type");
        }
    } else if namespace.is_empty() {
        report.required(&namespace, "");
    } else {
        report.all(&namespace, names::label(namespace.text()));
    }
    report.not_negative(&metadata.get("generation"));
    labels(report, &metadata.get("labels"));
    annotations(report, &metadata.get("annotations"));
    owners(report, &metadata.get("ownerReferences"));
    finalizers(report, &metadata.get("finalizers"));
}

/// Checks what may not change between two states of one object.
pub(super) fn check_update(report: &mut Report, metadata: &Node, old: &Node) {
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (new, old) = (metadata.get(key), old.get(key));
        // What the client leaves out is kept.
        if new.is_set() {
            report.immutable(&new, &old);
        }
    }
    if old.get("deletionTimestamp").is_set() {
        let before: Vec<&Value> = old.get("finalizers").items().map(|item| item.value).collect();
        let added: Vec<&str> = metadata
            .get("finalizers")
            .items()
            .filter(|item| !before.contains(&item.value))
            .map(|item| item.value.as_str().unwrap_or_default())
            .collect();
        if !added.is_empty() {
            let detail =
                format!("no new finalizers can be added if the object is being deleted, found new finalizers [{}]", added.join(" "));
            report.forbidden(&metadata.get("finalizers"), &detail);
        }
    }
}

fn name_problems(resource: &Resource, name: &str) -> Vec<String> {
    match (resource.group, resource.plural) {
        ("", "namespaces" | "services") | ("apps", "statefulsets") => names::label(name),
        ("rbac.authorization.k8s.io", _) | ("flowcontrol.apiserver.k8s.io", _) => names::path_segment(name),
        // Named after something that is checked in its own place, or by rules of their own.
        ("networking.k8s.io", "ipaddresses") => names::address(name),
        ("apiregistration.k8s.io" | "certificates.k8s.io" | "apiextensions.k8s.io", _) => names::path_segment(name),
        ("batch", "cronjobs") => {
            let mut problems = names::subdomain(name);
            // The controller appends eleven characters to make the name of a Job, which is a label.
            if name.len() > 52 {
                problems.push("must be no more than 52 characters".into());
            }
            problems
        }
        _ => names::subdomain(name),
    }
}

pub(super) fn labels(report: &mut Report, node: &Node) {
    for (key, value) in node.entries() {
        names::qualified(key).iter().for_each(|problem| report.wrong(node, &key.as_str().into(), problem));
        names::label_value(value.as_str().unwrap_or_default()).iter().for_each(|problem| report.wrong(node, value, problem));
    }
}

pub(super) fn annotations(report: &mut Report, node: &Node) {
    let mut bytes = 0;
    for (key, value) in node.entries() {
        // Upper case is allowed in the prefix here, for the sake of old objects.
        names::qualified(&key.to_lowercase()).iter().for_each(|problem| report.wrong(node, &key.as_str().into(), problem));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        report.too_long(node, ANNOTATIONS_MAX_BYTES);
    }
}

fn owners(report: &mut Report, node: &Node) {
    let mut controller: Option<String> = None;
    for owner in node.items() {
        // Upstream names the list here, not the item.
        let field = |key: &str| owner.named(node.path.clone()).get(key);
        for key in ["apiVersion", "kind", "name", "uid"] {
            let part = field(key);
            if part.is_empty() {
                report.wrong(&part, &"".into(), if key == "apiVersion" { "version must not be empty" } else { "must not be empty" });
            }
        }
        let (version, kind, name) = (field("apiVersion").text(), field("kind").text(), field("name").text());
        if kind == "Event" && matches!(version, "v1" | "events.k8s.io/v1") {
            report.wrong(node, owner.value, format!("/{version}, Kind=Event is disallowed from being an owner"));
        }
        if field("controller").bool() {
            let this = format!("{kind}/{name}");
            match &controller {
                Some(first) => {
                    let detail =
                        format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}");
                    report.invalid(node, detail);
                }
                None => controller = Some(this),
            }
        }
    }
}

/// Finalizers that need no domain.
const FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

fn finalizers(report: &mut Report, node: &Node) {
    for item in node.items() {
        report.all(&item.named(node.path.clone()), names::qualified(item.text()));
        if !item.text().contains('/') && !FINALIZERS.contains(&item.text()) {
            report.invalid(&item, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    let has = |name: &str| node.items().any(|item| item.text() == name);
    if has("orphan") && has("foregroundDeletion") {
        report.invalid(node, "finalizer orphan and foregroundDeletion cannot be both set");
    }
}
