//! Keeps somebody's knowledge of a list up to date: a list, then a watch, resumed where it ended and listed anew where it cannot be.
//! It never gives up and never keeps the objects themselves: who listens may lose any event and is told everything by the next relist.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures_lite::FutureExt;
use serde_json::Value;
use smol::channel::{Receiver, Sender, bounded};
use smol::{Task, Timer};

use super::{Change, Client, JSON, Query, refusal};
use crate::base::{id, task};

/// Pauses after failures double from the first to the last, give or take a half so that a thousand nodes do not come back as one.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LAST: Duration = Duration::from_secs(15);
/// How long a watch runs before it is asked for anew, and how much longer a silent one is waited for.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// Events that wait for the listener; then reading stops, and the server drops us if it lasts.
const QUEUE_EVENTS_MAX: usize = 64;

/// What a listener is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// This is everything there is now: forget the rest.
    Relisted(Vec<Value>),
    Added(Value),
    Modified(Value),
    /// The object as it was last.
    Deleted(Value),
}

/// What is followed; its events come out of [`Feed::next`]. Dropping it ends the watch.
pub struct Feed {
    events: Receiver<Event>,
    _task: Task<()>,
}

impl Feed {
    /// Follows the list at `path` as far as `query` selects it (`labelSelector`, `fieldSelector`).
    pub fn start(client: Client, path: String, query: Query) -> Self {
        let (sender, events) = bounded(QUEUE_EVENTS_MAX);
        let _task = task::spawn(async move {
            // The listener is gone: that is the end of it.
            let _ = follow(&client, &path, &query, &sender).await;
        });
        Self { events, _task }
    }

    /// The next event. Waits for ever; may be dropped and called again without losing one.
    pub async fn next(&self) -> Event {
        match self.events.recv().await {
            Ok(event) => event,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The listener hung up.
struct Gone;

impl<T> From<smol::channel::SendError<T>> for Gone {
    fn from(_: smol::channel::SendError<T>) -> Self {
        Self
    }
}

async fn follow(client: &Client, path: &str, query: &Query, events: &Sender<Event>) -> Result<(), Gone> {
    let mut failures = 0;
    let mut version = String::new();
    loop {
        if version.is_empty() {
            match client.list(path, query).await {
                Ok(mut list) => {
                    version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
                    events.send(Event::Relisted(items)).await?;
                    failures = 0;
                }
                Err(error) => {
                    failures = rest(path, &error, failures).await;
                    continue;
                }
            }
        }
        let started = Instant::now();
        let ended = watch(client, path, query, &mut version, events).await?;
        // A watch that ran for a while was a good one, however it ended.
        if started.elapsed() > PAUSE_LAST {
            failures = 0;
        }
        match ended {
            Ok(()) if started.elapsed() > PAUSE_FIRST => {}
            Ok(()) => failures = rest(path, &anyhow!("the server ended the watch at once"), failures).await,
            Err(error) => {
                if refusal(&error).is_some_and(|refusal| refusal.code == 410) {
                    log::debug!("watch {path}: resourceVersion {version} is too old, listing anew");
                    version.clear();
                }
                failures = rest(path, &error, failures).await;
            }
        }
    }
}

/// Watches from `version` on, which it keeps up to date, until the watch ends.
async fn watch(client: &Client, path: &str, query: &Query, version: &mut String, events: &Sender<Event>) -> Result<Result<()>, Gone> {
    let seconds = WATCH_SECONDS.start + u32::from_le_bytes(id::random()) % (WATCH_SECONDS.end - WATCH_SECONDS.start);
    let query = query.clone();
    let query = query.with("resourceVersion", &*version).with("allowWatchBookmarks", "true").with("timeoutSeconds", seconds);
    let mut watch = match client.watch(path, &query, JSON).await {
        Ok(watch) => watch,
        Err(error) => return Ok(Err(error)),
    };
    let deadline = Instant::now() + Duration::from_secs(seconds.into()) + WATCH_GRACE;
    loop {
        let expired = async {
            Timer::at(deadline).await;
            Err(anyhow!("the watch did not end when it should have"))
        };
        let (change, object) = match watch.next().or(expired).await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        let seen = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        match change {
            Change::Added => events.send(Event::Added(object)).await?,
            Change::Modified => events.send(Event::Modified(object)).await?,
            Change::Deleted => events.send(Event::Deleted(object)).await?,
            Change::Bookmark => {}
        }
        if !seen.is_empty() {
            *version = seen;
        }
    }
}

/// Waits after a failure; answers how many there were by now.
async fn rest(path: &str, error: &anyhow::Error, failures: u32) -> u32 {
    let pause = pause(failures, u32::from_le_bytes(id::random()));
    log::debug!("watch {path}: {error:#}; next try in {} ms", pause.as_millis());
    Timer::after(pause).await;
    failures.saturating_add(1)
}

/// The pause after one more failure: doubled each time, within half and one and a half of it by `dice`.
fn pause(failures: u32, dice: u32) -> Duration {
    let doubled = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(PAUSE_LAST);
    doubled.mul_f64(0.5 + f64::from(dice) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_scatter() {
        let half = u32::MAX / 2;
        let near = |failures, expected: f64| {
            let pause = pause(failures, half).as_secs_f64();
            assert!((pause - expected).abs() < 0.001, "{failures}: {pause}");
        };
        near(0, 0.2);
        near(1, 0.4);
        near(3, 1.6);
        near(40, 15.0);
        assert_eq!(pause(0, 0), PAUSE_FIRST / 2);
        assert_eq!(pause(u32::MAX, u32::MAX), PAUSE_LAST.mul_f64(1.5));
    }
}
