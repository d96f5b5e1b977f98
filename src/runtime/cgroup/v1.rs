//! cgroup v1: which hierarchies there are, and which limit goes to which controller. Files and their words are those of cgroups-rs;
//! not its way to apply, make and remove groups, which lets errors pass. It decides nothing about v2.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::{Error, ErrorKind};
use cgroups_rs::fs::hierarchies::{Mountinfo, mountinfo_self};
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::{Hierarchy, write};
use crate::runtime::spec::{Resources, Throttle};

/// The hierarchies of v1 that are mounted here, named ones included, each once. `path` is still empty.
pub fn hierarchies() -> Vec<Hierarchy> {
    named(mountinfo_self())
}

fn named(mounts: Vec<Mountinfo>) -> Vec<Hierarchy> {
    let plain = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods"];
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts {
        let mut controllers = mount.super_opts;
        controllers.retain(|option| !plain.contains(&option.as_str()) && !option.starts_with("release_agent="));
        if !found.iter().any(|known| known.controllers == controllers) {
            found.push(Hierarchy { controllers, mount: mount.mount_point, path: PathBuf::new() });
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

/// One limit of one controller.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    Memory(i64),
    /// Memory and swap together.
    Swap(i64),
    Reservation(i64),
    Swappiness(u64),
    NoOomKiller,
    Shares(u64),
    Period(u64),
    Quota(i64),
    Burst(u64),
    Idle(i64),
    Processors(String),
    MemoryNodes(String),
    Pids(MaxValue),
    Weight(u16),
    ReadBytes(Throttle),
    WriteBytes(Throttle),
    ReadOperations(Throttle),
    WriteOperations(Throttle),
    HugePages(String, u64),
}

/// In the order in which they have to be set.
pub fn plan(resources: &Resources) -> Vec<Limit> {
    let mut plan = Vec::new();
    if let Some(memory) = &resources.memory {
        plan.extend(memory.limit.map(Limit::Memory));
        plan.extend(memory.swap.map(Limit::Swap));
        plan.extend(memory.reservation.map(Limit::Reservation));
        plan.extend(memory.swappiness.map(Limit::Swappiness));
        plan.extend(memory.disable_oom_killer.filter(|disable| *disable).map(|_| Limit::NoOomKiller));
    }
    if let Some(cpu) = &resources.cpu {
        plan.extend(cpu.shares.filter(|shares| *shares != 0).map(Limit::Shares));
        plan.extend(cpu.period.filter(|period| *period != 0).map(Limit::Period));
        plan.extend(cpu.quota.filter(|quota| *quota != 0).map(|quota| Limit::Quota(quota.max(-1))));
        plan.extend(cpu.burst.map(Limit::Burst));
        plan.extend(cpu.idle.map(Limit::Idle));
        let listed = |list: &String| (!list.is_empty()).then(|| list.clone());
        plan.extend(listed(&cpu.cpus).map(Limit::Processors));
        plan.extend(listed(&cpu.mems).map(Limit::MemoryNodes));
    }
    if let Some(pids) = &resources.pids {
        plan.push(Limit::Pids(if pids.limit > 0 { MaxValue::Value(pids.limit) } else { MaxValue::Max }));
    }
    if let Some(block_io) = &resources.block_io {
        plan.extend(block_io.weight.filter(|weight| *weight != 0).map(Limit::Weight));
        plan.extend(block_io.throttle_read_bps_device.iter().cloned().map(Limit::ReadBytes));
        plan.extend(block_io.throttle_write_bps_device.iter().cloned().map(Limit::WriteBytes));
        plan.extend(block_io.throttle_read_iops_device.iter().cloned().map(Limit::ReadOperations));
        plan.extend(block_io.throttle_write_iops_device.iter().cloned().map(Limit::WriteOperations));
    }
    plan.extend(resources.hugepage_limits.iter().map(|limit| Limit::HugePages(limit.page_size.clone(), limit.limit)));
    plan
}

pub fn apply(hierarchies: &[Hierarchy], plan: &[Limit]) -> Result<()> {
    plan.iter().try_for_each(|limit| set(hierarchies, limit, plan))
}

fn set(hierarchies: &[Hierarchy], limit: &Limit, plan: &[Limit]) -> Result<()> {
    let name = limit.controller();
    let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(name)).with_context(|| format!("no {name} hierarchy is mounted"))?;
    let folder = hierarchy.path.as_path();
    // The crate's second argument is of no use to a controller that only sets limits.
    let (path, base) = (|| folder.to_owned(), PathBuf::new);
    let memory = || MemController::new(path(), base(), false);
    let cpu = || CpuController::new(path(), base(), false);
    let cpuset = || CpuSetController::new(path(), base(), false);
    let blkio = || BlkIoController::new(path(), base(), false);
    let done = match limit {
        // Memory may never exceed memory with swap: raising both, the latter has to go first.
        Limit::Memory(bytes) => memory().set_limit(*bytes).or_else(|error| {
            let swap = plan.iter().find_map(|other| if let Limit::Swap(swap) = other { Some(*swap) } else { None });
            memory().set_memswap_limit(swap.ok_or(error)?)?;
            memory().set_limit(*bytes)
        }),
        // Kernels and boards without swap accounting do not have the file. runc and crun let it pass likewise.
        Limit::Swap(_) if !folder.join("memory.memsw.limit_in_bytes").exists() => Ok(()),
        Limit::Swap(bytes) => memory().set_memswap_limit(*bytes),
        Limit::Reservation(bytes) => memory().set_soft_limit(*bytes),
        Limit::Swappiness(value) => memory().set_swappiness(*value),
        Limit::NoOomKiller => memory().disable_oom_killer(),
        Limit::Shares(shares) => cpu().set_shares(*shares),
        Limit::Period(period_us) => cpu().set_cfs_period(*period_us),
        Limit::Quota(quota_us) => cpu().set_cfs_quota(*quota_us),
        // The crate does not know these two.
        Limit::Burst(burst_us) => return write(&folder.join("cpu.cfs_burst_us"), &burst_us.to_string()),
        Limit::Idle(idle) => return write(&folder.join("cpu.idle"), &idle.to_string()),
        Limit::Processors(list) => cpuset().set_cpus(list),
        Limit::MemoryNodes(list) => cpuset().set_mems(list),
        Limit::Pids(most) => PidController::new(path(), base(), false).set_pid_max(*most),
        // Only BFQ has weights nowadays, under its own name.
        Limit::Weight(weight) => blkio()
            .set_weight((*weight).into())
            .or_else(|error| write(&folder.join("blkio.bfq.weight"), &weight.to_string()).map_err(|_| error)),
        Limit::ReadBytes(device) => blkio().throttle_read_bps_for_device(device.major as u64, device.minor as u64, device.rate),
        Limit::WriteBytes(device) => blkio().throttle_write_bps_for_device(device.major as u64, device.minor as u64, device.rate),
        Limit::ReadOperations(device) => blkio().throttle_read_iops_for_device(device.major as u64, device.minor as u64, device.rate),
        Limit::WriteOperations(device) => blkio().throttle_write_iops_for_device(device.major as u64, device.minor as u64, device.rate),
        Limit::HugePages(size, bytes) => HugeTlbController::new(path(), base(), false).set_limit_in_bytes(size, *bytes),
    };
    done.map_err(|error| told(&error, folder))
}

impl Limit {
    fn controller(&self) -> &'static str {
        match self {
            Self::Memory(_) | Self::Swap(_) | Self::Reservation(_) | Self::Swappiness(_) | Self::NoOomKiller => "memory",
            Self::Shares(_) | Self::Period(_) | Self::Quota(_) | Self::Burst(_) | Self::Idle(_) => "cpu",
            Self::Processors(_) | Self::MemoryNodes(_) => "cpuset",
            Self::Pids(_) => "pids",
            Self::Weight(_) | Self::ReadBytes(_) | Self::WriteBytes(_) | Self::ReadOperations(_) | Self::WriteOperations(_) => "blkio",
            Self::HugePages(..) => "hugetlb",
        }
    }
}

/// The crate's error in this program's words: it prints its cause itself, and again as its source.
pub fn told(error: &Error, folder: &Path) -> anyhow::Error {
    let what = match error.kind() {
        ErrorKind::WriteFailed(file, value) => format!("write {value:?} to {}", folder.join(file).display()),
        ErrorKind::ReadFailed(file) => format!("read {}", folder.join(file).display()),
        other => format!("{}: {other}", folder.display()),
    };
    match error.source() {
        Some(cause) => anyhow!("{cause}").context(what),
        None => anyhow!(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spec::{BlockIo, Cpu, HugepageLimit, Memory, Pids};

    #[test]
    fn hierarchies_are_found_once_with_their_controllers() {
        let mount = |point: &str, options: &str| Mountinfo {
            mount_root: "/".into(),
            mount_point: point.into(),
            fs_type: ("cgroup".into(), None),
            super_opts: options.split(',').map(Into::into).collect(),
        };
        let found = named(vec![
            mount("/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct"),
            mount("/sys/fs/cgroup/systemd", "rw,xattr,release_agent=/bin/agent,name=systemd"),
            mount("/mnt/again", "rw,cpu,cpuacct"),
        ]);
        let names: Vec<_> = found.iter().map(|hierarchy| hierarchy.controllers.join(",")).collect();
        assert_eq!(names, ["cpu,cpuacct", "name=systemd"]);
        assert_eq!(found[0].mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn limits_are_set_in_an_order_that_the_kernel_takes() {
        let device = Throttle { major: 8, minor: 0, rate: 1000 };
        let resources = Resources {
            memory: Some(Memory { limit: Some(1 << 20), swap: Some(-1), ..Memory::default() }),
            cpu: Some(Cpu { shares: Some(512), quota: Some(-7), period: Some(100_000), cpus: "0-1".into(), ..Cpu::default() }),
            pids: Some(Pids { limit: 0 }),
            block_io: Some(BlockIo { weight: Some(0), throttle_write_bps_device: vec![device.clone()], ..BlockIo::default() }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            ..Resources::default()
        };
        assert_eq!(
            plan(&resources),
            [
                Limit::Memory(1 << 20),
                Limit::Swap(-1),
                Limit::Shares(512),
                Limit::Period(100_000),
                Limit::Quota(-1),
                Limit::Processors("0-1".into()),
                Limit::Pids(MaxValue::Max),
                Limit::WriteBytes(device),
                Limit::HugePages("2MB".into(), 4 << 20),
            ]
        );
    }

    #[test]
    fn a_limit_that_cannot_be_set_names_file_value_and_cause_once() {
        let hierarchies = [Hierarchy { controllers: vec!["memory".into()], mount: "/none".into(), path: "/none/web".into() }];
        let failed = |limit| format!("{:#}", apply(&hierarchies, &[limit]).unwrap_err());
        let told = failed(Limit::Reservation(5));
        assert!(told.contains("/none/web/memory.soft_limit_in_bytes: No such file or directory"), "{told}");
        assert_eq!(failed(Limit::Pids(MaxValue::Max)), "no pids hierarchy is mounted");
    }
}
