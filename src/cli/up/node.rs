//! One node of a cluster of `edgectl up`, from the inside: a process that enters namespaces of the node's own and leaves
//! behind its init, process 1, which starts the daemons, starts them again when they end, reaps, and keeps their log.
//! Init has one thread, knows no Kubernetes object, and makes nothing in the host's namespaces but the node's cgroups.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::cluster::Cluster;
use super::link::{self, Hub};

/// The first argument of the process; no verb that people type.
pub const ROLE: &str = "node-init";

/// Where the node sees its folder: a short path, for sockets lie below it (108 bytes, unix(7)).
pub const ROOT: &str = "/run/edgectl";

/// What is said on standard output when the daemons have been started.
pub const READY: &str = "ready";

/// A daemon that ends is started again after the first of these, after twice as long each time, at most after the last.
const RESTART_DELAY: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);
/// A daemon that ran this long has its first delay again.
const STEADY: Duration = Duration::from_secs(10);

/// A log that has grown so long is set aside, in the place of the one set aside before.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What `up` hands to the node: its name, its folders as the host sees them, and descriptors to inherit.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub cluster: String,
    pub name: String,
    pub number: u8,
    pub root: PathBuf,
    pub log: PathBuf,
    /// The process that starts the node.
    pub up_pid: i32,
    /// An inherited descriptor of the host's network namespace; -1 until the node has left it.
    pub host_network_fd: RawFd,
}

impl Node {
    /// Of the link of the node with this number.
    pub fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 1 + number)
    }

    /// The first node runs the master, too.
    fn is_first(&self) -> bool {
        self.number == 1
    }

    /// The command that becomes the node. The standard input of the first node is the API's socket in the host's network namespace, that
    /// of any other one the network namespace of the first, and for its init nothing.
    pub fn command(&self, stage: Stage, input: OwnedFd) -> Result<Command> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args([ROLE, stage.name(), &serde_json::to_string(self).context("write node")?]);
        command.stdin(input);
        Ok(command)
    }
}

/// A process cannot enter a PID namespace itself: its child is the first in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Enter,
    Init,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Enter => "enter",
            Self::Init => "init",
        }
    }
}

/// The process behind `ROLE`. What went wrong is said on standard output, where `up` reads it.
pub fn main(words: &[String]) -> u8 {
    let done = match words {
        [stage, node] if stage == Stage::Enter.name() => read(node).and_then(enter),
        [stage, node] if stage == Stage::Init.name() => read(node).and_then(|node| init(&node)),
        _ => Err(anyhow::anyhow!("{ROLE} is started by edgectl up alone")),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            println!("{error:#}");
            1
        }
    }
}

fn read(node: &str) -> Result<Node> {
    serde_json::from_str(node).context("read node")
}

/// In the host's namespaces: goes into the node's cgroups first, so that from here on `down` finds whatever becomes of it.
fn enter(mut node: Node) -> Result<()> {
    // Killed while it works, `up` leaves no half-made node behind that goes on by itself.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("follow the parent's end")?;
    ensure!(nix::unistd::getppid().as_raw() == node.up_pid, "edgectl up has ended");
    cgroup::enter(&Cluster::new(&node.cluster)?, &node.name)?;
    let host_network = File::open("/proc/self/ns/net").context("open the host's network namespace")?;
    let (hub, input) = match node.is_first() {
        true => (None, input()?),
        false => (Some(Hub { network: input()?, port: format!("node-{}", node.number) }), nothing()?.into()),
    };
    let own = CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(own).context("make the node's namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("part from the host's mounts")?;
    // Before the PID namespace: a process whose children belong to another one can start no thread.
    crate::base::task::run(link::set_up(Node::address(node.number), hub.as_ref()))?;
    drop(hub);
    unshare(CloneFlags::CLONE_NEWPID).context("make the node's PID namespace")?;
    set_inherited(&host_network, true)?;
    node.host_network_fd = host_network.as_raw_fd();
    node.command(Stage::Init, input)?.spawn().context("start the node's init")?;
    Ok(())
}

/// What this process got as its standard input.
fn input() -> Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned().context("take the standard input")
}

fn nothing() -> Result<File> {
    File::options().read(true).write(true).open("/dev/null").context("open /dev/null")
}

/// Whether the next program gets the descriptor.
fn set_inherited(descriptor: impl AsFd, inherited: bool) -> Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(descriptor, FcntlArg::F_SETFD(flags)).context("let a descriptor be inherited")?;
    Ok(())
}

/// Process 1 of the node. Answers only if something fails; when it ends, the kernel ends all others of the node.
fn init(node: &Node) -> Result<()> {
    close_all_but(&[0, 1, 2, node.host_network_fd]);
    let listener = node.is_first().then(input).transpose()?;
    let host_network = File::open(format!("/proc/self/fd/{}", node.host_network_fd)).context("take the host's network namespace")?;
    nix::unistd::close(node.host_network_fd).context("close an inherited descriptor")?;
    nix::unistd::setsid().context("start a session")?;
    nix::unistd::sethostname(&node.name).context("set the host name")?;
    // Opened before the mounts: the folder lies where the node will see its own.
    let folder = node.log.parent().context("the log has a folder")?;
    let folder = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    let mut log = Log::open(folder, node)?;
    mount_all(&node.root)?;
    cgroup::enter_init()?;

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("block SIGCHLD")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("open signalfd")?;
    let (output, input) = io::pipe().context("open the log's pipe")?;
    let master = listener.map(|listener| Daemon::new("master", node, "--listen-fd", listener)).transpose()?;
    let agent = Daemon::new("agent", node, "--egress-netns-fd", host_network.into())?;
    let mut daemons: Vec<Daemon> = master.into_iter().chain([agent]).collect();
    for daemon in &mut daemons {
        daemon.start(&input)?;
    }
    println!("{READY}");
    let nothing = nothing()?;
    nix::unistd::dup2_stdin(&nothing).context("let go of standard input")?;
    nix::unistd::dup2_stdout(&nothing).context("let go of standard output")?;
    nix::unistd::dup2_stderr(&nothing).context("let go of standard error")?;
    drop(nothing);
    let kept = keep(&mut daemons, &signals, output, &input, &mut log);
    // Nobody else hears it.
    kept.or_else(|error| log.line(&format!("init ends: {error:#}")))
}

/// Waits for what the daemons say and for their end, for ever.
fn keep(daemons: &mut [Daemon], signals: &SignalFd, mut output: io::PipeReader, input: &io::PipeWriter, log: &mut Log) -> Result<()> {
    loop {
        let timeout = match daemons.iter().filter_map(|daemon| daemon.restart_at).min() {
            // Rounded up: poll(2) counts whole milliseconds.
            Some(at) => (at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)).try_into().unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut events = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => bail!("wait for events: {error}"),
        }
        let has_output = events[1].any().unwrap_or(false);
        if has_output {
            log.copy(&mut output)?;
        }
        // Signals of one kind melt into one: what has ended is asked for, not counted.
        while matches!(signals.read_signal(), Ok(Some(_))) {}
        for (pid, how) in reap() {
            if let Some(daemon) = daemons.iter_mut().find(|daemon| daemon.pid == Some(pid)) {
                let delay = daemon.ended();
                log.line(&format!("{} {how}, starts again in {} ms", daemon.name, delay.as_millis()))?;
            }
        }
        for daemon in daemons.iter_mut().filter(|daemon| daemon.restart_at.is_some_and(|at| at <= Instant::now())) {
            if let Err(error) = daemon.start(input) {
                let delay = daemon.ended();
                log.line(&format!("{error:#}, again in {} ms", delay.as_millis()))?;
            }
        }
    }
}

/// Descriptors that came from the shell of whoever called `up` would keep a terminal or a pipe open for ever.
fn close_all_but(kept: &[RawFd]) {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| !kept.contains(descriptor)) {
        // The one that read the folder is closed already.
        let _ = nix::unistd::close(descriptor);
    }
}

/// What has ended, and how. Orphans of the node are reaped here, too.
fn reap() -> Vec<(i32, String)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid.as_raw(), format!("ended with code {code}"))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push((pid.as_raw(), format!("ended by {signal}"))),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// The node's own view: its processes, its links, its cgroups, and its folder in the place that its daemons know.
fn mount_all(root: &Path) -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let place = |kind: &str, at: &Path, flags: MsFlags, options: Option<&str>| {
        mount(Some(kind), at, Some(kind), flags, options).with_context(|| format!("mount {kind} on {}", at.display()))
    };
    // As the host has them, and read before /sys goes out of sight.
    let hierarchies = cgroup::hierarchies()?;
    let cgroups = Path::new("/sys/fs/cgroup");
    let links: Vec<(PathBuf, PathBuf)> = fs::read_dir(cgroups)
        .with_context(|| format!("list {}", cgroups.display()))?
        .flatten()
        .filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?)))
        .collect();

    place("proc", Path::new("/proc"), plain, None)?;
    place("sysfs", Path::new("/sys"), plain, None)?;
    if hierarchies.iter().any(|hierarchy| hierarchy.mount_point != cgroups) {
        place("tmpfs", cgroups, plain, Some("mode=755"))?;
    }
    for hierarchy in &hierarchies {
        let at = &hierarchy.mount_point;
        fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        let kind = if hierarchy.v1_options.is_some() { "cgroup" } else { "cgroup2" };
        place(kind, at, plain, hierarchy.v1_options.as_deref())?;
    }
    for (at, target) in links {
        std::os::unix::fs::symlink(target, &at).with_context(|| format!("link {}", at.display()))?;
    }

    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(root), ROOT, None::<&str>, bind, None::<&str>).with_context(|| format!("mount {} on {ROOT}", root.display()))?;
    // As on a board: what lasts until the next boot costs no flash.
    let run = Path::new(ROOT).join("run");
    fs::create_dir_all(&run).with_context(|| format!("make {}", run.display()))?;
    place("tmpfs", &run, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
}

/// A daemon of the node, running or to be started.
struct Daemon {
    name: &'static str,
    /// Found when init starts: a newer program may lie there by the time of a restart, and then has no other name.
    program: PathBuf,
    arguments: [String; 7],
    /// What it inherits.
    descriptor: OwnedFd,
    pid: Option<i32>,
    started: Instant,
    delay: Duration,
    restart_at: Option<Instant>,
}

impl Daemon {
    fn new(name: &'static str, node: &Node, flag: &str, descriptor: OwnedFd) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let arguments = [name, "--root", ROOT, "--name", &node.name, flag, &descriptor.as_raw_fd().to_string()].map(str::to_owned);
        Ok(Self { name, program, arguments, descriptor, pid: None, started: Instant::now(), delay: RESTART_DELAY, restart_at: None })
    }

    fn start(&mut self, log: &io::PipeWriter) -> Result<()> {
        self.restart_at = None;
        self.started = Instant::now();
        let output = || log.try_clone().with_context(|| format!("start {}", self.name));
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        // Of all that init holds, a daemon gets this alone.
        set_inherited(&self.descriptor, true)?;
        let child = command.spawn().with_context(|| format!("start {}", self.name));
        set_inherited(&self.descriptor, false)?;
        self.pid = Some(child?.id() as i32);
        Ok(())
    }

    /// Answers after how long it will be started again.
    fn ended(&mut self) -> Duration {
        self.pid = None;
        if self.started.elapsed() >= STEADY {
            self.delay = RESTART_DELAY;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(RESTART_DELAY_MAX);
        self.restart_at = Some(Instant::now() + delay);
        delay
    }
}

/// What the daemons say, bounded: the log and the one set aside before it.
struct Log {
    folder: File,
    name: String,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(folder: File, node: &Node) -> Result<Self> {
        let name = node.log.file_name().context("the log has a name")?.to_string_lossy().into_owned();
        let path = in_folder(&folder, &name);
        let file = File::options().append(true).create(true).open(&path).with_context(|| format!("open {}", node.log.display()))?;
        let bytes = file.metadata().context("look at the log")?.len();
        Ok(Self { folder, name, file, bytes })
    }

    fn copy(&mut self, from: &mut io::PipeReader) -> Result<()> {
        let mut buffer = [0; 4096];
        let length = from.read(&mut buffer).context("read what the daemons say")?;
        self.write(&buffer[..length])
    }

    fn line(&mut self, text: &str) -> Result<()> {
        self.write(format!("{text}\n").as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.bytes > LOG_BYTES_MAX {
            let path = in_folder(&self.folder, &self.name);
            fs::rename(&path, in_folder(&self.folder, &format!("{}.1", self.name))).context("set the log aside")?;
            self.file = File::options().append(true).create(true).open(&path).context("open the log")?;
            self.bytes = 0;
        }
        // A full disk is no reason to end the node.
        if self.file.write_all(bytes).is_ok() {
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }
}

/// A file in a folder that is out of sight.
fn in_folder(folder: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
}
