//! The stage of the walkthrough: a registry with the images that the course names, the boards, and the two programs, each in a folder, a
//! home and a namespace of its own. It prints what is typed, and judges nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::lab::{Lab, text, wait_until};
use crate::registry::{Registry, Scratch, layout};

/// What the course pulls from the internet, and the image that stands in for it.
const IMAGES: [(&str, &str); 6] = [
    ("jocatalin/kubernetes-bootcamp:v1", "bootcamp-v1"),
    ("jocatalin/kubernetes-bootcamp:v2", "bootcamp-v2"),
    ("library/nginx:1.7.9", "nginx"),
    ("library/httpd:latest", "apache2"),
    ("library/busybox:latest", "busybox"),
    ("curlimages/curl:latest", "curl"),
];
/// As soon as a master may be told to notice that a node is silent.
const MASTER_SETTINGS: &str = "nodeMonitorGracePeriod: 20s\n";
pub const NODES: u8 = 3;
/// Where a node of the lab sees its own folder.
pub const ROOT: &str = "/run/edgectl";
/// So many that each of three pods is all but certain to be met.
const REQUESTS: usize = 60;

pub struct Course {
    pub lab: Lab,
    registry: Registry,
    images: Scratch,
}

/// One of the programs, as a person has it.
pub struct Shell<'a> {
    pub course: &'a Course,
    pub program: &'static str,
    /// That its context names.
    pub namespace: &'static str,
    folder: PathBuf,
}

impl Course {
    pub fn begin() -> Self {
        let images = Scratch::new();
        let registry = Registry::new(&images);
        for (name, image) in IMAGES {
            registry.push(&layout(image), name, &[]);
        }
        let lab = Lab::new("walk");
        let course = Self { lab, registry, images };
        for number in 1..=NODES {
            course.write_mirror(number);
        }
        fs::write(course.lab.root().join("etc/edgectl/master.yaml"), MASTER_SETTINGS).unwrap();
        let programs = course.lab.file("bin");
        fs::create_dir_all(&programs).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_edgectl"), programs.join("edgectl")).unwrap();
        std::os::unix::fs::symlink(kubectl(), programs.join("kubectl")).unwrap();
        for shell in course.shells() {
            fs::create_dir_all(&shell.folder).unwrap();
        }
        course
    }

    /// The node's registries.yaml: the internet is the registry of this machine.
    pub fn write_mirror(&self, node: u8) {
        let folder = self.lab.root_of(node).join("etc/edgectl");
        fs::create_dir_all(&folder).unwrap();
        let mirror = format!("mirrors:\n  docker.io:\n    endpoint: [\"http://{}\"]\n", self.registry.host());
        fs::write(folder.join("registries.yaml"), mirror).unwrap();
    }

    /// edgectl and kubectl.
    pub fn shells(&self) -> [Shell<'_>; 2] {
        [("edgectl", "default"), ("kubectl", "with-kubectl")].map(|(program, namespace)| Shell {
            course: self,
            program,
            namespace,
            folder: self.lab.file(&format!("with-{program}")),
        })
    }

    pub fn edgectl(&self) -> Shell<'_> {
        let [edgectl, _] = self.shells();
        edgectl
    }

    /// Both programs, one after the other.
    pub fn both(&self, walk: impl Fn(&Shell)) {
        self.shells().iter().for_each(walk);
    }

    /// The kubeconfig that `up` wrote for edgectl, and a copy for kubectl with its namespace.
    pub fn share_kubeconfig(&self) {
        let [edgectl, kubectl] = self.shells();
        edgectl.sees("k get namespace default");
        fs::copy(edgectl.kubeconfig(), kubectl.kubeconfig()).unwrap();
        kubectl.sees(&format!("k create namespace {}", kubectl.namespace));
        kubectl.sees(&format!("k config set-context --current --namespace={}", kubectl.namespace));
    }

    /// Types a line on a board itself.
    pub fn on_board(&self, number: u8, line: &str) -> String {
        println!("      {} # {line}", self.lab.node_of(number));
        let init = self.lab.init_of(number).to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &init, "-m", "-n", "-u", "-p", "-C", "bash", "-c", line]).env("PATH", self.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The answers to many requests from a board, each by a connection of its own; none if one failed.
    pub fn answers(&self, number: u8, url: &str) -> BTreeSet<String> {
        let url = format!("{url}/?[1-{REQUESTS}]");
        println!("      {} # curl {url}", self.lab.node_of(number));
        let answers = self.lab.try_on_node(number, &["curl", "-fsS", "--fail-early", "--max-time", "5", &url]);
        answers.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub fn address(&self, number: u8) -> String {
        format!("172.30.0.{}", number + 1)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.lab.file("bin").display(), std::env::var("PATH").unwrap_or_default())
    }

    /// Takes all of it away and shows that nothing is left.
    pub fn end(self) {
        let Self { lab, registry, images } = self;
        // The kubeconfig goes back to what it was: none.
        lab.end();
        drop(registry);
        drop(images);
    }
}

impl Shell<'_> {
    pub fn kubeconfig(&self) -> PathBuf {
        match self.program {
            "edgectl" => self.course.lab.kubeconfig(),
            _ => self.folder.join("config"),
        }
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).unwrap();
    }

    pub fn home(&self) -> PathBuf {
        self.folder.clone()
    }

    /// A line of bash, whose first word `k` is the program.
    fn run(&self, line: &str) -> Output {
        let mut command = Command::new("bash");
        command.args(["-c", &self.spelled(line)]).current_dir(&self.folder).env("PATH", self.course.path());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder).env_remove("KUBE_EDITOR").output().unwrap()
    }

    fn spelled(&self, line: &str) -> String {
        line.strip_prefix("k ").map_or_else(|| line.to_owned(), |rest| format!("{} {rest}", self.program))
    }

    fn print(&self, line: &str) {
        for line in self.spelled(line).lines() {
            println!("      $ {line}");
        }
    }

    /// Types a line that must succeed; what is said, errors behind.
    pub fn types(&self, line: &str) -> String {
        self.print(line);
        self.sees(line)
    }

    /// Types a line that must be refused; why.
    pub fn is_refused(&self, line: &str) -> String {
        self.print(line);
        let output = self.run(line);
        assert!(!output.status.success(), "{} went well: {}", self.spelled(line), text(&output.stdout));
        text(&output.stderr)
    }

    /// The same as `types`, unseen.
    pub fn sees(&self, line: &str) -> String {
        let output = self.run(line);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", self.spelled(line));
        said
    }

    /// An object, or a list of objects, as it is; `what` as behind `get`.
    pub fn get(&self, what: &str) -> Value {
        let output = self.run(&format!("k get {what} -o json"));
        assert!(output.status.success(), "get {what}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pods of a selector that are not on their way out.
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let Value::Array(pods) = self.get(&format!("pods -l {selector}"))["items"].take() else { panic!("no list of pods") };
        pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// Waits until so many pods of a selector are there, all of them Ready, and none is on its way out; their names.
    pub fn waits_for_pods(&self, selector: &str, count: usize) -> BTreeSet<String> {
        let line = format!("pods -l {selector}");
        wait_until(&format!("{}: {count} pods with {selector} are Ready", self.program), || {
            let pods = self.get(&line);
            let pods = pods["items"].as_array().unwrap();
            pods.len() == count && pods.iter().all(is_ready)
        });
        names(&self.pods(selector))
    }
}

pub fn is_ready(object: &Value) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

pub fn names(objects: &[Value]) -> BTreeSet<String> {
    objects.iter().map(name).collect()
}

/// The nodes that pods are on, one for each pod.
pub fn places(pods: &[Value]) -> Vec<String> {
    pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()).collect()
}

/// All parts stand in the text.
pub fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
}

/// Debian's newest kubectl.
fn kubectl() -> PathBuf {
    let shared = Path::new("/opt/kubectl");
    let folder = if shared.exists() { shared.to_owned() } else { Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubectl") };
    let found = Command::new("tests/get-kubectl").arg("sid").arg(folder).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(found.status.success(), "get-kubectl: {}", text(&found.stderr));
    text(&found.stdout).trim().into()
}
