//! The objects of one resource in memory, with the log of their changes and, of pods, which are on which node.
//! It never waits and never wakes: it says who has to be woken.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use event_listener::Event as Wake;

use super::{Change, Event, Object, Place};

/// What the log of one resource may hold before it forgets the oldest change, at least. What changes all the time (leases, events) has the
/// smaller one, so that an idle cluster stays small.
pub const LOG_BYTES_MIN: usize = 1 << 20;
const VOLATILE_LOG_BYTES_MIN: usize = 64 << 10;
/// Up to here the log grows with the objects, for many objects change much; beyond it an eighth of them is enough.
const LOG_BYTES_GROWN: usize = 8 << 20;

pub struct Table {
    pub objects: BTreeMap<Place, Arc<Object>>,
    objects_bytes: usize,
    pub log: VecDeque<Arc<Event>>,
    log_bytes: usize,
    /// Changes up to and with this revision are no longer on the log.
    pub forgotten: u64,
    pub wake: Arc<Wake>,
    /// By the node's name. Kept as long as it has pods, changes on the log, or somebody who follows it.
    nodes: HashMap<Box<str>, OnNode>,
}

/// The part of a table that is about one node.
pub struct OnNode {
    /// By namespace and name.
    objects: Vec<Arc<Object>>,
    /// Those changes of the table's log that are about this node.
    pub log: VecDeque<Arc<Event>>,
    /// Changes of this node's pods up to and with this revision are no longer on the log.
    pub forgotten: u64,
    pub wake: Arc<Wake>,
}

impl Table {
    /// A table of which changes up to `forgotten` are not known.
    pub fn new(forgotten: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            objects_bytes: 0,
            log: VecDeque::new(),
            log_bytes: 0,
            forgotten,
            wake: Arc::default(),
            nodes: HashMap::new(),
        }
    }

    /// What was read from disk is there, and nothing is known of how it came about.
    pub fn begin(&mut self, revision: u64) {
        self.forgotten = revision;
        self.nodes.values_mut().for_each(|on_node| on_node.forgotten = revision);
    }

    /// The objects of a node.
    pub fn on_node(&self, node: &str) -> &[Arc<Object>] {
        self.nodes.get(node).map_or(&[], |on_node| &on_node.objects)
    }

    pub fn node(&self, node: &str) -> Option<&OnNode> {
        self.nodes.get(node)
    }

    pub fn node_mut(&mut self, node: &str) -> &mut OnNode {
        // All that may be forgotten about a node of which nothing is kept is what the whole log has forgotten.
        let forgotten = self.forgotten;
        let fresh = || OnNode { objects: Vec::new(), log: VecDeque::new(), forgotten, wake: Arc::default() };
        self.nodes.entry(node.into()).or_insert_with(fresh)
    }

    /// Takes an object in the place of what was there.
    pub fn put(&mut self, object: &Arc<Object>) {
        self.objects_bytes += object.bytes();
        let gone = self.objects.insert(object.key.place(), object.clone());
        self.objects_bytes -= gone.as_ref().map_or(0, |gone| gone.bytes());
        if let Some(gone) = gone.filter(|gone| gone.node != object.node) {
            self.leave(&gone);
        }
        if !object.node.is_empty() {
            let objects = &mut self.node_mut(&object.node).objects;
            match find(objects, object) {
                Ok(index) => objects[index] = object.clone(),
                Err(index) => objects.insert(index, object.clone()),
            }
        }
    }

    fn remove(&mut self, object: &Object) {
        if let Some(gone) = self.objects.remove(&object.key.place()) {
            self.objects_bytes -= gone.bytes();
            self.leave(&gone);
        }
    }

    fn leave(&mut self, object: &Object) {
        if let Some(on_node) = self.nodes.get_mut(&object.node)
            && let Ok(index) = find(&on_node.objects, object)
        {
            on_node.objects.remove(index);
        }
    }

    /// Makes a change seen. Those who have to be woken are added to `wakes`.
    pub fn record(&mut self, event: Arc<Event>, wakes: &mut Vec<Arc<Wake>>) {
        match event.change {
            Change::Added | Change::Modified => self.put(&event.object),
            Change::Deleted => self.remove(&event.object),
        }
        wakes.push(self.wake.clone());
        for node in nodes(&event) {
            let on_node = self.node_mut(node);
            on_node.log.push_back(event.clone());
            wakes.push(on_node.wake.clone());
        }
        self.log_bytes += event.object.bytes();
        let is_volatile = event.object.key.resource.volatile;
        self.log.push_back(event);
        self.forget(log_limit(self.objects_bytes, is_volatile));
    }

    /// Forgets a node of which there is nothing, and that nobody follows.
    pub fn drop_if_unused(&mut self, node: &str) {
        let is_unused = |on_node: &OnNode| on_node.log.is_empty() && on_node.objects.is_empty() && Arc::strong_count(&on_node.wake) == 1;
        if self.nodes.get(node).is_some_and(is_unused) {
            self.nodes.remove(node);
        }
    }

    fn forget(&mut self, limit: usize) {
        while self.log_bytes > limit
            && let Some(oldest) = self.log.pop_front()
        {
            self.log_bytes -= oldest.object.bytes();
            self.forgotten = oldest.revision;
            for node in nodes(&oldest) {
                if let Some(on_node) = self.nodes.get_mut(node) {
                    on_node.log.pop_front();
                    on_node.forgotten = oldest.revision;
                }
                self.drop_if_unused(node);
            }
        }
    }
}

/// All of what is volatile changes within seconds: it may be on the log once.
fn log_limit(objects_bytes: usize, is_volatile: bool) -> usize {
    let (least, grown) = if is_volatile { (VOLATILE_LOG_BYTES_MIN, objects_bytes) } else { (LOG_BYTES_MIN, objects_bytes / 2) };
    least.max(grown.min(LOG_BYTES_GROWN)).max(objects_bytes / 8)
}

/// The nodes that a change is about: where the pod is, and where it was.
fn nodes(event: &Event) -> impl Iterator<Item = &str> {
    let now = &*event.object.node;
    let before = event.previous.as_ref().map_or("", |previous| &*previous.node);
    [now, before].into_iter().take(if now == before { 1 } else { 2 }).filter(|node| !node.is_empty())
}

fn find(objects: &[Arc<Object>], object: &Object) -> Result<usize, usize> {
    objects.binary_search_by(|each| (&each.key.namespace, &each.key.name).cmp(&(&object.key.namespace, &object.key.name)))
}
