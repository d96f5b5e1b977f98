//! Pods against the real kernel: needs root and busybox. Judged by /proc, the cgroup folders and the logs, never by what our own code says of them.

use super::*;

use std::collections::BTreeSet;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use crate::runtime::spec::{DefaultContainer, Memory, default_container};

/// How long anything may take here before it has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test: beside the folder of the test's own.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    std::env::var_os("EDGECTL").map_or_else(|| own.ancestors().nth(2).unwrap().join("edgectl"), PathBuf::from)
}

/// A machine of our own: a run directory, an image of one layer, a corner of the cgroup tree. All of it goes away with this.
struct Machine {
    folder: PathBuf,
    runtime: Runtime,
}

impl Machine {
    fn new() -> Machine {
        let name = crate::base::id::uid();
        let folder = PathBuf::from(format!("/run/edgectl-test-{name}"));
        let layer = folder.join("layer");
        for inner in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(layer.join(inner)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("Debian's busybox-static is needed");
        for applet in ["sh", "sleep", "seq", "tail", "cat", "hostname", "stty", "tty", "kill", "ps", "true", "id", "env", "ls", "echo"] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        Machine::at(&folder)
    }

    fn at(folder: &Path) -> Machine {
        Machine { folder: folder.to_owned(), runtime: Runtime::with_program(&folder.join("run"), &program()) }
    }

    fn pod_config(&self, uid: &str) -> PodConfig {
        let cgroup = PathBuf::from("/").join(self.folder.file_name().unwrap()).join(format!("pod{uid}"));
        PodConfig { uid: uid.into(), namespace: "shop".into(), name: "web".into(), hostname: "web".into(), cgroup, ..PodConfig::default() }
    }

    async fn pod(&self, uid: &str) -> Pod {
        self.runtime.run_pod(self.pod_config(uid)).await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn container(&self, id: &str, script: &str) -> ContainerConfig {
        let args = ["sh", "-c", script].map(String::from).to_vec();
        let wanted = DefaultContainer { args, env: vec!["PATH=/bin".into()], ..DefaultContainer::default() };
        ContainerConfig {
            id: id.into(),
            name: id.into(),
            attempt: 0,
            spec: default_container(wanted),
            rootfs: Rootfs { lower: vec![self.folder.join("layer")], writable: self.folder.join("writable").join(id) },
            log_path: self.log(id),
            log_max_bytes: 0,
            log_files_max: 1,
            stdin: false,
            tty: false,
        }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.folder.join(format!("logs/{id}/0.log"))
    }

    /// What the container printed on `stream`, by its log.
    fn printed(&self, id: &str, stream: &str) -> Vec<String> {
        let marker = format!(" {stream} F ");
        let log = String::from_utf8_lossy(&fs::read(self.log(id)).unwrap()).into_owned();
        log.lines().filter_map(|line| line.split_once(&marker)).map(|(_, text)| text.to_owned()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pod in smol::block_on(self.runtime.pods()).unwrap_or_default() {
                let _ = smol::block_on(pod.stop());
            }
        }
        let cgroup = Path::new("/").join(self.folder.file_name().unwrap());
        let _ = clear(&self.folder, &cgroup);
    }
}

async fn start(pod: &Pod, config: ContainerConfig) {
    let id = config.id.clone();
    pod.create_container(config).await.unwrap_or_else(|error| panic!("{error:#}"));
    pod.start_container(&id).await.unwrap_or_else(|error| panic!("{error:#}"));
}

async fn status(pod: &Pod, id: &str) -> ContainerStatus {
    pod.status().await.unwrap().into_iter().find(|status| status.id == id).unwrap()
}

async fn exited(pod: &Pod, id: &str) -> Exit {
    let wait = async {
        let mut events = pod.events().await.unwrap();
        loop {
            match events.next().await {
                Event::Exited(ContainerStatus { id: exited, state: ContainerState::Exited(exit), .. }) if exited == id => return exit,
                Event::Exited(_) => {}
                Event::Lost => panic!("the shim is gone"),
            }
        }
    };
    let late = async {
        smol::Timer::after(DEADLINE).await;
        panic!("container {id} does not exit")
    };
    smol::future::or(wait, late).await
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Runs a command in the container; its code and output.
async fn run(pod: &Pod, id: &str, script: &str) -> (i32, String) {
    let (mut output, theirs) = std::io::pipe().unwrap();
    let config = ExecConfig { args: ["sh", "-c", script].map(String::from).to_vec(), ..ExecConfig::default() };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let process = pod.exec(id, config, ExecStdio::Fds([null(), theirs.into(), null()])).await.unwrap_or_else(|error| panic!("{error:#}"));
    let text = smol::unblock(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let text = text.await.unwrap();
    (process.wait().await.unwrap(), text)
}

#[test]
fn containers_of_a_pod_share_network_ipc_and_host_name_but_no_processes_and_files() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        start(&pod, machine.container("one", "sleep 1000")).await;
        start(&pod, machine.container("two", "sleep 1000")).await;
        let (one, two) = (status(&pod, "one").await.pid.unwrap(), status(&pod, "two").await.pid.unwrap());
        let (shim, own) = (pod.pid().unwrap(), std::process::id() as i32);
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(namespace(one, kind), namespace(two, kind), "{kind}");
            assert_eq!(namespace(one, kind), namespace(shim, kind), "{kind}");
            assert_ne!(namespace(one, kind), namespace(own, kind), "{kind}");
        }
        for kind in ["mnt", "pid"] {
            assert_ne!(namespace(one, kind), namespace(two, kind), "{kind}");
            assert_ne!(namespace(one, kind), namespace(own, kind), "{kind}");
        }
        assert_eq!(fs::read_link(pod.network_namespace().unwrap()).unwrap(), namespace(one, "net"));
        assert_eq!(run(&pod, "one", "hostname; echo mine > /tmp/file").await, (0, "web\n".into()));
        assert_eq!(run(&pod, "two", "ls /tmp").await, (0, String::new()));
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_shared_process_namespace_has_a_first_process_and_shows_every_container() {
    let machine = Machine::new();
    smol::block_on(async {
        let config = PodConfig { share_process_namespace: true, ..machine.pod_config("a") };
        let pod = machine.runtime.run_pod(config).await.unwrap();
        start(&pod, machine.container("one", "sleep 1000")).await;
        start(&pod, machine.container("two", "(sleep 2000 &); sleep 0.1; exit 4")).await;
        assert_eq!(exited(&pod, "two").await.code, 4);
        let (_, seen) = run(&pod, "one", "ps -o pid,args").await;
        assert!(seen.contains("1 ") && seen.contains("sleep 1000"), "{seen}");
        assert!(!seen.contains("sleep 2000"), "what the container left behind is killed: {seen}");
        let (first, one) = (pod.0.shim.as_ref().unwrap().init.unwrap(), status(&pod, "one").await.pid.unwrap());
        assert_eq!(namespace(first, "pid"), namespace(one, "pid"));
        pod.stop().await.unwrap();
    });
}

#[test]
fn exit_codes_and_signals_are_kept_until_the_container_is_removed() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        start(&pod, machine.container("code", "echo out; echo err >&2; exit 3")).await;
        start(&pod, machine.container("signal", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done")).await;
        start(&pod, machine.container("kill", "sleep 1000")).await;
        let exit = exited(&pod, "code").await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
        assert!(exit.started_at.unwrap() <= exit.finished_at);
        assert_eq!((machine.printed("code", "stdout"), machine.printed("code", "stderr")), (vec!["out".into()], vec!["err".into()]));
        until("the trap is set", || machine.printed("signal", "stdout") == ["ready"]);
        pod.kill("signal", libc::SIGUSR1).await.unwrap();
        assert_eq!(exited(&pod, "signal").await.code, 9);
        pod.kill("kill", libc::SIGKILL).await.unwrap();
        let exit = exited(&pod, "kill").await;
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        assert!(pod.kill("kill", libc::SIGKILL).await.is_err());
        pod.remove_container("code").await.unwrap();
        let left: Vec<_> = pod.status().await.unwrap().into_iter().map(|status| status.id).collect();
        assert_eq!(left, ["signal", "kill"]);
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing_and_says_why() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let mut config = machine.container("none", "");
        config.spec.process.as_mut().unwrap().args = vec!["/bin/missing".into()];
        let error = match pod.create_container(config).await {
            Ok(()) => pod.start_container("none").await.unwrap_err(),
            Err(error) => error,
        };
        assert!(format!("{error:#}").contains("/bin/missing"), "{error:#}");
        let mut config = machine.container("layerless", "");
        config.rootfs.lower = vec![machine.folder.join("missing")];
        let error = pod.create_container(config).await.unwrap_err();
        assert!(format!("{error:#}").contains("mount the overlay: open"), "{error:#}");
        assert!(!pod.container("layerless").exists());
        assert!(!machine.folder.join("writable/layerless").exists());
        start(&pod, machine.container("good", "exit 0")).await;
        assert_eq!(exited(&pod, "good").await.code, 0);
        pod.stop().await.unwrap();
    });
}

/// The body of the process that the next test kills.
fn agent_that_will_be_killed(folder: &Path) {
    let machine = std::mem::ManuallyDrop::new(Machine::at(folder));
    smol::block_on(async {
        let pod = machine.pod("a").await;
        start(&pod, machine.container("quick", "seq 1 10; exit 5")).await;
        start(&pod, machine.container("slow", "seq 1 50000; sleep 0.5; seq 50001 100000; exit 7")).await;
        pod.create_container(machine.container("waiting", "exit 6")).await.unwrap();
        std::io::stdout().write_all(b"agent is up\n").unwrap();
        smol::future::pending::<()>().await;
    });
}

/// The test starts itself once more, as the agent.
#[test]
fn killing_the_agent_loses_no_line_and_no_exit_code() {
    if let Some(folder) = std::env::var_os("EDGECTL_TEST_MACHINE") {
        return agent_that_will_be_killed(Path::new(&folder));
    }
    let machine = Machine::new();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "runtime::pod::tests::killing_the_agent_loses_no_line_and_no_exit_code", "--nocapture"])
        .env("EDGECTL_TEST_MACHINE", &machine.folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut stdout = agent.stdout.take().unwrap();
    while !String::from_utf8_lossy(&said).contains("agent is up") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    agent.kill().unwrap();
    assert_eq!(agent.wait().unwrap().signal(), Some(9));
    smol::block_on(async {
        let pod = machine.runtime.pods().await.unwrap().pop().unwrap();
        assert!(!pod.is_lost());
        assert_eq!(pod.config(), &machine.pod_config("a"));
        assert_eq!(exited(&pod, "quick").await.code, 5);
        assert_eq!(exited(&pod, "slow").await.code, 7);
        let expected: Vec<_> = (1..=100_000).map(|number| number.to_string()).collect();
        assert!(machine.printed("slow", "stdout") == expected, "lines are missing");
        pod.start_container("waiting").await.unwrap();
        assert_eq!(exited(&pod, "waiting").await.code, 6);
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_client_that_dies_in_the_middle_of_a_request_leaves_a_whole_container_or_none() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        // Everything of create_container but waiting for the answer.
        let config = machine.container("orphan", "exit 8");
        let spec = complete(config.spec.clone(), pod.config(), pod.0.shim.as_ref().unwrap(), "orphan", false);
        write_bundle(&pod.container("orphan"), &serde_json::to_vec(&spec).unwrap(), &config.rootfs.writable).unwrap();
        let create = Create {
            container: config.id,
            name: config.name,
            attempt: 0,
            rootfs: config.rootfs,
            log_path: config.log_path,
            log_max_bytes: 0,
            log_files_max: 1,
            stdin: false,
            tty: false,
        };
        let client = pod.client().await.unwrap();
        client.send(&Request::Create(create), &[]).await.unwrap();
        drop(client);
        let again = machine.runtime.pods().await.unwrap().pop().unwrap();
        assert_eq!(status(&again, "orphan").await.state, ContainerState::Created);
        again.start_container("orphan").await.unwrap();
        assert_eq!(exited(&again, "orphan").await.code, 8);
        // Half a request, and nonsense.
        for bytes in [&b"\x20\0\0\0{\"sta"[..], b"GET / HTTP/1.1\r\n\r\n"] {
            let (_open, path) = socket_path(&pod.0.folder).unwrap();
            UnixStream::connect(path).unwrap().write_all(bytes).unwrap();
        }
        assert_eq!(pod.status().await.unwrap().len(), 1);
        until("connections are closed", || sockets(pod.pid().unwrap()) == 1);
        pod.stop().await.unwrap();
    });
}

/// How many sockets a process has open.
fn sockets(pid: i32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))).count()
}

#[test]
fn a_container_over_its_memory_limit_is_seen_as_oom_killed() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let mut config = machine.container("eater", "exec tail /dev/zero");
        let resources = config.spec.linux.as_mut().unwrap().resources.get_or_insert_default();
        resources.memory = Some(Memory { limit: Some(16 << 20), ..Memory::default() });
        start(&pod, config).await;
        let exit = exited(&pod, "eater").await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
        start(&pod, machine.container("modest", "exit 0")).await;
        assert!(!exited(&pod, "modest").await.oom_killed);
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_process_is_executed_with_its_own_input_output_user_and_code() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        start(&pod, machine.container("one", "sleep 1000")).await;
        assert_eq!(run(&pod, "one", "echo hello; exit 12").await, (12, "hello\n".into()));
        assert_eq!(run(&pod, "one", "kill -9 $$").await, (137, String::new()));
        let (input, mut ours) = std::io::pipe().unwrap();
        let (mut output, theirs) = std::io::pipe().unwrap();
        let user = Some(ExecUser { uid: 1000, gid: 1001, additional_gids: Vec::new() });
        let args = ["sh", "-c", "id -u; id -g; echo $WORD; cat"].map(String::from).to_vec();
        let config = ExecConfig { args, env: vec!["WORD=own".into()], cwd: Some("/tmp".into()), user };
        let stdio = ExecStdio::Fds([input.into(), theirs.try_clone().unwrap().into(), theirs.into()]);
        let process = pod.exec("one", config, stdio).await.unwrap();
        ours.write_all(b"typed\n").unwrap();
        drop(ours);
        assert_eq!(process.wait().await.unwrap(), 0);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1000\n1001\nown\ntyped\n");
        let missing = ExecConfig { args: vec!["/bin/missing".into()], ..ExecConfig::default() };
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let error = pod.exec("one", missing, ExecStdio::Fds([null(), null(), null()])).await.err().unwrap();
        assert!(format!("{error:#}").contains("/bin/missing"), "{error:#}");
        pod.stop().await.unwrap();
    });
}

#[test]
fn an_executed_process_dies_with_the_client_that_wanted_it() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        start(&pod, machine.container("one", "sleep 1000")).await;
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let config = ExecConfig { args: vec!["sleep".into(), "2000".into()], ..ExecConfig::default() };
        let process = pod.exec("one", config, ExecStdio::Fds([null(), null(), null()])).await.unwrap();
        let path = format!("/proc/{}", process.pid);
        assert!(Path::new(&path).exists());
        drop(process);
        until("the process is gone", || !Path::new(&path).exists());
        pod.stop().await.unwrap();
    });
}

#[test]
fn who_is_attached_sees_what_is_printed_and_holds_nothing_up() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("attach").await;
        let script = "trap 'go=yes' USR1; cat; echo over >&2; while [ -z $go ]; do sleep 0.01; done; seq 1 200000; echo done; sleep 1000";
        start(&pod, ContainerConfig { stdin: true, ..machine.container("c", script) }).await;
        let attach = async |input| {
            let [out, err] = [(); 2].map(|()| std::io::pipe().unwrap());
            let attached = pod.attach("c", input, [Some(out.1.into()), Some(err.1.into())]).await.unwrap();
            (attached, out.0, err.0)
        };
        let mut buffer = [0; 64];
        let mut read = |pipe: &mut std::io::PipeReader| {
            let length = pipe.read(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let (mut first, mut first_out, _) = attach(AttachInput::Shared).await;
        let (second, mut second_out, mut second_err) = attach(AttachInput::Not).await;
        assert!(second.input.is_none());
        let mut input = File::from(first.input.take().unwrap());
        input.write_all(b"hello\n").unwrap();
        assert_eq!([read(&mut first_out), read(&mut second_out)], ["hello\n", "hello\n"]);
        // Shared input outlives who used it; given input ends with whom it was given to, and is to be had once.
        drop((first, input));
        let (mut third, mut third_out, _err) = attach(AttachInput::Given).await;
        assert!(attach(AttachInput::Shared).await.0.input.is_none());
        let mut input = File::from(third.input.take().unwrap());
        input.write_all(b"again\n").unwrap();
        assert_eq!([read(&mut second_out), read(&mut third_out)], ["again\n", "again\n"]);
        drop(input);
        assert_eq!(read(&mut second_err), "over\n");
        pod.kill("c", libc::SIGUSR1).await.unwrap();
        // Nobody waits for one that does not read: it is sent away. Who was given the input is waited for.
        let error = format!("{:#}", second.wait().await.unwrap_err());
        assert!(error.contains("prints faster than it is read"), "{error}");
        assert!(machine.printed("c", "stdout").len() < 100_000, "it did not wait");
        let mut all = String::new();
        while !all.ends_with("done\n") {
            all += &read(&mut third_out);
        }
        let expected: String = (1..=200_000).map(|number| format!("{number}\n")).chain(["done\n".to_owned()]).collect();
        assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
        assert_eq!(machine.printed("c", "stdout").len(), 200_003);
        drop(third);
        let (last, ..) = attach(AttachInput::Shared).await;
        pod.kill("c", libc::SIGKILL).await.unwrap();
        last.wait().await.unwrap();
        assert!(pod.attach("c", AttachInput::Not, [None, None]).await.is_err());

        // What was printed last is there still when the container is not, more than a pipe holds of itself.
        start(&pod, ContainerConfig { stdin: true, ..machine.container("d", "cat; seq 1 20000") }).await;
        let (out, theirs) = std::io::pipe().unwrap();
        let mut attached = pod.attach("d", AttachInput::Given, [Some(theirs.into()), None]).await.unwrap();
        drop(attached.input.take());
        attached.wait().await.unwrap();
        assert_eq!(std::io::read_to_string(out).unwrap().lines().count(), 20_000);
        // One that leaves without a word is not waited for.
        start(&pod, ContainerConfig { stdin: true, ..machine.container("e", "cat; seq 1 200000; echo done; sleep 1000") }).await;
        let (_out, theirs) = std::io::pipe().unwrap();
        drop(pod.attach("e", AttachInput::Given, [Some(theirs.into()), None]).await.unwrap());
        until("the log is whole", || machine.printed("e", "stdout").last().is_some_and(|line| line == "done"));
        pod.stop().await.unwrap();
    });
}

#[test]
fn terminals_have_a_size_and_a_name_and_are_logged() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let script = "tty; trap 'stty size; exit 2' USR1; echo ready; while :; do sleep 0.01; done";
        start(&pod, ContainerConfig { tty: true, ..machine.container("screen", script) }).await;
        until("the trap is set", || machine.printed("screen", "stdout").iter().any(|line| line.trim() == "ready"));
        pod.resize("screen", 100, 40).await.unwrap();

        let config = ExecConfig { args: ["sh", "-c", "tty; exit 3"].map(String::from).to_vec(), ..ExecConfig::default() };
        let mut process = pod.exec("screen", config, ExecStdio::Terminal).await.unwrap();
        let mut terminal = File::from(process.terminal.take().unwrap());
        assert_eq!(process.wait().await.unwrap(), 3);
        let mut text = [0; 100];
        let length = terminal.read(&mut text).unwrap();
        assert_eq!(&text[..length], b"/dev/pts/1\r\n");

        pod.kill("screen", libc::SIGUSR1).await.unwrap();
        assert_eq!(exited(&pod, "screen").await.code, 2);
        let printed: Vec<_> = machine.printed("screen", "stdout").iter().map(|line| line.trim().to_owned()).collect();
        assert_eq!(printed, ["/dev/pts/0", "ready", "40 100"]);
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_log_grows_no_further_than_its_bound_while_a_container_prints() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let config = ContainerConfig { log_max_bytes: 256 << 10, log_files_max: 3, ..machine.container("one", "seq 1 100000") };
        start(&pod, config).await;
        exited(&pod, "one").await;
        let folder = machine.log("one").parent().unwrap().to_owned();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        for name in names {
            assert!(fs::metadata(folder.join(name)).unwrap().len() <= 256 << 10);
        }
        assert_eq!(machine.printed("one", "stdout").last().unwrap(), "100000");
        pod.stop().await.unwrap();
    });
}

/// Everything on this machine that a pod could leave behind.
fn traces(machine: &Machine) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let name = machine.folder.file_name().unwrap().to_str().unwrap();
    let mut look = |folder: PathBuf| {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                found.insert(entry.path().display().to_string());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
            }
        }
    };
    look(machine.folder.join("run"));
    look(machine.folder.join("writable"));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        look(hierarchy.path().join(name));
    }
    found.extend(fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(name)).map(str::to_owned));
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let cgroups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if cgroups.contains(name) {
            found.insert(process.path().display().to_string());
        }
    }
    found
}

#[test]
fn a_stopped_pod_leaves_no_process_mount_cgroup_or_file() {
    let machine = Machine::new();
    smol::block_on(async {
        machine.pod("warm").await.stop().await.unwrap();
        let before = traces(&machine);
        let pod = machine.pod("a").await;
        start(&pod, machine.container("one", "sleep 1000 & sleep 1000")).await;
        start(&pod, machine.container("two", "exit 1")).await;
        pod.create_container(machine.container("three", "exit 1")).await.unwrap();
        let mut shared = machine.container("four", "sleep 1000");
        shared.spec.linux.as_mut().unwrap().rootfs_propagation = "rshared".into();
        start(&pod, shared).await;
        exited(&pod, "two").await;
        assert!(traces(&machine).len() > before.len() + 10);
        pod.stop().await.unwrap();
        assert_eq!(traces(&machine), before);
        pod.stop().await.unwrap();
        assert!(machine.runtime.pods().await.unwrap().is_empty());
    });
}

#[test]
fn a_removed_container_leaves_only_its_log() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let before = traces(&machine);
        start(&pod, machine.container("runs", "echo hello; sleep 1000")).await;
        pod.create_container(machine.container("waits", "exit 1")).await.unwrap();
        until("it prints", || machine.printed("runs", "stdout") == ["hello"]);
        pod.remove_container("runs").await.unwrap();
        pod.remove_container("waits").await.unwrap();
        assert_eq!(traces(&machine), before);
        assert_eq!(machine.printed("runs", "stdout"), ["hello"]);
        assert!(pod.status().await.unwrap().is_empty());
        // The name is free again.
        start(&pod, machine.container("runs", "exit 0")).await;
        pod.stop().await.unwrap();
    });
}

#[test]
fn a_lost_shim_is_noticed_and_its_pod_can_be_stopped() {
    let machine = Machine::new();
    smol::block_on(async {
        machine.pod("warm").await.stop().await.unwrap();
        let before = traces(&machine);
        let pod = machine.pod("a").await;
        start(&pod, machine.container("ended", "exit 3")).await;
        start(&pod, machine.container("runs", "sleep 1000")).await;
        exited(&pod, "ended").await;
        let mut events = pod.events().await.unwrap();
        assert!(matches!(events.next().await, Event::Exited(_)));
        kill(pod.pid().unwrap());
        assert_eq!(events.next().await, Event::Lost);
        let found = machine.runtime.pods().await.unwrap().pop().unwrap();
        assert!(found.is_lost());
        let codes: Vec<_> = found
            .status()
            .await
            .unwrap()
            .into_iter()
            .map(|status| match status.state {
                ContainerState::Exited(exit) => (status.id, exit.code),
                state => panic!("{state:?}"),
            })
            .collect();
        assert_eq!(codes, [("ended".to_owned(), 3), ("runs".to_owned(), 137)]);
        assert!(found.create_container(machine.container("more", "exit 0")).await.is_err());
        found.stop().await.unwrap();
        assert_eq!(traces(&machine), before);
    });
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[test]
fn an_image_may_have_more_layers_than_fit_into_a_page_of_options() {
    let machine = Machine::new();
    smol::block_on(async {
        let pod = machine.pod("a").await;
        let mut config = machine.container("tall", "ls /etc | busybox wc -l; cat /etc/top");
        let layers: Vec<_> = (0..120).map(|number| machine.folder.join(format!("{number:0>64}"))).collect();
        for (number, layer) in layers.iter().enumerate() {
            fs::create_dir_all(layer.join("etc")).unwrap();
            fs::write(layer.join(format!("etc/{number}")), "").unwrap();
            fs::write(layer.join("etc/top"), format!("{number}\n")).unwrap();
        }
        config.rootfs.lower.splice(0..0, layers);
        start(&pod, config).await;
        assert_eq!(exited(&pod, "tall").await.code, 0);
        assert_eq!(machine.printed("tall", "stdout"), ["121", "0"]);
        pod.stop().await.unwrap();
    });
}

#[test]
fn sysctls_are_the_pods_own_and_a_wrong_one_fails_the_pod() {
    let machine = Machine::new();
    smol::block_on(async {
        let mut config = machine.pod_config("a");
        config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        config.sysctls.insert("kernel.shmmni".into(), "17".into());
        let pod = machine.runtime.run_pod(config).await.unwrap_or_else(|error| panic!("{error:#}"));
        start(&pod, machine.container("one", "sleep 1000")).await;
        let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni";
        assert_eq!(run(&pod, "one", read).await, (0, "0\n17\n".into()));
        assert_ne!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), "17\n");
        pod.stop().await.unwrap();

        let mut config = machine.pod_config("b");
        config.sysctls.insert("net.ipv4.no_such_thing".into(), "1".into());
        let error = machine.runtime.run_pod(config).await.err().unwrap();
        assert!(format!("{error:#}").contains("set net.ipv4.no_such_thing"), "{error:#}");
        assert!(machine.runtime.pods().await.unwrap().is_empty());
    });
}

/// What a pod may cost, in KB.
const BUDGET_KB: u64 = 300;

/// What pods cost, each with one container; `EDGECTL=…/release/edgectl cargo test pods_cost -- --nocapture` prints it.
#[test]
fn pods_cost_at_most_300_kb_of_memory_each() {
    measure(&[1, 10, 100]);
}

/// The program's own pages are mapped by the master, the agent and every shim alike: together they cost what they cost one.
/// A pod adds what its shim has dirtied; how the rest is shared out depends on what else runs just now, so it is printed only.
fn measure(counts: &[usize]) {
    let machine = Machine::new();
    smol::block_on(async {
        let mut pods = Vec::new();
        for count in counts {
            let begun = Instant::now();
            while pods.len() < *count {
                let uid = format!("p{}", pods.len());
                let pod = machine.pod(&uid).await;
                start(&pod, machine.container(&format!("c-{uid}"), "echo up; sleep 1000")).await;
                pods.push(pod);
            }
            let took_ms = begun.elapsed().as_millis();
            let all = |what| pods.iter().map(|pod| memory_kb(pod.pid().unwrap(), what)).sum::<u64>();
            let (total, own, number) = (all("Pss:"), all("Pss_Anon:"), *count as u64);
            println!("{count} pods: {} KB PSS each, {} KB of it their own; {took_ms} ms for the new ones", total / number, own / number);
            assert!(own / number <= BUDGET_KB);
        }
        for pod in pods {
            pod.stop().await.unwrap();
        }
    });
}

fn memory_kb(pid: i32, what: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
