//! Five nodes and what can go wrong on a shelf of boards: daemons killed, power lost, links cut, lossy ones, several at once and in
//! an order that a seed decides. After each time all is exactly as it should be: replicas, endpoints, rules, routes, addresses, links
//! and shims, and nothing more than that.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, text};
use crate::pods::{apply, cluster_with};

const NODES: u8 = 5;
const REPLICAS: usize = 8;
/// Each comes at least once.
const KINDS: usize = 5;
/// A node that was silent is found, its pods replaced, its link back, its agent's pauses over.
const QUIET_WITHIN: Duration = Duration::from_secs(120);
/// Shorter than what makes a node silent, and longer.
const CUTS_SECONDS: [u64; 2] = [5, 30];

const SETTINGS: &str = "nodeMonitorGracePeriod: 20s\n";

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 8
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: httpd
        image: busybox
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
"#;

/// xorshift64*: the same seed, the same faults.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillAgent(u8),
    KillMaster,
    CutLink(u8, u64),
    PoorLink(u8, u64),
    PowerOff(u8),
}

impl Fault {
    fn draw(dice: &mut Dice, kind: usize) -> Self {
        // The first node is the master: with it away there is nobody who could replace anything, which other tests are about.
        let node = 2 + dice.below(usize::from(NODES) - 1) as u8;
        let seconds = CUTS_SECONDS[dice.below(CUTS_SECONDS.len())];
        match kind {
            0 => Self::KillAgent(1 + dice.below(usize::from(NODES)) as u8),
            1 => Self::KillMaster,
            2 => Self::CutLink(node, seconds),
            3 => Self::PoorLink(node, seconds),
            _ => Self::PowerOff(node),
        }
    }

    fn begin(self, lab: &Lab) {
        match self {
            Self::KillAgent(node) => lab.kill_daemon(node, "agent"),
            Self::KillMaster => lab.kill_daemon(1, "master"),
            Self::CutLink(node, _) => {
                lab.on_node(node, &["ip", "link", "set", &uplink(lab, node), "down"]);
            }
            Self::PoorLink(node, _) => {
                // Every fifth packet of the node's own gets lost, in both directions; not every kernel has netem.
                for words in [
                    "table ip poor",
                    "chain ip poor in { type filter hook input priority -300 ; }",
                    "chain ip poor out { type filter hook output priority -300 ; }",
                ] {
                    lab.on_node(node, &["nft", "add", words]);
                }
                for chain in ["in", "out"] {
                    lab.on_node(node, &["nft", "add rule ip poor", chain, "numgen random mod 5 0 drop"]);
                }
            }
            Self::PowerOff(node) => lab.kill(lab.init_of(node)),
        }
    }

    /// For how long it lasts before it is mended.
    fn seconds(self) -> u64 {
        match self {
            Self::CutLink(_, seconds) | Self::PoorLink(_, seconds) => seconds,
            Self::KillAgent(_) | Self::KillMaster | Self::PowerOff(_) => 0,
        }
    }

    /// What `up` does not mend. A node that has lost its power since has lost the fault, too.
    fn end(self, lab: &Lab) {
        match self {
            Self::CutLink(node, _) => drop(lab.try_on_node(node, &["ip", "link", "set", &uplink(lab, node), "up"])),
            Self::PoorLink(node, _) => drop(lab.try_on_node(node, &["nft", "delete table ip poor"])),
            Self::KillAgent(_) | Self::KillMaster | Self::PowerOff(_) => (),
        }
    }
}

/// The node's link to the others.
fn uplink(lab: &Lab, node: u8) -> String {
    let address = format!("172.30.0.{}/", node + 1);
    let said = lab.try_on_node(node, &["ip", "-o", "-4", "address"]).unwrap_or_default();
    let line = said.lines().find(|line| line.contains(&address)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or("lo").to_owned()
}

fn get(lab: &Lab, words: &[&str]) -> Option<Value> {
    let output = lab.run(&[&["get", "-o", "json"], words].concat());
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == "Ready" && condition["status"] == "True").count() == 1
}

/// A pod of the test: its node, uid and address.
type Pod = (String, String, String);

/// What is not as it should be; nothing, if all is.
fn wrong(lab: &Lab) -> Option<String> {
    let nodes = get(lab, &["nodes"]).ok_or_else(|| "the API does not answer".to_owned());
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(error) => return Some(error),
    };
    if items(&nodes).filter(|node| is_ready(node) && node["spec"]["taints"].is_null()).count() != usize::from(NODES) {
        return Some("not all nodes are ready and free of taints".into());
    }
    let all = get(lab, &["pods", "-A"])?;
    let pods: BTreeSet<Pod> = items(&all)
        .filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (word(&pod["spec"]["nodeName"]), word(&pod["metadata"]["uid"]), word(&pod["status"]["podIP"]))
        })
        .collect();
    if pods.len() != REPLICAS || items(&all).count() != REPLICAS {
        return Some(format!("{} pods, of which {} are well", items(&all).count(), pods.len()));
    }
    let addresses: BTreeSet<&str> = pods.iter().map(|(_, _, address)| address.as_str()).collect();
    let slices = get(lab, &["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
    let endpoints = items(&slices).flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let endpoints: BTreeSet<&str> = endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str()).collect();
    if addresses.len() != REPLICAS || endpoints != addresses {
        return Some(format!("pods have {addresses:?}, the Service {endpoints:?}"));
    }
    let cidrs: Vec<(String, String)> = items(&nodes)
        .map(|node| (node["metadata"]["name"].as_str().unwrap().to_owned(), node["spec"]["podCIDR"].as_str().unwrap().to_owned()))
        .collect();
    (1..=NODES).find_map(|number| wrong_on(lab, number, &pods, &cidrs).map(|what| format!("node {number}: {what}")))
}

/// What is not as it should be on a node: judged by its own `ip`, `nft`, processes and files.
fn wrong_on(lab: &Lab, number: u8, pods: &BTreeSet<Pod>, cidrs: &[(String, String)]) -> Option<String> {
    let name = lab.node_of(number);
    let own: Vec<&Pod> = pods.iter().filter(|(node, ..)| *node == name).collect();
    let Some(routes) = lab.try_on_node(number, &["ip", "-4", "route", "show", "proto", "69"]) else {
        return Some("it does not run".into());
    };
    let routes: BTreeSet<&str> = routes.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected: BTreeSet<&str> = cidrs.iter().filter(|(node, _)| *node != name).map(|(_, cidr)| cidr.as_str()).collect();
    if routes != expected {
        return Some(format!("routes to {routes:?}"));
    }
    let links = lab.try_on_node(number, &["ip", "-o", "link", "show", "type", "veth", "master", "edge0"])?;
    if links.lines().count() != own.len() {
        return Some(format!("{} pods, and links {links}", own.len()));
    }
    let table = lab.try_on_node(number, &["nft", "list", "table", "ip", "edgectl-services"])?;
    let backends: BTreeSet<&str> =
        pods.iter().map(|(_, _, address)| address.as_str()).filter(|address| has_word(&table, address)).collect();
    let strangers = table.split(|letter: char| !letter.is_ascii_digit() && letter != '.').filter(|word| word.starts_with("10.244."));
    // Networks are no pods.
    let strangers: BTreeSet<&str> = strangers.filter(|word| !word.ends_with(".0") && !backends.contains(word)).collect();
    if backends.len() != REPLICAS || !strangers.is_empty() {
        return Some(format!("the rules lead to {backends:?}, and to nobody at {strangers:?}"));
    }
    let state = lab.root_of(number);
    let uids: BTreeSet<&str> = own.iter().map(|(_, uid, _)| uid.as_str()).collect();
    for folder in ["var/lib/edgectl/pods", "var/lib/edgectl/ledger/pods"] {
        let entries = fs::read_dir(state.join(folder)).into_iter().flatten().flatten();
        let found: BTreeSet<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if found.iter().map(String::as_str).collect::<BTreeSet<_>>() != uids {
            return Some(format!("{folder} has {found:?} and the node {uids:?}"));
        }
    }
    let shims = lab.shims_of(number);
    if shims != own.len() {
        return Some(format!("{} pods, and {shims} shims", own.len()));
    }
    let answered: BTreeSet<String> = (0..60)
        .filter_map(|_| lab.try_on_node(number, &["curl", "-fsS", "-m", "3", &format!("http://172.30.0.{}:30080/", number + 1)]))
        .collect();
    (answered.len() != REPLICAS).then(|| format!("its port leads to {answered:?}"))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|letter: char| !letter.is_ascii_digit() && letter != '.').any(|found| found == word)
}

fn wait_for_quiet(lab: &Lab, after: &str) {
    let since = Instant::now();
    while let Some(what) = wrong(lab) {
        if since.elapsed() > QUIET_WITHIN {
            let said = text(&lab.run(&["get", "nodes,pods,events", "-A", "-o", "wide"]).stdout);
            panic!("{after}: {what}\n{said}\n{}", lab.log());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{after}: as it should be after {:.1} s", since.elapsed().as_secs_f64());
}

#[test]
fn five_nodes_come_to_rest_as_they_should_be_whatever_happens() {
    let seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let lab = cluster_with("faults", NODES, SETTINGS);
    apply(&lab, MANIFEST);
    wait_for_quiet(&lab, "the beginning");
    let first = dice.below(KINDS);
    for round in 0..KINDS {
        let kinds = std::iter::once((first + round) % KINDS).chain((0..dice.below(3)).map(|_| dice.below(KINDS)).collect::<Vec<_>>());
        let faults: Vec<Fault> = kinds.map(|kind| Fault::draw(&mut dice, kind)).collect();
        for fault in &faults {
            // One that is off cannot have its agent killed as well.
            if let Fault::PowerOff(node) | Fault::KillAgent(node) | Fault::CutLink(node, _) | Fault::PoorLink(node, _) = fault
                && lab.find_init_of(*node).is_none()
            {
                continue;
            }
            fault.begin(&lab);
        }
        std::thread::sleep(Duration::from_secs(faults.iter().map(|fault| fault.seconds()).max().unwrap_or(0)));
        faults.iter().for_each(|fault| fault.end(&lab));
        let up = lab.run(&["up", "--name", &lab.name]);
        assert!(up.status.success(), "round {round} {faults:?}: {}{}", text(&up.stderr), lab.log());
        wait_for_quiet(&lab, &format!("round {round} {faults:?}"));
    }
    lab.end();
}
