//! `edgectl reset`: a board is as it was before it was in a cluster, also when it was interrupted; what runs is not pulled away from under
//! its daemons, and nobody is reset by mistake. The board is a node of the lab, whose init sleeps meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster, phase, wait};

const ROOT: &str = "/run/edgectl";

/// What a board has of a cluster, or of anything: `KIND: LINE`.
type Picture = BTreeSet<String>;

fn on_board(lab: &Lab, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &lab.init().to_string(), "-m", "-n", "-u", "-p", "-C"]).args(words);
    command
}

fn shell(lab: &Lab, line: &str) -> String {
    let output = on_board(lab, &["sh", "-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn reset(lab: &Lab, flags: &[&str]) -> Command {
    on_board(lab, &[&[env!("CARGO_BIN_EXE_edgectl"), "reset", "--root", ROOT], flags].concat())
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn picture(lab: &Lab) -> Picture {
    let files = format!("cd {ROOT} && find .");
    let looks = [
        ("link", "ip -br link | awk '{print $1, $3}'"),
        ("address", "ip -br -4 address | awk '{$2 = \"\"; print}'"),
        ("route", "ip -4 route show table all"),
        ("rules", "nft list tables"),
        ("mount", "cut -d' ' -f5- /proc/self/mountinfo"),
        ("cgroup", "cd /sys/fs/cgroup && find . -type d"),
        ("process", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep 'edgectl ' | grep -v grep"),
        ("file", &files),
    ];
    looks.iter().flat_map(|(kind, line)| shell(lab, line).lines().map(|line| format!("{kind}: {line}")).collect::<Vec<_>>()).collect()
}

fn assert_same(before: &Picture, after: &Picture, when: &str) {
    let (gone, more): (Vec<_>, Vec<_>) = (before.difference(after).collect(), after.difference(before).collect());
    assert!(gone.is_empty() && more.is_empty(), "{when}: gone: {gone:#?}, more: {more:#?}");
}

/// Ends the daemons, and nobody starts them again.
fn stop(lab: &Lab) {
    lab.freeze(lab.init());
    for role in ["agent", "master"] {
        lab.kill(lab.daemon(role));
        wait_until("the daemon ends", || lab.find_daemon(role).is_none());
    }
}

/// Pods with all that pods leave on a node: a cable, volumes on disk and in memory, a port, a Service.
fn run_pods(lab: &Lab) {
    apply(
        lab,
        r#"
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec:
  containers:
  - name: c
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "1000"]
    ports: [{containerPort: 80, hostPort: 8080}]
    volumeMounts: [{name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]
  volumes: [{name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec: {containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, "1000"], resources: {limits: {memory: 16Mi, cpu: 100m}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: one}, ports: [{port: 80}]}
"#,
    );
    for name in ["one", "two"] {
        wait(lab, name, "Running", |pod| phase(pod) == "Running");
    }
}

#[test]
fn a_board_is_as_it_was_before_it_was_in_a_cluster() {
    let lab = cluster("reset");
    run_pods(&lab);
    let running = reset(&lab, &["--yes"]).output().unwrap();
    assert!(!running.status.success() && text(&running.stderr).contains(&format!(" runs below {ROOT}")), "{}", text(&running.stderr));
    assert!(shell(&lab, "nft list tables").contains("edgectl"), "nothing is taken from daemons that run");
    stop(&lab);
    let full = picture(&lab);

    // Who does not say yes has changed nothing.
    let mut asked = reset(&lab, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(b"n\n").unwrap();
    let asked = asked.wait_with_output().unwrap();
    assert!(!asked.status.success() && text(&asked.stderr).contains("nothing was changed"), "{}", text(&asked.stderr));
    assert!(text(&asked.stdout).contains(&format!("{ROOT}/var/lib/edgectl")), "{}", text(&asked.stdout));
    assert_same(&full, &picture(&lab), "not confirmed");

    let said = done(&reset(&lab, &["--yes"]).output().unwrap());
    for expected in [
        "pod default/one",
        "pod default/two",
        "link edge0",
        "nf_tables table edgectl-services",
        "mount /",
        "cgroup /",
        "etc/edgectl",
        "in no cluster",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let bare = picture(&lab);
    let ours = [
        "link: edge",
        "address: lo 10.96",
        " 10.244.",
        "route: 10.96.",
        "rules: ",
        "kubepods",
        " shim ",
        "file: ./etc/edgectl",
        "file: ./var/lib/edgectl",
        "file: ./run/edgectl",
        "file: ./var/log/pods",
    ];
    for part in ours {
        let left: Vec<_> = bare.iter().filter(|line| line.contains(part)).collect();
        assert!(left.is_empty(), "{part}: {left:#?}");
    }
    let again = done(&reset(&lab, &["-y"]).output().unwrap());
    assert_eq!(again, "This board is in no cluster any more.\n");
    assert_same(&bare, &picture(&lab), "again");

    // It joins anew, and leaves anew, as often as it takes.
    for moment in [Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(10), Duration::from_millis(30)] {
        assert!(Command::new("kill").args(["-CONT", &lab.init().to_string()]).status().unwrap().success());
        wait_until("the board has a master again", || lab.root().join("etc/edgectl/admin.conf").exists());
        wait_until("the cluster runs", || lab.run(&["up", "--name", &lab.name]).status.success());
        lab.ok(&["image", "load", "--root", &lab.root().to_string_lossy(), "-i", &lab.file("busybox.tar").to_string_lossy()]);
        run_pods(&lab);
        stop(&lab);
        // It may be through already.
        let killed = format!("timeout -s KILL {} {} reset -f --root {ROOT}", moment.as_secs_f64(), env!("CARGO_BIN_EXE_edgectl"));
        let _ = on_board(&lab, &["sh", "-c", &killed]).output().unwrap();
        wait_until("the killed one has ended", || !picture(&lab).iter().any(|line| line.contains("edgectl reset ")));
        done(&reset(&lab, &["-f"]).output().unwrap());
        assert_same(&bare, &picture(&lab), &format!("killed after {moment:?}"));
    }
    assert!(Command::new("kill").args(["-CONT", &lab.init().to_string()]).status().unwrap().success());
    assert!(fs::metadata(lab.root()).is_ok());
    lab.end();
}
