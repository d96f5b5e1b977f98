//! What a node owes its pods and its person beside starting containers: images that stay while they are used, limits that the kernel
//! knows, the host's own network and folders, logs that do not grow for ever, and pods that go on when a shim dies.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, wait_until};
use crate::pods::{apply, cluster, phase, wait};

/// A shim's death is seen by its socket, not by a look now and then.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// The process of the pod's shim, by the folder it was given.
fn shim(lab: &Lab, pod: &Value) -> i32 {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let is_shim = |pid: &i32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = command.split('\0').collect();
        words.get(1) == Some(&"shim") && words.get(2).is_some_and(|folder| folder.ends_with(uid))
    };
    lab.processes().into_iter().find(is_shim).expect("the pod has a shim")
}

#[test]
fn a_pod_whose_shim_dies_is_ended_at_once_and_goes_on_as_its_policy_says() {
    let lab = cluster("shim");
    let pod = |name: &str, policy: &str| {
        apply(
            &lab,
            &format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: {policy}
  containers: [{{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, "1000"]}}]
"#
            ),
        );
        wait(&lab, name, "Running", |pod| phase(pod) == "Running")
    };
    let (always, never) = (pod("always", "Always"), pod("never", "Never"));
    let container = |pod: &Value| status(pod)["containerID"].as_str().unwrap().trim_start_matches("edgectl://").to_owned();
    let runs = |id: &str| {
        let inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(id));
        lab.processes().iter().any(inside)
    };
    let killed = Instant::now();
    for pod in [&always, &never] {
        assert!(runs(&container(pod)));
        lab.kill(shim(&lab, pod));
    }
    let again = wait(&lab, "always", "started anew", |pod| {
        status(pod)["restartCount"] == 1 && status(pod)["state"]["running"].is_object() && container(pod) != container(&always)
    });
    let failed = wait(&lab, "never", "Failed", |pod| phase(pod) == "Failed");
    assert!(killed.elapsed() < NOTICED_WITHIN, "took {:?}", killed.elapsed());
    assert_eq!(status(&again)["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(status(&failed)["state"]["terminated"]["exitCode"], 137);
    for pod in [&always, &never] {
        wait_until("the container without a shim is ended", || !runs(&container(pod)));
    }
    lab.ok(&["delete", "pod", "--all"]);
    lab.end();
}

#[test]
fn an_image_stays_as_long_as_a_container_uses_it() {
    let lab = cluster("images");
    let root = lab.root().to_string_lossy().into_owned();
    let ids = || lab.ok(&["image", "ls", "-q", "--root", &root]);
    let id = ids().lines().next().expect("busybox is here").to_owned();
    apply(
        &lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: uses}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, "1000"]}]
"#,
    );
    wait(&lab, "uses", "Running", |pod| phase(pod) == "Running");
    for name in ["busybox", &id] {
        let refused = lab.run(&["image", "rm", "--root", &root, name]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("is used by pod default/uses, container c"), "{said}");
    }
    assert_eq!(lab.ok(&["image", "rm", "--force", "--root", &root, "busybox"]), "untagged: docker.io/library/busybox:latest\n");
    assert!(ids().contains(&id), "only its name is gone");
    assert!(!lab.run(&["image", "rm", "--root", &root, "busybox"]).status.success(), "the name is gone");
    lab.ok(&["delete", "pod", "uses"]);
    wait_until("nobody uses it any more", || lab.run(&["image", "rm", "--root", &root, &id]).status.success());
    assert!(!ids().contains(&id));

    // What lies in the preload folder comes back with the next start of the agent, whatever else is in there.
    let preload = lab.root().join("var/lib/edgectl/preload");
    fs::create_dir_all(&preload).unwrap();
    fs::write(preload.join("broken.tar.gz"), "no archive").unwrap();
    fs::copy(lab.file("busybox.tar"), preload.join("busybox.tar")).unwrap();
    let agent = lab.daemon("agent");
    lab.kill(agent);
    wait_until("the agent starts again and loads it", || ids().contains(&id));
    assert!(lab.log().contains("preload broken.tar.gz: "), "{}", lab.log());
    lab.end();
}

#[test]
fn a_node_gives_what_pods_ask_of_it_and_tells_what_it_has() {
    let lab = cluster("node");
    let host = lab.file("host");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("given"), "from the host\n").unwrap();
    apply(
        &lab,
        &format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: limits}}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c]
    args:
    - |
      cd /sys/fs/cgroup
      if [ -e memory.max ]; then cat memory.max; cut -d' ' -f1 cpu.max; else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi
    resources: {{limits: {{memory: 48Mi, cpu: 250m}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: host}}
spec:
  restartPolicy: Never
  hostNetwork: true
  containers:
  - {{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "hostname; cat /host/given; touch /host/taken"], volumeMounts: [{{name: host, mountPath: /host}}]}}
  volumes: [{{name: host, hostPath: {{path: "{host}", type: Directory}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: again}}
spec:
  restartPolicy: OnFailure
  containers:
  - {{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "[ -e /work/been ] && exit 0; touch /work/been; exit 1"], volumeMounts: [{{name: work, mountPath: /work}}]}}
  volumes: [{{name: work, emptyDir: {{}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: polite}}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - {{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "trap 'touch /host/bye; exit 0' TERM; while true; do sleep 0.1; done"], volumeMounts: [{{name: host, mountPath: /host}}]}}
  volumes: [{{name: host, hostPath: {{path: "{host}"}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: deaf}}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "trap '' TERM; while true; do sleep 0.1; done"]}}]
"#,
            host = host.display()
        ),
    );
    wait(&lab, "limits", "Succeeded", |pod| phase(pod) == "Succeeded");
    assert_eq!(lab.ok(&["logs", "limits"]), format!("{}\n25000\n", 48 << 20));
    let ended = wait(&lab, "host", "Succeeded", |pod| phase(pod) == "Succeeded");
    assert_eq!(ended["status"]["podIP"], ended["status"]["hostIP"]);
    assert_eq!(lab.ok(&["logs", "host"]), format!("{}\nfrom the host\n", lab.node()));
    assert!(host.join("taken").exists());
    let again = wait(&lab, "again", "Succeeded", |pod| phase(pod) == "Succeeded");
    assert_eq!(status(&again)["restartCount"], 1, "what the first run left in the volume the second one found");

    for (name, took) in [("polite", Duration::ZERO..Duration::from_secs(20)), ("deaf", Duration::from_secs(2)..Duration::from_secs(20))] {
        wait(&lab, name, "Running", |pod| phase(pod) == "Running");
        let asked = Instant::now();
        lab.ok(&["delete", "pod", name]);
        assert!(took.contains(&asked.elapsed()), "{name} took {:?}", asked.elapsed());
    }
    assert!(host.join("bye").exists(), "it was asked before it was killed");

    let events = lab.ok(&["get", "events"]);
    for reason in ["Scheduled", "Pulled", "Created", "Started", "Killing"] {
        assert!(events.contains(&format!(" {reason} ")), "{reason}: {events}");
    }
    let node: Value = serde_json::from_str(&lab.ok(&["get", "node", &lab.node(), "-o", "json"])).unwrap();
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap().trim().trim_end_matches(" kB").to_owned();
    let capacity = &node["status"]["capacity"];
    assert_eq!((&capacity["memory"], &capacity["pods"]), (&format!("{memory}Ki").into(), &"110".into()));
    assert_eq!(capacity["cpu"], std::thread::available_parallelism().unwrap().to_string());
    let ready = node["status"]["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "True");
    lab.end();
}

#[test]
fn a_log_is_cut_into_files_and_the_oldest_go() {
    let lab = cluster("rotates");
    apply(
        &lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "awk 'BEGIN { for (i = 0; i < 600000; i++) printf \"%099d\\n\", i; print \"end\" }'; sleep 1000"]
"#,
    );
    let pod = wait(&lab, "talks", "Running", |pod| phase(pod) == "Running");
    wait_until("it has said all", || lab.ok(&["logs", "talks", "--tail=1"]) == "end\n");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let folder = lab.root().join(format!("var/log/pods/default_talks_{uid}/c"));
    let files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // About 84 MB were said: more than five files of ten MiB hold.
    assert_eq!(files.len(), 5, "{files:?}");
    for file in &files {
        let bytes = fs::metadata(file).unwrap().len();
        assert!(bytes <= (10 << 20) + (1 << 16), "{} has {bytes} bytes", file.display());
    }
    lab.ok(&["delete", "pod", "talks"]);
    lab.end();
}
