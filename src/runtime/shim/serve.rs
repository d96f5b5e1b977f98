//! The shim's loop: one poll(2) over its socket, its clients, its containers' output and its children's ends. It waits for nothing else,
//! and nothing a client does or fails to do keeps it from its containers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use super::connection::{Connection, Waits};
use super::container::{Container, Viewer, exit_code};
use super::jobs;
use super::log::{Log, Stream};
use super::protocol::{Attach, Create, Exec, FDS_MAX, Reply, Request};
use super::status::{ContainerState, ContainerStatus};
use super::usage;
use super::worker::{Made, Worker};
use super::{CONTAINERS, PodConfig, STATE};
use crate::base::time::Timestamp;
use crate::runtime::cgroup::Cgroup;
use crate::sys::process::pidfd_send_signal;

/// Clients served at once; further ones wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;

/// Containers of one pod, exited ones that are not removed yet included.
const CONTAINERS_MAX: usize = 128;

/// Clients attached at once to the containers of one pod. Each holds one of the connections.
const VIEWERS_MAX: usize = 32;

/// How long a container waits for who was given its input and does not read on; then it goes on without them.
const PATIENCE: Duration = Duration::from_secs(60);

const TOO_SLOW: &str = "the container prints faster than it is read here: what it prints further is in its log";

/// Connections and containers are named by numbers never used again, so that what is gone cannot be mistaken for what came after.
type Number = u32;

/// Everything that wakes the loop.
#[derive(Clone, Copy)]
enum Event {
    ChildEnded,
    ClientCame,
    ClientReady(Number),
    Output(Number, Stream),
    ViewerReady(Number),
}

/// A request in the hands of a worker.
struct Job {
    worker: Worker,
    /// Nobody, once the client is gone.
    client: Option<Number>,
    task: Task,
}

#[derive(Clone, Copy)]
enum Task {
    Create(Number),
    Start(Number),
    Remove(Number),
    Exec,
}

pub struct Shim {
    folder: PathBuf,
    /// The pod's cgroup.
    cgroup: PathBuf,
    /// Containers have no PID namespace of their own.
    shared_processes: bool,
    listener: UnixListener,
    child_ended: SignalFd,
    ready: Reply,
    connections: BTreeMap<Number, Connection>,
    containers: BTreeMap<Number, Container>,
    jobs: Vec<Job>,
    last_number: Number,
}

impl Shim {
    /// `ready` answers each client's `Hello`.
    pub fn new(folder: &Path, config: &PodConfig, listener: UnixListener, child_ended: SignalFd, ready: Reply) -> Shim {
        Shim {
            folder: folder.to_owned(),
            cgroup: config.cgroup.clone(),
            shared_processes: config.share_process_namespace || config.host_pid,
            listener,
            child_ended,
            ready,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            last_number: 0,
        }
    }

    /// Serves until it is killed.
    ///
    /// # Errors
    /// When the kernel refuses to wait or to accept.
    pub fn serve(&mut self) -> Result<()> {
        loop {
            let held: Vec<Number> =
                self.containers.iter().filter(|(_, container)| container.is_held()).map(|(number, _)| *number).collect();
            held.into_iter().for_each(|number| self.send_away_slow_viewers(number));
            for event in self.wait().context("wait for events")? {
                match event {
                    Event::ChildEnded => self.reap()?,
                    Event::ClientCame => self.accept()?,
                    Event::ClientReady(number) => self.hear(number),
                    Event::Output(number, stream) => {
                        if let Some(container) = self.containers.get_mut(&number) {
                            container.copy_output(stream, Timestamp::now());
                        }
                        self.send_away_slow_viewers(number);
                    }
                    Event::ViewerReady(number) => {
                        if let Some(container) = self.containers.get_mut(&number) {
                            container.viewers.iter_mut().for_each(Viewer::flush);
                        }
                    }
                }
            }
        }
    }

    fn send_away_slow_viewers(&mut self, number: Number) {
        let behind = self.containers.get_mut(&number).map(|container| container.viewers_behind(PATIENCE)).unwrap_or_default();
        for client in behind {
            self.answer(client, &Reply::Failed(TOO_SLOW.to_owned()), None);
        }
    }

    fn wait(&self) -> io::Result<Vec<Event>> {
        let mut fds = vec![PollFd::new(&self.child_ended, PollFlags::IN)];
        let mut events = vec![Event::ChildEnded];
        if self.connections.len() < CONNECTIONS_MAX {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
            events.push(Event::ClientCame);
        }
        for (number, connection) in &self.connections {
            let wanted = if connection.has_more_to_send() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(connection, wanted));
            events.push(Event::ClientReady(*number));
        }
        let mut patience = None;
        for (number, container) in &self.containers {
            for (pipe, since) in container.viewers.iter().flat_map(Viewer::held_by) {
                fds.push(PollFd::new(pipe, PollFlags::OUT));
                events.push(Event::ViewerReady(*number));
                let left = PATIENCE.saturating_sub(since.elapsed());
                patience = Some(patience.map_or(left, |patience: Duration| patience.min(left)));
            }
            if container.is_held() {
                continue;
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(output) = &container.outputs[stream as usize] {
                    fds.push(PollFd::new(output, PollFlags::IN));
                    events.push(Event::Output(*number, stream));
                }
            }
        }
        let timeout = patience.map(|left| Timespec::try_from(left).expect("a minute at most"));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(events.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(event, _)| event).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn number(&mut self) -> Number {
        self.last_number += 1;
        self.last_number
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((socket, _)) => {
                let number = self.number();
                self.connections.insert(number, Connection::new(socket)?);
                Ok(())
            }
            // The client left before its turn came, or the machine is out of descriptors: the next one may have more luck.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn hear(&mut self, number: Number) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.receive() && connection.flush() { self.answer_requests(number) } else { self.drop_client(number) }
    }

    fn answer_requests(&mut self, number: Number) {
        while let Some(connection) = self.connections.get_mut(&number) {
            match connection.request() {
                Ok(Some((request, fds))) => match self.handle(number, request, fds) {
                    Ok(Some(reply)) => self.reply(number, &reply, None),
                    Ok(None) => {}
                    Err(error) => self.reply(number, &Reply::Failed(format!("{error:#}")), None),
                },
                Ok(None) => return,
                Err(error) => {
                    log::warn!("client sent nonsense: {error}");
                    self.drop_client(number);
                }
            }
        }
    }

    /// The answer to a request that can be given at once.
    fn handle(&mut self, client: Number, request: Request, fds: Vec<OwnedFd>) -> Result<Option<Reply>> {
        match request {
            Request::Hello if self.jobs.iter().any(|job| job.client.is_none()) => {
                self.wait_for(client, Waits::Settled);
                Ok(None)
            }
            Request::Hello => Ok(Some(self.hello())),
            Request::Status => Ok(Some(Reply::Status(self.status()))),
            Request::Events => {
                self.wait_for(client, Waits::Events);
                for status in self.status() {
                    if matches!(status.state, ContainerState::Exited(_)) {
                        self.reply(client, &Reply::Exited(status), None);
                    }
                }
                Ok(None)
            }
            Request::Kill { container, signal } => {
                let container = &self.containers[&self.find(&container)?];
                let pidfd = container.pidfd.as_ref().with_context(|| format!("container {} has no process", container.status.id))?;
                pidfd_send_signal(pidfd.as_fd(), signal).with_context(|| format!("kill container {}", container.status.id))?;
                Ok(Some(Reply::Done))
            }
            Request::Resize { container, columns, rows } => {
                let container = &self.containers[&self.find(&container)?];
                container.resize(columns, rows).with_context(|| format!("resize terminal of container {}", container.status.id))?;
                Ok(Some(Reply::Done))
            }
            Request::Create(create) => self.create(client, create).map(|()| None),
            Request::Start { container } => self.start(client, &container).map(|()| None),
            Request::Remove { container } => self.remove(client, &container).map(|()| None),
            Request::Exec(exec) => self.exec(client, exec, fds).map(|()| None),
            Request::Attach(attach) => self.attach(client, &attach, fds).map(|()| None),
        }
    }

    fn hello(&self) -> Reply {
        match &self.ready {
            Reply::Ready { pid, init } => Reply::Ready { pid: *pid, init: *init },
            _ => Reply::Failed("the pod never got ready".to_owned()),
        }
    }

    fn status(&self) -> Vec<ContainerStatus> {
        // One without a process was never created.
        self.containers
            .values()
            .filter(|container| container.has_exited() || container.pidfd.is_some())
            .map(|container| container.status.clone())
            .collect()
    }

    fn find(&self, id: &str) -> Result<Number> {
        let found = self.containers.iter().find(|(_, container)| container.status.id == id);
        found.map(|(number, _)| *number).with_context(|| format!("no container {id}"))
    }

    /// The container, if no other request on it is being carried out.
    fn claim(&mut self, id: &str) -> Result<(Number, &mut Container)> {
        let number = self.find(id)?;
        let container = self.containers.get_mut(&number).expect("it was found a line above");
        if container.busy || container.removal.is_some() {
            bail!("container {id} is busy with another request");
        }
        Ok((number, container))
    }

    fn create(&mut self, client: Number, create: Create) -> Result<()> {
        if self.find(&create.container).is_ok() {
            bail!("container {} exists", create.container);
        }
        if self.containers.len() >= CONTAINERS_MAX {
            bail!("the pod has {CONTAINERS_MAX} containers, as many as it may");
        }
        let folder = self.folder.join(CONTAINERS).join(&create.container);
        let log = Log::open(&create.log_path, create.log_max_bytes, create.log_files_max)
            .with_context(|| format!("open log {}", create.log_path.display()))?;
        let pipes = if create.tty { Pipes::default() } else { Pipes::open(create.stdin).context("make pipes")? };
        let status = ContainerStatus {
            id: create.container.clone(),
            name: create.name.clone(),
            attempt: create.attempt,
            pid: None,
            created_at: Timestamp::now(),
            state: ContainerState::Created,
        };
        let tty = create.tty;
        let container = Container {
            status,
            folder: folder.clone(),
            pidfd: None,
            outputs: pipes.outputs,
            stdin: pipes.stdin,
            viewers: Vec::new(),
            log,
            losing_lines: false,
            tty,
            busy: true,
            ended: None,
            removal: None,
        };
        let number = self.number();
        let kept: Vec<_> = pipes.given.iter().map(AsFd::as_fd).collect();
        let state = self.folder.join(STATE);
        self.begin(client, Task::Create(number), &kept, |stdio| jobs::create(&folder, &state, &create, stdio))?;
        self.containers.insert(number, container);
        Ok(())
    }

    fn start(&mut self, client: Number, id: &str) -> Result<()> {
        let (number, container) = self.claim(id)?;
        if container.status.state != ContainerState::Created {
            bail!("container {id} was started before");
        }
        container.busy = true;
        let (state, id) = (self.folder.join(STATE), id.to_owned());
        self.begin(client, Task::Start(number), &[], |_| jobs::start(&state, &id))
    }

    /// A container that still runs is killed first and removed as soon as it is reaped.
    fn remove(&mut self, client: Number, id: &str) -> Result<()> {
        let (number, container) = self.claim(id)?;
        match &container.pidfd {
            Some(pidfd) => {
                pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).with_context(|| format!("kill container {id}"))?;
                container.removal = Some(Some(client));
                self.wait_for(client, Waits::Worker);
                Ok(())
            }
            None => self.begin_removal(Some(client), number),
        }
    }

    fn begin_removal(&mut self, client: Option<Number>, number: Number) -> Result<()> {
        let Some(container) = self.containers.get_mut(&number) else { return Ok(()) };
        container.busy = true;
        container.removal = None;
        container.outputs = [None, None];
        let (folder, state, id) = (container.folder.clone(), self.folder.join(STATE), container.status.id.clone());
        self.begin_for(client, Task::Remove(number), &[], |_| jobs::remove(&folder, &state, &id))
    }

    fn exec(&mut self, client: Number, exec: Exec, fds: Vec<OwnedFd>) -> Result<()> {
        let (_, container) = self.claim(&exec.container)?;
        if !matches!(container.status.state, ContainerState::Running { .. }) {
            bail!("container {} is not running", exec.container);
        }
        if fds.len() != if exec.tty { 0 } else { FDS_MAX } {
            bail!("exec came with {} descriptors", fds.len());
        }
        let state = self.folder.join(STATE);
        let kept: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.begin(client, Task::Exec, &kept, |stdio| jobs::exec(&state, &exec, stdio))
    }

    fn attach(&mut self, client: Number, attach: &Attach, fds: Vec<OwnedFd>) -> Result<()> {
        if self.connections.values().filter(|connection| matches!(connection.waits, Waits::Attached(_))).count() >= VIEWERS_MAX {
            bail!("{VIEWERS_MAX} clients are attached to the pod, as many as may be");
        }
        let number = self.find(&attach.container)?;
        let container = self.containers.get_mut(&number).context("the container is gone")?;
        if !matches!(container.status.state, ContainerState::Running { .. }) {
            bail!("container {} is not running", attach.container);
        }
        let input = container.attach(client, attach, fds).context("take the client's pipes")?;
        self.wait_for(client, Waits::Attached(number));
        self.reply(client, &Reply::Attached, input);
        Ok(())
    }

    fn begin(&mut self, client: Number, task: Task, kept: &[BorrowedFd], body: impl FnOnce(Vec<OwnedFd>) -> Result<Made>) -> Result<()> {
        self.begin_for(Some(client), task, kept, body)
    }

    fn begin_for(
        &mut self,
        client: Option<Number>,
        task: Task,
        kept: &[BorrowedFd],
        body: impl FnOnce(Vec<OwnedFd>) -> Result<Made>,
    ) -> Result<()> {
        let worker = Worker::start(kept, body).context("fork")?;
        self.jobs.push(Job { worker, client, task });
        if let Some(client) = client {
            self.wait_for(client, Waits::Worker);
        }
        Ok(())
    }

    /// Takes in every child that has ended. Workers come first: one of the others may be what a worker has just made.
    fn reap(&mut self) -> Result<()> {
        while self.child_ended.read_signal().context("read signals")?.is_some() {}
        let mut ended = Vec::new();
        while let Ok(Some(child)) = wait(WaitOptions::NOHANG) {
            ended.push(child);
        }
        for (pid, _) in &ended {
            if let Some(at) = self.jobs.iter().position(|job| job.worker.pid == pid.as_raw_nonzero().get()) {
                let job = self.jobs.swap_remove(at);
                self.finish(job);
            }
        }
        for (pid, status) in ended {
            self.child_ended(pid.as_raw_nonzero().get(), status);
        }
        if self.jobs.iter().all(|job| job.client.is_some()) {
            let ready = self.hello();
            for number in self.waiting(Waits::Settled) {
                self.answer(number, &ready, None);
            }
        }
        Ok(())
    }

    fn finish(&mut self, job: Job) {
        let made = job.worker.finish();
        match job.task {
            Task::Create(number) => {
                let created = made.and_then(|made| self.created(number, made));
                if created.is_err() {
                    self.containers.remove(&number);
                }
                self.answer_done(job.client, created);
            }
            Task::Start(number) => {
                let started = made.and_then(|_| self.started(number));
                self.release(number);
                self.answer_done(job.client, started);
                if let Some(status) = self.containers.get_mut(&number).and_then(|container| container.ended.take()) {
                    self.exited(number, status);
                }
            }
            Task::Remove(number) => {
                if made.is_ok() {
                    self.containers.remove(&number);
                }
                self.release(number);
                self.answer_done(job.client, made.map(drop));
            }
            Task::Exec => self.executed(job.client, made),
        }
    }

    fn created(&mut self, number: Number, made: Made) -> Result<()> {
        let container = self.containers.get_mut(&number).context("the container is gone")?;
        container.busy = false;
        container.created(made.pid.context("the worker made no process")?, made.terminal).context("take over the container's process")
    }

    fn started(&mut self, number: Number) -> Result<()> {
        let container = self.containers.get_mut(&number).context("the container is gone")?;
        container.started(Timestamp::now()).context("write record")
    }

    fn executed(&mut self, client: Option<Number>, made: Result<Made>) {
        let (pid, terminal) = match made.and_then(|made| Ok((made.pid.context("the worker made no process")?, made.terminal))) {
            Ok(made) => made,
            Err(error) => return self.answer_done(client, Err(error)),
        };
        match client.filter(|client| self.connections.contains_key(client)) {
            Some(client) => {
                self.wait_for(client, Waits::Process(pid));
                self.reply(client, &Reply::Started { pid }, terminal);
            }
            None => kill_child(pid),
        }
    }

    fn release(&mut self, number: Number) {
        if let Some(container) = self.containers.get_mut(&number) {
            container.busy = false;
        }
    }

    fn child_ended(&mut self, pid: i32, status: WaitStatus) {
        for client in self.waiting(Waits::Process(pid)) {
            self.answer(client, &Reply::Ended { code: exit_code(status).0 }, None);
        }
        let Some((&number, container)) = self.containers.iter_mut().find(|(_, container)| container.status.pid == Some(pid)) else {
            return;
        };
        // It ended before the worker that has just started it: one after the other.
        if container.busy { container.ended = Some(status) } else { self.exited(number, status) }
    }

    fn exited(&mut self, number: Number, status: WaitStatus) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let oom_killed = match Cgroup::at(&self.cgroup.join(&container.status.id)) {
            Ok(cgroup) => {
                // A PID namespace takes all its processes along; without one the rest of the container would live on.
                if self.shared_processes
                    && let Err(error) = cgroup.kill()
                {
                    log::warn!("container={} processes are left: {error:#}", container.status.id);
                }
                usage::oom_kills(&cgroup) > 0
            }
            Err(error) => {
                log::warn!("container={} cgroup: {error:#}", container.status.id);
                false
            }
        };
        if let Err(error) = container.exited(status, oom_killed, Timestamp::now()) {
            log::error!("container={} write record: {error}", container.status.id);
        }
        let (exited, removal) = (Reply::Exited(container.status.clone()), container.removal);
        self.send_away_slow_viewers(number);
        if let Some(container) = self.containers.get_mut(&number) {
            container.viewers = Vec::new();
        }
        for client in self.waiting(Waits::Attached(number)) {
            self.answer(client, &Reply::Ended { code: exit_code(status).0 }, None);
        }
        for client in self.waiting(Waits::Events) {
            self.reply(client, &exited, None);
        }
        if let Some(client) = removal
            && let Err(error) = self.begin_removal(client, number)
        {
            self.release(number);
            self.answer_done(client, Err(error));
        }
    }

    fn waiting(&self, waits: Waits) -> Vec<Number> {
        self.connections.iter().filter(|(_, connection)| connection.waits == waits).map(|(number, _)| *number).collect()
    }

    fn wait_for(&mut self, client: Number, waits: Waits) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.waits = waits;
        }
    }

    fn answer_done(&mut self, client: Option<Number>, result: Result<()>) {
        match (client, result) {
            (Some(client), Ok(())) => self.answer(client, &Reply::Done, None),
            (Some(client), Err(error)) => self.answer(client, &Reply::Failed(format!("{error:#}")), None),
            (None, Ok(())) => {}
            (None, Err(error)) => log::warn!("request of a client that is gone: {error:#}"),
        }
    }

    /// The answer that a client has been waiting for; its next request may be there already.
    fn answer(&mut self, client: Number, reply: &Reply, terminal: Option<OwnedFd>) {
        self.wait_for(client, Waits::Nothing);
        self.reply(client, reply, terminal);
        self.answer_requests(client);
    }

    fn reply(&mut self, client: Number, reply: &Reply, terminal: Option<OwnedFd>) {
        let taken = self.connections.get_mut(&client).is_none_or(|connection| connection.reply(reply, terminal));
        if !taken {
            self.drop_client(client);
        }
    }

    /// What it has asked for goes on without it, except a process it executed: that one was for it alone.
    fn drop_client(&mut self, number: Number) {
        let Some(connection) = self.connections.remove(&number) else { return };
        if let Waits::Process(pid) = connection.waits {
            kill_child(pid);
        }
        if let Waits::Attached(container) = connection.waits
            && let Some(container) = self.containers.get_mut(&container)
        {
            container.viewers.retain(|viewer| viewer.client != number);
        }
        for job in self.jobs.iter_mut().filter(|job| job.client == Some(number)) {
            job.client = None;
        }
        for container in self.containers.values_mut().filter(|container| container.removal == Some(Some(number))) {
            container.removal = Some(None);
        }
    }
}

/// Kills a child that has not been reaped yet, so that its PID is still its own.
fn kill_child(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended already; then there is nothing to do.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Both sides of a container's standard input, output and error.
#[derive(Default)]
struct Pipes {
    given: Vec<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    stdin: Option<OwnedFd>,
}

impl Pipes {
    fn open(with_stdin: bool) -> io::Result<Pipes> {
        let (input, stdin) = if with_stdin {
            let (input, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
            (input, Some(stdin))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let (stdout, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, error) = pipe_with(PipeFlags::CLOEXEC)?;
        for end in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Pipes { given: vec![input, output, error], outputs: [Some(stdout), Some(stderr)], stdin })
    }
}
