//! Watches: a cursor into the store's log, written out as one JSON object a line. A watcher that waits holds its cursor and one timer
//! of a minute; nothing is queued for it, and one that falls behind the log gets the 410 that makes it list again.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::Response;
use serde_json::{Value, json};
use smol::Timer;

use super::list::{Filter, too_large_version, version_number};
use super::negotiate::Form;
use super::query::{IncludeObject, Query, VersionMatch};
use super::{respond, tables};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::status::Status;
use crate::base::id;
use crate::master::store::{Change, Event, Expired, Object, Objects, Watch};
use crate::wire::body::Body;

/// Open watches of one user, and of all. A node's agent holds one for each Secret and ConfigMap of its pods.
const WATCHES_PER_USER_MAX: usize = 4096;
const WATCHES_MAX: usize = 65_536;
/// How often a bookmark tells an idle client how far the log has come; upstream's interval.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch without timeoutSeconds ends after a time between this and its double, so that clients do not all come back at once.
const TIMEOUT_SECONDS_MIN: u64 = 1800;
/// Lines kept for the next watcher, who most often wants the very same.
const LINES_KEPT: usize = 8;
/// Lines that are ready are sent together up to this size.
const CHUNK_BYTES: usize = 32 << 10;
/// The annotation of the bookmark that ends the initial events, KEP-3157.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What open watches have in common: how many there are, by user, and the lines that were written last. A change that a thousand watchers
/// are told is written once, and lies in memory once however slowly they read.
#[derive(Default)]
pub struct Watches {
    counts: RefCell<HashMap<String, usize>>,
    total: Cell<usize>,
    lines: RefCell<VecDeque<Line>>,
}

struct Line {
    revision: u64,
    kind: &'static str,
    resource: &'static Resource,
    bytes: Bytes,
}

/// One place among them; given back when it is dropped.
struct Place {
    watches: Rc<Watches>,
    user: String,
}

impl Watches {
    pub fn count(&self) -> usize {
        self.total.get()
    }

    /// The line that tells a change, for who asked for that version of the resource.
    fn line(&self, filter: &Filter, kind: &'static str, object: &Arc<Object>) -> Bytes {
        let mut lines = self.lines.borrow_mut();
        let is_it = |line: &&Line| line.revision == object.revision && line.kind == kind && std::ptr::eq(line.resource, filter.resource);
        if let Some(line) = lines.iter().rfind(is_it) {
            return line.bytes.clone();
        }
        let mut text = Vec::with_capacity(object.json.len() + 64);
        line(&mut text, kind, &filter.json(object));
        let bytes = Bytes::from(text);
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(Line { revision: object.revision, kind, resource: filter.resource, bytes: bytes.clone() });
        bytes
    }

    /// # Errors
    /// 429 if there are too many.
    fn enter(self: &Rc<Self>, user: &str) -> Result<Place, Status> {
        let full = self.count() >= WATCHES_MAX;
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(user.to_owned()).or_default();
        if full || *count >= WATCHES_PER_USER_MAX {
            return Err(Status::too_many_requests("too many open watches, please try again later", 1));
        }
        *count += 1;
        self.total.set(self.total.get() + 1);
        Ok(Place { watches: self.clone(), user: user.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watches.total.set(self.watches.total.get() - 1);
        let mut counts = self.watches.counts.borrow_mut();
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}

/// How objects are written.
struct Writer {
    filter: Filter,
    form: Form,
    include: IncludeObject,
    /// A Table's columns are told once.
    columns_told: bool,
}

enum Stage {
    /// Objects that were there when the watch began.
    Initial(VecDeque<Arc<Object>>),
    Live,
    Ended,
}

struct Stream {
    cursor: Watch,
    writer: Writer,
    stage: Stage,
    bookmarks: bool,
    /// Say when the initial objects are through.
    tell_initial_end: bool,
    deadline: Instant,
    next_bookmark: Instant,
    place: Place,
}

/// Answers a watch.
///
/// # Errors
/// 400 for parameters that make no sense, 429, 504 for a resourceVersion of the future. One of the past is an event in the stream.
pub fn answer(
    objects: &Objects,
    watches: &Rc<Watches>,
    user: &str,
    namespace: &str,
    query: &Query,
    filter: Filter,
    form: Form,
) -> Result<Response<Body>, Status> {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    let after = version_number(&query.resource_version)?;
    let initial_events = initial_events(query, after)?;
    let place = watches.enter(user)?;
    let current = objects.store().revision();
    if after > current {
        return Err(too_large_version(after, current));
    }
    let (stage, start) = if initial_events {
        let (all, revision) = filter.candidates(objects, namespace);
        (Stage::Initial(all.into_iter().filter(|object| filter.matches(object)).collect()), revision)
    } else if after == 0 {
        (Stage::Live, current)
    } else {
        (Stage::Live, after)
    };
    let Ok(cursor) = filter.watch(objects, namespace, start) else {
        let line = error_line(&expired(start, current));
        return Ok(respond::stream(respond::JSON, Body::full(line)));
    };
    let writer = Writer { filter, form, include: query.include_object, columns_told: false };
    let seconds = query.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or_else(random_timeout);
    let now = Instant::now();
    let stream = Stream {
        cursor,
        writer,
        stage,
        bookmarks: query.allow_watch_bookmarks,
        tell_initial_end: initial_events && query.send_initial_events == Some(true) && query.allow_watch_bookmarks,
        // Years are as good as for ever, and do not overflow.
        deadline: now + Duration::from_secs(seconds.min(1 << 30)),
        next_bookmark: now + BOOKMARK_INTERVAL,
        place,
    };
    let body = futures_lite::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.chunk().await?;
        Some((Ok(chunk), stream))
    });
    Ok(respond::stream(respond::JSON, Body::stream(body)))
}

fn random_timeout() -> u64 {
    let [low, high] = id::random();
    TIMEOUT_SECONDS_MIN + u64::from(u16::from_le_bytes([low, high])) % TIMEOUT_SECONDS_MIN
}

/// Whether the watch begins with what is there: asked for, or implied by a resourceVersion that is unset or 0.
fn initial_events(query: &Query, after: u64) -> Result<bool, Status> {
    match (query.send_initial_events, query.resource_version_match) {
        (None, VersionMatch::Unset) => Ok(after == 0),
        (None, _) => Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(_), VersionMatch::NotOlderThan) => Ok(query.send_initial_events == Some(true)),
        (Some(_), _) => Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
    }
}

fn expired(after: u64, current: u64) -> Status {
    Status::expired(format!("too old resource version: {after} ({current})"))
}

impl Stream {
    /// The next lines; none when the watch is over.
    async fn chunk(&mut self) -> Option<Bytes> {
        let mut chunk = Vec::new();
        loop {
            match &mut self.stage {
                Stage::Ended => return None,
                Stage::Initial(objects) => {
                    while chunk.len() < CHUNK_BYTES
                        && let Some(object) = objects.pop_front()
                    {
                        self.writer.write(&mut chunk, "ADDED", &object);
                    }
                    if objects.is_empty() {
                        self.stage = Stage::Live;
                        if self.tell_initial_end {
                            self.writer.bookmark(&mut chunk, self.cursor.revision(), true);
                        }
                    }
                }
                Stage::Live => {
                    let mut waited = self.wait().await;
                    if let Some(Ok(event)) = &waited
                        && !self.is_due(Instant::now())
                        && let Some(line) = self.writer.shared(&self.place.watches, event)
                    {
                        // As a rule it is the only one.
                        waited = Some(match self.cursor.try_next() {
                            Ok(None) => return Some(line),
                            Ok(Some(event)) => Ok(event),
                            Err(expired) => Err(expired),
                        });
                        chunk.extend_from_slice(&line);
                    }
                    self.live(waited, &mut chunk);
                }
            }
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
        }
    }

    /// The next change, or none if it is time for something else.
    async fn wait(&mut self) -> Option<Result<Arc<Event>, Expired>> {
        let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
        let timer = async {
            Timer::at(wake).await;
            None
        };
        let cursor = &mut self.cursor;
        async { Some(cursor.next().await) }.or(timer).await
    }

    /// Whether it is time for something else than changes.
    fn is_due(&self, now: Instant) -> bool {
        now >= self.deadline || self.bookmarks && now >= self.next_bookmark
    }

    fn live(&mut self, waited: Option<Result<Arc<Event>, Expired>>, chunk: &mut Vec<u8>) {
        let mut next = waited.map(|result| result.map(Some));
        // Whatever else is there already goes into the same chunk.
        while let Some(Ok(Some(event))) = next {
            self.writer.event(chunk, &event);
            next = (chunk.len() < CHUNK_BYTES).then(|| self.cursor.try_next());
        }
        if let Some(Err(Expired)) = next {
            chunk.extend_from_slice(&error_line(&expired(self.cursor.revision(), self.cursor.revision())));
            self.stage = Stage::Ended;
            return;
        }
        let now = Instant::now();
        let over = now >= self.deadline;
        if over {
            self.stage = Stage::Ended;
        }
        if self.bookmarks && (over || now >= self.next_bookmark) {
            self.next_bookmark = now + BOOKMARK_INTERVAL;
            match self.cursor.try_next() {
                Ok(Some(event)) => self.writer.event(chunk, &event),
                Ok(None) => self.writer.bookmark(chunk, self.cursor.revision(), false),
                Err(Expired) => (),
            }
        }
    }
}

impl Writer {
    /// A selector turns a change into what it is for those who see only what is selected.
    fn kind(&self, event: &Event) -> Option<&'static str> {
        let was = event.previous.as_ref().is_some_and(|previous| self.filter.matches(previous));
        let is = event.change != Change::Deleted && self.filter.matches(&event.object);
        match (was, is) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }

    /// The line of a change, if it reads the same for others.
    fn shared(&self, watches: &Watches, event: &Event) -> Option<Bytes> {
        let kind = self.kind(event)?;
        let is_whole = matches!(self.form, Form::Plain | Form::Aggregated) && (kind == "DELETED") == (event.change == Change::Deleted);
        is_whole.then(|| watches.line(&self.filter, kind, &event.object))
    }

    fn event(&mut self, chunk: &mut Vec<u8>, event: &Event) {
        let Some(kind) = self.kind(event) else { return };
        match &event.previous {
            // Its last state that was selected, with the revision of the change.
            Some(previous) if kind == "DELETED" && event.change == Change::Modified => {
                let mut value = self.filter.value(previous);
                meta::set(&mut value, "resourceVersion", event.revision.to_string());
                self.value(chunk, kind, &value);
            }
            _ => self.write(chunk, kind, &event.object),
        }
    }

    fn write(&mut self, chunk: &mut Vec<u8>, kind: &str, object: &Arc<Object>) {
        match self.form {
            Form::Plain | Form::Aggregated => line(chunk, kind, &self.filter.json(object)),
            _ => {
                let value = self.filter.value(object);
                self.value(chunk, kind, &value);
            }
        }
    }

    fn value(&mut self, chunk: &mut Vec<u8>, kind: &str, object: &Value) {
        let shown = match self.form {
            Form::Table(version) => {
                let columns = !std::mem::replace(&mut self.columns_told, true);
                tables::table(tables::of(self.filter.resource, ""), &[object], object, version, self.include, columns)
            }
            Form::Metadata(version) => tables::partial(object, version),
            Form::Plain | Form::Aggregated => return line(chunk, kind, object.to_string().as_bytes()),
        };
        line(chunk, kind, shown.to_string().as_bytes());
    }

    fn bookmark(&mut self, chunk: &mut Vec<u8>, revision: u64, initial_end: bool) {
        let resource = self.filter.resource;
        let mut object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let shown = match self.form {
            Form::Table(version) => tables::table(tables::of(resource, ""), &[], &object, version, self.include, false),
            Form::Metadata(version) => tables::partial(&object, version),
            Form::Plain | Form::Aggregated => object,
        };
        line(chunk, "BOOKMARK", shown.to_string().as_bytes());
    }
}

fn line(chunk: &mut Vec<u8>, kind: &str, object: &[u8]) {
    chunk.extend_from_slice(b"{\"type\":\"");
    chunk.extend_from_slice(kind.as_bytes());
    chunk.extend_from_slice(b"\",\"object\":");
    chunk.extend_from_slice(object);
    chunk.extend_from_slice(b"}\n");
}

fn error_line(status: &Status) -> Vec<u8> {
    let mut chunk = Vec::new();
    line(&mut chunk, "ERROR", status.to_json().to_string().as_bytes());
    chunk
}
