//! Which pod has which address and which ports of the node: one small file per lease, so that a restarted agent finds them
//! all. The folder belongs on a tmpfs: leases live as long as the pods' namespaces, until the machine stops.
//! It writes only when a lease comes or goes, and hands an address out again only after all others had their turn.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Cidr, HostPort};
use crate::base;

/// Where the round stands: holds the address given out last.
const LAST_FILE: &str = "last";

/// The network's own address, the gateway's and the broadcast address are never given out.
const FIRST_OFFSET: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    pub pod_uid: String,
    pub address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// All leases of this node, by pod UID; at most as many as the pod network has addresses.
pub struct Leases {
    folder: PathBuf,
    network: Cidr,
    by_pod: BTreeMap<String, Lease>,
    last: Option<Ipv4Addr>,
    /// Addresses that pods had before the machine was started anew, kept for them until they take a lease again.
    reserved: BTreeMap<String, Ipv4Addr>,
}

impl Leases {
    /// Reads the folder, which is made if absent. A file that is no lease of this network is removed: nobody holds it.
    pub fn open(folder: &Path, network: Cidr) -> Result<Self> {
        let what = || format!("read leases in {}", folder.display());
        fs::create_dir_all(folder).with_context(what)?;
        let mut leases = Self { folder: folder.to_owned(), network, by_pod: BTreeMap::new(), last: None, reserved: BTreeMap::new() };
        for entry in fs::read_dir(folder).with_context(what)? {
            let path = entry.with_context(what)?.path();
            let content = fs::read(&path).with_context(what)?;
            if path.file_name().is_some_and(|name| name == LAST_FILE) {
                leases.last = String::from_utf8(content).ok().and_then(|text| text.trim().parse().ok());
                continue;
            }
            match serde_json::from_slice::<Lease>(&content) {
                Ok(lease) if network.contains(lease.address) && path == leases.path(lease.address) => {
                    leases.by_pod.insert(lease.pod_uid.clone(), lease);
                }
                _ => {
                    log::warn!("lease file={} is none of {network}, removed", path.display());
                    base::file::remove(&path).with_context(what)?;
                }
            }
        }
        Ok(leases)
    }

    pub fn get(&self, pod_uid: &str) -> Option<&Lease> {
        self.by_pod.get(pod_uid)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_pod.values()
    }

    /// Keeps an address for a pod that had it, if it is of this network and nobody has it now.
    pub fn reserve(&mut self, pod_uid: &str, address: Ipv4Addr) {
        let is_held = self.by_pod.values().any(|lease| lease.address == address || lease.pod_uid == pod_uid);
        if self.network.contains(address) && !is_held && !self.reserved.values().any(|reserved| *reserved == address) {
            self.reserved.insert(pod_uid.to_owned(), address);
        }
    }

    /// The pod's lease: the one it has, the address that is kept for it, or the next one in turn. Fails when the network is full or another pod holds a port.
    pub fn acquire(&mut self, pod_uid: &str, host_ports: &[HostPort]) -> Result<Lease> {
        for other in self.by_pod.values().filter(|lease| lease.pod_uid != pod_uid) {
            if let Some(port) = other.host_ports.iter().find(|held| host_ports.iter().any(|wanted| wanted.conflicts(held))) {
                bail!("host port {} {} is held by pod {}", port.protocol.name(), port.host_port, other.pod_uid);
            }
        }
        let address = match self.by_pod.get(pod_uid) {
            Some(lease) if lease.host_ports == host_ports => return Ok(lease.clone()),
            Some(lease) => lease.address,
            None => match self.reserved.get(pod_uid) {
                Some(reserved) => *reserved,
                None => self.next_free()?,
            },
        };
        let lease = Lease { pod_uid: pod_uid.to_owned(), address, host_ports: host_ports.to_vec() };
        self.write(&lease)?;
        base::file::replace(&self.folder.join(LAST_FILE), address.to_string().as_bytes(), 0o600).context("write last lease")?;
        self.last = Some(address);
        self.reserved.remove(pod_uid);
        self.by_pod.insert(pod_uid.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Gives the pod's ports back and keeps its address; answers whether it had any.
    pub fn close_ports(&mut self, pod_uid: &str) -> Result<bool> {
        let Some(held) = self.by_pod.get(pod_uid).filter(|lease| !lease.host_ports.is_empty()) else { return Ok(false) };
        let lease = Lease { host_ports: Vec::new(), ..held.clone() };
        self.write(&lease)?;
        self.by_pod.insert(pod_uid.to_owned(), lease);
        Ok(true)
    }

    /// Gives the address back. That the pod has none is fine.
    pub fn release(&mut self, pod_uid: &str) -> Result<()> {
        self.reserved.remove(pod_uid);
        if let Some(lease) = self.by_pod.get(pod_uid) {
            base::file::remove(&self.path(lease.address)).with_context(|| format!("remove lease of {}", lease.address))?;
            self.by_pod.remove(pod_uid);
        }
        Ok(())
    }

    fn next_free(&self) -> Result<Ipv4Addr> {
        let end = self.network.size().saturating_sub(1);
        let start = match self.last {
            Some(last) if self.network.contains(last) => u64::from(u32::from(last) - u32::from(self.network.address())) + 1,
            _ => FIRST_OFFSET,
        };
        let held = self.by_pod.values().map(|lease| lease.address);
        let taken: std::collections::BTreeSet<Ipv4Addr> = held.chain(self.reserved.values().copied()).collect();
        (start..end)
            .chain(FIRST_OFFSET..start.min(end))
            .filter_map(|offset| self.network.nth(offset))
            .find(|address| !taken.contains(address))
            .with_context(|| format!("no address is free in {}: {} pods hold one", self.network, taken.len()))
    }

    fn write(&self, lease: &Lease) -> Result<()> {
        let content = serde_json::to_vec(lease).context("write lease")?;
        base::file::replace(&self.path(lease.address), &content, 0o600).with_context(|| format!("write lease of {}", lease.address))
    }

    fn path(&self, address: Ipv4Addr) -> PathBuf {
        self.folder.join(address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("edgectl-lease-{}", base::id::uid())))
        }

        fn open(&self, network: &str) -> Leases {
            Leases::open(&self.0, network.parse().unwrap()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            base::file::remove_tree(&self.0).unwrap();
        }
    }

    fn port(host_ip: [u8; 4], host_port: u16) -> HostPort {
        HostPort { host_ip: host_ip.into(), host_port, container_port: 80, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_lease_survives_a_restart_and_goes_when_released() {
        let folder = Folder::new();
        let first = folder.open("10.244.0.0/24").acquire("a", &[port([0; 4], 80)]).unwrap();
        let mut leases = folder.open("10.244.0.0/24");
        assert_eq!(leases.get("a"), Some(&first));
        assert_eq!(leases.acquire("a", &[port([0; 4], 80)]).unwrap(), first);
        leases.release("a").unwrap();
        leases.release("a").unwrap();
        assert_eq!(folder.open("10.244.0.0/24").get("a"), None);
    }

    #[test]
    fn an_address_is_given_out_again_only_after_all_others() {
        let folder = Folder::new();
        let mut given = Vec::new();
        for round in 0..8 {
            // Opened each time: the round goes on across restarts.
            let mut leases = folder.open("10.244.0.0/29");
            let pod = format!("pod-{round}");
            given.push(leases.acquire(&pod, &[]).unwrap().address.octets()[3]);
            leases.release(&pod).unwrap();
        }
        assert_eq!(given, [2, 3, 4, 5, 6, 2, 3, 4]);
    }

    #[test]
    fn a_full_network_says_so() {
        let folder = Folder::new();
        let mut leases = folder.open("10.244.0.0/30");
        leases.acquire("a", &[]).unwrap();
        let error = leases.acquire("b", &[]).unwrap_err().to_string();
        assert_eq!(error, "no address is free in 10.244.0.0/30: 1 pods hold one");
    }

    #[test]
    fn a_port_of_the_node_has_one_holder() {
        let folder = Folder::new();
        let mut leases = folder.open("10.244.0.0/24");
        leases.acquire("a", &[port([0; 4], 80), port([10, 0, 0, 1], 81)]).unwrap();
        assert!(leases.acquire("b", &[port([10, 0, 0, 1], 80)]).is_err());
        assert!(leases.acquire("b", &[port([10, 0, 0, 2], 81)]).is_ok());
    }

    #[test]
    fn an_address_is_kept_for_the_pod_that_had_it() {
        let folder = Folder::new();
        let mut leases = folder.open("10.244.0.0/29");
        let address = |last| Ipv4Addr::new(10, 244, 0, last);
        leases.reserve("a", address(2));
        leases.reserve("b", address(2));
        leases.reserve("c", Ipv4Addr::new(10, 9, 0, 3));
        assert_eq!(leases.acquire("b", &[]).unwrap().address, address(3));
        assert_eq!(leases.acquire("a", &[]).unwrap().address, address(2));
        leases.reserve("c", address(2));
        leases.release("a").unwrap();
        assert_eq!(leases.acquire("c", &[]).unwrap().address, address(4));
    }

    #[test]
    fn a_torn_or_foreign_file_is_no_lease() {
        let folder = Folder::new();
        fs::create_dir_all(&folder.0).unwrap();
        fs::write(folder.0.join("10.244.0.9"), b"").unwrap();
        fs::write(folder.0.join("10.244.0.8"), br#"{"podUid":"a","address":"10.244.0.7"}"#).unwrap();
        assert_eq!(folder.open("10.244.0.0/24").iter().count(), 0);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}
