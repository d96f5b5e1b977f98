//! Where things are kept: configuration, state, what lasts until the next boot, logs. `--root` moves them all, so that
//! several nodes fit on one machine. It makes no folder.

use std::path::{Path, PathBuf};

/// The four folders, hier(7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `/etc/edgectl`: certificates, kubeconfigs, registries.yaml.
    pub config: PathBuf,
    /// `/var/lib/edgectl`: the store, images, volumes, leases of addresses.
    pub state: PathBuf,
    /// `/run/edgectl`: sockets and records of what runs.
    pub run: PathBuf,
    /// `/var/log/pods`: what containers print, where log collectors expect it (Kubernetes, "System Logs").
    pub logs: PathBuf,
}

impl Places {
    pub fn below(root: &Path) -> Self {
        Self {
            config: root.join("etc/edgectl"),
            state: root.join("var/lib/edgectl"),
            run: root.join("run/edgectl"),
            logs: root.join("var/log/pods"),
        }
    }

    /// The master's objects.
    pub fn store(&self) -> PathBuf {
        self.state.join("store.redb")
    }

    /// The master's authority and keys.
    pub fn pki(&self) -> PathBuf {
        self.config.join("pki")
    }

    /// The kubeconfig of the cluster's administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.config.join("admin.conf")
    }

    /// The kubeconfig of this node's agent.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.config.join("agent.conf")
    }
}
