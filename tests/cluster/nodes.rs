//! Pods of several nodes: they reach each other, their Services and the nodes themselves, whether the nodes share a link or not, and
//! stay reachable while agents and the master are killed.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster_of, phase, pod, wait};
use crate::services::Client;

const NODES: u8 = 3;
/// So many that each of three pods is all but certain to be met.
const REQUESTS: usize = 60;

fn manifest(lab: &Lab) -> String {
    let web = |number: u8| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: web-{number}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: httpd
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /www && hostname >/www/index.html && dd if=/dev/zero of=/www/big bs=1000 count=2000 && exec httpd -f -p 8080 -h /www"]
---"#,
            node = lab.node_of(number)
        )
    };
    let host = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: host}}
spec:
  nodeName: {node}
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: httpd, image: busybox, imagePullPolicy: Never, command: [sh, -c, "mkdir /w && echo host >/w/index.html && exec httpd -f -p 8081 -h /w"]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]}}
"#,
        node = lab.node_of(NODES)
    );
    (1..=NODES).map(web).collect::<String>() + &host
}

fn fetch(lab: &Lab, client: &Client, url: &str) -> String {
    let output = client.fetch(url);
    assert!(output.status.success(), "{url}: {}\n{}", text(&output.stderr), lab.log());
    text(&output.stdout)
}

fn address(lab: &Lab, name: &str) -> String {
    pod(lab, name)["status"]["podIP"].as_str().unwrap().to_owned()
}

/// Every way that there is between pods, Services and nodes.
fn assert_all_reach_all(lab: &Lab) {
    let pods: Vec<String> = (1..=NODES).map(|number| address(lab, &format!("web-{number}"))).collect();
    let node = address(lab, "host");
    for from in 1..=NODES {
        let client = Client::new(lab, &format!("web-{from}"));
        for (to, address) in (1..=NODES).zip(&pods) {
            assert_eq!(fetch(lab, &client, &format!("http://{address}:8080/")).trim(), format!("web-{to}"), "from {from}");
            // Many full packets: none may be too long for the way.
            assert_eq!(fetch(lab, &client, &format!("http://{address}:8080/big")).len(), 2_000_000, "from {from} to {to}");
            let by_node = lab.on_node(from, &["curl", "-fsS", "-m", "5", &format!("http://{address}:8080/")]);
            assert_eq!(by_node.trim(), format!("web-{to}"), "from node {from}");
        }
        assert_eq!(fetch(lab, &client, &format!("http://{node}:8081/")).trim(), "host", "from {from}");
        // By the Service's name all pods answer, whichever node they are on.
        let names: BTreeSet<String> = (0..REQUESTS).map(|_| fetch(lab, &client, "http://web/").trim().to_owned()).collect();
        assert_eq!(names, (1..=NODES).map(|number| format!("web-{number}")).collect::<BTreeSet<_>>(), "from {from}");
        let port = lab.on_node(from, &["curl", "-fsS", "-m", "5", &format!("http://{node}:30080/")]);
        assert!(port.starts_with("web-"), "{port}");
    }
}

/// The routes that lead to other nodes' pods: their links.
fn ways(lab: &Lab, number: u8) -> Vec<String> {
    let routes: Vec<Value> = serde_json::from_str(&lab.on_node(number, &["ip", "-j", "route", "show", "proto", "69"])).unwrap();
    routes.iter().map(|route| route["dev"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pods_of_all_nodes_reach_each_other_on_one_link_and_across_links() {
    let lab = cluster_of("span", NODES);
    apply(&lab, &manifest(&lab));
    for number in 1..=NODES {
        wait(&lab, &format!("web-{number}"), "Running", |pod| phase(pod) == "Running");
    }
    wait(&lab, "host", "Running", |pod| phase(pod) == "Running");
    for number in 1..=NODES {
        wait_until("the nodes know each other", || ways(&lab, number).len() == 2);
        assert_eq!(ways(&lab, number), ["eth0", "eth0"]);
    }
    wait_until("the Service has three endpoints", || {
        let slices =
            lab.ok(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "jsonpath={.items[*].endpoints[*].addresses}"]);
        slices.split_whitespace().count() == 3
    });
    assert_all_reach_all(&lab);

    // A master that starts again is where it was, whatever addresses its node has been given since.
    let api = || lab.run(&["get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses}"]).stdout;
    let before = api();
    assert_eq!(text(&before), "[\"172.30.0.2\"]");
    let master = lab.daemon("master");
    lab.kill(master);
    wait_until("another master answers", || lab.find_daemon("master").is_some_and(|pid| pid != master) && !api().is_empty());
    wait_until("it is where the one before was", || api() == before && !lab.log().contains("ready address=10."));

    // Each node alone on its link, as if routers stood between them: now the way is the tunnel.
    for number in 1..=NODES {
        let own = format!("172.30.0.{}", number + 1);
        lab.on_node(number, &["ip", "address", "add", &format!("{own}/32"), "dev", "eth0"]);
        lab.on_node(number, &["ip", "address", "delete", &format!("{own}/24"), "dev", "eth0"]);
        lab.on_node(number, &["ip", "route", "add", "172.30.0.0/24", "dev", "eth0", "src", &own]);
    }
    for agent in lab.daemons("agent") {
        lab.kill(agent);
    }
    for number in 1..=NODES {
        wait_until("the ways lead through the tunnel", || ways(&lab, number) == ["edge1", "edge1"]);
        let entries: Vec<Value> = serde_json::from_str(&lab.on_node(number, &["bridge", "-j", "fdb", "show", "dev", "edge1"])).unwrap();
        assert_eq!(entries.iter().filter(|entry| entry["dst"].is_string()).count(), 2, "{entries:?}");
    }
    assert_all_reach_all(&lab);

    // A node that is deleted is no neighbour any more.
    lab.ok(&["delete", "pod", "web-3", "host", "--now"]);
    lab.kill(lab.init_of(NODES));
    lab.ok(&["delete", "node", &lab.node_of(NODES)]);
    wait_until("the node is forgotten", || ways(&lab, 1) == ["edge1"]);
    assert_eq!(fetch(&lab, &Client::new(&lab, "web-1"), &format!("http://{}:8080/", address(&lab, "web-2"))).trim(), "web-2");
    lab.end();
}
