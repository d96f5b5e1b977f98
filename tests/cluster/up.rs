//! `edgectl up` and `edgectl down`: a cluster comes, is found again, survives the death of its parts, and goes without a trace.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::lab::{Lab, text, wait_until};

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_cluster_comes_and_goes_without_a_trace() {
    let lab = Lab::new("plain");
    let said = lab.up();
    assert!(said.contains(&format!("node {} is Ready", lab.node())), "{said}");
    let nodes = lab.ok(&["get", "nodes"]);
    assert!(nodes.lines().any(|line| line.starts_with(&lab.node()) && line.contains(" Ready ")), "{nodes}");
    assert_eq!(lab.ok(&["get", "nodes", "-ojsonpath={.items[0].metadata.name}"]), lab.node());

    // Again: it says so and changes nothing.
    let processes = lab.processes();
    let again = lab.up();
    assert!(again.contains("is running already"), "{again}");
    assert_eq!(lab.processes(), processes);

    lab.down();
    lab.assert_nothing_left();
    assert!(lab.down().contains("There is no cluster"));
}

#[test]
fn the_demonstration_runs_and_goes_also_after_parts_of_it_were_killed() {
    let lab = Lab::new("demo");
    let said = lab.ok(&["up", "--demo", "--name", &lab.name]);
    assert_eq!(said.lines().filter(|line| line.contains("Hello from hello-")).count(), 3, "{said}");
    assert!(said.contains("deployment.apps/hello") && said.contains(&format!("node/{}", lab.node())), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("pod/hello-") && line.contains(" Running ")).count(), 3, "{said}");

    // Of shims, containers and daemons every third, and not init: that would end them all.
    let init = lab.init();
    for pid in lab.processes().into_iter().filter(|pid| *pid != init).step_by(3) {
        // One may have ended with another that it belongs to.
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
    }
    lab.down();
    lab.assert_nothing_left();
}

#[test]
fn what_else_is_in_the_kubeconfig_stays_as_it_was() {
    let others = "\
apiVersion: v1
kind: Config
clusters:
- name: prod
  cluster:
    server: https://192.0.2.1:6443
contexts:
- name: prod
  context:
    cluster: prod
    user: prod
users:
- name: prod
  user:
    token: secret
current-context: prod
preferences: {}
";
    let folder = std::env::temp_dir().join(format!("edgectl-others-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("config");
    fs::write(&path, others).unwrap();
    let lab = Lab::new("others");
    let run = |verb: &str| {
        let status = lab.edgectl(&[verb, "--name", &lab.name]).env("KUBECONFIG", &path).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{verb}");
        fs::read_to_string(&path).unwrap()
    };
    let during = run("up");
    assert!(during.contains(&format!("current-context: {}", lab.context())) && during.contains("token: secret"), "{during}");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&run("down")), sorted(others));
    fs::remove_dir_all(folder).unwrap();
    lab.assert_nothing_left();
}

#[test]
fn two_clusters_do_not_meet() {
    let (one, other) = (Lab::new("one"), Lab::new("other"));
    one.up();
    other.up();
    let names = |lab: &Lab| lab.ok(&["get", "nodes", "-oname"]);
    assert_eq!((names(&one), names(&other)), (format!("node/{}\n", one.node()), format!("node/{}\n", other.node())));
    one.down();
    one.assert_nothing_left();
    assert_eq!(names(&other), format!("node/{}\n", other.node()));
    other.down();
    other.assert_nothing_left();
}

#[test]
fn a_node_that_was_killed_is_started_again_with_what_it_had() {
    let lab = Lab::new("again");
    lab.up();
    lab.ok(&["create", "namespace", "shop"]);
    kill(lab.init());
    wait_until("the node ends", || lab.processes().is_empty());
    let said = lab.up();
    assert!(said.contains("Starting cluster"), "{said}");
    lab.ok(&["get", "namespace", "shop"]);
    lab.down();
    lab.assert_nothing_left();
}

#[test]
fn daemons_that_are_killed_come_back() {
    let lab = Lab::new("daemons");
    lab.up();
    let daemon = |name: &str| {
        let is_it = |pid: &i32| {
            let command = text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
            command.split('\0').nth(1) == Some(name)
        };
        lab.processes().into_iter().find(is_it)
    };
    for name in ["agent", "master"] {
        let killed = daemon(name).expect("it runs");
        kill(killed);
        wait_until("it is started again", || daemon(name).is_some_and(|pid| pid != killed));
        lab.up();
    }
    lab.down();
    lab.assert_nothing_left();
}

#[test]
fn down_takes_away_what_up_had_made_when_it_was_killed() {
    let lab = Lab::new("half");
    // Moments from before the first cgroup to after the daemons' start.
    for moment_ms in [0, 2, 5, 8, 12, 16, 20, 25, 30, 40, 60, 100, 300] {
        let mut up = lab.edgectl(&["up", "--name", &lab.name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(moment_ms));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.down();
        lab.assert_nothing_left();
    }
}

#[test]
fn down_needs_no_record() {
    let lab = Lab::new("torn");
    lab.up();
    fs::write(format!("/var/lib/edgectl/clusters/{}/cluster.json", lab.name), "{").unwrap();
    lab.down();
    fs::remove_file(lab.kubeconfig()).unwrap();
    lab.assert_nothing_left();

    lab.up();
    fs::remove_dir_all(format!("/run/edgectl/clusters/{}", lab.name)).unwrap();
    lab.down();
    lab.assert_nothing_left();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let lab = Lab::new("refused");
    let refused = |arguments: &[&str], expected: &str| {
        let output = lab.run(arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(expected), "{arguments:?}: {error}");
    };
    refused(&["up", "--name", "Not_A_Name"], "invalid cluster name \"Not_A_Name\"");
    refused(&["down", "--name", "../.."], "invalid cluster name \"../..\"");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&["up", "--name", &lab.name, "--api-port", &port], &format!("port {port} of 127.0.0.1 is taken"));
    lab.down();

    for verb in ["up", "down"] {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_edgectl"), verb])
            .output()
            .unwrap();
        let error = text(&output.stderr);
        assert!(error.contains(&format!("try 'sudo edgectl {verb}'")), "{error}");
    }
    lab.assert_nothing_left();
}
