//! Ingresses: hosts, paths and the backends they lead to.

use super::names;
use super::report::{Node, Report};

pub(super) fn check(report: &mut Report, object: &Node) {
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
