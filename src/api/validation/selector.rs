//! Selectors within objects: label selectors, node selectors, affinity terms, tolerations.

use super::metadata;
use super::names;
use super::report::{Node, Report};

/// `LabelSelector`.
pub(super) fn label_selector(report: &mut Report, node: &Node) {
    metadata::labels(report, &node.get("matchLabels"));
    for expression in node.get("matchExpressions").items() {
        label_requirement(report, &expression);
    }
}

fn label_requirement(report: &mut Report, node: &Node) {
    let (operator, values) = (node.get("operator"), node.get("values"));
    match operator.text() {
        "In" | "NotIn" if values.is_empty() => report.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            report.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => report.invalid(&operator, "not a valid selector operator"),
    }
    let key = node.get("key");
    report.all(&key, names::qualified(key.text()));
    values.items().for_each(|value| report.all(&value, names::label_value(value.text())));
}

fn node_requirement(report: &mut Report, node: &Node) {
    let (operator, values) = (node.get("operator"), node.get("values"));
    match operator.text() {
        "In" | "NotIn" if values.is_empty() => report.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            report.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.items().count() != 1 => {
            report.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'")
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => report.invalid(&operator, "not a valid selector operator"),
    }
    let key = node.get("key");
    report.all(&key, names::qualified(key.text()));
}

fn node_term(report: &mut Report, node: &Node) {
    node.get("matchExpressions").items().for_each(|expression| node_requirement(report, &expression));
    for field in node.get("matchFields").items() {
        let key = field.get("key");
        if key.text() != "metadata.name" {
            report.invalid(&key, "not a valid field selector key");
        }
    }
}

pub(super) fn affinity(report: &mut Report, node: &Node) {
    let nodes = node.get("nodeAffinity");
    let required = nodes.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_set() {
        let terms = required.get("nodeSelectorTerms");
        if terms.is_empty() {
            report.required(&terms, "must have at least one node selector term");
        }
        terms.items().for_each(|term| node_term(report, &term));
    }
    for preferred in nodes.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(report, &preferred);
        node_term(report, &preferred.get("preference"));
    }
    for pods in [node.get("podAffinity"), node.get("podAntiAffinity")] {
        for term in pods.get("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_term(report, &term);
        }
        for preferred in pods.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(report, &preferred);
            pod_term(report, &preferred.get("podAffinityTerm"));
        }
    }
}

fn weight(report: &mut Report, node: &Node) {
    let weight = node.get("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        report.wrong(&weight, &weight.int().unwrap_or(0).into(), "must be in the range 1-100");
    }
}

fn pod_term(report: &mut Report, node: &Node) {
    label_selector(report, &node.get("labelSelector"));
    label_selector(report, &node.get("namespaceSelector"));
    for namespace in node.get("namespaces").items() {
        report.all(&namespace, names::label(namespace.text()));
    }
    let key = node.get("topologyKey");
    if key.is_empty() {
        report.required(&key, "can not be empty");
    }
    names::qualified(key.text()).iter().for_each(|problem| report.wrong(&key, &key.text().into(), problem));
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn tolerations(report: &mut Report, node: &Node) {
    for toleration in node.items() {
        let (key, operator, effect) = (toleration.get("key"), toleration.get("operator"), toleration.get("effect"));
        if !key.is_empty() {
            report.all(&key, names::qualified(key.text()));
        } else if operator.text() != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            report.wrong(&operator, &operator.text().into(), detail);
        }
        if toleration.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            report.wrong(&effect, &effect.text().into(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        let value = toleration.get("value");
        match operator.text() {
            "" | "Equal" => names::label_value(value.text()).iter().for_each(|problem| report.wrong(&operator, value.value, problem)),
            "Exists" if !value.is_empty() => report.wrong(&operator, value.value, "value must be empty when `operator` is 'Exists'"),
            "Exists" => {}
            _ => report.not_supported(&operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            report.one_of(&effect, &EFFECTS);
        }
    }
}

/// Taints of a node.
pub(super) fn taints(report: &mut Report, node: &Node) {
    let mut seen = Vec::new();
    for taint in node.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        names::qualified(key.text()).iter().for_each(|problem| report.wrong(&key, &key.text().into(), problem));
        report.all(&value, names::label_value(value.text()));
        if effect.is_empty() {
            report.required(&effect, "");
        } else {
            report.one_of(&effect, &EFFECTS);
        }
        if seen.contains(&(key.text(), effect.text())) {
            report.duplicate(&taint, taint.value);
        }
        seen.push((key.text(), effect.text()));
    }
}
