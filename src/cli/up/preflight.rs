//! What a node needs of the machine, asked before anything is made, each lack by its name and with its mend.
//! It changes nothing.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use rtnetlink::sys::Socket;

use super::cgroup;

/// Kernel options by the file of /proc/self/ns that they bring.
const NAMESPACES: [(&str, &str); 6] = [
    ("cgroup", "CONFIG_CGROUPS"),
    ("ipc", "CONFIG_IPC_NS"),
    ("mnt", "CONFIG_NAMESPACES"),
    ("net", "CONFIG_NET_NS"),
    ("pid", "CONFIG_PID_NS"),
    ("uts", "CONFIG_UTS_NS"),
];

/// Controllers of cgroups, and how one gets them.
const CONTROLLERS: [(&str, &str); 3] = [
    ("cpu", "CONFIG_CGROUP_SCHED, CONFIG_CFS_BANDWIDTH"),
    ("memory", "CONFIG_MEMCG; on a Raspberry Pi add 'cgroup_enable=memory' to the line in /boot/firmware/cmdline.txt and start it anew"),
    ("pids", "CONFIG_CGROUP_PIDS"),
];

/// NETLINK_NETFILTER, netlink(7).
const NETLINK_NETFILTER: isize = 12;

pub fn check(verb: &str) -> Result<()> {
    need_root(verb)?;
    let missing: Vec<String> = missing();
    if !missing.is_empty() {
        bail!("this machine's kernel lacks what a node needs:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

pub fn need_root(verb: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("edgectl {verb} makes namespaces and cgroups and needs root: try 'sudo edgectl {verb}'");
    }
    Ok(())
}

fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    for (name, option) in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(format!("{name} namespaces ({option})"));
        }
    }
    // Asking loads the module, where there are modules.
    if rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_err() {
        missing.push("the overlay file system (CONFIG_OVERLAY_FS)".to_owned());
    }
    if Socket::new(NETLINK_NETFILTER).is_err() {
        missing.push("nf_tables (CONFIG_NF_TABLES, CONFIG_NETFILTER_NETLINK)".to_owned());
    }
    match cgroup::controllers() {
        Ok(found) => missing.extend(missing_controllers(&found)),
        Err(error) => missing.push(format!("{error:#}")),
    }
    missing
}

fn missing_controllers(found: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let missing = CONTROLLERS.iter().filter(|(name, _)| !found.contains(*name));
    missing.map(|(name, mend)| format!("the {name} controller of cgroups ({mend})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_is_off_is_named_with_its_mend() {
        let missing = |found: &[&str]| missing_controllers(&found.iter().map(|name| (*name).to_owned()).collect()).collect::<Vec<_>>();
        assert_eq!(missing(&["cpu", "cpuset", "memory", "pids"]), Vec::<String>::new());
        let off = missing(&["cpu", "pids"]);
        assert!(off.len() == 1 && off[0].starts_with("the memory controller") && off[0].contains("cmdline.txt"), "{off:?}");
        assert!(missing_controllers(&cgroup::controllers().unwrap()).next().is_none(), "this machine has what its tests need");
    }
}
