//! Picks the role of this process from its name and its first argument; the only file that knows every folder.
//! It decides nothing else.

mod agent;
mod api;
mod base;
mod cli;
mod client;
mod image;
mod master;
mod network;
mod runtime;
mod sys;
mod wire;

use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use argh::FromArgs;

/// The daemons' own command line; people meet it in service units only.
#[derive(FromArgs)]
struct Daemon {
    /// folder below which etc/edgectl, var/lib/edgectl, run/edgectl and var/log/pods lie (default: /)
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
    /// name of this node
    #[argh(option)]
    name: String,
    /// inherited socket on which the master listens, too
    #[argh(option)]
    listen_fd: Option<RawFd>,
    /// inherited network namespace in which the agent asks registries
    #[argh(option)]
    egress_netns_fd: Option<RawFd>,
}

fn main() -> ExitCode {
    base::log::init(log::LevelFilter::Info);
    // Before anything else touches memory: a shim keeps every page that it has dirtied.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|verb| verb == runtime::shim::ROLE)
        && let Some(folder) = words.next()
    {
        return runtime::shim::main(Path::new(&folder));
    }
    if let Some(words) = runtime::cli::words(std::env::args_os()) {
        return ExitCode::from(runtime::cli::main(&words));
    }
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    ExitCode::from(match words.split_first() {
        Some((role, rest)) if role == cli::up::node::ROLE => cli::up::node::main(rest),
        Some((role, rest)) if role == cli::up::hello::ROLE => cli::up::hello::main(rest),
        Some((role, rest)) if role == "master" || role == "agent" => daemon(role, rest),
        _ => cli::main(words),
    })
}

fn daemon(role: &str, words: &[String]) -> u8 {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let options = match Daemon::from_args(&["edgectl", role], &words) {
        Ok(options) => options,
        Err(exit) => {
            eprintln!("{}", exit.output);
            return u8::from(exit.status.is_err());
        }
    };
    match run_daemon(role, options) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{role}: {error:#}");
            1
        }
    }
}

fn run_daemon(role: &str, options: Daemon) -> anyhow::Result<()> {
    let places = base::place::Places::below(&options.root);
    let name = options.name;
    base::task::run(async {
        match role {
            "master" => {
                let listener = options.listen_fd.map(inherited).transpose()?.map(Into::into);
                master::run(master::Options { places, name, listener }).await
            }
            _ => agent::run(agent::Options { places, name, egress: options.egress_netns_fd.map(inherited).transpose()? }).await,
        }
    })
}

/// Takes over a descriptor that was open when this process began, pidfd_getfd(2); no child inherits it.
fn inherited(descriptor: RawFd) -> anyhow::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let take = || {
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(this, descriptor, PidfdGetfdFlags::empty())
    };
    let owned = take().with_context(|| format!("take over descriptor {descriptor}"))?;
    nix::unistd::close(descriptor).with_context(|| format!("close descriptor {descriptor}"))?;
    Ok(owned)
}
