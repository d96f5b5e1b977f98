//! Volumes that show what the API has: they follow it, all at once and within a minute or so, except where Kubernetes says that they
//! do not. And a subPath stays inside its volume, whatever the pod's other containers put there.

use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::pods::{apply, cluster, phase, wait};

/// One look a minute, and some time to act on it.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(100);

fn wait_for_line(lab: &Lab, pod: &str, line: &str) {
    let started = Instant::now();
    loop {
        let log = lab.ok(&["logs", pod]);
        if log.lines().any(|said| said == line) {
            return;
        }
        assert!(started.elapsed() < FOLLOWED_WITHIN, "{line:?} is not in:\n{log}\n{}", lab.log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn volumes_follow_what_they_show() {
    let lab = cluster("follows");
    apply(
        &lab,
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: one}
---
apiVersion: v1
kind: Pod
metadata: {name: follows, labels: {v: one}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c]
    args:
    - |
      while true; do
        line="map=$(cat /map/colour) key=$(cat /keys/password) late=$(cat /late/x 2>/dev/null) label=$(cat /pod/v) sub=$(cat /sub/colour)"
        [ "$line" = "$last" ] || echo "$line"
        last=$line
        sleep 0.2
      done
    volumeMounts:
    - {name: map, mountPath: /map}
    - {name: map, mountPath: /sub/colour, subPath: colour}
    - {name: keys, mountPath: /keys}
    - {name: late, mountPath: /late}
    - {name: pod, mountPath: /pod}
  volumes:
  - {name: map, configMap: {name: settings}}
  - {name: keys, projected: {sources: [{secret: {name: keys}}]}}
  - {name: late, configMap: {name: late, optional: true}}
  - {name: pod, downwardAPI: {items: [{path: v, fieldRef: {fieldPath: "metadata.labels['v']"}}]}}
"#,
    );
    wait(&lab, "follows", "Running", |pod| phase(pod) == "Running");
    wait_for_line(&lab, "follows", "map=blue key=one late= label=one sub=blue");
    lab.ok(&["label", "pod", "follows", "v=two", "--overwrite"]);
    wait_for_line(&lab, "follows", "map=blue key=one late= label=two sub=blue");
    lab.ok(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data":{"colour":"red"}}"#]);
    lab.ok(&["patch", "secret", "keys", "--type=merge", "-p", r#"{"stringData":{"password":"two"}}"#]);
    lab.ok(&["create", "configmap", "late", "--from-literal=x=here"]);
    wait_for_line(&lab, "follows", "map=red key=two late=here label=two sub=blue");
    let after = crate::pods::pod(&lab, "follows");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    lab.ok(&["delete", "pod", "follows"]);
    lab.end();
}

#[test]
fn a_sub_path_cannot_leave_its_volume() {
    let lab = cluster("subpath");
    let pod = |name: &str, sub_path: &str| {
        apply(
            &lab,
            &format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  initContainers:
  - name: links
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "cd /work; busybox ln -s /etc absolute; busybox ln -s ../../../../../../../../../etc up; busybox ln -s /proc/self/root magic; mkdir -m 777 real; busybox ln -s real inside"]
    volumeMounts: [{{name: work, mountPath: /work}}]
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "touch /mnt/mine && ls /mnt && ls /work/real"]
    securityContext: {{runAsUser: 1000}}
    volumeMounts: [{{name: work, mountPath: /work}}, {{name: work, mountPath: /mnt, subPath: {sub_path}}}]
  volumes: [{{name: work, emptyDir: {{}}}}]
"#
            ),
        );
    };
    for (name, sub_path) in
        [("absolute", "absolute"), ("up", "up"), ("magic", "magic"), ("deep", "absolute/cron.d"), ("made", "up/edgectl")]
    {
        pod(name, sub_path);
        let refused = wait(&lab, name, "refused its subPath", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError"
        });
        let message = refused["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(sub_path) && message.contains("volume"), "{message}");
    }
    assert!(!std::path::Path::new("/etc/edgectl/mine").exists());
    // What is missing is made as the volume is, for any user; a link that stays inside is as good as a folder.
    for (name, sub_path, lines) in [("fresh", "new/deep", "mine\n"), ("inside", "inside", "mine\nmine\n")] {
        pod(name, sub_path);
        let ended = wait(&lab, name, "over", |pod| matches!(phase(pod), "Succeeded" | "Failed"));
        let log = lab.ok(&["logs", name]);
        assert_eq!((phase(&ended), log.as_str()), ("Succeeded", lines));
    }
    lab.ok(&["delete", "pod", "--all"]);
    lab.end();
}
