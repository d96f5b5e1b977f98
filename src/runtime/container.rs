//! A container's life: create, start, kill, delete, and what it is doing now. Callers are processes with one thread; the one that
//! creates is the parent of the container's first process and may go on as its reaper, or end.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use serde::Serialize;

use super::cgroup::{Cgroup, Entrance};
use super::channel::{self, Message};
use super::init::{self, Setup};
use super::process::Prepared;
use super::record::{self, Record, START_SOCKET};
use super::rootfs::Rootfs;
use super::spec::{self, Hooks, NamespaceKind, Spec};
use super::{hook, namespace};
use crate::base::time::Timestamp;
use crate::sys::process::{self, Fork, clone};

pub use super::rootfs::Overlay;

/// How long a killed process may take to die.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// A process's standard descriptors.
pub enum Stdio {
    Inherit,
    /// Input, output, error.
    Fds([OwnedFd; 3]),
    /// For `process.terminal`: a connected Unix socket that is sent the terminal's master (SCM_RIGHTS).
    Console(OwnedFd),
}

/// Who may start the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartBy {
    /// The `Container` that `create` returns, and nobody else; dropping it ends a container that was not started.
    Holder,
    /// Any process, by `Container::load` and `start`.
    Anyone,
}

pub struct CreateOptions<'a> {
    pub id: &'a str,
    /// What relative paths of the spec are relative to.
    pub bundle: &'a Path,
    pub spec: Spec,
    /// The folder of all containers' states, on a tmpfs: `/run/…`.
    pub state_root: &'a Path,
    pub stdio: Stdio,
    /// The root file system in place of the spec's `root.path`.
    pub overlay: Option<Overlay>,
    pub start_by: StartBy,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    pub no_pivot: bool,
    /// A session keyring of its own, as it should be unless the creator's is wanted.
    pub new_keyring: bool,
}

#[derive(Debug)]
pub struct Container {
    record: Record,
    folder: PathBuf,
    /// Of the first process; there when this process created it.
    pidfd: Option<OwnedFd>,
    /// Where to say Start; there until it was said by the holder.
    starter: Option<OwnedFd>,
}

/// As the specification's `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

/// The specification's state, with runc's `rootfs` and `created` beside it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    #[serde(rename = "ociVersion")]
    pub version: &'static str,
    pub id: String,
    pub status: Status,
    /// 0 when stopped.
    pub pid: i32,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Makes the container's namespaces, cgroup and file system, and its first process, which then waits for `start`.
///
/// On an error nothing is left behind.
pub fn create(options: CreateOptions) -> Result<Container> {
    let id = options.id.to_owned();
    options.spec.check().with_context(|| format!("create container {id}"))?;
    let folder = record::claim(options.state_root, &id)?;
    let created = make(options, &folder);
    if created.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&folder);
    }
    created.with_context(|| format!("create container {id}"))
}

fn make(options: CreateOptions, folder: &Path) -> Result<Container> {
    let spec = options.spec;
    let linux = spec.linux.clone().unwrap_or_default();
    let process_spec = spec.process.as_ref().context("process is required")?;
    let process = Prepared::new(process_spec, linux.seccomp.as_ref())?;
    let namespaces = namespace::Plan::new(&spec)?;
    let path = linux.cgroups_path.unwrap_or_else(|| options.id.into());
    let cgroup = Cgroup::create(&path, &linux.resources.unwrap_or_default())?;
    let mut record = Record {
        id: options.id.into(),
        pid: 0,
        start_ticks: 0,
        bundle: options.bundle.into(),
        rootfs: options.bundle.join(spec.root.as_ref().map_or(Path::new(""), |root| &root.path)),
        created: Timestamp::now().rfc3339_nanos(),
        cgroup,
        spec,
    };
    let listener = if options.start_by == StartBy::Anyone { Some(listen(folder)?) } else { None };
    let (ours, theirs) = channel::pair()?;
    let born = (|| {
        let overlay = options.overlay.as_ref();
        let rootfs = Rootfs::prepare(&record.spec, options.bundle, overlay, &record.cgroup, namespaces.has_user())?;
        let entrance = record.cgroup.entrance()?;
        let setup = Setup {
            spec: &record.spec,
            state: record.state(Status::Creating),
            namespaces: &namespaces,
            entrance: &entrance,
            rootfs: &rootfs,
            process,
            stdio: options.stdio,
            channel: theirs,
            listener,
            preserve_fds: options.preserve_fds,
            no_pivot: options.no_pivot,
            new_keyring: options.new_keyring,
            wait: namespaces.maps.is_some() || namespaces.intermediate,
        };
        birth(setup, &ours)
    })();
    let undo = |pidfd: Option<&OwnedFd>, record: &Record| {
        // Each step of the undoing goes on after an error of another; the first error is the one to report.
        if let Some(pidfd) = pidfd {
            let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        let _ = record.cgroup.kill();
        let _ = record.cgroup.remove();
    };
    let child = match born {
        Ok(child) => child,
        Err(error) => {
            undo(None, &record);
            return Err(error);
        }
    };
    record.pid = child.pid;
    let ready = await_ready(&record, &ours, &namespaces, &child).and_then(|()| {
        let (_, ticks) = record::process_start(child.pid).context("the first process is gone")?;
        record.start_ticks = ticks;
        record.save(folder)
    });
    if let Err(error) = ready {
        undo(Some(&child.pidfd), &record);
        return Err(error);
    }
    let starter = (options.start_by == StartBy::Holder).then_some(ours);
    Ok(Container { record, folder: folder.into(), pidfd: Some(child.pidfd), starter })
}

/// Clones the first process, by way of an intermediate one where needed. The descriptors of `setup` end here.
fn birth(setup: Setup, ours: &OwnedFd) -> Result<process::Child> {
    let namespaces = setup.namespaces;
    let into = match setup.entrance {
        Entrance::V2(folder) => Some(folder.as_fd()),
        Entrance::V1(_) => None,
    };
    let mut make = namespaces.make;
    let own_time = match &namespaces.time_offsets {
        None => None,
        // Offsets can be set only as long as nobody is inside: the namespace is made for the children to come, by us.
        Some(offsets) => {
            make &= !clone::NEWTIME;
            let own = fs::File::open("/proc/self/ns/time").context("open the time namespace")?;
            nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(clone::NEWTIME as i32)).context("make a time namespace")?;
            fs::write("/proc/self/timens_offsets", offsets).context("set time offsets")?;
            Some(own)
        }
    };
    let cloned = if namespaces.intermediate { process::clone3(0, into) } else { process::clone3(make, into) };
    let child = match cloned.context("clone")? {
        Fork::Child if namespaces.intermediate => init::intermediate(setup),
        Fork::Child => init::run(setup, false),
        Fork::Parent(child) => child,
    };
    if let Some(own) = own_time {
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(rustix::thread::LinkNameSpaceType::Time))
            .context("leave the time namespace")?;
    }
    // Our copy of the child's end, so that its death is seen.
    drop(setup);
    if !namespaces.intermediate {
        return Ok(child);
    }
    let told = adopt(ours);
    rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).context("wait for the intermediate process")?;
    told
}

/// Learns from an intermediate process which child of ours it made.
pub(super) fn adopt(ours: &OwnedFd) -> Result<process::Child> {
    let pid = match channel::receive(ours)? {
        Some(Message::Pid(pid)) => pid,
        Some(Message::Failed(text)) => bail!(text),
        other => bail!("the intermediate process said {other:?}"),
    };
    // Our own child, not yet waited for: the number cannot have passed to another.
    let pidfd =
        rustix::process::pidfd_open(Pid::from_raw(pid).context("no process number")?, PidfdFlags::empty()).context("open the child")?;
    Ok(process::Child { pid, pidfd })
}

fn await_ready(record: &Record, ours: &OwnedFd, namespaces: &namespace::Plan, child: &process::Child) -> Result<()> {
    if let Some(maps) = &namespaces.maps {
        namespace::write_maps(child.pid, maps)?;
    }
    if let Some(score) = record.spec.process.as_ref().and_then(|process| process.oom_score_adj) {
        set_oom_score(child.pid, score)?;
    }
    if namespaces.maps.is_some() || namespaces.intermediate {
        channel::send(ours, &Message::Go)?;
    }
    loop {
        match channel::receive(ours)? {
            Some(Message::Ready) => return Ok(()),
            Some(Message::Namespaces) => {
                let none = Hooks::default();
                let hooks = record.spec.hooks.as_ref().unwrap_or(&none);
                let state = record.state(Status::Creating).json();
                hook::run(&hooks.prestart, &state).context("prestart")?;
                hook::run(&hooks.create_runtime, &state).context("createRuntime")?;
                channel::send(ours, &Message::Go)?;
            }
            Some(Message::Failed(text)) => bail!(text),
            Some(other) => bail!("the first process said {other:?}"),
            None => bail!("the first process died before it was ready"),
        }
    }
}

pub(super) fn set_oom_score(pid: i32, score: i32) -> Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).with_context(|| format!("set oom_score_adj to {score}"))
}

/// The socket in the container's folder on which it waits for its start.
fn listen(folder: &Path) -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("make a socket")?;
    let (address, _folder) = start_address(folder)?;
    let address = SocketAddrUnix::new(&address).context("name the start socket")?;
    rustix::net::bind(&socket, &address).context("bind the start socket")?;
    rustix::net::listen(&socket, 1).context("listen on the start socket")?;
    Ok(socket)
}

/// The path of the start socket, short enough for an address as long as the descriptor given with it is open.
fn start_address(folder: &Path) -> Result<(PathBuf, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let open =
        rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("open {}", folder.display()))?;
    Ok((Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(START_SOCKET), open))
}

impl Container {
    /// A container made by another process.
    pub fn load(state_root: &Path, id: &str) -> Result<Self> {
        Ok(Self { record: Record::load(state_root, id)?, folder: state_root.join(id), pidfd: None, starter: None })
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The first process, in the PID namespace of its creator; it may be dead.
    pub fn pid(&self) -> i32 {
        self.record.pid
    }

    /// The first process, if this process created the container: to be polled and waited for.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    pub fn spec(&self) -> &Spec {
        &self.record.spec
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.record.cgroup
    }

    pub fn status(&self) -> Status {
        if !self.record.runs() {
            Status::Stopped
        } else if self.starter.is_some() || self.folder.join(START_SOCKET).exists() {
            Status::Created
        } else if self.record.cgroup.frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    pub fn state(&self) -> State {
        self.record.state(self.status())
    }

    /// Lets the first process execute its program, and returns when it has.
    pub fn start(&mut self) -> Result<()> {
        self.execute().with_context(|| format!("start container {}", self.record.id))?;
        if let Some(hooks) = &self.record.spec.hooks {
            let state = self.record.state(Status::Running).json();
            if let Err(error) = hook::run(&hooks.poststart, &state) {
                log::warn!("container={} poststart: {error:#}", self.record.id);
            }
        }
        Ok(())
    }

    fn execute(&mut self) -> Result<()> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let starter = match self.starter.take() {
            Some(starter) => starter,
            None => {
                let status = self.status();
                if status != Status::Created {
                    bail!("it is {status:?}, not created");
                }
                let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
                let (address, _folder) = start_address(&self.folder)?;
                rustix::net::connect(&socket, &SocketAddrUnix::new(&address)?).context("reach the first process")?;
                // Nobody can start it a second time.
                fs::remove_file(&address).context("remove the start socket")?;
                socket
            }
        };
        channel::send(&starter, &Message::Start)?;
        // Closed without a word: it executed.
        match channel::receive(&starter)? {
            None => Ok(()),
            Some(Message::Failed(text)) => Err(anyhow!(text)),
            Some(other) => bail!("the first process said {other:?}"),
        }
    }

    /// Sends a signal to the first process, or with `all` to every process of the container.
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let named = || format!("signal container {}", self.record.id);
        if all {
            if signal == libc::SIGKILL {
                return self.record.cgroup.kill().with_context(named);
            }
            for pid in self.record.cgroup.processes().with_context(named)? {
                let signal = nix::sys::signal::Signal::try_from(signal).with_context(named)?;
                // Gone meanwhile is no error.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
            }
            return Ok(());
        }
        let pidfd = self.open()?;
        process::pidfd_send_signal(pidfd.as_fd(), signal).with_context(named)
    }

    /// A descriptor of the first process, which certainly is it.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let not_running = || format!("container {} is not running", self.record.id);
        let pid = Pid::from_raw(self.record.pid).with_context(not_running)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).with_context(not_running)?;
        // Looked at after opening: if it is the right one now, the descriptor is.
        if !self.record.runs() {
            bail!(not_running());
        }
        Ok(pidfd)
    }

    pub fn processes(&self) -> Result<Vec<i32>> {
        self.record.cgroup.processes()
    }

    pub fn pause(&self) -> Result<()> {
        self.freeze(true).with_context(|| format!("pause container {}", self.record.id))
    }

    pub fn resume(&self) -> Result<()> {
        self.freeze(false).with_context(|| format!("resume container {}", self.record.id))
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        match self.status() {
            Status::Running | Status::Paused => self.record.cgroup.freeze(frozen),
            status => bail!("it is {status:?}, not running"),
        }
    }

    /// Changes the limits that are given.
    pub fn update(&self, resources: &spec::Resources) -> Result<()> {
        self.record.cgroup.update(resources).with_context(|| format!("update container {}", self.record.id))
    }

    /// Removes all that is left of a stopped container; with `force` it is killed first.
    pub fn delete(self, force: bool) -> Result<()> {
        let id = self.record.id.clone();
        self.remove(force).with_context(|| format!("delete container {id}"))
    }

    fn remove(self, force: bool) -> Result<()> {
        let runs = self.record.runs();
        if runs && !force {
            bail!("it is {:?}, not stopped", self.status());
        }
        let record = self.record;
        if runs {
            end(record.pid, self.pidfd)?;
        }
        // The members of a PID namespace die with its first process; elsewhere some may be left.
        let own_pids = record.spec.namespace(NamespaceKind::Pid).is_some_and(|namespace| namespace.path.is_none());
        if !own_pids {
            record.cgroup.kill()?;
        }
        record.cgroup.remove()?;
        if let Some(hooks) = &record.spec.hooks {
            let state = record.state(Status::Stopped).json();
            if let Err(error) = hook::run(&hooks.poststop, &state) {
                log::warn!("container={} poststop: {error:#}", record.id);
            }
        }
        fs::remove_dir_all(&self.folder).with_context(|| format!("remove {}", self.folder.display()))
    }
}

/// Kills a process and waits until it is dead (not reaped: that is its parent's).
fn end(pid: i32, pidfd: Option<OwnedFd>) -> Result<()> {
    let pidfd = match pidfd {
        Some(pidfd) => pidfd,
        None => match rustix::process::pidfd_open(Pid::from_raw(pid).context("no process")?, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other.context("open the first process")?,
        },
    };
    match process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        other => other.context("kill the first process")?,
    }
    let timeout = rustix::event::Timespec { tv_sec: DEATH_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let mut events = [PollFd::new(&pidfd, PollFlags::IN)];
    if rustix::event::poll(&mut events, Some(&timeout)).context("wait for the first process's end")? == 0 {
        bail!("process {pid} does not die");
    }
    Ok(())
}

impl Record {
    fn state(&self, status: Status) -> State {
        State {
            version: spec::VERSION,
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.pid },
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.spec.annotations.clone(),
        }
    }
}

impl State {
    pub fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a state has string keys only and writes to memory")
    }
}
