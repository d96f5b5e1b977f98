//! `edgectl up`: a cluster to try things on, each node in namespaces of its own. Nothing is made in the host's network
//! namespace but the API's socket on loopback, and nothing is mounted where the host sees it. Running it again finds what
//! runs, and starts what was stopped. The tests' lab is this code.

pub mod cgroup;
pub mod cluster;
mod demo;
pub mod down;
pub mod hello;
mod link;
pub mod node;
pub mod preflight;

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};

use super::Context;
use super::init;
use super::join::Board;
use super::token::Token;
use crate::client::kubeconfig::{self, NewContext, Overrides};
use crate::client::{Client, Manner, Target};
use crate::wire::dial::Dialer;
use crate::wire::pin::Pin;
use cluster::{Cluster, Record};
use node::{Node, Stage};

/// Where the API listens on the host, if nobody else does.
const API_PORT: u16 = 6443;

/// A board takes a while to make its certificates; a machine that takes longer than this has a fault.
const API_DEADLINE: Duration = Duration::from_secs(30);
const NODE_DEADLINE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Each node is a handful of processes on this one machine, and has an address of its own in 172.30.0.0/24.
const NODES_MAX: u8 = 64;

/// The token by which the nodes join is deleted when they have; this is for an `up` that was killed meanwhile.
const TOKEN_TTL: Duration = Duration::from_secs(600);

/// Lines of a node's log that are shown when it does not come up.
const LOG_LINES_SHOWN: usize = 10;

#[derive(FromArgs, ArgsInfo, Debug)]
/// start a cluster on this machine
pub struct Flags {
    /// the cluster's name
    #[argh(option, default = "cluster::DEFAULT_NAME.to_owned()")]
    pub name: String,
    /// how many nodes it has (1, or as many as it has already)
    #[argh(option)]
    pub nodes: Option<u8>,
    /// the port of 127.0.0.1 on which the API answers (6443, or another one if that is taken)
    #[argh(option)]
    pub api_port: Option<u16>,
    /// run a web server of three replicas on it
    #[argh(switch)]
    pub demo: bool,
}

pub const EXAMPLES: &str = "# A cluster of one node
edgectl up
# The same, with something that runs on it
edgectl up --demo
# One of three nodes, or two more for the one that runs
edgectl up --nodes 3
# A second one beside it, which gets the context edgectl-shop
edgectl up --name shop";

/// Starts the cluster, or finds it running.
pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let cluster = Cluster::new(&flags.name)?;
    ensure!(flags.nodes.is_none_or(|nodes| (1..=NODES_MAX).contains(&nodes)), "--nodes is a number from 1 to {NODES_MAX}");
    preflight::check("up")?;
    let _lock = cluster.lock()?;
    let node = cluster.node(1);
    let mut progress = Progress::new()?;
    let kubeconfig = absolute(&kubeconfig::file_for_new_entries(cx.global.kubeconfig.as_deref())?)?;
    let known = cluster.record()?;
    let known_nodes = known.as_ref().map_or(1, |record| record.nodes);
    let nodes = flags.nodes.unwrap_or(known_nodes);
    ensure!(
        nodes >= known_nodes,
        "cluster {} has {known_nodes} nodes already: to have fewer, 'edgectl down --name {}' takes it away first",
        cluster.name(),
        cluster.name()
    );

    let mut record = match (init_pid(&cluster, &node)?, known) {
        (Some(_), Some(record)) => {
            progress.say(&format!("Cluster {} is running already", cluster.name()))?;
            record
        }
        (_, known) => {
            progress.say(&format!("Starting cluster {}", cluster.name()))?;
            let known_port = known.as_ref().map(|record| record.api_port);
            let listener = listen(flags.api_port, known_port)?;
            let api_port = listener.local_addr().context("read the API's address")?.port();
            let record = Record { api_port, nodes, kubeconfigs: known.map(|record| record.kubeconfigs).unwrap_or_default() };
            cluster.write_record(&record)?;
            progress.begin(&format!("node {node} has its namespaces"))?;
            // What an earlier node of that name left behind when it was killed; the others were plugged into it.
            cgroup::destroy(&cluster)?;
            start_node(&cluster, 1, listener.into())?;
            progress.done()?;
            record
        }
    };

    progress.begin(&format!("API answers on https://127.0.0.1:{}", record.api_port))?;
    let (target, client) = wait_for_api(&cluster, &node, record.api_port).await?;
    progress.done()?;
    progress.begin(&format!("node {node} is Ready"))?;
    wait_for_node(&cluster, &client, &node).await?;
    progress.done()?;
    if nodes > 1 {
        if record.nodes != nodes {
            record.nodes = nodes;
            cluster.write_record(&record)?;
        }
        further_nodes(&cluster, nodes, &target, &client, &mut progress).await?;
    }

    progress.begin(&format!("context {} is the current one of {}", cluster.context(), kubeconfig.display()))?;
    if !record.kubeconfigs.iter().any(|known| known.path == kubeconfig) {
        record.kubeconfigs.push(cluster::Kubeconfig { path: kubeconfig.clone(), previous_context: current_context(&kubeconfig)? });
        cluster.write_record(&record)?;
    }
    merge_context(&kubeconfig, &cluster.context(), &target)?;
    progress.done()?;
    if flags.demo {
        demo::run(&cluster, nodes, &client, &kubeconfig.to_string_lossy(), &mut progress).await?;
    }
    progress.say(&next(&cluster, flags.demo))?;
    Ok(0)
}

/// Starts what is not running of the nodes behind the first, and lets those join that have not.
async fn further_nodes(cluster: &Cluster, nodes: u8, target: &Target, client: &Client, progress: &mut Progress) -> Result<()> {
    for number in 2..=nodes {
        let node = cluster.node(number);
        if init_pid(cluster, &node)?.is_none() {
            progress.begin(&format!("node {node} has its namespaces"))?;
            cgroup::destroy_node(cluster, &node)?;
            start_node(cluster, number, node_network(cluster, &cluster.node(1))?.into())?;
            progress.done()?;
        }
    }
    let strangers: Vec<String> =
        (2..=nodes).map(|number| cluster.node(number)).filter(|node| !cluster.places(node).agent_kubeconfig().exists()).collect();
    if !strangers.is_empty() {
        let token = Token::random();
        token.create(client, TOKEN_TTL, "edgectl up").await?;
        let joined = join(cluster, &strangers, target, &token, progress).await;
        token.delete(client).await?;
        joined?;
    }
    for node in (2..=nodes).map(|number| cluster.node(number)) {
        progress.begin(&format!("node {node} is Ready"))?;
        wait_for_node(cluster, client, &node).await?;
        progress.done()?;
    }
    Ok(())
}

/// What `edgectl join` does on a board, for each of the nodes.
async fn join(cluster: &Cluster, nodes: &[String], target: &Target, token: &Token, progress: &mut Progress) -> Result<()> {
    let authority = Pin::of_pem(target.certificate_authority.as_deref().unwrap_or_default())?;
    let master = Node::address(1).to_string();
    for name in nodes {
        progress.begin(&format!("node {name} has joined"))?;
        let board = Board { master: &master, token, authority, name, places: &cluster.places(name) };
        let dialer = Dialer::within(node_network(cluster, name)?.into());
        board.join(&dialer).await.with_context(|| format!("join node {name}"))?;
        progress.done()?;
    }
    Ok(())
}

/// What to type next.
fn next(cluster: &Cluster, has_demo: bool) -> String {
    let name = if cluster.name() == cluster::DEFAULT_NAME { String::new() } else { format!(" --name {}", cluster.name()) };
    let demo = format!("edgectl up --demo{name}");
    let down = format!("edgectl down{name}");
    let first = match has_demo {
        true => ("edgectl scale deployment hello --replicas=5", "more of them"),
        false => (demo.as_str(), "a web server of three replicas"),
    };
    let rest = [("edgectl get pods -A", "all that runs; kubectl does as well"), (down.as_str(), "take the cluster away, without a trace")];
    let lines: String = [first].iter().chain(&rest).map(|(command, about)| format!("\n  {command:<45}{about}")).collect();
    format!("\nNext:{lines}")
}

/// One line for each step, with the time that it took.
struct Progress {
    begun: Option<(String, Instant)>,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Result<Self> {
        Ok(Self { begun: None, is_terminal: io::stdout().is_terminal() })
    }

    fn say(&self, line: &str) -> Result<()> {
        writeln!(io::stdout(), "{line}").context("write to standard output")
    }

    /// On a terminal the step is shown while it lasts.
    fn begin(&mut self, step: &str) -> Result<()> {
        self.begun = Some((step.to_owned(), Instant::now()));
        if self.is_terminal {
            write!(io::stdout(), "  … {step}").and_then(|()| io::stdout().flush()).context("write to standard output")?;
        }
        Ok(())
    }

    fn done(&mut self) -> Result<()> {
        let Some((step, since)) = self.begun.take() else { return Ok(()) };
        let start_of_line = if self.is_terminal { "\r\x1b[K" } else { "" };
        self.say(&format!("{start_of_line}  ✓ {step:<60} {:>6} ms", since.elapsed().as_millis()))
    }
}

impl Drop for Progress {
    /// A step that failed keeps its line; the error stands below it.
    fn drop(&mut self) {
        if self.is_terminal && self.begun.is_some() {
            let _ = writeln!(io::stdout());
        }
    }
}

/// The API's socket. The user's port must be free; the usual one, and that of the time before, only are preferred.
fn listen(wanted: Option<u16>, known: Option<u16>) -> Result<TcpListener> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    if let Some(port) = wanted {
        return match bind(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                bail!("port {port} of 127.0.0.1 is taken by another program: choose another one with --api-port, or leave the flag out")
            }
            other => other.with_context(|| format!("listen on 127.0.0.1:{port}")),
        };
    }
    bind(known.unwrap_or(API_PORT)).or_else(|_| bind(0)).context("listen on 127.0.0.1")
}

/// Starts the node's init and waits until it has started the daemons. `input` is what [`Node::command`] wants.
fn start_node(cluster: &Cluster, number: u8, input: OwnedFd) -> Result<()> {
    let name = &cluster.node(number);
    let root = cluster.root(name);
    std::fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
    let node = Node {
        cluster: cluster.name().to_owned(),
        name: name.to_owned(),
        number,
        root,
        log: cluster.log(name),
        up_pid: std::process::id() as i32,
        host_network_fd: -1,
    };
    let mut process = node.command(Stage::Enter, input)?.stdout(Stdio::piped()).spawn().with_context(|| format!("start node {name}"))?;
    let output = process.stdout.take().context("the node's output is piped")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        last = line.with_context(|| format!("start node {name}"))?;
        if last == node::READY {
            break;
        }
    }
    process.wait().with_context(|| format!("start node {name}"))?;
    match last.as_str() {
        node::READY => Ok(()),
        "" => bail!("start node {name}: its init ended without a word"),
        error => bail!("start node {name}: {error}"),
    }
}

/// The host's number of the node's process 1: the one that is number 1 in a namespace directly below ours.
fn init_pid(cluster: &Cluster, node: &str) -> Result<Option<i32>> {
    let is_init = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        matches!(numbers.as_slice(), [_, "1"])
    };
    Ok(cgroup::node_processes(cluster, node)?.into_iter().find(is_init))
}

/// The node's network namespace, as long as the node runs.
pub(super) fn node_network(cluster: &Cluster, node: &str) -> Result<File> {
    let pid = init_pid(cluster, node)?.with_context(|| format!("node {node} does not run"))?;
    File::open(format!("/proc/{pid}/ns/net")).with_context(|| format!("open the network namespace of node {node}"))
}

/// Waits until the API says that it is ready; answers how to speak to it from the host.
async fn wait_for_api(cluster: &Cluster, node: &str, port: u16) -> Result<(Target, Client)> {
    let path = cluster.places(node).admin_kubeconfig();
    let ask = async || -> Result<(Target, Client)> {
        let overrides = Overrides { server: Some(format!("https://127.0.0.1:{port}")), ..Overrides::default() };
        let target = kubeconfig::load(path.to_str())?.target(&overrides)?;
        let client = Client::new(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() })?;
        client.raw(hyper::Method::GET, "/readyz", "*/*", None).await?;
        Ok((target, client))
    };
    wait(cluster, node, "the API does not answer", API_DEADLINE, ask).await
}

async fn wait_for_node(cluster: &Cluster, client: &Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}");
    // The Node of a cluster that was stopped still says what was true then; leases are forgotten with the master.
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
    let ask = async || -> Result<()> {
        client.get(&lease).await.context("its agent has not reported yet")?;
        init::check_ready(&client.get(&path).await?)
    };
    wait(cluster, name, &format!("node {name} does not become Ready"), NODE_DEADLINE, ask).await
}

/// Asks until the answer is good. When the node has died or time is up, the error has the last answer and the log's end.
async fn wait<T>(cluster: &Cluster, node: &str, what: &str, deadline: Duration, ask: impl AsyncFn() -> Result<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let has_died = init_pid(cluster, node)?.is_none();
        if has_died || since.elapsed() > deadline {
            let why = if has_died { format!("node {node} has ended") } else { format!("{} s have passed", deadline.as_secs()) };
            let path = cluster.log(node);
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
            bail!(
                "{what}: {why}: {error:#}\nthe end of {}:\n  {shown}\n'edgectl down --name {}' takes it away",
                path.display(),
                cluster.name()
            );
        }
        smol::Timer::after(POLL).await;
    }
}

/// The current context of a kubeconfig, which need not exist.
fn current_context(path: &Path) -> Result<Option<String>> {
    match path.exists() {
        true => Ok(kubeconfig::load(path.to_str())?.current_context().map(str::to_owned)),
        false => Ok(None),
    }
}

fn merge_context(path: &Path, name: &str, target: &Target) -> Result<()> {
    let text = |pem: &Option<Vec<u8>>| -> Result<String> {
        String::from_utf8(pem.clone().context("the cluster's kubeconfig has no certificate")?).context("a certificate is text")
    };
    let (authority, certificate, key) =
        (text(&target.certificate_authority)?, text(&target.client_certificate)?, text(&target.client_key)?);
    let context =
        NewContext { name, server: &target.server, certificate_authority: &authority, client_certificate: &certificate, client_key: &key };
    kubeconfig::merge(path, &context).with_context(|| format!("put context {name} into {}", path.display()))
}

fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}
