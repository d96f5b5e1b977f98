//! Deployments, ReplicaSets, DaemonSets, StatefulSets, Jobs and CronJobs: selectors that match their template, strategies, counts,
//! and what may not change (kubernetes/kubernetes pkg/apis/apps/validation and pkg/apis/batch/validation).

use serde_json::{Value, json};

use super::report::{Node, Report};
use super::{metadata, names, pod, selector};
use crate::api::selector::Labels;

pub(super) fn check(report: &mut Report, kind: &str, object: &Node, old: Option<&Node>) {
    let spec = object.get("spec");
    common(report, &spec, kind);
    match kind {
        "Deployment" => deployment(report, &spec),
        "DaemonSet" => daemon_set(report, &spec),
        "StatefulSet" => stateful_set(report, &spec),
        _ => {}
    }
    let Some(before) = old.map(|old| old.get("spec")) else { return };
    if kind == "StatefulSet" {
        stateful_set_update(report, &spec, &before);
    } else {
        report.immutable(&spec.get("selector"), &before.get("selector"));
    }
}

fn common(report: &mut Report, spec: &Node, kind: &str) {
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        report.not_negative(&spec.get(key));
    }
    let (labels, template) = (spec.get("selector"), spec.get("template"));
    if labels.is_set() {
        selector::label_selector(report, &labels);
        if labels.get("matchLabels").is_empty() && labels.get("matchExpressions").is_empty() {
            let name = match kind {
                "DaemonSet" => "daemonset",
                "StatefulSet" => "statefulset",
                _ => "deployment",
            };
            report.invalid(&labels, format!("empty selector is invalid for {name}"));
        }
    } else {
        report.required(&labels, "");
    }
    match Labels::from_selector(labels.value) {
        Ok(matching) if well_formed(&labels) => {
            let found = template.at("metadata.labels");
            if !matching.is_everything() && !matching.matches(found.value) {
                report.invalid(&found, "`selector` does not match template `labels`");
            }
        }
        _ => report.invalid(&labels, if kind == "StatefulSet" { "" } else { "invalid label selector" }),
    }
    // A StatefulSet's pods mount the volumes that are claimed for each of them.
    let claims: Vec<&str> = spec.get("volumeClaimTemplates").items().map(|claim| claim.at("metadata.name").text()).collect();
    pod::check_template(report, &template, &claims);
    let (policy, deadline) = (template.at("spec.restartPolicy"), template.at("spec.activeDeadlineSeconds"));
    if ["OnFailure", "Never"].contains(&policy.text()) {
        report.not_supported(&policy, &["Always"]);
    }
    if deadline.is_set() {
        let kind = if kind == "Deployment" { "ReplicaSet" } else { kind };
        report.forbidden(&deadline, &format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// The selector can be made into requirements.
fn well_formed(selector: &Node) -> bool {
    let labels = selector.get("matchLabels");
    let mut labels = labels.entries();
    let expressions = selector.get("matchExpressions");
    let value = |text: &str| names::label_value(text).is_empty();
    labels.all(|(key, text)| names::qualified(key).is_empty() && text.as_str().is_some_and(value))
        && expressions.items().all(|expression| {
            let values = expression.get("values");
            let needs = matches!(expression.get("operator").text(), "In" | "NotIn");
            names::qualified(expression.get("key").text()).is_empty()
                && needs != values.is_empty()
                && values.items().all(|item| value(item.text()))
        })
}

/// A count or a percentage of pods; gives back whether it is zero.
fn share(report: &mut Report, node: &Node) -> bool {
    match node.value {
        Value::String(text) => {
            let problems = names::percent(text);
            let zero = problems.is_empty() && text.trim_end_matches('%').bytes().all(|byte| byte == b'0');
            report.all(node, problems);
            zero
        }
        _ => {
            report.not_negative(node);
            node.int().unwrap_or(0) == 0
        }
    }
}

fn at_most_all(report: &mut Report, node: &Node) {
    let percent = node.value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
    if percent.is_some_and(|percent| percent > 100) {
        report.invalid(node, "must not be greater than 100%");
    }
}

fn deployment(report: &mut Report, spec: &Node) {
    let strategy = spec.get("strategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" if rolling.is_set() => report.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'"),
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            let none_away = share(report, &unavailable);
            let none_more = share(report, &surge);
            if none_away && none_more {
                report.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(report, &unavailable);
        }
        _ => report.not_supported(&strategy, &["Recreate", "RollingUpdate"]),
    }
    let deadline = spec.get("progressDeadlineSeconds");
    report.not_negative(&deadline);
    if deadline.int().is_some_and(|deadline| deadline <= spec.get("minReadySeconds").int().unwrap_or(0)) {
        report.invalid(&deadline, "must be greater than minReadySeconds");
    }
}

fn daemon_set(report: &mut Report, spec: &Node) {
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            let none_away = share(report, &unavailable);
            at_most_all(report, &unavailable);
            let none_more = share(report, &surge);
            at_most_all(report, &surge);
            match (none_away, none_more) {
                (true, true) => report.required(&unavailable, "cannot be 0 when maxSurge is 0"),
                (false, false) => report.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
                _ => {}
            }
        }
        _ => report.not_supported(&strategy, &["RollingUpdate", "OnDelete"]),
    }
}

fn stateful_set(report: &mut Report, spec: &Node) {
    let policy = spec.get("podManagementPolicy");
    match policy.text() {
        "" => report.required(&policy, ""),
        "OrderedReady" | "Parallel" => {}
        _ => report.invalid(&policy, "must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.get("updateStrategy");
    match strategy.get("type").text() {
        "" => report.required(&strategy, ""),
        "OnDelete" if strategy.get("rollingUpdate").is_set() => {
            report.invalid(&strategy.get("rollingUpdate"), "only allowed for updateStrategy 'RollingUpdate'");
        }
        "OnDelete" | "RollingUpdate" => report.not_negative(&strategy.at("rollingUpdate.partition")),
        _ => report.invalid(&strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    report.not_negative(&spec.at("ordinals.start"));
}

fn stateful_set_update(report: &mut Report, spec: &Node, before: &Node) {
    let free = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |node: &Node| {
        let mut map = node.map().cloned().unwrap_or_default();
        free.iter().for_each(|key| {
            map.remove(*key);
        });
        map
    };
    if rest(spec) != rest(before) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
            'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        report.forbidden(spec, detail);
    }
}

/// Checks a Job. Its selector and the labels that go with it are made by the server before this.
pub(super) fn job(report: &mut Report, object: &Node, old: Option<&Node>) {
    let spec = object.get("spec");
    job_spec(report, &spec);
    let labels = spec.get("selector");
    if !labels.is_set() {
        report.required(&labels, "");
    }
    if let Ok(matching) = Labels::from_selector(labels.value) {
        let found = spec.at("template.metadata.labels");
        if !matching.matches(found.value) {
            report.invalid(&found, "`selector` does not match template `labels`");
        }
    }
    let Some(before) = old.map(|old| old.get("spec")) else { return };
    for key in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        report.immutable(&spec.get(key), &before.get(key));
    }
    if spec.get("completionMode").text() != "Indexed" {
        report.immutable(&spec.get("completions"), &before.get("completions"));
    }
    // Where its pods go may still change while it is suspended.
    if !before.get("suspend").bool() {
        report.immutable(&spec.get("template"), &before.get("template"));
    }
}

fn job_spec(report: &mut Report, spec: &Node) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        report.not_negative(&spec.get(key));
    }
    let mode = spec.get("completionMode");
    report.one_of(&mode, &["NonIndexed", "Indexed"]);
    if mode.text() == "Indexed" && !spec.get("completions").is_set() {
        report.required(&spec.get("completions"), "when completion mode is Indexed");
    }
    if mode.text() != "Indexed" && spec.get("backoffLimitPerIndex").is_set() {
        report.invalid(&spec.get("backoffLimitPerIndex"), "requires indexed completion mode");
    }
    report.one_of(&spec.get("podReplacementPolicy"), &["Failed", "TerminatingOrFailed"]);
    for rule in spec.at("podFailurePolicy.rules").items() {
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        if !actions.contains(&rule.get("action").text()) {
            report.not_supported(&rule.get("action"), &actions);
        }
        let (codes, conditions) = (rule.get("onExitCodes").is_set(), !rule.get("onPodConditions").is_empty());
        if codes == conditions {
            let detail = if codes {
                "specifying both OnExitCodes and OnPodConditions is not supported"
            } else {
                "specifying one of OnExitCodes and OnPodConditions is required"
            };
            report.invalid(&rule, detail);
        }
    }
    let template = spec.get("template");
    pod::check_template(report, &template, &[]);
    let policy = template.at("spec.restartPolicy");
    match policy.text() {
        "" | "Always" => report.required(&policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        _ => report.not_supported(&policy, &["OnFailure", "Never"]),
    }
}

pub(super) fn cron_job(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    let schedule = spec.get("schedule");
    if schedule.is_empty() {
        report.required(&schedule, "");
    } else if schedule.text().contains("TZ") {
        report.invalid(&schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if !schedule.text().starts_with('@') {
        let fields: Vec<&str> = schedule.text().split_whitespace().collect();
        if fields.len() != 5 {
            report.invalid(&schedule, format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        }
    }
    report.not_negative(&spec.get("startingDeadlineSeconds"));
    report.one_of(&spec.get("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
    report.not_negative(&spec.get("successfulJobsHistoryLimit"));
    report.not_negative(&spec.get("failedJobsHistoryLimit"));
    let job = spec.at("jobTemplate.spec");
    metadata::labels(report, &spec.at("jobTemplate.metadata.labels"));
    job_spec(report, &job);
    if job.get("selector").is_set() && *job.get("selector").value != json!({}) {
        report.invalid(&job.get("selector"), "`selector` will be auto-generated");
    }
}
