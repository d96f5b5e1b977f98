//! Roles and their bindings (kubernetes/kubernetes pkg/apis/rbac/validation).

use super::names;
use super::report::{Node, Report};

pub(super) fn role(report: &mut Report, object: &Node, namespaced: bool) {
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

pub(super) fn binding(report: &mut Report, object: &Node, old: Option<&Node>) {
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
