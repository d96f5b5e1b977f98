//! NetworkPolicies on a cluster of two nodes, by kubectl: who reaches whom while policies come, add up and go, and while others
//! flush the rules or the agent is killed.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::api::kubectl;
use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster_of, phase, pod, wait};
use crate::services::Client;

/// From a policy's creation to the rules on a node.
const REACTION: Duration = Duration::from_secs(1);
/// As the lab gives them to nodes.
const NODES: &str = "172.30.0.0/24";
const SECOND_NODE: &str = "172.30.0.3/32";

fn manifest(lab: &Lab) -> String {
    let server = |number: u8| {
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
    ports: [{{name: http, containerPort: 8080}}]
    command: [sh, -c, "mkdir /www && hostname >/www/index.html && httpd -p 8081 -h /www && exec httpd -f -p 8080 -h /www"]
---"#,
            node = lab.node_of(number)
        )
    };
    let client = |namespace: &str, name: &str, number: u8| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: shell, image: busybox, imagePullPolicy: Never, command: [sleep, "3600"]}}]
---"#,
            node = lab.node_of(number)
        )
    };
    let rest = r#"
apiVersion: v1
kind: Namespace
metadata: {name: lab, labels: {team: lab}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---"#;
    [rest, &server(1), &server(2), &client("default", "client", 1), &client("lab", "client", 2)].concat()
}

fn policy(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

struct Cluster {
    lab: Lab,
    kubectl: String,
    /// In the namespaces default, on the first node, and lab, on the second.
    clients: [Client; 2],
    web: [String; 2],
}

impl Cluster {
    fn new(topic: &str) -> Self {
        let lab = cluster_of(topic, 2);
        apply(&lab, &manifest(&lab));
        ["web-1", "web-2", "client"].iter().for_each(|name| drop(wait(&lab, name, "Running", |pod| phase(pod) == "Running")));
        wait_until("the other client runs", || {
            lab.ok(&["get", "pod", "client", "-n", "lab", "-o", "jsonpath={.status.phase}"]) == "Running"
        });
        let web = ["web-1", "web-2"].map(|name| pod(&lab, name)["status"]["podIP"].as_str().unwrap().to_owned());
        let clients = [Client::new(&lab, "client"), Client::within(&lab, "lab", "client")];
        Self { kubectl: kubectl("sid"), clients, web, lab }
    }

    fn kubectl(&self, words: &[&str]) {
        let output =
            Command::new(&self.kubectl).args(words).env("KUBECONFIG", self.lab.kubeconfig()).env("HOME", self.lab.file("")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "kubectl {words:?}: {}", text(&output.stderr));
    }

    fn apply(&self, policies: &[String]) {
        let file = self.lab.file("policies.yaml");
        std::fs::write(&file, policies.concat()).unwrap();
        self.kubectl(&["apply", "-f", &file.to_string_lossy()]);
    }

    fn delete(&self, name: &str) {
        self.kubectl(&["delete", "networkpolicy", name]);
    }

    /// Waits until both clients reach these of the four: the ports 8080 and 8081 of the servers on either node.
    fn wait_for(&self, what: &str, expected: [[bool; 4]; 2]) {
        // Who is shut out hears nothing and waits: all at once.
        let reached = || {
            std::thread::scope(|scope| {
                let asked = self.clients.each_ref().map(|client| {
                    [(0, 8080), (0, 8081), (1, 8080), (1, 8081)].map(|(server, port)| {
                        let url = format!("http://{}:{port}", self.web[server]);
                        scope.spawn(move || client.fetch(&url).status.success())
                    })
                });
                asked.map(|asked| asked.map(|answer| answer.join().unwrap()))
            })
        };
        wait_until(what, || reached() == expected);
    }

    fn table(&self, number: u8) -> String {
        let net = format!("--net=/proc/{}/ns/net", self.lab.init_of(number));
        let listed = Command::new("nsenter").args([&net, "nft", "list", "table", "ip", "edgectl-policies"]).output().unwrap();
        text(&listed.stdout)
    }

    /// The table's lines in an order that does not tell when each was made.
    fn lines(&self, number: u8) -> Vec<String> {
        let mut lines: Vec<String> = self.table(number).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn reaches_from_node(&self, number: u8, server: usize) -> bool {
        let url = format!("http://{}:8080", self.web[server]);
        let net = format!("--net=/proc/{}/ns/net", self.lab.init_of(number));
        Command::new("nsenter").args([&net, "curl", "-fsS", "-m", "2", &url]).output().unwrap().status.success()
    }
}

#[test]
fn pods_are_reached_by_whom_policies_allow() {
    let cluster = Cluster::new("ingress");
    let open = [[true; 4]; 2];
    let shut = [[false; 4]; 2];
    cluster.wait_for("all reach all", open);
    assert_eq!([1, 2].map(|number| cluster.table(number)), ["", ""]);

    let started = Instant::now();
    cluster.apply(&[policy("deny", "{podSelector: {}, policyTypes: [Ingress]}")]);
    while !cluster.table(1).contains("elements") || !cluster.table(2).contains("elements") {
        assert!(started.elapsed() < REACTION, "{}\n{}", cluster.table(1), cluster.table(2));
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.wait_for("all are shut out", shut);
    // But a node is not from its own pods.
    assert!(cluster.reaches_from_node(1, 0) && cluster.reaches_from_node(2, 1) && !cluster.reaches_from_node(2, 0));

    // One more policy by label and a port by its name, one by namespace, one by address.
    cluster.apply(&[policy(
        "label",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]}",
    )]);
    cluster.wait_for("the client is let in by one port", [[true, false, true, false], [false; 4]]);
    let by_name = cluster.clients[0].fetch("http://web");
    assert!(by_name.status.success(), "{by_name:?}");
    assert!(!cluster.clients[1].fetch("http://web.default").status.success());
    cluster.apply(&[policy(
        "namespace",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: lab}}, podSelector: {}}]}]}",
    )]);
    cluster.wait_for("the other namespace is let in", [[true, false, true, false], [true; 4]]);
    cluster.kubectl(&["label", "namespace", "lab", "team=other", "--overwrite"]);
    cluster.wait_for("a namespace with other labels is shut out", [[true, false, true, false], [false; 4]]);
    cluster.kubectl(&["label", "pod", "client", "app=other", "--overwrite"]);
    cluster.wait_for("a pod with other labels is shut out", shut);
    let block = |except: &str| {
        policy("address", &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {NODES}, except: [{except}]}}}}]}}]}}"))
    };
    cluster.apply(&[block("")]);
    wait_until("the other node is let in", || cluster.reaches_from_node(2, 0));
    cluster.apply(&[block(SECOND_NODE)]);
    wait_until("the other node is shut out", || !cluster.reaches_from_node(2, 0));

    // What others flush is mended, and without the agent it holds.
    let right = cluster.lines(1);
    let agents = cluster.lab.daemons("agent");
    agents.iter().for_each(|agent| cluster.lab.kill(*agent));
    cluster.wait_for("rules stay without the agent", shut);
    wait_until("the agents are back", || cluster.lab.daemons("agent").iter().filter(|agent| !agents.contains(agent)).count() == 2);
    cluster.lab.on_node(1, &["nft", "flush", "ruleset"]);
    wait_until("the rules are mended", || cluster.lines(1) == right);
    cluster.wait_for("all are shut out again", shut);

    ["label", "namespace", "address", "deny"].iter().for_each(|name| cluster.delete(name));
    cluster.wait_for("all reach all again", open);
    wait_until("no rule is left", || [1, 2].map(|number| cluster.table(number)) == ["", ""]);
    cluster.lab.end();
}

#[test]
fn pods_reach_whom_policies_allow() {
    let cluster = Cluster::new("egress");
    let target = &cluster.web[1];
    cluster.apply(&[policy("egress", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}")]);
    let other = [true; 4];
    cluster.wait_for("the client is kept in", [[false; 4], other]);
    cluster.apply(&[policy(
        "egress",
        &format!("{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {target}/32}}}}], ports: [{{port: 8080}}]}}]}}"),
    )]);
    cluster.wait_for("it is let out to one port", [[false, false, true, false], other]);
    // By the Service's name, once its pod is the one.
    cluster.kubectl(&["label", "pod", "web-1", "app=none", "--overwrite"]);
    wait_until("the name leads to the pod", || (0..20).all(|_| cluster.clients[0].fetch("http://web").status.success()));
    cluster.kubectl(&["label", "pod", "web-1", "app=web", "--overwrite"]);
    cluster.apply(&[policy(
        "egress",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]}",
    )]);
    cluster.wait_for("it is let out by the port's name", [[true, false, true, false], other]);

    // A pod that begins to speak as soon as it runs.
    let speak = format!("for n in 1 2 3 4 5 6 7 8; do wget -q -T 1 -O - http://{target}:8080 && echo REACHED; done; echo DONE");
    cluster.apply(&[policy("late", "{podSelector: {matchLabels: {app: late}}, policyTypes: [Egress]}")]);
    for number in [1, 2] {
        let manifest = format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: late-{number}, labels: {{app: late}}}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers: [{{name: shell, image: busybox, imagePullPolicy: Never, command: [sh, -c, "{speak}"]}}]
"#,
            node = cluster.lab.node_of(number)
        );
        apply(&cluster.lab, &manifest);
        let name = format!("late-{number}");
        wait(&cluster.lab, &name, "Succeeded", |pod| phase(pod) == "Succeeded");
        let said = cluster.lab.ok(&["logs", &name]);
        assert!(said.contains("DONE") && !said.contains("REACHED"), "{said}");
    }
    cluster.lab.end();
}
