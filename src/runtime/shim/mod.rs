//! One small single-threaded process per pod: it holds the pod's namespaces, is parent and reaper of its containers, writes their logs, and outlives the agent.
//! It knows nothing of images, of the network inside its namespace or of Kubernetes; and it never decides to restart anything.

mod connection;
mod container;
mod jobs;
mod log;
pub mod protocol;
mod serve;
mod setup;
pub mod status;
pub mod usage;
mod worker;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::base::time;
use crate::sys::process::{Fork, clone3};
pub use jobs::{CONFIG as BUNDLE_CONFIG, WRITABLE, remove_files};
use protocol::Reply;
pub use setup::PodConfig;

/// Names in a pod's folder: the socket, the pod's configuration, what the shim has to complain about, the containers' folders, the runtime's records of them.
pub const SOCKET: &str = "shim.sock";
pub const CONFIG: &str = "pod.json";
pub const COMPLAINTS: &str = "shim.log";
pub const CONTAINERS: &str = "containers";
pub const STATE: &str = "state";

/// The cgroup of the shim itself, below the pod's.
pub const CGROUP: &str = "shim";

/// The first word of a shim's command line, the pod's folder being the second.
pub const ROLE: &str = "shim";
/// The variable of a shim that has `time::booted`, if its starter goes by that.
pub const BOOTED: &str = "EDGECTL_BOOTED";

/// The process that holds one pod; only the agent starts it. Its listening socket is standard input.
pub fn main(folder: &Path) -> ExitCode {
    // Executed by a descriptor, it would be listed under its number. A name that cannot be set is no reason to stop.
    let _ = rustix::thread::set_name(c"edgectl");
    // The containers' times and log lines are those of whoever started it.
    if let Some(booted) = std::env::var(BOOTED).ok().and_then(|booted| booted.parse().ok()) {
        time::set_booted(booted);
    }
    match run(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ::log::error!("shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever called sees this process end at once; the shim is a child of it that nobody waits for.
///
/// # Errors
/// Only what happens before anybody can be told by the socket, or when the kernel takes it away.
fn run(folder: &Path) -> Result<()> {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().context("take the socket from standard input")?);
    if let Fork::Parent(_) = clone3(0, None).context("fork")? {
        return Ok(());
    }
    rustix::process::setsid().context("leave the session")?;
    nix::unistd::dup2_stdin(File::open("/dev/null").context("open /dev/null")?).context("close standard input")?;
    listener.set_nonblocking(true).context("make the socket non-blocking")?;

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("block SIGCHLD")?;
    let child_ended = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("open signalfd")?;

    let config = fs::read(folder.join(CONFIG)).context("read the pod's configuration")?;
    let config: PodConfig = serde_json::from_slice(&config).context("read the pod's configuration")?;
    let ready = match setup::apply(&config) {
        Ok(init) => Reply::Ready { pid: std::process::id() as i32, init },
        Err(error) => return setup::refuse(&listener, error),
    };
    serve::Shim::new(folder, &config, listener, child_ended, ready).serve()
}
