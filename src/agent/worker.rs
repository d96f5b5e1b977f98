//! One task for each pod: it asks the machine what to do next, does it, and writes down what came of it. What may take long
//! (a pull) is given up when the pod changes. It decides nothing that the machine could decide.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use event_listener::Event as Wake;
use futures_lite::FutureExt;
use serde_json::Value;
use smol::Timer;

use super::Node;
use super::container::{self, Surroundings};
use super::environment::{self, Facts, Found, Source};
use super::ledger;
use super::machine::{self, Action, ContainerState, Exit, Record, Retry, State};
use super::recorder::Severity;
use super::report::Report;
use super::resources;
use super::sources::{Version, Versions};
use super::volumes::{self, Content, Folders, TokenWanted, Tokens};
use crate::api::pod::{Container, Pod};
use crate::base::time::Timestamp;
use crate::base::{file, id};
use crate::image::{Claim, Image, Reference};
use crate::network::{AttachConfig, HostPort, Protocol};
use crate::runtime::pod::{self as runtime, ContainerConfig, PodConfig, Rootfs};

/// A service account token is replaced when this part of its life is over. KEP-1205.
const TOKEN_REFRESH: f64 = 0.8;
/// Pause before a refresh that failed is tried again.
const REFRESH_RETRY: Duration = Duration::from_secs(60);
/// The kubelet's defaults: `containerLogMaxSize`, `containerLogMaxFiles`.
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES_MAX: u32 = 5;
/// A termination message longer than this is cut. k8s.io/kubernetes/pkg/kubelet/container: `MaxContainerTerminationMessageLength`.
const MESSAGE_BYTES_MAX: usize = 4096;
const MESSAGE_LOG_BYTES_MAX: usize = 2048;
/// The node's files in a container.
const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
/// Words of the pod's status.
const CONFIG_ERROR: &str = "CreateContainerConfigError";
const CREATE_ERROR: &str = "CreateContainerError";
const START_ERROR: &str = "RunContainerError";

/// Where the rest of the agent leaves what it hears of a pod.
pub struct Mailbox {
    pod: RefCell<Rc<Pod>>,
    /// The object is gone from the API.
    gone: Cell<bool>,
    /// The ConfigMaps and Secrets in the pod's volumes, as they were read for them.
    pub versions: RefCell<Versions>,
    /// One of them has changed since.
    stale: Cell<bool>,
    wake: Wake,
}

impl Mailbox {
    pub fn new(pod: Pod) -> Self {
        let pod = RefCell::new(Rc::new(pod));
        Self { pod, gone: Cell::new(false), versions: RefCell::default(), stale: Cell::new(false), wake: Wake::new() }
    }

    pub fn update(&self, pod: Pod) {
        self.pod.replace(Rc::new(pod));
        self.wake.notify(usize::MAX);
    }

    pub fn gone(&self) {
        self.gone.set(true);
        self.wake.notify(usize::MAX);
    }

    /// What the pod's volumes show is no longer what the API has.
    pub fn outdated(&self) {
        self.stale.set(true);
        self.wake.notify(usize::MAX);
    }

    pub fn pod(&self) -> Rc<Pod> {
        self.pod.borrow().clone()
    }
}

/// Labels and annotations.
type Shown = (BTreeMap<String, String>, BTreeMap<String, String>);

/// A pod on this node.
pub struct Worker {
    node: Rc<Node>,
    mailbox: Rc<Mailbox>,
    record: Record,
    folders: Folders,
    logs: PathBuf,
    sandbox: Option<runtime::Pod>,
    exits: Option<runtime::Events>,
    pod_ip: String,
    volumes: BTreeMap<String, Content>,
    /// Labels and annotations as the volumes show them; None while there are no volumes.
    shown: Option<Shown>,
    tokens: Tokens,
    /// When the tokens in the volumes must be replaced.
    refresh: Option<Timestamp>,
    stop_signals: BTreeMap<String, i32>,
    report: Report,
    /// The phase that the ledger has.
    noted_phase: String,
}

impl Worker {
    pub fn new(node: Rc<Node>, mailbox: Rc<Mailbox>) -> Self {
        let pod = mailbox.pod();
        let uid = &pod.metadata.uid;
        let folders = Folders { state: node.places.state.join("pods").join(uid), run: node.places.run.join("volumes").join(uid) };
        let name = format!("{}_{}_{uid}", pod.metadata.namespace, pod.metadata.name);
        Self {
            record: Record::new(&pod, Timestamp::now()),
            folders,
            logs: node.places.logs.join(name),
            sandbox: None,
            exits: None,
            pod_ip: String::new(),
            volumes: BTreeMap::new(),
            shown: None,
            tokens: Tokens::new(),
            refresh: None,
            stop_signals: BTreeMap::new(),
            report: Report::new(node.client.clone(), &pod),
            noted_phase: String::new(),
            node,
            mailbox,
        }
    }

    /// Lives as long as the pod does on this node. `found`: the pod's sandbox, if an agent before this one left it running.
    pub async fn run(mut self, found: Option<runtime::Pod>) {
        let pod = self.pod();
        match found {
            Some(sandbox) => {
                if let Err(error) = self.adopt(&pod, sandbox).await {
                    log::error!("pod={} adopt: {error:#}", pod.full_name());
                }
            }
            None => self.recall(&pod),
        }
        loop {
            let pod = self.pod();
            let before = self.record.state;
            let action = machine::step(&pod, &mut self.record, Timestamp::now());
            if self.record.state != before {
                log::info!("pod={} {before:?} -> {:?}", pod.full_name(), self.record.state);
            }
            self.node.note_runs(&pod, &self.record);
            let status = super::status::status(&pod, &self.record, &self.node.facts.host_ip, &self.pod_ip, Timestamp::now());
            self.note_phase(&pod, &status);
            if !self.mailbox.gone.get() {
                self.report.send(&pod, status);
            }
            match action {
                Action::Wait(until) => self.wait(until).await,
                Action::Release if self.release(&pod).await => return,
                Action::Release => self.wait(Some(Timestamp::now().plus(Duration::from_secs(1)))).await,
                Action::Prepare => self.prepare(&pod).await,
                Action::Start(name) => self.start(&pod, &name).await,
                Action::Terminate => self.signal(&pod, true).await,
                Action::Kill => self.signal(&pod, false).await,
                Action::Teardown => self.teardown(&pod).await,
            }
        }
    }

    /// Tells the ledger how far the pod has come; one that never ran comes from the beginning.
    fn note_phase(&mut self, pod: &Pod, status: &Value) {
        let phase = status["phase"].as_str().unwrap_or_default();
        if self.noted_phase != phase && phase != "Pending" {
            self.noted_phase = phase.to_owned();
            self.node.ledger.note_status(&pod.metadata.uid, status);
        }
    }

    /// The pod as it is wanted now. One that is gone from the API is one that is being deleted.
    fn pod(&self) -> Rc<Pod> {
        let pod = self.mailbox.pod();
        if !self.mailbox.gone.get() || pod.is_deleting() {
            return pod;
        }
        let mut pod = Pod::clone(&pod);
        let grace = pod.spec.termination_grace_period_seconds.unwrap_or(30).max(0);
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        pod.metadata.deletion_timestamp = Some(Timestamp::now().plus(Duration::from_secs(grace as u64)).to_string());
        self.mailbox.update(pod);
        self.mailbox.pod()
    }

    /// Waits for the pod to change, a container to end, or an instant to come.
    async fn wait(&mut self, until: Option<Timestamp>) {
        enum Heard {
            Changed,
            Exit(runtime::Event),
        }
        let changed = self.mailbox.wake.listen();
        let until = [until, self.refresh].into_iter().flatten().min();
        let timer = async {
            match until {
                Some(until) => Timer::after(until.since(Timestamp::now())).await,
                None => std::future::pending().await,
            };
            Heard::Changed
        };
        let exits = &mut self.exits;
        let exit = async {
            match exits {
                Some(exits) => Heard::Exit(exits.next().await),
                None => std::future::pending().await,
            }
        };
        let mailbox = self.mailbox.clone();
        let listen = async {
            // It may have become so while the worker was at something else.
            if !mailbox.stale.get() {
                changed.await;
            }
            Heard::Changed
        };
        let heard = listen.or(exit).or(timer).await;
        match heard {
            Heard::Changed => (),
            Heard::Exit(runtime::Event::Exited(status)) => self.note_exit(&status),
            Heard::Exit(runtime::Event::Lost) => self.lost().await,
        }
        let due = self.refresh.is_some_and(|refresh| refresh <= Timestamp::now());
        if self.mailbox.stale.take() | due || self.shows_another(&self.mailbox.pod()) {
            self.follow_sources().await;
        }
    }

    /// Whether the pod has other labels or annotations than its volumes show.
    fn shows_another(&self, pod: &Pod) -> bool {
        let metadata = &pod.metadata;
        volumes::show_fields(pod)
            && self.shown.as_ref().is_some_and(|(labels, annotations)| *labels != metadata.labels || *annotations != metadata.annotations)
    }

    /// Makes the volumes show what the API has now. What cannot be had leaves them as they are.
    async fn follow_sources(&mut self) {
        let pod = self.pod();
        if self.shown.is_none() || pod.is_deleting() {
            // Nobody needs a fresh token any more, and an instant in the past would wake the worker again and again.
            self.refresh = None;
            return;
        }
        if let Err(error) = self.fill_volumes(&pod).await {
            log::warn!("pod={} refresh volumes: {error:#}", pod.full_name());
            self.node.recorder.pod(&pod, None, Severity::Warning, "FailedMount", format!("{error:#}"));
            self.shown = Some((pod.metadata.labels.clone(), pod.metadata.annotations.clone()));
            self.refresh = self.refresh.map(|refresh| refresh.max(Timestamp::now().plus(REFRESH_RETRY)));
        }
    }

    /// Takes over what an earlier agent started.
    async fn adopt(&mut self, pod: &Pod, sandbox: runtime::Pod) -> anyhow::Result<()> {
        let mut containers = sandbox.status().await?;
        containers.sort_by_key(|container| container.attempt);
        self.record.sandbox = true;
        if let Some(since) = pod.status["startTime"].as_str().and_then(Timestamp::parse) {
            self.record.started = since;
        }
        self.recall_containers(&pod.status);
        for status in &containers {
            if let Some(known) = self.record.containers.get_mut(&status.name) {
                if let ContainerState::Exited(exit) = &known.state {
                    known.last = Some(exit.clone());
                }
                known.restarts = known.restarts.max(status.attempt);
                // It is this run that is counted; `running` would count it as one more.
                known.id.clear();
            }
            match &status.state {
                runtime::ContainerState::Running { started_at } => {
                    self.record.running(&status.name, status.id.clone(), *started_at);
                    if let Some(known) = self.record.containers.get_mut(&status.name) {
                        known.restarts = status.attempt;
                    }
                }
                runtime::ContainerState::Exited(_) => self.note_exit(status),
                // Made but never started: nothing of it is worth keeping.
                runtime::ContainerState::Created => {
                    sandbox.remove_container(&status.id).await?;
                    continue;
                }
            }
            if let Some(known) = self.record.containers.get_mut(&status.name) {
                known.id = status.id.clone();
            }
        }
        let attachment = self.node.network.attachment(&pod.metadata.uid);
        self.pod_ip = match (pod.spec.host_network, attachment) {
            (true, _) => self.node.facts.host_ip.clone(),
            (false, Some(attachment)) => attachment.address.to_string(),
            // The agent before this one was killed between the two: prepare goes on with the sandbox that is there.
            (false, None) => {
                self.record.sandbox = false;
                self.sandbox = Some(sandbox);
                return Ok(());
            }
        };
        if sandbox.is_lost() {
            self.sandbox = Some(sandbox);
            self.lost().await;
            return Ok(());
        }
        self.exits = Some(sandbox.events().await?);
        self.sandbox = Some(sandbox);
        self.fill_volumes(pod).await
    }

    /// A pod of which nothing runs, but which may have been far: it ended, or the machine has been started anew since.
    fn recall(&mut self, pod: &Pod) {
        let is_told = matches!(pod.status["phase"].as_str(), Some("Succeeded" | "Failed"));
        let status = match self.node.ledger.status(&pod.metadata.uid) {
            Some(known) if !is_told => known,
            _ => pod.status.clone(),
        };
        match status["phase"].as_str() {
            Some("Succeeded" | "Failed") => {
                self.recall_containers(&status);
                self.record.state = State::Ended;
                if is_told {
                    self.report.keep();
                }
            }
            Some("Running") => {
                self.recall_containers(&status);
                self.recall_running(&status);
                self.record.rebooted(pod, Timestamp::now());
                if let Some(since) = status["startTime"].as_str().and_then(Timestamp::parse) {
                    self.record.started = since;
                }
                if let Err(error) = file::remove_tree(&self.folders.state.join("containers")) {
                    log::error!("pod={} remove what its containers wrote: {error}", pod.full_name());
                }
            }
            _ => (),
        }
    }

    /// What `status` has of the containers.
    fn recall_containers(&mut self, status: &Value) {
        for status in container_statuses(status) {
            let Some(known) = status["name"].as_str().and_then(|name| self.record.containers.get_mut(name)) else { continue };
            known.restarts = status["restartCount"].as_u64().unwrap_or(0) as u32;
            known.image = status["image"].as_str().unwrap_or_default().to_owned();
            known.image_id = status["imageID"].as_str().unwrap_or_default().to_owned();
            known.last = recalled_exit(&status["lastState"]["terminated"]);
            if let Some(exit) = recalled_exit(&status["state"]["terminated"]) {
                known.id = exit.id.clone();
                known.state = ContainerState::Exited(exit);
            }
        }
    }

    /// Which containers ran by `status`. One that waited for its next run has had one, too.
    fn recall_running(&mut self, status: &Value) {
        for status in container_statuses(status) {
            let Some(known) = status["name"].as_str().and_then(|name| self.record.containers.get_mut(name)) else { continue };
            if let Some(since) = status["state"]["running"]["startedAt"].as_str().and_then(Timestamp::parse) {
                known.state = ContainerState::Running { since };
            }
            if known.id.is_empty() {
                known.id = runtime_id(&status["containerID"]);
            }
        }
    }

    fn note_exit(&mut self, status: &runtime::ContainerStatus) {
        let runtime::ContainerState::Exited(exit) = &status.state else { return };
        let known = self.record.containers.get(&status.name);
        let seen = known.is_none_or(|known| matches!(&known.state, ContainerState::Exited(seen) if seen.id == status.id));
        let earlier = known.is_some_and(|known| !known.id.is_empty() && known.id != status.id);
        if seen || earlier {
            return;
        }
        let pod = self.mailbox.pod();
        let exit = Exit {
            code: exit.code,
            signal: exit.signal.unwrap_or(0),
            oom_killed: exit.oom_killed,
            lost: false,
            started: exit.started_at.unwrap_or(exit.finished_at),
            finished: exit.finished_at,
            message: self.termination_message(&pod, &status.name, exit.code),
            id: status.id.clone(),
        };
        log::info!("pod={} container={} exited code={} reason={}", pod.full_name(), status.name, exit.code, exit.reason());
        self.record.exited(&status.name, exit);
    }

    /// The shim is gone and with it every container: what ran is counted as killed, and a new sandbox is made.
    async fn lost(&mut self) {
        let pod = self.mailbox.pod();
        log::error!("pod={} its shim is gone; starting it anew", pod.full_name());
        self.exits = None;
        if let Some(sandbox) = self.sandbox.take() {
            match sandbox.last_status().await {
                Ok(containers) => containers.iter().for_each(|status| self.note_exit(status)),
                Err(error) => log::error!("pod={} {error:#}", pod.full_name()),
            }
            if let Err(error) = sandbox.stop().await {
                log::error!("pod={} {error:#}", pod.full_name());
            }
        }
        let now = Timestamp::now();
        let running: Vec<String> = self.record.containers.keys().filter(|name| self.record.is_running(name)).cloned().collect();
        for name in running {
            let id = self.record.containers.get(&name).map(|known| known.id.clone()).unwrap_or_default();
            self.record.exited(&name, Exit { code: 137, signal: 9, started: now, finished: now, id, ..Exit::default() });
        }
        self.record.restart_sandbox();
    }

    fn termination_message(&self, pod: &Pod, name: &str, code: i32) -> String {
        let cut = |bytes: Vec<u8>, max: usize| {
            let from = bytes.len().saturating_sub(max);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        let message = std::fs::read(self.termination_log(name)).unwrap_or_default();
        let container = pod.container(name);
        let from_log = container.is_some_and(|container| container.termination_message_policy == "FallbackToLogsOnError");
        match message.is_empty() && from_log && code != 0 {
            true => {
                let attempt = self.record.containers.get(name).map_or(0, |known| known.restarts);
                let lines = super::logs::last_lines(&self.log_path(name, attempt), MESSAGE_LOG_BYTES_MAX);
                cut(lines.unwrap_or_default(), MESSAGE_LOG_BYTES_MAX)
            }
            false => cut(message, MESSAGE_BYTES_MAX),
        }
    }

    fn termination_log(&self, container: &str) -> PathBuf {
        self.folders.run.join("termination").join(container)
    }

    fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }

    /// Volumes, namespaces, network.
    async fn prepare(&mut self, pod: &Pod) {
        let started = Instant::now();
        let prepared = self.try_prepare(pod).await;
        match prepared {
            Ok(()) => {
                self.record.sandbox = true;
                self.record.retry = Retry::default();
                log::info!("pod={} sandbox ready ip={} took_ms={}", pod.full_name(), self.pod_ip, started.elapsed().as_millis());
            }
            Err((reason, error)) => {
                self.record.retry.fail(Timestamp::now());
                let message = format!("{error:#}");
                // Half a sandbox is none: the pod may be deleted before the next try. Its volumes stay, they may hold data.
                if let Err(error) = self.undo_sandbox(pod).await {
                    log::warn!("pod={} undo: {error:#}", pod.full_name());
                }
                log::warn!("pod={} {reason}: {message}", pod.full_name());
                self.node.recorder.pod(pod, None, Severity::Warning, reason, message);
            }
        }
    }

    async fn try_prepare(&mut self, pod: &Pod) -> Result<(), (&'static str, anyhow::Error)> {
        self.fill_volumes(pod).await.map_err(|error| ("FailedMount", error))?;
        self.make_sandbox(pod).await.map_err(|error| ("FailedCreatePodSandBox", error.context("failed to create pod sandbox")))
    }

    async fn make_sandbox(&mut self, pod: &Pod) -> anyhow::Result<()> {
        let Pod { metadata, spec, .. } = pod;
        let sandbox = match &self.sandbox {
            Some(sandbox) => sandbox.clone(),
            None => {
                let sandbox = self
                    .node
                    .runtime
                    .run_pod(PodConfig {
                        uid: metadata.uid.clone(),
                        namespace: metadata.namespace.clone(),
                        name: metadata.name.clone(),
                        hostname: pod.hostname(),
                        cgroup: resources::cgroup(&self.node.cgroup_root, pod).into(),
                        host_network: spec.host_network,
                        host_pid: spec.host_pid,
                        host_ipc: spec.host_ipc,
                        share_process_namespace: spec.share_process_namespace,
                        sysctls: spec.security_context.sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
                        ..PodConfig::default()
                    })
                    .await?;
                self.sandbox.insert(sandbox).clone()
            }
        };
        self.pod_ip = match spec.host_network {
            true => self.node.facts.host_ip.clone(),
            false => {
                let netns = sandbox.network_namespace().context("the shim is gone")?;
                let attach = AttachConfig { pod_uid: &metadata.uid, netns: &netns, host_ports: &host_ports(pod) };
                let attachment = self.node.network.attach(&attach).await.context("attach network")?;
                self.node.isolate(&metadata.uid).await.context("isolate as network policies say")?;
                attachment.address.to_string()
            }
        };
        self.write_files(pod)?;
        self.exits = Some(sandbox.events().await?);
        Ok(())
    }

    /// The files in which a pod reads its own name and its name servers.
    fn write_files(&self, pod: &Pod) -> anyhow::Result<()> {
        let (hosts, resolv) = self.node.pod_files(pod, &self.pod_ip);
        for (name, content) in [("hosts", hosts), ("resolv.conf", resolv), ("hostname", format!("{}\n", pod.hostname()))] {
            let path = self.folders.run.join(name);
            std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    async fn fill_volumes(&mut self, pod: &Pod) -> anyhow::Result<()> {
        let found = self.find_for_volumes(pod).await?;
        if self.refresh.is_none_or(|refresh| refresh <= Timestamp::now()) {
            self.get_tokens(pod).await?;
        }
        let facts = self.facts();
        let plan = volumes::plan(pod, &found, &self.tokens, &facts).map_err(anyhow::Error::msg)?;
        let (folders, group) = (self.folders.clone(), pod.spec.security_context.fs_group);
        let applied = plan.clone();
        smol::unblock(move || volumes::apply(&applied, &folders, group)).await?;
        self.volumes = plan;
        self.shown = Some((pod.metadata.labels.clone(), pod.metadata.annotations.clone()));
        Ok(())
    }

    async fn get_tokens(&mut self, pod: &Pod) -> anyhow::Result<()> {
        let mut tokens = Tokens::new();
        let mut refresh: Option<Timestamp> = None;
        for wanted in volumes::tokens(pod) {
            let (token, life) = match self.token(pod, &wanted).await.context("get a service account token")? {
                Some(token) => (token, Duration::from_secs(wanted.seconds).mul_f64(TOKEN_REFRESH)),
                // Who could be shown a better one is away with the master.
                None => (self.tokens.get(&wanted).cloned().unwrap_or_default(), ledger::AWAY),
            };
            let at = Timestamp::now().plus(life);
            refresh = Some(refresh.map_or(at, |refresh| refresh.min(at)));
            tokens.insert(wanted, token);
        }
        (self.tokens, self.refresh) = (tokens, refresh);
        Ok(())
    }

    /// A token of the pod's service account; None if the master is away.
    async fn token(&self, pod: &Pod, wanted: &TokenWanted) -> anyhow::Result<Option<String>> {
        if self.node.ledger.is_away() {
            return Ok(None);
        }
        match self.node.token(pod, wanted).await {
            Ok(token) => Ok(Some(token)),
            Err(error) if self.node.ledger.is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the volumes are made of, and a note of what was read, so that it is seen when that changes.
    async fn find_for_volumes(&self, pod: &Pod) -> anyhow::Result<Found> {
        let mut found = Found::new();
        let mut versions = Versions::new();
        for source in volumes::sources(pod) {
            let object = self.read(pod, &source).await?;
            versions.insert(source.clone(), Version::of(object.as_ref()));
            found.extend(object.map(|object| (source, environment::data(&object))));
        }
        self.mailbox.versions.replace(versions);
        Ok(found)
    }

    /// A ConfigMap or Secret; as the pod read it last, if the master cannot be asked.
    async fn read(&self, pod: &Pod, source: &Source) -> anyhow::Result<Option<Value>> {
        let ledger = &self.node.ledger;
        let uid = &pod.metadata.uid;
        let known = || ledger.source(uid, source);
        if ledger.is_away()
            && let Some(known) = known()
        {
            return Ok(known);
        }
        match self.node.read(&pod.metadata.namespace, source).await {
            Ok(object) => {
                ledger.note_source(uid, source, object.as_ref());
                Ok(object)
            }
            Err(error) if ledger.is_absence(&error) => known().ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn facts(&self) -> Facts {
        Facts { pod_ip: self.pod_ip.clone(), ..self.node.facts.clone() }
    }

    async fn find(&self, pod: &Pod, sources: Vec<Source>) -> anyhow::Result<Found> {
        let mut found = Found::new();
        for source in sources {
            if !found.contains_key(&source)
                && let Some(object) = self.read(pod, &source).await?
            {
                found.insert(source, environment::data(&object));
            }
        }
        Ok(found)
    }

    /// Gets the image, makes the container and starts it.
    async fn start(&mut self, pod: &Pod, name: &str) {
        let Some(container) = pod.container(name) else { return };
        let Some(image) = self.image(pod, container).await else { return };
        let started = Instant::now();
        if let Err((reason, message)) = self.try_start(pod, container, &image).await {
            log::warn!("pod={} container={name} {reason}: {message}", pod.full_name());
            self.node.recorder.pod(pod, Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
            self.record.not_started(name, reason, message, Timestamp::now());
            return;
        }
        log::info!("pod={} container={name} running took_ms={}", pod.full_name(), started.elapsed().as_millis());
    }

    async fn try_start(&mut self, pod: &Pod, container: &Container, image: &Image) -> Result<(), (&'static str, String)> {
        let name = &container.name;
        let config_error = |message: String| (CONFIG_ERROR, message);
        let found = self.find(pod, environment::sources(container)).await.map_err(|error| config_error(format!("{error:#}")))?;
        let environment = environment::environment(pod, container, &image.config.env, &found, &self.facts()).map_err(config_error)?;
        let termination_log = self.termination_log(name);
        let write = || {
            std::fs::create_dir_all(termination_log.parent().unwrap_or(&self.folders.run))?;
            file::remove(&termination_log)?;
            std::fs::write(&termination_log, "")?;
            // Any user of the container may write its last words.
            std::fs::set_permissions(&termination_log, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        };
        write().map_err(|error| (CREATE_ERROR, format!("make the termination log: {error}")))?;
        let files = FILES.map(|name| (name, self.folders.run.join(name.trim_start_matches("/etc/"))));
        let around = Surroundings {
            image,
            environment,
            volumes: &self.volumes,
            folders: &self.folders,
            files: files.into(),
            termination_log,
            node_memory_bytes: self.node.facts.node_memory_bytes,
            oom_score_min: self.node.oom_score_min,
        };
        let spec = container::spec(pod, container, &around).map_err(config_error)?;
        let sandbox = self.sandbox.clone().ok_or((CREATE_ERROR, "the pod's shim is gone".to_owned()))?;
        let known = self.record.containers.get(name).cloned().unwrap_or_default();
        let attempt = known.next_attempt();
        let id: String = id::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
        let writable = self.folders.state.join("containers").join(&id);
        let claim = Claim { image: image.id, holder: format!("pod {}, container {name}", pod.full_name()) };
        claim.write(&writable).map_err(|error| (CREATE_ERROR, format!("{error:#}")))?;
        let made = sandbox
            .create_container(ContainerConfig {
                id: id.clone(),
                name: name.clone(),
                attempt,
                spec,
                rootfs: Rootfs { lower: image.layers.iter().rev().cloned().collect(), writable: writable.clone() },
                log_path: self.log_path(name, attempt),
                log_max_bytes: LOG_BYTES_MAX,
                log_files_max: LOG_FILES_MAX,
                stdin: container.stdin,
                tty: container.tty,
            })
            .await;
        if let Err(error) = made {
            // Whatever is left of it must not hold the image.
            let _ = file::remove_tree(&writable);
            return Err((CREATE_ERROR, format!("{error:#}")));
        }
        self.node.recorder.pod(pod, Some(name), Severity::Normal, "Created", format!("Container created: {name}"));
        if let Err(error) = sandbox.start_container(&id).await {
            if let Err(error) = sandbox.remove_container(&id).await {
                log::warn!("pod={} {error:#}", pod.full_name());
            }
            return Err((START_ERROR, format!("{error:#}")));
        }
        self.stop_signals.insert(name.clone(), stop_signal(&image.config.stop_signal));
        if let Some(record) = self.record.containers.get_mut(name) {
            record.image = container.image.clone();
            record.image_id = Reference::parse(&container.image).map_or_else(|_| image.id.to_string(), |name| image.image_id(&name));
        }
        self.record.running(name, id, Timestamp::now());
        self.node.recorder.pod(pod, Some(name), Severity::Normal, "Started", format!("Container started: {name}"));
        // The run before last is of no use any more; the last one keeps its log for `logs --previous`.
        if let Some(last) = known.last.filter(|last| !last.id.is_empty())
            && let Err(error) = sandbox.remove_container(&last.id).await
        {
            log::warn!("pod={} {error:#}", pod.full_name());
        }
        if let Some(old) = attempt.checked_sub(2) {
            let path = self.log_path(name, old);
            if let Err(error) = super::logs::remove(&path) {
                log::warn!("pod={} remove {}: {error}", pod.full_name(), path.display());
            }
        }
        Ok(())
    }

    /// The container's image, pulled if its policy says so; a pull is given up when the pod is deleted.
    async fn image(&mut self, pod: &Pod, container: &Container) -> Option<Image> {
        let name = &container.name;
        let reference = match Reference::parse(&container.image) {
            Ok(reference) => reference,
            Err(error) => {
                let message = format!("Failed to apply default image tag \"{}\": {error:#}", container.image);
                self.node.recorder.pod(pod, Some(name), Severity::Warning, "InspectFailed", message.clone());
                self.record.not_started(name, "InvalidImageName", message, Timestamp::now());
                return None;
            }
        };
        let present = match self.node.images.get(&reference) {
            Ok(present) => present,
            Err(error) => {
                self.record.not_started(name, "ImageInspectError", format!("{error:#}"), Timestamp::now());
                return None;
            }
        };
        match (container.image_pull_policy.as_str(), present) {
            ("Never", None) => {
                let message = format!("Container image \"{}\" is not present with pull policy of Never", container.image);
                self.node.recorder.pod(pod, Some(name), Severity::Warning, "ErrImageNeverPull", message.clone());
                self.record.not_started(name, "ErrImageNeverPull", message, Timestamp::now());
                return None;
            }
            ("Always", _) | (_, None) => (),
            (_, Some(image)) => {
                let message = format!("Container image \"{}\" already present on machine", container.image);
                self.node.recorder.pod(pod, Some(name), Severity::Normal, "Pulled", message);
                return Some(image);
            }
        }
        self.pull(pod, container, &reference).await
    }

    async fn pull(&mut self, pod: &Pod, container: &Container, reference: &Reference) -> Option<Image> {
        let (name, image) = (&container.name, &container.image);
        self.node.recorder.pod(pod, Some(name), Severity::Normal, "Pulling", format!("Pulling image \"{image}\""));
        let started = Instant::now();
        let mailbox = self.mailbox.clone();
        let pull = async { Some(self.node.pull(pod, reference).await) };
        let given_up = async {
            loop {
                let changed = mailbox.wake.listen();
                if mailbox.gone.get() || mailbox.pod().is_deleting() {
                    return None;
                }
                changed.await;
            }
        };
        match pull.or(given_up).await? {
            Ok(pulled) => {
                let (took, size) = (started.elapsed(), pulled.size_bytes);
                let took = format!("{}.{:03}s", took.as_secs(), took.subsec_millis());
                let message =
                    format!("Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size} bytes.");
                self.node.recorder.pod(pod, Some(name), Severity::Normal, "Pulled", message);
                Some(pulled)
            }
            Err(error) => {
                let message = format!("Failed to pull image \"{image}\": {error:#}");
                self.node.recorder.pod(pod, Some(name), Severity::Warning, "Failed", message.clone());
                let again = self.record.containers.get(name).is_some_and(|known| known.retry != Retry::default());
                let (reason, message) = match again {
                    false => ("ErrImagePull", message),
                    true => ("ImagePullBackOff", format!("Back-off pulling image \"{image}\": ErrImagePull: {message}")),
                };
                self.record.not_started(name, reason, message, Timestamp::now());
                None
            }
        }
    }

    /// Asks what runs to end, or ends it.
    async fn signal(&mut self, pod: &Pod, politely: bool) {
        let Some(sandbox) = self.sandbox.clone() else {
            self.record.termination_sent = true;
            return;
        };
        let running: Vec<(String, String)> = self
            .record
            .containers
            .iter()
            .filter(|(_, known)| matches!(known.state, ContainerState::Running { .. }))
            .map(|(name, known)| (name.clone(), known.id.clone()))
            .collect();
        for (name, id) in running {
            let signal = if politely { self.stop_signals.get(&name).copied().unwrap_or(libc::SIGTERM) } else { libc::SIGKILL };
            if politely {
                self.node.recorder.pod(pod, Some(&name), Severity::Normal, "Killing", format!("Stopping container {name}"));
            }
            // One that has just ended cannot be signalled; that it ended is told by its exit.
            if let Err(error) = sandbox.kill(&id, signal).await {
                log::debug!("pod={} container={name} signal {signal}: {error:#}", pod.full_name());
            }
        }
        self.record.termination_sent = true;
        if !politely {
            self.wait(Some(Timestamp::now().plus(Duration::from_millis(100)))).await;
        }
    }

    /// Takes away everything but the logs.
    async fn teardown(&mut self, pod: &Pod) {
        match self.try_teardown(pod).await {
            Ok(()) => {
                self.record.sandbox = false;
                // The node's own goes to nobody else.
                if !pod.spec.host_network {
                    self.pod_ip.clear();
                }
            }
            Err(error) => {
                self.record.retry.fail(Timestamp::now());
                log::warn!("pod={} {error:#}", pod.full_name());
                self.wait(Some(self.record.retry.at)).await;
            }
        }
    }

    async fn try_teardown(&mut self, pod: &Pod) -> anyhow::Result<()> {
        (self.refresh, self.shown) = (None, None);
        self.mailbox.versions.take();
        self.undo_sandbox(pod).await?;
        let folders = self.folders.clone();
        smol::unblock(move || volumes::remove(&folders)).await.context("remove volumes")
    }

    async fn undo_sandbox(&mut self, pod: &Pod) -> anyhow::Result<()> {
        self.exits = None;
        if !pod.spec.host_network {
            self.node.network.detach(&pod.metadata.uid).await.context("detach network")?;
        }
        if let Some(sandbox) = &self.sandbox {
            sandbox.stop().await?;
        }
        self.sandbox = None;
        Ok(())
    }

    /// Tells the API that nothing is left here; true if the worker is done.
    async fn release(&mut self, pod: &Pod) -> bool {
        let removed = {
            let folders = self.folders.clone();
            let logs = self.logs.clone();
            smol::unblock(move || volumes::remove(&folders).and_then(|()| Ok(file::remove_tree(&logs)?))).await
        };
        if let Err(error) = removed {
            log::warn!("pod={} {error:#}", pod.full_name());
        }
        self.mailbox.gone.get() || self.report.delete(pod).await
    }
}

fn recalled_exit(terminated: &Value) -> Option<Exit> {
    let instant = |field: &str| terminated[field].as_str().and_then(Timestamp::parse).unwrap_or_default();
    Some(Exit {
        code: terminated["exitCode"].as_i64()? as i32,
        signal: terminated["signal"].as_i64().unwrap_or(0) as i32,
        oom_killed: terminated["reason"] == "OOMKilled",
        lost: terminated["reason"] == "Unknown",
        started: instant("startedAt"),
        finished: instant("finishedAt"),
        message: terminated["message"].as_str().unwrap_or_default().to_owned(),
        id: runtime_id(&terminated["containerID"]),
    })
}

/// What a pod's status has of each container, init containers first.
fn container_statuses(status: &Value) -> impl Iterator<Item = &Value> {
    ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|field| status[field].as_array().into_iter().flatten())
}

/// A `containerID` of the API as the runtime names it.
fn runtime_id(id: &Value) -> String {
    id.as_str().unwrap_or_default().trim_start_matches("edgectl://").to_owned()
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports).filter(|port| port.host_port != 0);
    ports
        .map(|port| HostPort {
            host_ip: port.host_ip.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: match port.protocol.as_str() {
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
        })
        .collect()
}

/// A signal as an image names it: `SIGQUIT`, `QUIT` or `3`.
fn stop_signal(name: &str) -> i32 {
    let named = format!("SIG{}", name.trim_start_matches("SIG"));
    name.parse().ok().or_else(|| named.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)).unwrap_or(libc::SIGTERM)
}
