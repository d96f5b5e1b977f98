//! Makes this process what a pod's containers have in common: namespaces, host name, kernel parameters, a cgroup, and a first process where they share a PID namespace.
//! It runs once, before the shim serves anybody.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{WaitOptions, set_parent_process_death_signal, wait};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::protocol::Reply;
use crate::runtime::cgroup::{Cgroup, Entrance};
use crate::runtime::spec::Resources;
use crate::sys::descriptors::keep_only;
use crate::sys::process::{Fork, clone, clone3};

/// The kernel sacrifices a shim for memory after everything else, as containerd has it for its own.
const OOM_SCORE: &str = "-998";

/// What a pod's containers have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodConfig {
    /// Of letters, digits, `-` and `.`; names the pod's folder.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Not set where the pod shares the machine's network: it has the machine's name then.
    pub hostname: String,
    /// The pod's own cgroup, `/kubepods/burstable/pod<uid>`: made here, parent of its containers'.
    pub cgroup: PathBuf,
    /// Limits of the whole pod.
    pub resources: Resources,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    /// Namespaced kernel parameters by their dotted names.
    pub sysctls: BTreeMap<String, String>,
}

impl PodConfig {
    fn namespaces(&self) -> CloneFlags {
        let mut flags = CloneFlags::empty();
        // The host name goes with the network, as containerd has it.
        flags.set(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS, !self.host_network);
        flags.set(CloneFlags::CLONE_NEWIPC, !self.host_ipc);
        flags
    }
}

/// Does what `config` asks for; returns the first process of the shared PID namespace, if there is one.
pub fn apply(config: &PodConfig) -> Result<Option<i32>> {
    Cgroup::create(&config.cgroup, &config.resources).context("make the pod's cgroup")?;
    enter_cgroup(&config.cgroup.join(super::CGROUP)).context("enter the shim's cgroup")?;
    set_oom_score(OOM_SCORE).context("write oom_score_adj")?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;

    unshare(config.namespaces()).context("unshare namespaces")?;
    if !config.host_network && !config.hostname.is_empty() {
        nix::unistd::sethostname(&config.hostname).with_context(|| format!("set host name {:?}", config.hostname))?;
    }
    for (name, value) in &config.sysctls {
        fs::write(sysctl_path(name), value).with_context(|| format!("set {name} to {value:?}"))?;
    }
    if config.share_process_namespace && !config.host_pid {
        return start_init().map(Some).context("start the first process of the PID namespace");
    }
    Ok(None)
}

/// Says how early the kernel is to kill this process for its memory. Without CAP_SYS_RESOURCE (a machine that is a container itself) it stays as it is.
pub fn set_oom_score(score: &str) -> io::Result<()> {
    match fs::write("/proc/self/oom_score_adj", score) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// A cgroup of its own below the pod's: it counts for the pod and dies with it, and v2 wants no processes beside cgroups.
fn enter_cgroup(path: &Path) -> Result<()> {
    let cgroup = Cgroup::create(path, &Resources::default())?;
    match cgroup.entrance()? {
        Entrance::V2(_) => fs::write(cgroup.main().join("cgroup.procs"), "0").context("write cgroup.procs"),
        entrance => entrance.enter(),
    }
}

/// Dots separate, except that what stands in a name as a slash is a dot in the path (`net/ipv4/conf/eth0.1/forwarding`), sysctl(8).
fn sysctl_path(name: &str) -> PathBuf {
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let slashes_separate = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path: String = if slashes_separate { name.to_owned() } else { name.chars().map(swapped).collect() };
    Path::new("/proc/sys").join(path)
}

/// The process that keeps a PID namespace alive and reaps its orphans, and nothing else. It dies with the shim, and the kernel kills all others in the namespace then.
fn start_init() -> io::Result<i32> {
    match clone3(clone::NEWPID, None)? {
        Fork::Parent(child) => Ok(child.pid),
        Fork::Child => {
            let end = init();
            std::process::exit(i32::from(end.is_err()));
        }
    }
}

fn init() -> io::Result<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    keep_only(&[])?;
    rustix::thread::set_name(c"pod-init")?;
    // SIGCHLD is blocked since before the fork: none is missed between two waits.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        signals.wait()?;
    }
}

/// Tells the first client why there is no pod.
pub fn refuse(listener: &UnixListener, error: anyhow::Error) -> Result<()> {
    listener.set_nonblocking(false)?;
    let (mut socket, _) = listener.accept()?;
    // Its request first: to somebody who is still asking, a closed socket is all there is.
    let _ = socket.read(&mut [0; 256])?;
    let mut connection = Connection::new(socket)?;
    connection.reply(&Reply::Failed(format!("{error:#}")), None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.shmmax", "/proc/sys/kernel/shmmax"),
        ] {
            assert_eq!(sysctl_path(name), Path::new(path), "{name}");
        }
    }

    #[test]
    fn a_pod_has_the_namespaces_that_it_does_not_share_with_the_machine() {
        let flags = |host_network, host_ipc| PodConfig { host_network, host_ipc, ..PodConfig::default() }.namespaces();
        let (network, ipc) = (CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS, CloneFlags::CLONE_NEWIPC);
        assert_eq!(flags(false, false), network | ipc);
        assert_eq!(flags(true, false), ipc);
        assert_eq!(flags(false, true), network);
        assert_eq!(flags(true, true), CloneFlags::empty());
    }
}
