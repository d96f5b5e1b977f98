//! What a pod may ask of its node, on a whole cluster: start order, environment, volumes, limits, exits, logs - and that
//! killing the agent or the master loses none of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, text, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster with busybox on its node.
pub fn cluster(topic: &str) -> Lab {
    cluster_of(topic, 1)
}

/// A cluster of several nodes, with busybox on each.
pub fn cluster_of(topic: &str, nodes: u8) -> Lab {
    cluster_with(topic, nodes, "")
}

/// The same, with a master.yaml.
pub fn cluster_with(topic: &str, nodes: u8, settings: &str) -> Lab {
    let lab = Lab::new(topic);
    let config = lab.root().join("etc/edgectl");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("master.yaml"), settings).unwrap();
    lab.ok(&["up", "--name", &lab.name, "--nodes", &nodes.to_string()]);
    let layouts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-images");
    let made = Command::new("tests/images/make").arg(&layouts).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let archive = lab.file("busybox.tar");
    let source = format!("oci:{}:latest", layouts.join("busybox").display());
    let target = format!("docker-archive:{}:docker.io/library/busybox:latest", archive.display());
    let copied = Command::new("skopeo").args(["copy", "-q", &source, &target]).output().unwrap();
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    for number in 1..=nodes {
        lab.ok(&["image", "load", "--root", &lab.root_of(number).to_string_lossy(), "-i", &archive.to_string_lossy()]);
    }
    lab
}

pub fn apply(lab: &Lab, manifest: &str) {
    let file = lab.file("manifest.yaml");
    std::fs::write(&file, manifest).unwrap();
    lab.ok(&["apply", "-f", &file.to_string_lossy()]);
}

pub fn pod(lab: &Lab, name: &str) -> Value {
    serde_json::from_str(&lab.ok(&["get", "pod", name, "-o", "json"])).unwrap()
}

/// Waits until the pod is as it should be; answers it.
pub fn wait(lab: &Lab, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let pod = pod(lab, name);
        if is_so(&pod) {
            return pod;
        }
        assert!(started.elapsed() < DEADLINE, "pod {name} is not {what}: {}\n{}", pod["status"], lab.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().map(str::trim_end).collect()
}

#[test]
fn pods_get_what_they_ask_for() {
    let lab = cluster("asks");
    apply(
        &lab,
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, file.txt: from the map}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: asks, labels: {app: asks}}
spec:
  restartPolicy: Never
  initContainers:
  - {name: first, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo one >> /work/order"], volumeMounts: [{name: work, mountPath: /work}]}
  - {name: second, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo two >> /work/order"], volumeMounts: [{name: work, mountPath: /work}]}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c]
    args:
    - |
      echo "order $(cat /work/order | tr '\n' ' ')"
      echo "map $(cat /map/file.txt) $COLOUR $P_colour"
      echo "secret $(cat /keys/password) $PASSWORD mode $(stat -L -c %a /keys/password)"
      echo "self $NAME $ADDRESS $MEMORY"
      echo "user $(id -u) $(id -g)"
      echo "token $(cut -c1-2 /var/run/secrets/kubernetes.io/serviceaccount/token) $(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)"
      echo "hosts $(grep asks /etc/hosts)"
      echo "host $(hostname)"
      touch /map/new 2>/dev/null || echo "map is read-only"
      df /memory | tail -n 1 | grep -q ' 1024 ' && echo "memory is limited"
      touch /shared/from-main /dev/shm/from-main
      echo last words > /dev/termination-log
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom: [{prefix: P_, configMapRef: {name: settings}}]
    resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 64Mi, cpu: 500m}}
    securityContext: {runAsUser: 1000, runAsGroup: 1001}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: work, mountPath: /shared}
    - {name: map, mountPath: /map}
    - {name: keys, mountPath: /keys}
    - {name: memory, mountPath: /memory}
  - name: neighbour
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "until [ -e /shared/from-main ]; do sleep 0.1; done; ls /dev/shm; hostname; ps | wc -l"]
    volumeMounts: [{name: work, mountPath: /shared}]
  volumes:
  - {name: work, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: map, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0444}}
"#,
    );
    let pod = wait(&lab, "asks", "Succeeded", |pod| phase(pod) == "Succeeded");
    let log = lab.ok(&["logs", "asks", "-c", "main"]);
    let said = lines(&log);
    for line in [
        "order one two",
        "map from the map blue blue",
        "secret hunter2 hunter2 mode 444",
        "user 1000 1001",
        "token ey default",
        "host asks",
        "map is read-only",
        "memory is limited",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{log}");
    }
    let own = said.iter().find(|line| line.starts_with("self asks 10.244.")).expect("the pod knows its address");
    assert!(own.ends_with(" 64"), "{own}");
    let neighbour = lab.ok(&["logs", "asks", "-c", "neighbour"]);
    assert!(lines(&neighbour).contains("from-main"), "/dev/shm is shared by the pod:\n{neighbour}");
    let status = pod["status"]["containerStatuses"].as_array().unwrap().iter().find(|status| status["name"] == "main").unwrap().clone();
    assert_eq!(status["state"]["terminated"]["message"], "last words\n");
    lab.ok(&["delete", "pod", "asks"]);
    lab.end();
}

#[test]
fn exits_are_told_as_kubernetes_tells_them() {
    let lab = cluster("exits");
    apply(
        &lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo boom; exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: memory}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "x=a; while true; do x=$x$x; done"], resources: {limits: {memory: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  containers: [{name: c, image: "none.example/none:v1", imagePullPolicy: Never}]
---
apiVersion: v1
kind: Pod
metadata: {name: lacks}
spec:
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, "1000"], envFrom: [{configMapRef: {name: absent}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  containers: [{name: c, image: busybox, imagePullPolicy: Never, resources: {requests: {cpu: "1000"}}}]
"#,
    );
    let state = |pod: &Value, name: &str| pod["status"]["containerStatuses"][0][name].clone();
    let crash = wait(&lab, "crash", "in back-off", |pod| state(pod, "state")["waiting"]["reason"] == "CrashLoopBackOff");
    assert_eq!(state(&crash, "lastState")["terminated"]["exitCode"], 3);
    assert_eq!(state(&crash, "restartCount"), 1, "the first restart comes at once, the second waits");
    assert_eq!(lab.ok(&["logs", "crash", "--previous"]), "boom\n");
    let memory = wait(&lab, "memory", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(state(&memory, "state")["terminated"]["reason"], "OOMKilled");
    assert_eq!(state(&memory, "state")["terminated"]["exitCode"], 137);
    wait(&lab, "never", "told that it lacks its image", |pod| state(pod, "state")["waiting"]["reason"] == "ErrImageNeverPull");
    let lacks = wait(&lab, "lacks", "told what it lacks", |pod| state(pod, "state")["waiting"]["reason"] == "CreateContainerConfigError");
    assert_eq!(state(&lacks, "state")["waiting"]["message"], "configmap \"absent\" not found");
    lab.ok(&["create", "configmap", "absent", "--from-literal=a=b"]);
    wait(&lab, "lacks", "Running once it has what it lacked", |pod| phase(pod) == "Running");
    let large = wait(&lab, "large", "told why it fits nowhere", |pod| {
        pod["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["reason"] == "Unschedulable"))
    });
    let message = large["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
    lab.end();
}

#[test]
fn killing_the_agent_stops_no_container_and_loses_no_line_or_exit() {
    let lab = cluster("kill");
    apply(
        &lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: counts}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "until [ -e /go ]; do sleep 0.05; done; exit 7"]}]
"#,
    );
    let started = wait(&lab, "counts", "Running", |pod| phase(pod) == "Running");
    let ends = wait(&lab, "ends", "Running", |pod| phase(pod) == "Running");
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("edgectl://", "");
    for _ in 0..3 {
        let agent = lab.daemon("agent");
        lab.kill(agent);
        wait_until("another agent", || lab.find_daemon("agent").is_some_and(|pid| pid != agent));
    }
    // Ends while nobody but its shim looks.
    let agent = lab.daemon("agent");
    lab.freeze(agent);
    lab.touch_in_container(&container(&ends), "go");
    lab.kill(agent);
    let ended = wait(&lab, "ends", "Failed", |pod| phase(pod) == "Failed");
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
    let after = pod(&lab, "counts");
    assert_eq!(container(&after), container(&started));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    let log = lab.ok(&["logs", "counts"]);
    let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a line is missing or double");
    lab.ok(&["delete", "pod", "counts", "ends"]);
    lab.end();
}
