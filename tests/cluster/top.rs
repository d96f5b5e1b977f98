//! What nodes and pods use, as edgectl and the kubectls of three Debian releases show it: a container that would use all there is
//! shows its limit, and all show the same tables.

use std::process::{Command, Output};

use serde_json::Value;

use crate::api::kubectl;
use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster, phase, wait};

/// Of the limit, in thousandths of a CPU; the kernel keeps it over periods of a tenth of a second, and the machine may be busy.
const LIMIT: i64 = 200;
const TOLERANCE: i64 = 60;
/// What a page cache and a shell take beside what is held on purpose.
const HELD_MIB: std::ops::RangeInclusive<i64> = 30..=60;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: spins, image: busybox, imagePullPolicy: Never, command: [sh, -c, "while :; do :; done"], resources: {limits: {cpu: 200m, memory: 64Mi}}}
  - {name: idles, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: holds, labels: {app: holds}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [sh, -c, "head -c 33000000 /dev/zero > /dev/shm/held; sleep 10000"]}
"#;

fn run(lab: &Lab, program: &str, words: &[&str]) -> Output {
    Command::new(program).arg("top").args(words).env("KUBECONFIG", lab.kubeconfig()).env("HOME", lab.file("")).output().unwrap()
}

/// The words of each line of a table.
fn table(lab: &Lab, program: &str, words: &[&str]) -> Vec<Vec<String>> {
    let output = run(lab, program, words);
    assert!(output.status.success(), "{program} top {words:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn number(cell: &str) -> i64 {
    cell.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_else(|_| panic!("{cell:?} is no figure"))
}

fn is_the_limit(cell: &str) -> bool {
    cell.ends_with('m') && (number(cell) - LIMIT).abs() <= TOLERANCE
}

fn check(lab: &Lab, program: &str) {
    let pods = table(lab, program, &["pods"]);
    assert_eq!(pods[0], ["NAME", "CPU(cores)", "MEMORY(bytes)"], "{program}");
    assert_eq!((pods.len(), &*pods[1][0], &*pods[2][0]), (3, "busy", "holds"), "{program}: {pods:?}");
    assert!(is_the_limit(&pods[1][1]), "{program}: {pods:?}");
    assert!(number(&pods[2][1]) < 20 && HELD_MIB.contains(&number(&pods[2][2])), "{program}: {pods:?}");

    let containers = table(lab, program, &["pod", "busy", "--containers"]);
    assert_eq!(containers[0], ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"], "{program}");
    let named = |name: &str| containers.iter().find(|line| line[1] == name).unwrap_or_else(|| panic!("{program}: {containers:?}"));
    assert!(is_the_limit(&named("spins")[2]) && number(&named("idles")[2]) < 20, "{program}: {containers:?}");

    let all = table(lab, program, &["pods", "-A", "--sort-by=cpu", "--no-headers"]);
    assert_eq!(all.iter().map(|line| &*line[1]).collect::<Vec<_>>(), ["busy", "holds"], "{program}: {all:?}");
    let all = table(lab, program, &["po", "-A", "--sort-by=memory"]);
    assert_eq!(all.iter().map(|line| &*line[1]).collect::<Vec<_>>(), ["NAME", "holds", "busy"], "{program}: {all:?}");
    let selected = table(lab, program, &["pods", "-l", "app=holds", "--no-headers"]);
    assert!(selected.len() == 1 && selected[0][0] == "holds", "{program}: {selected:?}");

    let nodes = table(lab, program, &["nodes"]);
    let heads = nodes[0].iter().map(|head| head.replace(['(', ')'], "")).collect::<Vec<_>>();
    assert_eq!(heads, ["NAME", "CPUcores", "CPU%", "MEMORYbytes", "MEMORY%"], "{program}");
    assert!(nodes.len() == 2 && nodes[1][0] == lab.node(), "{program}: {nodes:?}");
    assert!(number(&nodes[1][1]) >= LIMIT - TOLERANCE && nodes[1][2].ends_with('%'), "{program}: {nodes:?}");
    assert!(number(&nodes[1][3]) >= *HELD_MIB.start() && nodes[1][4].ends_with('%'), "{program}: {nodes:?}");
    assert_eq!(table(lab, program, &["node", &lab.node()]).len(), 2, "{program}");

    for (words, expected) in [
        (&["pod", "nobody"][..], "podmetrics.metrics.k8s.io \"default/nobody\" not found"),
        (&["node", "nobody"], "nodemetrics.metrics.k8s.io \"nobody\" not found"),
        (&["pods", "-n", "kube-public"], "No resources found in kube-public namespace."),
    ] {
        let output = run(lab, program, words);
        assert!(text(&output.stderr).contains(expected), "{program} top {words:?}: {}", text(&output.stderr));
    }
}

#[test]
fn what_is_used_is_shown() {
    let lab = cluster("top");
    apply(&lab, PODS);
    for name in ["busy", "holds"] {
        wait(&lab, name, "Running", |pod| phase(pod) == "Running");
    }
    let raw = |path: &str| lab.ok(&["get", "--raw", path]);
    let metrics = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/holds";
    // Until the memory is held: what is said before that is no more than where it is on its way.
    wait_until("the memory is held", || {
        let holds: Value = serde_json::from_str(&raw(metrics)).unwrap();
        let memory = holds["containers"][0]["usage"]["memory"].as_str().unwrap().to_owned();
        HELD_MIB.contains(&(number(&memory) >> 10))
    });
    for program in [env!("CARGO_BIN_EXE_edgectl"), &kubectl("sid"), &kubectl("trixie"), &kubectl("bookworm")] {
        check(&lab, program);
    }
    // Figures change from one moment to the next; how they are laid out does not.
    let head = |program: &str, words: &[&str]| text(&run(&lab, program, words).stdout).lines().next().unwrap_or_default().to_owned();
    for words in [&["pods"][..], &["pods", "-A"], &["pods", "--containers"], &["nodes"]] {
        assert_eq!(head(env!("CARGO_BIN_EXE_edgectl"), words), head(&kubectl("sid"), words), "{words:?}");
    }
    let summary: Value = serde_json::from_str(&raw(&format!("/api/v1/nodes/{}/proxy/stats/summary", lab.node()))).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    assert!(pods.len() == 2 && pods.iter().all(|pod| pod["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0)), "{summary}");
    let exposed = raw(&format!("/api/v1/nodes/{}/proxy/metrics/resource", lab.node()));
    assert!(exposed.contains("container_cpu_usage_seconds_total{container=\"spins\",namespace=\"default\",pod=\"busy\"}"), "{exposed}");
    for path in ["exec/default/busy/spins?command=true", "containerLogs/default/busy/spins", ""] {
        assert!(!lab.run(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/{path}", lab.node())]).status.success(), "{path}");
    }
    lab.ok(&["delete", "pod", "--all"]);
    lab.end();
}
