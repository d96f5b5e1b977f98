//! What connections to the cluster's Services lead to on this node. The agent tells Service by Service what it should be;
//! `apply` brings the kernel's rules to it. It knows addresses and ports, and no Kubernetes object.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Network, Protocol};

/// One port of a Service, as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name within the Service; empty if it is the only one.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// The Service's own address.
    pub address: Ipv4Addr,
    /// Its other addresses, by which it is reached from outside: `externalIPs` and those of a load balancer.
    pub external_addresses: Vec<Ipv4Addr>,
    /// The port of every node's own addresses.
    pub node_port: Option<u16>,
    /// Behind the own address.
    pub backends: Vec<Backend>,
    /// Behind the other addresses and the node port.
    pub external_backends: Vec<Backend>,
    /// Connections from outside keep their source address: their backends are all on this node.
    pub keeps_source: bool,
    /// For how long a client comes to the same backend again, in seconds.
    pub affinity_seconds: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// The Services as they should be, by `namespace/name`.
#[derive(Debug, Default)]
pub struct Services {
    desired: BTreeMap<String, Vec<ServicePort>>,
}

impl Services {
    /// From now on the Service has these ports; without any it is gone. Answers whether that is a change.
    pub fn set(&mut self, name: &str, ports: Vec<ServicePort>) -> bool {
        let before = match ports.is_empty() {
            true => self.desired.remove(name),
            false => self.desired.insert(name.to_owned(), ports.clone()),
        };
        before.unwrap_or_default() != ports
    }
}

impl Network {
    /// What the Service is from now on; see `apply_services`.
    pub fn set_service(&self, name: &str, ports: Vec<ServicePort>) {
        self.services.borrow_mut().set(name, ports);
    }

    /// Brings the kernel's rules to what was set.
    pub async fn apply_services(&self) -> Result<()> {
        Ok(())
    }
}
