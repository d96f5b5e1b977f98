//! edgectl on boards: qemu boots Debian's own kernels with cgroup v2 and every controller, and `cases` runs in the guest. Here
//! the guest is made, started, and judged by what it says on its serial console. No KVM, so that it is the same everywhere.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Of the emulated machine, from its start to its end; a good run takes a fifth.
const DEADLINE: Duration = Duration::from_secs(600);

/// How many checks `systemd/story` makes.
const STORY_CHECKS: usize = 16;

struct Guest {
    /// As Debian calls it.
    architecture: &'static str,
    /// Of the package linux-image-…
    kernel: &'static str,
    console: &'static str,
    qemu: &'static [&'static str],
}

const AARCH64: Guest = Guest {
    architecture: "arm64",
    kernel: "arm64",
    console: "ttyAMA0",
    qemu: &["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-device", "virtio-blk-device,drive=disk"],
};

const ARMV7: Guest = Guest {
    architecture: "armhf",
    kernel: "armmp",
    console: "ttyAMA0",
    qemu: &["qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15", "-device", "virtio-blk-device,drive=disk"],
};

const X86_64: Guest = Guest {
    architecture: "amd64",
    kernel: "amd64",
    console: "ttyS0",
    qemu: &["qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-device", "virtio-blk-pci,drive=disk"],
};

#[test]
fn every_case_holds_on_aarch64() {
    AARCH64.check(&cross("aarch64-unknown-linux-musl"));
}

#[test]
fn every_case_holds_on_armv7() {
    ARMV7.check(&cross("armv7-unknown-linux-gnueabihf"));
}

#[test]
fn every_case_holds_on_x86_64() {
    X86_64.check(Path::new(env!("CARGO_BIN_EXE_edgectl")));
}

/// Debian with systemd: what a person does there, and what is seen then, stands in `systemd/story`.
#[test]
fn a_board_with_systemd_is_a_master_until_it_is_reset() {
    let [root, layouts, folder] = ["board/systemd-root", "test-images", "board/systemd"].map(|name| tree().join("target").join(name));
    run(Command::new("tests/board/systemd/make").arg(&root));
    run(Command::new("tests/images/make").arg(&layouts));
    let archive = root.join("busybox.tar");
    if !archive.exists() {
        let [from, to] =
            [format!("oci:{}:latest", layouts.join("busybox").display()), format!("docker-archive:{}:busybox:latest", archive.display())];
        run(Command::new("skopeo").args(["copy", "-q", &from, &to]));
    }
    std::fs::copy(tree().join("tests/board/systemd/story"), root.join("story")).unwrap();
    X86_64.make(Path::new(env!("CARGO_BIN_EXE_edgectl")), &folder, Some(&root));
    let said = X86_64.boot(&folder, "boots=/sbin/init systemd.show_status=no", None);
    let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    let is_whole = said.iter().any(|line| line == "the end");
    assert!((count("ok "), count("not ok "), is_whole) == (STORY_CHECKS, 0, true), "{}", said.join("\n"));
}

#[test]
fn boards_of_any_year_join_and_work() {
    let folder = tree().join("target/board/clocks");
    X86_64.make(Path::new(env!("CARGO_BIN_EXE_edgectl")), &folder, None);
    let wire = Wire::new();
    let said = thread::scope(|scope| {
        let boot = |role| {
            let (folder, wire) = (&folder, &wire);
            scope.spawn(move || X86_64.boot(folder, &format!("script=/clocks role={role}"), Some(wire)))
        };
        // All are joined before one of them is judged: a guest that did not end is a panic in its thread.
        ["master", "past", "future"].map(boot).map(|guest| guest.join())
    });
    let [master, past, future] = said.map(Result::unwrap);
    judge("clocks", &master);
    for (year, board) in [("1970", past), ("2040", future)] {
        let joined = board.iter().any(|line| *line == format!("joined in {year}"));
        assert!(joined && board.last().is_some_and(|line| line == "end"), "the board of {year}:\n{}", board.join("\n"));
    }
}

fn run(command: &mut Command) {
    let output = command.current_dir(tree()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The program for another machine. Not as it is released: that takes longer than all the cases together.
fn cross(target: &str) -> PathBuf {
    let output = Command::new("cross/build").args([target, "dev"]).current_dir(tree()).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "cross/build {target}: {}\n{said}", output.status);
    tree().join(said.split(' ').next().unwrap())
}

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A network of three machines and nobody else: multicast in a namespace of its own.
struct Wire(Machine);

impl Wire {
    fn new() -> Self {
        let script = "ip link set lo up multicast on && ip route add 224.0.0.0/4 dev lo && echo && exec sleep 3600";
        let mut process = Command::new("unshare").args(["-n", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        // It is there once the shell in it speaks.
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(Machine(process))
    }

    fn pid(&self) -> String {
        self.0.0.id().to_string()
    }
}

/// Each of the cases held, and none is missing.
fn judge(what: &str, said: &[String]) {
    let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    let cases = said.iter().find_map(|line| line.strip_prefix("cases ")?.parse::<usize>().ok());
    let held = count("ok ") == cases.unwrap_or(0) && count("not ok ") == 0;
    assert!(cases.is_some() && held && said.last().is_some_and(|line| line == "end"), "on {what}:\n{}", said.join("\n"));
}

impl Guest {
    /// Boots the guest with the program and demands that each of its cases held.
    fn check(&self, program: &Path) {
        let folder = tree().join("target/board").join(self.architecture);
        self.make(program, &folder, None);
        judge(self.architecture, &self.boot(&folder, "script=/cases", None));
    }

    /// What the guest boots from; `root` is what its disk holds, if not busybox and the scripts.
    fn make(&self, program: &Path, folder: &Path, root: Option<&Path>) {
        run(Command::new("tests/board/make").args([self.architecture, self.kernel]).args([program, folder]).args(root));
    }

    /// What the guest says, line by line, until it has powered off. The disk is left as it was. `environment` is that of its script.
    fn boot(&self, folder: &Path, environment: &str, wire: Option<&Wire>) -> Vec<String> {
        let path = |name: &str| folder.join(name).display().to_string();
        let (mut command, role) = match wire {
            None => (Command::new(self.qemu[0]), self.architecture),
            Some(wire) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &wire.pid(), "-n", self.qemu[0]]);
                (command, environment.rsplit('=').next().unwrap())
            }
        };
        command.args(&self.qemu[1..]);
        command.args(["-accel", "tcg", "-smp", "2", "-m", "1024", "-no-reboot", "-snapshot"]);
        if wire.is_some() {
            // Each machine needs an address of its own on the wire.
            let address = role.bytes().fold(0u8, u8::wrapping_add);
            command.args(["-netdev", "socket,id=wire,mcast=230.0.0.1:9000,localaddr=127.0.0.1"]);
            command.args(["-device", &format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:{address:02x}")]);
        } else {
            command.args(["-nic", "none"]);
        }
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-drive", &format!("if=none,id=disk,format=raw,file={}", path("disk"))]);
        command.args(["-kernel", &path("kernel"), "-initrd", &path("initramfs")]);
        command.args(["-append", &format!("console={} loglevel=3 panic=-1 {environment}", self.console)]);
        let mut machine = Machine(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let console = BufReader::new(machine.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                // Nobody listens any more after the deadline.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        let (mut said, until) = (Vec::new(), Instant::now() + DEADLINE);
        loop {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("reboot: Power down") => {}
                Ok(line) => {
                    println!("{role}: {line}");
                    said.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => return said,
                Err(RecvTimeoutError::Timeout) => panic!("{role}: not within {DEADLINE:?}:\n{}", said.join("\n")),
            }
        }
    }
}

/// A running emulator, which ends with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // That it has ended by itself is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
