//! Requests and limits of containers in the kernel's terms: CPU shares and quota, bytes of memory, the OOM killer's score.
//! Pure; the runtime writes them to cgroups(7).

use serde_json::Value;

use crate::api::pod::{Container, Pod, Qos};
use crate::api::quantity::Quantity;
use crate::runtime::spec::{Cpu, Memory, Resources};

/// One CPU is 1024 shares; fewer than two the kernel does not take. k8s.io/kubernetes/pkg/kubelet/cm/helpers_linux.go.
const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: i64 = 2;
const QUOTA_PERIOD_US: u64 = 100_000;
const QUOTA_MIN_US: i64 = 1000;

/// k8s.io/kubernetes/pkg/kubelet/qos/policy.go.
const OOM_GUARANTEED: i32 = -997;
const OOM_BEST_EFFORT: i32 = 1000;

/// A quantity as the API has it: text, or a plain number.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn cpu_milli(resources: &std::collections::BTreeMap<String, Value>) -> Option<i64> {
    resources.get("cpu").and_then(quantity).map(Quantity::milli)
}

fn bytes(resources: &std::collections::BTreeMap<String, Value>, name: &str) -> Option<i64> {
    resources.get(name).and_then(quantity).map(Quantity::value)
}

/// The cgroup settings of a container. Without a request it has the smallest share, as upstream's kubelet gives it.
pub fn of_container(container: &Container) -> Resources {
    let limit_milli = cpu_milli(&container.resources.limits).filter(|milli| *milli > 0);
    let request_milli = cpu_milli(&container.resources.requests).or(limit_milli).unwrap_or(0);
    let cpu = Cpu {
        shares: Some((request_milli * SHARES_PER_CPU / 1000).max(SHARES_MIN) as u64),
        quota: limit_milli.map(|milli| (milli * QUOTA_PERIOD_US as i64 / 1000).max(QUOTA_MIN_US)),
        period: limit_milli.map(|_| QUOTA_PERIOD_US),
        ..Cpu::default()
    };
    let limit = bytes(&container.resources.limits, "memory").filter(|bytes| *bytes > 0);
    let memory = limit.map(|limit| Memory { limit: Some(limit), ..Memory::default() });
    Resources { cpu: Some(cpu), memory, ..Resources::default() }
}

/// Who is killed first when the node runs out of memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: u64) -> i32 {
    match pod.qos() {
        Qos::Guaranteed => OOM_GUARANTEED,
        Qos::BestEffort => OOM_BEST_EFFORT,
        Qos::Burstable => {
            let request = bytes(&container.resources.requests, "memory").unwrap_or(0);
            let share = 1000 * request / (node_memory_bytes.max(1) as i64);
            (1000 - share).clamp(i64::from(1000 + OOM_GUARANTEED), i64::from(OOM_BEST_EFFORT - 1)) as i32
        }
    }
}

/// The lowest score that this process may give: without CAP_SYS_RESOURCE none below its own, proc_pid_oom_score_adj(5).
/// In a sandbox that lacks it, a guaranteed pod still runs, only less sheltered.
///
/// # Errors
/// If /proc is not there.
pub fn oom_score_min() -> std::io::Result<i32> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok()).unwrap_or(0);
    if effective & CAP_SYS_RESOURCE != 0 {
        return Ok(-1000);
    }
    Ok(std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0))
}

/// Where a pod's cgroup lies below the cluster's own: by quality of service, as the kubelet has it.
pub fn cgroup(root: &str, pod: &Pod) -> String {
    let qos = match pod.qos() {
        Qos::Guaranteed => "",
        Qos::Burstable => "burstable/",
        Qos::BestEffort => "besteffort/",
    };
    format!("{}/kubepods/{qos}pod{}", root.trim_end_matches('/'), pod.metadata.uid)
}

/// A `resourceFieldRef` as a number, rounded up to the divisor. An absent limit is what the node has.
pub fn field(container: &Container, resource: &str, divisor: Option<&Value>, node_cpu_milli: u64, node_memory_bytes: u64) -> Option<i64> {
    let (kind, name) = resource.split_once('.')?;
    let resources = match kind {
        "limits" => &container.resources.limits,
        "requests" => &container.resources.requests,
        _ => return None,
    };
    let divisor = divisor.and_then(quantity).filter(|divisor| !divisor.is_zero());
    let (amount, divisor) = match name {
        "cpu" => {
            let absent = if kind == "limits" { node_cpu_milli as i64 } else { 0 };
            (cpu_milli(resources).unwrap_or(absent), divisor.map_or(1000, Quantity::milli))
        }
        "memory" | "ephemeral-storage" => {
            let absent = if kind == "limits" && name == "memory" { node_memory_bytes as i64 } else { 0 };
            (bytes(resources, name).unwrap_or(absent), divisor.map_or(1, Quantity::value))
        }
        _ => return None,
    };
    Some((amount.max(0) as u64).div_ceil(divisor.max(1) as u64) as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(resources: Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    #[test]
    fn limits_become_quota_and_bytes() {
        let made = of_container(&container(json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "0.25"}})));
        let cpu = made.cpu.unwrap();
        assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(256), Some(50_000), Some(100_000)));
        assert_eq!(made.memory.unwrap().limit, Some(64 << 20));
        let free = of_container(&container(json!({})));
        assert_eq!((free.cpu.unwrap().shares, free.memory), (Some(2), None));
    }

    #[test]
    fn resource_fields_are_rounded_up_to_their_divisor() {
        let with = container(json!({"limits": {"cpu": "1500m", "memory": "10Mi"}}));
        for (resource, divisor, value) in [
            ("limits.cpu", json!(null), 2),
            ("limits.cpu", json!("1m"), 1500),
            ("limits.memory", json!("1Mi"), 10),
            ("limits.memory", json!(null), 10 << 20),
            ("requests.cpu", json!("1m"), 0),
        ] {
            assert_eq!(field(&with, resource, Some(&divisor), 4000, 1 << 30), Some(value), "{resource} {divisor}");
        }
        assert_eq!(field(&container(json!({})), "limits.cpu", None, 4000, 1), Some(4));
    }
}
