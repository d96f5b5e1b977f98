//! Gives each pod a node: filter, score, bind, and an event that says why when none fits.
//! It is the only writer of `spec.nodeName`. It keeps count of what nodes have left change by change and never reads all pods for a
//! decision; it wakes when pods or nodes change and on nothing else.

mod cache;
mod filter;
mod neighbours;
mod pod;
mod queue;
mod score;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures_lite::FutureExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use smol::LocalExecutor;

use self::cache::{Cache, Node, Offer};
use self::filter::{Candidate, Refusal};
use self::neighbours::Neighbours;
use self::pod::Pod;
use self::queue::{Queue, Waiting};
use super::recorder::Recorder;
use super::store::objects::Part;
use super::store::{Change, Event, Expired, Key, Object, Objects, Watch};
use crate::api::meta;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::base::time::Timestamp;

/// Bindings and refusals that may be on their way to the disk at a time: one sync serves them all.
const WRITES_MAX: usize = 64;
/// Nodes found fit that suffice for a choice; of a large cluster at least this share is looked at (kube-scheduler
/// `percentageOfNodesToScore`).
const FIT_MIN: usize = 100;
const FIT_SHARE_MIN: usize = 5;
/// Decisions, or objects read at the start, after which others get their turn.
const TURN: usize = 32;

/// Runs the scheduler, for ever. It starts with a full listing, so it may be stopped and started at any point.
pub async fn run(objects: Objects) {
    let executor = LocalExecutor::new();
    let recorder = Rc::new(Recorder::new(objects.clone(), "default-scheduler"));
    let writer = recorder.clone();
    executor.spawn(async move { writer.run().await }).detach();
    let mut scheduler = Scheduler::new(objects, recorder);
    executor
        .run(async {
            loop {
                scheduler.follow().await;
            }
        })
        .await;
}

struct Scheduler {
    objects: Objects,
    recorder: Rc<Recorder>,
    pods: &'static Resource,
    nodes: &'static Resource,
    namespaces: &'static Resource,
    cache: Cache,
    queue: Queue,
    writes: FuturesUnordered<LocalBoxFuture<'static, Written>>,
    /// Where the next round over the nodes begins.
    start: usize,
}

/// What the loop wakes up for.
enum Happening {
    Pod(Result<Arc<Event>, Expired>),
    Node(Result<Arc<Event>, Expired>),
    Written(Written),
    /// A pod's pause is over.
    Due,
}

/// How the write of a decision ended.
struct Written {
    key: Key,
    uid: String,
    /// The node, if the pod was given one.
    node: Option<Rc<str>>,
    result: Result<Arc<Object>, Status>,
}

impl Scheduler {
    fn new(objects: Objects, recorder: Rc<Recorder>) -> Self {
        let resource = |plural| schema::resource("", "v1", plural).expect("the schema table has every built-in resource");
        Self {
            objects,
            recorder,
            pods: resource("pods"),
            nodes: resource("nodes"),
            namespaces: resource("namespaces"),
            cache: Cache::default(),
            queue: Queue::default(),
            writes: FuturesUnordered::new(),
            start: 0,
        }
    }

    /// Lists everything and follows the changes until the log is lost.
    async fn follow(&mut self) {
        let Ok((mut pods, mut nodes)) = self.relist().await else { return };
        let mut turn = 0;
        loop {
            // All that is known goes into the count before the next decision.
            loop {
                match (pods.try_next(), nodes.try_next()) {
                    (Ok(None), Ok(None)) => break,
                    (Ok(pod), Ok(node)) => {
                        pod.iter().for_each(|event| self.take_pod(event));
                        node.iter().for_each(|event| self.take_node(event));
                    }
                    _ => return,
                }
            }
            if self.writes.len() < WRITES_MAX
                && let Some(waiting) = self.queue.next(Instant::now())
            {
                self.place(&waiting);
                turn += 1;
                if turn % TURN == 0 {
                    smol::future::yield_now().await;
                }
                continue;
            }
            match self.happening(&mut pods, &mut nodes).await {
                Happening::Pod(Ok(event)) => self.take_pod(&event),
                Happening::Node(Ok(event)) => self.take_node(&event),
                Happening::Pod(Err(Expired)) | Happening::Node(Err(Expired)) => return,
                Happening::Written(written) => self.take_written(written),
                Happening::Due => (),
            }
        }
    }

    async fn happening(&mut self, pods: &mut Watch, nodes: &mut Watch) -> Happening {
        let writes = &mut self.writes;
        let due = if self.queue.has_ready() { None } else { self.queue.due() };
        let pod = async { Happening::Pod(pods.next().await) };
        let node = async { Happening::Node(nodes.next().await) };
        let written = async {
            match writes.next().await {
                Some(written) => Happening::Written(written),
                None => std::future::pending().await,
            }
        };
        let timer = async {
            match due {
                Some(at) => drop(smol::Timer::at(at).await),
                None => std::future::pending().await,
            }
            Happening::Due
        };
        written.or(pod).or(node).or(timer).await
    }

    async fn relist(&mut self) -> Result<(Watch, Watch), Expired> {
        // What was decided and is not written yet would be counted twice, or not at all.
        while let Some(written) = self.writes.next().await {
            self.take_written(written);
        }
        let (nodes, revision) = self.objects.list(self.nodes, None);
        let node_watch = self.objects.watch(self.nodes, None, revision)?;
        let (pods, revision) = self.objects.list(self.pods, None);
        let pod_watch = self.objects.watch(self.pods, None, revision)?;
        self.cache = Cache::default();
        self.queue = Queue::default();
        for node in &nodes {
            self.set_node(node);
        }
        for (count, pod) in pods.iter().enumerate() {
            self.set_pod(pod);
            if count % TURN == 0 {
                smol::future::yield_now().await;
            }
        }
        Ok((pod_watch, node_watch))
    }

    fn take_node(&mut self, event: &Event) {
        match event.change {
            Change::Added | Change::Modified => self.set_node(&event.object),
            Change::Deleted => {
                self.cache.remove_node(&event.object.key.name);
                self.queue.wake_all();
            }
        }
    }

    fn set_node(&mut self, node: &Object) {
        match Offer::read(&node.json) {
            Ok(offer) => {
                if self.cache.set_node(&node.key.name, offer) {
                    self.queue.wake_all();
                }
            }
            Err(error) => log::warn!("node={} cannot take pods: {error:#}", node.key.name),
        }
    }

    fn take_pod(&mut self, event: &Event) {
        match event.change {
            Change::Added | Change::Modified => self.set_pod(&event.object),
            Change::Deleted => self.drop_pod(&event.object.uid),
        }
    }

    fn drop_pod(&mut self, uid: &str) {
        self.queue.forget(uid);
        if let Some(name) = self.cache.discharge(uid)
            && let Some(node) = self.cache.node(&name)
            && let Some(offer) = &node.offer
        {
            // Only this node has changed, so only who fits on it now can be helped, or who minds where others are.
            self.queue.wake_fitting(|pod| pod.minds_neighbours() || filter::check(&Candidate::new(pod), node, offer).is_ok());
        }
    }

    fn set_pod(&mut self, object: &Arc<Object>) {
        let pod = match Pod::read(object) {
            Ok(pod) => pod,
            Err(error) => {
                log::warn!("pod={}/{} cannot be scheduled: {error:#}", object.key.namespace, object.key.name);
                return;
            }
        };
        if pod.is_finished() {
            self.drop_pod(&object.uid);
        } else if !pod.spec.node_name.is_empty() {
            self.queue.forget(&object.uid);
            self.cache.charge(object, &pod.spec.node_name, &pod);
            self.queue.wake_minding();
        } else if !pod.is_waiting() {
            self.drop_pod(&object.uid);
        } else if pod.spec.scheduling_gates.is_empty() {
            self.queue.offer(&object.key, &object.uid, pod.spec.priority, pod.metadata.generation);
        } else if !has_condition(&pod, "SchedulingGated", "") {
            self.report(object, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates".to_owned());
        }
    }

    /// Decides for one pod, counts it where it goes, and has that written.
    fn place(&mut self, waiting: &Waiting) {
        let object = self.objects.store().get(&waiting.key).filter(|object| object.uid == waiting.uid);
        let Some((pod, object)) = object.and_then(|object| Some((Pod::read(&object).ok()?, object))) else {
            self.queue.forget(&waiting.uid);
            return;
        };
        if !pod.is_waiting() || !pod.spec.scheduling_gates.is_empty() {
            self.queue.forget(&waiting.uid);
            return;
        }
        match self.choose(&pod) {
            Ok(node) => {
                self.cache.charge(&object, &node, &pod);
                self.queue.wake_minding();
                let (objects, pods, key, uid) = (self.objects.clone(), self.pods, waiting.key.clone(), waiting.uid.clone());
                self.writes.push(Box::pin(async move {
                    let bound = objects.update(pods, &key.namespace, &key.name, Part::Subresource, false, |live| bind(live, &uid, &node));
                    let result = bound.await;
                    Written { key, uid, node: Some(node), result }
                }));
            }
            Err(refusals) => {
                let message = filter::explain(&pod, &refusals);
                if !has_condition(&pod, "Unschedulable", &message) {
                    self.recorder.warning(&object, "FailedScheduling", message.clone());
                    self.report(&object, "Unschedulable", message);
                }
                self.queue.set_stuck(&waiting.uid, Rc::new(pod));
            }
        }
    }

    /// The best node for the pod, or every node's reason against it.
    fn choose(&mut self, pod: &Pod) -> Result<Rc<str>, Vec<Refusal>> {
        let candidate = Candidate::new(pod);
        let neighbours = Neighbours::of(pod, &self.cache, &|namespace| self.namespace_labels(namespace));
        let nodes = self.cache.nodes();
        let enough = fit_enough(self.cache.existing());
        let mut fit: Vec<(&Node, &Offer)> = Vec::new();
        let mut refusals = Vec::new();
        let mut looked = 0;
        for step in 0..nodes.len() {
            let node = &nodes[(self.start + step) % nodes.len()];
            looked = step + 1;
            let Some(offer) = &node.offer else { continue };
            match filter::check(&candidate, node, offer).and_then(|()| neighbours.check(offer)) {
                Ok(()) => fit.push((node, offer)),
                Err(refusal) => refusals.push(refusal),
            }
            if fit.len() == enough {
                break;
            }
        }
        let chosen = score::best(&candidate, &fit).map(|index| fit[index].0.name.clone());
        self.start = (self.start + looked.max(1)) % nodes.len().max(1);
        chosen.ok_or(refusals)
    }

    fn namespace_labels(&self, name: &str) -> BTreeMap<String, String> {
        self.objects.store().get(&Key::new(self.namespaces, "", name)).map(|namespace| namespace.labels.clone()).unwrap_or_default()
    }

    /// Writes the condition that says why the pod has no node.
    fn report(&self, object: &Arc<Object>, reason: &'static str, message: String) {
        let (objects, pods, key, uid) = (self.objects.clone(), self.pods, object.key.clone(), object.uid.clone());
        self.writes.push(Box::pin(async move {
            let written = objects.update(pods, &key.namespace, &key.name, Part::Status, false, |live| {
                let mut desired = live.clone();
                if meta::uid(live) == uid && live["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
                    set_scheduled(&mut desired, false, reason, &message);
                }
                Ok(desired)
            });
            let result = written.await;
            Written { key, uid, node: None, result }
        }));
    }

    fn take_written(&mut self, written: Written) {
        let Written { key, uid, node, result } = written;
        match (node, result) {
            (Some(node), Ok(pod)) => {
                let name = format!("{}/{}", pod.key.namespace, pod.key.name);
                log::info!("pod={name} -> node={node}");
                self.recorder.normal(&pod, "Scheduled", format!("Successfully assigned {name} to {node}"));
            }
            (Some(node), Err(status)) => {
                // It may be gone, or placed by somebody else; whatever it is now, it is not where it was counted.
                self.cache.discharge(&uid);
                if status.is_not_found() || status.is_conflict() {
                    self.queue.forget(&uid);
                    if let Some(pod) = self.objects.store().get(&key).filter(|pod| pod.uid == uid) {
                        self.set_pod(&pod);
                    }
                } else {
                    log::warn!("pod={}/{} could not be bound to {node} and will be retried: {status}", key.namespace, key.name);
                    self.queue.set_failed(&uid);
                }
            }
            (None, Err(status)) if !status.is_not_found() => {
                log::warn!("pod={}/{}: write why it has no node: {status}", key.namespace, key.name);
            }
            (None, _) => (),
        }
    }
}

/// How many fitting nodes are enough for a choice, of so many.
fn fit_enough(nodes: usize) -> usize {
    let share = 50_usize.saturating_sub(nodes / 125).max(FIT_SHARE_MIN);
    (nodes * share / 100).max(FIT_MIN)
}

/// The pod on its node; refused if it is another pod by now, is going, or has a node.
fn bind(live: &Value, uid: &str, node: &str) -> Result<Value, Status> {
    let refuse = |why: &str| Err(Status::conflict("", "pods/binding", meta::name(live), why));
    if meta::uid(live) != uid {
        return refuse("the pod was replaced by another of its name");
    }
    if meta::is_deleting(live) {
        return refuse(&format!("pod {} is being deleted, cannot be assigned to a host", meta::name(live)));
    }
    if let Some(other) = live["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) {
        return refuse(&format!("pod {} is already assigned to node \"{other}\"", meta::name(live)));
    }
    let mut pod = live.clone();
    pod["spec"]["nodeName"] = node.into();
    set_scheduled(&mut pod, true, "", "");
    Ok(pod)
}

fn set_scheduled(pod: &mut Value, scheduled: bool, reason: &str, message: &str) {
    let status = if scheduled { "True" } else { "False" };
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().expect("it was made an array just above");
    let before = conditions.iter().position(|each| each["type"] == "PodScheduled");
    let kept = before.map(|index| conditions.remove(index)).filter(|before| before["status"] == status);
    let since = kept.and_then(|before| before["lastTransitionTime"].as_str().map(str::to_owned));
    let mut condition = json!({"type": "PodScheduled", "status": status});
    condition["lastTransitionTime"] = since.unwrap_or_else(|| Timestamp::now().to_string()).into();
    if !reason.is_empty() {
        condition["reason"] = reason.into();
        condition["message"] = message.into();
    }
    conditions.push(condition);
}

/// Whether the pod says already that it has no node for this reason; an empty message stands for any.
fn has_condition(pod: &Pod, reason: &str, message: &str) -> bool {
    let is_same = |each: &&crate::api::workloads::Condition| each.kind == "PodScheduled" && each.status == "False" && each.reason == reason;
    pod.status.conditions.iter().find(is_same).is_some_and(|each| message.is_empty() || each.message == message)
}

#[cfg(test)]
mod tests;
