//! Probes and lifecycle hooks of a container: one handler each, and what each handler needs.

use super::names;
use super::report::{Node, Report};

const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

pub(super) fn probe(report: &mut Report, node: &Node, once: bool, readiness: bool) {
    if !node.is_set() {
        return;
    }
    handler(report, node, 0);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        report.not_negative(&node.get(key));
    }
    let grace = node.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds <= 0) {
        report.invalid(&grace, "must be greater than 0");
    }
    if readiness && grace.is_set() {
        report.invalid(&grace, "must not be set for readinessProbes");
    }
    let successes = node.get("successThreshold");
    if once && successes.int().is_some_and(|number| number != 1) {
        report.invalid(&successes, "must be 1");
    }
}

pub(super) fn lifecycle(report: &mut Report, node: &Node, grace_seconds: i64) {
    for key in ["postStart", "preStop"] {
        let hook = node.get(key);
        if hook.is_set() {
            handler(report, &hook, grace_seconds);
        }
    }
}

fn handler(report: &mut Report, node: &Node, grace_seconds: i64) {
    let mut count = 0;
    for key in HANDLERS {
        let action = node.get(key);
        if !action.is_set() {
            continue;
        }
        count += 1;
        if count > 1 {
            report.forbidden(&action, "may not specify more than 1 handler type");
            continue;
        }
        match key {
            "exec" => {
                let command = action.get("command");
                if command.is_empty() {
                    report.required(&command, "");
                }
            }
            "httpGet" => {
                if action.get("path").is_empty() {
                    report.required(&action.get("path"), "");
                }
                report.port(&action.get("port"));
                report.one_of(&action.get("scheme"), &["HTTP", "HTTPS"]);
                let headers = action.get("httpHeaders");
                for header in headers.items() {
                    let name = header.get("name");
                    report.all(&name.named(headers.path.clone()), names::header_name(name.text()));
                }
            }
            "sleep" => {
                let seconds = action.get("seconds").int().unwrap_or(0);
                if seconds < 0 || seconds > grace_seconds {
                    let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace_seconds})");
                    report.wrong(&action, &seconds.into(), detail);
                }
            }
            _ => report.port(&action.get("port")),
        }
    }
    if count == 0 {
        report.required(node, "must specify a handler type");
    }
}
