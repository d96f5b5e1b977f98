//! A node that is started anew while the master is out of reach: its pods run again with what they had, by the same addresses, its
//! Services and names answer; and when the master is back nothing is restarted for that.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lab::{Lab, wait_until};
use crate::pods::{apply, cluster_of, phase, pod, wait};

fn manifest(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: blue}}
---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
stringData: {{password: hunter2}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  initContainers:
  - {{name: init, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo prepared > /memory/word"], volumeMounts: [{{name: memory, mountPath: /memory}}]}}
  containers:
  - name: httpd
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c]
    args: ["echo run >> /disk/runs; mkdir /www; echo $COLOUR $(cat /keys/password) $(cat /memory/word) $(wc -l < /disk/runs) > /www/index.html; exec httpd -f -p 8080 -h /www"]
    env: [{{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}]
    volumeMounts: [{{name: keys, mountPath: /keys}}, {{name: memory, mountPath: /memory}}, {{name: disk, mountPath: /disk}}]
  volumes:
  - {{name: keys, secret: {{secretName: keys}}}}
  - {{name: memory, emptyDir: {{medium: Memory}}}}
  - {{name: disk, emptyDir: {{}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: done}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers: [{{name: main, image: busybox, imagePullPolicy: Never, command: ["true"]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: cut}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers: [{{name: main, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"]}}]
"#
    )
}

fn ready(lab: &Lab) -> String {
    lab.ok(&["get", "pod", "web", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"])
}

/// What the Service answers on the second node, by its address.
fn ask(lab: &Lab, address: &str) -> Option<String> {
    let net = format!("--net=/proc/{}/ns/net", lab.find_init_of(2)?);
    let url = format!("http://{address}/");
    let output = Command::new("nsenter").args([&net, "curl", "-fsS", "-m", "3", &url]).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_node_started_anew_without_the_master_runs_its_pods_from_its_ledger() {
    let lab = cluster_of("alone", 2);
    let ledger = lab.root_of(2).join("var/lib/edgectl/ledger");
    apply(&lab, &manifest(&lab.node_of(2)));
    let web = wait(&lab, "web", "Running", |pod| phase(pod) == "Running");
    wait(&lab, "done", "Succeeded", |pod| phase(pod) == "Succeeded");
    wait(&lab, "cut", "Running", |pod| phase(pod) == "Running");
    let (address, uid) = (web["status"]["podIP"].as_str().unwrap(), web["metadata"]["uid"].as_str().unwrap());
    let service = lab.ok(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    wait_until("the Service answers", || ask(&lab, &service).as_deref() == Some("blue hunter2 prepared 1"));
    wait_until("the ledger has the endpoints", || {
        std::fs::read_to_string(ledger.join("endpointslices.json")).is_ok_and(|text| text.contains(address))
    });
    wait_until("the ledger has the pod", || ledger.join("pods").join(uid).join("status.json").exists());

    // From here on the second node is not heard by the master.
    let lost = lab.on_node(2, &["ip", "-4", "-o", "route", "get", "172.30.0.1"]);
    let own = lost.split_whitespace().skip_while(|word| *word != "src").nth(1).unwrap().to_owned();
    for rule in ["add table ip cut", "add chain ip cut in { type filter hook input priority -1 ; }"] {
        lab.on_node(1, &["nft", rule]);
    }
    lab.on_node(1, &["nft", &format!("add rule ip cut in ip saddr {own} tcp dport 6443 drop")]);
    lab.kill(lab.init_of(2));
    wait_until("the node is off", || lab.find_init_of(2).is_none());
    let mut up = lab.edgectl(&["up", "--name", &lab.name, "--nodes", "2"]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the Service answers again", || ask(&lab, &service).as_deref() == Some("blue hunter2 prepared 2"));
    let old: Value = pod(&lab, "web");
    wait_until("the silence is noticed", || ready(&lab) == "False");
    assert_eq!(old["status"]["containerStatuses"][0]["restartCount"], 0, "the master has not heard of it");

    // The way is open again: what happened is told, and nothing more happens.
    lab.on_node(1, &["nft", "delete table ip cut"]);
    assert!(up.wait().unwrap().success(), "{}", lab.log());
    let web = wait(&lab, "web", "told", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    assert_eq!(web["status"]["podIP"], address);
    wait_until("the pod is counted on again", || ready(&lab) == "True");
    let last = &web["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(255), Some("Unknown")), "{web}");
    let cut = wait(&lab, "cut", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(cut["status"]["containerStatuses"][0]["restartCount"], 0, "a pod that never restarts does not");
    assert_eq!(phase(&pod(&lab, "done")), "Succeeded");
    let id = &web["status"]["containerStatuses"][0]["containerID"];
    // The node's own way back to the master opens again by itself.
    wait_until("the token has come", || {
        let said = lab.run(&["exec", "web", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"]);
        said.status.success() && said.stdout.starts_with(b"ey")
    });
    assert_eq!(ask(&lab, &service).as_deref(), Some("blue hunter2 prepared 2"));
    assert_eq!(&pod(&lab, "web")["status"]["containerStatuses"][0]["containerID"], id, "nothing was restarted for the master's sake");
    lab.end();
}
