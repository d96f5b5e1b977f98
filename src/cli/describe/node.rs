//! Describes nodes, with what the pods on them ask for. It asks nobody: pods, lease and events are handed in.

use serde_json::Value;

use super::page::{Page, date, or, plain, since, texts};
use crate::api::quantity::Quantity;

/// What else is known of a node.
pub struct Around<'a> {
    /// The node's lease, or why there is none.
    pub lease: Result<&'a Value, String>,
    /// The pods on it that have not ended; none if one may not see them.
    pub pods: Option<&'a [Value]>,
    pub events: Option<&'a [Value]>,
}

pub fn node(node: &Value, around: &Around) -> String {
    let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    let mut page = Page::new();
    page.field(0, "Name", &plain(&metadata["name"]));
    page.field(0, "Roles", &roles(&metadata["labels"]));
    page.labels_and_annotations(node);
    page.field(0, "CreationTimestamp", &date(&metadata["creationTimestamp"]));
    let mut taints: Vec<&Value> = spec["taints"].as_array().into_iter().flatten().collect();
    taints.sort_by_key(|taint| format!("{},{}", plain(&taint["effect"]), plain(&taint["key"])));
    page.list("", "Taints", &taints.into_iter().map(taint_text).collect::<Vec<_>>());
    page.field(0, "Unschedulable", &(spec["unschedulable"] == true).to_string());
    match &around.lease {
        Ok(lease) => {
            let at = |field: &str| if lease["spec"][field].is_string() { date(&lease["spec"][field]) } else { "<unset>".to_owned() };
            page.line(0, "Lease:");
            page.field(1, "HolderIdentity", &or(plain(&lease["spec"]["holderIdentity"]), "<unset>"));
            page.field(1, "AcquireTime", &at("acquireTime"));
            page.field(1, "RenewTime", &at("renewTime"));
        }
        Err(why) => page.field(0, "Lease", &format!("Failed to get lease: {why}")),
    }
    let conditions: Vec<&Value> = status["conditions"].as_array().into_iter().flatten().collect();
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
        page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
        for condition in conditions {
            let (beat, changed) = (date(&condition["lastHeartbeatTime"]), date(&condition["lastTransitionTime"]));
            let text = |field: &str| plain(&condition[field]);
            page.line(1, &format!("{} \t{} \t{beat} \t{changed} \t{} \t{}", text("type"), text("status"), text("reason"), text("message")));
        }
    }
    page.line(0, "Addresses:");
    for address in status["addresses"].as_array().into_iter().flatten() {
        page.field(1, &plain(&address["type"]), &plain(&address["address"]));
    }
    for (label, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        let list: Vec<(&String, &Value)> = status[field].as_object().into_iter().flatten().collect();
        if !list.is_empty() {
            page.line(0, &format!("{label}:"));
        }
        for (name, quantity) in list {
            page.field(1, name, &plain(quantity));
        }
    }
    page.line(0, "System Info:");
    for (label, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ] {
        page.field(1, label, &plain(&status["nodeInfo"][field]));
    }
    page.field_if(0, "PodCIDR", &spec["podCIDR"]);
    let ranges = texts(&spec["podCIDRs"]).join(",");
    if !ranges.is_empty() {
        page.field(0, "PodCIDRs", &ranges);
    }
    page.field_if(0, "ProviderID", &spec["providerID"]);
    match around.pods {
        Some(pods) => usage(&mut page, pods, status),
        None => page.field(0, "Pods", "not authorized"),
    }
    page.events(around.events);
    page.finish()
}

/// The roles that a node's labels name.
pub fn roles(labels: &Value) -> String {
    let mut roles: Vec<String> = vec![];
    for (key, value) in labels.as_object().into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role.to_owned()),
            _ if key == "kubernetes.io/role" => roles.push(plain(value)),
            _ => {}
        }
    }
    roles.sort();
    roles.dedup();
    or(roles.join(","), "<none>")
}

/// `key=value:Effect`.
pub fn taint_text(taint: &Value) -> String {
    let (key, value, effect) = (plain(&taint["key"]), plain(&taint["value"]), plain(&taint["effect"]));
    match (value.is_empty(), effect.is_empty()) {
        (true, true) => key,
        (true, false) => format!("{key}:{effect}"),
        (false, true) => format!("{key}={value}:"),
        (false, false) => format!("{key}={value}:{effect}"),
    }
}

fn usage(page: &mut Page, pods: &[Value], status: &Value) {
    let total =
        if status["allocatable"].as_object().is_some_and(|list| !list.is_empty()) { &status["allocatable"] } else { &status["capacity"] };
    let share = |amount: Quantity, name: &str| {
        let total = quantity(&total[name]);
        let (part, whole) = if name == "cpu" { (amount.milli(), total.milli()) } else { (amount.value(), total.value()) };
        let percent = if whole == 0 { 0 } else { (part as f64 / whole as f64 * 100.0) as i64 };
        format!("{amount} ({percent}%)")
    };
    page.line(0, &format!("Non-terminated Pods:\t({} in total)", pods.len()));
    page.line(1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    page.line(1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    for pod in pods {
        let metadata = &pod["metadata"];
        let of = |list: &str, name: &str| share(pod_amount(&pod["spec"], list, name), name);
        page.line(
            1,
            &format!(
                "{}\t{}\t\t{}\t{}\t{}\t{}\t{}",
                plain(&metadata["namespace"]),
                plain(&metadata["name"]),
                of("requests", "cpu"),
                of("limits", "cpu"),
                of("requests", "memory"),
                of("limits", "memory"),
                since(&metadata["creationTimestamp"])
            ),
        );
    }
    page.line(0, "Allocated resources:");
    page.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    let sum =
        |list: &str, name: &str| pods.iter().map(|pod| pod_amount(&pod["spec"], list, name)).fold(quantity(&Value::Null), Quantity::add);
    for name in ["cpu", "memory", "ephemeral-storage"] {
        page.line(1, &format!("{name}\t{}\t{}", share(sum("requests", name), name), share(sum("limits", name), name)));
    }
    for name in total.as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
        if name.starts_with("hugepages-") {
            page.line(1, &format!("{name}\t{}\t{}", share(sum("requests", name), name), share(sum("limits", name), name)));
        }
    }
    for name in total.as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
        if !name.starts_with("hugepages-") && !matches!(name, "cpu" | "memory" | "ephemeral-storage" | "pods" | "storage") {
            page.line(1, &format!("{name}\t{}\t{}", sum("requests", name), sum("limits", name)));
        }
    }
}

fn quantity(value: &Value) -> Quantity {
    Quantity::parse(&or(plain(value), "0")).unwrap_or_else(|_| Quantity::from_value(0))
}

/// What a pod asks for as a whole: its containers together, or its largest init container, and the overhead.
fn pod_amount(spec: &Value, list: &str, name: &str) -> Quantity {
    let of = |container: &Value| quantity(&container["resources"][list][name]);
    let always = |container: &&Value| container["restartPolicy"] == "Always";
    let init: Vec<&Value> = spec["initContainers"].as_array().into_iter().flatten().collect();
    let mut amount = spec["containers"].as_array().into_iter().flatten().map(of).fold(quantity(&Value::Null), Quantity::add);
    let mut sidecars = quantity(&Value::Null);
    let mut peak = quantity(&Value::Null);
    for container in init {
        if always(&container) {
            sidecars = sidecars.add(of(container));
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.add(of(container)));
        }
    }
    amount = amount.add(sidecars).max(peak);
    let overhead = &spec["overhead"][name];
    if overhead.is_null() || (list == "limits" && amount.is_zero()) { amount } else { amount.add(quantity(overhead)) }
}
