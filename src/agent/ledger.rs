//! What this node must know to run its pods with no master to ask: its own network, its pods with how far they came, what those
//! read of ConfigMaps and Secrets, and the cluster's Services and Nodes. Each is written some time after it changed, and not at
//! all while nothing does. It holds no token, and judges nothing: who reads it decides when the master has been away for long enough.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_listener::Event as Wake;
use futures_lite::FutureExt;
use serde_json::{Value, json};
use smol::Timer;
use smol::channel::{Receiver, Sender, bounded};

use super::environment::Source;
use crate::api::meta;
use crate::api::pod::Pod;
use crate::base::{file, task};
use crate::client::cache::{Event, Feed};
use crate::client::{Client, Query, Unreachable};

/// How long a starting agent waits for the master before it goes by what it knew: a site's master boots as slowly as its nodes.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// What changes together is written together.
const DELAY: Duration = Duration::from_secs(1);
/// For this long after the master could not be reached nobody waits for it again.
pub const AWAY: Duration = Duration::from_secs(15);
/// A list is written this long after a change, and the longer the larger it is: a flash bears a kilobyte a second for ever.
const LIST_DELAY: Duration = Duration::from_secs(30);
const LIST_BYTES_PER_SECOND: u64 = 1024;

pub struct Ledger {
    folder: PathBuf,
    /// What is to be written, by path below the folder; None takes a file or folder away.
    pending: RefCell<BTreeMap<PathBuf, Option<Value>>>,
    wake: Wake,
    /// By the pod's uid: what of its object has been noted.
    noted: RefCell<HashMap<String, u64>>,
    away_until: Cell<Option<Instant>>,
}

impl Ledger {
    /// `folder` may be missing yet.
    pub fn open(folder: PathBuf) -> Rc<Self> {
        let ledger = Rc::new(Self {
            folder,
            pending: RefCell::default(),
            wake: Wake::new(),
            noted: RefCell::default(),
            away_until: Cell::new(None),
        });
        let keeper = ledger.clone();
        task::spawn(async move { keeper.keep().await }).detach();
        ledger
    }

    /// Writes what is pending, for ever.
    async fn keep(&self) {
        loop {
            let wake = self.wake.listen();
            if self.pending.borrow().is_empty() {
                wake.await;
            }
            Timer::after(DELAY).await;
            let due = self.pending.take();
            let folder = self.folder.clone();
            smol::unblock(move || {
                for (path, content) in due {
                    if let Err(error) = write(&folder.join(&path), content) {
                        log::error!("ledger: write {}: {error}", path.display());
                    }
                }
            })
            .await;
        }
    }

    pub fn note(&self, path: impl Into<PathBuf>, content: Option<Value>) {
        self.pending.borrow_mut().insert(path.into(), content);
        self.wake.notify(1);
    }

    /// None if it was never noted, or is damaged.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Value> {
        if let Some(pending) = self.pending.borrow().get(path.as_ref()) {
            return pending.clone();
        }
        let path = self.folder.join(path);
        let bytes = fs::read(&path).ok()?;
        serde_json::from_slice(&bytes).inspect_err(|error| log::error!("ledger: read {}: {error}", path.display())).ok()
    }

    /// A pod of this node, as far as it is needed to start it: no status, nothing that changes by itself.
    pub fn note_pod(&self, pod: &Pod, object: &Value) {
        let mut hasher = DefaultHasher::new();
        (pod.metadata.generation, &pod.metadata.labels, &pod.metadata.annotations, &pod.metadata.deletion_timestamp).hash(&mut hasher);
        let hash = hasher.finish();
        if self.noted.borrow_mut().insert(pod.metadata.uid.clone(), hash) == Some(hash) {
            return;
        }
        let mut object = object.clone();
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|field, _| field != "managedFields" && field != "resourceVersion");
        }
        self.note(of_pod(&pod.metadata.uid).join("pod.json"), Some(object));
    }

    /// How far the pod has come.
    pub fn note_status(&self, uid: &str, status: &Value) {
        self.note(of_pod(uid).join("status.json"), Some(status.clone()));
    }

    pub fn status(&self, uid: &str) -> Option<Value> {
        self.read(of_pod(uid).join("status.json"))
    }

    /// A ConfigMap or Secret as the pod read it; None if there was none.
    pub fn note_source(&self, uid: &str, source: &Source, object: Option<&Value>) {
        let kept = object.map(|object| {
            json!({
                "kind": object["kind"], "metadata": {"name": source.name()}, "data": object["data"], "binaryData": object["binaryData"],
            })
        });
        self.note(of_source(uid, source), Some(kept.unwrap_or_default()));
    }

    /// What was noted, which may be that there is none; an outer None if nothing was.
    pub fn source(&self, uid: &str, source: &Source) -> Option<Option<Value>> {
        self.read(of_source(uid, source)).map(|object| Some(object).filter(|object| !object.is_null()))
    }

    pub fn forget_pod(&self, uid: &str) {
        self.noted.borrow_mut().remove(uid);
        let folder = of_pod(uid);
        self.pending.borrow_mut().retain(|path, _| !path.starts_with(&folder));
        self.note(folder, None);
    }

    /// The pods as they were noted, each with its status.
    pub fn pods(&self) -> Vec<Value> {
        let mut pods = Vec::new();
        for uid in self.uids() {
            if let Some(mut pod) = self.read(of_pod(&uid).join("pod.json")) {
                pod["status"] = self.status(&uid).unwrap_or_else(|| json!({}));
                pods.push(pod);
            }
        }
        pods
    }

    /// The pods of which there is a folder.
    pub fn uids(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("pods")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Whether the master could not be reached a moment ago.
    pub fn is_away(&self) -> bool {
        self.away_until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Whether an answer was none because the master is away; then nobody waits for it again for a while.
    pub fn is_absence(&self, error: &anyhow::Error) -> bool {
        let is_unreachable = error.is::<Unreachable>();
        if is_unreachable {
            self.away_until.set(Some(Instant::now() + AWAY));
        }
        is_unreachable
    }
}

fn of_pod(uid: &str) -> PathBuf {
    Path::new("pods").join(uid)
}

fn of_source(uid: &str, source: &Source) -> PathBuf {
    of_pod(uid).join(format!("{}_{}.json", source.plural(), source.name()))
}

/// What is there already is not written again. Only root may read it: it may be a Secret.
fn write(path: &Path, content: Option<Value>) -> io::Result<()> {
    let Some(content) = content else { return if path.is_dir() { file::remove_tree(path) } else { file::remove(path) } };
    let bytes = content.to_string().into_bytes();
    if fs::read(path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    file::replace(path, &bytes, 0o600)
}

/// A list of the cluster that is followed, and told as it was last known if the master is not there to say how it is.
pub struct Followed {
    feed: Feed,
    ledger: Rc<Ledger>,
    file: &'static str,
    deadline: Instant,
    told: Cell<bool>,
    changed: Sender<()>,
    _keeper: smol::Task<()>,
}

impl Followed {
    /// `kept` takes away from an object what this node does not need of it.
    pub fn start(ledger: &Rc<Ledger>, client: &Client, path: &'static str, file: &'static str, kept: fn(&Value) -> Value) -> Self {
        let (changed, changes) = bounded(1);
        let keeper = keep_list(ledger.clone(), client.clone(), changes, path, file, kept);
        Self {
            feed: Feed::start(client.clone(), path.into(), Query::new()),
            ledger: ledger.clone(),
            file,
            deadline: Instant::now() + PATIENCE,
            told: Cell::new(false),
            changed,
            _keeper: task::spawn(keeper),
        }
    }

    /// As [`Feed::next`].
    pub async fn next(&self) -> Event {
        let real = async { Some(self.feed.next().await) };
        let late = async {
            if self.told.get() {
                std::future::pending::<()>().await;
            }
            Timer::at(self.deadline).await;
            None
        };
        let event = real.or(late).await;
        self.told.set(true);
        let event = match event {
            Some(event) => event,
            None => match self.ledger.read(self.file) {
                Some(Value::Array(items)) => return Event::Relisted(items),
                _ => self.feed.next().await,
            },
        };
        // One is enough to know of.
        let _ = self.changed.try_send(());
        event
    }
}

/// Writes the list some time after it changed, as long as it is followed. It asks for it anew, so that nothing is held meanwhile.
async fn keep_list(
    ledger: Rc<Ledger>,
    client: Client,
    changes: Receiver<()>,
    path: &'static str,
    file: &'static str,
    kept: fn(&Value) -> Value,
) {
    let mut bytes = fs::metadata(ledger.folder.join(file)).map_or(0, |known| known.len());
    while changes.recv().await.is_ok() {
        let list = loop {
            Timer::after(LIST_DELAY.max(Duration::from_secs(bytes / LIST_BYTES_PER_SECOND))).await;
            match client.list(path, &Query::new()).await {
                Ok(list) => break list,
                Err(error) => log::debug!("ledger: list {path}: {error:#}"),
            }
        };
        let items: Vec<Value> = list["items"].as_array().into_iter().flatten().map(kept).collect();
        let content = Value::Array(items);
        bytes = content.to_string().len() as u64;
        ledger.note(file, Some(content));
    }
}

/// The object without what only its history and its writers need.
pub fn without_history(object: &Value) -> Value {
    let mut kept = object.clone();
    let mut labels = kept["metadata"]["labels"].take();
    kept["metadata"] = json!({"namespace": meta::namespace(object), "name": meta::name(object)});
    if labels.is_object() {
        kept["metadata"]["labels"] = labels.take();
    }
    kept
}
