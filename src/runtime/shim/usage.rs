//! What the processes of a cgroup have used, and whether the kernel had to kill one for its memory, from the files of v1 or v2.
//! It reads only, and a controller that is not there counts as nothing used.

use std::fs;
use std::path::Path;

use crate::runtime::cgroup::Cgroup;

#[cfg(test)]
/// Since the cgroup was made, or now, as the name says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    /// `memory_bytes` without the file pages that the kernel could drop at once: what Kubernetes calls the working set.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub resident_bytes: u64,
    pub processes: u64,
}

#[cfg(test)]
pub fn usage(cgroup: &Cgroup) -> Usage {
    let memory = cgroup.folder("memory").unwrap_or(Path::new(""));
    let processes = cgroup.folder("pids").and_then(|folder| number(&folder.join("pids.current"))).unwrap_or(0);
    let (cpu_nanoseconds, memory_bytes, inactive, resident) = match cgroup {
        Cgroup::V2(folder) => (
            field(&folder.join("cpu.stat"), "usage_usec").map(|micros| micros * 1000),
            number(&memory.join("memory.current")),
            field(&memory.join("memory.stat"), "inactive_file"),
            field(&memory.join("memory.stat"), "anon"),
        ),
        Cgroup::V1(_) => (
            cgroup.folder("cpuacct").and_then(|folder| number(&folder.join("cpuacct.usage"))),
            number(&memory.join("memory.usage_in_bytes")),
            field(&memory.join("memory.stat"), "total_inactive_file"),
            field(&memory.join("memory.stat"), "total_rss"),
        ),
    };
    let memory_bytes = memory_bytes.unwrap_or(0);
    Usage {
        cpu_nanoseconds: cpu_nanoseconds.unwrap_or(0),
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(inactive.unwrap_or(0)),
        resident_bytes: resident.unwrap_or(0),
        processes,
    }
}

/// How many processes of the cgroup the kernel has killed because the memory limit was reached: memory.events of v2, on v1 memory.oom_control (Linux 4.13).
pub fn oom_kills(cgroup: &Cgroup) -> u64 {
    let Some(memory) = cgroup.folder("memory") else { return 0 };
    let file = match cgroup {
        Cgroup::V2(_) => "memory.events",
        Cgroup::V1(_) => "memory.oom_control",
    };
    field(&memory.join(file), "oom_kill").unwrap_or(0)
}

#[cfg(test)]
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value of `name` in a file of lines `name value`.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cgroup::Hierarchy;

    fn folder(files: &[(&str, &str)]) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("edgectl-usage-{}", crate::base::id::uid()));
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn usage_is_read_from_the_files_of_v2() {
        let folder = folder(&[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 300\nfile 700\ninactive_file 400\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("pids.current", "3\n"),
        ]);
        let cgroup = Cgroup::V2(folder.clone());
        let expected = Usage { cpu_nanoseconds: 1_500_000, memory_bytes: 1000, working_set_bytes: 600, resident_bytes: 300, processes: 3 };
        assert_eq!((usage(&cgroup), oom_kills(&cgroup)), (expected, 1));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn usage_is_read_from_the_files_of_v1() {
        let folder = folder(&[
            ("cpuacct.usage", "1500\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.stat", "rss 1\ntotal_rss 300\ntotal_inactive_file 400\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ]);
        let hierarchy = Hierarchy { controllers: vec!["memory".into(), "cpuacct".into()], mount: "/".into(), path: folder.clone() };
        let cgroup = Cgroup::V1(vec![hierarchy]);
        let expected = Usage { cpu_nanoseconds: 1500, memory_bytes: 1000, working_set_bytes: 600, resident_bytes: 300, processes: 0 };
        assert_eq!((usage(&cgroup), oom_kills(&cgroup)), (expected, 2));
        fs::remove_dir_all(folder).unwrap();
    }
}
