//! The one thread that changes the store. It takes every commit that waits, and one sync serves them all (group commit).
//! It never blocks readers for longer than the changes of a batch take to enter memory.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use smol::channel::{Receiver, Sender};

use super::disk::{Disk, Op};
use super::{Change, Event, Key, Object, Refused, Shared, Write};

/// Commits that share one sync at most, so that the first of them does not wait for ever longer.
const BATCH_MAX: usize = 512;

/// The states that a commit made, or why it made none.
type Answer = Result<Vec<Arc<Object>>, Refused>;

pub struct Request {
    pub writes: Vec<Write>,
    /// Holds one answer; who does not wait for it any more has dropped the other end.
    pub answer: Sender<Answer>,
}

/// Runs until every [`super::Store`] handle is gone and the queue is empty.
pub fn run(shared: &Shared, mut disk: Option<Disk>, requests: &Receiver<Request>) {
    while let Ok(first) = requests.recv_blocking() {
        let mut batch = Batch::new(shared);
        batch.admit(first);
        while batch.requests < BATCH_MAX
            && let Ok(request) = requests.try_recv()
        {
            batch.admit(request);
        }
        batch.finish(disk.as_mut());
    }
}

type Identity = (&'static str, &'static str, String, String);

fn identity(key: &Key) -> Identity {
    (key.resource.group, key.resource.plural, key.namespace.clone(), key.name.clone())
}

struct Batch<'a> {
    shared: &'a Shared,
    requests: usize,
    revision: u64,
    /// What this batch has made of an object so far; `None`: deleted.
    overlay: HashMap<Identity, Option<Arc<Object>>>,
    events: Vec<Arc<Event>>,
    answers: Vec<(Sender<Answer>, Vec<Arc<Object>>)>,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Shared) -> Self {
        let revision = shared.read().revision;
        Self { shared, requests: 0, revision, overlay: HashMap::new(), events: Vec::new(), answers: Vec::new() }
    }

    fn admit(&mut self, request: Request) {
        self.requests += 1;
        let (revision, events) = (self.revision, self.events.len());
        let mut undo = Vec::new();
        match self.make(request.writes, &mut undo) {
            Ok(objects) => self.answers.push((request.answer, objects)),
            Err(refused) => {
                self.revision = revision;
                self.events.truncate(events);
                for (identity, before) in undo.into_iter().rev() {
                    match before {
                        Some(state) => self.overlay.insert(identity, state),
                        None => self.overlay.remove(&identity),
                    };
                }
                // An asker that has gone needs no answer.
                let _ = request.answer.try_send(Err(refused));
            }
        }
    }

    fn make(&mut self, writes: Vec<Write>, undo: &mut Vec<(Identity, Option<Option<Arc<Object>>>)>) -> Result<Vec<Arc<Object>>, Refused> {
        let mut made = Vec::with_capacity(writes.len());
        for (index, write) in writes.into_iter().enumerate() {
            let identity = identity(write.key());
            let current = match self.overlay.get(&identity) {
                Some(state) => state.clone(),
                None => self.shared.read().table(write.key().resource).and_then(|table| table.objects.get(&write.key().place()).cloned()),
            };
            self.revision += 1;
            let (change, object) = self.next_state(index, write, current.as_ref())?;
            let state = (change != Change::Deleted).then(|| object.clone());
            undo.push((identity.clone(), self.overlay.insert(identity, state)));
            self.events.push(Arc::new(Event { revision: self.revision, change, object: object.clone(), previous: current }));
            made.push(object);
        }
        Ok(made)
    }

    fn next_state(&self, index: usize, write: Write, current: Option<&Arc<Object>>) -> Result<(Change, Arc<Object>), Refused> {
        let object = |key: Key, mut value: Value| {
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("resourceVersion".into(), self.revision.to_string().into());
            }
            let json = serde_json::to_vec(&value).map_err(|error| Refused::Storage(error.to_string()))?;
            Object::read(key, self.revision, json.into()).map(Arc::new).map_err(|error| Refused::Storage(format!("{error:#}")))
        };
        match (write, current) {
            (Write::Create { key, value }, None) => Ok((Change::Added, object(key, value)?)),
            (Write::Create { .. }, Some(_)) => Err(Refused::Exists(index)),
            (Write::Update { .. } | Write::Delete { .. }, None) => Err(Refused::Missing(index)),
            (Write::Update { expected_revision, .. } | Write::Delete { expected_revision, .. }, Some(current))
                if current.revision != expected_revision =>
            {
                Err(Refused::Conflict(index))
            }
            (Write::Update { key, value, .. }, Some(_)) => Ok((Change::Modified, object(key, value)?)),
            (Write::Delete { key, .. }, Some(current)) => Ok((Change::Deleted, object(key, current.value())?)),
        }
    }

    /// Disk first, then memory and log, then the answers and the wake-ups.
    fn finish(self, disk: Option<&mut Disk>) {
        if let Some(disk) = disk {
            let lasting = self.events.iter().filter(|event| !event.object.key.resource.volatile);
            let ops: Vec<Op> = lasting
                .map(|event| match event.change {
                    Change::Added | Change::Modified => Op::Put(&event.object),
                    Change::Deleted => Op::Remove(&event.object.key),
                })
                .collect();
            if let Err(error) = disk.write(&ops, self.revision) {
                log::error!("store: {} commits refused: {error}", self.answers.len());
                for (answer, _) in self.answers {
                    // An asker that has gone needs no answer.
                    let _ = answer.try_send(Err(Refused::Storage(error.to_string())));
                }
                return;
            }
        }
        let mut wakes = Vec::new();
        {
            let mut state = self.shared.write();
            state.revision = self.revision;
            for event in self.events {
                state.table_mut(event.object.key.resource).record(event, &mut wakes);
            }
        }
        wakes.sort_unstable_by_key(Arc::as_ptr);
        wakes.dedup_by_key(|wake| Arc::as_ptr(wake));
        for (answer, objects) in self.answers {
            // An asker that has gone needs no answer.
            let _ = answer.try_send(Ok(objects));
        }
        for wake in wakes {
            wake.notify(usize::MAX);
        }
        self.shared.wake.notify(usize::MAX);
    }
}
