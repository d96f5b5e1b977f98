//! The work queue of a controller: each object is in it once, is worked on by one worker at a time, and comes back later after a failure.
//! It never polls: while it is empty it waits for a wake-up, and with delayed keys only for the earliest of them.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use event_listener::Event;
use futures_lite::FutureExt;

/// Wait after the first failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// The longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(120);

/// Its length is bounded by the number of objects: a key that waits already is not added again.
pub struct Queue<K> {
    state: RefCell<State<K>>,
    wake: Event,
}

struct State<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { state: RefCell::new(state), wake: Event::new() }
    }

    /// Work on `key` as soon as may be; if it is being worked on, once more after that.
    pub fn add(&self, key: K) {
        self.state.borrow_mut().add(key);
        self.wake.notify(1);
    }

    /// Work on `key` in `delay`, or earlier if asked earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        let at = Instant::now() + delay;
        let mut state = self.state.borrow_mut();
        if let Some(earlier) = state.due.get(&key).copied() {
            if earlier <= at {
                return;
            }
            state.delayed.remove(&(earlier, key.clone()));
        }
        state.due.insert(key.clone(), at);
        state.delayed.insert((at, key));
        drop(state);
        self.wake.notify(1);
    }

    /// The next key to work on; [`Queue::done`] gives it back.
    pub async fn next(&self) -> K {
        loop {
            let listener = self.wake.listen();
            let earliest = {
                let mut state = self.state.borrow_mut();
                state.take_due(Instant::now());
                if let Some(key) = state.take() {
                    // One wake-up may stand for several keys: pass it on.
                    if !state.ready.is_empty() {
                        self.wake.notify(1);
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match earliest {
                Some(at) => {
                    let timer = async {
                        smol::Timer::at(at).await;
                    };
                    listener.or(timer).await;
                }
                None => listener.await,
            }
        }
    }

    /// Ends the work on `key`; after a failure it comes again by itself, ever later. Returns the number of failures in a row.
    pub fn done(&self, key: K, success: bool) -> u32 {
        let mut state = self.state.borrow_mut();
        state.working.remove(&key);
        if state.waiting.contains(&key) {
            state.ready.push_back(key.clone());
            self.wake.notify(1);
        }
        if success {
            state.failures.remove(&key);
            return 0;
        }
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let failures = *failures;
        drop(state);
        self.add_after(key, backoff(failures));
        failures
    }

    /// The next key if one is ready now; for tests, which do not wait.
    #[cfg(test)]
    pub fn try_next(&self) -> Option<K> {
        self.state.borrow_mut().take()
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn add(&mut self, key: K) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&(at, key.clone()));
        }
        if self.waiting.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    fn take_due(&mut self, now: Instant) {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            let (_, key) = self.delayed.pop_first().expect("it has a first, as was just seen");
            self.due.remove(&key);
            self.add(key);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_once_and_is_worked_on_once_at_a_time() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.try_next(), Some("a"));
        queue.add("a");
        assert_eq!(queue.try_next(), Some("b"));
        assert_eq!(queue.try_next(), None, "a is being worked on");
        queue.done("a", true);
        assert_eq!(queue.try_next(), Some("a"));
        queue.done("a", true);
        assert_eq!(queue.try_next(), None);
    }

    #[test]
    fn a_failed_key_comes_back_ever_later() {
        let queue = Queue::new();
        queue.add("a");
        smol::block_on(async {
            for expected in 1..4 {
                let key = queue.next().await;
                assert_eq!(queue.done(key, false), expected);
            }
            let key = queue.next().await;
            assert_eq!(queue.done(key, true), 0);
        });
        assert_eq!([backoff(1), backoff(2), backoff(5)].map(|wait| wait.as_millis()), [5, 10, 80]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }

    #[test]
    fn of_two_delays_the_earlier_one_counts() {
        let queue = Queue::new();
        queue.add_after("a", Duration::from_secs(3600));
        queue.add_after("a", Duration::from_millis(1));
        queue.add_after("a", Duration::from_secs(3600));
        assert_eq!(smol::block_on(queue.next()), "a");
        queue.done("a", true);
        assert!(queue.state.borrow().delayed.is_empty());
    }
}
