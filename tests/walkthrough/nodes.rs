//! Lines of more than one board: they join, their pods reach each other and go where they may, one loses its power, daemons are restarted.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::course::{Course, NODES, ROOT, Shell, assert_says, is_ready, name, places};
use crate::lab::wait_until;

fn is_node_ready(shell: &Shell, node: &str) -> bool {
    is_ready(&shell.get(&format!("node {node}")))
}

/// Two more boards, of which nothing knows that they had been in a cluster.
fn bring_boards(course: &Course) {
    let lab = &course.lab;
    course.edgectl().types(&format!("k up --name {} --nodes {NODES}", lab.name));
    for number in 2..=NODES {
        lab.freeze(lab.init_of(number));
        lab.kill_daemon(number, "agent");
        wait_until("no agent runs on the board", || lab.shims_of(number) == 0 && !has_agent(course, number));
        course.on_board(number, &format!("edgectl reset --yes --root {ROOT}"));
        course.edgectl().types(&format!("k delete node {}", lab.node_of(number)));
        course.write_mirror(number);
        // The board's init goes on to start its agent, which waits for the board to join.
        assert!(Command::new("kill").args(["-CONT", &lab.init_of(number).to_string()]).status().unwrap().success());
    }
}

fn has_agent(course: &Course, number: u8) -> bool {
    let folder = course.lab.node_of(number);
    course.lab.daemons("agent").iter().any(|pid| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').any(|word| word == folder)
    })
}

pub fn join(course: &Course) {
    let lab = &course.lab;
    bring_boards(course);
    let said = course.on_board(1, &format!("edgectl init --no-service --root {ROOT} --name {}", lab.node()));
    let line = said.lines().map(str::trim).find(|line| line.starts_with("edgectl join ")).expect("it says how others join");
    let words: Vec<&str> = line.split(' ').collect();
    let ["edgectl", "join", master, "--token", token, "--ca-hash", hash] = words.as_slice() else { panic!("{line}") };
    assert!(master.ends_with(":6443"), "{line}");
    for number in 2..=NODES {
        let node = lab.node_of(number);
        // In the order of the course.
        let said = course
            .on_board(number, &format!("edgectl join --token {token} {master} --ca-hash {hash} --no-service --root {ROOT} --name {node}"));
        assert_says(&said, &[&format!("is now node {node} of the cluster")]);
    }
    course.both(|shell| {
        wait_until("all nodes are Ready", || (1..=NODES).all(|number| is_node_ready(shell, &lab.node_of(number))));
        let nodes = shell.types("k get nodes");
        assert_eq!(nodes.matches(" Ready ").count(), usize::from(NODES), "{nodes}");
        match shell.program {
            "edgectl" => shell.types("k run httpd-app --image=httpd --replicas=2"),
            _ => shell.types("k create deployment httpd-app --image=httpd --replicas=2"),
        };
        shell.waits_for_pods("app=httpd-app", 2);
        assert_says(&shell.types("k get deployment"), &["httpd-app", "2/2"]);
        assert_says(&shell.types("k get pod -o wide"), &["httpd-app-", &lab.node_of(2), &lab.node_of(3)]);
        let mut on = places(&shell.pods("app=httpd-app"));
        on.sort();
        assert_eq!(on, [lab.node_of(2), lab.node_of(3)], "one on each node, and none on the master");
    });
}

/// The bootcamp's pods are on all nodes by now, the master's too: one of each node asks one of each other node.
fn meet(shell: &Shell) {
    let pods = shell.pods("app=kubernetes-bootcamp");
    let of_nodes: BTreeMap<String, &Value> = places(&pods).into_iter().zip(&pods).collect();
    assert_eq!(of_nodes.len(), usize::from(NODES), "{of_nodes:?}");
    for (from, to) in of_nodes.values().flat_map(|from| of_nodes.values().filter(move |to| *to != from).map(move |to| (from, to))) {
        let address = to["status"]["podIP"].as_str().unwrap();
        let said = shell.types(&format!("k exec {} -- wget -qO- http://{address}:8080/", name(from)));
        assert_says(&said, &[&format!("Running on: {} ", name(to))]);
    }
}

/// The links that lead to other nodes' pods: their routes have a protocol number of their own.
fn ways(course: &Course, number: u8) -> Vec<String> {
    let routes: Value = serde_json::from_str(&course.lab.on_node(number, &["ip", "-j", "route", "show", "proto", "69"])).unwrap();
    routes.as_array().into_iter().flatten().map(|route| route["dev"].as_str().unwrap().to_owned()).collect()
}

pub fn reach(course: &Course) {
    course.both(|shell| {
        shell.types("k scale deployment kubernetes-bootcamp --replicas=4");
        shell.waits_for_pods("app=kubernetes-bootcamp", 4);
        meet(shell);
    });
    // The same with a router between the nodes: their way is VXLAN.
    let lab = &course.lab;
    println!("      (each node alone on its link, as if routers stood between them)");
    for number in 1..=NODES {
        let own = course.address(number);
        lab.on_node(number, &["ip", "address", "add", &format!("{own}/32"), "dev", "eth0"]);
        lab.on_node(number, &["ip", "address", "delete", &format!("{own}/24"), "dev", "eth0"]);
        lab.on_node(number, &["ip", "route", "add", "172.30.0.0/24", "dev", "eth0", "src", &own]);
        lab.kill_daemon(number, "agent");
    }
    for number in 1..=NODES {
        wait_until("the ways lead through VXLAN", || ways(course, number) == ["edge1", "edge1"]);
    }
    course.both(meet);
    for number in 1..=NODES {
        let own = course.address(number);
        lab.on_node(number, &["ip", "route", "delete", "172.30.0.0/24", "dev", "eth0", "src", &own]);
        lab.on_node(number, &["ip", "address", "delete", &format!("{own}/32"), "dev", "eth0"]);
        lab.on_node(number, &["ip", "address", "add", &format!("{own}/24"), "dev", "eth0"]);
        lab.kill_daemon(number, "agent");
    }
    for number in 1..=NODES {
        wait_until("the ways are the link again", || ways(course, number) == ["eth0", "eth0"]);
    }
}

fn on_master(shell: &Shell, selector: &str) -> usize {
    let master = shell.course.lab.node();
    places(&shell.pods(selector)).iter().filter(|node| **node == master).count()
}

pub fn taint(course: &Course) {
    let master = course.lab.node();
    course.both(|shell| {
        shell.types("k create deployment spread --image=httpd --replicas=2");
        shell.waits_for_pods("app=spread", 2);
        assert_eq!(on_master(shell, "app=spread"), 0);
        shell.types(&format!("k taint node {master} node-role.kubernetes.io/master-"));
        shell.types("k scale deployment spread --replicas=5");
        shell.waits_for_pods("app=spread", 5);
        let there = on_master(shell, "app=spread");
        assert!(there > 0, "the master takes pods: {:?}", places(&shell.pods("app=spread")));
        let said = shell.types(&format!("k taint node {master} node-role.kubernetes.io/master=\"\":NoSchedule"));
        assert_eq!(said, format!("node/{master} tainted\n"));
        shell.types("k scale deployment spread --replicas=8");
        shell.waits_for_pods("app=spread", 8);
        assert_eq!(on_master(shell, "app=spread"), there, "those that are there stay, and none comes");
        shell.types("k delete deployment spread");
        shell.waits_for_pods("app=spread", 0);
    });
}

/// Patient for a second; five minutes are what a pod has that does not say.
const IMPATIENT: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata:
  name: power
spec:
  replicas: 4
  selector:
    matchLabels:
      app: power
  template:
    metadata:
      labels:
        app: power
    spec:
      tolerations:
      - key: node.kubernetes.io/unreachable
        operator: Exists
        effect: NoExecute
        tolerationSeconds: 1
      containers:
      - name: httpd
        image: httpd
"#;

pub fn power(course: &Course) {
    let (lab, lost) = (&course.lab, course.lab.node_of(NODES));
    let on_lost = |shell: &Shell| places(&shell.pods("app=power")).iter().filter(|node| **node == lost).count();
    course.both(|shell| {
        shell.write("power.yml", IMPATIENT);
        shell.types("k apply -f power.yml");
        shell.waits_for_pods("app=power", 4);
        assert!(on_lost(shell) > 0);
    });
    println!("      ({lost} loses its power)");
    lab.kill(lab.init_of(NODES));
    course.both(|shell| {
        wait_until("the silence is noticed", || !is_node_ready(shell, &lost));
        assert!(shell.types("k get nodes").lines().any(|line| line.starts_with(&lost) && line.contains(" NotReady ")));
        wait_until("as many run elsewhere", || {
            let pods = shell.pods("app=power");
            pods.len() == 4 && pods.iter().all(is_ready) && on_lost(shell) == 0
        });
        shell.types("k get pod -o wide");
    });
    println!("      ({lost} is switched on again)");
    course.edgectl().sees(&format!("k up --name {} --nodes {NODES}", lab.name));
    course.both(|shell| {
        wait_until("it is back", || is_node_ready(shell, &lost));
        shell.waits_for_pods("app=power", 4);
        assert_eq!(on_lost(shell), 0, "what runs elsewhere stays there");
        shell.types("k get nodes");
        shell.types("k delete -f power.yml");
        shell.waits_for_pods("app=power", 0);
    });
}

const SELECTIVE: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata:
  name: selective
spec:
  replicas: 3
  selector:
    matchLabels:
      app: selective
  template:
    metadata:
      labels:
        app: selective
    spec:
      nodeSelector:
        disktype: ssd
      containers:
      - name: nginx
        image: nginx:1.7.9
"#;

pub fn label(course: &Course) {
    let node = course.lab.node_of(2);
    course.both(|shell| {
        shell.write("selective.yml", SELECTIVE);
        shell.types("k apply -f selective.yml");
        let is_told =
            |pod: &Value| pod["status"]["conditions"][0]["message"].as_str().is_some_and(|why| why.contains("node affinity/selector"));
        wait_until("no node has the label, and that is told", || {
            let pods = shell.pods("app=selective");
            pods.len() == 3 && pods.iter().all(is_told)
        });
        shell.types(&format!("k label node {node} disktype=ssd"));
        let labels = shell.types("k get node --show-labels");
        assert!(labels.lines().all(|line| line.contains("disktype=ssd") == line.starts_with(&node)), "{labels}");
        let pods = shell.waits_for_pods("app=selective", 3);
        assert!(places(&shell.pods("app=selective")).iter().all(|place| *place == node));
        shell.types(&format!("k label node {node} disktype-"));
        assert!(!shell.types("k get node --show-labels").contains("disktype"));
        shell.types("k scale deployment selective --replicas=4");
        wait_until("a fourth finds no node", || shell.pods("app=selective").iter().filter(|pod| is_told(pod)).count() == 1);
        let running = shell.pods("app=selective").into_iter().filter(is_ready).map(|pod| name(&pod)).collect();
        assert_eq!(pods, running, "those that run stay");
        shell.types("k delete -f selective.yml");
        shell.waits_for_pods("app=selective", 0);
    });
}

/// Every container with how often it was restarted.
fn containers(shell: &Shell) -> Vec<String> {
    let pods = shell.get("pods --all-namespaces");
    let statuses =
        pods["items"].as_array().unwrap().iter().flat_map(|pod| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default());
    let mut found: Vec<String> = statuses.map(|status| format!("{} {}", status["containerID"], status["restartCount"])).collect();
    found.sort();
    found
}

pub fn restart(course: &Course) {
    let lab = &course.lab;
    let before = containers(&course.edgectl());
    assert!(before.len() > 4, "{before:?}");
    for role in ["agent", "master"] {
        let daemons = lab.daemons(role);
        println!("      # systemctl restart edgectl-{role}   # on each board");
        for pid in &daemons {
            assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
        }
        wait_until("other daemons run", || {
            let now = lab.daemons(role);
            now.len() == daemons.len() && now.iter().all(|pid| !daemons.contains(pid))
        });
    }
    course.both(|shell| {
        wait_until("the API answers", || lab.run(&["get", "--raw", "/readyz"]).status.success());
        assert_eq!(containers(shell), before, "no container was stopped and nothing is lost");
    });
    // They also work.
    course.both(|shell| {
        shell.types("k scale deployment httpd-app --replicas=3");
        shell.waits_for_pods("app=httpd-app", 3);
        shell.types("k get pod -o wide");
    });
    let after = containers(&course.edgectl());
    assert!(before.iter().all(|container| after.contains(container)), "{before:?} in {after:?}");
}
