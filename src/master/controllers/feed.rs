//! What all controllers know in common: one cursor on the store's log, and from it who owns whom.
//! It keeps no copy of the objects - it shares the store's - and it can be brought up to the newest revision at any moment,
//! so that a controller decides on what is, not on what a slow watch has told it so far.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;

use crate::api::schema::{self, Resource};
use crate::api::workloads::OwnerReference;
use crate::master::store::{Change, Event, Object, Objects, Watch};

/// What a controller is told. It may lose any of it: a relist tells of every object again.
pub struct Notice<'a> {
    pub object: &'a Arc<Object>,
    /// `None`: the log was lost, or this is the start, and here is each object as it is now.
    pub change: Option<Change>,
    /// The state before the change.
    pub previous: Option<&'a Arc<Object>>,
    pub owners: &'a [OwnerReference],
    /// Who owned it before the change.
    pub previous_owners: &'a [OwnerReference],
}

impl Notice<'_> {
    pub fn is(&self, resource: &'static Resource) -> bool {
        std::ptr::eq(self.object.key.resource, resource)
    }

    pub fn is_deleted(&self) -> bool {
        self.change == Some(Change::Deleted)
    }

    /// The managing owner of this kind, now and, if that was another one, before.
    pub fn controllers(&self, group: &str, kind: &str) -> impl Iterator<Item = &OwnerReference> {
        let managing = |owners: &'_ [OwnerReference]| owners.iter().position(|owner| owner.controller && is_of(owner, group, kind));
        let now = managing(self.owners).map(|index| &self.owners[index]);
        let before = managing(self.previous_owners).map(|index| &self.previous_owners[index]);
        now.into_iter().chain(before.filter(move |before| now.is_none_or(|now| now.uid != before.uid)))
    }

    pub fn has_controller(&self) -> bool {
        self.owners.iter().any(|owner| owner.controller)
    }
}

/// Whether a reference is to this group and kind, whatever the version.
pub fn is_of(owner: &OwnerReference, group: &str, kind: &str) -> bool {
    owner.kind == kind && group_of(&owner.api_version) == group
}

/// The group of an `apiVersion`; empty for core.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

type Listener = Box<dyn Fn(&Notice, &Index)>;

pub struct Feed {
    objects: Objects,
    state: RefCell<State>,
    listeners: RefCell<Vec<Listener>>,
}

struct State {
    /// `None` until the first listing and after the log was lost.
    watch: Option<Watch>,
    seen: u64,
    index: Index,
}

impl Feed {
    pub fn new(objects: Objects) -> Rc<Self> {
        let state = State { watch: None, seen: 0, index: Index::default() };
        Rc::new(Self { objects, state: RefCell::new(state), listeners: RefCell::default() })
    }

    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Adds one who is told of every change; it may add keys to a queue, and must not call back.
    pub fn listen(&self, listener: impl Fn(&Notice, &Index) + 'static) {
        self.listeners.borrow_mut().push(Box::new(listener));
    }

    /// Reads the log to its end. Afterwards the index is that of the store's newest revision.
    pub fn catch_up(&self) {
        let mut state = self.state.borrow_mut();
        loop {
            let next = state.watch.as_mut().map(Watch::try_next);
            match next {
                Some(Ok(Some(event))) => {
                    state.seen = event.revision;
                    self.take(&event, &mut state.index);
                }
                Some(Ok(None)) => return,
                Some(Err(_)) | None => self.relist(&mut state),
            }
        }
    }

    fn relist(&self, state: &mut State) {
        // The cursor first: what changes during the listing is told twice, and nothing is missed.
        let store = self.objects.store();
        state.seen = store.revision();
        state.watch = store.watch_all(state.seen).ok();
        state.index = Index::default();
        let mut all = Vec::new();
        for resource in schema::resources().filter(|resource| resource.is_stored() && std::ptr::eq(resource.stored_as(), *resource)) {
            all.append(&mut store.list(resource, None).0);
        }
        let owned: Vec<Vec<OwnerReference>> = all.iter().map(|object| owners(object)).collect();
        for (object, owners) in all.iter().zip(&owned) {
            state.index.put(object, owners);
        }
        for (object, owners) in all.iter().zip(&owned) {
            self.tell(&Notice { object, change: None, previous: None, owners, previous_owners: owners }, &state.index);
        }
    }

    fn take(&self, event: &Event, index: &mut Index) {
        let object = &event.object;
        let owners = owners(object);
        let previous_owners = match &event.previous {
            Some(previous) => self::owners(previous),
            None => Vec::new(),
        };
        if let Some(previous) = &event.previous {
            index.remove(previous, &previous_owners);
        }
        match event.change {
            Change::Added | Change::Modified => index.put(object, &owners),
            Change::Deleted => index.remove(object, &owners),
        }
        let notice = Notice {
            object,
            change: Some(event.change),
            previous: event.previous.as_ref(),
            owners: &owners,
            previous_owners: &previous_owners,
        };
        self.tell(&notice, index);
    }

    fn tell(&self, notice: &Notice, index: &Index) {
        for listener in self.listeners.borrow().iter() {
            listener(notice, index);
        }
    }

    /// Looks something up in the index as of now.
    pub fn look<T>(&self, ask: impl FnOnce(&Index) -> T) -> T {
        self.catch_up();
        ask(&self.state.borrow().index)
    }

    /// Keeps everybody told, for ever.
    pub async fn run(self: Rc<Self>) {
        loop {
            self.catch_up();
            let seen = self.state.borrow().seen;
            // A cursor of its own, because catching up may happen while this one waits.
            if let Ok(mut wake) = self.objects.store().watch_all(seen) {
                // Lost or found: either way there is something to catch up with.
                let _ = wake.next().await;
            }
        }
    }
}

/// Objects in the order of their uids.
type ByUid = Vec<(u128, Arc<Object>)>;

/// Who owns whom, and which pods and ReplicaSets nobody manages.
#[derive(Default)]
pub struct Index {
    /// Owner's uid → the objects that name it, by their own uid.
    dependents: HashMap<u128, ByUid>,
    /// Resource and namespace → objects without a controller, which a selector may adopt.
    unmanaged: HashMap<(&'static str, String), ByUid>,
}

impl Index {
    /// The objects of `resource` that name `uid` as an owner.
    pub fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.dependents.get(&uid_key(uid)).into_iter().flatten().map(|(_, object)| object)
    }

    /// Pods or ReplicaSets of a namespace that have no controller.
    pub fn unmanaged(&self, resource: &'static Resource, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.unmanaged.get(&(resource.plural, namespace.to_owned())).into_iter().flatten().map(|(_, object)| object)
    }

    fn put(&mut self, object: &Arc<Object>, owners: &[OwnerReference]) {
        let uid = uid_key(&object.uid);
        for owner in owners {
            put(self.dependents.entry(uid_key(&owner.uid)).or_default(), uid, object);
        }
        if is_adoptable(object.key.resource) && !owners.iter().any(|owner| owner.controller) {
            let place = (object.key.resource.plural, object.key.namespace.clone());
            put(self.unmanaged.entry(place).or_default(), uid, object);
        }
    }

    fn remove(&mut self, object: &Arc<Object>, owners: &[OwnerReference]) {
        let uid = uid_key(&object.uid);
        for owner in owners {
            remove(&mut self.dependents, &uid_key(&owner.uid), uid);
        }
        if is_adoptable(object.key.resource) && !owners.iter().any(|owner| owner.controller) {
            remove(&mut self.unmanaged, &(object.key.resource.plural, object.key.namespace.clone()), uid);
        }
    }
}

fn put(list: &mut ByUid, uid: u128, object: &Arc<Object>) {
    match list.binary_search_by_key(&uid, |(uid, _)| *uid) {
        Ok(index) => list[index].1 = object.clone(),
        Err(index) => list.insert(index, (uid, object.clone())),
    }
}

fn remove<K: std::hash::Hash + Eq>(lists: &mut HashMap<K, ByUid>, key: &K, uid: u128) {
    if let Some(list) = lists.get_mut(key) {
        if let Ok(index) = list.binary_search_by_key(&uid, |(uid, _)| *uid) {
            list.remove(index);
        }
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

fn is_adoptable(resource: &Resource) -> bool {
    matches!((resource.group, resource.plural), ("", "pods") | ("apps", "replicasets"))
}

/// A uid in 16 bytes. The store makes UUIDs; an ownerReference may name anything, which is hashed.
fn uid_key(uid: &str) -> u128 {
    let hex: String = uid.chars().filter(|each| *each != '-').collect();
    match u128::from_str_radix(&hex, 16) {
        Ok(key) if hex.len() == 32 => key,
        // FNV-1a, 128 bits.
        _ => uid.bytes().fold(0x6c62272e07bb014262b821756295c58d, |hash: u128, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000000001000000000000000000013b)
        }),
    }
}

/// The owners an object names.
pub fn owners(object: &Object) -> Vec<OwnerReference> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Head {
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        owner_references: Vec<OwnerReference>,
    }
    // Most objects have no owner.
    if !contains(&object.json, b"\"ownerReferences\"") {
        return Vec::new();
    }
    object.view::<Head>().map(|head| head.metadata.owner_references).unwrap_or_default()
}

/// Whether a word stands in an object's JSON: much cheaper than reading the object.
pub fn contains(json: &[u8], word: &[u8]) -> bool {
    json.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_become_keys_without_collision() {
        assert_eq!(uid_key("00000000-0000-0000-0000-0000000000ff"), 255);
        assert_ne!(uid_key("not-a-uuid"), uid_key("not-a-uuie"));
        assert_ne!(uid_key(""), uid_key("a"));
    }
}
