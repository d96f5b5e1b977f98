//! Pods that wait for a node: those to try now, by priority and age, and those that fit nowhere until something changes.
//! Nothing here runs on a timer of its own; a pod that was refused waits a little after a change, so that a burst of changes is one retry.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::pod::Pod;
use crate::master::store::Key;

/// The pause between two tries of one pod, doubling from the first to the last (kube-scheduler `podInitialBackoffSeconds`,
/// `podMaxBackoffSeconds`).
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Higher priority first, then the one that came first.
type Rank = (Reverse<i64>, u64);

#[derive(Clone, Debug)]
pub struct Waiting {
    pub key: Key,
    pub uid: String,
    pub priority: i64,
    /// Of the spec that was judged last: a change of it is worth another try.
    pub generation: i64,
    arrival: u64,
    tries: u32,
    not_before: Option<Instant>,
}

#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    ready: BTreeMap<Rank, String>,
    /// Those that fit nowhere, as they were judged.
    stuck: BTreeMap<String, Rc<Pod>>,
    /// How many of the stuck may have minded their neighbours; never less than there are.
    minding: usize,
    /// Those that will be ready when their pause is over.
    paused: BTreeSet<(Instant, String)>,
    arrivals: u64,
}

impl Queue {
    /// Takes a pod in, or its new spec. One that is known and unchanged stays where it is.
    pub fn offer(&mut self, key: &Key, uid: &str, priority: i64, generation: i64) {
        if let Some(known) = self.pods.get_mut(uid) {
            if known.generation != generation {
                known.generation = generation;
                if self.stuck.remove(uid).is_some() {
                    self.wake(uid);
                }
            }
            return;
        }
        self.arrivals += 1;
        let waiting =
            Waiting { key: key.clone(), uid: uid.to_owned(), priority, generation, arrival: self.arrivals, tries: 0, not_before: None };
        self.ready.insert(rank(&waiting), uid.to_owned());
        self.pods.insert(uid.to_owned(), waiting);
    }

    pub fn forget(&mut self, uid: &str) {
        if let Some(gone) = self.pods.remove(uid) {
            self.ready.remove(&rank(&gone));
            self.stuck.remove(uid);
            if let Some(at) = gone.not_before {
                self.paused.remove(&(at, gone.uid));
            }
        }
    }

    /// The next pod to try; it stays known until it is forgotten or put back.
    pub fn next(&mut self, now: Instant) -> Option<Waiting> {
        while self.paused.first().is_some_and(|(at, _)| *at <= now) {
            let (_, uid) = self.paused.pop_first().expect("it has a first, as was just seen");
            if let Some(waiting) = self.pods.get_mut(&uid) {
                waiting.not_before = None;
                self.ready.insert(rank(waiting), uid);
            }
        }
        let (_, uid) = self.ready.pop_first()?;
        self.pods.get(&uid).cloned()
    }

    /// The pod that was tried fits nowhere: it waits for a change.
    pub fn set_stuck(&mut self, uid: &str, pod: Rc<Pod>) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.tries = waiting.tries.saturating_add(1);
            self.minding += usize::from(pod.minds_neighbours());
            self.stuck.insert(uid.to_owned(), pod);
        }
    }

    /// A pod came somewhere: those that depend on others may have a place now.
    pub fn wake_minding(&mut self) {
        if self.minding > 0 {
            self.minding = 0;
            self.wake_fitting(Pod::minds_neighbours);
        }
    }

    /// The pod that was tried could not be written: it is tried again after its pause.
    pub fn set_failed(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.tries = waiting.tries.saturating_add(2);
            self.pause(uid, Instant::now());
        }
    }

    /// The cluster changed: all that are stuck are judged anew, for at least the reasons are others now.
    pub fn wake_all(&mut self) {
        self.wake_fitting(|_| true);
    }

    /// Room was made: those are tried again that `fits` finds a place for. The others would only be refused again.
    pub fn wake_fitting(&mut self, fits: impl Fn(&Pod) -> bool) {
        let now = Instant::now();
        let woken: Vec<String> = self.stuck.iter().filter(|(_, pod)| fits(pod)).map(|(uid, _)| uid.clone()).collect();
        for uid in woken {
            self.stuck.remove(&uid);
            self.pause(&uid, now);
        }
    }

    fn wake(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.tries = 0;
            self.ready.insert(rank(waiting), uid.to_owned());
        }
    }

    fn pause(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            // The first retry comes at once: most often the change is the very one that was waited for.
            if waiting.tries <= 1 {
                self.ready.insert(rank(waiting), uid.to_owned());
                return;
            }
            let pause = BACKOFF_MIN.saturating_mul(1 << (waiting.tries - 2).min(8)).min(BACKOFF_MAX);
            waiting.not_before = Some(now + pause);
            self.paused.insert((now + pause, uid.to_owned()));
        }
    }

    /// When the first pause is over.
    pub fn due(&self) -> Option<Instant> {
        self.paused.first().map(|(at, _)| *at)
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

fn rank(waiting: &Waiting) -> Rank {
    (Reverse(waiting.priority), waiting.arrival)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema;

    fn offer(queue: &mut Queue, name: &str, priority: i64, generation: i64) {
        let pods = schema::resource("", "v1", "pods").unwrap();
        queue.offer(&Key::new(pods, "default", name), name, priority, generation);
    }

    #[test]
    fn the_most_important_pod_comes_first_then_the_oldest() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            offer(&mut queue, name, priority, 1);
        }
        let now = Instant::now();
        let order: Vec<_> = std::iter::from_fn(|| queue.next(now)).map(|waiting| waiting.uid).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn a_stuck_pod_waits_for_a_change_and_then_ever_longer() {
        let mut queue = Queue::default();
        offer(&mut queue, "a", 0, 1);
        let start = Instant::now();
        assert!(queue.next(start).is_some());
        queue.set_stuck("a", Rc::default());
        offer(&mut queue, "a", 0, 1);
        assert!(queue.next(start).is_none() && queue.due().is_none(), "its own status is no change");
        queue.wake_all();
        assert!(queue.next(start).is_some(), "the first retry is at once");
        queue.set_stuck("a", Rc::default());
        queue.wake_all();
        assert!(queue.next(start).is_none());
        assert!(queue.next(start + BACKOFF_MAX).is_some());
        queue.set_stuck("a", Rc::default());
        offer(&mut queue, "a", 0, 2);
        assert!(queue.next(start).is_some(), "its spec changed");
        queue.set_stuck("a", Rc::default());
        queue.wake_fitting(|_| false);
        assert!(!queue.has_ready() && queue.due().is_none(), "there is no room for it");
        queue.forget("a");
        queue.wake_all();
        assert!(!queue.has_ready() && queue.due().is_none());
    }
}
