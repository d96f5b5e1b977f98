//! Ports of pods at this machine, by edgectl and by the kubectls of three Debian releases, which speak SPDY or SPDY within a WebSocket:
//! many connections at once, each direction with its own end, and what is said when nobody listens. The pods are on a second node and
//! listen on 127.0.0.1 only, so nothing leads there but that node's own connection to the master.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::api::kubectl;
use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster_of};

/// At once, over one connection to the API server.
const CONNECTIONS: usize = 40;

/// A write that takes longer has no room on the whole way.
const STALLED: Duration = Duration::from_secs(2);
const ANSWERED: Duration = Duration::from_secs(20);

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeName: NODE
      containers:
      - name: httpd
        image: busybox
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www && hostname > /www/index.html && exec httpd -f -p 127.0.0.1:8080 -h /www"]
        ports: [{name: http, containerPort: 8080}]
      - {name: deaf, image: busybox, imagePullPolicy: Never, command: [nc, -ll, -p, "9001", -e, sleep, "1000"]}
      - {name: loud, image: busybox, imagePullPolicy: Never, command: [nc, -ll, -p, "9002", -e, "yes"]}
      - {name: count, image: busybox, imagePullPolicy: Never, command: [nc, -ll, -p, "9000", -e, wc, -c]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: plain, port: 80, targetPort: http}]
"#;

/// A client that forwards ports.
struct Forwarding {
    child: Child,
    files: [PathBuf; 2],
}

impl Forwarding {
    fn new(lab: &Lab, program: &str, words: &[&str]) -> Self {
        Self::new_named(lab, program, words, "forwarding")
    }

    fn new_named(lab: &Lab, program: &str, words: &[&str], name: &str) -> Self {
        let files = ["out", "err"].map(|kind| lab.file(&format!("{name}.{kind}")));
        let [out, err] = [0, 1].map(|at| File::create(&files[at]).unwrap());
        let mut command = Command::new(program);
        command.arg("port-forward").args(words).env("KUBECONFIG", lab.kubeconfig()).env("HOME", lab.file(""));
        Self { child: command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap(), files }
    }

    fn said(&self) -> [String; 2] {
        [0, 1].map(|at| text(&fs::read(&self.files[at]).unwrap()))
    }

    /// The port here that leads to the pod's.
    fn port(&self, remote: u16) -> u16 {
        let find = || {
            let said = self.said();
            let line =
                said[0].lines().find(|line| line.starts_with("Forwarding from 127.0.0.1:") && line.ends_with(&format!(" -> {remote}")));
            line.map(|line| line.split([':', ' ']).nth(3).unwrap().parse().unwrap())
        };
        wait_until("the port is forwarded", || {
            find().is_some() || {
                assert!(self.said()[1].is_empty(), "{:?}", self.said());
                false
            }
        });
        find().unwrap()
    }

    fn ends(mut self) -> [String; 2] {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.said()
    }
}

/// What comes back for what is sent, which ends when it is sent.
fn exchange(port: u16, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_write_timeout(Some(ANSWERED)).unwrap();
    stream.write_all(sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.set_read_timeout(Some(ANSWERED)).unwrap();
    let mut answer = String::new();
    // One that is cut off is told apart by what it lacks.
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn fetch(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(ANSWERED)).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned()
}

fn check(lab: &Lab, program: &str, pod: &str) {
    let forwarding = Forwarding::new(lab, program, &[&format!("pod/{pod}"), ":8080", ":9000"]);
    let (web, count) = (forwarding.port(8080), forwarding.port(9000));
    let fetched: Vec<_> = (0..CONNECTIONS).map(|_| thread::spawn(move || fetch(web))).collect();
    for fetched in fetched {
        assert_eq!(fetched.join().unwrap(), pod, "{program}: {:?}", forwarding.said());
    }
    // More than any buffer holds, counted once the end has come through.
    assert_eq!(exchange(count, &vec![7; 5_000_000]), "5000000\n", "{program}: {:?}", forwarding.said());
    let [out, error] = forwarding.ends();
    assert_eq!(out.lines().filter(|line| *line == format!("Handling connection for {web}")).count(), CONNECTIONS, "{out}");
    assert_eq!(error, "", "{program}");

    for (words, remote) in [(["service/web", ":80"], 8080), (["svc/web", ":plain"], 8080), (["deployment/web", ":http"], 8080)] {
        let forwarding = Forwarding::new(lab, program, &words);
        assert_eq!(fetch(forwarding.port(remote)), pod, "{program} {words:?}");
        forwarding.ends();
    }

    // Nobody listens there: the one connection ends, and why is told.
    let mut forwarding = Forwarding::new(lab, program, &[&format!("pod/{pod}"), ":81"]);
    let port = forwarding.port(81);
    assert_eq!(fetch(port), "");
    let expected =
        [format!("an error occurred forwarding {port} -> 81: error forwarding port 81 to pod default/{pod}"), "refused".to_owned()];
    wait_until("it is told", || expected.iter().all(|part| forwarding.said()[1].contains(part)));
    // kubectl 1.20 goes on.
    if !program.contains("bookworm") {
        assert_eq!(forwarding.child.wait().unwrap().code(), Some(1), "{program}");
        assert!(forwarding.said()[1].contains("error: lost connection to pod"), "{program}: {:?}", forwarding.said());
    } else {
        forwarding.ends();
    }

    for (words, expected) in [
        (&["pod/nobody", "80"][..], "pods \"nobody\" not found"),
        (&["service/web", "81"], "Service web does not have a service port 81"),
        (&["service/web"], "TYPE/NAME and list of ports are required for port-forward"),
        (&["pod/web", "80:0"], ""),
        (&["--address=board", "deployment/web", ":80"], "board is not a valid IP"),
    ] {
        let mut forwarding = Forwarding::new(lab, program, words);
        assert_eq!(forwarding.child.wait().unwrap().code(), Some(1), "{program} {words:?}");
        assert!(forwarding.said()[1].contains(expected), "{program} {words:?}: {:?}", forwarding.said());
    }
}

#[test]
fn ports_of_pods_are_forwarded() {
    let lab = cluster_of("forward", 2);
    apply(&lab, &MANIFEST.replace("NODE", &lab.node_of(2)));
    lab.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pod = lab.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    for program in [env!("CARGO_BIN_EXE_edgectl"), &kubectl("sid"), &kubectl("trixie"), &kubectl("bookworm")] {
        check(&lab, program, &pod);
    }

    // A connection that nobody takes from at one end holds up its own client alone, not what else goes to that node and comes from it.
    let stalled = Forwarding::new(&lab, env!("CARGO_BIN_EXE_edgectl"), &["deployment/web", ":9001"]);
    let mut deaf = TcpStream::connect(("127.0.0.1", stalled.port(9001))).unwrap();
    deaf.set_write_timeout(Some(STALLED)).unwrap();
    let stop = loop {
        if let Err(error) = deaf.write(&[7; 1 << 16]) {
            break error;
        }
    };
    assert_eq!(stop.kind(), ErrorKind::WouldBlock, "{stop}: {:?}", stalled.said());
    let stalled_too = Forwarding::new_named(&lab, env!("CARGO_BIN_EXE_edgectl"), &["deployment/web", ":9002"], "loud");
    let _unread = TcpStream::connect(("127.0.0.1", stalled_too.port(9002))).unwrap();
    let forwarding = Forwarding::new_named(&lab, env!("CARGO_BIN_EXE_edgectl"), &["deployment/web", ":9000", ":8080"], "quick");
    assert_eq!(exchange(forwarding.port(9000), &vec![7; 5_000_000]), "5000000\n");
    assert_eq!(fetch(forwarding.port(8080)), pod);
    for forwarding in [stalled, stalled_too, forwarding] {
        forwarding.ends();
    }

    // A node that goes ends the connections to it, and not the forwarding.
    let forwarding = Forwarding::new(&lab, env!("CARGO_BIN_EXE_edgectl"), &["deployment/web", ":8080"]);
    let port = forwarding.port(8080);
    let mut idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(fetch(port), pod);
    lab.daemons("agent").into_iter().for_each(|agent| lab.kill(agent));
    let mut rest = Vec::new();
    // Broken off or ended: either way it does not wait for ever.
    let _ = idle.read_to_end(&mut rest);
    assert!(rest.is_empty());
    wait_until("the node is connected again", || lab.run(&["exec", "deployment/web", "--", "true"]).status.success());
    assert_eq!(fetch(port), pod);
    forwarding.ends();
    lab.ok(&["delete", "deployment,service", "web"]);
    lab.end();
}
