//! The master at scale, measured: this one process plays the agents of many nodes against a real `edgectl master`, both in a network
//! namespace of their own that has nothing but loopback. Prints a row for each figure, beside its budget where one is promised.
//! It judges no behaviour: what is right is for the other tests.
//!
//! Usage: scale BINARY [--nodes N] [--pods N] [--bound] [--no-peers] [--no-rates] [--minutes N]

mod fleet;
mod link;
mod master;
mod rates;
#[path = "../../src/base/task.rs"]
mod task;
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../src/base/time.rs"]
mod time;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::{self, StreamExt};
use hyper::Method;
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use smol::Timer;

use self::fleet::Fleet;
use self::link::{JSON, Link};
use self::master::{Master, cpu_ticks};

/// Of DESIGN.md.
const NODES_PROMISED: usize = 5000;
const PODS_PROMISED: usize = 150_000;
/// Pods of one Deployment; the replicas of a large cluster are of many.
const REPLICAS: usize = 1000;
const AT_REST: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Writes that fill the cluster at a time.
const FILLING: usize = 64;
/// kube-controller-manager `--node-monitor-grace-period`, which failover is measured from.
const GRACE: Duration = Duration::from_secs(40);
const NAMESPACE: &str = "/api/v1/namespaces/default";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

struct Options {
    binary: PathBuf,
    nodes: usize,
    pods: usize,
    /// Pods are made with their node already named: what the scheduler takes is left out.
    bound: bool,
    /// Nodes follow the other nodes, as real agents do.
    peers: bool,
    rates: bool,
    limit: Duration,
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let binary = words.next().context("scale: which binary?")?.into();
        let minutes = |minutes: usize| Duration::from_secs(60 * minutes as u64);
        let mut options = Self { binary, nodes: 500, pods: 5000, bound: false, peers: true, rates: true, limit: minutes(10) };
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|word| word.parse::<usize>().ok()).with_context(|| format!("{word} N"));
            match word.as_str() {
                "--nodes" => options.nodes = number()?,
                "--pods" => options.pods = number()?,
                "--minutes" => options.limit = minutes(number()?),
                "--bound" => options.bound = true,
                "--no-peers" => options.peers = false,
                "--no-rates" => options.rates = false,
                _ => bail!("scale does not know {word:?}"),
            }
        }
        Ok(options)
    }
}

/// One line of the table; more is worse, unless the unit is a rate.
pub fn row(what: &str, measured: impl std::fmt::Display, budget: Option<f64>, unit: &str, note: &str) {
    let measured = measured.to_string();
    let is_over = |budget: f64| measured.parse::<f64>().map_or(true, |measured| measured > budget);
    let (shown, verdict) = match budget {
        None => ("-".to_owned(), ""),
        Some(budget) => (budget.to_string(), if is_over(budget) { "MISSED" } else { "ok" }),
    };
    println!("{what:<52} {measured:>12} {shown:>12} {unit:<8} {verdict:<7} {note}");
}

fn main() -> ExitCode {
    match Options::read(std::env::args().skip(1)).and_then(|options| apart().and_then(|()| task::run(measure(options)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the machine's network; descriptors as a service unit gives them.
fn apart() -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "set lo up");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}

struct Run {
    options: Options,
    master: Master,
    admin: Link,
    fleet: Fleet,
    began: Instant,
}

async fn measure(options: Options) -> Result<()> {
    let began = Instant::now();
    let master = Master::start(&options.binary).await?;
    let admin = master.admin().await?;
    master.settle().await?;
    let empty = master.pss_bytes()?;
    row("master alone, PSS", mb(empty), None, "MB", "");
    let since = Instant::now();
    let (spent, own) = (master.cpu_ticks()?, own_ticks()?);
    let fleet = Fleet::start(&master.authority()?, options.nodes, options.peers)?;
    let run = Run { options, master, admin, fleet, began };
    run.nodes_ready().await?;
    let (nodes, pods) = (run.options.nodes, run.options.pods);
    let peers = if run.options.peers { "each follows all others" } else { "they do not follow each other" };
    row(&format!("{nodes} nodes Ready"), seconds(since), None, "s", &run.spent(spent, own, peers)?);
    run.master.settle().await?;
    let with_nodes = run.master.pss_bytes()?;
    row("PSS with the nodes", mb(with_nodes), None, "MB", "");
    row("PSS per node", kb(with_nodes.saturating_sub(empty), nodes), None, "kB", "two connections and five watches each");

    run.pods_running().await?;
    let peak = run.master.pss_bytes()?;
    row(&format!("PSS with {pods} pods, at once"), mb(peak), None, "MB", "");
    run.master.settle().await?;
    let full = run.master.pss_bytes()?;
    row("PSS with the pods, idle", mb(full), None, "MB", "");
    row("PSS per pod", kb(full.saturating_sub(with_nodes), pods), None, "kB", "the pod itself, Events and EndpointSlices");
    let (ticks, written) = (run.master.cpu_ticks()?, run.master.written_bytes()?);
    Timer::after(AT_REST).await;
    let share = (run.master.cpu_ticks()? - ticks) as f64 / AT_REST.as_secs_f64();
    row("master's CPU at rest, of one core", format!("{share:.2}"), None, "%", &format!("{} leases a second", nodes / 10));
    row("bytes written at rest, over 30 s", run.master.written_bytes()? - written, Some(0.0), "bytes", "");
    if run.options.rates {
        let (failover, rates) = futures_util::join!(run.failover(), rates::measure(&run.master, &run.admin));
        rates?;
        failover?;
    }
    let tally = &run.fleet.tally;
    let watched = tally.watched_bytes.get() / 1_000_000;
    row("lists that nodes had to make again", tally.relists.get().saturating_sub(run.watches()), Some(0.0), "", "");
    row("requests of nodes that failed", tally.errors.get(), Some(0.0), "", &format!("{watched} MB went over watches"));
    Ok(())
}

impl Run {
    fn watches(&self) -> usize {
        self.options.nodes * if self.options.peers { 5 } else { 4 }
    }

    /// # Errors
    /// If the time is over; it says where things stand.
    fn in_time(&self, what: &str, stand: impl std::fmt::Display) -> Result<()> {
        ensure!(
            self.began.elapsed() < self.options.limit,
            "{what}: {stand} when the time was over; PSS {} MB",
            mb(self.master.pss_bytes()?)
        );
        Ok(())
    }

    /// What master and nodes took since, in seconds of processor.
    fn spent(&self, master: u64, own: u64, note: &str) -> Result<String> {
        let (master, own) = (self.master.cpu_ticks()? - master, own_ticks()? - own);
        let note = if note.is_empty() { String::new() } else { format!("; {note}") };
        Ok(format!("CPU {:.1} s of the master, {:.1} s of who plays the nodes{note}", master as f64 / 100.0, own as f64 / 100.0))
    }

    /// Waits until the API says that all nodes are ready and take pods.
    async fn nodes_ready(&self) -> Result<()> {
        loop {
            let up = self.fleet.tally.nodes_up.get();
            if up == self.options.nodes {
                let nodes = self.admin.json("/api/v1/nodes").await?;
                let ready = nodes["items"].as_array().into_iter().flatten().filter(|node| node["spec"]["taints"].is_null()).count();
                if ready == self.options.nodes {
                    return Ok(());
                }
            }
            self.in_time("bring up the nodes", format!("{up} of {}", self.options.nodes))?;
            Timer::after(POLL).await;
        }
    }

    async fn pods_running(&self) -> Result<()> {
        let Options { pods, bound, .. } = self.options;
        let since = Instant::now();
        let (spent, own) = (self.master.cpu_ticks()?, own_ticks()?);
        if bound {
            self.make_bound().await?;
        } else {
            self.make_deployments().await?;
        }
        let tally = &self.fleet.tally;
        while tally.pods_running.get() < pods {
            self.in_time("run the pods", format!("{} have a node, {} run, of {pods}", tally.pods_seen.get(), tally.pods_running.get()))?;
            Timer::after(POLL).await;
        }
        let promised =
            if pods == PODS_PROMISED && self.options.nodes == NODES_PROMISED { Some(self.options.limit.as_secs_f64()) } else { None };
        let how = if bound { "made with their nodes named" } else { "made by Deployments" };
        row(&format!("{pods} pods Running"), seconds(since), promised, "s", &self.spent(spent, own, how)?);
        if !bound {
            loop {
                let list = self.admin.json(DEPLOYMENTS).await?;
                let ready = list["items"].as_array().into_iter().flatten().filter_map(|each| each["status"]["readyReplicas"].as_u64());
                let ready: u64 = ready.sum();
                if ready as usize == pods {
                    break;
                }
                self.in_time("ready replicas", format!("{ready} of {pods}"))?;
                Timer::after(POLL).await;
            }
            row("and their Deployments say so", seconds(since), None, "s", "");
        }
        if let (Some(first), Some(last), false) = (tally.first_seen.get(), tally.last_seen.get(), bound) {
            let rate = pods as f64 / last.duration_since(first).as_secs_f64();
            row("pods that get a node", format!("{rate:.0}"), None, "pods/s", "while they are made, told, run and counted");
        }
        let asked = Instant::now();
        let list = self.admin.get("/api/v1/pods").await?;
        let took = asked.elapsed();
        row(&format!("list of {pods} pods"), format!("{:.1}", took.as_secs_f64() * 1000.0), None, "ms", &format!("{} bytes", list.len()));
        Ok(())
    }

    async fn make_deployments(&self) -> Result<()> {
        let pods = self.options.pods;
        let count = pods.div_ceil(REPLICAS);
        for number in 0..count {
            let replicas = REPLICAS.min(pods - number * REPLICAS);
            let name = format!("web-{number}");
            self.admin.write(Method::POST, &format!("{NAMESPACE}/services"), JSON, &service(&name)).await?;
            self.admin.write(Method::POST, DEPLOYMENTS, JSON, &deployment(&name, replicas, json!([]))).await?;
        }
        Ok(())
    }

    async fn make_bound(&self) -> Result<()> {
        let Options { pods, nodes, .. } = self.options;
        let make = async |number: usize| {
            let name = format!("web-{}", number / REPLICAS);
            let mut spec = template(&name, json!([]))["spec"].take();
            spec["nodeName"] = format!("node-{:04}", number % nodes).into();
            let metadata = json!({"name": format!("{name}-{number}"), "labels": {"app": name}});
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
            self.admin.write(Method::POST, &format!("{NAMESPACE}/pods"), JSON, &pod).await?;
            self.in_time("make the pods", number)
        };
        let mut made = stream::iter(0..pods).map(make).buffer_unordered(FILLING);
        while let Some(made) = made.next().await {
            made?;
        }
        Ok(())
    }

    /// How long after the grace a pod runs elsewhere whose node is silent.
    async fn failover(&self) -> Result<()> {
        let tolerations =
            json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}]);
        self.admin.write(Method::POST, DEPLOYMENTS, JSON, &deployment("patient", 1, tolerations)).await?;
        let runs_on = async |not: &str| -> Result<String> {
            loop {
                let pods = self.admin.json(&format!("{NAMESPACE}/pods?labelSelector=app%3Dpatient")).await?;
                let running = pods["items"].as_array().into_iter().flatten().filter(|pod| pod["status"]["phase"] == "Running");
                let mut nodes = running.filter_map(|pod| pod["spec"]["nodeName"].as_str());
                if let Some(node) = nodes.find(|node| *node != not) {
                    return Ok(node.to_owned());
                }
                self.in_time("failover", "the pod does not run")?;
                Timer::after(POLL / 10).await;
            }
        };
        let lost = runs_on("").await?;
        let heard = self.fleet.node(&lost).and_then(|node| node.silence()).context("a node that was heard of")?;
        runs_on(&lost).await?;
        let took = heard.elapsed().saturating_sub(GRACE);
        row("node lost to pod elsewhere, beyond the grace of 40 s", format!("{:.2}", took.as_secs_f64()), None, "s", "tolerationSeconds 2");
        Ok(())
    }
}

fn template(app: &str, tolerations: Value) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "tolerations": tolerations,
            "containers": [{
                "name": "c", "image": "registry.example/shop/web:1.2.3", "ports": [{"containerPort": 80}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "env": [{"name": "MODE", "value": "production"}, {"name": "REGION", "value": "north"}],
            }],
        },
    })
}

fn deployment(name: &str, replicas: usize, tolerations: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, tolerations)},
    })
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}})
}

fn own_ticks() -> Result<u64> {
    cpu_ticks(&std::fs::read_to_string("/proc/self/stat")?)
}

fn seconds(since: Instant) -> String {
    format!("{:.2}", since.elapsed().as_secs_f64())
}

fn mb(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}

fn kb(bytes: u64, count: usize) -> String {
    format!("{:.2}", bytes as f64 / 1e3 / count.max(1) as f64)
}
