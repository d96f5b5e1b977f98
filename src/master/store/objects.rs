//! Kubernetes' rules of life for objects, on top of the store: identity at creation, generation, optimistic concurrency,
//! finalizers, graceful deletion. The API server, the controllers and the scheduler all write through here.
//! It knows no request and no user; admission is a function it is given.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Expired, Key, Object, Refused, Store, Watch, Write};
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::api::{defaults, meta, validation};
use crate::base::id;
use crate::base::time::Timestamp;

/// How often a change is worked out anew because another one came first.
const CONFLICTS_MAX: usize = 32;
/// Names tried for one `generateName`. k8s.io/apiserver/pkg/registry/rest: the same 8.
const NAMES_TRIED_MAX: usize = 8;
/// Room for the prefix of a generated name: 63 characters of a label value less the suffix.
const NAME_PREFIX_MAX: usize = 58;
/// Events are forgotten after an hour, as upstream's `--event-ttl` has it, or when more than this many are kept.
const EVENT_TTL: Duration = Duration::from_secs(3600);
const EVENTS_MAX: usize = 4096;
const EVENT_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Events remembered so that a repeated one counts up instead of adding another.
const EVENTS_REMEMBERED_MAX: usize = 512;

/// Judges and completes an object before it is created or changed (`old` is there); told the store it is to enter.
pub type Admit = fn(&Objects, &'static Resource, &mut Value, Option<&Value>) -> Result<(), Status>;

/// What part of an object an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status, if the resource keeps that apart.
    Whole,
    /// The status, annotations and finalizers.
    Status,
    /// Whatever the caller decided, as one writer of that field; the generation stays.
    Subresource,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Propagation,
}

/// What becomes of the dependents. `Default` keeps what finalizers already say, else is as `Background`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Default,
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug)]
pub enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It goes when its finalizers are removed and its grace is over.
    Pending(Arc<Object>),
}

#[derive(Clone, Copy, Debug)]
pub enum EventType {
    Normal,
    Warning,
}

/// A handle; clones share it.
#[derive(Clone)]
pub struct Objects(Rc<Inner>);

struct Inner {
    store: Store,
    admit: Admit,
    /// Hash of what an event says → its name, so that a repeat is counted.
    events: RefCell<HashMap<u64, String>>,
    swept: Cell<Timestamp>,
}

impl Objects {
    pub fn new(store: Store, admit: Admit) -> Self {
        Self(Rc::new(Inner { store, admit, events: RefCell::default(), swept: Cell::new(Timestamp::now()) }))
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.0.store.get(&Key::new(resource, namespace, name)).ok_or_else(|| not_found(resource, name))
    }

    pub fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        self.0.store.list(resource, namespace)
    }

    /// # Errors
    /// As [`Store::watch`].
    pub fn watch(&self, resource: &'static Resource, namespace: Option<&str>, after: u64) -> Result<Watch, Expired> {
        self.0.store.watch(resource, namespace, after)
    }

    /// Creates an object: identity, defaults, admission, validation, then the store.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, whatever admission says, or `InternalError` if the disk will not take it.
    pub async fn create(&self, resource: &'static Resource, namespace: &str, value: Value, dry_run: bool) -> Result<Arc<Object>, Status> {
        let mut value = value;
        let generated = meta::name(&value).is_empty() && !meta::text(&value, "generateName").is_empty();
        let prefix: String = meta::text(&value, "generateName").chars().take(NAME_PREFIX_MAX).collect();
        if generated {
            meta::set(&mut value, "name", format!("{prefix}{}", id::suffix()));
        }
        begin_life(resource, namespace, &mut value);
        complete(resource, &mut value);
        (self.0.admit)(self, resource, &mut value, None)?;
        complete(resource, &mut value);
        judge(resource, &value, None, Part::Whole)?;
        for _ in 0..NAMES_TRIED_MAX {
            let key = Key::new(resource, namespace, meta::name(&value));
            if dry_run {
                return match self.0.store.get(&key) {
                    Some(_) => Err(Status::already_exists(resource.group, resource.plural, &key.name)),
                    None => imagine(key, &value, 0),
                };
            }
            match self.0.store.commit(vec![Write::Create { key, value: value.clone() }]).await {
                Ok(mut objects) => {
                    if is_event(resource) {
                        self.sweep_events().await;
                    }
                    return objects.pop().ok_or_else(|| Status::internal("the store made nothing"));
                }
                Err(Refused::Exists(_)) if generated => meta::set(&mut value, "name", format!("{prefix}{}", id::suffix())),
                Err(refused) => return Err(refusal(resource, meta::name(&value), refused)),
            }
        }
        Err(Status::already_exists(resource.group, resource.plural, meta::name(&value)))
    }

    /// Changes an object: `f` is given the live state and says what it should be; it is asked again when another change came first.
    /// Nothing is written if nothing changes. When the last finalizer of a deleted object goes, the object goes.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if the value that `f` gives carries another resourceVersion or uid than the live one;
    /// `Invalid`; whatever `f` or admission says.
    pub async fn update(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        part: Part,
        dry_run: bool,
        mut f: impl FnMut(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Object>, Status> {
        for _ in 0..CONFLICTS_MAX {
            let live_object = self.get(resource, namespace, name)?;
            let live = live_object.value();
            let mut value = f(&live)?;
            same_object(resource, name, &live, &value)?;
            keep_identity(&live, &mut value);
            keep_other_part(resource, part, &live, &mut value);
            complete(resource, &mut value);
            if part != Part::Status {
                (self.0.admit)(self, resource, &mut value, Some(&live))?;
            }
            if value == live && !may_go(resource, &live) {
                return Ok(live_object);
            }
            if part == Part::Whole && counts_generations(resource) && spec_differs(resource, &live, &value) {
                meta::set(&mut value, "generation", meta::generation(&live) + 1);
            }
            judge(resource, &value, Some(&live), part)?;
            let key = live_object.key.clone();
            if dry_run {
                return imagine(key, &value, live_object.revision);
            }
            let expected_revision = live_object.revision;
            let write = match may_go(resource, &value) {
                true => Write::Delete { key, expected_revision },
                false => Write::Update { key, value, expected_revision },
            };
            match self.0.store.commit(vec![write]).await {
                Ok(mut objects) => return objects.pop().ok_or_else(|| Status::internal("the store made nothing")),
                Err(Refused::Conflict(_)) => continue,
                Err(refused) => return Err(refusal(resource, name, refused)),
            }
        }
        Err(Status::conflict(resource.group, resource.plural, name, "too many others are changing it; please try again"))
    }

    /// Deletes an object, or begins to. <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if a precondition does not hold.
    pub async fn delete(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        for _ in 0..CONFLICTS_MAX {
            let live = self.get(resource, namespace, name)?;
            let value = live.value();
            preconditions(resource, name, &value, options)?;
            let desired = begin_deletion(resource, &value, options, Timestamp::now());
            let key = live.key.clone();
            let expected_revision = live.revision;
            let goes = may_go(resource, &desired);
            if options.dry_run {
                let imagined = imagine(key, &desired, live.revision)?;
                return Ok(if goes { Deleted::Gone(imagined) } else { Deleted::Pending(imagined) });
            }
            if !goes && desired == value {
                return Ok(Deleted::Pending(live));
            }
            let write = match goes {
                true => Write::Delete { key, expected_revision },
                false => Write::Update { key, value: desired, expected_revision },
            };
            match self.0.store.commit(vec![write]).await {
                Ok(mut objects) => {
                    let object = objects.pop().ok_or_else(|| Status::internal("the store made nothing"))?;
                    return Ok(if goes { Deleted::Gone(object) } else { Deleted::Pending(object) });
                }
                Err(Refused::Conflict(_)) => continue,
                Err(refused) => return Err(refusal(resource, name, refused)),
            }
        }
        Err(Status::conflict(resource.group, resource.plural, name, "too many others are changing it; please try again"))
    }

    /// Tells the story: a core/v1 Event about `regarding`. A repeat counts up. One that cannot be written is only logged.
    pub async fn event(&self, regarding: &Value, reason: &str, message: &str, kind: EventType, component: &str) {
        if let Err(status) = self.try_event(regarding, reason, message, kind, component).await {
            log::warn!("event {reason} of {}: {status}", meta::full_name(regarding));
        }
    }

    async fn try_event(&self, regarding: &Value, reason: &str, message: &str, kind: EventType, component: &str) -> Result<(), Status> {
        let events = schema::resource("", "v1", "events").ok_or_else(Status::no_such_resource)?;
        let namespace = match meta::namespace(regarding) {
            "" => "default",
            namespace => namespace,
        };
        let mut hasher = DefaultHasher::new();
        (meta::uid(regarding), reason, message, component).hash(&mut hasher);
        let hash = hasher.finish();
        let now = Timestamp::now();
        let known = self.0.events.borrow().get(&hash).cloned();
        if let Some(name) = known {
            let count_up = |live: &Value| {
                let mut event = live.clone();
                event["count"] = (live["count"].as_i64().unwrap_or(1) + 1).into();
                event["lastTimestamp"] = now.to_string().into();
                Ok(event)
            };
            match self.update(events, namespace, &name, Part::Whole, false, count_up).await {
                Err(status) if status.is_not_found() => (),
                other => return other.map(drop),
            }
        }
        let name = format!("{}.{:016x}", meta::name(regarding), now.0);
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": meta::api_version(regarding), "kind": meta::kind(regarding), "name": meta::name(regarding),
                "namespace": meta::namespace(regarding), "uid": meta::uid(regarding), "resourceVersion": meta::resource_version(regarding),
            },
            "reason": reason, "message": message, "type": format!("{kind:?}"), "count": 1,
            "source": {"component": component}, "reportingComponent": component,
            "firstTimestamp": now.to_string(), "lastTimestamp": now.to_string(),
        });
        self.create(events, namespace, event, false).await?;
        let mut remembered = self.0.events.borrow_mut();
        if remembered.len() >= EVENTS_REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, name);
        Ok(())
    }

    /// Forgets events that are too old or too many. Only the writing of events calls it, so that an idle cluster does nothing.
    async fn sweep_events(&self) {
        let now = Timestamp::now();
        let Some(events) = schema::resource("", "v1", "events") else { return };
        if now.since(self.0.swept.get()) < EVENT_SWEEP_INTERVAL {
            return;
        }
        self.0.swept.set(now);
        let (mut all, _) = self.list(events, None);
        all.sort_by_key(|event| event.revision);
        let surplus = all.len().saturating_sub(EVENTS_MAX);
        let is_old = |event: &Object| {
            let value = event.value();
            let last = value["lastTimestamp"].as_str().and_then(Timestamp::parse).or(meta::timestamp(&value, "creationTimestamp"));
            last.is_none_or(|last| now.since(last) > EVENT_TTL)
        };
        for (index, event) in all.iter().enumerate() {
            if index < surplus || is_old(event) {
                let write = Write::Delete { key: event.key.clone(), expected_revision: event.revision };
                // A conflict means that it was just counted up: then it is not old.
                let _ = self.0.store.commit(vec![write]).await;
            }
        }
    }
}

fn is_event(resource: &'static Resource) -> bool {
    resource.stored_as().plural == "events" && resource.volatile
}

/// Kinds whose `metadata.generation` upstream leaves unset although they have a spec.
fn counts_generations(resource: &Resource) -> bool {
    !matches!(
        (resource.group, resource.plural),
        ("", "namespaces" | "nodes" | "services" | "persistentvolumes" | "persistentvolumeclaims" | "resourcequotas" | "limitranges")
            | ("coordination.k8s.io", "leases")
    )
}

fn spec_differs(resource: &Resource, live: &Value, value: &Value) -> bool {
    let annotations = |object: &Value| object["metadata"]["annotations"].clone();
    let also_annotations = resource.group == "apps" && resource.plural == "deployments";
    live["spec"] != value["spec"] || also_annotations && annotations(live) != annotations(value)
}

fn begin_life(resource: &'static Resource, namespace: &str, value: &mut Value) {
    let storage = resource.stored_as();
    let api_version = match storage.group {
        "" => storage.version.to_owned(),
        group => format!("{group}/{}", storage.version),
    };
    value["apiVersion"] = api_version.into();
    value["kind"] = storage.kind.into();
    let has_spec = value.get("spec").is_some_and(Value::is_object);
    let metadata = meta::metadata_mut(value);
    for field in ["selfLink", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), id::uid().into());
    metadata.insert("creationTimestamp".into(), Timestamp::now().to_string().into());
    match namespace {
        "" => metadata.remove("namespace"),
        namespace => metadata.insert("namespace".into(), namespace.into()),
    };
    if has_spec && counts_generations(storage) {
        metadata.insert("generation".into(), 1.into());
    }
    if storage.subresource("status").is_some() {
        value.as_object_mut().expect("metadata was set on it just above").remove("status");
    }
}

fn complete(resource: &'static Resource, value: &mut Value) {
    defaults::apply(resource.stored_as().schema(), value);
}

/// What may be changed through a subresource its one writer answers for; its metadata is judged all the same.
fn judge(resource: &'static Resource, value: &Value, live: Option<&Value>, part: Part) -> Result<(), Status> {
    let storage = resource.stored_as();
    let causes = match part {
        Part::Whole => validation::object(storage, value, live),
        Part::Status | Part::Subresource => validation::subresource(storage, "status", value, live),
    };
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(storage.group, storage.kind, meta::name(value), causes)),
    }
}

fn same_object(resource: &Resource, name: &str, live: &Value, value: &Value) -> Result<(), Status> {
    let differs = |field| {
        let given = meta::text(value, field);
        !given.is_empty() && given != meta::text(live, field)
    };
    if differs("uid") {
        let why = format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", meta::uid(value), meta::uid(live));
        return Err(Status::conflict(resource.group, resource.plural, name, why));
    }
    if differs("resourceVersion") {
        let why = Status::MODIFIED;
        return Err(Status::conflict(resource.group, resource.plural, name, why));
    }
    Ok(())
}

/// Fields of `metadata` that only the system writes.
fn keep_identity(live: &Value, value: &mut Value) {
    for field in ["apiVersion", "kind"] {
        value[field] = live[field].clone();
    }
    let metadata = meta::metadata_mut(value);
    for field in [
        "name",
        "generateName",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        match live["metadata"].get(field) {
            Some(kept) => metadata.insert(field.into(), kept.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("selfLink");
}

fn keep_other_part(resource: &'static Resource, part: Part, live: &Value, value: &mut Value) {
    if resource.stored_as().subresource("status").is_none() {
        return;
    }
    match part {
        Part::Subresource => (),
        Part::Whole => keep(value, live, "status"),
        Part::Status => {
            let mut kept = Map::new();
            for (field, content) in live.as_object().into_iter().flatten() {
                if field != "status" && field != "metadata" {
                    kept.insert(field.clone(), content.clone());
                }
            }
            let (mut metadata, status) = (value["metadata"].take(), value.get("status").cloned());
            for field in ["labels", "ownerReferences"] {
                keep(&mut metadata, &live["metadata"], field);
            }
            kept.insert("metadata".into(), metadata);
            kept.extend(status.map(|status| ("status".to_owned(), status)));
            *value = Value::Object(kept);
        }
    }
}

fn keep(value: &mut Value, live: &Value, field: &str) {
    if let Some(map) = value.as_object_mut() {
        match live.get(field) {
            Some(kept) => map.insert(field.into(), kept.clone()),
            None => map.remove(field),
        };
    }
}

/// Whether nothing holds a deleted object back any more.
fn may_go(resource: &'static Resource, value: &Value) -> bool {
    let storage = resource.stored_as();
    let held_by_spec = storage.group.is_empty()
        && storage.plural == "namespaces"
        && value["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    let graceful = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() > 0;
    meta::is_deleting(value) && !graceful && !held_by_spec && meta::finalizers(value).next().is_none()
}

fn preconditions(resource: &Resource, name: &str, live: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let check = |what: &str, wanted: &Option<String>, actual: &str| match wanted {
        Some(wanted) if wanted != actual => Err(Status::conflict(
            resource.group,
            resource.plural,
            name,
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}"),
        )),
        _ => Ok(()),
    };
    check("UID", &options.uid, meta::uid(live))?;
    check("ResourceVersion", &options.resource_version, meta::resource_version(live))
}

/// What the object looks like once its deletion has begun; pure.
fn begin_deletion(resource: &'static Resource, live: &Value, options: &DeleteOptions, now: Timestamp) -> Value {
    let mut value = live.clone();
    match options.propagation {
        Propagation::Default => (),
        Propagation::Background => {
            meta::remove_finalizer(&mut value, meta::FOREGROUND);
            meta::remove_finalizer(&mut value, meta::ORPHAN);
        }
        Propagation::Foreground => {
            meta::remove_finalizer(&mut value, meta::ORPHAN);
            meta::add_finalizer(&mut value, meta::FOREGROUND);
        }
        Propagation::Orphan => {
            meta::remove_finalizer(&mut value, meta::FOREGROUND);
            meta::add_finalizer(&mut value, meta::ORPHAN);
        }
    }
    let grace = grace_seconds(resource, &value, options);
    let running = value["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !meta::is_deleting(&value) || running.is_some_and(|running| grace < running) {
        let started = match (meta::timestamp(live, "deletionTimestamp"), running) {
            (Some(ends), Some(running)) => ends.seconds() - running,
            _ => now.seconds(),
        };
        meta::set(&mut value, "deletionTimestamp", Timestamp::from_seconds(started + grace).to_string());
        meta::set(&mut value, "deletionGracePeriodSeconds", grace);
        if meta::generation(&value) > 0 && !meta::is_deleting(live) {
            meta::set(&mut value, "generation", meta::generation(live) + 1);
        }
    }
    let storage = resource.stored_as();
    if storage.group.is_empty() && storage.plural == "namespaces" {
        value["status"]["phase"] = "Terminating".into();
    }
    value
}

/// Only pods end gracefully: a pod that no node has, or that has ended, goes at once.
/// k8s.io/kubernetes/pkg/registry/core/pod/strategy.go, `CheckGracefulDelete`.
fn grace_seconds(resource: &'static Resource, value: &Value, options: &DeleteOptions) -> i64 {
    let storage = resource.stored_as();
    if !storage.group.is_empty() || storage.plural != "pods" {
        return 0;
    }
    let unbound = value["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unbound || ended {
        return 0;
    }
    let grace = options.grace_seconds.or(value["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    // A negative value is upstream's word for one second.
    if grace < 0 { 1 } else { grace }
}

fn imagine(key: Key, value: &Value, revision: u64) -> Result<Arc<Object>, Status> {
    let json = serde_json::to_vec(value).map_err(Status::internal)?;
    Object::read(key, revision, json.into()).map(Arc::new).map_err(|error| Status::bad_request(format!("{error:#}")))
}

fn not_found(resource: &Resource, name: &str) -> Status {
    Status::not_found(resource.group, resource.plural, name)
}

fn refusal(resource: &Resource, name: &str, refused: Refused) -> Status {
    match refused {
        Refused::Exists(_) => Status::already_exists(resource.group, resource.plural, name),
        Refused::Missing(_) => not_found(resource, name),
        Refused::Conflict(_) => Status::conflict(
            resource.group,
            resource.plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        ),
        Refused::Storage(why) => Status::internal(format!("store {} {name}: {why}", resource.plural)),
    }
}
