//! What a node needs of the machine, asked before anything is made, each lack by its name and with its mend.
//! It changes nothing.

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
    if let Err(error) = cgroup::hierarchies() {
        missing.push(format!("{error:#}"));
    }
    missing
}
