//! Keeps as many pods of a template as a ReplicaSet or a ReplicationController asks for.
//! It reads the store itself before it decides, so neither a restart nor a slow watch makes it create a pod twice.

mod plan;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use serde_json::{Value, json};

use self::plan::Op;
use super::adoption::{self, Claimant, Owned};
use super::feed::{Index, Notice};
use super::pace::Pace;
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::status::Status;
use crate::api::workloads::{ObjectMeta, Pod, ReplicaSet};
use crate::master::recorder::Recorder;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

/// Of a turn, for each pod of a set: about four times what it takes to read and count it.
const PACE: Duration = Duration::from_micros(100);

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    /// `replicasets` or `replicationcontrollers`.
    resource: &'static Resource,
    pods: &'static Resource,
    pace: Pace,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>, resource: &'static Resource) -> Rc<Self> {
        let pods = shared.resource("", "v1", "pods");
        let (shared, recorder) = (shared.clone(), recorder.clone());
        let controller = Rc::new(Self { shared: shared.clone(), recorder, resource, pods, pace: Pace::new(PACE), queue: Queue::new() });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.resource) {
            self.queue.add(Name::of(key));
        } else if notice.is(self.pods) {
            for owner in notice.controllers(self.resource.group, self.resource.kind) {
                self.queue.add(Name::new(&key.namespace, &owner.name));
            }
            if !notice.has_controller() && !notice.is_deleted() {
                self.offer(notice.object);
            }
        }
    }

    /// Wakes every set that may want to adopt this pod.
    fn offer(&self, pod: &Object) {
        if pod.labels.is_empty() {
            return;
        }
        for set in self.shared.objects().list(self.resource, Some(&pod.key.namespace)).0 {
            let selector = set.view::<ReplicaSet>().ok().and_then(|set| set.spec.selector);
            if selector.is_some_and(|selector| !selector.is_empty() && selector.matches(&pod.labels)) {
                self.queue.add(Name::of(&set.key));
            }
        }
    }

    async fn pods_of(&self, set: &ReplicaSet) -> anyhow::Result<Vec<Owned<Pod>>> {
        let Some(selector) = set.spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return Ok(Vec::new());
        };
        let api_version = self.resource.api_version();
        let claimant = Claimant { api_version: &api_version, kind: self.resource.kind, metadata: &set.metadata, selector };
        adoption::claim(&self.shared.feed, self.pods, &claimant, |pod: &Pod| &pod.metadata).await
    }

    /// The pods of all sets that have the same owner, for whom it matters which node is crowded.
    fn siblings(&self, set: &ReplicaSet) -> Vec<Pod> {
        let Some(owner) = set.metadata.controller() else { return Vec::new() };
        self.shared.feed.look(|index| {
            let sets = index.dependents_of(&owner.uid).filter(|object| std::ptr::eq(object.key.resource, self.resource));
            let pods = sets.flat_map(|set| index.dependents_of(&set.uid));
            pods.filter(|object| std::ptr::eq(object.key.resource, self.pods)).filter_map(|pod| pod.view().ok()).collect()
        })
    }

    async fn create(&self, object: &Arc<Object>, set: &ReplicaSet, count: usize) -> Result<(), Status> {
        let pod = pod_of(self.resource, set);
        let objects = self.shared.objects();
        let (mut made, mut batch) = (0, 1);
        // Slowly at first: when a quota or an admission rule refuses one pod, hundreds of others need not be tried.
        while made < count {
            let size = batch.min(count - made);
            let creations = (0..size).map(|_| objects.create(self.pods, &set.metadata.namespace, pod.clone(), false));
            let mut failure = None;
            for created in join_all(creations).await {
                match created {
                    Ok(pod) => self.recorder.normal(object, "SuccessfulCreate", format!("Created pod: {}", pod.key.name)),
                    Err(status) => failure = Some(status),
                }
            }
            if let Some(status) = failure {
                if !is_namespace_ending(&status) {
                    self.recorder.warning(object, "FailedCreate", format!("Error creating: {status}"));
                }
                return Err(status);
            }
            made += size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, object: &Arc<Object>, pods: &[Owned<Pod>], chosen: &[usize]) -> Result<(), Status> {
        let objects = self.shared.objects();
        let deletions = chosen.iter().map(|index| async {
            let pod = &pods[*index].object;
            let options = DeleteOptions { uid: Some(pod.uid.clone()), ..DeleteOptions::default() };
            match objects.delete(self.pods, &pod.key.namespace, &pod.key.name, &options).await {
                Ok(_) => self.recorder.normal(object, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)),
                Err(status) if status.is_not_found() => (),
                Err(status) => {
                    self.recorder.warning(object, "FailedDelete", format!("Error deleting: {status}"));
                    return Err(status);
                }
            }
            Ok(())
        });
        join_all(deletions).await.into_iter().collect()
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let key = Key::new(self.resource, &name.namespace, &name.name);
        let Some(object) = objects.store().get(&key) else {
            self.pace.note(name, 0);
            return Ok(None);
        };
        if let Some(wait) = self.pace.wait(name) {
            return Ok(Some(wait));
        }
        let set: ReplicaSet = object.view()?;
        let mut pods = self.pods_of(&set).await?;
        self.pace.note(name, pods.len());
        let views = |pods: &[Owned<Pod>]| pods.iter().map(|pod| pod.view.clone()).collect::<Vec<Pod>>();
        let owned = views(&pods);
        let siblings = if owned.len() as i64 > set.replicas() { self.siblings(&set) } else { Vec::new() };
        let op = plan::plan(&set, &owned, &siblings);
        let acts = op.is_some();
        let done = match op {
            None => Ok(()),
            Some(Op::Create(count)) => self.create(&object, &set, count).await.map_err(|status| ("FailedCreate", status)),
            Some(Op::Delete(chosen)) => self.delete(&object, &pods, &chosen).await.map_err(|status| ("FailedDelete", status)),
        };
        // What was just made and deleted counts already.
        if acts {
            pods = self.pods_of(&set).await?;
        }
        let owned = views(&pods);
        let now = self.shared.now();
        let failure = done.as_ref().err().map(|(reason, status)| (*reason, status.to_string()));
        let status = plan::status(&set, &owned, failure, now);
        if status != set.status {
            let status = serde_json::to_value(&status).context("write the status")?;
            write_status(self.shared.objects(), self.resource, &set.metadata, status).await?;
        }
        match done {
            Err((_, status)) if !is_namespace_ending(&status) => return Err(status.into()),
            _ => (),
        }
        Ok(plan::next_available(&set, &owned, now).map(|at| at.since(now)))
    }
}

/// Writes the status of the object that `metadata` was read from; that it is gone by now is fine.
pub async fn write_status(
    objects: &crate::master::store::Objects,
    resource: &'static Resource,
    metadata: &ObjectMeta,
    status: Value,
) -> Result<(), Status> {
    let written = objects
        .update(resource, &metadata.namespace, &metadata.name, Part::Status, false, |live| {
            let mut desired = live.clone();
            if meta::uid(live) == metadata.uid {
                desired["status"] = status.clone();
            }
            Ok(desired)
        })
        .await;
    match written {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

/// A pod as the set's template has it, owned by the set.
fn pod_of(resource: &'static Resource, set: &ReplicaSet) -> Value {
    let template = &set.spec.template;
    let mut metadata = json!({
        "generateName": format!("{}-", set.metadata.name),
        "namespace": set.metadata.namespace,
        "ownerReferences": [adoption::controller_reference(&resource.api_version(), resource.kind, &set.metadata)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Whether a creation was refused because its namespace is being deleted: then there is nothing to retry and nothing to complain of.
pub fn is_namespace_ending(status: &Status) -> bool {
    status.to_string().contains("because it is being terminated")
}
