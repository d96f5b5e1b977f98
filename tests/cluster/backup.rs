//! `edgectl backup` and `edgectl restore`: a cluster is what it was when the backup was made, and its nodes, its pods and those who hold a
//! kubeconfig go on. What is no whole backup, or would be overwritten, is refused and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::api;
use crate::lab::{Lab, text, wait_until};
use crate::pods::{apply, cluster, phase, pod, wait};

const SLEEPS: &str =
    "terminationGracePeriodSeconds: 0, containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sleep, '1000']}]";

fn start(lab: &Lab, name: &str) -> Value {
    apply(lab, &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{SLEEPS}}}\n"));
    wait(lab, name, "Running", |pod| phase(pod) == "Running")
}

/// The id of a pod's one container, and since when it runs.
fn run(pod: &Value) -> (String, String) {
    let status = &pod["status"]["containerStatuses"][0];
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    (word(&status["containerID"]).trim_start_matches("edgectl://").to_owned(), word(&status["state"]["running"]["startedAt"]))
}

fn goes_on(lab: &Lab, container: &str) -> bool {
    let inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(container));
    lab.processes().iter().any(inside)
}

fn revision(lab: &Lab) -> u64 {
    let list: Value = serde_json::from_str(&lab.ok(&["get", "--raw", "/api/v1/configmaps"])).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn on_board(lab: &Lab, verb: &str, words: &[&str]) -> Output {
    let net = format!("--net=/proc/{}/ns/net", lab.init());
    let mut command = Command::new("nsenter");
    command.arg(net).args([env!("CARGO_BIN_EXE_edgectl"), verb]).args(words).arg("--root").arg(lab.root()).output().unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// What a master has on disk, byte for byte.
fn state(lab: &Lab) -> BTreeMap<PathBuf, Vec<u8>> {
    let files =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let folders = ["etc/edgectl", "etc/edgectl/pki", "var/lib/edgectl"].map(|folder| lab.root().join(folder));
    folders.into_iter().flat_map(files).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_cluster_is_what_it_was_and_its_pods_go_on() {
    let lab = cluster("backup");
    let path = |name: &str| lab.file(name).to_string_lossy().into_owned();
    let (backup, second, broken) = (path("backup.tar.gz"), path("second.tar.gz"), path("broken.tar.gz"));
    lab.ok(&["create", "configmap", "kept", "--from-literal=is=here"]);
    let stays = run(&start(&lab, "stays"));

    assert!(!Path::new(&backup).exists());
    done(&on_board(&lab, "backup", &[&backup]));
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    let streamed = on_board(&lab, "backup", &["-"]);
    assert!(streamed.status.success() && streamed.stdout.starts_with(&[0x1f, 0x8b]), "{}", text(&streamed.stderr));

    let (later, _) = run(&start(&lab, "later"));
    lab.ok(&["create", "configmap", "later"]);
    lab.ok(&["delete", "configmap", "kept"]);
    let last = revision(&lab);
    let refused = |words: &[&str], why: &str| {
        let (before, output) = (state(&lab), on_board(&lab, "restore", words));
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{words:?}: expected {why:?}: {error}");
        assert!(state(&lab) == before, "{words:?} changed something");
    };
    // A master that runs writes now and then: only what it says is judged.
    let output = on_board(&lab, "restore", &["--force", &backup]);
    assert!(!output.status.success() && text(&output.stderr).contains("a master runs on"), "{}", text(&output.stderr));

    // Its init would start it again.
    lab.freeze(lab.init());
    lab.kill(lab.daemon("master"));
    wait_until("the master ends", || lab.find_daemon("master").is_none());
    done(&on_board(&lab, "backup", &[&second]));
    let whole = fs::read(&backup).unwrap();
    refused(&[&backup], "--force moves it aside");
    fs::write(&broken, &whole[..whole.len() - 5]).unwrap();
    refused(&["--force", &broken], "is no whole backup");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2..][..64].iter_mut().for_each(|byte| *byte ^= 0xff);
    fs::write(&broken, damaged).unwrap();
    refused(&["--force", &broken], "is no whole backup");
    fs::write(&broken, "nonsense").unwrap();
    refused(&["--force", &broken], "is no whole backup");
    refused(&[&path("nosuch")], "No such file");

    // One that was interrupted is repeated, as if it had not been.
    for (number, moment) in ["0.002", "0.005", "0.01", "0.02", "0.04"].into_iter().enumerate() {
        let root = path(&format!("fresh-{number}"));
        let run = |program: &[&str]| Command::new(program[0]).args(&program[1..]).args(["--root", &root]).output().unwrap();
        let _ = run(&["timeout", "-s", "KILL", moment, env!("CARGO_BIN_EXE_edgectl"), "restore", &backup]);
        if !Path::new(&root).join("var/lib/edgectl/store.redb").exists() {
            done(&run(&[env!("CARGO_BIN_EXE_edgectl"), "restore", &backup]));
        }
        let again = run(&[env!("CARGO_BIN_EXE_edgectl"), "backup", &path("again.tar.gz")]);
        assert!(again.status.success(), "killed after {moment} s: {}", text(&again.stderr));
    }

    // A board that has lost all that its master had; and then once more, over what is there.
    fs::remove_file(lab.root().join("var/lib/edgectl/store.redb")).unwrap();
    fs::remove_dir_all(lab.root().join("etc/edgectl/pki")).unwrap();
    let said = done(&on_board(&lab, "restore", &[&second]));
    assert!(said.contains("objects are restored"), "{said}");
    let said = done(&on_board(&lab, "restore", &["--force", &backup]));
    let aside = said.lines().find_map(|line| line.strip_prefix("What was there is in ")).expect("it says where");
    for name in ["store.redb", "ca.crt", "ca.key", "service-account.key"] {
        assert!(Path::new(aside).join(name).exists(), "{name} is not in {aside}");
    }
    assert!(Command::new("kill").args(["-CONT", &lab.init().to_string()]).status().unwrap().success());

    wait_until("the master answers", || lab.run(&["get", "--raw", "/readyz"]).status.success());
    assert_eq!(lab.ok(&["get", "configmap", "kept", "-o", "jsonpath={.data.is}"]), "here");
    assert!(text(&lab.run(&["get", "configmap", "later"]).stderr).contains("not found"));
    assert!(text(&lab.run(&["get", "pod", "later"]).stderr).contains("not found"));
    wait_until("the pod that is of no cluster any more is ended", || !goes_on(&lab, &later));
    let since = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 0 && phase(pod) == "Running";
    assert!(goes_on(&lab, &stays.0) && since(&pod(&lab, "stays")));
    assert_eq!(run(&pod(&lab, "stays")), stays, "the same run of the same container");
    lab.ok(&["wait", "--for=condition=Ready", &format!("node/{}", lab.node()), "--timeout=60s"]);
    // The agent does what it is told: a new pod runs, beside the one that went on.
    start(&lab, "new");
    assert_eq!(run(&pod(&lab, "stays")), stays);

    // No revision is given twice, and whoever watches since one of the lost time hears it.
    assert!(revision(&lab) > last);
    let watch = lab.run(&["get", "--raw", &format!("/api/v1/configmaps?watch=1&resourceVersion={last}")]);
    assert!(format!("{}{}", text(&watch.stdout), text(&watch.stderr)).contains("too old resource version"), "{watch:?}");
    let leases: Value = serde_json::from_str(&lab.ok(&["get", "leases", "-A", "-o", "json"])).unwrap();
    let revisions = leases["items"].as_array().unwrap().iter().map(|lease| lease["metadata"]["resourceVersion"].as_str().unwrap());
    assert!(revisions.map(|text| text.parse::<u64>().unwrap()).all(|revision| revision > last), "leases are all new");
    let kubectl =
        Command::new(api::kubectl("sid")).args(["get", "pods", "-o", "name"]).env("KUBECONFIG", lab.kubeconfig()).output().unwrap();
    assert_eq!(done(&kubectl), "pod/new\npod/stays\n");
    lab.end();
}
