//! This board as a Node object: what it has, that it is well, and the lease that says it is alive. It writes only what the
//! node itself knows; labels, taints and spec belong to others. <https://kubernetes.io/docs/reference/node/node-status/>

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use smol::Timer;

use super::{Node, Place, image_gc, own_address};
use crate::base::time::Timestamp;
use crate::client::{Client, Patch, Query, is_not_found};

/// The kubelet's defaults: `nodeLeaseDurationSeconds` 40, renewed at a quarter of it.
const LEASE_SECONDS: u64 = 40;
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// `nodeStatusReportFrequency`: how often the status is looked at; it is written only if it changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
const PODS_MAX: u64 = 110;
/// What the kubelet keeps free by default: `evictionHard` memory.available.
const MEMORY_RESERVED_BYTES: u64 = 100 << 20;
const IMAGES_MAX: usize = 50;

/// What the machine is, read once.
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    disk_bytes: u64,
    kernel: String,
    os_image: String,
    machine_id: String,
    boot_id: String,
}

impl Machine {
    /// # Errors
    /// If /proc is not there.
    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        let disk = rustix::fs::statvfs(state).with_context(|| format!("look at {}", state.display()))?;
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Ok(Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory_bytes: total.context("/proc/meminfo has no MemTotal")? * 1024,
            disk_bytes: disk.f_blocks * disk.f_frsize,
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
        })
    }
}

/// Kubernetes' word for this machine's processor (GOARCH).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Registers the node: from here on the master knows it, and gives it a network for its pods.
///
/// # Errors
/// If the API refuses for another reason than being away.
pub async fn register(client: &Client, name: &str) -> anyhow::Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/arch": architecture(), "kubernetes.io/os": "linux",
            "beta.kubernetes.io/arch": architecture(), "beta.kubernetes.io/os": "linux",
        }},
        "spec": {},
    });
    let path = format!("/api/v1/nodes/{name}");
    let live = match client.get(&path).await {
        Ok(live) => live,
        Err(error) if is_not_found(&error) => client.create("/api/v1/nodes", &Query::new(), &object).await.context("register the node")?,
        Err(error) => return Err(error.context("register the node")),
    };
    // Labels that are missing, for one that was registered by an older program.
    let missing: Map<String, Value> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| live["metadata"]["labels"].get(*key).is_none())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let patch = json!({"metadata": {"labels": missing}});
    client.patch(&path, &Query::new(), Patch::Merge, &patch).await.context("label the node")?;
    Ok(())
}

/// Keeps the lease and the status as long as the node stays where it is.
///
/// # Errors
/// If it has another address or network now: the agent has to begin anew, which stops nothing.
pub async fn keep(node: &Node, machine: &Machine, server: &str, place: &Place) -> anyhow::Result<()> {
    let mut looked = std::time::Instant::now();
    let mut lease = Value::Null;
    loop {
        let interval = match renew(&node.client, &node.facts.node_name, &mut lease).await {
            Ok(()) => LEASE_INTERVAL,
            Err(error) => {
                log::warn!("node={} renew lease: {error:#}", node.facts.node_name);
                lease = Value::Null;
                RETRY_INTERVAL
            }
        };
        if looked.elapsed() >= STATUS_INTERVAL || node.status_due.replace(false) {
            looked = std::time::Instant::now();
            // After each pull, too: before the status, which lists the images.
            if let Err(error) = image_gc::collect(node).await {
                log::error!("node={} collect images: {error:#}", node.facts.node_name);
            }
            let path = format!("/api/v1/nodes/{}", node.facts.node_name);
            let written = async {
                // One that was deleted by mistake comes back.
                register(&node.client, &node.facts.node_name).await?;
                let live = node.client.get(&path).await?;
                write_status(node, machine, &live["status"]).await?;
                anyhow::Ok(live)
            };
            match written.await {
                Ok(live) if live["spec"]["podCIDR"].as_str().is_some_and(|cidr| cidr != place.pod_cidr) => {
                    bail!("the pods' network is {} now, not {}", live["spec"]["podCIDR"], place.pod_cidr)
                }
                Ok(_) => (),
                Err(error) => {
                    node.status_due.set(true);
                    log::warn!("node={} status: {error:#}", node.facts.node_name);
                }
            }
        }
        if let Ok(address) = own_address(server)
            && address != place.address
        {
            bail!("the node's address is {address} now, not {}", place.address);
        }
        Timer::after(interval).await;
    }
}

/// One small write that the API keeps in memory.
async fn renew(client: &Client, name: &str, lease: &mut Value) -> anyhow::Result<()> {
    const LIST: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let path = format!("{LIST}/{name}");
    let now = Timestamp::now().rfc3339_micros();
    if lease.is_null() {
        *lease = match client.get(&path).await {
            Ok(live) => live,
            Err(error) if is_not_found(&error) => {
                let fresh = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": name, "namespace": "kube-node-lease"},
                    "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now},
                });
                *lease = client.create(LIST, &Query::new(), &fresh).await?;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
    }
    lease["spec"]["holderIdentity"] = name.into();
    lease["spec"]["leaseDurationSeconds"] = LEASE_SECONDS.into();
    lease["spec"]["renewTime"] = now.into();
    *lease = client.update(&path, &Query::new(), lease).await?;
    Ok(())
}

/// Writes what changed of the node's status; `live` is what the API has.
///
/// # Errors
/// If the API refuses.
pub async fn write_status(node: &Node, machine: &Machine, live: &Value) -> anyhow::Result<()> {
    let desired = status(node, machine, live, Timestamp::now());
    let changed: Map<String, Value> = desired
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, value)| live.get(*field) != Some(*value))
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let path = format!("/api/v1/nodes/{}/status", node.facts.node_name);
    node.client.patch(&path, &Query::new(), Patch::Merge, &json!({"status": changed})).await.context("write the node's status")?;
    Ok(())
}

fn status(node: &Node, machine: &Machine, live: &Value, now: Timestamp) -> Value {
    let capacity = |memory: u64| {
        json!({
            "cpu": machine.cpus.to_string(), "memory": format!("{}Ki", memory / 1024), "pods": PODS_MAX.to_string(),
            "ephemeral-storage": format!("{}Ki", machine.disk_bytes / 1024),
        })
    };
    let images = node.images.list().unwrap_or_default();
    let images: Vec<Value> = images
        .iter()
        .take(IMAGES_MAX)
        .map(|image| json!({"names": image.digests.iter().chain(&image.names).collect::<Vec<_>>(), "sizeBytes": image.size_bytes}))
        .collect();
    json!({
        "capacity": capacity(machine.memory_bytes),
        "allocatable": capacity(machine.memory_bytes.saturating_sub(MEMORY_RESERVED_BYTES)),
        "addresses": [
            {"type": "InternalIP", "address": node.facts.host_ip}, {"type": "Hostname", "address": node.facts.node_name},
        ],
        "conditions": conditions(live, now),
        "images": images,
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "osImage": machine.os_image, "kernelVersion": machine.kernel,
            "containerRuntimeVersion": format!("edgectl://{}", env!("CARGO_PKG_VERSION")), "kubeletVersion": crate::api::VERSION, "kubeProxyVersion": "",
            "machineID": machine.machine_id, "systemUUID": machine.machine_id, "bootID": machine.boot_id,
        },
    })
}

/// The conditions this agent answers for; those that others wrote stay. One that did not change keeps its time.
fn conditions(live: &Value, now: Timestamp) -> Value {
    const OURS: [(&str, &str, &str, &str); 4] = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let before = live["conditions"].as_array().cloned().unwrap_or_default();
    let others = before.iter().filter(|condition| OURS.iter().all(|(name, ..)| condition["type"] != *name)).cloned();
    let ours = OURS.iter().map(|(name, status, reason, message)| {
        match before.iter().find(|condition| condition["type"] == *name && condition["status"] == *status) {
            Some(unchanged) => unchanged.clone(),
            None => json!({
                "type": name, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string(),
            }),
        }
    });
    others.chain(ours).collect()
}
