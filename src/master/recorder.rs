//! Tells the story of objects in Events, behind the backs of those whose story it is: a decision never waits for its event.
//! When more is to be told than can be written, the oldest is left out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use event_listener::Event as Wake;

use super::store::objects::EventType;
use super::store::{Object, Objects};

/// Events that wait to be written.
const WAITING_MAX: usize = 1024;

pub struct Recorder {
    objects: Objects,
    component: &'static str,
    waiting: RefCell<VecDeque<Line>>,
    lost: Cell<u64>,
    wake: Wake,
}

struct Line {
    regarding: Arc<Object>,
    reason: &'static str,
    message: String,
    kind: EventType,
}

impl Recorder {
    /// `component` is who tells, as `kubectl describe` shows it under «From».
    pub fn new(objects: Objects, component: &'static str) -> Self {
        Self { objects, component, waiting: RefCell::default(), lost: Cell::new(0), wake: Wake::new() }
    }

    pub fn normal(&self, regarding: &Arc<Object>, reason: &'static str, message: String) {
        self.add(Line { regarding: regarding.clone(), reason, message, kind: EventType::Normal });
    }

    pub fn warning(&self, regarding: &Arc<Object>, reason: &'static str, message: String) {
        self.add(Line { regarding: regarding.clone(), reason, message, kind: EventType::Warning });
    }

    fn add(&self, line: Line) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
            self.lost.set(self.lost.get() + 1);
        }
        waiting.push_back(line);
        drop(waiting);
        self.wake.notify(1);
    }

    /// Writes what waits, for ever.
    pub async fn run(&self) {
        loop {
            let listener = self.wake.listen();
            self.flush().await;
            listener.await;
        }
    }

    /// Writes what waits now.
    pub async fn flush(&self) {
        loop {
            let Some(line) = self.waiting.borrow_mut().pop_front() else { break };
            let regarding = line.regarding.value();
            self.objects.event(&regarding, line.reason, &line.message, line.kind, self.component).await;
        }
        match self.lost.take() {
            0 => (),
            lost => log::warn!("{}: {lost} events were not written: too many at once", self.component),
        }
    }
}
