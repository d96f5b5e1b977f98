//! Revisioned objects: all of them in memory, the lasting ones also on disk, every change on a watchable log.
//! One thread writes; it answers only after the change is synced, and nobody sees a change before that.
//! It knows no kind of object beyond `metadata`, but for the node that a pod is on, and it never edits one but for its resourceVersion.
//!
//! A write goes: `commit` → bounded queue → `writer` thread takes all that wait, checks each against memory,
//! gives it the next revision → one disk transaction for all of them → memory, log, answers, wake-ups.

mod disk;
pub mod dump;
pub mod objects;
mod table;
mod watch;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, RwLock};

use anyhow::Context;
use event_listener::Event as Wake;
use serde::Deserialize;
use serde_json::Value;

use self::table::Table;
use crate::api::schema::Resource;

pub use disk::is_open_elsewhere;
pub use objects::Objects;
pub use watch::Watch;

/// Writes that may wait for the writer; a further one waits before it is queued.
const WRITES_QUEUED_MAX: usize = 1024;

/// Names one object. The resource is the row under which it is stored, whatever version it was asked by.
#[derive(Clone, Debug)]
pub struct Key {
    pub resource: &'static Resource,
    /// Empty for objects of the cluster.
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Self { resource: resource.stored_as(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn place(&self) -> Place {
        (self.namespace.clone(), self.name.clone())
    }
}

/// One state of one object; never changed, only replaced.
#[derive(Debug)]
pub struct Object {
    pub key: Key,
    /// Of the write that made this state; for a deleted object, of the deletion.
    pub revision: u64,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// Of a pod: `spec.nodeName`. Empty for one that has no node, and for all that is no pod.
    pub node: Box<str>,
    /// As Kubernetes writes it, resourceVersion included.
    pub json: Box<[u8]>,
}

impl Object {
    /// Reads an object from its JSON.
    ///
    /// # Errors
    /// If it is no object with `metadata`, or `metadata` has fields of the wrong type.
    fn read(key: Key, revision: u64, json: Box<[u8]>) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct PodHead {
            metadata: Metadata,
            #[serde(default)]
            spec: PodSpec,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            uid: String,
            #[serde(default)]
            labels: Option<BTreeMap<String, String>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct PodSpec {
            node_name: Box<str>,
        }
        let is_pod = key.resource.group.is_empty() && key.resource.plural == "pods";
        let (metadata, node) = match is_pod {
            true => serde_json::from_slice(&json).map(|head: PodHead| (head.metadata, head.spec.node_name)),
            false => serde_json::from_slice(&json).map(|head: Head| (head.metadata, Box::default())),
        }
        .context("read metadata")?;
        Ok(Self { key, revision, uid: metadata.uid, labels: metadata.labels.unwrap_or_default(), node, json })
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the store keeps only what it has serialized or read itself")
    }

    /// A typed view of the object.
    ///
    /// # Errors
    /// If a field that the view reads has another type.
    pub fn view<T: serde::de::DeserializeOwned>(&self) -> anyhow::Result<T> {
        let Key { resource, namespace, name } = &self.key;
        serde_json::from_slice(&self.json).with_context(|| format!("read {} {namespace}/{name}", resource.plural))
    }

    fn bytes(&self) -> usize {
        self.json.len() + self.key.name.len() + 256
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change on the log.
#[derive(Debug)]
pub struct Event {
    pub revision: u64,
    pub change: Change,
    /// The state after the change; for a deletion the last state, with the deletion's revision.
    pub object: Arc<Object>,
    /// The state before it, so that a selector can tell who enters and who leaves.
    pub previous: Option<Arc<Object>>,
}

/// One change to make. A revision that is given must be the object's newest, or the whole commit is refused.
#[derive(Debug)]
pub enum Write {
    Create { key: Key, value: Value },
    Update { key: Key, value: Value, expected_revision: u64 },
    Delete { key: Key, expected_revision: u64 },
}

impl Write {
    pub fn key(&self) -> &Key {
        let (Write::Create { key, .. } | Write::Update { key, .. } | Write::Delete { key, .. }) = self;
        key
    }
}

/// Why a commit changed nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Exists(usize),
    Missing(usize),
    /// Write number `.0` of the commit named a revision that is not the newest any more.
    Conflict(usize),
    /// The disk would not take it; the text says why.
    Storage(String),
}

/// The revision asked for is no longer on the log: list again. Kubernetes' 410 `Expired`.
#[derive(Debug, PartialEq, Eq)]
pub struct Expired;

type Place = (String, String);

struct State {
    revision: u64,
    /// Below this no revision can be resumed from: the log of the time before the start is not kept.
    started: u64,
    tables: HashMap<(&'static str, &'static str), Table>,
}

impl State {
    fn empty() -> Self {
        Self { revision: 0, started: 0, tables: HashMap::new() }
    }

    fn table(&self, resource: &'static Resource) -> Option<&Table> {
        self.tables.get(&(resource.group, resource.plural))
    }

    fn table_mut(&mut self, resource: &'static Resource) -> &mut Table {
        let started = self.started;
        self.tables.entry((resource.group, resource.plural)).or_insert_with(|| Table::new(started))
    }
}

struct Shared {
    state: RwLock<State>,
    /// Wakes those who follow all resources at once.
    wake: Wake,
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().expect("no holder of this lock panics")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().expect("no holder of this lock panics")
    }
}

/// A handle on the store; clones share it. The last clone to go ends the writer after its queue is written.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: smol::channel::Sender<writer::Request>,
}

impl Store {
    /// Opens the database at `path`, or a store that forgets everything at its end.
    ///
    /// # Errors
    /// If the database cannot be read, or belongs to another process.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let mut state = State::empty();
        let disk = match path {
            Some(path) => Some(disk::Disk::open(path, &mut state).with_context(|| format!("open the store {}", path.display()))?),
            None => None,
        };
        state.started = state.revision;
        for table in state.tables.values_mut() {
            table.begin(state.started);
        }
        let shared = Arc::new(Shared { state: RwLock::new(state), wake: Wake::new() });
        let (writer, requests) = smol::channel::bounded(WRITES_QUEUED_MAX);
        let state = shared.clone();
        std::thread::Builder::new()
            .name("store".into())
            .stack_size(256 << 10)
            .spawn(move || writer::run(&state, disk, &requests))
            .context("start the store's writer")?;
        Ok(Self { shared, writer })
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.shared.read().table(key.resource)?.objects.get(&key.place()).cloned()
    }

    /// All objects of a resource, of one namespace or of all, by namespace and name, with the revision they are of.
    pub fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let state = self.shared.read();
        let objects = match (state.table(resource.stored_as()), namespace) {
            (None, _) => Vec::new(),
            (Some(table), None) => table.objects.values().cloned().collect(),
            (Some(table), Some(namespace)) => table
                .objects
                .range((namespace.to_owned(), String::new())..)
                .take_while(|((of, _), _)| of == namespace)
                .map(|(_, object)| object.clone())
                .collect(),
        };
        (objects, state.revision)
    }

    /// How many objects of a resource there are.
    pub fn count(&self, resource: &'static Resource) -> usize {
        self.shared.read().table(resource.stored_as()).map_or(0, |table| table.objects.len())
    }

    /// The pods of one node, in the order of [`Store::list`].
    pub fn list_on_node(&self, resource: &'static Resource, namespace: Option<&str>, node: &str) -> (Vec<Arc<Object>>, u64) {
        let state = self.shared.read();
        let mut objects = state.table(resource.stored_as()).map(|table| table.on_node(node).to_vec()).unwrap_or_default();
        if let Some(namespace) = namespace {
            objects.retain(|object| object.key.namespace == namespace);
        }
        (objects, state.revision)
    }

    pub fn revision(&self) -> u64 {
        self.shared.read().revision
    }

    /// Changes of one resource after revision `after`, in order and without a gap.
    ///
    /// # Errors
    /// [`Expired`] if some of them are no longer on the log.
    pub fn watch(&self, resource: &'static Resource, namespace: Option<&str>, after: u64) -> Result<Watch, Expired> {
        Watch::new(self.shared.clone(), Some(resource.stored_as()), namespace, None, after)
    }

    /// Changes of the pods of one node, those included that come to it or leave it: what becomes of others wakes nobody.
    ///
    /// # Errors
    /// [`Expired`] if some of them are no longer on the log.
    pub fn watch_on_node(&self, resource: &'static Resource, namespace: Option<&str>, node: &str, after: u64) -> Result<Watch, Expired> {
        Watch::new(self.shared.clone(), Some(resource.stored_as()), namespace, Some(node), after)
    }

    /// Changes of every resource but events after revision `after`.
    ///
    /// # Errors
    /// [`Expired`] if some of them are no longer on the log.
    pub fn watch_all(&self, after: u64) -> Result<Watch, Expired> {
        Watch::new(self.shared.clone(), None, None, None, after)
    }

    /// Makes all of `writes` in one step, and answers with the states they made once that is synced to disk.
    /// The store sets `metadata.resourceVersion`; all writes of a commit share one revision each in order.
    ///
    /// # Errors
    /// [`Refused`] tells which write stood in the way; then nothing is changed.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Arc<Object>>, Refused> {
        let (answer, answered) = smol::channel::bounded(1);
        let gone = || Refused::Storage("the store has stopped".into());
        self.writer.send(writer::Request { writes, answer }).await.map_err(|_| gone())?;
        answered.recv().await.unwrap_or_else(|_| Err(gone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema;

    fn config_maps() -> &'static Resource {
        schema::resource("", "v1", "configmaps").unwrap()
    }

    fn leases() -> &'static Resource {
        schema::resource("coordination.k8s.io", "v1", "leases").unwrap()
    }

    fn key(resource: &'static Resource, name: &str) -> Key {
        Key::new(resource, "default", name)
    }

    fn value(name: &str, data: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "data": {"k": data}})
    }

    fn create(resource: &'static Resource, name: &str) -> Write {
        Write::Create { key: key(resource, name), value: value(name, "1") }
    }

    #[test]
    fn commits_are_all_or_nothing() {
        smol::block_on(async {
            let store = Store::open(None).unwrap();
            let made = store.commit(vec![create(config_maps(), "a"), create(config_maps(), "b")]).await.unwrap();
            assert_eq!(made.iter().map(|object| object.revision).collect::<Vec<_>>(), [1, 2]);
            assert_eq!(made[1].value()["metadata"]["resourceVersion"], "2");
            let refused = store.commit(vec![create(config_maps(), "c"), create(config_maps(), "a")]).await.unwrap_err();
            assert_eq!(refused, Refused::Exists(1));
            assert!(store.get(&key(config_maps(), "c")).is_none());
            assert_eq!(store.revision(), 2);
        });
    }

    #[test]
    fn stale_revisions_are_refused() {
        smol::block_on(async {
            let store = Store::open(None).unwrap();
            store.commit(vec![create(config_maps(), "a")]).await.unwrap();
            let update = |expected_revision| Write::Update { key: key(config_maps(), "a"), value: value("a", "2"), expected_revision };
            store.commit(vec![update(1)]).await.unwrap();
            assert_eq!(store.commit(vec![update(1)]).await.unwrap_err(), Refused::Conflict(0));
            let delete = |expected_revision| Write::Delete { key: key(config_maps(), "a"), expected_revision };
            assert_eq!(store.commit(vec![delete(1)]).await.unwrap_err(), Refused::Conflict(0));
            let gone = store.commit(vec![delete(2)]).await.unwrap();
            assert_eq!((gone[0].revision, gone[0].value()["data"]["k"].as_str()), (3, Some("2")));
            assert_eq!(store.commit(vec![delete(3)]).await.unwrap_err(), Refused::Missing(0));
        });
    }

    #[test]
    fn watchers_see_every_change_once_and_in_order() {
        smol::block_on(async {
            let store = Store::open(None).unwrap();
            let mut watch = store.watch(config_maps(), Some("default"), 0).unwrap();
            let mut all = store.watch_all(0).unwrap();
            store.commit(vec![create(config_maps(), "a"), create(leases(), "l")]).await.unwrap();
            store.commit(vec![Write::Delete { key: key(config_maps(), "a"), expected_revision: 1 }]).await.unwrap();
            let first = watch.next().await.unwrap();
            assert_eq!((first.change, first.revision), (Change::Added, 1));
            let second = watch.next().await.unwrap();
            assert_eq!((second.change, second.revision), (Change::Deleted, 3));
            assert!(watch.try_next().unwrap().is_none());
            assert_eq!(watch.revision(), 3);
            let revisions = [all.next().await.unwrap().revision, all.next().await.unwrap().revision, all.next().await.unwrap().revision];
            assert_eq!(revisions, [1, 2, 3]);
            assert_eq!(store.watch(config_maps(), None, 1).unwrap().next().await.unwrap().revision, 3);
        });
    }

    #[test]
    fn watchers_behind_the_log_are_told_to_list_again() {
        smol::block_on(async {
            let store = Store::open(None).unwrap();
            let mut slow = store.watch(config_maps(), None, 0).unwrap();
            let big = "x".repeat(table::LOG_BYTES_MIN / 4);
            for revision in 0..16 {
                let write = match revision {
                    0 => Write::Create { key: key(config_maps(), "a"), value: value("a", &big) },
                    expected_revision => Write::Update { key: key(config_maps(), "a"), value: value("a", &big), expected_revision },
                };
                store.commit(vec![write]).await.unwrap();
            }
            assert_eq!(slow.next().await.unwrap_err(), Expired);
            assert!(store.watch(config_maps(), None, 1).is_err());
            assert!(store.watch(config_maps(), None, 16).is_ok());
        });
    }

    #[test]
    fn who_follows_a_node_hears_of_its_pods_alone_and_loses_none_of_their_changes() {
        smol::block_on(async {
            let store = Store::open(None).unwrap();
            let pods = schema::resource("", "v1", "pods").unwrap();
            let pod = |name: &str, node: &str, fill: &str| {
                let metadata = json!({"name": name, "namespace": "default", "uid": name, "fill": fill});
                json!({"metadata": metadata, "spec": {"nodeName": node}})
            };
            let made = |name: &str, node: &str| Write::Create { key: key(pods, name), value: pod(name, node, "") };
            let names = |node: &str| store.list_on_node(pods, None, node).0.iter().map(|pod| pod.key.name.clone()).collect::<Vec<_>>();
            let mut own = store.watch_on_node(pods, None, "a", 0).unwrap();
            store.commit(vec![made("2", "a"), made("x", "b"), made("1", "a"), made("0", "")]).await.unwrap();
            assert_eq!(names("a"), ["1", "2"]);
            assert_eq!((names("b"), names("c")), (vec!["x".to_owned()], vec![]));
            let heard = [own.next().await.unwrap(), own.next().await.unwrap()];
            assert_eq!(heard.map(|event| event.object.key.name.clone()), ["2", "1"]);
            assert!(own.try_next().unwrap().is_none());

            let bind = Write::Update { key: key(pods, "0"), value: pod("0", "a", ""), expected_revision: 4 };
            store.commit(vec![bind]).await.unwrap();
            assert_eq!(own.next().await.unwrap().previous.as_ref().map(|pod| pod.node.is_empty()), Some(true));

            // Others fill the log until it has forgotten all that was before: this node has lost nothing by it.
            let big = "x".repeat(table::LOG_BYTES_MIN / 2);
            let mut expected_revision = 2;
            for _ in 0..4 {
                let write = Write::Update { key: key(pods, "x"), value: pod("x", "b", &big), expected_revision };
                expected_revision = store.commit(vec![write]).await.unwrap()[0].revision;
            }
            assert!(store.watch(pods, None, 5).is_err());
            assert!(store.watch_on_node(pods, None, "a", 5).is_ok() && store.watch_on_node(pods, None, "a", 3).is_err());
            assert!(own.try_next().unwrap().is_none());
            store.commit(vec![Write::Delete { key: key(pods, "1"), expected_revision: 3 }]).await.unwrap();
            assert_eq!(own.next().await.unwrap().change, Change::Deleted);
            assert_eq!(names("a"), ["0", "2"]);
        });
    }

    #[test]
    fn restarts_keep_objects_and_never_reuse_a_revision() {
        let folder = std::env::temp_dir().join(format!("store-{}", crate::base::id::uid()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("db");
        smol::block_on(async {
            let store = Store::open(Some(&path)).unwrap();
            store.commit(vec![create(config_maps(), "a"), create(leases(), "l")]).await.unwrap();
            let pods = schema::resource("", "v1", "pods").unwrap();
            let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {"nodeName": "a"}});
            store.commit(vec![create(config_maps(), "b"), Write::Create { key: key(pods, "p"), value: pod }]).await.unwrap();
            let last = store.revision();
            drop(store);
            let store = open_when_free(&path);
            assert!(store.revision() >= last);
            let names: Vec<_> = store.list(config_maps(), None).0.iter().map(|object| object.key.name.clone()).collect();
            assert_eq!(names, ["a", "b"]);
            assert!(store.list(leases(), None).0.is_empty());
            assert_eq!(store.watch(config_maps(), None, last - 1).err(), Some(Expired));
            assert_eq!(store.watch_on_node(pods, None, "a", last - 1).err(), Some(Expired), "a node that has pods");
            assert_eq!(store.watch_on_node(pods, None, "b", last - 1).err(), Some(Expired), "and one that has none");
            let made = store.commit(vec![create(config_maps(), "c")]).await.unwrap();
            assert!(made[0].revision > last);
        });
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_dump_makes_the_same_objects_again_behind_all_revisions() {
        let folder = std::env::temp_dir().join(format!("dump-{}", crate::base::id::uid()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, other) = (folder.join("db"), folder.join("other"));
        smol::block_on(async {
            let store = Store::open(Some(&path)).unwrap();
            store.commit(vec![create(config_maps(), "a"), create(leases(), "l"), create(config_maps(), "b")]).await.unwrap();
            assert!(is_open_elsewhere(&path).unwrap());
            let dump: Vec<u8> = store.dump().flatten().collect();
            assert_eq!(dump::check(&dump).unwrap(), dump::Head { revision: 3, objects: 2 });
            let before = store.list(config_maps(), None).0;
            store.commit(vec![create(config_maps(), "later")]).await.unwrap();
            let last = store.revision();

            std::fs::write(&other, "what was there before").unwrap();
            dump::restore(&dump, &other).unwrap();
            assert!(!is_open_elsewhere(&other).unwrap());
            let restored = open_when_free(&other);
            let (after, revision) = restored.list(config_maps(), None);
            assert!(revision > last && restored.list(leases(), None).0.is_empty());
            let states = |objects: &[Arc<Object>]| objects.iter().map(|object| (object.revision, object.value())).collect::<Vec<_>>();
            assert_eq!(states(&after), states(&before));
            assert_eq!(restored.watch(config_maps(), None, last).err(), Some(Expired));

            let lines: Vec<&[u8]> = dump.split_inclusive(|byte| *byte == b'\n').collect();
            let text = String::from_utf8(dump.clone()).unwrap();
            for (broken, why) in [
                (Vec::new(), "first line"),
                (lines[..2].concat(), "it holds 1 objects of 2"),
                (dump[..dump.len() - 9].to_vec(), "read object 2"),
                (text.replace("configmaps", "nosuch").into_bytes(), "does not know its resource"),
            ] {
                let error = format!("{:#}", dump::check(&broken).unwrap_err());
                assert!(error.contains(why), "{why}: {error}");
            }
        });
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// The writer of the store before closes the file when its queue is empty, a moment after the last handle has gone.
    fn open_when_free(path: &Path) -> Store {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match Store::open(Some(path)) {
                Ok(store) => return store,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error:#}"),
            }
        }
    }
}
