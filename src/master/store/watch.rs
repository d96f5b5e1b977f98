//! A watcher is a cursor into the log: it holds a revision and a listener, and nothing is queued for it.
//! It never slows a writer; one that falls behind the log is told to list again.

use std::collections::VecDeque;
use std::sync::Arc;

use event_listener::Event as Wake;

use super::table::Table;
use super::{Event, Expired, Shared, State};
use crate::api::schema::Resource;

/// Events taken from the log at a time.
const TAKEN_MAX: usize = 256;

pub struct Watch {
    shared: Arc<Shared>,
    /// None: every resource but events.
    resource: Option<&'static Resource>,
    namespace: Option<String>,
    /// Only what is about the pods of this node.
    node: Option<Box<str>>,
    /// Of the resource or the node; none for all of them.
    wake: Option<Arc<Wake>>,
    /// All changes up to and with this revision are in `taken` or were given out.
    seen: u64,
    taken: VecDeque<Arc<Event>>,
}

impl Watch {
    pub(super) fn new(
        shared: Arc<Shared>,
        resource: Option<&'static Resource>,
        namespace: Option<&str>,
        node: Option<&str>,
        after: u64,
    ) -> Result<Self, Expired> {
        let wake = resource.map(|resource| {
            let mut state = shared.write();
            let table = state.table_mut(resource);
            match node {
                Some(node) => table.node_mut(node).wake.clone(),
                None => table.wake.clone(),
            }
        });
        let (namespace, node) = (namespace.map(str::to_owned), node.map(Into::into));
        let mut watch = Self { shared, resource, namespace, node, wake, seen: after, taken: VecDeque::new() };
        watch.take()?;
        Ok(watch)
    }

    /// The next change; waits for it.
    ///
    /// # Errors
    /// [`Expired`] if the log has lost changes that this watcher has not seen. It stays so.
    pub async fn next(&mut self) -> Result<Arc<Event>, Expired> {
        loop {
            if let Some(event) = self.taken.pop_front() {
                return Ok(event);
            }
            let listener = self.wake.as_deref().unwrap_or(&self.shared.wake).listen();
            self.take()?;
            if self.taken.is_empty() {
                listener.await;
            }
        }
    }

    /// The next change if there is one already.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, Expired> {
        if self.taken.is_empty() {
            self.take()?;
        }
        Ok(self.taken.pop_front())
    }

    /// The revision up to which everything was given out; for bookmarks.
    pub fn revision(&self) -> u64 {
        self.taken.front().map_or(self.seen, |event| event.revision - 1)
    }

    /// Moves what is new on the log into `taken`.
    fn take(&mut self) -> Result<(), Expired> {
        let shared = self.shared.clone();
        let state = shared.read();
        match self.resource {
            Some(resource) => match state.table(resource) {
                Some(table) => self.take_from(table)?,
                None if self.seen < state.started => return Err(Expired),
                None => (),
            },
            None => self.take_from_all(&state)?,
        }
        if self.taken.len() < TAKEN_MAX {
            self.seen = self.seen.max(state.revision);
        }
        Ok(())
    }

    fn take_from(&mut self, table: &Table) -> Result<(), Expired> {
        let (log, forgotten) = match self.node.as_deref().map(|node| table.node(node)) {
            None => (&table.log, table.forgotten),
            Some(Some(on_node)) => (&on_node.log, on_node.forgotten),
            Some(None) => return Ok(()),
        };
        if self.seen < forgotten {
            return Err(Expired);
        }
        let first = log.partition_point(|event| event.revision <= self.seen);
        for event in log.range(first..) {
            if self.taken.len() == TAKEN_MAX {
                break;
            }
            self.seen = event.revision;
            if self.namespace.as_ref().is_none_or(|namespace| *namespace == event.object.key.namespace) {
                self.taken.push_back(event.clone());
            }
        }
        Ok(())
    }

    fn take_from_all(&mut self, state: &State) -> Result<(), Expired> {
        let mut events = Vec::new();
        // Events tell of other objects what their changes tell anyway, and there may be more of them than anybody can follow.
        for (_, table) in state.tables.iter().filter(|((_, plural), _)| *plural != "events") {
            if self.seen < table.forgotten {
                return Err(Expired);
            }
            let first = table.log.partition_point(|event| event.revision <= self.seen);
            events.extend(table.log.range(first..).take(TAKEN_MAX).cloned());
        }
        events.sort_unstable_by_key(|event| event.revision);
        events.truncate(TAKEN_MAX);
        if let Some(last) = events.last() {
            self.seen = last.revision;
        }
        self.taken.extend(events);
        Ok(())
    }
}

impl Drop for Watch {
    /// Of a node that nobody follows any more nothing is kept but what it has.
    fn drop(&mut self) {
        let (Some(resource), Some(node)) = (self.resource, self.node.take()) else { return };
        self.wake = None;
        self.shared.write().table_mut(resource).drop_if_unused(&node);
    }
}
