//! A container's first process, from the moment it is cloned until it executes its program. It talks to its creator over a
//! `channel` and never logs: an error is a message, then the end.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::process::DumpableBehavior;

use super::cgroup::Entrance;
use super::channel::{self, Message};
use super::container::{State, Status, Stdio};
use super::hook;
use super::namespace;
use super::process::Prepared;
use super::rootfs::{self, Rootfs};
use super::spec::{Hooks, NamespaceKind, Spec};
use crate::sys::process::{self, Fork};

/// All that the child needs, made by its creator before it was cloned.
pub struct Setup<'a> {
    pub spec: &'a Spec,
    /// With the status `creating`; for hooks.
    pub state: State,
    pub namespaces: &'a namespace::Plan,
    pub entrance: &'a Entrance,
    pub rootfs: &'a Rootfs,
    pub process: Prepared,
    pub stdio: Stdio,
    pub channel: OwnedFd,
    /// Where to wait for the start if not on the channel.
    pub listener: Option<OwnedFd>,
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub new_keyring: bool,
    /// Identifiers have to be mapped, or the number told, before the child may go on.
    pub wait: bool,
}

/// The child that clone3 made with the namespaces to be made. Does not return.
pub fn run(mut setup: Setup, joined: bool) -> ! {
    let stdio = std::mem::replace(&mut setup.stdio, Stdio::Inherit);
    let ended = birth(&mut setup, stdio, joined).and_then(|program| start(&mut setup, &program));
    if let Err(error) = ended {
        // If even the channel fails, its closing tells the creator or starter.
        let _ = channel::send(&setup.channel, &Message::Failed(format!("{error:#}")));
    }
    std::process::exit(1)
}

/// The process between: joins what must be joined first, makes the child as its own sibling, tells its number. Does not return.
pub fn intermediate(setup: Setup) -> ! {
    let make = setup.namespaces.make;
    let joined = setup.entrance.enter().and_then(|()| setup.namespaces.join());
    let result = joined.and_then(|()| match process::clone3(make | process::clone::PARENT, None).context("make the child")? {
        Fork::Child => Ok(None),
        Fork::Parent(child) => Ok(Some(child.pid)),
    });
    let message = match result {
        Ok(None) => run(setup, true),
        Ok(Some(pid)) => Message::Pid(pid),
        Err(error) => Message::Failed(format!("{error:#}")),
    };
    let sent = channel::send(&setup.channel, &message);
    std::process::exit(i32::from(sent.is_err()))
}

/// Everything up to where the container is created. Gives the program's path.
fn birth(setup: &mut Setup, stdio: Stdio, joined: bool) -> Result<String> {
    // Nobody in the container may look into this process or take its program for writing (CVE-2019-5736).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
    if setup.wait {
        channel::expect(&setup.channel, &Message::Go)?;
    }
    if !joined {
        setup.entrance.enter()?;
        setup.namespaces.join()?;
    }
    rustix::process::setsid().context("start a session")?;
    if setup.namespaces.has_user() {
        become_root()?;
    }
    if setup.namespaces.own_cgroup {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).context("make a cgroup namespace")?;
    }
    if setup.new_keyring {
        match process::new_session_keyring() {
            // A kernel without keyrings, or one key too many for this user: nothing to protect, or nothing to be done.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EDQUOT)) => {}
            other => other.context("make a session keyring")?,
        }
    }
    if !setup.spec.hostname.is_empty() {
        rustix::system::sethostname(setup.spec.hostname.as_bytes()).context("set the host name")?;
    }
    if !setup.spec.domainname.is_empty() {
        rustix::system::setdomainname(setup.spec.domainname.as_bytes()).context("set the domain name")?;
    }
    let none = Hooks::default();
    let hooks = setup.spec.hooks.as_ref().unwrap_or(&none);
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        channel::send(&setup.channel, &Message::Namespaces)?;
        channel::expect(&setup.channel, &Message::Go)?;
    }
    setup.process.limit()?;
    rustix::process::umask(Mode::empty());
    let own_mounts = setup.spec.namespace(NamespaceKind::Mount).is_some_and(|namespace| namespace.path.is_none());
    let mut console = None;
    if own_mounts {
        console = setup.rootfs.assemble()?.console;
        hook::run(&hooks.create_container, &setup.state.json()).context("createContainer")?;
        setup.rootfs.enter(setup.no_pivot)?;
    }
    set_sysctls(setup.spec)?;
    setup.process.connect(stdio, console)?;
    let mut keep = vec![&setup.channel];
    keep.extend(&setup.listener);
    let program = setup.process.become_user(3 + setup.preserve_fds, &keep)?;
    channel::send(&setup.channel, &Message::Ready)?;
    Ok(program)
}

/// Waits for the start and executes; the channel is the starter's from here on. Returns if nobody is left to start it, or on an error.
fn start(setup: &mut Setup, program: &str) -> Result<()> {
    if let Some(listener) = setup.listener.take() {
        setup.channel = rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC).context("wait for the start")?;
    }
    if channel::receive(&setup.channel)? != Some(Message::Start) {
        return Ok(());
    }
    if let Some(hooks) = setup.spec.hooks.as_ref().filter(|hooks| !hooks.start_container.is_empty()) {
        let state = State { status: Status::Created, ..setup.state.clone() };
        hook::run(&hooks.start_container, &state.json()).context("startContainer")?;
    }
    Err(setup.process.execute(program))
}

/// Root of the user namespace that was entered, so that what is made belongs to it.
pub(super) fn become_root() -> Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .and_then(|()| rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .context("become root of the user namespace")
}

/// Through a procfs that nobody else sees: /proc/sys of the container may be covered by now, or be something else (CVE-2025-52881).
fn set_sysctls(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux.as_ref().filter(|linux| !linux.sysctl.is_empty()) else { return Ok(()) };
    let proc = rootfs::private_proc()?;
    for (name, value) in &linux.sysctl {
        // sysctl(8): dots between, unless there are slashes, then dots are part of a name.
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let mut file = rootfs::open_file_below(&proc, &Path::new("sys").join(path)).with_context(|| format!("open sysctl {name}"))?;
        file.write_all(value.as_bytes()).with_context(|| format!("set sysctl {name}"))?;
    }
    Ok(())
}
