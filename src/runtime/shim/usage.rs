//! What a cgroup uses of CPU and memory, and whether the kernel had to kill a process of it for its memory, from the files of v1 or v2.
//! It reads only, and a controller that is not there counts as nothing used.

use std::fs;
use std::path::Path;

use crate::runtime::cgroup::Cgroup;

/// What has been used since the cgroup was made, and is used now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    /// Without the files that the kernel would forget first: what counts when memory gets short.
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
}

impl Usage {
    pub fn of(cgroup: &Cgroup) -> Usage {
        let file = |controller: &str, name: &str| cgroup.folder(controller).map(|folder| folder.join(name)).unwrap_or_default();
        let whole = |file: &Path| fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let (cpu_nanos, memory_bytes, rss, inactive) = match cgroup {
            Cgroup::V2(_) => {
                let micros = field(&file("cpu", "cpu.stat"), "usage_usec").unwrap_or(0);
                (micros * 1000, whole(&file("memory", "memory.current")), "anon", "inactive_file")
            }
            Cgroup::V1(_) => (
                whole(&file("cpuacct", "cpuacct.usage")),
                whole(&file("memory", "memory.usage_in_bytes")),
                "total_rss",
                "total_inactive_file",
            ),
        };
        let stat = file("memory", "memory.stat");
        let working_set_bytes = memory_bytes.saturating_sub(field(&stat, inactive).unwrap_or(0));
        Usage { cpu_nanos, memory_bytes, working_set_bytes, rss_bytes: field(&stat, rss).unwrap_or(0) }
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
        let expected = Usage { cpu_nanos: 1_500_000, memory_bytes: 1000, working_set_bytes: 600, rss_bytes: 300 };
        assert_eq!(Usage::of(&cgroup), expected);
        assert_eq!(oom_kills(&cgroup), 1);
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
        let expected = Usage { cpu_nanos: 1500, memory_bytes: 1000, working_set_bytes: 600, rss_bytes: 300 };
        assert_eq!(Usage::of(&cgroup), expected);
        assert_eq!(oom_kills(&cgroup), 2);
        fs::remove_dir_all(folder).unwrap();
    }
}
