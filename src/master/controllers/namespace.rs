//! Empties a namespace that is being deleted, pods first, and lets it go when nothing is left
//! (<https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/>). It never deletes a namespace by itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::base::time::Timestamp;
use crate::master::store::objects::{DeleteOptions, Part, Propagation};
use crate::master::store::{Key, Object};

/// Objects deleted at a time.
const DELETED_AT_A_TIME: usize = 64;
/// The finalizer in `spec.finalizers` that this controller answers for.
const FINALIZER: &str = "kubernetes";

pub struct Controller {
    shared: Rc<Shared>,
    namespaces: &'static Resource,
    pods: &'static Resource,
    /// Namespaces being deleted: the end of an object in one of them is news.
    ending: RefCell<HashSet<String>>,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>) -> Rc<Self> {
        let controller = Rc::new(Self {
            namespaces: shared.resource("", "v1", "namespaces"),
            pods: shared.resource("", "v1", "pods"),
            shared: shared.clone(),
            ending: RefCell::default(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.namespaces) {
            if notice.is_deleted() {
                self.ending.borrow_mut().remove(&key.name);
            } else if meta::is_deleting(&notice.object.value()) {
                self.ending.borrow_mut().insert(key.name.clone());
                self.queue.add(Name::of(key));
            }
        } else if !key.namespace.is_empty() && self.ending.borrow().contains(&key.namespace) {
            // One that came late must go as well as one that went may have been the last.
            self.queue.add(Name::new("", &key.namespace));
        }
    }

    /// Deletes all that is left of a resource; returns what is left after that.
    async fn delete_all(&self, resource: &'static Resource, namespace: &str) -> Result<Vec<Arc<Object>>, Status> {
        let objects = self.shared.objects();
        let (all, _) = objects.list(resource, Some(namespace));
        for some in all.chunks(DELETED_AT_A_TIME) {
            let deletions = some.iter().map(|object| async {
                let options = DeleteOptions { propagation: Propagation::Background, ..DeleteOptions::default() };
                match objects.delete(resource, namespace, &object.key.name, &options).await {
                    Err(status) if !status.is_not_found() => Err(status),
                    _ => Ok(()),
                }
            });
            join_all(deletions).await.into_iter().collect::<Result<(), Status>>()?;
        }
        Ok(objects.list(resource, Some(namespace)).0)
    }

    /// Takes one round; returns what is still there.
    async fn empty(&self, namespace: &str) -> Result<Vec<Arc<Object>>, Status> {
        // Pods end while the Secrets, policies and volumes that they rely on are still there.
        let pods = self.delete_all(self.pods, namespace).await?;
        if !pods.is_empty() {
            return Ok(pods);
        }
        let mut left = Vec::new();
        let stored =
            |resource: &&'static Resource| resource.namespaced && resource.is_stored() && std::ptr::eq(resource.stored_as(), *resource);
        for resource in schema::resources().filter(stored) {
            left.append(&mut self.delete_all(resource, namespace).await?);
        }
        Ok(left)
    }

    async fn finish(&self, namespace: &str) -> Result<(), Status> {
        let finished = self
            .shared
            .objects()
            .update(self.namespaces, "", namespace, Part::Subresource, false, |live| {
                let mut desired = live.clone();
                if let Some(finalizers) = desired["spec"]["finalizers"].as_array_mut() {
                    finalizers.retain(|each| each != FINALIZER);
                }
                Ok(desired)
            })
            .await;
        match finished {
            Err(status) if !status.is_not_found() => Err(status),
            Err(_) => Ok(()),
            Ok(_) => {
                log::info!("namespace={namespace} emptied");
                Ok(())
            }
        }
    }

    async fn report(&self, namespace: &str, left: &[Arc<Object>]) -> Result<(), Status> {
        let desired = conditions(left);
        let now = self.shared.now();
        self.shared
            .objects()
            .update(self.namespaces, "", namespace, Part::Status, false, |live| {
                let mut value = live.clone();
                value["status"]["conditions"] = merged(&live["status"]["conditions"], &desired, now);
                Ok(value)
            })
            .await
            .map(drop)
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let key = Key::new(self.namespaces, "", &name.name);
        let Some(object) = self.shared.objects().store().get(&key) else { return Ok(None) };
        let namespace = object.value();
        let ours = namespace["spec"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|each| each == FINALIZER));
        if !meta::is_deleting(&namespace) || !ours {
            return Ok(None);
        }
        let left = self.empty(&name.name).await?;
        if left.is_empty() {
            self.finish(&name.name).await?;
        } else {
            self.report(&name.name, &left).await?;
        }
        Ok(None)
    }
}

/// Type, status, reason and message of each condition, in upstream's words.
fn conditions(left: &[Arc<Object>]) -> [(&'static str, bool, &'static str, String); 5] {
    let mut resources: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for object in left {
        let Resource { plural, group, .. } = object.key.resource;
        *resources.entry(format!("{plural}.{group}")).or_default() += 1;
        for finalizer in meta::finalizers(&object.value()) {
            *finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
    }
    let listed = |counts: &BTreeMap<String, usize>, between: &str| {
        counts.iter().map(|(name, count)| format!("{name} {between} {count} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let remaining = match resources.is_empty() {
        true => (false, "ContentRemoved", "All content successfully removed".to_owned()),
        false => (true, "SomeResourcesRemain", format!("Some resources are remaining: {}", listed(&resources, "has"))),
    };
    let finalizing = match finalizers.is_empty() {
        true => (false, "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned()),
        false => {
            (true, "SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {}", listed(&finalizers, "in")))
        }
    };
    let fine = |kind, reason, message: &str| (kind, false, reason, message.to_owned());
    [
        fine("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
        fine("NamespaceDeletionGroupVersionParsingFailure", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
        fine("NamespaceDeletionContentFailure", "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ("NamespaceContentRemaining", remaining.0, remaining.1, remaining.2),
        ("NamespaceFinalizersRemaining", finalizing.0, finalizing.1, finalizing.2),
    ]
}

/// The conditions as they should be; the time of transition of those that stay is kept.
fn merged(observed: &Value, desired: &[(&'static str, bool, &'static str, String)], now: Timestamp) -> Value {
    let condition = |(kind, holds, reason, message): &(&'static str, bool, &'static str, String)| {
        let status = if *holds { "True" } else { "False" };
        let before = observed.as_array().into_iter().flatten().find(|each| each["type"] == *kind && each["status"] == status);
        let since = before.and_then(|before| before["lastTransitionTime"].as_str()).map_or_else(|| now.to_string(), str::to_owned);
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    };
    desired.iter().map(condition).collect()
}
