//! The garbage collector: deletes what all owners of have gone, in the background, in the foreground (owners last), or orphans it
//! (<https://kubernetes.io/docs/concepts/architecture/garbage-collection/>). It never deletes an object that one living owner still names.

mod plan;

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::Value;

use self::plan::{Dependent, Op, Owner};
use super::adoption::without_owner;
use super::feed::{Index, Notice, contains, group_of, owners};
use super::queue::Queue;
use super::{Loop, Shared};
use crate::api::meta;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::api::workloads::{ObjectMeta, OwnerReference};
use crate::master::recorder::Recorder;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object, Objects};

/// Dependents whose references are changed at a time.
const ORPHANED_AT_A_TIME: usize = 64;

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    queue: Queue<Place>,
}

/// An object of any resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
}

impl Place {
    fn of(key: &Key) -> Self {
        let Resource { group, version, plural, .. } = key.resource;
        Self { group, version, plural, namespace: key.namespace.clone(), name: key.name.clone() }
    }

    fn key(&self) -> Option<Key> {
        Some(Key::new(schema::resource(self.group, self.version, self.plural)?, &self.namespace, &self.name))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}/{}", self.plural, self.namespace, self.name)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Head {
    metadata: ObjectMeta,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self { shared: shared.clone(), recorder: recorder.clone(), queue: Queue::new() });
        let listener = controller.clone();
        shared.feed.listen(move |notice, index| listener.notice(notice, index));
        controller
    }

    fn notice(&self, notice: &Notice, index: &Index) {
        let object = notice.object;
        if notice.is_deleted() {
            for dependent in index.dependents_of(&object.uid) {
                self.queue.add(Place::of(&dependent.key));
            }
            // An owner may have waited for this one.
            self.add_waiting_owners(notice);
            return;
        }
        if notice.owners != notice.previous_owners {
            self.add_waiting_owners(notice);
        }
        let is_collected = finalizes(object);
        let orphaned = || notice.owners.iter().any(|owner| stand(self.shared.objects(), object, owner) != Owner::Solid);
        if is_collected || orphaned() {
            self.queue.add(Place::of(&object.key));
        }
    }

    fn add_waiting_owners(&self, notice: &Notice) {
        for owner in notice.previous_owners.iter().chain(notice.owners) {
            if let Some(owner) = find(self.shared.objects(), notice.object, owner)
                && finalizes(&owner)
            {
                self.queue.add(Place::of(&owner.key));
            }
        }
    }

    fn dependents(&self, uid: &str) -> Vec<(Arc<Object>, Dependent)> {
        let dependents: Vec<Arc<Object>> = self.shared.feed.look(|index| index.dependents_of(uid).cloned().collect());
        let describe = |object: Arc<Object>| {
            let blocks = owners(&object).iter().any(|owner| owner.uid == uid && owner.block_owner_deletion);
            let waiting = is_waiting(&object);
            (object, Dependent { blocks, waiting })
        };
        dependents.into_iter().map(describe).collect()
    }

    async fn apply(&self, object: &Arc<Object>, dependents: &[(Arc<Object>, Dependent)], op: Op) -> Result<(), Status> {
        let objects = self.shared.objects();
        match op {
            Op::DropOwners(uids) => {
                change(objects, object, |live| uids.iter().fold(live, |live, uid| without_owner(&live, uid).unwrap_or(live))).await
            }
            Op::Unblock => {
                change(objects, object, |mut live| {
                    for owner in live["metadata"]["ownerReferences"].as_array_mut().into_iter().flatten() {
                        owner["blockOwnerDeletion"] = false.into();
                    }
                    live
                })
                .await
            }
            Op::Orphan => {
                for some in dependents.chunks(ORPHANED_AT_A_TIME) {
                    let released = some
                        .iter()
                        .map(|(dependent, _)| change(objects, dependent, |live| without_owner(&live, &object.uid).unwrap_or(live)));
                    join_all(released).await.into_iter().collect::<Result<(), Status>>()?;
                }
                change(objects, object, |live| without_finalizer(live, meta::ORPHAN)).await
            }
            Op::Finish => change(objects, object, |live| without_finalizer(live, meta::FOREGROUND)).await,
            Op::VisitDependents => {
                for (dependent, _) in dependents {
                    self.queue.add(Place::of(&dependent.key));
                }
                Ok(())
            }
            Op::Delete(propagation) => {
                let options = DeleteOptions { uid: Some(object.uid.clone()), propagation, ..DeleteOptions::default() };
                let key = &object.key;
                match objects.delete(key.resource, &key.namespace, &key.name, &options).await {
                    Ok(_) => {
                        log::info!("{}={}/{} deleted: its owners are gone", key.resource.singular, key.namespace, key.name);
                        Ok(())
                    }
                    // Another object has the name by now, or none.
                    Err(status) if status.is_not_found() || status.is_conflict() => Ok(()),
                    Err(status) => Err(status),
                }
            }
        }
    }

    /// Whether an owner is named from another namespace, which the API allows and Kubernetes does not honour.
    fn warn_of_foreign_owners(&self, object: &Arc<Object>, metadata: &ObjectMeta) {
        for owner in &metadata.owner_references {
            let namespaced = resource_of(owner).is_some_and(|resource| resource.namespaced);
            let elsewhere = namespaced && find(self.shared.objects(), object, owner).is_none() && !metadata.namespace.is_empty();
            if elsewhere && self.exists_elsewhere(owner) {
                let message = format!(
                    "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
                    owner.api_version, owner.kind, metadata.namespace, owner.name, owner.uid, metadata.namespace
                );
                self.recorder.warning(object, "OwnerRefInvalidNamespace", message);
            }
        }
    }

    fn exists_elsewhere(&self, owner: &OwnerReference) -> bool {
        let Some(resource) = resource_of(owner) else { return false };
        self.shared.objects().list(resource, None).0.iter().any(|object| object.uid == owner.uid)
    }
}

impl Loop for Controller {
    type Key = Place;
    const NAME: &'static str = "garbage";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Place> {
        &self.queue
    }

    async fn sync(&self, place: &Place) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(object) = place.key().and_then(|key| objects.store().get(&key)) else { return Ok(None) };
        let Head { metadata } = object.view()?;
        let owners: Vec<(String, Owner)> =
            metadata.owner_references.iter().map(|owner| (owner.uid.clone(), stand(objects, &object, owner))).collect();
        let dependents = self.dependents(&object.uid);
        let ops = plan::plan(&metadata, &owners, &dependents.iter().map(|(_, dependent)| *dependent).collect::<Vec<_>>());
        if ops.iter().any(|op| matches!(op, Op::Delete(_) | Op::DropOwners(_))) {
            self.warn_of_foreign_owners(&object, &metadata);
        }
        for op in ops {
            self.apply(&object, &dependents, op).await?;
        }
        Ok(None)
    }
}

fn resource_of(owner: &OwnerReference) -> Option<&'static Resource> {
    let group = group_of(&owner.api_version);
    let served = schema::resources().find(|resource| resource.group == group && resource.kind == owner.kind && resource.is_stored())?;
    Some(served.stored_as())
}

/// The owner that a reference of `object` names, if it exists under that uid. Namespaced owners are in the object's own namespace.
fn find(objects: &Objects, object: &Object, owner: &OwnerReference) -> Option<Arc<Object>> {
    let resource = resource_of(owner)?;
    let namespace = if resource.namespaced { object.key.namespace.as_str() } else { "" };
    let found = objects.store().get(&Key::new(resource, namespace, &owner.name))?;
    (found.uid == owner.uid).then_some(found)
}

fn stand(objects: &Objects, object: &Object, owner: &OwnerReference) -> Owner {
    let Some(resource) = resource_of(owner) else { return Owner::Unknown };
    if resource.namespaced && object.key.namespace.is_empty() {
        return Owner::Unknown;
    }
    match find(objects, object, owner) {
        None => Owner::Absent,
        Some(owner) if is_waiting(&owner) => Owner::Waiting,
        Some(_) => Owner::Solid,
    }
}

/// Whether the object is being deleted in the foreground.
fn is_waiting(object: &Object) -> bool {
    is_ending_with(object, &[meta::FOREGROUND])
}

/// Whether the object is being deleted and waits for the garbage collector.
fn finalizes(object: &Object) -> bool {
    is_ending_with(object, &[meta::FOREGROUND, meta::ORPHAN])
}

fn is_ending_with(object: &Object, finalizers: &[&str]) -> bool {
    // Few objects are being deleted; the word is found faster than the object is read.
    if !contains(&object.json, b"\"deletionTimestamp\"") {
        return false;
    }
    let metadata = object.view::<Head>().unwrap_or_default().metadata;
    metadata.is_deleting() && metadata.finalizers.iter().any(|each| finalizers.contains(&each.as_str()))
}

fn without_finalizer(mut live: Value, finalizer: &str) -> Value {
    meta::remove_finalizer(&mut live, finalizer);
    live
}

/// Writes a change to an object if it is still the same one.
async fn change(objects: &Objects, object: &Object, change: impl Fn(Value) -> Value) -> Result<(), Status> {
    let key = &object.key;
    let written = objects
        .update(key.resource, &key.namespace, &key.name, Part::Whole, false, |live| {
            let same = meta::uid(live) == object.uid;
            Ok(if same { change(live.clone()) } else { live.clone() })
        })
        .await;
    match written {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}
