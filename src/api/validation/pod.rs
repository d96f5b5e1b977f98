//! Pods and pod templates: the pod's own fields, and what of a running pod may still change.

use serde_json::{Map, Value};

use super::container::{self, Around};
use super::report::{Node, Report};
use super::{metadata, names, selector, volume};

const GRACE_SECONDS: i64 = 30;

/// Checks the spec of a Pod that is created.
pub(super) fn check(report: &mut Report, pod: &Node) {
    let spec = pod.get("spec");
    check_spec(report, &spec, &[]);
    let ephemeral = spec.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        report.forbidden(&ephemeral, "cannot be set on create");
    }
}

/// Checks a template of pods: labels, annotations and spec. `claims` are volumes that each pod gets beside those of the template.
pub(super) fn check_template(report: &mut Report, template: &Node, claims: &[&str]) {
    metadata::labels(report, &template.at("metadata.labels").named(format!("{}.labels", template.path)));
    metadata::annotations(report, &template.at("metadata.annotations").named(format!("{}.annotations", template.path)));
    let spec = template.get("spec");
    check_spec(report, &spec, claims);
    let ephemeral = spec.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        report.forbidden(&ephemeral, "ephemeral containers not allowed in pod template");
    }
}

pub(super) fn check_spec(report: &mut Report, spec: &Node, claims: &[&str]) {
    let mut volumes = volume::check(report, &spec.get("volumes"));
    volumes.extend(claims);
    let host_network = spec.get("hostNetwork").bool();
    let grace_seconds = spec.get("terminationGracePeriodSeconds").int().unwrap_or(GRACE_SECONDS);
    container::check(report, spec, &Around { volumes, host_network, grace_seconds });
    report.one_of(&spec.get("restartPolicy"), &["Always", "OnFailure", "Never"]);
    report.one_of(&spec.get("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    report.one_of(&spec.get("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
    dns_config(report, spec);
    report.between(&spec.get("activeDeadlineSeconds"), 1, i32::MAX.into());
    metadata::labels(report, &spec.get("nodeSelector"));
    for key in ["nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName"] {
        let name = spec.get(key);
        if !name.is_empty() {
            report.all(&name, names::subdomain(name.text()));
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = spec.get(key);
        if !name.is_empty() {
            report.all(&name, names::label(name.text()));
        }
    }
    for alias in spec.get("hostAliases").items() {
        report.all(&alias.get("ip"), names::address(alias.get("ip").text()));
        alias.get("hostnames").items().for_each(|name| report.all(&name, names::subdomain(name.text())));
    }
    for gate in spec.get("readinessGates").items() {
        let kind = gate.get("conditionType");
        report.all(&kind, names::qualified(kind.text()));
    }
    let mut seen = Vec::new();
    for gate in spec.get("schedulingGates").items() {
        let name = gate.get("name");
        report.all(&gate, names::qualified(name.text()));
        if seen.contains(&name.text()) {
            report.duplicate(&gate, name.value);
        }
        seen.push(name.text());
    }
    selector::affinity(report, &spec.get("affinity"));
    selector::tolerations(report, &spec.get("tolerations"));
    topology(report, &spec.get("topologySpreadConstraints"));
    container::resources(report, &spec.get("resources"));
    let overhead = spec.get("overhead");
    for (name, value) in overhead.entries() {
        container::amount(report, &overhead.named(format!("{}.limits", overhead.path)).entry(name), name, value);
    }
    security(report, spec);
    tokens(report, spec);
    let os = spec.at("os.name");
    if spec.get("os").is_set() && !["linux", "windows"].contains(&os.text()) {
        report.not_supported(&os.named(spec.get("os").path), &["linux", "windows"]);
    }
}

fn dns_config(report: &mut Report, spec: &Node) {
    let config = spec.get("dnsConfig");
    let none = spec.get("dnsPolicy").text() == "None";
    if none && !config.is_set() {
        return report.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
    }
    let servers = config.get("nameservers");
    if none && servers.is_empty() {
        report.required(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    servers.items().for_each(|server| report.all(&server, names::address(server.text())));
    for search in config.get("searches").items() {
        // A dot at the end is the root's, and a single one stands for it; services may begin with an underscore.
        let domain = search.text().strip_suffix('.').unwrap_or(search.text());
        if search.text() != "." {
            report.all(&search, names::subdomain(&domain.replace('_', "-")));
        }
    }
    for option in config.get("options").items() {
        if option.get("name").is_empty() {
            report.required(&option, "must not be empty");
        }
    }
}

fn topology(report: &mut Report, list: &Node) {
    let pair = |constraint: &Node| format!("{{{}, {}}}", constraint.get("topologyKey").text(), constraint.get("whenUnsatisfiable").text());
    let pairs: Vec<String> = list.items().map(|constraint| pair(&constraint)).collect();
    for (index, constraint) in list.items().enumerate() {
        let (skew, key, action) = (constraint.get("maxSkew"), constraint.get("topologyKey"), constraint.get("whenUnsatisfiable"));
        if skew.int().unwrap_or(0) <= 0 {
            report.wrong(&skew, &skew.int().unwrap_or(0).into(), "must be greater than zero");
        }
        if key.is_empty() {
            report.required(&key, "can not be empty");
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.text()) {
            report.not_supported(&action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        // Upstream names the first of two that are the same.
        if pairs[index + 1..].contains(&pairs[index]) {
            let at = constraint.named(format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path));
            report.duplicate(&at, &pairs[index].as_str().into());
        }
        let domains = constraint.get("minDomains");
        if domains.int().is_some_and(|number| number <= 0) {
            report.invalid(&domains, "must be greater than zero");
        }
        selector::label_selector(report, &constraint.get("labelSelector"));
    }
}

fn security(report: &mut Report, spec: &Node) {
    let context = spec.get("securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        report.between(&context.get(key), 0, i32::MAX.into());
    }
    context.get("supplementalGroups").items().for_each(|group| report.between(&group, 0, i32::MAX.into()));
    let mut seen = Vec::new();
    for sysctl in context.get("sysctls").items() {
        let name = sysctl.get("name");
        if name.is_empty() {
            report.required(&name, "");
        } else if !names::sysctl(name.text()) {
            let detail =
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            report.invalid(&name, detail);
        } else if seen.contains(&name.text()) {
            report.duplicate(&name, name.value);
        }
        seen.push(name.text());
    }
    report.one_of(&context.get("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    container::seccomp(report, &context.get("seccompProfile"));
    let shared = spec.get("shareProcessNamespace");
    if shared.bool() && spec.get("hostPID").bool() {
        let at = shared.named(format!("{}.securityContext.shareProcessNamespace", spec.path));
        report.invalid(&at, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    if spec.get("hostUsers").value == false {
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            if spec.get(key).bool() {
                report.forbidden(&spec.get(key), "when `hostUsers` is false");
            }
        }
    }
}

/// A projected token needs an account to be for.
fn tokens(report: &mut Report, spec: &Node) {
    if !spec.get("serviceAccountName").is_empty() {
        return;
    }
    for volume in spec.get("volumes").items() {
        for source in volume.at("projected.sources").items() {
            let token = source.get("serviceAccountToken");
            if token.is_set() {
                report.forbidden(&token, "must not be specified when serviceAccountName is not set");
            }
        }
    }
}

const FIXED: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
    existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks what may change of a Pod. `free` are further fields of the spec that the subresource being written is for.
pub(super) fn check_update(report: &mut Report, pod: &Node, old: &Node, free: &[&str]) {
    let (spec, before) = (pod.get("spec"), old.get("spec"));
    for list in ["containers", "initContainers"] {
        let (list, before) = (spec.get(list), before.get(list));
        if list.items().count() != before.items().count() {
            return report.forbidden(&list, "pod updates may not add or remove containers");
        }
        for container in list.items() {
            if container.get("image").is_empty() {
                report.required(&container.get("image"), "");
            }
        }
    }
    let (deadline, deadline_before) = (spec.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds"));
    match (deadline.int(), deadline_before.int()) {
        (Some(new), _) if new < 0 || new > i32::MAX.into() => report.between(&deadline, 0, i32::MAX.into()),
        (Some(new), Some(old)) if new > old => report.invalid(&deadline, "must be less than or equal to previous value"),
        (None, Some(_)) => report.invalid(&deadline, "must not update from a positive integer to nil value"),
        _ => {}
    }
    let tolerations = spec.get("tolerations");
    let plain = |node: &Node| {
        let mut map = node.map().cloned().unwrap_or_default();
        map.remove("tolerationSeconds");
        map
    };
    let kept: Vec<Map<String, Value>> = tolerations.items().map(|toleration| plain(&toleration)).collect();
    if before.get("tolerations").items().any(|toleration| !kept.contains(&plain(&toleration))) {
        report.forbidden(&tolerations, "existing toleration can not be modified except its tolerationSeconds");
    }
    selector::tolerations(report, &tolerations);
    if spec.get("schedulingGates").items().any(|gate| before.get("schedulingGates").items().all(|known| known.value != gate.value)) {
        report.forbidden(&spec.get("schedulingGates"), "only deletion is allowed");
    }
    if fixed(&spec, free) != fixed(&before, free) {
        let names = changed(&fixed(&spec, free), &fixed(&before, free)).join(", ");
        report.forbidden(&spec, &format!("{FIXED}\nchanged: {names}"));
    }
}

/// The spec without all that may change.
fn fixed(spec: &Node, free: &[&str]) -> Map<String, Value> {
    let mut map = spec.map().cloned().unwrap_or_default();
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"].iter().chain(free) {
        map.remove(*key);
    }
    if map.get("terminationGracePeriodSeconds") == Some(&1.into()) {
        map.remove("terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        for container in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            container.remove("image");
            if free.contains(&"resources") {
                container.remove("resources");
                container.remove("resizePolicy");
            }
        }
    }
    map
}

fn changed(new: &Map<String, Value>, old: &Map<String, Value>) -> Vec<String> {
    let mut keys: Vec<String> =
        new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).map(|key| format!("spec.{key}")).collect();
    keys.sort();
    keys.dedup();
    keys
}
