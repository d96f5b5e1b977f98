//! The node: it watches the pods that are bound to it and makes them true with runtime, network and images. It dials the
//! master and listens nowhere, but as the name server of its own pods; what runs goes on when it is killed, and it finds it again. It decides no placement.

mod container;
mod environment;
mod exec;
mod identity;
mod image_gc;
mod ledger;
mod logs;
mod machine;
mod node;
mod peers;
mod policy;
mod port_forward;
mod preload;
mod recorder;
mod report;
mod resources;
mod server;
mod services;
mod sources;
mod stats;
mod status;
mod volumes;
mod worker;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_lite::{FutureExt, future};
use serde_json::{Value, json};
use smol::Timer;

use crate::api::meta;
use crate::api::pod::Pod;
use crate::base::place::Places;
use crate::base::{address, task};
use crate::client::cache::{Event, Feed};
use crate::client::{Client, Manner, Query, is_not_found, kubeconfig};
use crate::image::{Credentials, Image, Images, PullOptions, Reference, Registries};
use crate::network::files::{self, DnsPolicy, HostAlias, Resolver};
use crate::network::peers::{POD_MTU_DEFAULT, pod_mtu};
use crate::network::{Network, NodeConfig};
use crate::runtime::pod::Runtime;
use crate::wire::dial::Dialer;

use environment::{Facts, Source};
use ledger::Ledger;
use recorder::Recorder;
use volumes::TokenWanted;
use worker::{Mailbox, Worker};

pub use services::DNS_ADDRESS;

/// Addresses of pods and of the API's own Service, as DESIGN has them for every cluster.
const CLUSTER_CIDR: &str = "10.244.0.0/16";
const SERVICE_CIDR: &str = "10.96.0.0/16";
const API_SERVICE: (&str, u16) = ("10.96.0.1", 443);
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Pause before the API is asked again while the node cannot register.
const RETRY: Duration = Duration::from_millis(50);
/// How long the master may take for one answer, or one page of a list.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What the agent is started with.
pub struct Options {
    pub places: Places,
    pub name: String,
    /// The network namespace in which registries are asked, if not this process's own.
    pub egress: Option<OwnedFd>,
}

/// The parts of the agent that its workers share.
struct Node {
    client: Client,
    places: Places,
    facts: Facts,
    cgroup_root: String,
    oom_score_min: i32,
    runtime: Runtime,
    network: Network,
    policies: policy::Policies,
    images: Images,
    image_uses: RefCell<image_gc::Uses>,
    ledger: Rc<Ledger>,
    dialer: Dialer,
    recorder: Recorder,
    stats: stats::Stats,
    /// The Node's status has something new to tell.
    status_due: Cell<bool>,
    /// By the pod's uid: which containers run, and by which attempt; for logs.
    runs: RefCell<HashMap<String, BTreeMap<String, Runs>>>,
    pods: RefCell<HashMap<(String, String), Rc<Mailbox>>>,
}

/// What is known of a container for those who read its log.
#[derive(Clone, Debug, PartialEq)]
struct Runs {
    /// The runtime's name for the present run, or the latest; empty before the first.
    id: String,
    attempt: u32,
    running: bool,
    /// It ended, and the next one has not begun.
    waiting: bool,
}

/// Runs the agent until the process ends.
///
/// # Errors
/// If the node cannot be set up; what the API refuses for now is tried again.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { places, name, egress } = options;
    for folder in [&places.state, &places.run, &places.logs] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let machine = node::Machine::read(&places.state)?;
    let config = places.agent_kubeconfig();
    wait_for(&config).await?;
    let target = kubeconfig::load(Some(&config.to_string_lossy()))?.target(&kubeconfig::Overrides::default())?;
    let ledger = Ledger::open(places.state.join("ledger"));
    let client = Client::new(&target, Manner { timeout: Some(ANSWER_TIMEOUT), ..Manner::default() })?;
    let runtime = Runtime::new(&places.run);
    let images = Images::open(&places.state.join("images")).context("open the image store")?;
    let registered = register(&client, &name, &ledger).await;
    let place = Place::find(&target.server, registered.as_ref(), &ledger)?;
    let mtu = match pod_mtu(place.address).await {
        Ok(mtu) => mtu,
        Err(error) if registered.is_none() => {
            log::warn!("node={name} {error:#}");
            POD_MTU_DEFAULT
        }
        Err(error) => return Err(error),
    };
    let network = Network::open(NodeConfig {
        pod_cidr: place.pod_cidr.parse()?,
        node_address: place.address,
        cluster_cidr: CLUSTER_CIDR.parse()?,
        service_cidr: SERVICE_CIDR.parse()?,
        bridge: address::BRIDGE.into(),
        mtu,
        lease_dir: places.run.join("leases"),
        local_addresses: vec![DNS_ADDRESS],
    })?;
    network.setup().await.context("set up the pod network")?;
    let node = Rc::new(Node {
        recorder: Recorder::start(client.clone(), &name),
        client,
        facts: Facts {
            host_ip: place.address.to_string(),
            pod_ip: String::new(),
            node_name: name,
            node_cpu_milli: machine.cpus * 1000,
            node_memory_bytes: machine.memory_bytes,
            api_service: (API_SERVICE.0.to_owned(), API_SERVICE.1),
        },
        places,
        cgroup_root: String::new(),
        oom_score_min: resources::oom_score_min().context("read the capabilities of this process")?,
        runtime,
        network,
        policies: policy::Policies::default(),
        images,
        image_uses: RefCell::default(),
        ledger,
        dialer: egress.map(Dialer::within).unwrap_or_default(),
        stats: stats::Stats::default(),
        status_due: Cell::new(false),
        runs: RefCell::default(),
        pods: RefCell::default(),
    });
    match registered {
        Some(registered) => {
            while let Err(error) = node::write_status(&node, &machine, &registered["status"]).await {
                log::warn!("node={} {error:#}", node.facts.node_name);
                Timer::after(RETRY).await;
            }
            log::info!("node={} registered address={} pods={}", node.facts.node_name, place.address, place.pod_cidr);
        }
        None => {
            node.status_due.set(true);
            log::warn!("node={} goes by its ledger: the master is away", node.facts.node_name);
        }
    }
    node.recorder.node(recorder::Severity::Normal, "Starting", "Starting edgectl agent.".into());
    task::spawn(server::run(node.clone())).detach();
    let names = services::name_server(CLUSTER_DOMAIN, node.dialer.clone());
    task::spawn(services::serve(names.clone())).detach();
    task::spawn(services::follow(node.clone(), names)).detach();
    task::spawn(peers::follow(node.clone())).detach();
    task::spawn(policy::follow(node.clone())).detach();
    let keeper = node.clone();
    task::spawn(async move { keeper.network.keep_services().await }).detach();
    task::spawn(sources::keep(node.clone())).detach();
    task::spawn(identity::keep(node.clone())).detach();
    // Before the first pod, which may be there for the sake of such an image.
    match preload::load(&node.images, &node.places.state).await {
        Ok(changed) => node.status_due.set(changed || node.status_due.get()),
        Err(error) => log::error!("preload images: {error:#}"),
    }
    follow(node.clone()).or(node::keep(&node, &machine, &target.server, &place)).await
}

/// The Node as the master has it, once it has given it a network for its pods; None if the master is away and this node knows itself.
async fn register(client: &Client, name: &str, ledger: &Ledger) -> Option<Value> {
    let registered = async {
        while let Err(error) = node::register(client, name).await {
            log::warn!("node={name} {error:#}");
            Timer::after(RETRY).await;
        }
        if let Err(error) = identity::follow_clock(client, name).await {
            log::warn!("node={name} ask the master for the time: {error:#}");
        }
        Some(pod_network(client, name).await)
    };
    let impatient = async {
        if ledger.read(Place::FILE).is_none() {
            future::pending::<()>().await;
        }
        Timer::after(ledger::PATIENCE).await;
        None
    };
    registered.or(impatient).await
}

/// Where the node is in the networks: what it must know of itself to run pods.
struct Place {
    address: Ipv4Addr,
    pod_cidr: String,
}

impl Place {
    const FILE: &str = "node.json";

    /// What the master has said of the node, or else what the ledger has of it.
    fn find(server: &str, registered: Option<&Value>, ledger: &Ledger) -> anyhow::Result<Self> {
        let known = ledger.read(Self::FILE).unwrap_or_default();
        let address = match (own_address(server), known["address"].as_str().and_then(|address| address.parse().ok())) {
            (Ok(IpAddr::V4(address)), _) => address,
            (Ok(IpAddr::V6(address)), _) => bail!("the node's address {address} is not IPv4, as the pod network is"),
            // Its own network is not there yet either.
            (Err(_), Some(known)) if registered.is_none() => known,
            (Err(error), _) => return Err(error),
        };
        let pod_cidr = registered.map_or(&known["podCIDR"], |node| &node["spec"]["podCIDR"]).as_str().unwrap_or_default().to_owned();
        ledger.note(Self::FILE, Some(json!({"address": address, "podCIDR": pod_cidr})));
        Ok(Self { address, pod_cidr })
    }
}

/// Gives every pod of this node a worker, and each worker its news.
async fn follow(node: Rc<Node>) -> anyhow::Result<()> {
    let mut found: HashMap<String, _> = HashMap::new();
    for sandbox in node.runtime.pods().await? {
        found.insert(sandbox.config().uid.clone(), sandbox);
    }
    // Who knew a pod's address finds it there, even while nobody can be told another.
    for uid in node.ledger.uids().iter().filter(|uid| !found.contains_key(*uid)) {
        let status = node.ledger.status(uid).unwrap_or_default();
        if let Some(address) = status["podIP"].as_str().and_then(|address| address.parse().ok()) {
            node.network.reserve(uid, address);
        }
    }
    let query = Query::new().with("fieldSelector", format!("spec.nodeName={}", node.facts.node_name));
    let feed = Feed::start(node.client.clone(), "/api/v1/pods".into(), query);
    let early = async { Some(feed.next().await) };
    let late = async {
        Timer::after(ledger::PATIENCE).await;
        None
    };
    let mut heard = early.or(late).await;
    if heard.is_none() {
        let pods = node.ledger.pods();
        log::warn!("node={} takes {} pods from its ledger: the master is away", node.facts.node_name, pods.len());
        pods.iter().for_each(|object| node.clone().heard(object, &mut found));
    }
    let mut first = true;
    loop {
        let event = match heard.take() {
            Some(event) => event,
            None => feed.next().await,
        };
        match event {
            Event::Relisted(objects) => {
                let listed: BTreeSet<String> = objects.iter().map(|object| meta::uid(object).to_owned()).collect();
                let gone: Vec<Rc<Mailbox>> =
                    node.pods.borrow().values().filter(|mailbox| !listed.contains(&mailbox.pod().metadata.uid)).cloned().collect();
                gone.iter().for_each(|mailbox| mailbox.gone());
                for object in &objects {
                    node.clone().heard(object, &mut found);
                }
                if first {
                    first = false;
                    node.clone().clear_strangers(&mut found, &listed).await;
                }
            }
            Event::Added(object) | Event::Modified(object) => node.clone().heard(&object, &mut found),
            Event::Deleted(object) => {
                let key = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
                let mailbox = node.pods.borrow().get(&key).filter(|mailbox| mailbox.pod().metadata.uid == meta::uid(&object)).cloned();
                if let Some(mailbox) = mailbox {
                    mailbox.gone();
                }
            }
        }
    }
}

impl Node {
    /// A pod is as `object` says.
    fn heard(self: Rc<Self>, object: &Value, found: &mut HashMap<String, crate::runtime::pod::Pod>) {
        let pod = match Pod::read(object) {
            Ok(pod) => pod,
            Err(error) => {
                log::error!("{error:#}");
                return;
            }
        };
        self.ledger.note_pod(&pod, object);
        let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let known = self.pods.borrow().get(&key).cloned();
        match known {
            Some(mailbox) if mailbox.pod().metadata.uid == pod.metadata.uid => mailbox.update(pod),
            // Another pod of that name may still be going: its worker ends it on its own.
            other => {
                if let Some(before) = &other {
                    before.gone();
                }
                let sandbox = found.remove(&pod.metadata.uid);
                let uid = pod.metadata.uid.clone();
                let mailbox = Rc::new(Mailbox::new(pod));
                self.pods.borrow_mut().insert(key.clone(), mailbox.clone());
                let worker = Worker::new(self.clone(), mailbox);
                task::spawn(async move {
                    worker.run(sandbox).await;
                    let mut pods = self.pods.borrow_mut();
                    if pods.get(&key).is_some_and(|mailbox| mailbox.pod().metadata.uid == uid) {
                        pods.remove(&key);
                    }
                    self.runs.borrow_mut().remove(&uid);
                    self.ledger.forget_pod(&uid);
                })
                .detach();
            }
        }
    }

    /// Sandboxes, addresses and folders of pods that the API does not know any more.
    async fn clear_strangers(self: Rc<Self>, found: &mut HashMap<String, crate::runtime::pod::Pod>, listed: &BTreeSet<String>) {
        for (uid, sandbox) in found.drain() {
            let config = sandbox.config();
            log::warn!("pod={}/{} uid={uid} is not of this cluster any more: stopping it", config.namespace, config.name);
            if let Err(error) = sandbox.stop().await {
                log::error!("{error:#}");
            }
        }
        self.ledger.uids().iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.ledger.forget_pod(uid));
        if let Err(error) = self.network.sweep(listed).await {
            log::error!("sweep the pod network: {error:#}");
        }
        for (state, run) in [(true, self.places.state.join("pods")), (false, self.places.run.join("volumes"))] {
            for entry in fs::read_dir(&run).into_iter().flatten().flatten() {
                let uid = entry.file_name().to_string_lossy().into_owned();
                if !listed.contains(&uid) {
                    let other = if state { self.places.run.join("volumes") } else { self.places.state.join("pods") };
                    let (state, run) = if state { (entry.path(), other.join(&uid)) } else { (other.join(&uid), entry.path()) };
                    if let Err(error) = volumes::remove(&volumes::Folders { state, run }) {
                        log::error!("sweep volumes of pod {uid}: {error:#}");
                    }
                }
            }
        }
    }

    /// The log of a container's present run, or of the one before, with the pod's uid and the number of that run.
    fn log_of(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<(PathBuf, String, u32), String> {
        let uid = &self.uid_of(namespace, pod)?;
        let runs = self.runs.borrow().get(uid).and_then(|runs| runs.get(container)).cloned();
        let waiting = || format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating");
        let runs = runs.filter(|runs| !runs.id.is_empty()).ok_or_else(waiting)?;
        let attempt = match (previous, runs.waiting) {
            (false, _) | (true, true) => runs.attempt,
            (true, false) if runs.attempt > 0 => runs.attempt - 1,
            (true, false) => return Err(format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")),
        };
        Ok((self.places.logs.join(format!("{namespace}_{pod}_{uid}")).join(container).join(format!("{attempt}.log")), uid.clone(), attempt))
    }

    /// Notes which containers of a pod run, for those who read their logs.
    fn note_runs(&self, pod: &Pod, record: &machine::Record) {
        let runs = record.containers.iter().map(|(name, known)| {
            let running = record.is_running(name);
            let waiting = matches!(known.state, machine::ContainerState::Waiting { .. });
            (name.clone(), Runs { id: known.id.clone(), attempt: known.restarts, running, waiting })
        });
        self.runs.borrow_mut().insert(pod.metadata.uid.clone(), runs.collect());
    }

    /// A pod of this node, as it was heard of last.
    fn pod_of(&self, namespace: &str, pod: &str) -> Result<Rc<Mailbox>, String> {
        let key = (namespace.to_owned(), pod.to_owned());
        self.pods.borrow().get(&key).cloned().ok_or_else(|| format!("pod {namespace}/{pod} is not on this node"))
    }

    fn uid_of(&self, namespace: &str, pod: &str) -> Result<String, String> {
        Ok(self.pod_of(namespace, pod)?.pod().metadata.uid.clone())
    }

    /// The pod's uid, and the runtime's name for the run of a container that goes on now.
    fn running(&self, namespace: &str, pod: &str, container: &str) -> Result<(String, String), String> {
        let uid = self.uid_of(namespace, pod)?;
        let runs = self.runs.borrow().get(&uid).and_then(|runs| runs.get(container)).filter(|runs| runs.running).cloned();
        let runs = runs.ok_or_else(|| format!("container {container} of pod {namespace}/{pod} does not run"))?;
        Ok((uid, runs.id))
    }

    /// Whether this run of a container may still print something.
    fn runs(&self, uid: &str, container: &str, attempt: u32) -> bool {
        let runs = self.runs.borrow();
        let known = runs.get(uid).and_then(|runs| runs.get(container));
        known.is_some_and(|known| known.attempt == attempt && known.running)
    }

    /// A ConfigMap or Secret; None if there is no such object.
    async fn read(&self, namespace: &str, source: &Source) -> anyhow::Result<Option<Value>> {
        let path = format!("/api/v1/namespaces/{namespace}/{}/{}", source.plural(), source.name());
        match self.client.get(&path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A token of the pod's service account, bound to the pod. KEP-542.
    async fn token(&self, pod: &Pod, wanted: &TokenWanted) -> anyhow::Result<String> {
        let account = match pod.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        };
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", pod.metadata.namespace);
        let audiences = if wanted.audience.is_empty() { json!([]) } else { json!([wanted.audience]) };
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": wanted.seconds, "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            }},
        });
        let answer = self.client.create(&path, &Query::new(), &request).await?;
        match answer["status"]["token"].as_str() {
            Some(token) => Ok(token.to_owned()),
            None => bail!("the answer holds no token"),
        }
    }

    async fn pull(&self, pod: &Pod, reference: &Reference) -> anyhow::Result<Image> {
        let mut credentials = Credentials::default();
        for secret in &pod.spec.image_pull_secrets {
            let Some(object) = self.read(&pod.metadata.namespace, &Source::Secret(secret.name.clone())).await? else {
                log::warn!("pod={} image pull secret {} not found", pod.full_name(), secret.name);
                continue;
            };
            let data = environment::data(&object);
            if let Some(config) = data.get(".dockerconfigjson") {
                credentials.extend(Credentials::from_docker_config_json(config).with_context(|| format!("secret {}", secret.name))?);
            }
            if let Some(config) = data.get(".dockercfg") {
                credentials.extend(Credentials::from_docker_cfg(config).with_context(|| format!("secret {}", secret.name))?);
            }
        }
        // Read at each pull, so that what a person mends there works with the next try.
        let registries = Registries::read(&self.places.config.join("registries.yaml")).context("read registries.yaml")?;
        let options = PullOptions { credentials, registries: Rc::new(registries), dialer: self.dialer.clone(), ..PullOptions::default() };
        let pulled = self.images.pull(reference, &options).await?;
        self.status_due.set(true);
        Ok(pulled)
    }

    /// /etc/hosts and /etc/resolv.conf of a pod.
    fn pod_files(&self, pod: &Pod, pod_ip: &str) -> (String, String) {
        let spec = &pod.spec;
        let aliases: Vec<HostAlias> =
            spec.host_aliases.iter().map(|alias| HostAlias { ip: alias.ip.clone(), hostnames: alias.hostnames.clone() }).collect();
        let domain = match spec.subdomain.as_str() {
            "" => String::new(),
            subdomain => format!("{subdomain}.{}.svc.{CLUSTER_DOMAIN}", pod.metadata.namespace),
        };
        let hosts = match spec.host_network {
            true => files::hosts_of_node(&fs::read_to_string("/etc/hosts").unwrap_or_default(), &aliases),
            false => files::hosts(&pod_ip.parse::<IpAddr>().into_iter().collect::<Vec<_>>(), &pod.hostname(), &domain, &aliases),
        };
        let cluster_first = || DnsPolicy::ClusterFirst {
            nameserver: services::DNS_ADDRESS.into(),
            namespace: pod.metadata.namespace.clone(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
        };
        let of_node = Resolver::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let options = spec.dns_config.options.iter().map(|option| match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        });
        let of_pod = Resolver {
            nameservers: spec.dns_config.nameservers.clone(),
            searches: spec.dns_config.searches.clone(),
            options: options.collect(),
        };
        let policy = match spec.dns_policy.as_str() {
            "None" => DnsPolicy::None,
            "Default" => DnsPolicy::Default,
            "ClusterFirstWithHostNet" => cluster_first(),
            // Of a pod in the node's network the node's own resolver is meant.
            _ if spec.host_network => DnsPolicy::Default,
            _ => cluster_first(),
        };
        (hosts, files::resolv_conf(policy, &of_node, &of_pod))
    }
}

/// The Node, once the master has given it a network for its pods.
async fn pod_network(client: &Client, name: &str) -> Value {
    let query = Query::new().with("fieldSelector", format!("metadata.name={name}"));
    let feed = Feed::start(client.clone(), "/api/v1/nodes".into(), query);
    loop {
        let nodes = match feed.next().await {
            Event::Relisted(nodes) => nodes,
            Event::Added(node) | Event::Modified(node) => vec![node],
            Event::Deleted(_) => Vec::new(),
        };
        for node in nodes {
            if node["spec"]["podCIDR"].as_str().is_some_and(|cidr| !cidr.is_empty()) {
                return node;
            }
        }
    }
}

/// The address by which this node reaches the master is the one by which others reach this node.
fn own_address(server: &str) -> anyhow::Result<IpAddr> {
    let authority = server.split("://").nth(1).unwrap_or(server).split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    let address: IpAddr = host.parse().with_context(|| format!("the server's address {server} in the agent's kubeconfig"))?;
    if !address.is_loopback() {
        return Ok(address::towards(address)?);
    }
    address::of_machine().context("this node has no address but loopback")
}

/// Waits until the master, or `join`, has written a file.
async fn wait_for(path: &Path) -> anyhow::Result<()> {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(folder, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE)?;
    let inotify = smol::Async::new_nonblocking(inotify)?;
    if !path.exists() {
        log::info!("waiting for {}", path.display());
    }
    while !path.exists() {
        inotify.readable().await?;
        // What changed does not matter, only that it did.
        let _ = inotify.get_ref().read_events();
    }
    Ok(())
}
