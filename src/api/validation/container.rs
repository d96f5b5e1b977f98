//! Containers of a pod: image, environment, ports, mounts, resources, probes, hooks and security context
//! (kubernetes/kubernetes pkg/apis/core/validation).

use serde_json::Value;

use super::names;
use super::report::{Node, Report};
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
        lifecycle(report, &container.get("lifecycle"), around.grace_seconds);
        for (key, once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
            probe(report, &container.get(key), once, key == "readinessProbe");
        }
    }
    environment(report, container);
    ports(report, &container.get("ports"), around.host_network);
    mounts(report, container, &around.volumes);
    resources(report, &container.get("resources"));
    security(report, &container.get("securityContext"));
}

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

fn environment(report: &mut Report, container: &Node) {
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

const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

fn probe(report: &mut Report, node: &Node, once: bool, readiness: bool) {
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

fn lifecycle(report: &mut Report, node: &Node, grace_seconds: i64) {
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
