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
    run(Command::new("tests/board/make").args([X86_64.architecture, X86_64.kernel, env!("CARGO_BIN_EXE_edgectl")]).args([&folder, &root]));
    let said = X86_64.boot(&folder, "boots=/sbin/init systemd.show_status=no");
    let console = said.join("\n");
    let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    assert!((count("ok "), count("not ok "), said.iter().any(|line| line == "the end")) == (STORY_CHECKS, 0, true), "{console}");
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

impl Guest {
    /// Boots the guest with the program and demands that each of its cases held, and that none is missing.
    fn check(&self, program: &Path) {
        let folder = tree().join("target/board").join(self.architecture);
        run(Command::new("tests/board/make").args([self.architecture, self.kernel]).args([program, &folder]));
        let said = self.boot(&folder, "");
        let console = said.join("\n");
        let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
        let cases = said.iter().find_map(|line| line.strip_prefix("cases ")?.parse::<usize>().ok());
        let held = count("ok ") == cases.unwrap_or(0) && count("not ok ") == 0;
        assert!(cases.is_some() && held && said.last().is_some_and(|line| line == "end"), "on {}:\n{console}", self.architecture);
    }

    /// What the guest says, line by line, until it has powered off. `more` goes onto the kernel's command line.
    fn boot(&self, folder: &Path, more: &str) -> Vec<String> {
        let path = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new(self.qemu[0]);
        command.args(&self.qemu[1..]);
        command.args(["-accel", "tcg", "-smp", "2", "-m", "1024", "-nic", "none", "-no-reboot"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-drive", &format!("if=none,id=disk,format=raw,file={}", path("disk"))]);
        command.args(["-kernel", &path("kernel"), "-initrd", &path("initramfs")]);
        command.args(["-append", &format!("console={} loglevel=3 panic=-1 {more}", self.console)]);
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
                    println!("{}: {line}", self.architecture);
                    said.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => return said,
                Err(RecvTimeoutError::Timeout) => panic!("{}: not within {DEADLINE:?}:\n{}", self.architecture, said.join("\n")),
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
