//! The first lines: a cluster, an image that runs and is reached, more and fewer replicas, other versions, two containers in one pod.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::course::{Course, Shell, assert_says, is_ready, names};
use crate::lab::wait_until;

const NAME: &str = "kubernetes-bootcamp";
const SELECTOR: &str = "app=kubernetes-bootcamp";

pub fn cluster(course: &Course) {
    let edgectl = course.edgectl();
    let said = edgectl.types(&format!("k up --name {}", course.lab.name));
    assert_says(&said, &["is Ready", "edgectl get pods"]);
    course.share_kubeconfig();
    course.both(|shell| {
        let nodes = shell.types("k get nodes");
        assert!(nodes.lines().any(|line| line.starts_with(&course.lab.node()) && line.contains(" Ready ")), "{nodes}");
        assert_says(&shell.types("k cluster-info"), &["is running at", "https://127.0.0.1:"]);
    });
}

pub fn run(course: &Course) {
    course.both(|shell| {
        let said = match shell.program {
            "edgectl" => shell.types("k run kubernetes-bootcamp --image=docker.io/jocatalin/kubernetes-bootcamp:v1 --port=8080"),
            // Its `run` makes no Deployment any more.
            _ => shell.types("k create deployment kubernetes-bootcamp --image=docker.io/jocatalin/kubernetes-bootcamp:v1 --port=8080"),
        };
        assert_eq!(said, format!("deployment.apps/{NAME} created\n"));
        shell.waits_for_pods(SELECTOR, 1);
        assert_says(&shell.types("k get deployments"), &[NAME, "1/1"]);
        assert_says(&shell.types("k get replicasets"), &[&format!("{NAME}-")]);
        assert_says(&shell.types("k get pods"), &[&format!("{NAME}-"), "1/1", "Running"]);
    });
}

/// Where the Deployment is reached from outside.
fn url(shell: &Shell) -> String {
    let port = shell.get(&format!("service {NAME}"))["spec"]["ports"][0]["nodePort"].as_u64().expect("it has a port of the node");
    assert!((30000..32768).contains(&port), "{port}");
    format!("http://{}:{port}", shell.course.address(1))
}

/// Those pods, and no others, answer as that version.
fn are_met(shell: &Shell, version: u8) {
    let pods = names(&shell.pods(SELECTOR));
    let expected = pods.iter().map(|pod| format!("Hello Kubernetes bootcamp! | Running on: {pod} | v={version}")).collect();
    // The rules follow the pods, they do not go before them.
    wait_until("all pods answer and nobody else", || shell.course.answers(1, &url(shell)) == expected);
}

pub fn expose(course: &Course) {
    course.both(|shell| {
        shell.types("k expose deployment/kubernetes-bootcamp --type=\"NodePort\" --port 8080");
        let services = shell.types("k get services");
        assert!(
            services.lines().any(|line| line.starts_with(NAME) && line.contains(" NodePort ") && line.contains("8080:3")),
            "{services}"
        );
        are_met(shell, 1);
    });
}

pub fn scale_up(course: &Course) {
    course.both(|shell| {
        shell.types("k scale deployment kubernetes-bootcamp --replicas=3");
        shell.waits_for_pods(SELECTOR, 3);
        assert_says(&shell.types("k get deployments"), &["3/3"]);
        are_met(shell, 1);
    });
}

pub fn scale_down(course: &Course) {
    course.both(|shell| {
        let before = names(&shell.pods(SELECTOR));
        shell.types("k scale deployments/kubernetes-bootcamp --replicas=2");
        let after = shell.waits_for_pods(SELECTOR, 2);
        assert!(after.is_subset(&before), "{after:?} of {before:?}");
        are_met(shell, 1);
    });
}

/// Asks on and on while something is done; how often, and what went wrong.
fn ask_during(shell: &Shell, act: impl FnOnce()) -> (usize, Vec<String>) {
    let (url, init, done) = (url(shell), shell.course.lab.init().to_string(), AtomicBool::new(false));
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut wrong) = (0, vec![]);
            while !done.load(Ordering::Relaxed) {
                let mut curl = std::process::Command::new("nsenter");
                let output = curl.args(["-t", &init, "-n", "curl", "-fsS", "--max-time", "5", &url]).output().unwrap();
                asked += 1;
                if !output.status.success() {
                    wrong.push(String::from_utf8_lossy(&output.stderr).into_owned());
                }
            }
            (asked, wrong)
        });
        // The one who asks must end also when the act fails.
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().unwrap();
        acted.unwrap_or_else(|why| std::panic::resume_unwind(why));
        asked
    })
}

pub fn set_image(course: &Course) {
    course.both(|shell| {
        let (asked, wrong) = ask_during(shell, || {
            shell.types("k set image deployments/kubernetes-bootcamp kubernetes-bootcamp=jocatalin/kubernetes-bootcamp:v2");
            assert_says(&shell.types("k rollout status deployments/kubernetes-bootcamp"), &["successfully rolled out"]);
            shell.waits_for_pods(SELECTOR, 2);
        });
        assert!(wrong.is_empty(), "{} of {asked} requests failed: {}", wrong.len(), wrong[0]);
        are_met(shell, 2);
        let history = shell.types("k rollout history deployments/kubernetes-bootcamp");
        assert!(["1 ", "2 "].iter().all(|revision| history.lines().any(|line| line.starts_with(revision))), "{history}");
    });
}

pub fn undo(course: &Course) {
    course.both(|shell| {
        shell.types("k rollout undo deployments/kubernetes-bootcamp");
        shell.types("k rollout status deployments/kubernetes-bootcamp");
        shell.waits_for_pods(SELECTOR, 2);
        are_met(shell, 1);
    });
}

const TWO: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: two
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: jocatalin/kubernetes-bootcamp:v1
  - name: shell
    image: busybox
    command: ["sleep", "3600"]
"#;

pub fn two_containers(course: &Course) {
    course.both(|shell| {
        shell.write("two.yml", TWO);
        shell.types("k apply -f two.yml");
        wait_until("both containers run", || is_ready(&shell.get("pod two")));
        assert_says(&shell.types("k get pod two"), &["2/2"]);
        let said = shell.types("k exec two -c shell -- wget -qO- http://localhost:8080/");
        assert_eq!(said, "Hello Kubernetes bootcamp! | Running on: two | v=1\n");
        let addresses = ["web", "shell"].map(|container| shell.types(&format!("k exec two -c {container} -- hostname -i")));
        assert_eq!(addresses[0], addresses[1]);
        // One port space: the port is taken for the other one.
        let taken = shell.is_refused("k exec two -c shell -- nc -l -p 8080");
        assert_says(&taken, &["in use"]);
        shell.types("k delete pod two");
        wait_until("both are gone", || !shell.sees("k get pods").contains("two "));
    });
}

pub fn home(course: &Course) {
    course.both(|shell| {
        fs::copy(shell.kubeconfig(), shell.home().join("admin.conf")).unwrap();
        shell.types("mkdir -p ~/.kube && cp admin.conf ~/.kube/config");
        let nodes = shell.types(&format!("unset KUBECONFIG; {} get nodes", shell.program));
        assert_says(&nodes, &[&course.lab.node(), " Ready "]);
    });
    let edgectl = course.edgectl();
    let tab = |typed: &str| {
        let words: Vec<&str> = typed.split(' ').collect();
        println!("      $ {typed}<Tab>");
        edgectl.sees(&format!(
            "source <(edgectl completion bash); COMP_WORDS=({}{}); COMP_CWORD={}; _edgectl; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            typed,
            if typed.ends_with(' ') { "''" } else { "" },
            words.len() - 1
        ))
    };
    println!("      $ source <(edgectl completion bash)");
    assert_says(&tab("edgectl desc"), &["describe\n"]);
    assert_says(&tab("edgectl get deploy"), &["deployments\n"]);
    assert_says(&tab("edgectl describe node "), &[&course.lab.node()]);
    assert_says(&tab("edgectl get deployments kub"), &[NAME]);
}
