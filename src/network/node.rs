//! The node's end of the pod network: the bridge with the gateway's address, the kernel's switches, the table of rules.
//! `plan` decides from what is asked and what is there; applying it again changes nothing and mends what someone broke.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::netlink::{self, Link};
use super::nftables::{self, Connection};
use super::{Cidr, Network, firewall};

/// What the agent says of its node. The addresses of pods on all nodes lie in `cluster_cidr`, which grows with the nodes, those of
/// this node in `pod_cidr`.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub pod_cidr: Cidr,
    /// By which other nodes know this one.
    pub node_address: Ipv4Addr,
    pub cluster_cidr: Cidr,
    /// The addresses of Services, see `services`.
    pub service_cidr: Cidr,
    /// `edge0` unless a test says otherwise; at most 15 bytes.
    pub bridge: String,
    /// Bytes of the largest packet of a pod.
    pub mtu: u32,
    /// Where the leases are kept; on a tmpfs, see `lease`.
    pub lease_dir: PathBuf,
    /// Addresses that every node has for its own pods, on `lo`: the name server's.
    pub local_addresses: Vec<Ipv4Addr>,
}

impl NodeConfig {
    /// The first address of the node's network: the pods' way out.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pod_cidr.address()) | 1)
    }
}

/// 0a:58 is what Kubernetes' network plugins use.
pub(super) const MAC_PREFIX: [u8; 2] = [0x0a, 0x58];

/// A hardware address that follows from the IP address, so that a neighbour entry stays true when an address is given out
/// again, and the bridge keeps its own when ports come and go.
pub fn mac(address: Ipv4Addr) -> Vec<u8> {
    [MAC_PREFIX.as_slice(), address.octets().as_slice()].concat()
}

/// What there is of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bridge {
    link: Link,
    addresses: Vec<(Ipv4Addr, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    CreateBridge,
    SetBridge,
    DeleteAddress(Ipv4Addr, u8),
    AddAddress(Ipv4Addr, u8),
}

/// The steps from `observed` to what `config` asks for.
fn plan(config: &NodeConfig, observed: Option<&Bridge>) -> Vec<Op> {
    let wanted = (config.gateway(), config.pod_cidr.prefix());
    let Some(bridge) = observed else {
        return vec![Op::CreateBridge, Op::AddAddress(wanted.0, wanted.1)];
    };
    let mut ops = Vec::new();
    if !bridge.link.up || bridge.link.mtu != config.mtu || bridge.link.mac != mac(config.gateway()) {
        ops.push(Op::SetBridge);
    }
    // The node's pod network has changed: the former gateway would answer for addresses that are another node's now.
    ops.extend(bridge.addresses.iter().filter(|held| **held != wanted).map(|held| Op::DeleteAddress(held.0, held.1)));
    if !bridge.addresses.contains(&wanted) {
        ops.push(Op::AddAddress(wanted.0, wanted.1));
    }
    ops
}

impl Network {
    /// Makes the bridge, the switches and the rules, or mends them. Needs root in the namespace's user namespace.
    pub async fn setup(&self) -> Result<()> {
        let config = &self.config;
        ensure!(config.pod_cidr.prefix() <= 30, "pod network {} has no room for a pod", config.pod_cidr);
        // Each address has its element in the table of rules.
        ensure!(config.pod_cidr.prefix() >= 20, "pod network {} is larger than a /20", config.pod_cidr);
        netlink::with(None, async |handle| {
            let observed = observe(handle, &config.bridge).await?;
            for op in plan(config, observed.as_ref()) {
                apply(handle, config, &op).await.with_context(|| format!("set up bridge {}", config.bridge))?;
            }
            route_services(handle, config).await?;
            own_addresses(handle, &config.local_addresses).await
        })
        .await?;
        for (name, value) in switches(&config.bridge) {
            set_switch(&name, value)?;
        }
        // The pod network is IPv4: without this the bridge would look for IPv6 neighbours whenever a pod comes.
        let without_ipv6 = format!("net/ipv6/conf/{}/disable_ipv6", config.bridge);
        if Path::new("/proc/sys").join(&without_ipv6).exists() {
            set_switch(&without_ipv6, "1")?;
        }
        self.apply_firewall().await
    }

    /// Brings the node's rules to what configuration and leases ask for, on a thread that may wait for the kernel. One at a
    /// time: what was desired earlier must not be written later.
    pub(super) async fn apply_firewall(&self) -> Result<()> {
        let mut tables = self.tables.lock_arc().await;
        let rules = firewall::Rules::desired(&self.config, self.cluster.get(), self.leases.borrow().iter());
        let connection = Connection::open().context("open nf_tables socket")?;
        let changed = smol::unblock(move || -> Result<()> {
            if let Some(generation) = firewall::apply(&connection, &rules)? {
                let next = nftables::next_generation(generation);
                tables.services.follow(generation, next);
                tables.policies.follow(generation, next);
            }
            Ok(())
        });
        changed.await.context("set up nf_tables rules")
    }
}

/// Pods speak to each other through the gateway (see `pod`), so the kernel forwards; and it must not tell them of the
/// shorter way across the bridge, on which nothing is translated back.
fn switches(bridge: &str) -> [(String, &'static str); 3] {
    [
        ("net/ipv4/ip_forward".to_owned(), "1"),
        ("net/ipv4/conf/all/send_redirects".to_owned(), "0"),
        (format!("net/ipv4/conf/{bridge}/send_redirects"), "0"),
    ]
}

fn set_switch(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    let observed = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    if observed.trim() != value {
        fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
    }
    Ok(())
}

async fn observe(handle: &Handle, bridge: &str) -> Result<Option<Bridge>> {
    let Some(link) = netlink::link(handle, bridge).await? else { return Ok(None) };
    let addresses = addresses(handle, link.index).await?;
    Ok(Some(Bridge { link, addresses }))
}

/// The node's own connections to Services begin as if these were on the bridge: also a node without a default route reaches
/// them, and under an address that the pods of all nodes can answer. Nothing really goes there; see `services`.
async fn route_services(handle: &Handle, config: &NodeConfig) -> Result<()> {
    let bridge = netlink::link(handle, &config.bridge).await?.context("bridge has gone")?;
    let cidr = config.service_cidr;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(cidr.address(), cidr.prefix())
        .output_interface(bridge.index)
        .scope(RouteScope::Link)
        .build();
    let added = handle.route().add(route).replace().execute().await;
    added.map_err(netlink::failure).with_context(|| format!("add route {cidr} to {}", config.bridge))
}

/// Gives `lo` the addresses that it lacks.
async fn own_addresses(handle: &Handle, wanted: &[Ipv4Addr]) -> Result<()> {
    let Some(loopback) = netlink::link(handle, "lo").await? else { return Ok(()) };
    let observed = addresses(handle, loopback.index).await?;
    for address in wanted.iter().filter(|address| !observed.contains(&(**address, 32))) {
        let added = handle.address().add(loopback.index, (*address).into(), 32).execute().await;
        added.map_err(netlink::failure).with_context(|| format!("add address {address} to lo"))?;
    }
    Ok(())
}

/// The IPv4 addresses of a link, each with its prefix length.
pub(super) async fn addresses(handle: &Handle, link_index: u32) -> Result<Vec<(Ipv4Addr, u8)>> {
    let found = handle.address().get().set_link_index_filter(link_index).execute();
    let messages: Vec<_> = found.try_collect().await.map_err(netlink::failure).context("list addresses")?;
    let local = |message: &rtnetlink::packet_route::address::AddressMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some((*address, message.header.prefix_len)),
            _ => None,
        })
    };
    Ok(messages.iter().filter_map(local).collect())
}

async fn apply(handle: &Handle, config: &NodeConfig, op: &Op) -> Result<()> {
    let index = async || -> Result<u32> { Ok(netlink::link(handle, &config.bridge).await?.context("bridge has gone")?.index) };
    match op {
        Op::CreateBridge => {
            // No snooping: its queries and timers would wake an idle node, and pods have no multicast routing to gain from it.
            let bridge = LinkBridge::new(&config.bridge).address(mac(config.gateway())).mtu(config.mtu).mcast_snooping(false).build();
            handle.link().add(bridge).execute().await.map_err(netlink::failure).context("create")
        }
        Op::SetBridge => {
            let changed = LinkUnspec::new_with_index(index().await?).address(mac(config.gateway())).mtu(config.mtu).up().build();
            handle.link().change(changed).execute().await.map_err(netlink::failure).context("change")
        }
        Op::AddAddress(address, prefix) => {
            let add = handle.address().add(index().await?, (*address).into(), *prefix).replace();
            add.execute().await.map_err(netlink::failure).with_context(|| format!("add address {address}/{prefix}"))
        }
        Op::DeleteAddress(address, prefix) => {
            let found = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new().index(index().await?).address(*address, *prefix).build();
            let delete = handle.address().del(found).execute().await;
            delete.map_err(netlink::failure).with_context(|| format!("delete address {address}/{prefix}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            node_address: Ipv4Addr::LOCALHOST,
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            bridge: "edge0".into(),
            mtu: 1450,
            lease_dir: PathBuf::new(),
            local_addresses: vec![],
        }
    }

    fn bridge() -> Bridge {
        let mac = vec![0x0a, 0x58, 10, 244, 3, 1];
        let link = Link { index: 2, name: "edge0".into(), alias: String::new(), up: true, mtu: 1450, mac, bridge: 0 };
        Bridge { link, addresses: vec![(Ipv4Addr::new(10, 244, 3, 1), 24)] }
    }

    #[test]
    fn the_plan_has_only_the_steps_that_are_missing() {
        let gateway = Ipv4Addr::new(10, 244, 3, 1);
        let check = |change: fn(&mut Bridge), expected: Vec<Op>| {
            let mut observed = bridge();
            change(&mut observed);
            assert_eq!(plan(&config(), Some(&observed)), expected);
        };
        assert_eq!(plan(&config(), None), [Op::CreateBridge, Op::AddAddress(gateway, 24)]);
        check(|_| {}, vec![]);
        check(|bridge| bridge.link.up = false, vec![Op::SetBridge]);
        check(|bridge| bridge.link.mtu = 1500, vec![Op::SetBridge]);
        check(|bridge| bridge.link.mac = vec![0; 6], vec![Op::SetBridge]);
        check(|bridge| bridge.addresses.clear(), vec![Op::AddAddress(gateway, 24)]);
        check(|bridge| bridge.addresses[0].1 = 16, vec![Op::DeleteAddress(gateway, 16), Op::AddAddress(gateway, 24)]);
    }
}
