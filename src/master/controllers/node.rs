//! Watches over nodes: a silent one becomes Unknown, the pods of one that is not ready are not ready either, and each condition that
//! speaks against new pods becomes a taint (upstream `pkg/controller/nodelifecycle`). It never moves a pod, and never touches taints
//! that are not its own.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::base::time::Timestamp;
use crate::master::recorder::Recorder;
use crate::master::store::Key;
use crate::master::store::objects::Part;

/// Namespace of the leases that nodes renew.
const LEASES: &str = "kube-node-lease";

/// Condition, the status that speaks against new pods, and the taint that says so; core/v1 well-known taints.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    /// How long a node may be silent; kube-controller-manager `--node-monitor-grace-period`.
    grace: Duration,
    nodes: &'static Resource,
    leases: &'static Resource,
    pods: &'static Resource,
    /// When each node was last heard of, by our own clock, for theirs may be years off; and the lease that said so, by its revision.
    heard: RefCell<HashMap<String, (Timestamp, u64)>>,
    /// Nodes that were ready when they were last noticed.
    well: RefCell<BTreeSet<String>>,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>, grace: Duration) -> Rc<Self> {
        let controller = Rc::new(Self {
            grace,
            nodes: shared.resource("", "v1", "nodes"),
            leases: shared.resource("coordination.k8s.io", "v1", "leases"),
            pods: shared.resource("", "v1", "pods"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            heard: RefCell::default(),
            well: RefCell::default(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    /// Notes whether a node is ready. Where the first becomes well, or the last one no more, every node is looked at anew: what becomes
    /// of the pods of one that is not depends on it.
    fn note(&self, name: &str, is_ready: bool) {
        let mut well = self.well.borrow_mut();
        let was_none = well.is_empty();
        match is_ready {
            true => well.insert(name.to_owned()),
            false => well.remove(name),
        };
        if was_none != well.is_empty() {
            let (nodes, _) = self.shared.objects().list(self.nodes, None);
            nodes.iter().for_each(|node| self.queue.add(Name::of(&node.key)));
        }
    }

    /// Whether a node other than this one is well. One that was deleted while the log was lost does not count.
    fn is_other_well(&self, name: &str) -> bool {
        let is_there = |other: &str| self.shared.objects().store().get(&Key::new(self.nodes, "", other)).is_some();
        self.well.borrow().iter().any(|other| other != name && is_there(other))
    }

    /// What runs on a node that is not ready is not to be counted on: Services send nobody there. Its agent says so itself when it can
    /// tell that its pods are well.
    async fn doubt_pods(&self, node: &str) -> anyhow::Result<()> {
        let objects = self.shared.objects();
        for pod in &objects.store().list_on_node(self.pods, None, node).0 {
            if !is_ready_on(&pod.value(), node) {
                continue;
            }
            let (namespace, name, now) = (&pod.key.namespace, &pod.key.name, self.shared.now());
            let doubted = objects.update(self.pods, namespace, name, Part::Status, false, |live| Ok(doubt(live, node, now))).await;
            match doubted {
                Err(status) if !status.is_not_found() => return Err(status.into()),
                _ => log::info!("pod={namespace}/{name} is not ready, for its node {node} is not"),
            }
        }
        Ok(())
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.leases) && key.namespace == LEASES && !notice.is_deleted() {
            // A renewal is no work; who is silent is found when the node's time is up.
            // Where the log was lost, those are told of, too, who were silent since.
            let revision = notice.object.revision;
            if let Some(heard) = self.heard.borrow_mut().get_mut(&key.name).filter(|(_, last)| *last != revision) {
                *heard = (self.shared.now(), revision);
            }
        } else if notice.is(self.nodes) {
            if notice.is_deleted() {
                self.heard.borrow_mut().remove(&key.name);
                self.note(&key.name, false);
                return;
            }
            let node = notice.object.value();
            self.note(&key.name, is_ready(&node));
            let speaks = condition(&node, "Ready") != "Unknown";
            let mut heard = self.heard.borrow_mut();
            let (last, _) = heard.entry(key.name.clone()).or_insert_with(|| (self.shared.now(), 0));
            if speaks && notice.change.is_some() {
                *last = self.shared.now();
            }
            drop(heard);
            self.queue.add(Name::of(key));
        }
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "node";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(object) = objects.store().get(&Key::new(self.nodes, "", &name.name)) else { return Ok(None) };
        let now = self.shared.now();
        let (heard, _) = *self.heard.borrow_mut().entry(name.name.clone()).or_insert((now, 0));
        let silent = now.since(heard);
        let mut node = object.value();
        if silent >= self.grace && condition(&node, "Ready") != "Unknown" {
            let silenced = objects.update(self.nodes, "", &name.name, Part::Status, false, |live| Ok(silence(live, now))).await?;
            node = silenced.value();
            log::warn!("node={name} is silent since {heard}");
            self.recorder.normal(&object, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
        }
        if ["False", "Unknown"].contains(&condition(&node, "Ready")) {
            self.doubt_pods(&name.name).await?;
        }
        let evicts = !is_ready(&node) && self.is_other_well(&name.name);
        if let Some(taints) = taints(&node, evicts, now) {
            objects
                .update(self.nodes, "", &name.name, Part::Whole, false, |live| {
                    let mut desired = live.clone();
                    if let Some(taints) = self::taints(live, evicts, now) {
                        set_taints(&mut desired, taints);
                    }
                    Ok(desired)
                })
                .await?;
            log::info!("node={name} taints={}", taints.iter().filter_map(|taint| taint["key"].as_str()).collect::<Vec<_>>().join(","));
        }
        // A silent node is looked at again when it speaks.
        Ok((silent < self.grace).then(|| self.grace - silent))
    }
}

/// The status of a node's or pod's condition; empty if it has none.
fn condition<'a>(node: &'a Value, kind: &str) -> &'a str {
    let conditions = node["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(|each| each["type"] == kind).and_then(|each| each["status"].as_str()).unwrap_or_default()
}

fn is_ready_on(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"] == node && condition(pod, "Ready") == "True"
}

/// The pod as one that is not ready, if it is on that node and says it is.
fn doubt(live: &Value, node: &str, now: Timestamp) -> Value {
    let mut pod = live.clone();
    if is_ready_on(live, node) {
        let conditions = pod["status"]["conditions"].as_array_mut().into_iter().flatten();
        for ready in conditions.filter(|each| each["type"] == "Ready") {
            ready["status"] = "False".into();
            ready["lastTransitionTime"] = now.to_string().into();
        }
    }
    pod
}

/// The node with all that it said about itself taken as unknown.
fn silence(live: &Value, now: Timestamp) -> Value {
    let mut node = live.clone();
    let conditions = &mut node["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().expect("it was made an array just above");
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
        match conditions.iter_mut().find(|each| each["type"] == kind) {
            Some(known) if known["status"] == "Unknown" => (),
            Some(known) => {
                known["status"] = "Unknown".into();
                known["reason"] = reason.into();
                known["message"] = message.into();
                known["lastTransitionTime"] = now.to_string().into();
            }
            None => conditions.push(json!({
                "type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated", "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string(),
            })),
        }
    }
    node
}

fn is_ready(node: &Value) -> bool {
    condition(node, "Ready") == "True"
}

/// The taints the node should have; `None` if it has them. Those of other keys and effects stay as they are. `evicts` says whether the
/// pods of a node that is not ready shall go: where no node is well, it is rather we who hear nothing, and no pod gains by it.
fn taints(node: &Value, evicts: bool, now: Timestamp) -> Option<Vec<Value>> {
    let mut wanted: Vec<&str> =
        TAINTS.iter().filter(|(kind, against, _)| condition(node, kind) == *against).map(|(_, _, taint)| *taint).collect();
    if condition(node, "Ready").is_empty() {
        wanted.push("node.kubernetes.io/not-ready");
    }
    if node["spec"]["unschedulable"] == true {
        wanted.push(UNSCHEDULABLE);
    }
    // Not ready, or not heard of: the pods have to go, each when its patience ends. A node that never spoke has none.
    let sick = TAINTS.iter().filter(|(kind, against, _)| evicts && *kind == "Ready" && condition(node, kind) == *against);
    let wanted: Vec<(&str, &str)> =
        wanted.into_iter().map(|key| (key, "NoSchedule")).chain(sick.map(|(_, _, key)| (*key, "NoExecute"))).collect();
    let observed = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let is_ours = |taint: &Value| {
        let key = taint["key"].as_str().unwrap_or_default();
        let of_condition = |condition: &str| TAINTS.iter().any(|(kind, _, ours)| *ours == key && ["", *kind].contains(&condition));
        match taint["effect"].as_str() {
            Some("NoSchedule") => key == UNSCHEDULABLE || of_condition(""),
            Some("NoExecute") => of_condition("Ready"),
            _ => false,
        }
    };
    let is = |taint: &Value, (key, effect): (&str, &str)| taint["key"] == key && taint["effect"] == effect;
    let mut desired: Vec<Value> =
        observed.iter().filter(|taint| !is_ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted))).cloned().collect();
    for (key, effect) in wanted {
        if !desired.iter().any(|taint| is(taint, (key, effect))) {
            desired.push(match effect {
                "NoExecute" => json!({"key": key, "effect": effect, "timeAdded": now.to_string()}),
                _ => json!({"key": key, "effect": effect}),
            });
        }
    }
    (desired != observed).then_some(desired)
}

fn set_taints(node: &mut Value, taints: Vec<Value>) {
    if taints.is_empty() {
        if let Some(spec) = node["spec"].as_object_mut() {
            spec.remove("taints");
        }
    } else {
        node["spec"]["taints"] = taints.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_become_taints_and_other_taints_stay() {
        let node = |ready: &str, unschedulable: bool, taints: Value| {
            json!({
                "spec": {"unschedulable": unschedulable, "taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let unreachable = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"});
        let unschedulable = json!({"key": UNSCHEDULABLE, "effect": "NoSchedule"});
        let users = json!({"key": "mine", "effect": "NoSchedule"});
        let now = Timestamp::from_seconds(1_800_000_000);
        let check = |node: Value, expected: Option<Vec<&Value>>| {
            assert_eq!(taints(&node, false, now), expected.map(|expected| expected.into_iter().cloned().collect()), "{node}");
        };
        check(node("True", false, json!([])), None);
        check(node("True", false, json!([users])), None);
        check(node("False", false, json!([users])), Some(vec![&users, &not_ready]));
        check(node("Unknown", false, json!([not_ready, users])), Some(vec![&users, &unreachable]));
        check(node("True", false, json!([not_ready])), Some(vec![]));
        check(node("True", true, json!([])), Some(vec![&unschedulable]));
        check(json!({"spec": {}}), Some(vec![&not_ready]));

        // Its pods go if another node is well, counted from now or from when it was said before.
        let leave = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": now.to_string()});
        let silent = |taints: Value| self::taints(&node("Unknown", false, taints), true, Timestamp::from_seconds(1_800_000_100));
        assert_eq!(self::taints(&node("Unknown", false, json!([])), true, now), Some(vec![unreachable.clone(), leave.clone()]));
        assert_eq!(silent(json!([unreachable, leave])), None);
        assert_eq!(self::taints(&node("True", false, json!([users, unreachable, leave])), true, now), Some(vec![users]));
        assert_eq!(self::taints(&json!({"spec": {}}), true, now), Some(vec![not_ready]));
    }

    #[test]
    fn a_silent_node_knows_nothing_of_itself_any_more() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let heartbeat = "2026-01-01T00:00:00Z";
        let node = silence(&json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}]}}), now);
        let ready = &node["status"]["conditions"][0];
        assert_eq!(
            (&ready["status"], &ready["reason"], &ready["lastHeartbeatTime"]),
            (&json!("Unknown"), &json!("NodeStatusUnknown"), &json!(heartbeat))
        );
        assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 4);
        assert_eq!(silence(&node, Timestamp::from_seconds(1_800_000_100)), node);
    }
}
