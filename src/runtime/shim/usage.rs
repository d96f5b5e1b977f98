//! Whether the kernel had to kill a process of a cgroup for its memory, from the files of v1 or v2.
//! It reads only, and a controller that is not there counts as nothing used.

use std::fs;
use std::path::Path;

use crate::runtime::cgroup::Cgroup;

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
        assert_eq!(oom_kills(&cgroup), 2);
        fs::remove_dir_all(folder).unwrap();
    }
}
