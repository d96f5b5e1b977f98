//! cgroup v2: handing controllers down, and which limit of the specification (written in v1's words) goes into which file.
//! Kernel documentation: admin-guide/cgroup-v2.rst.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::ROOT;
use crate::runtime::spec::{Resources, Throttle};

/// Lets `folder` have every controller that the root has: each folder above must pass them on.
pub fn enable_controllers(folder: &Path) -> Result<()> {
    let Some(parent) = folder.parent().filter(|parent| parent.starts_with(ROOT)) else { return Ok(()) };
    let read = |file: &str| {
        let path = parent.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let passed_on = read("cgroup.subtree_control")?;
    let root = if parent == Path::new(ROOT) { read("cgroup.controllers")? } else { root_controllers()? };
    if root.split_whitespace().all(|name| passed_on.split_whitespace().any(|passed| passed == name)) {
        return Ok(());
    }
    enable_controllers(parent)?;
    for name in read("cgroup.controllers")?.split_whitespace() {
        // A controller that cannot be passed on (a threaded or a still populated parent) is missed only if a limit needs it, and
        // then writing that limit says so.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{name}"));
    }
    Ok(())
}

fn root_controllers() -> Result<String> {
    let path = Path::new(ROOT).join("cgroup.controllers");
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// File and value, in the order in which they have to be written.
pub fn plan(resources: &Resources) -> Result<Vec<(String, String)>> {
    let mut plan: Vec<(String, String)> = Vec::new();
    let mut add = |file: &str, value: Option<String>| {
        if let Some(value) = value {
            plan.push((file.into(), value));
        }
    };
    let bytes = |value: i64| if value < 0 { "max".into() } else { value.to_string() };
    if let Some(memory) = &resources.memory {
        add("memory.max", memory.limit.filter(|limit| *limit != 0).map(bytes));
        add("memory.low", memory.reservation.filter(|low| *low != 0).map(bytes));
        if let Some(swap) = memory.swap.filter(|swap| *swap != 0) {
            let swap = match memory.limit {
                _ if swap < 0 => swap,
                // v1 counts both together.
                Some(limit) if limit >= 0 && swap >= limit => swap - limit,
                Some(limit) if limit >= 0 => bail!("memory.swap {swap} is less than memory.limit {limit}"),
                _ => bail!("memory.swap {swap} needs a memory.limit"),
            };
            add("memory.swap.max", Some(bytes(swap)));
        }
    }
    if let Some(cpu) = &resources.cpu {
        add("cpu.weight", cpu.shares.filter(|shares| *shares != 0).map(|shares| weight_from_shares(shares).to_string()));
        let quota = cpu.quota.filter(|quota| *quota != 0);
        if quota.is_some() || cpu.period.is_some() {
            let quota = quota.filter(|quota| *quota > 0).map_or_else(|| "max".into(), |quota| quota.to_string());
            let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
            add("cpu.max", Some(format!("{quota} {period}")));
        }
        add("cpu.max.burst", cpu.burst.map(|burst| burst.to_string()));
        add("cpu.idle", cpu.idle.map(|idle| idle.to_string()));
        add("cpuset.cpus", (!cpu.cpus.is_empty()).then(|| cpu.cpus.clone()));
        add("cpuset.mems", (!cpu.mems.is_empty()).then(|| cpu.mems.clone()));
    }
    if let Some(pids) = &resources.pids {
        add("pids.max", Some(if pids.limit > 0 { pids.limit.to_string() } else { "max".into() }));
    }
    if let Some(block_io) = &resources.block_io {
        // 10..1000 to 1..10000, as runc converts.
        let weight = |weight: u16| 1 + (u64::from(weight.max(10)) - 10) * 9999 / 990;
        add("io.weight", block_io.weight.filter(|value| *value != 0).map(|value| format!("default {}", weight(value))));
        let throttles = [
            ("rbps", &block_io.throttle_read_bps_device),
            ("wbps", &block_io.throttle_write_bps_device),
            ("riops", &block_io.throttle_read_iops_device),
            ("wiops", &block_io.throttle_write_iops_device),
        ];
        for (key, devices) in throttles {
            for Throttle { major, minor, rate } in devices {
                add("io.max", Some(format!("{major}:{minor} {key}={rate}")));
            }
        }
    }
    for limit in &resources.hugepage_limits {
        add(&format!("hugetlb.{}.max", limit.page_size), Some(limit.limit.to_string()));
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            bail!("unified: {file:?} is no file of a cgroup");
        }
        add(file, Some(value.clone()));
    }
    Ok(plan)
}

/// 2..262144 to 1..10000, as runc, crun and the kubelet convert.
fn weight_from_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spec::{Cpu, Memory, Pids};

    #[test]
    fn limits_are_translated_from_the_words_of_v1() {
        let resources = Resources {
            memory: Some(Memory { limit: Some(100), swap: Some(150), reservation: Some(50), ..Memory::default() }),
            cpu: Some(Cpu { shares: Some(1024), quota: Some(50_000), ..Cpu::default() }),
            pids: Some(Pids { limit: 7 }),
            unified: [("memory.high".to_owned(), "90".to_owned())].into(),
            ..Resources::default()
        };
        let plan: Vec<_> = plan(&resources).unwrap().into_iter().map(|(file, value)| format!("{file}={value}")).collect();
        assert_eq!(
            plan,
            [
                "memory.max=100",
                "memory.low=50",
                "memory.swap.max=50",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "pids.max=7",
                "memory.high=90"
            ]
        );
    }

    #[test]
    fn shares_become_weights_between_one_and_ten_thousand() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_from_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn a_unified_key_cannot_leave_the_folder() {
        let resources = Resources { unified: [("../memory.max".to_owned(), "1".to_owned())].into(), ..Resources::default() };
        assert!(plan(&resources).is_err());
    }
}
