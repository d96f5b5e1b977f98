//! Tells the story of the node's pods as core/v1 Events, in order and beside the work itself. A repeat counts up. When the
//! API cannot keep up, or is away, events are dropped: no pod ever waits for its story.

use std::cell::RefCell;
use std::collections::HashMap;

use serde_json::{Value, json};
use smol::channel::{Receiver, Sender, bounded};

use crate::api::pod::Pod;
use crate::base::task;
use crate::base::time::Timestamp;
use crate::client::{Client, Patch, Query, is_not_found};

/// Events that wait to be written; further ones are dropped.
const QUEUE_MAX: usize = 256;
/// Events remembered so that a repeat counts up.
const REMEMBERED_MAX: usize = 512;

#[derive(Clone, Copy, Debug)]
pub enum Severity {
    Normal,
    Warning,
}

pub struct Recorder {
    events: Sender<Value>,
    node: String,
}

impl Recorder {
    pub fn start(client: Client, node: &str) -> Self {
        let (events, queue) = bounded(QUEUE_MAX);
        task::spawn(write(client, queue)).detach();
        Self { events, node: node.to_owned() }
    }

    /// Something happened to a pod, or to one of its containers.
    pub fn pod(&self, pod: &Pod, container: Option<&str>, severity: Severity, reason: &str, message: String) {
        let mut involved = json!({
            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid,
        });
        if let Some(name) = container {
            let field = if pod.spec.init_containers.iter().any(|each| each.name == name) { "initContainers" } else { "containers" };
            involved["fieldPath"] = format!("spec.{field}{{{name}}}").into();
        }
        self.record(&pod.metadata.namespace, involved, severity, reason, message);
    }

    /// Something happened to this node.
    pub fn node(&self, severity: Severity, reason: &str, message: String) {
        let involved = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        self.record("default", involved, severity, reason, message);
    }

    fn record(&self, namespace: &str, involved: Value, severity: Severity, reason: &str, message: String) {
        let now = Timestamp::now().to_string();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"namespace": namespace},
            "involvedObject": involved, "reason": reason, "message": message, "type": format!("{severity:?}"), "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "kubelet", "host": self.node}, "reportingComponent": "kubelet", "reportingInstance": self.node,
        });
        if self.events.try_send(event).is_err() {
            log::debug!("event {reason} dropped: {QUEUE_MAX} wait already");
        }
    }
}

async fn write(client: Client, queue: Receiver<Value>) {
    let known: RefCell<HashMap<String, (String, u64)>> = RefCell::default();
    while let Ok(event) = queue.recv().await {
        if let Err(error) = write_one(&client, &known, event).await {
            log::debug!("event: {error:#}");
        }
    }
}

async fn write_one(client: &Client, known: &RefCell<HashMap<String, (String, u64)>>, mut event: Value) -> anyhow::Result<()> {
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let list = format!("/api/v1/namespaces/{namespace}/events");
    let identity = format!("{} {} {}", event["involvedObject"], event["reason"], event["message"]);
    let repeated = known.borrow().get(&identity).cloned();
    if let Some((name, count)) = repeated {
        let patch = json!({"count": count + 1, "lastTimestamp": event["lastTimestamp"]});
        match client.patch(&format!("{list}/{name}"), &Query::new(), Patch::Merge, &patch).await {
            Ok(_) => {
                known.borrow_mut().insert(identity, (name, count + 1));
                return Ok(());
            }
            Err(error) if is_not_found(&error) => (),
            Err(error) => return Err(error),
        }
    }
    let object = event["involvedObject"]["name"].as_str().unwrap_or_default();
    let name = format!("{object}.{:016x}", Timestamp::now().0);
    event["metadata"]["name"] = name.clone().into();
    client.create(&list, &Query::new(), &event).await?;
    let mut known = known.borrow_mut();
    if known.len() >= REMEMBERED_MAX {
        known.clear();
    }
    known.insert(identity, (name, 1));
    Ok(())
}
