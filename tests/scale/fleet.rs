//! Agents without boards: each registers its node, renews its lease, holds its tunnel, follows what a real agent follows, and says that
//! its pods run as soon as it hears of them. It runs nothing and keeps no object.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_rustls::rustls::ClientConfig;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use smol::lock::Semaphore;
use smol::{Task, Timer};

use crate::link::{self, Authority, JSON, Link, MERGE};
use crate::task;
use crate::time::Timestamp;

const LEASE_INTERVAL: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// Nodes that come up at a time.
const STARTING_MAX: usize = 64;
const PAGE: usize = 500;
/// Of a watch, as the agents ask.
const WATCH_SECONDS: u64 = 600;
const ERRORS_SHOWN: usize = 5;

/// What all nodes together have seen.
#[derive(Default)]
pub struct Tally {
    pub nodes_up: Cell<usize>,
    pub pods_seen: Cell<usize>,
    pub pods_running: Cell<usize>,
    pub first_seen: Cell<Option<Instant>>,
    pub last_seen: Cell<Option<Instant>>,
    pub watched_bytes: Cell<u64>,
    pub relists: Cell<usize>,
    pub errors: Cell<usize>,
    pub follows_nodes: Cell<bool>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

pub struct Fleet {
    pub tally: Rc<Tally>,
    nodes: Vec<Rc<Node>>,
}

/// One played node.
pub struct Node {
    pub name: String,
    number: usize,
    config: ClientConfig,
    tally: Rc<Tally>,
    /// When its lease was renewed last.
    heard: Cell<Option<Instant>>,
    tasks: RefCell<Vec<Task<()>>>,
    pods: RefCell<HashSet<String>>,
    is_silent: Cell<bool>,
}

impl Fleet {
    /// Brings up so many nodes; they come at once, but for what one machine can shake hands with.
    pub fn start(authority: &Authority, count: usize, follows_nodes: bool) -> Result<Self> {
        let tally = Rc::new(Tally::default());
        tally.follows_nodes.set(follows_nodes);
        let starting = Arc::new(Semaphore::new(STARTING_MAX));
        let mut nodes = Vec::with_capacity(count);
        for number in 0..count {
            let name = format!("node-{number:04}");
            let config = authority.client(&format!("system:node:{name}"), "system:nodes")?;
            let node = Rc::new(Node {
                name,
                number,
                config,
                tally: tally.clone(),
                heard: Cell::new(None),
                tasks: RefCell::default(),
                pods: RefCell::default(),
                is_silent: Cell::new(false),
            });
            let (starting, own) = (starting.clone(), node.clone());
            task::spawn(async move {
                let place = starting.acquire_arc().await;
                while let Err(error) = own.clone().start().await {
                    own.complain(&error);
                    Timer::after(RETRY).await;
                }
                drop(place);
            })
            .detach();
            nodes.push(node);
        }
        Ok(Self { tally, nodes })
    }

    pub fn node(&self, name: &str) -> Option<&Rc<Node>> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    object: Pod,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pods {
    items: Vec<Pod>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    deletion_timestamp: Option<String>,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    phase: String,
    conditions: Vec<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Head {
    metadata: Metadata,
}

impl Node {
    fn complain(&self, error: &anyhow::Error) {
        count(&self.tally.errors);
        if self.tally.errors.get() <= ERRORS_SHOWN {
            eprintln!("{}: {error:#}", self.name);
        }
    }

    /// Ends all that it does, as a loss of power would. Answers when it was heard of last.
    pub fn silence(&self) -> Option<Instant> {
        self.is_silent.set(true);
        self.tasks.borrow_mut().clear();
        self.heard.get()
    }

    fn keep(&self, task: Task<()>) {
        self.tasks.borrow_mut().push(task);
    }

    async fn start(self: Rc<Self>) -> Result<()> {
        let link = Link::connect(self.config.clone()).await?;
        let path = format!("/api/v1/nodes/{}", self.name);
        if link.ask(Method::GET, &path, None).await?.0 == 404 {
            let labels = json!({
                "kubernetes.io/hostname": self.name, "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux",
                "beta.kubernetes.io/arch": "arm64", "beta.kubernetes.io/os": "linux",
            });
            let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}, "spec": {}});
            link.write(Method::POST, "/api/v1/nodes", JSON, &object).await?;
        }
        link.write(Method::PATCH, &format!("{path}/status"), MERGE, &json!({"status": self.status()})).await?;
        let mut lease = self.lease(&link).await?;
        let (own, tunnelled) = (self.clone(), self.config.clone());
        self.keep(task::spawn(async move {
            if let Err(error) = link::tunnel(tunnelled, &own.name).await {
                own.complain(&error);
            }
        }));
        let (own, renewing) = (self.clone(), link.clone());
        self.keep(task::spawn(async move {
            // Boards come up at any time.
            Timer::after(LEASE_INTERVAL * (own.number as u32 % 1000) / 1000).await;
            loop {
                if let Err(error) = own.renew(&renewing, &mut lease).await {
                    own.complain(&error);
                }
                Timer::after(LEASE_INTERVAL).await;
            }
        }));
        let mut followed =
            vec!["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/apis/networking.k8s.io/v1/networkpolicies"];
        if self.tally.follows_nodes.get() {
            followed.push("/api/v1/nodes");
        }
        for path in followed {
            self.clone().follow(link.clone(), path.to_owned());
        }
        self.clone().follow(link, format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name));
        count(&self.tally.nodes_up);
        Ok(())
    }

    fn follow(self: Rc<Self>, link: Link, path: String) {
        let own = self.clone();
        self.keep(task::spawn(async move {
            let mut version = String::new();
            loop {
                if let Err(error) = own.clone().follow_once(&link, &path, &mut version).await {
                    own.complain(&error);
                    Timer::after(RETRY).await;
                }
            }
        }));
    }

    /// Lists if it has to, then watches until the watch ends.
    async fn follow_once(self: Rc<Self>, link: &Link, path: &str, version: &mut String) -> Result<()> {
        let own = path.contains("fieldSelector");
        let with = if own { '&' } else { '?' };
        if version.is_empty() {
            let mut next = String::new();
            loop {
                let page = link.get(&format!("{path}{with}limit={PAGE}&continue={next}")).await?;
                if own {
                    let pods: Pods = serde_json::from_slice(&page)?;
                    pods.items.into_iter().for_each(|pod| self.clone().hear(link, pod));
                }
                let head: Head = serde_json::from_slice(&page)?;
                (*version, next) = (head.metadata.resource_version, head.metadata.next);
                if next.is_empty() {
                    break;
                }
            }
            count(&self.tally.relists);
        }
        let watch = format!("{path}{with}watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}");
        let mut lines = link.watch(&watch).await?;
        while let Some(chunk) = lines.next().await {
            self.tally.watched_bytes.set(self.tally.watched_bytes.get() + chunk.len() as u64);
            let text = std::str::from_utf8(&chunk)?;
            let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
            if last.starts_with("{\"type\":\"ERROR\"") {
                version.clear();
                continue;
            }
            let seen = last.split("\"resourceVersion\":\"").nth(1).and_then(|rest| rest.split('"').next());
            *version = seen.context("an event without a version")?.to_owned();
            if own {
                for line in
                    text.lines().filter(|line| !line.starts_with("{\"type\":\"BOOKMARK\"") && !line.starts_with("{\"type\":\"DELETED\""))
                {
                    self.clone().hear(link, serde_json::from_str::<Line>(line)?.object);
                }
            }
        }
        Ok(())
    }

    /// A pod of this node is so.
    fn hear(self: Rc<Self>, link: &Link, pod: Pod) {
        if pod.metadata.deletion_timestamp.is_some() {
            let (own, link) = (self.clone(), link.clone());
            task::spawn(async move {
                let path = format!("/api/v1/namespaces/{}/pods/{}", pod.metadata.namespace, pod.metadata.name);
                let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}});
                // It is gone already, or it is told again.
                drop(link.ask(Method::DELETE, &path, Some((JSON, options.to_string()))).await);
                own.pods.borrow_mut().remove(&pod.metadata.uid);
            })
            .detach();
            return;
        }
        if pod.status.phase == "Running" || !self.pods.borrow_mut().insert(pod.metadata.uid.clone()) {
            return;
        }
        let now = Instant::now();
        count(&self.tally.pods_seen);
        self.tally.first_seen.set(self.tally.first_seen.get().or(Some(now)));
        self.tally.last_seen.set(Some(now));
        let link = link.clone();
        task::spawn(async move {
            while let Err(error) = self.run(&link, &pod).await {
                self.complain(&error);
                if self.is_silent.get() {
                    return;
                }
                Timer::after(RETRY).await;
            }
            count(&self.tally.pods_running);
        })
        .detach();
    }

    /// What a real agent asks for a pod with the usual projected volume, and what it says when the container runs.
    async fn run(&self, link: &Link, pod: &Pod) -> Result<()> {
        let Metadata { namespace, name, uid, .. } = &pod.metadata;
        link.get(&format!("/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt")).await?;
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        let token = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": 3607, "boundObjectRef": bound},
        });
        link.write(Method::POST, &format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token"), JSON, &token).await?;
        let now = timestamp();
        let number = self.pods.borrow().len();
        let address = format!("10.{}.{}.{}", 100 + self.number / 256, self.number % 256, number % 250 + 2);
        let mut conditions: Vec<Value> = pod.status.conditions.iter().filter(|each| each["type"] == "PodScheduled").cloned().collect();
        for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
            conditions.push(json!({"type": kind, "status": "True", "lastTransitionTime": now}));
        }
        let container = json!({
            "name": "c", "ready": true, "started": true, "restartCount": 0, "image": "registry.example/shop/web:1.2.3",
            "imageID": format!("registry.example/shop/web@sha256:{:064x}", 7), "containerID": format!("edgectl://{uid}"),
            "state": {"running": {"startedAt": now}}, "lastState": {},
        });
        let status = json!({
            "phase": "Running", "startTime": now, "hostIP": self.address(), "hostIPs": [{"ip": self.address()}],
            "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions, "containerStatuses": [container],
        });
        let patch = json!({"metadata": {"uid": uid}, "status": status});
        link.write(Method::PATCH, &format!("/api/v1/namespaces/{namespace}/pods/{name}/status"), MERGE, &patch).await?;
        Ok(())
    }

    async fn lease(&self, link: &Link) -> Result<Value> {
        const LIST: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let fresh = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": timestamp()},
        });
        let (code, body) = link.ask(Method::POST, LIST, Some((JSON, fresh.to_string()))).await?;
        let answer = if code == 409 { link.get(&format!("{LIST}/{}", self.name)).await? } else { body };
        self.heard.set(Some(Instant::now()));
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn renew(&self, link: &Link, lease: &mut Value) -> Result<()> {
        lease["spec"]["renewTime"] = timestamp().into();
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.name);
        *lease = serde_json::from_slice(&link.write(Method::PUT, &path, JSON, lease).await?)?;
        self.heard.set(Some(Instant::now()));
        Ok(())
    }

    fn address(&self) -> String {
        format!("172.16.{}.{}", self.number / 256, self.number % 256)
    }

    fn status(&self) -> Value {
        let now = timestamp();
        let sizes = json!({"cpu": "4", "memory": "8000000Ki", "pods": "110", "ephemeral-storage": "30000000Ki"});
        let condition = |kind: &str, status: &str| {
            json!({
                "type": kind, "status": status, "reason": "Played", "message": "as the test has it", "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            })
        };
        let image = |number: usize| {
            let name = format!("registry.example/shop/part-{number}");
            json!({"names": [format!("{name}@sha256:{number:064x}"), format!("{name}:1.2.3")], "sizeBytes": 12345678})
        };
        json!({
            "capacity": sizes, "allocatable": sizes,
            "addresses": [{"type": "InternalIP", "address": self.address()}, {"type": "Hostname", "address": self.name}],
            "conditions": [
                condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"),
                condition("Ready", "True"),
            ],
            "images": (0..5).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "arm64", "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "kernelVersion": "6.1.0-30-arm64", "containerRuntimeVersion": "edgectl://0.1.0", "kubeletVersion": "v1.36.0",
                "kubeProxyVersion": "", "machineID": format!("{:032x}", self.number), "systemUUID": format!("{:032x}", self.number),
                "bootID": format!("{:032x}", self.number),
            },
        })
    }
}

/// Now, with microseconds.
fn timestamp() -> String {
    Timestamp::now().rfc3339_micros()
}
