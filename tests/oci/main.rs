//! The public judge of OCI runtimes, opencontainers/runtime-tools, on `edge-runtime`. What it finds wrong with us it must find wrong
//! with runc as well, in the same run on the same machine, or it stands below with the reason. They need root, runc and Go.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The suite as of 2022-11-07, the newest that Debian 12's Go builds.
const SUITE: &str = "github.com/opencontainers/runtime-tools";
const VERSION: &str = "v0.9.1-0.20221107090550-2e043c6bd626";
/// Most of its time a program waits; two are worked on at a time by each processor.
const WORKERS: usize = 4;
/// The suite signals shells that may not have set their traps yet, and looks for files that may not be there yet: what is wrong is
/// wrong each time.
const ATTEMPTS: usize = 3;
/// The slowest waits for ten seconds twice.
const SECONDS_MAX: &str = "90";

/// What is meant to be so: program, the beginning of what it says, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("linux_ns_itype", "cannot run validation tests", "a container without a mount namespace of its own is refused"),
    ("linux_ns_path", "set mnt namespace by path", "a mount namespace that is joined is taken as it is: its root is that of others, too"),
    (
        "mounts",
        "mounts[9] (/mnt/etc-shared) found in order",
        "the kernel lists mounts in the order in which they were opened, shared ones first",
    ),
    ("mounts", "mounts[10] (/mnt/etc-rshared) found in order", "the same"),
];

/// What a program said: its checks that passed, and those that did not; a program that broke off is one more.
#[derive(Debug, Default)]
struct Verdict {
    passed: usize,
    failed: BTreeSet<String>,
}

const BROKE_OFF: &str = "the program broke off";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/oci")
}

/// Where the programs make their bundles, and leave some.
fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("edgectl-oci-{}", std::process::id()))
}

/// Builds the suite once; answers its programs.
fn programs() -> Vec<String> {
    let folder = folder();
    let bin = folder.join(VERSION);
    if !bin.join("runtimetest").exists() {
        let wanted = ["validation/...", "cmd/runtimetest"].map(|path| format!("{SUITE}/{path}@{VERSION}"));
        // Static: its inner half runs where there is no loader.
        let built =
            Command::new("go").arg("install").args(wanted).env("GOBIN", &bin).env("CGO_ENABLED", "0").env_remove("GOFLAGS").status();
        assert!(built.unwrap().success(), "go install of the suite");
    }
    let said = Command::new("go").args(["env", "GOMODCACHE"]).output().unwrap();
    let source = Path::new(String::from_utf8(said.stdout).unwrap().trim()).join(format!("{SUITE}@{VERSION}"));
    let place = folder.join("place");
    fs::create_dir_all(&place).unwrap();
    for (from, name) in [(source.join("rootfs-amd64.tar.gz"), "rootfs-amd64.tar.gz"), (bin.join("runtimetest"), "runtimetest")] {
        fs::copy(from, place.join(name)).unwrap();
    }
    // State goes where it is taken away after the run.
    for (name, program) in [("edge-runtime", env!("CARGO_BIN_EXE_edgectl")), ("runc", "$(command -v runc)")] {
        let script = format!("#!/bin/bash\nexec -a {name} {program} --root \"$TMPDIR/{name}\" \"$@\"\n");
        fs::write(place.join(name), script).unwrap();
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let entries = fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut programs: Vec<String> = entries.filter(|name| name != "runtimetest").collect();
    programs.sort();
    programs
}

fn judge(program: &str, runtime: &Path) -> Verdict {
    // What a runtime leaves mounted or running is gone with the program's own namespaces.
    let output = Command::new("unshare")
        .args(["--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "timeout", "-k", "5", SECONDS_MAX])
        .arg(folder().join(VERSION).join(program))
        .current_dir(folder().join("place"))
        .env("RUNTIME", runtime)
        .env("TMPDIR", scratch())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let mut verdict = Verdict::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // `ok 3 - what was checked`, testanything.org.
        let (is_ok, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let what = rest.split_once(" - ").map_or(rest, |(_, what)| what);
        match is_ok {
            // What the container's configuration says nothing of.
            true if rest.contains("# SKIP") => (),
            true => verdict.passed += 1,
            false => drop(verdict.failed.insert(what.to_owned())),
        }
    }
    if !output.status.success() {
        verdict.failed.insert(BROKE_OFF.to_owned());
    }
    verdict
}

/// What is wrong with us alone.
fn faults(program: &str, ours: &Verdict, runc: &Verdict) -> Vec<String> {
    let is_excused = |what: &&String| {
        let is_meant = DIFFERENCES.iter().any(|(name, beginning, _)| *name == program && what.starts_with(beginning));
        // Where it broke off with runc, or came to nothing, nothing is known of the rest.
        is_meant || runc.failed.contains(*what) || runc.failed.contains(BROKE_OFF) || runc.passed == 0
    };
    ours.failed.iter().filter(|what| !is_excused(what)).map(|what| format!("{program}: {what}")).collect()
}

#[test]
fn the_public_suite_finds_nothing_wrong_that_it_does_not_find_with_runc() {
    let programs = programs();
    assert!(programs.len() > 50, "the suite is there: {programs:?}");
    let [ours, runc] = ["edge-runtime", "runc"].map(|name| folder().join("place").join(name));
    // All of these make the same cgroup.
    let (cgroups, others): (Vec<_>, Vec<_>) = programs.iter().partition(|name| name.starts_with("linux_cgroups_"));
    let jobs: Vec<Vec<&String>> = [cgroups].into_iter().chain(others.into_iter().map(|program| vec![program])).collect();
    fs::create_dir_all(scratch()).unwrap();
    let next = AtomicUsize::new(0);
    let (found, passed, as_runc) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                for program in std::iter::from_fn(|| jobs.get(next.fetch_add(1, Ordering::Relaxed))).flatten() {
                    let verdict = judge(program, &ours);
                    passed.fetch_add(verdict.passed, Ordering::Relaxed);
                    if verdict.failed.is_empty() {
                        continue;
                    }
                    let runc = judge(program, &runc);
                    let mut faults = faults(program, &verdict, &runc);
                    as_runc.fetch_add(verdict.failed.len() - faults.len(), Ordering::Relaxed);
                    for _ in 1..ATTEMPTS {
                        if !faults.is_empty() {
                            let again = self::faults(program, &judge(program, &ours), &runc);
                            faults.retain(|fault| again.contains(fault));
                        }
                    }
                    found.lock().unwrap().extend(faults);
                }
            });
        }
    });
    fs::remove_dir_all(scratch()).unwrap();
    println!("{} programs: {passed:?} checks passed; {as_runc:?} fail with runc as well or are meant to differ", programs.len());
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "{found:#?}");
    assert!(passed.into_inner() > 3000, "hardly anything was checked");
}
