//! One pod's cable: a veth pair from the bridge into the pod's namespace, its address, its routes, its ports on the node.
//! All traffic of a pod goes through the gateway, also to its neighbour on the same bridge: so Services, host ports and
//! policies see every packet and every answer, with br_netfilter and without it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use super::Network;
use super::netlink::{self, Link};
use super::node::{self, NodeConfig};

/// The pod's end of the cable.
const POD_INTERFACE: &str = "eth0";

/// The links of pods carry this and the pod's UID as their alias, for people and for `sweep`.
pub(super) const ALIAS_PREFIX: &str = "pod ";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Kubernetes' word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Sctp => libc::IPPROTO_SCTP as u8,
        }
    }
}

/// A container's `hostPort`: connections to it on the node's `host_ip`, or on any address if that is 0.0.0.0, reach the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    pub host_ip: Ipv4Addr,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

impl HostPort {
    /// Two pods cannot both have it.
    pub fn conflicts(&self, other: &Self) -> bool {
        let same_address = self.host_ip == other.host_ip || self.host_ip.is_unspecified() || other.host_ip.is_unspecified();
        same_address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

/// What the agent asks for: the namespace by its path, `/proc/PID/ns/net` or a bind mount of it.
#[derive(Clone, Copy, Debug)]
pub struct AttachConfig<'a> {
    pub pod_uid: &'a str,
    pub netns: &'a Path,
    pub host_ports: &'a [HostPort],
}

/// What a pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub mac: Vec<u8>,
    /// In the pod.
    pub interface: &'static str,
    /// On the node.
    pub host_interface: String,
}

impl Attachment {
    pub(super) fn of(config: &NodeConfig, pod_uid: &str, address: Ipv4Addr) -> Self {
        Self {
            address,
            prefix: config.pod_cidr.prefix(),
            gateway: config.gateway(),
            mac: node::mac(address),
            interface: POD_INTERFACE,
            host_interface: host_interface(pod_uid),
        }
    }
}

/// The node's end of the cable: at most 15 bytes, the same for a UID each time (FNV-1a, 44 of its bits).
fn host_interface(pod_uid: &str) -> String {
    let hash = pod_uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("veth{:011x}", hash >> 20)
}

/// What there is of the cable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cable {
    host: Option<Link>,
    pod: Option<Link>,
    pod_addresses: Vec<(Ipv4Addr, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    DeleteHostEnd,
    DeletePodEnd(Link),
    Create,
}

/// A cable is right as a whole or is made anew: half of one is what an agent killed in the middle leaves behind.
fn plan(desired: &Attachment, bridge_index: u32, observed: Cable) -> Vec<Op> {
    let host_is_right = observed.host.as_ref().is_some_and(|link| link.up && link.bridge == bridge_index);
    let pod_is_right = observed.pod.as_ref().is_some_and(|link| link.up && link.mac == desired.mac);
    if host_is_right && pod_is_right && observed.pod_addresses.contains(&(desired.address, desired.prefix)) {
        return Vec::new();
    }
    // Deleting one end deletes the other; a pod's end without its host's end belongs to a cable that is not ours to keep.
    let delete = match (observed.host, observed.pod) {
        (Some(_), _) => vec![Op::DeleteHostEnd],
        (None, Some(pod)) => vec![Op::DeletePodEnd(pod)],
        (None, None) => vec![],
    };
    [delete, vec![Op::Create]].concat()
}

impl Network {
    /// Gives the pod its address and its cable, or finds that it has them. After an error nothing is left of a pod that had
    /// no lease before.
    pub async fn attach(&self, config: &AttachConfig<'_>) -> Result<Attachment> {
        let is_first = self.leases.borrow().get(config.pod_uid).is_none();
        let attached = self.try_attach(config).await;
        if is_first
            && attached.is_err()
            && let Err(error) = self.detach(config.pod_uid).await
        {
            log::warn!("pod={} network left behind: {error:#}", config.pod_uid);
        }
        attached
    }

    async fn try_attach(&self, config: &AttachConfig<'_>) -> Result<Attachment> {
        let had_ports = self.leases.borrow().get(config.pod_uid).is_some_and(|lease| !lease.host_ports.is_empty());
        let lease = self.leases.borrow_mut().acquire(config.pod_uid, config.host_ports)?;
        let desired = Attachment::of(&self.config, config.pod_uid, lease.address);
        let netns = File::open(config.netns).with_context(|| format!("open network namespace {}", config.netns.display()))?;
        netlink::with(None, async |node| {
            netlink::with(Some(netns.as_fd()), async |pod| {
                let bridge = netlink::link(node, &self.config.bridge).await?;
                let bridge = bridge.with_context(|| format!("bridge {} is missing", self.config.bridge))?;
                let observed = observe(node, pod, &desired).await?;
                for op in plan(&desired, bridge.index, observed) {
                    match op {
                        Op::DeleteHostEnd => netlink::delete(&desired.host_interface).await?,
                        Op::DeletePodEnd(link) => netlink::delete_now(pod, &link).await?,
                        Op::Create => {
                            create_cable(node, &self.config, config.pod_uid, &desired, bridge.index, netns.as_fd()).await?;
                            configure_pod(pod, &desired).await?;
                        }
                    }
                }
                Ok(())
            })
            .await
        })
        .await?;
        if had_ports || !config.host_ports.is_empty() {
            self.apply_firewall().await?;
        }
        Ok(desired)
    }

    /// Takes ports, cable and address away, in this order: an address is free only when nothing answers to it any more.
    /// That some or all of it is gone already is fine.
    pub async fn detach(&self, pod_uid: &str) -> Result<()> {
        let had_ports = self.leases.borrow_mut().close_ports(pod_uid)?;
        if had_ports {
            self.apply_firewall().await?;
        }
        netlink::delete(&host_interface(pod_uid)).await?;
        self.leases.borrow_mut().release(pod_uid)
    }

    /// Detaches every pod that is not in `live` (which must name those being attached, too): the pods whose end the agent did
    /// not see. Goes on after an error and returns the first; answers the UIDs of the pods that are gone.
    pub async fn sweep(&self, live: &BTreeSet<String>) -> Result<Vec<String>> {
        let links = netlink::with(None, netlink::links).await?;
        let by_link = links.iter().filter_map(|link| link.alias.strip_prefix(ALIAS_PREFIX)).map(str::to_owned);
        let known: BTreeSet<String> = by_link.chain(self.leases.borrow().iter().map(|lease| lease.pod_uid.clone())).collect();
        let mut gone = Vec::new();
        let mut first_error = Ok(());
        for pod_uid in known.difference(live) {
            match self.detach(pod_uid).await {
                Ok(()) => gone.push(pod_uid.clone()),
                Err(error) if first_error.is_ok() => first_error = Err(error).with_context(|| format!("detach pod {pod_uid}")),
                Err(_) => {}
            }
        }
        first_error.map(|()| gone)
    }
}

async fn observe(node: &Handle, pod: &Handle, desired: &Attachment) -> Result<Cable> {
    let host = netlink::link(node, &desired.host_interface).await?;
    let pod_link = netlink::link(pod, desired.interface).await?;
    let pod_addresses = match &pod_link {
        Some(link) => node::addresses(pod, link.index).await?,
        None => Vec::new(),
    };
    Ok(Cable { host, pod: pod_link, pod_addresses })
}

/// Both ends in one message, the pod's end born in the pod: nothing of it is ever seen on the node. It comes up later, for
/// veth refuses that until both ends are there.
async fn create_cable(
    node: &Handle,
    config: &NodeConfig,
    pod_uid: &str,
    desired: &Attachment,
    bridge_index: u32,
    netns: BorrowedFd<'_>,
) -> Result<()> {
    let name = &desired.host_interface;
    let pod_end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(desired.interface)
        .address(desired.mac.clone())
        .mtu(config.mtu)
        .setns_by_fd(netns.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .mtu(config.mtu)
        .controller(bridge_index)
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(pod_end)))
        .build();
    node.link().add(pair).execute().await.map_err(netlink::failure).with_context(|| format!("create link {name}"))?;
    let Some(link) = netlink::link(node, name).await? else { bail!("link {name} has gone") };
    // With br_netfilter a packet is turned round on the bridge already, and may have to leave by the port it came from: a pod
    // that speaks to itself by a Service or a port of the node.
    let hairpin = LinkBridgePort::new(link.index).hairpin(true).build();
    node.link().set_port(hairpin).execute().await.map_err(netlink::failure).with_context(|| format!("set hairpin of {name}"))?;
    let alias = LinkUnspec::new_with_index(link.index).append_extra_attribute(LinkAttribute::IfAlias(format!("{ALIAS_PREFIX}{pod_uid}")));
    node.link().change(alias.build()).execute().await.map_err(netlink::failure).with_context(|| format!("name pod of link {name}"))
}

async fn configure_pod(pod: &Handle, desired: &Attachment) -> Result<()> {
    let Some(loopback) = netlink::link(pod, "lo").await? else { bail!("namespace has no loopback") };
    let up = LinkUnspec::new_with_index(loopback.index).up().build();
    pod.link().change(up).execute().await.map_err(netlink::failure).context("set lo up")?;
    let Some(link) = netlink::link(pod, desired.interface).await? else { bail!("{} has gone", desired.interface) };
    // The kernel would give it an IPv6 address of its own accord, by which it met its neighbours past the gateway and all rules.
    let without_ipv6 = match Path::new("/proc/sys/net/ipv6").exists() {
        true => vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])],
        false => Vec::new(),
    };
    let up = LinkUnspec::new_with_index(link.index).append_extra_attribute(LinkAttribute::AfSpecUnspec(without_ipv6)).up().build();
    pod.link().change(up).execute().await.map_err(netlink::failure).with_context(|| format!("set {} up", desired.interface))?;

    // No route to the network itself: neighbours, too, are behind the gateway.
    let mut add = pod.address().add(link.index, desired.address.into(), desired.prefix).replace();
    add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    add.execute().await.map_err(netlink::failure).with_context(|| format!("add address {}/{}", desired.address, desired.prefix))?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(desired.gateway, 32)
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .build();
    pod.route().add(to_gateway).replace().execute().await.map_err(netlink::failure).context("add route to the gateway")?;
    let by_gateway = RouteMessageBuilder::<Ipv4Addr>::new().gateway(desired.gateway).output_interface(link.index).build();
    let added = pod.route().add(by_gateway).replace().execute().await;
    added.map_err(netlink::failure).with_context(|| format!("add default route by {}", desired.gateway))
}
