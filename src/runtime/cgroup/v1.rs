//! cgroup v1: which hierarchies there are, and which limit goes into which file of which controller.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Hierarchy, write};
use crate::runtime::spec::Resources;

/// The hierarchies of v1 in a /proc/self/mountinfo, named ones included, each once. `path` is still empty.
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): … root mountpoint options … - type source superoptions
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mut filesystem = filesystem.split(' ');
        if filesystem.next() != Some("cgroup") {
            continue;
        }
        let (Some(point), Some(options)) = (mount.split(' ').nth(4), filesystem.nth(1)) else { continue };
        let plain = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods"];
        let controllers: Vec<String> =
            options.split(',').filter(|option| !plain.contains(option) && !option.starts_with("release_agent=")).map(Into::into).collect();
        if !found.iter().any(|known| known.controllers == controllers) {
            found.push(Hierarchy { controllers, mount: point.into(), path: PathBuf::new() });
        }
    }
    found
}

/// A new cpuset has no processors and no memory nodes, and lets nobody in: each folder from `mount` to `path` gets its parent's.
pub fn inherit_processors(mount: &Path, path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| parent.starts_with(mount));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
        if !read(&own)?.trim().is_empty() {
            continue;
        }
        if let Some(parent) = parent {
            inherit_processors(mount, parent)?;
            write(&own, read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Controller, file, value; in the order in which they have to be written.
pub fn plan(resources: &Resources) -> Vec<(&'static str, String, String)> {
    let mut plan: Vec<(&'static str, String, String)> = Vec::new();
    let mut add = |controller: &'static str, file: &str, value: Option<String>| {
        if let Some(value) = value {
            plan.push((controller, file.into(), value));
        }
    };
    let text = |value: Option<i64>| value.map(|value| value.to_string());
    if let Some(memory) = &resources.memory {
        add("memory", "memory.limit_in_bytes", text(memory.limit));
        add("memory", "memory.memsw.limit_in_bytes", text(memory.swap));
        add("memory", "memory.soft_limit_in_bytes", text(memory.reservation));
        add("memory", "memory.swappiness", memory.swappiness.map(|value| value.to_string()));
        add("memory", "memory.oom_control", memory.disable_oom_killer.filter(|disable| *disable).map(|_| "1".into()));
    }
    if let Some(cpu) = &resources.cpu {
        add("cpu", "cpu.shares", cpu.shares.filter(|shares| *shares != 0).map(|value| value.to_string()));
        add("cpu", "cpu.cfs_period_us", cpu.period.filter(|period| *period != 0).map(|value| value.to_string()));
        add("cpu", "cpu.cfs_quota_us", cpu.quota.filter(|quota| *quota != 0).map(|value| value.max(-1).to_string()));
        add("cpu", "cpu.cfs_burst_us", cpu.burst.map(|value| value.to_string()));
        add("cpu", "cpu.idle", text(cpu.idle));
        let listed = |list: &String| (!list.is_empty()).then(|| list.clone());
        add("cpuset", "cpuset.cpus", listed(&cpu.cpus));
        add("cpuset", "cpuset.mems", listed(&cpu.mems));
    }
    if let Some(pids) = &resources.pids {
        add("pids", "pids.max", Some(if pids.limit > 0 { pids.limit.to_string() } else { "max".into() }));
    }
    if let Some(block_io) = &resources.block_io {
        add("blkio", "blkio.weight", block_io.weight.filter(|weight| *weight != 0).map(|weight| weight.to_string()));
        let throttles = [
            ("blkio.throttle.read_bps_device", &block_io.throttle_read_bps_device),
            ("blkio.throttle.write_bps_device", &block_io.throttle_write_bps_device),
            ("blkio.throttle.read_iops_device", &block_io.throttle_read_iops_device),
            ("blkio.throttle.write_iops_device", &block_io.throttle_write_iops_device),
        ];
        for (file, devices) in throttles {
            for device in devices {
                add("blkio", file, Some(format!("{}:{} {}", device.major, device.minor, device.rate)));
            }
        }
    }
    for limit in &resources.hugepage_limits {
        add("hugetlb", &format!("hugetlb.{}.limit_in_bytes", limit.page_size), Some(limit.limit.to_string()));
    }
    plan
}

pub fn apply(hierarchies: &[Hierarchy], plan: &[(&'static str, String, String)]) -> Result<()> {
    let path = |controller: &str, file: &str| {
        let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
        hierarchy.map(|hierarchy| hierarchy.path.join(file)).with_context(|| format!("no {controller} hierarchy is mounted"))
    };
    for (controller, file, value) in plan {
        let written = write(&path(controller, file)?, value);
        match (file.as_str(), written) {
            // Memory may never exceed memory with swap: raising both, the latter has to go first.
            ("memory.limit_in_bytes", Err(error)) => {
                let with_swap = plan.iter().find(|(_, file, _)| file == "memory.memsw.limit_in_bytes");
                let Some((_, swap_file, swap)) = with_swap else { return Err(error) };
                write(&path(controller, swap_file)?, swap)?;
                write(&path(controller, file)?, value)?;
            }
            // Kernels and boards without swap accounting do not have the file. runc and crun let it pass likewise.
            ("memory.memsw.limit_in_bytes", Err(_)) if !path(controller, file)?.exists() => {}
            // Only BFQ has weights nowadays, under its own name.
            ("blkio.weight", Err(error)) => write(&path(controller, "blkio.bfq.weight")?, value).map_err(|_| error)?,
            (_, written) => written?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spec::{Cpu, Memory, Pids};

    #[test]
    fn hierarchies_are_found_once_with_their_controllers() {
        let mountinfo = "\
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 24 0:27 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct";
        let found = hierarchies(mountinfo);
        let names: Vec<_> = found.iter().map(|hierarchy| hierarchy.controllers.join(",")).collect();
        assert_eq!(names, ["cpu,cpuacct", "name=systemd"]);
        assert_eq!(found[0].mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn limits_go_to_the_files_of_their_controllers() {
        let resources = Resources {
            memory: Some(Memory { limit: Some(1 << 20), swap: Some(-1), ..Memory::default() }),
            cpu: Some(Cpu { shares: Some(512), quota: Some(-1), period: Some(100_000), cpus: "0-1".into(), ..Cpu::default() }),
            pids: Some(Pids { limit: 0 }),
            ..Resources::default()
        };
        let plan: Vec<_> = plan(&resources).into_iter().map(|(_, file, value)| format!("{file}={value}")).collect();
        assert_eq!(
            plan,
            [
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=-1",
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=-1",
                "cpuset.cpus=0-1",
                "pids.max=max"
            ]
        );
    }
}
