//! What this node, its pods and their containers use of CPU and memory, for who asks: as the kubelet's summary, and as metrics of
//! Prometheus. Nothing is read before somebody asks. How much CPU is used needs two readings: the last one is kept for a minute, so
//! that who asks again and again gets an answer at once; who asks first waits a second.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use smol::lock::Mutex;
use smol::{Task, Timer};

use super::server::Answered;
use super::{Node, resources};
use crate::base::task;
use crate::base::time::Timestamp;
use crate::runtime::cgroup::Cgroup;
use crate::runtime::shim::usage::Usage;
use crate::wire::body::Body;

/// The least time between the two readings of an answer, and how long the second is kept for the next one.
const WINDOW: Duration = Duration::from_secs(1);
const KEPT: Duration = Duration::from_secs(60);
/// /proc/stat counts in these, on every architecture: proc_stat(5).
const TICK_NANOS: u64 = 10_000_000;

#[derive(Default)]
pub struct Stats {
    kept: Rc<RefCell<Option<Rc<Reading>>>>,
    /// Lets it go.
    forgetting: RefCell<Option<Task<()>>>,
    /// Who asks while somebody waits for a second reading, waits for the same.
    turn: Mutex<()>,
}

/// All that was used up to a moment.
struct Reading {
    at: Instant,
    time: Timestamp,
    node: Usage,
    pods: Vec<PodReading>,
}

struct PodReading {
    namespace: String,
    name: String,
    uid: String,
    cgroup: PathBuf,
    usage: Usage,
    containers: Vec<ContainerReading>,
}

struct ContainerReading {
    name: String,
    id: String,
    usage: Usage,
}

/// The kubelet's `/stats/summary`.
pub async fn summary(node: &Node) -> Answered {
    let failed = |error: anyhow::Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("read what is used: {error:#}"));
    let (before, now) = two_readings(node).await.map_err(failed)?;
    let mut answer = Response::new(Body::full(rendered(&node.facts.node_name, &before, &now).to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

/// The kubelet's `/metrics/resource`: sums, of which who collects them makes rates.
pub async fn metrics(node: &Node) -> Answered {
    let now = read(node).await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("read what is used: {error:#}")))?;
    let mut answer = Response::new(Body::full(exposition(&now)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(answer)
}

async fn two_readings(node: &Node) -> Result<(Rc<Reading>, Rc<Reading>)> {
    let stats = &node.stats;
    let _turn = stats.turn.lock().await;
    let kept = stats.kept.borrow().clone();
    let mut before = match kept {
        Some(kept) => kept,
        None => Rc::new(read(node).await?),
    };
    let mut now = later(node, &before).await?;
    if !before.knows_all_of(&now) {
        // Something has begun since the last time somebody asked.
        before = now;
        now = later(node, &before).await?;
    }
    stats.kept.replace(Some(now.clone()));
    let kept = stats.kept.clone();
    stats.forgetting.replace(Some(task::spawn(async move {
        Timer::after(KEPT).await;
        kept.replace(None);
    })));
    Ok((before, now))
}

/// A reading that is far enough from another one.
async fn later(node: &Node, before: &Reading) -> Result<Rc<Reading>> {
    Timer::after(WINDOW.saturating_sub(before.at.elapsed())).await;
    Ok(Rc::new(read(node).await?))
}

async fn read(node: &Node) -> Result<Reading> {
    let pods = running(node);
    smol::unblock(move || fill(pods)).await
}

/// The pods whose containers run now, with nothing read of them yet.
fn running(node: &Node) -> Vec<PodReading> {
    let pods = node.pods.borrow().values().map(|mailbox| mailbox.pod()).collect::<Vec<_>>();
    let runs = node.runs.borrow();
    let readings = pods
        .iter()
        .filter_map(|pod| {
            let running = runs.get(&pod.metadata.uid)?.iter().filter(|(_, runs)| runs.running);
            Some(PodReading {
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                cgroup: resources::cgroup(&node.cgroup_root, pod).into(),
                usage: Usage::default(),
                containers: running
                    .map(|(name, runs)| ContainerReading { name: name.clone(), id: runs.id.clone(), usage: Usage::default() })
                    .collect(),
            })
        })
        .filter(|pod| !pod.containers.is_empty());
    readings.collect()
}

fn fill(mut pods: Vec<PodReading>) -> Result<Reading> {
    let (at, time) = (Instant::now(), Timestamp::now());
    for pod in &mut pods {
        pod.usage = Usage::of(&Cgroup::at(&pod.cgroup)?);
        for container in &mut pod.containers {
            container.usage = Usage::of(&Cgroup::at(&pod.cgroup.join(&container.id))?);
        }
    }
    let text = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    Ok(Reading { at, time, node: of_machine(&text("/proc/stat")?, &text("/proc/meminfo")?), pods })
}

/// The whole machine's usage, whatever cgroups there are.
fn of_machine(stat: &str, meminfo: &str) -> Usage {
    let ticks = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0));
    let ticks: Vec<u64> = ticks.collect();
    // user, nice, system; irq, softirq, steal. Between them is the time in which nothing was done.
    let busy: u64 = ticks.iter().take(3).chain(ticks.iter().skip(5).take(3)).sum();
    let kib = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_ascii_whitespace().next());
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    Usage {
        cpu_nanos: busy * TICK_NANOS,
        memory_bytes: kib("MemTotal").saturating_sub(kib("MemFree")) << 10,
        working_set_bytes: kib("MemTotal").saturating_sub(kib("MemAvailable")) << 10,
        rss_bytes: kib("AnonPages") << 10,
    }
}

impl Reading {
    fn container(&self, id: &str) -> Option<Usage> {
        self.pods.iter().flat_map(|pod| &pod.containers).find(|container| container.id == id).map(|container| container.usage)
    }

    fn knows_all_of(&self, later: &Reading) -> bool {
        later.pods.iter().flat_map(|pod| &pod.containers).all(|container| self.container(&container.id).is_some())
    }
}

/// `stats/v1alpha1` Summary, as far as CPU and memory go, and the time between the readings.
fn rendered(name: &str, before: &Reading, now: &Reading) -> Value {
    let window = now.at.duration_since(before.at);
    let time = now.time.rfc3339_micros();
    let figures = |earlier: Option<Usage>, usage: Usage| {
        let mut cpu = json!({"time": time, "usageCoreNanoSeconds": usage.cpu_nanos});
        if let Some(earlier) = earlier {
            let used = u128::from(usage.cpu_nanos.saturating_sub(earlier.cpu_nanos));
            cpu["usageNanoCores"] = json!((used * 1_000_000_000 / window.as_nanos().max(1)) as u64);
        }
        let memory = json!({
            "time": time, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes, "rssBytes": usage.rss_bytes,
        });
        (cpu, memory)
    };
    let named = |name: &str, (cpu, memory): (Value, Value)| json!({"name": name, "cpu": cpu, "memory": memory});
    let earlier_pods: HashMap<&str, Usage> = before.pods.iter().map(|pod| (&*pod.uid, pod.usage)).collect();
    let earlier: HashMap<&str, Usage> =
        before.pods.iter().flat_map(|pod| &pod.containers).map(|container| (&*container.id, container.usage)).collect();
    let pod = |pod: &PodReading| {
        let containers = pod
            .containers
            .iter()
            .map(|container| named(&container.name, figures(earlier.get(&*container.id).copied(), container.usage)))
            .collect::<Vec<_>>();
        let (cpu, memory) = figures(earlier_pods.get(&*pod.uid).copied(), pod.usage);
        let reference = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
        json!({"podRef": reference, "containers": containers, "cpu": cpu, "memory": memory})
    };
    let (cpu, memory) = figures(Some(before.node), now.node);
    json!({
        "node": {"nodeName": name, "cpu": cpu, "memory": memory},
        "pods": now.pods.iter().map(pod).collect::<Vec<_>>(),
        "window": format!("{:.3}s", window.as_secs_f64()),
    })
}

/// The text format of Prometheus, with the names that the kubelet gives.
fn exposition(now: &Reading) -> String {
    let seconds = |usage: Usage| usage.cpu_nanos as f64 / 1e9;
    let millis = now.time.0 / 1000;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, lines: Vec<(String, f64)>| {
        // Writing into a String does not fail.
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(text, "{name}{labels} {value} {millis}");
        }
    };
    let containers = |value: &dyn Fn(Usage) -> f64| {
        let lines = now.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)));
        let label = |(pod, container): (&PodReading, &ContainerReading)| {
            format!("{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}", container.name, pod.namespace, pod.name)
        };
        lines.map(|line| (label(line), value(line.1.usage))).collect::<Vec<_>>()
    };
    let pods = |value: &dyn Fn(Usage) -> f64| {
        let label = |pod: &PodReading| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
        now.pods.iter().map(|pod| (label(pod), value(pod.usage))).collect::<Vec<_>>()
    };
    let bytes = |usage: Usage| usage.working_set_bytes as f64;
    family("container_cpu_usage_seconds_total", "counter", containers(&seconds));
    family("container_memory_working_set_bytes", "gauge", containers(&bytes));
    family("node_cpu_usage_seconds_total", "counter", vec![(String::new(), seconds(now.node))]);
    family("node_memory_working_set_bytes", "gauge", vec![(String::new(), bytes(now.node))]);
    family("pod_cpu_usage_seconds_total", "counter", pods(&seconds));
    family("pod_memory_working_set_bytes", "gauge", pods(&bytes));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, cpu_nanos: u64) -> Reading {
        let usage = Usage { cpu_nanos, memory_bytes: 4096, working_set_bytes: 2048, rss_bytes: 1024 };
        let containers = vec![ContainerReading { name: "c".into(), id: "1".into(), usage }];
        let (namespace, name, uid) = ("shop".into(), "web".into(), "u".into());
        let pods = vec![PodReading { namespace, name, uid, cgroup: PathBuf::new(), usage, containers }];
        Reading { at, time: Timestamp(1_000_000), node: usage, pods }
    }

    #[test]
    fn rates_are_made_of_two_readings() {
        let start = Instant::now();
        let (before, now) = (reading(start, 1_000_000_000), reading(start + Duration::from_secs(2), 1_500_000_000));
        let summary = rendered("board", &before, &now);
        for place in ["/node", "/pods/0", "/pods/0/containers/0"] {
            let figures = summary.pointer(place).unwrap();
            assert_eq!((&figures["cpu"]["usageNanoCores"], &figures["memory"]["workingSetBytes"]), (&json!(250_000_000), &json!(2048)));
        }
        assert_eq!((&summary["window"], &summary["pods"][0]["podRef"]["uid"]), (&json!("2.000s"), &json!("u")));
        let mut other = reading(start, 0);
        other.pods[0].containers[0].id = "2".into();
        assert!(before.knows_all_of(&now) && !other.knows_all_of(&now));
        assert!(rendered("board", &other, &now)["pods"][0]["containers"][0]["cpu"]["usageNanoCores"].is_null());
    }

    #[test]
    fn the_machine_is_read_from_proc() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 50 0\ncpu0 1 2 3\n";
        let meminfo = "MemTotal:        1000 kB\nMemFree:          300 kB\nMemAvailable:     600 kB\nAnonPages:        200 kB\n";
        let expected = Usage { cpu_nanos: 171 * TICK_NANOS, memory_bytes: 700 << 10, working_set_bytes: 400 << 10, rss_bytes: 200 << 10 };
        assert_eq!(of_machine(stat, meminfo), expected);
    }

    #[test]
    fn metrics_have_the_kubelets_names() {
        let text = exposition(&reading(Instant::now(), 1_500_000_000));
        assert!(text.contains("container_cpu_usage_seconds_total{container=\"c\",namespace=\"shop\",pod=\"web\"} 1.5 1000\n"), "{text}");
        assert!(text.contains("node_memory_working_set_bytes 2048 1000\n"), "{text}");
    }
}
