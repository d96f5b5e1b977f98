//! Large work takes turns: who has thousands of pods to look at waits until what was done before has been paid for by as much rest, so
//! that a burst of changes is few looks, and others get theirs meanwhile. Small work never waits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Name;

/// Work up to this size does not count.
const SMALL: usize = 50;
/// No turn is longer, however large the work.
const TURN_MAX: Duration = Duration::from_secs(5);

pub struct Pace {
    /// How long a turn is for each piece of work, more than it takes.
    each: Duration,
    /// When all turns that were given are over.
    free: Cell<Instant>,
    /// Large work by its key: how large it was last, and when its next turn begins, if it waits for one.
    known: RefCell<HashMap<Name, (usize, Option<Instant>)>>,
}

impl Pace {
    pub fn new(each: Duration) -> Self {
        Self { each, free: Cell::new(Instant::now()), known: RefCell::default() }
    }

    /// How long the work on `key` has to wait for its turn; none if it may begin.
    pub fn wait(&self, key: &Name) -> Option<Duration> {
        let mut known = self.known.borrow_mut();
        let (size, turn) = known.get_mut(key)?;
        let now = Instant::now();
        let begin = *turn.get_or_insert_with(|| {
            let begin = self.free.get().max(now);
            self.free.set(begin + self.each.saturating_mul(*size as u32).min(TURN_MAX));
            begin
        });
        if begin <= now {
            *turn = None;
            return None;
        }
        Some(begin - now)
    }

    /// The work on `key` is of this size.
    pub fn note(&self, key: &Name, size: usize) {
        let mut known = self.known.borrow_mut();
        if size <= SMALL {
            known.remove(key);
        } else {
            known.entry(key.clone()).or_default().0 = size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_work_waits_for_what_was_before_it_and_small_work_does_not() {
        let pace = Pace::new(Duration::from_millis(1));
        let key = |name: &str| Name::new("default", name);
        assert_eq!(pace.wait(&key("a")), None, "nobody knows yet how large it is");
        for (name, size) in [("a", 1000), ("b", 2000), ("small", SMALL)] {
            pace.note(&key(name), size);
        }
        assert_eq!(pace.wait(&key("a")), None);
        let near =
            |wait: Option<Duration>, seconds: u64| wait.is_some_and(|wait| wait <= Duration::from_secs(seconds) && wait > Duration::ZERO);
        assert!(near(pace.wait(&key("b")), 1), "a has the first second");
        let again = pace.wait(&key("a"));
        assert!(near(again, 3) && again > Some(Duration::from_secs(2)), "b has the two after it");
        assert!(pace.wait(&key("a")) <= again, "it keeps the turn that it was given");
        assert_eq!(pace.wait(&key("small")), None);
        pace.note(&key("a"), 1);
        assert_eq!(pace.wait(&key("a")), None, "it has become small");
    }
}
