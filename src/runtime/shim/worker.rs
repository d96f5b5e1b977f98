//! Carries out one request in a forked process of its own, which reports and ends; what it made becomes the shim's child then.
//! So the loop never waits for a slow disk, and the memory that a large config.json takes is given back whole.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::protocol::{self, Inbox};
use super::setup::set_oom_score;
use crate::sys::descriptors::keep_only;
use crate::sys::process::{Fork, clone3};

/// An error message longer than this is cut, so that a report fits into its socket at once.
const ERROR_MAX_BYTES: usize = 16 * 1024;

/// A forked process at work.
pub struct Worker {
    pub pid: i32,
    channel: UnixStream,
}

/// What a worker reports: the process it made, if it was to make one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Report {
    Done { pid: Option<i32> },
    Failed(String),
}

/// What a worker made.
#[derive(Default)]
pub struct Made {
    pub pid: Option<i32>,
    /// The terminal's controlling side.
    pub terminal: Option<OwnedFd>,
}

impl Worker {
    /// Forks a process that owns copies of `kept` and no other descriptor beyond standard input, output and error, and runs `body`.
    pub fn start(kept: &[BorrowedFd], body: impl FnOnce(Vec<OwnedFd>) -> Result<Made>) -> io::Result<Worker> {
        let (near, far) = UnixStream::pair()?;
        match clone3(0, None)? {
            Fork::Parent(child) => Ok(Worker { pid: child.pid, channel: near }),
            Fork::Child => {
                let mut fds = vec![far.as_fd()];
                fds.extend(kept);
                std::process::exit(run(&fds, body));
            }
        }
    }

    /// What the worker reported, to be asked once it has been reaped.
    pub fn finish(self) -> Result<Made> {
        let mut inbox = Inbox::default();
        self.channel.set_nonblocking(true)?;
        inbox.receive(&self.channel)?;
        while let Ok(protocol::Arrived::Something) = inbox.receive(&self.channel) {}
        match inbox.take()?.context("the worker process died")? {
            (Report::Done { pid }, terminal) => Ok(Made { pid, terminal: terminal.into_iter().next() }),
            (Report::Failed(error), _) => Err(anyhow::Error::msg(error)),
        }
    }
}

fn run(fds: &[BorrowedFd], body: impl FnOnce(Vec<OwnedFd>) -> Result<Made>) -> i32 {
    let Ok(mut kept) = keep_only(fds) else { return 1 };
    let channel = kept.remove(0);
    // The shim is the last process to be sacrificed for memory; containers say themselves where they stand.
    let made = set_oom_score("0").context("write oom_score_adj").and_then(|()| body(kept));
    let (report, terminal) = match made {
        Ok(made) => (Report::Done { pid: made.pid }, made.terminal),
        Err(error) => {
            let mut text = format!("{error:#}");
            text.truncate(text.floor_char_boundary(ERROR_MAX_BYTES));
            (Report::Failed(text), None)
        }
    };
    let fds: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
    match protocol::encode(&report).and_then(|frame| protocol::send(&channel, &frame, &fds)) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}
