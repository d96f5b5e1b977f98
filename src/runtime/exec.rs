//! One more process in a running container: an intermediate process enters the container's cgroup and namespaces and makes the
//! process as its own sibling, so that it is the caller's child and born inside the PID namespace.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use super::cgroup::{Cgroup, Entrance};
use super::channel::{self, Message};
use super::container::{self, Container, Status, Stdio};
use super::process::Prepared;
use super::rootfs;
use super::spec::{NamespaceKind, Process};
use crate::sys::process::{self, Child, Fork};

struct Setup {
    /// Of the container's first process.
    pidfd: OwnedFd,
    namespaces: ThreadNameSpaceType,
    own_user: bool,
    entrance: Entrance,
    terminal: bool,
    process: Prepared,
    stdio: Stdio,
    channel: OwnedFd,
    preserve_fds: u32,
}

impl Container {
    /// Runs `process` in the container, as a child of the caller; returns once it executes. What `process` leaves open
    /// (capabilities above all) it does not get: the caller decides what it shares with the container's first one.
    pub fn exec(&self, process: &Process, stdio: Stdio, preserve_fds: u32) -> Result<Child> {
        self.run(process, stdio, preserve_fds).with_context(|| format!("exec in container {}", self.id()))
    }

    fn run(&self, process: &Process, stdio: Stdio, preserve_fds: u32) -> Result<Child> {
        let pidfd = self.open()?;
        if self.status() == Status::Paused {
            bail!("it is paused");
        }
        let seccomp = self.spec().linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        let own_user = self.spec().namespace(NamespaceKind::User).is_some();
        let (ours, theirs) = channel::pair()?;
        let setup = Setup {
            pidfd,
            namespaces: self.namespaces(),
            own_user,
            entrance: self.cgroup().entrance()?,
            terminal: process.terminal,
            process: Prepared::new(process, seccomp)?,
            stdio,
            channel: theirs,
            preserve_fds,
        };
        let intermediate = match self.clone(&setup.entrance)? {
            Fork::Child => intermediate(setup),
            Fork::Parent(child) => child,
        };
        drop(setup);
        let adopted = container::adopt(&ours);
        rustix::process::waitid(WaitId::PidFd(intermediate.pidfd.as_fd()), WaitIdOptions::EXITED)
            .context("wait for the intermediate process")?;
        let child = adopted?;
        let executed = process.oom_score_adj.map_or(Ok(()), |score| container::set_oom_score(child.pid, score)).and_then(|()| {
            channel::send(&ours, &Message::Go)?;
            match channel::receive(&ours)? {
                None => Ok(()),
                Some(Message::Failed(text)) => Err(anyhow!(text)),
                Some(other) => bail!("the process said {other:?}"),
            }
        });
        if let Err(error) = executed {
            // Ours to reap, as nobody else knows of it. The first error is the one to report.
            let _ = process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            return Err(error);
        }
        Ok(child)
    }

    /// Clones the intermediate process into the container's cgroup.
    fn clone(&self, entrance: &Entrance) -> Result<Fork> {
        let Entrance::V2(folder) = entrance else { return process::clone3(0, None).context("clone") };
        match process::clone3(0, Some(folder.as_fd())) {
            // The container has made cgroups below its own, which then may have no member itself: where its first process is now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
                let Cgroup::V2(current) = Cgroup::of(self.pid())? else { bail!("the first process left cgroup v2") };
                let folder = std::fs::File::open(&current).with_context(|| format!("open {}", current.display()))?;
                process::clone3(0, Some(folder.as_fd())).context("clone")
            }
            other => other.context("clone"),
        }
    }

    fn namespaces(&self) -> ThreadNameSpaceType {
        let linux = self.spec().linux.as_ref();
        let kinds = linux.into_iter().flat_map(|linux| &linux.namespaces).map(|namespace| namespace.kind);
        kinds.fold(ThreadNameSpaceType::empty(), |all, kind| all | ThreadNameSpaceType::from_bits_retain(kind.clone_flag() as u32))
    }
}

fn intermediate(setup: Setup) -> ! {
    let entered = (|| {
        // Before it can be seen in the container's /proc (CVE-2019-5736).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("become undumpable")?;
        setup.entrance.enter()?;
        rustix::thread::move_into_thread_name_spaces(setup.pidfd.as_fd(), setup.namespaces).context("join the namespaces")?;
        process::clone3(process::clone::PARENT, None).context("make the child")
    })();
    let message = match entered {
        Ok(Fork::Child) => child(setup),
        Ok(Fork::Parent(child)) => Message::Pid(child.pid),
        Err(error) => Message::Failed(format!("{error:#}")),
    };
    let sent = channel::send(&setup.channel, &message);
    std::process::exit(i32::from(sent.is_err()))
}

fn child(mut setup: Setup) -> ! {
    let stdio = std::mem::replace(&mut setup.stdio, Stdio::Inherit);
    let error = match become_it(&mut setup, stdio) {
        Err(error) => error,
        Ok(program) => setup.process.execute(&program),
    };
    // If even the channel fails, its closing tells the creator.
    let _ = channel::send(&setup.channel, &Message::Failed(format!("{error:#}")));
    std::process::exit(1)
}

/// Everything but the execution. The channel stays open for what may go wrong there.
fn become_it(setup: &mut Setup, stdio: Stdio) -> Result<String> {
    channel::expect(&setup.channel, &Message::Go)?;
    rustix::process::setsid().context("start a session")?;
    if setup.own_user {
        super::init::become_root()?;
    }
    setup.process.limit()?;
    let console = if setup.terminal {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open the container's root")?;
        Some(rootfs::terminal(root.as_fd())?)
    } else {
        None
    };
    setup.process.connect(stdio, console)?;
    setup.process.become_user(3 + setup.preserve_fds, &[&setup.channel])
}
