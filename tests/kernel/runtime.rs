//! Containers made by the built program from bundles of busybox, judged from inside by busybox itself, from outside by /proc and
//! the cgroup files, and against runc on the same bundle. Every bundle ends by showing that nothing of it is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A folder with a root file system of busybox, a config.json, and the state of its containers.
struct Bundle {
    folder: PathBuf,
    id: String,
}

impl Bundle {
    /// `args` run with the mounts, namespaces and paths that `edgectl runtime spec` writes; `change` the rest.
    fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let id = format!("edge-test-{}-{}", std::process::id(), next());
        let folder = std::env::temp_dir().join(&id);
        fs::create_dir_all(folder.join("rootfs/bin")).unwrap();
        for name in ["etc", "tmp", "data", "proc", "sys", "dev"] {
            fs::create_dir(folder.join("rootfs").join(name)).unwrap();
        }
        fs::copy(BUSYBOX, folder.join("rootfs/bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "ls", "sleep", "grep", "id", "mount", "true", "touch", "mknod", "dd", "stat", "readlink", "head", "tty", "echo",
            "hostname",
        ] {
            symlink("busybox", folder.join("rootfs/bin").join(name)).unwrap();
        }
        let bundle = Self { folder, id };
        ok(Command::new(edgectl()).args(["runtime", "spec", "--bundle"]).arg(&bundle.folder));
        bundle.change(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(args);
            spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
            change(spec);
        });
        bundle
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.folder.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        fs::write(&path, serde_json::to_vec_pretty(&spec).unwrap()).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(edgectl());
        command.arg("runtime").arg("--root").arg(self.folder.join("state")).args(words).current_dir(&self.folder);
        command.stdin(Stdio::null());
        command
    }

    /// The output of the container's program, which has to succeed.
    fn run(&self) -> String {
        ok(&mut self.command(&["run", &self.id]))
    }

    fn state(&self) -> Value {
        serde_json::from_str(&ok(&mut self.command(&["state", &self.id]))).unwrap()
    }

    fn do_it(&self, verb: &[&str], rest: &[&str]) -> String {
        let words: Vec<&str> = verb.iter().copied().chain([self.id.as_str()]).chain(rest.iter().copied()).collect();
        ok(&mut self.command(&words))
    }

    /// `create` or `run --detach`, whose container would keep a pipe of ours open as long as it lives.
    fn left_behind(&self, verb: &[&str]) {
        let mut command = self.command(verb);
        let status = command.arg(&self.id).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}: {status}");
    }

    fn refused(&self, verb: &[&str], rest: &[&str]) -> String {
        let words: Vec<&str> = verb.iter().copied().chain([self.id.as_str()]).chain(rest.iter().copied()).collect();
        let output = self.command(&words).output().unwrap();
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let cgroups = mounts.lines().filter(|line| line.contains(" cgroup")).filter_map(|line| line.split(' ').nth(1));
        cgroups.map(|mount| Path::new(mount).join(&self.id)).filter(|path| path.exists()).collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.command(&["delete", "--force", &self.id]).output();
        } else {
            assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
            let states = fs::read_dir(self.folder.join("state")).into_iter().flatten().count();
            assert_eq!(states, 0, "a state is left");
            assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&self.id), "a mount is left");
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn edgectl() -> &'static str {
    env!("CARGO_BIN_EXE_edgectl")
}

/// Different in every call of this process.
fn next() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

#[test]
fn a_container_goes_from_created_to_running_to_stopped_to_gone() {
    let bundle = Bundle::new(SLEEP, |_| {});
    bundle.left_behind(&["create", "--pid-file", "pid"]);
    let created = bundle.state();
    assert_eq!(created["status"], "created");
    assert_eq!(created["pid"].to_string(), fs::read_to_string(bundle.folder.join("pid")).unwrap());
    assert!(bundle.refused(&["create"], &[]).contains("exists already"));
    assert!(bundle.refused(&["delete"], &[]).contains("not stopped"));
    bundle.do_it(&["start"], &[]);
    assert_eq!(bundle.state()["status"], "running");
    assert!(bundle.refused(&["start"], &[]).contains("not created"));
    assert!(fs::read_to_string(format!("/proc/{}/cmdline", created["pid"])).unwrap().starts_with("/bin/sleep\0"));
    bundle.do_it(&["pause"], &[]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.do_it(&["resume"], &[]);
    bundle.do_it(&["kill"], &["KILL"]);
    wait_until("stopped", || bundle.state()["status"] == "stopped");
    assert!(bundle.refused(&["kill"], &["KILL"]).contains("not running"));
    bundle.do_it(&["delete"], &[]);
    assert!(bundle.refused(&["state"], &[]).contains("does not exist"));
}

#[test]
fn the_exit_code_is_the_programs_or_tells_its_signal() {
    let bundle = Bundle::new(&["/bin/sh", "-c", "exit 42"], |_| {});
    assert_eq!(bundle.command(&["run", &bundle.id]).status().unwrap().code(), Some(42));
    bundle.change(|spec| spec["process"]["args"] = json!(["/bin/sh", "-c", "kill -9 $$; exit 3"]));
    // The first process of a PID namespace cannot be killed from inside.
    assert_eq!(bundle.command(&["run", &bundle.id]).status().unwrap().code(), Some(3));
    bundle.change(|spec| spec["process"]["args"] = json!(["/no/such/program"]));
    assert!(bundle.refused(&["run"], &[]).contains("/no/such/program"));
}

#[test]
fn exec_runs_in_the_containers_namespaces_and_cgroup_and_ends_as_its_program_does() {
    let bundle = Bundle::new(SLEEP, |_| {});
    bundle.left_behind(&["run", "--detach"]);
    let pid = bundle.state()["pid"].to_string();
    let links = bundle.do_it(&["exec"], &["sh", "-c", "cd /proc/self/ns; for i in *; do readlink $i; done"]);
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let wanted = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert!(links.contains(wanted.to_str().unwrap()), "{name} of {links}");
    }
    let cgroups = bundle.do_it(&["exec"], &["cat", "/proc/self/cgroup"]);
    let controllers = cgroups.lines().filter(|line| !line.starts_with("0::"));
    assert!(controllers.into_iter().all(|line| line.ends_with(":/")), "{cgroups}");
    let failed = bundle.command(&["exec", &bundle.id, "sh", "-c", "exit 7"]).status().unwrap();
    assert_eq!(failed.code(), Some(7));
    assert!(bundle.refused(&["exec"], &["no-such-program"]).contains("not found in $PATH"));
    bundle.do_it(&["delete", "--force"], &[]);
}

#[test]
fn capabilities_user_and_no_new_privileges_are_as_the_spec_says() {
    let bundle = Bundle::new(&["/bin/grep", "-E", "^(Cap|NoNew|Seccomp:|Uid|Gid|Groups)", "/proc/self/status"], |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
        let two = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
        spec["process"]["capabilities"] =
            json!({"bounding": two, "permitted": two, "effective": two, "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    });
    let seen = bundle.run();
    let field = |name: &str| {
        let line = seen.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {seen}"));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "1000 1000 1000 1000");
    assert_eq!(field("Gid:"), "1001 1001 1001 1001");
    assert_eq!(field("Groups:"), "5 6");
    assert_eq!(field("CapBnd:"), "0000000000000420");
    assert_eq!(field("CapInh:"), "0000000000000020");
    assert_eq!(field("CapAmb:"), "0000000000000020");
    // A user other than root keeps what is ambient.
    assert_eq!(field("CapPrm:"), "0000000000000020");
    assert_eq!(field("CapEff:"), "0000000000000020");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
}

#[test]
fn the_default_filter_forbids_new_namespaces_and_mounts_and_lets_programs_work() {
    let script = "busybox unshare -m true && echo unshared; mount -t tmpfs x /tmp && echo mounted; busybox chroot / true && echo chrooted; \
                  for i in 1 2 3; do (true) | cat; done; echo worked";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        // Without no_new_privs the filter has to be installed while the right to do so is still there.
        spec["process"]["noNewPrivileges"] = json!(false);
    });
    assert_eq!(bundle.run(), "chrooted\nworked\n");
}

#[test]
fn masked_paths_hide_and_read_only_paths_refuse() {
    let script = "head -c1 /proc/kcore | busybox wc -c; ls /sys/firmware | busybox wc -l; touch /masked-folder/x 2>/dev/null || echo refused; \
                  cat /masked-file; echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo read-only";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        let masked = spec["linux"]["maskedPaths"].as_array_mut().unwrap();
        masked.extend([json!("/masked-folder"), json!("/masked-file"), json!("/not/there")]);
    });
    fs::create_dir(bundle.folder.join("rootfs/masked-folder")).unwrap();
    fs::write(bundle.folder.join("rootfs/masked-folder/secret"), "x").unwrap();
    fs::write(bundle.folder.join("rootfs/masked-file"), "secret").unwrap();
    assert_eq!(bundle.run(), "0\n0\nrefused\nread-only\n");
}

/// CVE-2019-16884, CVE-2021-30465, CVE-2025-31133 and their kin: an image that puts links where the runtime mounts or masks.
#[test]
fn links_in_an_image_lead_nowhere_outside() {
    let outside = std::env::temp_dir().join(format!("edge-outside-{}", std::process::id()));
    fs::create_dir_all(&outside).unwrap();
    let bundle = Bundle::new(&["/bin/true"], |spec| {
        spec["root"]["readonly"] = json!(false);
        spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/link/deep", "type": "tmpfs", "source": "tmpfs"}));
    });
    symlink(&outside, bundle.folder.join("rootfs/link")).unwrap();
    bundle.run();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    fs::remove_dir(&outside).unwrap();
    bundle.change(|spec| spec["linux"]["maskedPaths"] = json!(["/masked-link"]));
    symlink("/proc/self/status", bundle.folder.join("rootfs/masked-link")).unwrap();
    assert!(bundle.refused(&["run"], &[]).contains("mask /masked-link"));
    bundle.change(|spec| spec["linux"]["maskedPaths"] = json!([]));
    let _ = fs::remove_dir(bundle.folder.join("rootfs/proc"));
    symlink("/tmp", bundle.folder.join("rootfs/proc")).unwrap();
    assert!(bundle.refused(&["run"], &[]).contains("symbolic link"));
}

/// CVE-2024-21626: no descriptor of the host's is left for the container, and none can be its working directory.
#[test]
fn no_descriptor_of_the_host_is_left() {
    let bundle = Bundle::new(&["/bin/ls", "-l", "/proc/self/fd"], |_| {});
    let seen = bundle.run();
    let left: Vec<_> = seen
        .lines()
        .filter(|line| line.contains("->") && !["0", "1", "2"].iter().any(|number| line.contains(&format!(" {number} ->"))))
        .collect();
    // The folder that ls itself has open is gone when it looks: it has no link text.
    let left: Vec<_> = left.into_iter().filter(|line| !line.ends_with("/fd")).collect();
    assert_eq!(left, Vec::<&str>::new());
    for number in 3..12 {
        bundle.change(|spec| spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}")));
        bundle.refused(&["run"], &[]);
    }
}

/// CVE-2019-5736: the runtime's own program, which a container can make it execute, cannot be written from there.
#[test]
fn the_runtimes_own_program_cannot_be_overwritten() {
    let bundle = Bundle::new(&["/proc/self/exe", "runtime", "features"], |spec| spec["root"]["readonly"] = json!(false));
    // It may or may not execute; but what it is, is on a read-only mount.
    let _ = bundle.command(&["run", &bundle.id]).output().unwrap();
    bundle.change(|spec| spec["process"]["args"] = json!(SLEEP));
    bundle.left_behind(&["create"]);
    let pid = bundle.state()["pid"].to_string();
    let seen = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
    assert!(seen.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{:?}", seen.f_flag);
    bundle.do_it(&["delete", "--force"], &[]);
}

#[test]
fn a_read_only_root_refuses_and_a_bound_folder_keeps_its_own_mode() {
    let script = "touch /x 2>/dev/null || echo root; touch /data/x && echo data; touch /fixed/x 2>/dev/null || echo fixed";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        spec["mounts"].as_array_mut().unwrap().extend([
            json!({"destination": "/data", "type": "bind", "source": "volume", "options": ["bind"]}),
            json!({"destination": "/fixed", "type": "bind", "source": "volume", "options": ["rbind", "rro"]}),
        ]);
    });
    fs::create_dir(bundle.folder.join("rootfs/fixed")).unwrap();
    fs::create_dir(bundle.folder.join("volume")).unwrap();
    assert_eq!(bundle.run(), "root\ndata\nfixed\n");
    assert!(bundle.folder.join("volume/x").exists());
}

#[test]
fn a_new_tmpfs_starts_with_what_it_hides_if_asked() {
    let bundle = Bundle::new(&["/bin/sh", "-c", "cat /data/deep/file; stat -c %a:%u /data/deep/file; readlink /data/link"], |spec| {
        let options = json!(["tmpcopyup", "mode=755"]);
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": options}));
    });
    let data = bundle.folder.join("rootfs/data");
    fs::create_dir(data.join("deep")).unwrap();
    fs::write(data.join("deep/file"), "content\n").unwrap();
    std::os::unix::fs::chown(data.join("deep/file"), Some(33), Some(33)).unwrap();
    symlink("deep", data.join("link")).unwrap();
    assert_eq!(bundle.run(), "content\n644:33\ndeep\n");
}

#[test]
fn limits_are_in_the_cgroup_and_can_be_changed() {
    let bundle = Bundle::new(SLEEP, |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 77});
        spec["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100000});
    });
    bundle.left_behind(&["run", "--detach"]);
    let cgroups = bundle.cgroups();
    let read = |names: &[&str]| {
        let found = cgroups
            .iter()
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
            .find_map(|path| fs::read_to_string(path).ok());
        found.unwrap_or_else(|| panic!("none of {names:?} in {cgroups:?}")).trim().to_owned()
    };
    assert_eq!(read(&["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    assert_eq!(read(&["pids.max"]), "77");
    assert!(["50000", "50000 100000"].contains(&read(&["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    bundle.do_it(&["update", "--memory", "33554432", "--pids-limit", "99"], &[]);
    assert_eq!(read(&["memory.limit_in_bytes", "memory.max"]), (32 << 20).to_string());
    assert_eq!(read(&["pids.max"]), "99");
    bundle.do_it(&["delete", "--force"], &[]);
}

#[test]
fn devices_outside_the_rules_cannot_be_used() {
    // Made by hand inside, which the default rules allow; its use they do not.
    let script = "mknod /dev/disk b 254 0 && dd if=/dev/disk of=/dev/null bs=1 count=1 2>/dev/null || echo refused; head -c1 /dev/zero | busybox wc -c";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        let more = json!("CAP_MKNOD");
        for set in ["bounding", "permitted", "effective"] {
            spec["process"]["capabilities"][set].as_array_mut().unwrap().push(more.clone());
        }
    });
    assert_eq!(bundle.run(), "refused\n1\n");
}

/// In a mount namespace where v2 is all there is, whatever this machine has: the device program and the cgroup one is born in.
#[test]
fn on_cgroup_v2_containers_are_born_in_their_cgroup_and_devices_are_filtered() {
    let script = "mknod /dev/disk b 254 0 && dd if=/dev/disk of=/dev/null bs=1 count=1 2>/dev/null || echo refused; head -c1 /dev/zero | busybox wc -c; \
                  grep ^0:: /proc/self/cgroup; ls -d /sys/fs/cgroup/cgroup.procs";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        for set in ["bounding", "permitted", "effective"] {
            spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        }
    });
    let inner = bundle.command(&["run", &bundle.id]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(&bundle.folder);
    assert_eq!(ok(&mut command), "refused\n1\n0::/\n/sys/fs/cgroup/cgroup.procs\n");
}

#[test]
fn hooks_run_at_their_places_with_the_state_on_their_input() {
    let bundle = Bundle::new(&["/bin/true"], |_| {});
    let log = bundle.folder.join("log");
    let hook = |name: &str| {
        let script = format!("busybox echo {name} $(busybox grep -o '\"status\":\"[a-z]*\"') >> {}", log.display());
        json!([{"path": BUSYBOX, "args": ["sh", "-c", script], "env": ["PATH=/bin"]}])
    };
    let inside = json!([{"path": "/bin/busybox", "args": ["sh", "-c", "echo startContainer > /data/log"]}]);
    bundle.change(|spec| {
        spec["root"]["readonly"] = json!(false);
        spec["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "startContainer": inside, "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    bundle.left_behind(&["create"]);
    assert!(!bundle.folder.join("rootfs/data/log").exists());
    bundle.do_it(&["start"], &[]);
    wait_until("stopped", || bundle.state()["status"] == "stopped");
    bundle.do_it(&["delete"], &[]);
    let seen = fs::read_to_string(&log).unwrap();
    let wanted = ["prestart creating", "createRuntime creating", "createContainer creating", "poststart running", "poststop stopped"];
    let seen: Vec<_> = seen.lines().map(|line| line.replace("\"status\":", "").replace('"', "")).collect();
    assert_eq!(seen, wanted);
    assert_eq!(fs::read_to_string(bundle.folder.join("rootfs/data/log")).unwrap(), "startContainer\n");
    bundle.change(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]}));
    assert!(bundle.refused(&["create"], &[]).contains("createRuntime"));
}

#[test]
fn a_user_namespace_maps_root_to_somebody_else() {
    let script = "id -u; cat /proc/self/uid_map; echo x > /dev/null && stat -c %u /dev/shm /dev";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
    });
    let seen = bundle.run();
    let words: Vec<_> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "0", "0"]);
}

#[test]
fn namespaces_of_another_container_can_be_joined() {
    let first = Bundle::new(SLEEP, |spec| spec["hostname"] = json!("first"));
    first.left_behind(&["run", "--detach"]);
    let pid = first.state()["pid"].to_string();
    let second = Bundle::new(
        &["/bin/sh", "-c", "hostname; for i in net pid ipc uts; do readlink /proc/self/ns/$i; done; cat /proc/1/cmdline"],
        |spec| {
            spec.as_object_mut().unwrap().remove("hostname");
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                let file = match namespace["type"].as_str().unwrap() {
                    "network" => "net",
                    name @ ("pid" | "ipc" | "uts") => name,
                    _ => continue,
                };
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        },
    );
    let seen = second.run();
    let links: String = ["net", "pid", "ipc", "uts"]
        .map(|name| format!("{}\n", fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display()))
        .concat();
    assert_eq!(seen, format!("first\n{links}/bin/sleep\0{}\0", "1000"));
    first.do_it(&["delete", "--force"], &[]);
}

#[test]
fn a_terminal_is_the_containers_own_and_its_console() {
    let bundle = Bundle::new(&["/bin/sh", "-c", "tty; test -c /dev/console && tty < /dev/console; stat -c %u /dev/pts/0"], |spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["user"]["uid"] = json!(7);
    });
    let seen = bundle.run();
    assert_eq!(seen.replace('\r', ""), "/dev/pts/0\n/dev/console\n7\n");
}

#[test]
fn mounts_and_capabilities_are_those_that_runc_makes_of_the_same_bundle() {
    // runc knows neither the default filter by our name, nor hybrid cgroups the way this machine may have them.
    let script = "cat /proc/self/mountinfo; grep -E '^(Cap|NoNew)' /proc/self/status; ls -l /dev";
    let bundle = Bundle::new(&["/bin/sh", "-c", script], |spec| {
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    });
    let ours = summary(&bundle.run());
    let root = bundle.folder.join("runc");
    let runc = Command::new("runc")
        .arg("--root")
        .arg(&root)
        .args(["run", &format!("{}-runc", bundle.id)])
        .current_dir(&bundle.folder)
        .output()
        .unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert!(runc.status.success(), "{}", String::from_utf8_lossy(&runc.stderr));
    assert_eq!(ours, summary(&String::from_utf8(runc.stdout).unwrap()));
}

/// Where what is mounted how, sorted; the rest of the lines without dates.
fn summary(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("total"))
        .map(|line| match line.split_once(" - ") {
            Some((mount, filesystem)) => {
                let fields: Vec<_> = mount.split(' ').collect();
                let kind = filesystem.split(' ').next().unwrap_or_default();
                // What hides a path is a tmpfs or a /dev/null of somebody's: how it is mounted does not matter.
                let hidden = ["/proc/", "/sys/"].iter().any(|folder| fields[4].starts_with(folder)) && kind.ends_with("tmpfs");
                if hidden { format!("{} hidden", fields[4]) } else { format!("{} {} {kind}", fields[4], fields[5]) }
            }
            None => {
                let fields: Vec<_> = line.split_whitespace().collect();
                if fields.len() > 8 {
                    [&fields[..5], &fields[fields.len() - 3..]].concat().join(" ").replace(char::is_numeric, "")
                } else {
                    fields.join(" ")
                }
            }
        })
        .collect();
    lines.sort_unstable();
    lines
}
