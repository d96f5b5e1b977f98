//! Containers of a pod: image, ports, mounts, resources and security context
//! (kubernetes/kubernetes pkg/apis/core/validation).

use serde_json::Value;

use super::report::{Node, Report};
use super::{environment, handler, names};
use crate::api::quantity::Quantity;

/// Which list of the pod a container is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Main,
    Init,
    Ephemeral,
}

/// What a container needs to know of its pod.
pub(super) struct Around<'a> {
    pub volumes: Vec<&'a str>,
    pub host_network: bool,
    pub grace_seconds: i64,
}

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// Checks all containers of a pod. Names are unique among all of them.
pub(super) fn check(report: &mut Report, spec: &Node, around: &Around) {
    let containers = spec.get("containers");
    if containers.is_empty() {
        report.required(&containers, "");
    }
    let mut seen = Vec::new();
    for (list, place) in [("containers", Place::Main), ("initContainers", Place::Init), ("ephemeralContainers", Place::Ephemeral)] {
        let mut host_ports = Vec::new();
        for container in spec.get(list).items() {
            one(report, &container, place, around);
            let name = container.get("name");
            if !name.is_empty() && seen.contains(&name.text()) {
                report.duplicate(&name, name.value);
            }
            seen.push(name.text());
            if place == Place::Main {
                unique_host_ports(report, &container, &mut host_ports);
            }
        }
    }
}

fn one(report: &mut Report, container: &Node, place: Place, around: &Around) {
    let name = container.get("name");
    if name.is_empty() {
        report.required(&name, "");
    } else {
        report.all(&name, names::label(name.text()));
    }
    let image = container.get("image");
    if image.is_empty() {
        report.required(&image, "");
    } else if image.text().trim() != image.text() {
        report.invalid(&image, "must not have leading or trailing whitespace");
    }
    report.one_of(&container.get("imagePullPolicy"), &PULL_POLICIES);
    report.one_of(&container.get("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    let restart = container.get("restartPolicy");
    let sidecar = place == Place::Init && restart.text() == "Always";
    match place {
        Place::Main
            if restart.is_set()
                && container.get("restartPolicyRules").is_empty()
                && !["Always", "OnFailure", "Never"].contains(&restart.text()) =>
        {
            report.not_supported(&restart, &["Always", "Never", "OnFailure"]);
        }
        Place::Init => report.one_of(&restart, &["Always", "Never", "OnFailure"]),
        Place::Ephemeral => {
            for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                let field = container.get(key);
                if !field.is_empty() {
                    report.forbidden(&field, "cannot be set for an Ephemeral Container");
                }
            }
        }
        _ => {}
    }
    if place == Place::Init && !sidecar {
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.get(key);
            if field.is_set() {
                report.forbidden(&field, "may not be set for init containers without restartPolicy=Always");
            }
        }
    } else {
        handler::lifecycle(report, &container.get("lifecycle"), around.grace_seconds);
        for (key, once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
            handler::probe(report, &container.get(key), once, key == "readinessProbe");
        }
    }
    environment::check(report, container);
    ports(report, &container.get("ports"), around.host_network);
    mounts(report, container, &around.volumes);
    resources(report, &container.get("resources"));
    security(report, &container.get("securityContext"));
}

fn ports(report: &mut Report, list: &Node, host_network: bool) {
    let mut seen = Vec::new();
    for port in list.items() {
        let name = port.get("name");
        if !name.is_empty() {
            let problems = names::port_name(name.text());
            if problems.is_empty() {
                if seen.contains(&name.text()) {
                    report.duplicate(&name, name.value);
                }
                seen.push(name.text());
            }
            report.all(&name, problems);
        }
        let (container, host) = (port.get("containerPort"), port.get("hostPort"));
        if container.int().unwrap_or(0) == 0 {
            report.required(&container, "");
        } else {
            report.between(&container, 1, 65535);
        }
        if host.int().unwrap_or(0) != 0 {
            report.between(&host, 1, 65535);
            if host_network && host.value != container.value {
                report.invalid(&host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
        let protocol = port.get("protocol");
        if protocol.is_empty() {
            report.required(&protocol, "");
        } else {
            report.one_of(&protocol, &PROTOCOLS);
        }
    }
}

fn unique_host_ports(report: &mut Report, container: &Node, seen: &mut Vec<String>) {
    for port in container.get("ports").items() {
        let host = port.get("hostPort");
        let Some(number) = host.int().filter(|number| *number != 0) else { continue };
        let text = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
        if seen.contains(&text) {
            report.duplicate(&host, &text.as_str().into());
        }
        seen.push(text);
    }
}

fn mounts(report: &mut Report, container: &Node, volumes: &[&str]) {
    let list = container.get("volumeMounts");
    let mut seen = Vec::new();
    for mount in list.items() {
        let (name, path, below) = (mount.get("name"), mount.get("mountPath"), mount.get("subPath"));
        if name.is_empty() {
            report.required(&name, "");
        }
        if !volumes.contains(&name.text()) {
            report.not_found(&name);
        }
        if path.is_empty() {
            report.required(&path, "");
        } else if seen.contains(&path.text()) {
            report.invalid(&path, "must be unique");
        }
        seen.push(path.text());
        for key in ["subPath", "subPathExpr"] {
            let sub = mount.get(key);
            if let Some(problem) = names::local_path(sub.text()) {
                report.invalid(&sub.named(format!("{}.{key}", list.path)), problem);
            }
        }
        if !below.is_empty() && !mount.get("subPathExpr").is_empty() {
            report.invalid(&mount.get("subPathExpr"), "subPathExpr and subPath are mutually exclusive");
        }
        report.one_of(&mount.get("mountPropagation"), &["Bidirectional", "HostToContainer", "None"]);
    }
}

/// Requests and limits of a container, or of a pod.
pub(super) fn resources(report: &mut Report, node: &Node) {
    let (limits, requests) = (node.get("limits"), node.get("requests"));
    for (name, value) in limits.entries() {
        amount(report, &limits.entry(name), name, value);
    }
    for (name, value) in requests.entries() {
        amount(report, &requests.entry(name), name, value);
        let overcommit = !name.contains('/') && !name.starts_with("hugepages-");
        match (read(value), limits.entry(name)) {
            (Some(request), limit) if limit.is_set() => {
                let Some(bound) = read(limit.value) else { continue };
                if !overcommit && request != bound {
                    report.wrong(&requests, value, format!("must be equal to {name} limit of {bound}"));
                } else if overcommit && request > bound {
                    report.wrong(&requests, value, format!("must be less than or equal to {name} limit of {bound}"));
                }
            }
            (_, _) if !overcommit => report.required(&limits, "Limit must be set for non overcommitable resources"),
            _ => {}
        }
    }
    let named = |wanted: &dyn Fn(&str) -> bool| limits.entries().chain(requests.entries()).any(|(name, _)| wanted(name));
    if named(&|name| name.starts_with("hugepages-")) && !named(&|name| matches!(name, "cpu" | "memory")) {
        report.forbidden(node, "HugePages require cpu or memory");
    }
}

fn read(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// Checks one amount in a resource list.
pub(super) fn amount(report: &mut Report, node: &Node, name: &str, value: &Value) {
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        report.wrong(node, &name.into(), "must be a standard resource type or fully qualified");
        report.wrong(node, &name.into(), "must be a standard resource for containers");
    }
    let Some(quantity) = read(value) else { return };
    if quantity.is_negative() {
        report.wrong(node, value, "must be greater than or equal to 0");
    } else if name.contains('/') && !quantity.is_whole() {
        report.wrong(node, value, "must be an integer");
    }
    if let Some(page) = name.strip_prefix("hugepages-").and_then(|page| Quantity::parse(page).ok())
        && (page.value() == 0 || quantity.value() % page.value() != 0)
    {
        report.wrong(node, value, format!("{} is not positive integer multiple of {name}", value.as_str().unwrap_or_default()));
    }
}

fn security(report: &mut Report, node: &Node) {
    for key in ["runAsUser", "runAsGroup"] {
        report.between(&node.get(key), 0, i32::MAX.into());
    }
    report.one_of(&node.get("procMount"), &["Default", "Unmasked"]);
    seccomp(report, &node.get("seccompProfile"));
    if node.get("allowPrivilegeEscalation").value == false {
        if node.get("privileged").bool() {
            report.invalid(node, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if node.at("capabilities.add").items().any(|item| item.text() == "CAP_SYS_ADMIN") {
            report.invalid(node, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

/// A seccomp profile of a pod or a container.
pub(super) fn seccomp(report: &mut Report, node: &Node) {
    if !node.is_set() {
        return;
    }
    let (kind, file) = (node.get("type"), node.get("localhostProfile"));
    match kind.text() {
        "" => report.required(&kind, "type is required when seccompProfile is set"),
        "Localhost" if file.is_empty() => report.required(&file, "must be set when seccomp type is Localhost"),
        "Localhost" => {
            if let Some(problem) = names::local_path(file.text()) {
                report.invalid(&file, problem);
            }
        }
        "RuntimeDefault" | "Unconfined" if file.is_set() => {
            report.wrong(&file, node.value, "can only be set when seccomp type is Localhost")
        }
        "RuntimeDefault" | "Unconfined" => {}
        _ => report.not_supported(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}
