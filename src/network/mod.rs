//! The pod network of one node: the bridge, a cable and an address for each pod, what leaves by which address, what the
//! addresses of Services lead to, whom pods may speak to, and the files in which a pod reads its own name and its name servers. It works in the
//! network namespace of the thread that calls it, knows no Kubernetes object, and never touches a link or an nf_tables table
//! that it did not make itself.

mod cidr;
mod conntrack;
pub mod dns;
pub mod files;
mod firewall;
mod lease;
mod netlink;
mod nftables;
pub mod node;
pub mod peers;
pub mod pod;
pub mod policy;
pub mod remove;
pub mod services;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use anyhow::Result;

pub use cidr::Cidr;
pub use node::NodeConfig;
pub use peers::Peer;
pub use pod::{AttachConfig, Attachment, HostPort, Protocol};

/// The network of this node. One value per process; every method may be repeated, and repeating changes nothing.
pub struct Network {
    config: NodeConfig,
    /// Where the pods of all nodes have their addresses, as far as nodes are known.
    cluster: Cell<Cidr>,
    leases: RefCell<lease::Leases>,
    pending: RefCell<services::Pending>,
    isolation: RefCell<Option<Arc<policy::Isolation>>>,
    /// Whoever holds it may change the rules, also those of the pods.
    tables: Arc<smol::lock::Mutex<Tables>>,
}

/// What is known of the kernel's tables of Services and of policies. A change to one tells the other that it was ours.
#[derive(Default)]
struct Tables {
    services: services::Services,
    policies: policy::Policies,
}

impl Network {
    /// Reads the leases of earlier processes. Nothing in the kernel changes before `setup`.
    pub fn open(config: NodeConfig) -> Result<Self> {
        let leases = lease::Leases::open(&config.lease_dir, config.pod_cidr)?;
        Ok(Self {
            cluster: Cell::new(config.cluster_cidr.joined(config.pod_cidr)),
            config,
            leases: RefCell::new(leases),
            pending: RefCell::default(),
            isolation: RefCell::default(),
            tables: Arc::default(),
        })
    }

    /// Keeps an address for a pod that had it before the machine was started anew, until it is attached or swept.
    pub fn reserve(&self, pod_uid: &str, address: std::net::Ipv4Addr) {
        self.leases.borrow_mut().reserve(pod_uid, address);
    }

    /// What is attached under this pod's UID, also by an earlier process.
    pub fn attachment(&self, pod_uid: &str) -> Option<Attachment> {
        let leases = self.leases.borrow();
        leases.get(pod_uid).map(|lease| Attachment::of(&self.config, pod_uid, lease.address))
    }
}
