//! The first process of a container at somebody's terminal, by edgectl and by the kubectls of three Debian releases: `attach` to one that
//! runs already, `run -it --rm` for one made for it - and that nobody who looks on slowly ever stops a container.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::api::kubectl;
use crate::exec::run;
use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster, phase, wait};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    stdin: true
    command: [sh, -c, "while read line; do echo got $line; echo wrong $line >&2; done; echo over; sleep 10000"]
  - {name: side, image: busybox, imagePullPolicy: Never, command: [sleep, "10000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: terminal}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    stdin: true
    tty: true
    command: [sh, -c, "while read line; do echo got $line at $(stty size); done"]
---
apiVersion: v1
kind: Pod
metadata: {name: loud}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, stdin: true, command: [sh, -c, "read line; seq 1 5000000; echo done; sleep 10000"]}
"#;

/// A client that is attached, and what it was shown so far.
struct Attached {
    child: Child,
    files: [PathBuf; 2],
}

impl Attached {
    fn new(lab: &Lab, name: &str, program: &str, words: &[&str]) -> Self {
        let files = ["out", "err"].map(|kind| lab.file(&format!("{name}.{kind}")));
        let [out, err] = [0, 1].map(|at| File::create(&files[at]).unwrap());
        let before = attachments(lab);
        let mut command = Command::new(program);
        command.args(words).env("KUBECONFIG", lab.kubeconfig()).env("HOME", lab.file(""));
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn().unwrap();
        wait_until("the client is attached", || attachments(lab) > before);
        Self { child, files }
    }

    fn says(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn shown(&self) -> [String; 2] {
        [0, 1].map(|at| text(&fs::read(&self.files[at]).unwrap()))
    }

    fn waits_for(&self, wanted: &str) {
        wait_until(&format!("{wanted:?} is shown"), || self.shown()[0].contains(wanted));
    }

    fn leaves(mut self) -> [String; 2] {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.shown()
    }
}

/// How often somebody was attached to a container so far.
fn attachments(lab: &Lab) -> usize {
    lab.log().lines().filter(|line| line.contains(" container=") && line.ends_with(" attach")).count()
}

fn check(lab: &Lab, program: &str, number: usize) {
    let attach = |name: &str, words: &[&str]| {
        Attached::new(lab, &format!("{name}-{number}"), program, &[&["attach", "echo", "-c", "main"], words].concat())
    };
    // Several at once: each sees what all say, on the right output; one that leaves takes nothing with it.
    let (mut first, mut second, third) = (attach("first", &["-i"]), attach("second", &["-i"]), attach("third", &[]));
    first.says(&format!("one {number}\n"));
    for client in [&first, &second, &third] {
        client.waits_for(&format!("got one {number}\n"));
    }
    // The end of one's input is not the end of the container's.
    first.child.stdin = None;
    second.says(&format!("two {number}\n"));
    second.waits_for(&format!("got two {number}\n"));
    first.leaves();
    second.says(&format!("three {number}\n"));
    third.waits_for(&format!("got three {number}\n"));
    for client in [second, third] {
        let [out, err] = client.leaves();
        assert_eq!(out, format!("got one {number}\ngot two {number}\ngot three {number}\n"), "{program}");
        assert!(err.contains(&format!("wrong one {number}\nwrong two {number}\nwrong three {number}\n")), "{program}: {err}");
    }

    let output = run(lab, program, &["attach", "nobody"], b"");
    assert!(text(&output.stderr).contains("pods \"nobody\" not found"), "{program}: {}", text(&output.stderr));
    let output = run(lab, program, &["attach", "echo", "-c", "nosuch"], b"");
    assert!(text(&output.stderr).contains("nosuch"), "{program}: {}", text(&output.stderr));

    // script(1) gives the client a terminal of a size that the container's program soon sees.
    let line = format!("stty cols 91 rows 17; exec {program} attach -it terminal");
    let client = RefCell::new(Attached::new(lab, &format!("terminal-{number}"), "script", &["-qec", &line, "/dev/null"]));
    wait_until("the terminal has the window's size", || {
        client.borrow_mut().says("hello\n");
        client.borrow().shown()[0].contains("got hello at 17 91\r\n")
    });
    client.into_inner().leaves();

    // A pod made for it, which ends with its input and goes.
    let run = |words: &[&str], input: &[u8]| {
        let name = format!("made-{number}");
        let words = [&["run", &name, "--image=busybox", "--image-pull-policy=Never", "--restart=Never"], words].concat();
        let output = run(lab, program, &words, input);
        wait_until("the pod is gone", || !lab.run(&["get", "pod", &name]).status.success());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = run(&["-i", "--rm", "--", "cat"], b"one\ntwo\n");
    assert!(code == Some(0) && out.starts_with(&format!("one\ntwo\npod \"made-{number}\" deleted")), "{program}: {code:?} {out} {error}");
    let (code, out, error) = run(&["-i", "--rm", "--", "sh", "-c", "read line; echo $line; exit 5"], b"x\n");
    assert!(code == Some(5) && out.starts_with("x\n"), "{program}: {code:?} {out} {error}");
    assert!(error.contains(&format!("pod default/made-{number} terminated (Error)\n")), "{program}: {error}");
    // More than any pipe holds, and faster than a client takes it: a container waits for who was given its input.
    let (code, out, error) = run(&["-i", "--rm", "--", "sh", "-c", "read line; seq 1 1000000"], b"go\n");
    assert!(code == Some(0) && out.lines().count() == 1_000_001, "{program}: {code:?} {} bytes {error}", out.len());
    let (code, _, error) = run(&["--rm", "--", "true"], b"");
    assert!(code == Some(1) && error.contains("--rm should only be used for attached containers"), "{program}: {code:?} {error}");
    let line = format!(
        "stty cols 83 rows 19; exec {program} run -it --rm made-{number} --image=busybox --image-pull-policy=Never --restart=Never -- \
         sh -c 'read line; until [ \"$(stty size)\" = \"19 83\" ]; do sleep 0.1; done; tty; echo got $line; exit 3'"
    );
    let mut client = Attached::new(lab, &format!("made-{number}"), "script", &["-qec", &line, "/dev/null"]);
    client.says("word\n");
    client.waits_for("got word\r\n");
    let status = client.child.wait().unwrap();
    assert_eq!(status.code(), Some(3), "{program}: {:?}", client.shown());
    assert!(client.shown()[0].contains("/dev/pts/0\r\n"), "{program}: {:?}", client.shown());
    wait_until("the pod is gone", || !lab.run(&["get", "pod", &format!("made-{number}")]).status.success());
}

#[test]
fn people_are_attached_to_what_runs_in_containers() {
    let lab = cluster("attach");
    apply(&lab, PODS);
    for name in ["echo", "terminal", "loud"] {
        wait(&lab, name, "Running", |pod| phase(pod) == "Running");
    }
    for (number, program) in
        [env!("CARGO_BIN_EXE_edgectl"), &kubectl("sid"), &kubectl("trixie"), &kubectl("bookworm")].into_iter().enumerate()
    {
        check(&lab, program, number);
    }

    // One that reads nothing is sent away; the container, its log and the others go on.
    let mut quick = Attached::new(&lab, "quick", env!("CARGO_BIN_EXE_edgectl"), &["attach", "-qi", "loud"]);
    let mut slow = Attached::new(&lab, "slow", env!("CARGO_BIN_EXE_edgectl"), &["attach", "-q", "loud"]);
    lab.freeze(slow.child.id() as i32);
    quick.says("go\n");
    wait_until("the container has printed all", || lab.ok(&["logs", "loud", "--tail=1"]) == "done\n");
    let thawed = Command::new("kill").args(["-CONT", &slow.child.id().to_string()]).status().unwrap();
    assert!(thawed.success() && !slow.child.wait().unwrap().success());
    let [out, err] = slow.shown();
    assert!(out.starts_with("1\n2\n3\n") && !out.contains("done"), "{} bytes", out.len());
    assert!(err.contains("the container prints faster than it is read here"), "{err}");
    quick.leaves();
    // What is left of standard input ends with the pod.
    lab.ok(&["delete", "pod", "--all"]);
    lab.end();
}
