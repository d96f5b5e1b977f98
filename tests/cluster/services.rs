//! A Service on a whole cluster: from a pod by its name, from the node by its address and by the node's port - while its
//! Deployment grows, shrinks and goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, text, wait_until};
use crate::pods::cluster;

/// Of one request; a refusal comes at once, silence would take this long.
const REQUEST_SECONDS: &str = "3";
/// So many that each of three replicas is all but certain to be met: one is missed once in 10^10 times.
const REQUESTS: usize = 60;

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: httpd
        image: busybox
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: busybox, imagePullPolicy: Never, command: [sleep, "3600"]}
"#;

fn get(lab: &Lab, arguments: &[&str]) -> Value {
    serde_json::from_str(&lab.ok(&[&["get", "-o", "json"], arguments].concat())).unwrap()
}

/// The names of the Deployment's pods that are ready.
fn replicas(lab: &Lab) -> BTreeSet<String> {
    let pods = get(lab, &["pods", "-l", "app=web"]);
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.filter(|condition| condition["type"] == "Ready" && condition["status"] == "True").count() == 1;
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    let ready = pods["items"].as_array().unwrap().iter().filter(is_ready);
    ready.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Runs a command in the node's network namespace.
fn on_node(lab: &Lab, command: &[&str]) -> Output {
    Command::new("nsenter").args(["-t", &lab.init().to_string(), "-n"]).args(command).output().unwrap()
}

/// Verbose, so that it says why it could not connect.
const FETCH: [&str; 4] = ["curl", "-sv", "--max-time", REQUEST_SECONDS];

fn fetch_on_node(lab: &Lab, url: &str) -> Output {
    on_node(lab, &[FETCH.as_slice(), &[url]].concat())
}

/// Asks as a pod would, by the machine's own program: that of a busybox linked statically to glibc cannot ask for names.
pub struct Client {
    pid: String,
    resolver: PathBuf,
}

impl Client {
    pub fn new(lab: &Lab, name: &str) -> Self {
        Self::within(lab, "default", name)
    }

    pub fn within(lab: &Lab, namespace: &str, name: &str) -> Self {
        let pod = get(lab, &["pod", name, "-n", namespace]);
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let is_inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&id));
        let pid = lab.processes().into_iter().find(is_inside).unwrap_or_else(|| panic!("{name} runs")).to_string();
        let read = Command::new("nsenter").args(["-t", &pid, "-m", "cat", "/etc/resolv.conf"]).output().unwrap();
        let resolver = lab.file(&format!("resolv.conf-{namespace}-{name}"));
        fs::write(&resolver, read.stdout).unwrap();
        Self { pid, resolver }
    }

    pub fn fetch(&self, url: &str) -> Output {
        let asked = format!("mount --bind {} /etc/resolv.conf && exec {} {url}", self.resolver.display(), FETCH.join(" "));
        Command::new("nsenter").args(["-t", &self.pid, "-n", "unshare", "-m", "sh", "-c", &asked]).output().unwrap()
    }
}

/// Who answers many requests. A request that fails is told with what it said.
fn answers(fetch: impl Fn() -> Output) -> BTreeSet<String> {
    let answer = |output: Output| match output.status.success() {
        true => text(&output.stdout).trim().to_owned(),
        false => format!("failed: {}", text(&output.stderr).trim()),
    };
    (0..REQUESTS).map(|_| answer(fetch())).collect()
}

fn is_refused_at_once(fetch: impl Fn() -> Output) {
    let started = Instant::now();
    let output = fetch();
    assert!(text(&output.stderr).contains("Connection refused"), "{output:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

/// Elements of all sets and maps of the table.
fn elements(lab: &Lab) -> Vec<Value> {
    let listed = on_node(lab, &["nft", "-j", "list", "ruleset"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let sets = listed["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("map").or_else(|| item.get("set")));
    let ours: Vec<&Value> = sets.filter(|set| set["table"] == "edgectl-services").collect();
    assert!(!ours.is_empty(), "the table is missing: {listed}");
    ours.into_iter().flat_map(|set| set["elem"].as_array().cloned().unwrap_or_default()).collect()
}

#[test]
fn a_service_leads_to_its_replicas_wherever_it_is_asked() {
    let lab = cluster("services");
    let before = {
        wait_until("the API's own Service has its rules", || {
            on_node(&lab, &["nft", "list", "table", "ip", "edgectl-services"]).status.success()
        });
        wait_until("the API's own Service is served", || !elements(&lab).is_empty());
        elements(&lab)
    };
    let file = lab.file("manifest.yaml");
    fs::write(&file, MANIFEST).unwrap();
    lab.ok(&["apply", "-f", &file.to_string_lossy()]);
    wait_until("the client runs", || get(&lab, &["pod", "client"])["status"]["phase"] == "Running");
    wait_until("two replicas are ready", || replicas(&lab).len() == 2);
    let client = Client::new(&lab, "client");
    let service = get(&lab, &["service", "web"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    let node = get(&lab, &["nodes"]);
    let node_address = node["items"][0]["status"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    let urls = [format!("http://{address}"), format!("http://{node_address}:{node_port}")];

    // By name from a pod; by address and by the node's port from the node.
    let is_served_by = |wanted: &BTreeSet<String>| {
        wait_until("the Service leads to its replicas", || answers(|| client.fetch("http://web")) == *wanted);
        for url in &urls {
            assert_eq!(answers(|| fetch_on_node(&lab, url)), *wanted, "{url}");
        }
        assert_eq!(answers(|| client.fetch(&urls[1])), *wanted);
    };
    let two = replicas(&lab);
    is_served_by(&two);
    is_refused_at_once(|| client.fetch("http://nobody"));
    let nobody = get(&lab, &["service", "nobody"])["spec"]["clusterIP"].as_str().unwrap().to_owned();
    is_refused_at_once(|| fetch_on_node(&lab, &format!("http://{nobody}")));

    lab.ok(&["scale", "deployment", "web", "--replicas", "3"]);
    wait_until("three replicas are ready", || replicas(&lab).len() == 3);
    is_served_by(&replicas(&lab));
    lab.ok(&["scale", "deployment", "web", "--replicas", "0"]);
    wait_until("no replica is left", || replicas(&lab).is_empty());
    wait_until("nobody answers", || text(&fetch_on_node(&lab, &urls[0]).stderr).contains("Connection refused"));
    is_refused_at_once(|| client.fetch("http://web"));
    lab.ok(&["scale", "deployment", "web", "--replicas", "2"]);
    wait_until("two replicas are ready again", || replicas(&lab).len() == 2);
    is_served_by(&replicas(&lab));

    // An agent that is gone, and rules that others have flushed.
    let agent = lab.daemon("agent");
    lab.kill(agent);
    assert_eq!(answers(|| client.fetch(&urls[0])), replicas(&lab));
    wait_until("the agent is back", || lab.find_daemon("agent").is_some_and(|found| found != agent));
    assert!(on_node(&lab, &["nft", "flush", "ruleset"]).status.success());
    wait_until("the rules are mended", || client.fetch(&urls[0]).status.success());

    lab.ok(&["delete", "-f", &file.to_string_lossy()]);
    wait_until("nothing of the Services is left in the node's rules", || elements(&lab) == before);
    is_refused_at_once(|| fetch_on_node(&lab, &urls[0]));
    lab.end();
}

const BALANCED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// Somebody in a network of their own, which the node routes for.
struct Outside(std::process::Child);

impl Outside {
    fn new(lab: &Lab) -> Self {
        let mut process = Command::new("unshare").args(["-n", "sh", "-c", "echo; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
        // The namespace is there once the shell in it speaks.
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let outside = Self(process);
        let pid = outside.0.id().to_string();
        lab.on_node(1, &["ip", "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        lab.on_node(1, &["ip", "address", "add", "192.0.2.1/24", "dev", "out0"]);
        lab.on_node(1, &["ip", "link", "set", "out0", "up"]);
        for words in ["address add 192.0.2.2/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.1"] {
            let made = outside.run(&[&["ip"], words.split(' ').collect::<Vec<_>>().as_slice()].concat());
            assert!(made.status.success(), "{words}: {}", text(&made.stderr));
        }
        outside
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new("nsenter").args(["-t", &self.0.id().to_string(), "-n"]).args(words).output().unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_balanced_service_is_reached_at_its_nodes_address() {
    let lab = cluster("balanced");
    let file = lab.file("manifest.yaml");
    fs::write(&file, format!("{MANIFEST}---{BALANCED}")).unwrap();
    lab.ok(&["apply", "-f", &file.to_string_lossy()]);
    wait_until("two replicas are ready", || replicas(&lab).len() == 2);
    let node = get(&lab, &["nodes"])["items"][0]["status"]["addresses"][0]["address"].as_str().unwrap().to_owned();
    let shown = |column: usize| lab.ok(&["get", "service", "balanced", "--no-headers"]).split_whitespace().nth(column).unwrap().to_owned();
    wait_until("it has its address", || shown(3) == node);
    assert_eq!(shown(4), "80/TCP", "no node port, as it asks for none");
    let outside = Outside::new(&lab);
    let url = format!("http://{node}");
    let from_outside = || outside.run(&[FETCH.as_slice(), &[&url]].concat());
    wait_until("it is reached from outside", || from_outside().status.success());
    assert_eq!(answers(from_outside), replicas(&lab));
    assert_eq!(answers(|| fetch_on_node(&lab, &url)), replicas(&lab));
    let events = get(&lab, &["events"]);
    let reasons: BTreeSet<&str> = events["items"].as_array().unwrap().iter().filter_map(|event| event["reason"].as_str()).collect();
    assert!(reasons.contains("EnsuringLoadBalancer") && reasons.contains("EnsuredLoadBalancer"), "{reasons:?}");

    let patch = |patch: &str| lab.ok(&["patch", "service", "balanced", "-p", patch]);
    patch(r#"{"spec": {"loadBalancerSourceRanges": ["192.0.2.64/26"]}}"#);
    wait_until("it is shut for others", || !from_outside().status.success());
    patch(r#"{"spec": {"loadBalancerSourceRanges": ["192.0.2.0/26"]}}"#);
    wait_until("it is open again", || from_outside().status.success());
    lab.ok(&["label", "node", &lab.node(), "node.kubernetes.io/exclude-from-external-load-balancers="]);
    wait_until("an excluded node is no address", || shown(3) == "<pending>");
    wait_until("it is served there no more", || text(&from_outside().stderr).contains("Connection refused"));
    lab.ok(&["label", "node", &lab.node(), "node.kubernetes.io/exclude-from-external-load-balancers-"]);
    wait_until("it has its address again", || shown(3) == node);
    patch(r#"{"spec": {"type": "ClusterIP", "loadBalancerSourceRanges": null}}"#);
    wait_until("it has no address any more", || shown(3) == "<none>");
    wait_until("nothing is left of it", || text(&from_outside().stderr).contains("Connection refused"));
    lab.end();
}
