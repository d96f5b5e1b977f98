//! Pods as the agent runs them: it starts a shim for each, talks to it over its socket, and finds it again after a restart by the pod's folder.
//! Nothing a pod needs to go on running is kept in this process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use smol::Async;

use super::cgroup::Cgroup;
use super::seal;
use super::shim::protocol::{Arrived, Attach, Create, Exec, ExecUser, Inbox, Reply, Request, encode, send};
use super::shim::{self, BOOTED, BUNDLE_CONFIG, COMPLAINTS, CONFIG, CONTAINERS, ROLE, SOCKET, STATE, WRITABLE};
use super::spec::{Namespace, NamespaceKind, Root, Spec};
use crate::base::file;
use crate::base::time::{self, Timestamp};

pub use super::shim::PodConfig;
pub use super::shim::protocol::{AttachInput, Rootfs};
#[cfg(test)]
pub use super::shim::status::Exit;
pub use super::shim::status::{ContainerState, ContainerStatus};

/// How long a shim may take to stand up, or to finish what an agent that died left with it.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// As much as a shim's complaint adds to an error.
const COMPLAINT_MAX_BYTES: usize = 4096;

/// Where pods live on this machine.
#[derive(Clone)]
pub struct Runtime {
    pods: PathBuf,
    /// The program that knows the verb `shim`: this one.
    program: PathBuf,
}

/// A pod and the way to its shim. Cheap to clone.
#[derive(Clone)]
pub struct Pod(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    config: PodConfig,
    /// None: the shim is gone, and the containers with it.
    shim: Option<ShimProcess>,
}

struct ShimProcess {
    pid: i32,
    /// The first process of the shared PID namespace.
    init: Option<i32>,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// Unique in the pod, of letters, digits, `-` and `.`.
    pub id: String,
    pub name: String,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// Its root, cgroup and the namespaces that the pod holds (network, IPC, UTS, PID) are filled in; host name and other limits are the pod's.
    pub spec: Spec,
    pub rootfs: Rootfs,
    pub log_path: PathBuf,
    /// 0: the log grows without bound.
    pub log_max_bytes: u64,
    /// The current log file included.
    pub log_files_max: u32,
    pub stdin: bool,
    pub tty: bool,
}

/// A further process in a container; what is not set is as the container's own process has it.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    pub args: Vec<String>,
    /// `NAME=value`, added to the container's environment.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<ExecUser>,
}

/// What a process executed in a container reads and prints to.
pub enum ExecStdio {
    /// Standard input, output and error. They may be pipes, files, sockets: nothing stands between.
    Fds([OwnedFd; 3]),
    /// A terminal of the container's, whose controlling side comes back.
    Terminal,
}

/// A process being executed. Dropping it kills the process.
pub struct ExecProcess {
    client: Client,
    pub pid: i32,
    /// The controlling side of its terminal: read, write, and set its size with TIOCSWINSZ.
    pub terminal: Option<OwnedFd>,
}

/// A client attached to a container's first process. Dropping it lets go.
pub struct Attached {
    client: Client,
    /// The container's terminal, or else the write end of its standard input if that is there.
    pub input: Option<OwnedFd>,
}

/// The exits of a pod's containers: first those that have happened, then each as it does. A status that has been seen may come again after a reconnect.
pub struct Events(Client);

#[derive(Debug, PartialEq)]
pub enum Event {
    Exited(ContainerStatus),
    /// The shim is gone: ask `Runtime::pods` again, or stop the pod.
    Lost,
}

impl Runtime {
    /// Pods live in `run_dir/pods`, which should be on a tmpfs: what is in there is of no use after a reboot.
    pub fn new(run_dir: &Path) -> Runtime {
        Runtime::with_program(run_dir, Path::new("/proc/self/exe"))
    }

    fn with_program(run_dir: &Path, program: &Path) -> Runtime {
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
        Runtime { pods: run_dir.join("pods"), program: program.to_owned() }
    }

    /// Starts the shim of a new pod. After an error nothing of it is left.
    pub async fn run_pod(&self, config: PodConfig) -> Result<Pod> {
        check_name(&config.uid)?;
        let folder = self.pods.join(&config.uid);
        let launch = {
            let (folder, config, program) = (folder.clone(), config.clone(), self.program.clone());
            smol::unblock(move || launch(&folder, &config, &program))
        };
        launch.await.with_context(|| format!("start the shim of pod {}/{}", config.namespace, config.name))?;
        match hello(&folder).await {
            Ok(shim) => Ok(Pod(Arc::new(Inner { folder, config, shim: Some(shim) }))),
            Err(error) => {
                let complaint = complaint(&folder);
                let name = format!("{}/{}", config.namespace, config.name);
                let undone = Pod(Arc::new(Inner { folder, config, shim: None })).stop().await;
                undone.context("undo")?;
                Err(error.context(format!("set up pod {name}{complaint}")))
            }
        }
    }

    /// The pod of that UID, if it has not been stopped.
    pub async fn pod(&self, uid: &str) -> Result<Option<Pod>> {
        check_name(uid)?;
        let folder = self.pods.join(uid);
        let found = smol::unblock(move || Ok::<_, anyhow::Error>(fs::read(folder.join(CONFIG)).ok().map(|json| (folder, json)))).await?;
        let Some((folder, json)) = found else { return Ok(None) };
        let config = serde_json::from_slice(&json).with_context(|| format!("read {}", folder.join(CONFIG).display()))?;
        let shim = hello(&folder).await.inspect_err(|error| log::debug!("pod={uid} shim is lost: {error:#}")).ok();
        Ok(Some(Pod(Arc::new(Inner { folder, config, shim }))))
    }

    /// Every pod of this machine that has not been stopped, those whose shim is gone included (`Pod::is_lost`).
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods = self.pods.clone();
        let folders = smol::unblock(move || list(&pods)).await.context("list pods")?;
        let mut found = Vec::with_capacity(folders.len());
        for (folder, config) in folders {
            let shim = match hello(&folder).await {
                Ok(shim) => Some(shim),
                Err(error) => {
                    log::warn!("pod={}/{} shim is lost: {error:#}", config.namespace, config.name);
                    None
                }
            };
            found.push(Pod(Arc::new(Inner { folder, config, shim })));
        }
        Ok(found)
    }
}

impl Pod {
    pub fn config(&self) -> &PodConfig {
        &self.0.config
    }

    /// True if the shim was gone when this pod was found. One that is lost later says so by `Event::Lost`.
    pub fn is_lost(&self) -> bool {
        self.0.shim.is_none()
    }

    /// The shim's process, none for a lost pod.
    pub fn pid(&self) -> Option<i32> {
        self.0.shim.as_ref().map(|shim| shim.pid)
    }

    /// The pod's network namespace, the machine's for a pod that shares it; none for a lost pod.
    pub fn network_namespace(&self) -> Option<PathBuf> {
        self.pid().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// Makes the container's process, which waits to be started.
    pub async fn create_container(&self, config: ContainerConfig) -> Result<()> {
        let id = config.id.clone();
        self.try_create(config).await.with_context(|| format!("create container {id}"))
    }

    async fn try_create(&self, config: ContainerConfig) -> Result<()> {
        check_name(&config.id)?;
        let shim = self.0.shim.as_ref().context("the pod's shim is gone")?;
        let folder = self.container(&config.id);
        let spec = complete(config.spec, &self.0.config, shim, &config.id, config.tty);
        let bundle = serde_json::to_vec(&spec)?;
        let writable = config.rootfs.writable.clone();
        smol::unblock(move || write_bundle(&folder, &bundle, &writable)).await.context("write bundle")?;
        let create = Create {
            container: config.id,
            name: config.name,
            attempt: config.attempt,
            rootfs: config.rootfs,
            log_path: config.log_path,
            log_max_bytes: config.log_max_bytes,
            log_files_max: config.log_files_max,
            stdin: config.stdin,
            tty: config.tty,
        };
        self.done(Request::Create(create)).await
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.done(Request::Start { container: id.to_owned() }).await.with_context(|| format!("start container {id}"))
    }

    /// Sends `signal`, as the kernel numbers it, to the container's first process.
    ///
    /// # Errors
    /// When it has exited already, among others.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        self.done(Request::Kill { container: id.to_owned(), signal }).await
    }

    /// Kills what runs of it, then removes process, cgroup, record, bundle and writable layer. Its log stays.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        self.done(Request::Remove { container: id.to_owned() }).await.with_context(|| format!("remove container {id}"))
    }

    /// Executes a further process in a running container.
    pub async fn exec(&self, id: &str, config: ExecConfig, stdio: ExecStdio) -> Result<ExecProcess> {
        let ExecConfig { args, env, cwd, user } = config;
        let (tty, fds) = match stdio {
            ExecStdio::Fds(fds) => (false, Vec::from(fds)),
            ExecStdio::Terminal => (true, Vec::new()),
        };
        let request = Request::Exec(Exec { container: id.to_owned(), args, env, cwd, user, tty });
        let mut client = self.client().await?;
        match client.ask(&request, fds).await.with_context(|| format!("execute in container {id}"))? {
            (Reply::Started { pid }, fds) => Ok(ExecProcess { client, pid, terminal: fds.into_iter().next() }),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Shows what a running container prints from now on, on the pipes that are given for its standard output and error.
    pub async fn attach(&self, id: &str, input: AttachInput, [stdout, stderr]: [Option<OwnedFd>; 2]) -> Result<Attached> {
        let request = Request::Attach(Attach { container: id.to_owned(), input, stdout: stdout.is_some(), stderr: stderr.is_some() });
        let mut client = self.client().await?;
        let fds = stdout.into_iter().chain(stderr).collect();
        match client.ask(&request, fds).await.with_context(|| format!("attach to container {id}"))? {
            (Reply::Attached, fds) => Ok(Attached { client, input: fds.into_iter().next() }),
            (other, _) => Err(unexpected(other)),
        }
    }

    #[cfg(test)]
    /// The size of a container's terminal in characters.
    pub async fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<()> {
        self.done(Request::Resize { container: id.to_owned(), columns, rows }).await
    }

    /// Every container that has been created and not removed, in the order of their creation.
    pub async fn status(&self) -> Result<Vec<ContainerStatus>> {
        if self.is_lost() {
            return self.last_status().await;
        }
        match self.ask(Request::Status).await? {
            Reply::Status(containers) => Ok(containers),
            other => Err(unexpected(other)),
        }
    }

    /// What a shim that is gone wrote down of the containers; what ran then has died with it.
    pub async fn last_status(&self) -> Result<Vec<ContainerStatus>> {
        let containers = self.0.folder.join(CONTAINERS);
        smol::unblock(move || records(&containers)).await.context("read records of a lost pod")
    }

    pub async fn events(&self) -> Result<Events> {
        let client = self.client().await?;
        client.send(&Request::Events, &[]).await?;
        Ok(Events(client))
    }

    /// Kills what is left of the pod, its shim included, and removes all of it but the logs. Doing it again, or to a lost pod, is fine.
    pub async fn stop(&self) -> Result<()> {
        let pod = self.clone();
        let name = format!("{}/{}", self.0.config.namespace, self.0.config.name);
        smol::unblock(move || clear(&pod.0.folder, &pod.0.config.cgroup)).await.with_context(|| format!("stop pod {name}"))
    }

    fn container(&self, id: &str) -> PathBuf {
        self.0.folder.join(CONTAINERS).join(id)
    }

    async fn client(&self) -> Result<Client> {
        if self.is_lost() {
            bail!("the pod's shim is gone");
        }
        Client::connect(&self.0.folder).await
    }

    async fn ask(&self, request: Request) -> Result<Reply> {
        Ok(self.client().await?.ask(&request, Vec::new()).await?.0)
    }

    async fn done(&self, request: Request) -> Result<()> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

impl ExecProcess {
    /// Waits for the process to end; its exit code as a shell has it, 128 and the signal's number for one that was killed.
    pub async fn wait(mut self) -> Result<i32> {
        match self.client.next().await?.0 {
            Reply::Ended { code } => Ok(code),
            other => Err(unexpected(other)),
        }
    }
}

impl Attached {
    /// Waits for the container to exit.
    ///
    /// # Errors
    /// When what it prints was not read as fast as it came, among others.
    pub async fn wait(mut self) -> Result<()> {
        match self.client.next().await?.0 {
            Reply::Ended { .. } => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

impl Events {
    pub async fn next(&mut self) -> Event {
        match self.0.next().await {
            Ok((Reply::Exited(status), _)) => Event::Exited(status),
            Ok(_) | Err(_) => Event::Lost,
        }
    }
}

/// One connection to a shim.
struct Client {
    socket: Async<UnixStream>,
    inbox: Inbox,
}

impl Client {
    async fn connect(folder: &Path) -> Result<Client> {
        let (_open, path) = socket_path(folder).context("find the pod's shim")?;
        let socket = Async::<UnixStream>::connect(&path).await.context("connect to the pod's shim")?;
        Ok(Client { socket, inbox: Inbox::default() })
    }

    async fn ask(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>)> {
        self.send(request, &fds).await?;
        self.next().await
    }

    async fn send(&self, request: &Request, fds: &[OwnedFd]) -> Result<()> {
        let frame = encode(request)?;
        let mut fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < frame.len() {
            sent += self.socket.write_with(|socket| send(socket, &frame[sent..], &fds)).await.context("ask the pod's shim")?;
            fds.clear();
        }
        Ok(())
    }

    /// The next answer; a failure that the shim reports is an error.
    async fn next(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        loop {
            match self.inbox.take().context("read the answer of the pod's shim")? {
                Some((Reply::Failed(error), _)) => bail!(error),
                Some(answer) => return Ok(answer),
                None => {}
            }
            let inbox = std::cell::RefCell::new(&mut self.inbox);
            let arrived = self.socket.read_with(|socket| match inbox.borrow_mut().receive(socket)? {
                Arrived::NothingNow => Err(io::ErrorKind::WouldBlock.into()),
                arrived => Ok(arrived),
            });
            if arrived.await.context("read the answer of the pod's shim")? == Arrived::Closed {
                bail!("the pod's shim has died");
            }
        }
    }
}

async fn hello(folder: &Path) -> Result<ShimProcess> {
    let greet = async {
        match Client::connect(folder).await?.ask(&Request::Hello, Vec::new()).await?.0 {
            Reply::Ready { pid, init } => Ok(ShimProcess { pid, init }),
            other => Err(unexpected(other)),
        }
    };
    let late = async {
        smol::Timer::after(HELLO_TIMEOUT).await;
        bail!("the pod's shim does not answer")
    };
    smol::future::or(greet, late).await
}

fn unexpected(reply: Reply) -> anyhow::Error {
    anyhow::anyhow!("the pod's shim answered {reply:?}")
}

/// A way to the socket that is short enough for `sockaddr_un` (108 bytes, unix(7)) however deep the folder lies; good while the descriptor is open.
fn socket_path(folder: &Path) -> io::Result<(File, PathBuf)> {
    let open = File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd()));
    Ok((open, path))
}

/// Names become parts of paths.
fn check_name(name: &str) -> Result<()> {
    let fine = !name.is_empty() && name.len() <= 128 && !name.starts_with('.');
    if !fine || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        bail!("{name:?} is no name for a pod or container");
    }
    Ok(())
}

/// The socket is bound and listens here, before there is a shim: whoever can connect knows that one runs or is about to, and whoever is refused that there is none.
fn launch(folder: &Path, config: &PodConfig, program: &Path) -> Result<()> {
    let make = |folder: &Path, recursive| fs::DirBuilder::new().mode(0o700).recursive(recursive).create(folder);
    make(folder.parent().context("the folder has no parent")?, true).context("make the folder of pods")?;
    make(folder, false).context("make the pod's folder")?;
    let start = || -> Result<()> {
        for inner in [CONTAINERS, STATE] {
            make(&folder.join(inner), false).context("make the pod's folder")?;
        }
        file::replace(&folder.join(CONFIG), &serde_json::to_vec(config)?, 0o600).context("write the pod's configuration")?;
        let complaints = File::create(folder.join(COMPLAINTS)).context("make the shim's log")?;
        let (_open, path) = socket_path(folder)?;
        let listener = UnixListener::bind(path).context("bind the shim's socket")?;
        // So that no container can write to our program by way of its shim.
        let sealed = seal::program(program)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
        command.arg0("edgectl").arg(ROLE).arg(folder).env_clear().current_dir("/");
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(complaints);
        command.envs(time::booted().map(|booted| (BOOTED, booted.to_string())));
        let status = command.status().context("execute the shim")?;
        if !status.success() {
            bail!("the shim ended with {status}{}", complaint(folder));
        }
        Ok(())
    };
    let started = start();
    if started.is_err() {
        // The first error is the one to report.
        let _ = file::remove_tree(folder);
    }
    started
}

/// What a shim that failed had to say, to be appended to an error.
fn complaint(folder: &Path) -> String {
    let mut text = fs::read_to_string(folder.join(COMPLAINTS)).unwrap_or_default();
    text.truncate(text.floor_char_boundary(COMPLAINT_MAX_BYTES));
    match text.trim() {
        "" => String::new(),
        text => format!(" ({text})"),
    }
}

fn list(pods: &Path) -> io::Result<Vec<(PathBuf, PodConfig)>> {
    let entries = match fs::read_dir(pods) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        match fs::read(folder.join(CONFIG)).and_then(|json| Ok(serde_json::from_slice(&json)?)) {
            Ok(config) => found.push((folder, config)),
            // The agent died before it wrote this, so there is nothing else either.
            Err(_) => file::remove_tree(&folder)?,
        }
    }
    Ok(found)
}

/// The records of containers whose shim is gone.
fn records(containers: &Path) -> io::Result<Vec<ContainerStatus>> {
    let now = Timestamp::now();
    let mut found = Vec::new();
    for entry in fs::read_dir(containers)? {
        match ContainerStatus::load(&entry?.path()) {
            Ok(status) => found.push(status.without_shim(now)),
            // Never created: its creator died with the shim.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|status| status.created_at);
    Ok(found)
}

fn write_bundle(folder: &Path, spec: &[u8], writable: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
    file::remove(&folder.join(WRITABLE))?;
    std::os::unix::fs::symlink(writable, folder.join(WRITABLE))?;
    file::replace(&folder.join(BUNDLE_CONFIG), spec, 0o600)
}

/// What the pod decides about a container: its cgroup, its root, and which namespaces it gets besides those that its shim holds.
fn complete(mut spec: Spec, pod: &PodConfig, shim: &ShimProcess, id: &str, tty: bool) -> Spec {
    let readonly = spec.root.is_some_and(|root| root.readonly);
    // An overlay takes its place.
    spec.root = Some(Root { path: PathBuf::from("rootfs"), readonly });
    // The shim has the host name.
    spec.hostname = String::new();
    spec.domainname = String::new();
    if let Some(process) = &mut spec.process {
        process.terminal = tty;
    }
    let linux = spec.linux.get_or_insert_default();
    linux.cgroups_path = Some(pod.cgroup.join(id));
    let held = [NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Pid];
    linux.namespaces.retain(|namespace| !held.contains(&namespace.kind));
    match shim.init {
        Some(init) => linux.namespaces.push(Namespace { kind: NamespaceKind::Pid, path: Some(format!("/proc/{init}/ns/pid").into()) }),
        None if pod.host_pid => {}
        None => linux.namespaces.push(Namespace { kind: NamespaceKind::Pid, path: None }),
    }
    spec
}

/// Removes a pod whether or not its shim lives: both die with the pod's cgroup.
fn clear(folder: &Path, cgroup: &Path) -> Result<()> {
    let cgroup = Cgroup::at(cgroup)?;
    cgroup.kill().context("kill what is left")?;
    cgroup.remove().context("remove the pod's cgroup")?;
    let containers = match fs::read_dir(folder.join(CONTAINERS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.context("list containers")?),
    };
    for entry in containers.into_iter().flatten() {
        let container = entry.context("list containers")?.path();
        shim::remove_files(&container)?;
    }
    file::remove_tree(folder).with_context(|| format!("remove {}", folder.display()))
}

#[cfg(test)]
mod tests;
