//! What the tests share: a cluster under a name that nobody else has, commands run against it, and a picture of all that it
//! could leave on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a good run takes a fraction.
const DEADLINE: Duration = Duration::from_secs(60);
const REAP_DEADLINE: Duration = Duration::from_secs(5);

pub struct Lab {
    pub name: String,
    folder: PathBuf,
    before: Picture,
}

/// What is on the machine of a cluster, and what must be as it was.
#[derive(Debug, PartialEq, Eq)]
struct Picture {
    links: String,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    processes: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    kubeconfig: Option<String>,
}

impl Lab {
    /// `topic` is short: the name of a node is made of it.
    pub fn new(topic: &str) -> Self {
        let name = format!("{topic}-{}", std::process::id());
        let folder = std::env::temp_dir().join(format!("edgectl-test-{name}"));
        fs::create_dir_all(&folder).unwrap();
        let mut lab = Self { name, folder, before: Picture::empty() };
        lab.before = lab.picture();
        lab
    }

    pub fn node(&self) -> String {
        self.node_of(1)
    }

    pub fn node_of(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    pub fn context(&self) -> String {
        format!("edgectl-{}", self.name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The program under test, with the lab's kubeconfig.
    pub fn edgectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgectl"));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.edgectl(arguments).output().unwrap()
    }

    /// What a command says that must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "edgectl {arguments:?}: {:?}\n{out}\n{error}\n{}", output.status, self.log());
        out
    }

    pub fn up(&self) -> String {
        self.ok(&["up", "--name", &self.name])
    }

    pub fn down(&self) -> String {
        self.ok(&["down", "--name", &self.name])
    }

    /// The processes of the cluster, by its cgroups.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for group in self.cgroups() {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        found
    }

    /// Process 1 of the first node, as the host counts.
    pub fn init(&self) -> i32 {
        self.init_of(1)
    }

    pub fn init_of(&self, number: u8) -> i32 {
        self.find_init_of(number).expect("the node runs")
    }

    pub fn find_init_of(&self, number: u8) -> Option<i32> {
        let is_init = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() == 3 && line.ends_with("\t1"))
        };
        self.processes_of(number).into_iter().find(is_init)
    }

    /// The first node's folder, as `--root` wants it.
    pub fn root(&self) -> PathBuf {
        self.root_of(1)
    }

    pub fn root_of(&self, number: u8) -> PathBuf {
        Path::new("/var/lib/edgectl/clusters").join(&self.name).join(self.node_of(number))
    }

    /// Runs a program in a node's network; what it says, if it succeeds.
    pub fn on_node(&self, number: u8, words: &[&str]) -> String {
        let net = format!("--net=/proc/{}/ns/net", self.init_of(number));
        let output = Command::new("nsenter").arg(net).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?} on node {number}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same of a program that may fail, on a node that may be off.
    pub fn try_on_node(&self, number: u8, words: &[&str]) -> Option<String> {
        let net = format!("--net=/proc/{}/ns/net", self.find_init_of(number)?);
        let output = Command::new("nsenter").arg(net).args(words).output().unwrap();
        output.status.success().then(|| text(&output.stdout))
    }

    /// The processes of one node.
    fn processes_of(&self, number: u8) -> BTreeSet<i32> {
        let group = format!("/edgectl-{}/{}", self.name, self.node_of(number));
        let is_there = |pid: &i32| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.ends_with(&group) || line.contains(&format!("{group}/")))
        };
        self.processes().into_iter().filter(is_there).collect()
    }

    /// Kills a daemon of a node; that it does not run just now is as well.
    pub fn kill_daemon(&self, number: u8, role: &str) {
        let own = self.processes_of(number);
        for pid in self.daemons(role).into_iter().filter(|pid| own.contains(pid)) {
            self.kill(pid);
        }
    }

    /// How many shims run on a node, which is one a pod.
    pub fn shims_of(&self, number: u8) -> usize {
        let own = self.processes_of(number);
        self.daemons("shim").iter().filter(|pid| own.contains(pid)).count()
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Takes the cluster away and shows that nothing of it is left.
    pub fn end(self) {
        self.down();
        self.assert_nothing_left();
    }

    /// The processes of the nodes' `master` or `agent`.
    pub fn daemons(&self, role: &str) -> Vec<i32> {
        let is_daemon = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
        };
        self.processes().into_iter().filter(is_daemon).collect()
    }

    pub fn find_daemon(&self, role: &str) -> Option<i32> {
        self.daemons(role).first().copied()
    }

    pub fn daemon(&self, role: &str) -> i32 {
        self.find_daemon(role).unwrap_or_else(|| panic!("no {role} runs: {}", self.log()))
    }

    pub fn kill(&self, pid: i32) {
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }

    pub fn freeze(&self, pid: i32) {
        assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    }

    /// Makes an empty file in the root of a container, by its id.
    pub fn touch_in_container(&self, id: &str, name: &str) {
        let is_inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(id));
        let pid = self.processes().into_iter().find(is_inside).expect("the container runs");
        fs::write(format!("/proc/{pid}/root/{name}"), "").unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(format!("/run/edgectl/clusters/{}/{}.log", self.name, self.node())).unwrap_or_default()
    }

    fn cgroups(&self) -> BTreeSet<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
        points.flat_map(|point| folders(&Path::new(point).join(format!("edgectl-{}", self.name)))).collect()
    }

    fn picture(&self) -> Picture {
        let output = Command::new("ip").args(["-br", "link"]).output().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = ["/var/lib/edgectl/clusters", "/run/edgectl/clusters"].map(|place| Path::new(place).join(&self.name));
        Picture {
            links: text(&output.stdout),
            mounts: mounts.lines().filter(|line| line.contains(&self.name)).map(str::to_owned).collect(),
            cgroups: self.cgroups(),
            processes: self.named_processes(),
            files: places.into_iter().filter(|place| place.exists()).collect(),
            kubeconfig: fs::read_to_string(self.kubeconfig()).ok(),
        }
    }

    /// Processes whose command line, host name or cgroup is the cluster's.
    fn named_processes(&self) -> BTreeSet<String> {
        let node = format!("{}-", self.name);
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| fs::read(entry.path().join(name)).map(|bytes| text(&bytes).replace('\0', " ")).unwrap_or_default();
            let command = read("cmdline");
            if command.contains(&node) || read("cgroup").contains(&format!("/edgectl-{}/", self.name)) {
                found.insert(format!("{} {command}", entry.file_name().to_string_lossy()));
            }
        }
        found
    }

    /// Shows that the machine is as it was before, once its init has reaped who was killed.
    pub fn assert_nothing_left(&self) {
        let since = Instant::now();
        while self.picture() != self.before && since.elapsed() < REAP_DEADLINE {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.picture(), self.before);
    }
}

impl Drop for Lab {
    /// Also after a failed test nothing stays behind.
    fn drop(&mut self) {
        self.run(&["down", "--name", &self.name]);
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

impl Picture {
    fn empty() -> Self {
        let (links, kubeconfig) = (String::new(), None);
        Self { links, mounts: [].into(), cgroups: [].into(), processes: [].into(), files: [].into(), kubeconfig }
    }
}

/// A folder with all below it; none if it is not there.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let below = entries.flatten().filter(|entry| entry.path().is_dir()).flat_map(|entry| folders(&entry.path()));
    below.chain([folder.to_owned()]).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until the condition holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "{what}: not within {} s", DEADLINE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}
