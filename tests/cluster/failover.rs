//! A node that loses its power: it is NotReady once it has been silent for long enough, its pods come up elsewhere when their patience
//! ends, and when it is back it takes part again and what it had is gone.

use serde_json::Value;

use crate::lab::{Lab, wait_until};
use crate::pods::{apply, cluster_of};

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
      - {name: sleep, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"]}
"#;

/// The nodes of the pods, by whether these run or are on their way out.
fn nodes_of(lab: &Lab, is_ending: bool) -> Vec<String> {
    let pods: Value = serde_json::from_str(&lab.ok(&["get", "pods", "-l", "app=web", "-o", "json"])).unwrap();
    let pods = pods["items"].as_array().unwrap().iter();
    let wanted = pods.filter(|pod| match is_ending {
        true => !pod["metadata"]["deletionTimestamp"].is_null(),
        false => pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running",
    });
    wanted.map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()).collect()
}

fn readiness(lab: &Lab, node: &str) -> String {
    lab.ok(&["get", "node", node, "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"])
}

#[test]
fn pods_of_a_node_without_power_come_up_elsewhere_and_are_gone_when_it_is_back() {
    let lab = cluster_of("power", 2);
    apply(&lab, MANIFEST);
    wait_until("the pods run", || nodes_of(&lab, false).len() == 4);
    let (staying, lost) = (lab.node(), lab.node_of(2));
    let on_lost = nodes_of(&lab, false).iter().filter(|node| **node == lost).count();
    assert!(on_lost > 0, "the scheduler puts them on both nodes");

    lab.kill(lab.init_of(2));
    wait_until("the silence is noticed", || readiness(&lab, &lost) == "Unknown");
    wait_until("the pods run elsewhere", || nodes_of(&lab, false) == vec![staying.clone(); 4]);
    let events = lab.ok(&["get", "events"]);
    assert!(events.contains("TaintManagerEviction") && events.contains("NodeNotReady"), "{events}");

    lab.ok(&["up", "--name", &lab.name, "--nodes", "2"]);
    wait_until("the node is back", || readiness(&lab, &lost) == "True");
    wait_until("what it had is gone", || nodes_of(&lab, true).is_empty());
    assert_eq!(nodes_of(&lab, false), vec![staying; 4], "what runs is left where it is");
    let taints = lab.ok(&["get", "node", &lost, "-o", "jsonpath={.spec.taints}"]);
    assert_eq!(taints, "");
    lab.end();
}
