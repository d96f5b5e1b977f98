//! The ways to the pods of other nodes: a plain route to those that share a link with this node, and VXLAN (RFC 7348) to the others,
//! with an entry for each node instead of any asking around. `plan` compares what should be with what is there; nothing of another's
//! making is read or changed: routes are known by their protocol number, the rest by the link.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder};

use super::netlink::{self, Link};
use super::{Cidr, Network, node};

const TUNNEL: &str = "edge1";
/// As flannel has them, and Linux before the port was assigned.
const VNI: u32 = 1;
const PORT: u16 = 8472;
/// Of IPv4, UDP, VXLAN and the inner Ethernet header, in bytes.
const OVERHEAD: u32 = 50;
/// Who made a route, `ip route show proto 69`; no number of a known daemon in iproute2's rt_protos.
pub(super) const PROTOCOL: u8 = 69;
/// The tunnel's alias, before the address that it sends from.
pub(super) const ALIAS_PREFIX: &str = "vxlan from ";

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub node_address: Ipv4Addr,
    pub pod_cidr: Cidr,
}

/// The way to a peer's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the node's own address, on the link that it shares with us.
    Near { gateway: Ipv4Addr, link_index: u32 },
    /// By the address that the node has in the tunnel.
    Far { gateway: Ipv4Addr },
}

/// By address and prefix length of the network that a route leads to.
type Routes<T> = BTreeMap<(Ipv4Addr, u8), T>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Desired {
    routes: Routes<Way>,
    /// The nodes at the other ends of the tunnel, by their addresses in it.
    ends: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Observed {
    tunnel: Option<Link>,
    tunnel_has_address: bool,
    /// Gateway and link.
    routes: Routes<(Ipv4Addr, u32)>,
    neighbours: BTreeMap<Ipv4Addr, Vec<u8>>,
    /// To which node frames for an address go.
    entries: BTreeMap<Vec<u8>, Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    DeleteRoute(Ipv4Addr, u8),
    DeleteTunnel,
    CreateTunnel,
    AddAddress,
    DeleteNeighbour(Ipv4Addr),
    DeleteEntry(Vec<u8>, Ipv4Addr),
    SetNeighbour(Ipv4Addr),
    SetEntry(Vec<u8>, Ipv4Addr),
    SetRoute(Ipv4Addr, u8, Way),
}

/// The link that holds the node's own address, with all of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Uplink {
    index: u32,
    mtu: u32,
    addresses: Vec<(Ipv4Addr, u8)>,
}

/// What the node's own end of the tunnel should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// In the tunnel: the pod network's own address, which no pod has.
    address: Ipv4Addr,
    node_address: Ipv4Addr,
    mtu: u32,
}

impl End {
    fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.node_address)
    }
}

fn desired(uplink: &Uplink, peers: &[Peer]) -> Desired {
    let is_near = |address: Ipv4Addr| {
        let subnets = uplink.addresses.iter().filter_map(|(own, prefix)| Cidr::new(*own, *prefix).ok());
        subnets.into_iter().any(|subnet| subnet.contains(address))
    };
    let mut desired = Desired::default();
    for peer in peers {
        let end = peer.pod_cidr.address();
        let way = match is_near(peer.node_address) {
            true => Way::Near { gateway: peer.node_address, link_index: uplink.index },
            false => {
                desired.ends.insert(end, peer.node_address);
                Way::Far { gateway: end }
            }
        };
        desired.routes.insert((end, peer.pod_cidr.prefix()), way);
    }
    desired
}

/// What goes is taken away first, and a route comes last: then all that it needs is there.
fn plan(desired: &Desired, own: &End, mut observed: Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let is_wanted = !desired.ends.is_empty();
    let is_right = |link: &Link| link.up && link.mtu == own.mtu && link.mac == node::mac(own.address) && link.alias == own.alias();
    if let Some(tunnel) = observed.tunnel.take_if(|tunnel| !is_wanted || !is_right(tunnel)) {
        ops.push(Op::DeleteTunnel);
        // All that was on it goes with it.
        observed.routes.retain(|_, (_, link_index)| *link_index != tunnel.index);
        (observed.neighbours, observed.entries, observed.tunnel_has_address) = Default::default();
    }
    let tunnel_index = observed.tunnel.as_ref().map(|tunnel| tunnel.index);
    let is_set = |way: &Way, observed: &(Ipv4Addr, u32)| match way {
        Way::Near { gateway, link_index } => *observed == (*gateway, *link_index),
        Way::Far { gateway } => Some(observed.1) == tunnel_index && observed.0 == *gateway,
    };
    for (address, prefix) in observed.routes.keys().filter(|key| !desired.routes.contains_key(key)) {
        ops.push(Op::DeleteRoute(*address, *prefix));
    }
    if is_wanted && observed.tunnel.is_none() {
        ops.push(Op::CreateTunnel);
    }
    if is_wanted && !observed.tunnel_has_address {
        ops.push(Op::AddAddress);
    }
    for (address, _) in observed.neighbours.iter().filter(|(address, _)| !desired.ends.contains_key(address)) {
        ops.push(Op::DeleteNeighbour(*address));
    }
    let entries: BTreeMap<Vec<u8>, Ipv4Addr> = desired.ends.iter().map(|(end, node)| (node::mac(*end), *node)).collect();
    for (mac, node) in observed.entries.iter().filter(|(mac, _)| !entries.contains_key(*mac)) {
        ops.push(Op::DeleteEntry(mac.clone(), *node));
    }
    for end in desired.ends.keys().filter(|end| observed.neighbours.get(end) != Some(&node::mac(**end))) {
        ops.push(Op::SetNeighbour(*end));
    }
    for (mac, node) in entries.iter().filter(|(mac, node)| observed.entries.get(*mac) != Some(node)) {
        ops.push(Op::SetEntry(mac.clone(), *node));
    }
    for (key, way) in desired.routes.iter().filter(|(key, way)| !observed.routes.get(key).is_some_and(|known| is_set(way, known))) {
        ops.push(Op::SetRoute(key.0, key.1, *way));
    }
    ops
}

/// The same on a usual link, while it is not known.
pub const POD_MTU_DEFAULT: u32 = 1500 - OVERHEAD;

/// The largest packet that a pod of a node with this address may send: one that still fits when it goes through the tunnel, for a
/// node that comes later may be far away.
///
/// # Errors
/// If no link has the address.
pub async fn pod_mtu(node_address: Ipv4Addr) -> Result<u32> {
    netlink::with(None, async |handle| Ok(uplink(handle, node_address).await?.mtu - OVERHEAD)).await
}

impl Network {
    /// Makes the ways to the pods of these nodes, and takes all others away.
    ///
    /// # Errors
    /// What could not be done; the next call does it.
    pub async fn set_peers(&self, peers: &[Peer]) -> Result<()> {
        let known = self.cluster.get();
        let cluster = peers.iter().fold(known, |cluster, peer| cluster.joined(peer.pod_cidr));
        if cluster != known {
            self.cluster.set(cluster);
            self.apply_firewall().await.inspect_err(|_| self.cluster.set(known))?;
        }
        netlink::with(None, async |handle| {
            let uplink = uplink(handle, self.config.node_address).await?;
            let address = self.config.pod_cidr.address();
            let own = End { address, node_address: self.config.node_address, mtu: uplink.mtu - OVERHEAD };
            let observed = observe(handle, address).await?;
            for op in plan(&desired(&uplink, peers), &own, observed) {
                apply(handle, &own, &op).await.with_context(|| format!("reach other nodes: {op:?}"))?;
            }
            Ok(())
        })
        .await
    }
}

async fn uplink(handle: &Handle, node_address: Ipv4Addr) -> Result<Uplink> {
    let messages: Vec<_> = handle.address().get().execute().try_collect().await.map_err(netlink::failure).context("list addresses")?;
    let held: Vec<(u32, Ipv4Addr, u8)> = messages
        .iter()
        .filter_map(|message| {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            Some((message.header.index, address?, message.header.prefix_len))
        })
        .collect();
    let index = held.iter().find(|(_, address, _)| *address == node_address).map(|(index, ..)| *index);
    let index = index.with_context(|| format!("no link has the node's address {node_address}"))?;
    let links = netlink::links(handle).await?;
    let mtu = links.iter().find(|link| link.index == index).with_context(|| format!("the link of {node_address} has gone"))?.mtu;
    let addresses = held.into_iter().filter(|(of, ..)| *of == index).map(|(_, address, prefix)| (address, prefix)).collect();
    Ok(Uplink { index, mtu, addresses })
}

async fn observe(handle: &Handle, own_end: Ipv4Addr) -> Result<Observed> {
    let tunnel = netlink::link(handle, TUNNEL).await?;
    let wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> =
        handle.route().get(wanted).execute().try_collect().await.map_err(netlink::failure).context("list routes")?;
    let routes = routes.iter().filter(|route| route.header.protocol == RouteProtocol::from(PROTOCOL)).filter_map(route_of).collect();
    let mut observed = Observed { routes, ..Observed::default() };
    if let Some(tunnel) = tunnel {
        observed.tunnel_has_address = node::addresses(handle, tunnel.index).await?.contains(&(own_end, 32));
        for message in neighbours(handle, AddressFamily::Inet, tunnel.index).await? {
            if let (Some(address), Some(mac), NeighbourState::Permanent) = (destination(&message), mac(&message), message.header.state) {
                observed.neighbours.insert(address, mac);
            }
        }
        for message in neighbours(handle, AddressFamily::Bridge, tunnel.index).await? {
            if let (Some(node), Some(mac)) = (destination(&message), mac(&message)) {
                observed.entries.insert(mac, node);
            }
        }
        observed.tunnel = Some(tunnel);
    }
    Ok(observed)
}

fn route_of(route: &RouteMessage) -> Option<((Ipv4Addr, u8), (Ipv4Addr, u32))> {
    let (mut network, mut gateway, mut link_index) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => link_index = Some(*index),
            _ => {}
        }
    }
    Some(((network?, route.header.destination_prefix_length), (gateway?, link_index?)))
}

async fn neighbours(handle: &Handle, family: AddressFamily, link_index: u32) -> Result<Vec<NeighbourMessage>> {
    let found: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(family)
        .execute()
        .try_collect()
        .await
        .map_err(netlink::failure)
        .context("list neighbours")?;
    Ok(found.into_iter().filter(|message| message.header.ifindex == link_index).collect())
}

fn destination(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Vec<u8>> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
        _ => None,
    })
}

async fn apply(handle: &Handle, own: &End, op: &Op) -> Result<()> {
    let tunnel = async || -> Result<Link> { netlink::link(handle, TUNNEL).await?.with_context(|| format!("link {TUNNEL} has gone")) };
    let done = match op {
        Op::DeleteRoute(network, prefix) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(*network, *prefix).protocol(PROTOCOL.into()).build();
            handle.route().del(route).execute().await
        }
        Op::DeleteTunnel => return netlink::delete(TUNNEL).await,
        Op::CreateTunnel => {
            let link = LinkVxlan::new(TUNNEL, VNI)
                .local(own.node_address)
                .port(PORT)
                .learning(false)
                .address(node::mac(own.address))
                .mtu(own.mtu)
                .up()
                .build();
            handle.link().add(link).execute().await.map_err(netlink::failure).context("create (the kernel needs CONFIG_VXLAN)")?;
            let alias = LinkUnspec::new_with_index(tunnel().await?.index).append_extra_attribute(LinkAttribute::IfAlias(own.alias()));
            handle.link().change(alias.build()).execute().await
        }
        Op::AddAddress => handle.address().add(tunnel().await?.index, own.address.into(), 32).replace().execute().await,
        Op::SetNeighbour(end) => {
            let add = handle.neighbours().add(tunnel().await?.index, (*end).into()).link_layer_address(&node::mac(*end));
            add.replace().execute().await
        }
        Op::SetEntry(mac, node) => {
            let add = handle.neighbours().add_bridge(tunnel().await?.index, mac).flags(NeighbourFlags::Own).destination((*node).into());
            add.replace().execute().await
        }
        Op::DeleteNeighbour(end) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.ifindex = tunnel().await?.index;
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(*end)));
            handle.neighbours().del(message).execute().await
        }
        Op::DeleteEntry(mac, node) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = tunnel().await?.index;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.clone()));
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(*node)));
            handle.neighbours().del(message).execute().await
        }
        Op::SetRoute(network, prefix, way) => {
            let (gateway, link_index) = match way {
                Way::Near { gateway, link_index } => (*gateway, *link_index),
                Way::Far { gateway } => (*gateway, tunnel().await?.index),
            };
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*network, *prefix)
                .gateway(gateway)
                .output_interface(link_index)
                .protocol(PROTOCOL.into())
                .onlink()
                .build();
            handle.route().add(route).replace().execute().await
        }
    };
    match done {
        // Gone by itself meanwhile.
        Err(error) if matches!(op, Op::DeleteRoute(..) | Op::DeleteNeighbour(_) | Op::DeleteEntry(..)) => match netlink::errno(&error) {
            libc::ESRCH | libc::ENOENT => Ok(()),
            _ => Err(netlink::failure(error)),
        },
        Err(error) => bail!(netlink::failure(error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: End = End { address: Ipv4Addr::new(10, 244, 0, 0), node_address: Ipv4Addr::new(192, 0, 2, 1), mtu: 1450 };

    fn peer(node_address: [u8; 4], number: u8) -> Peer {
        Peer { node_address: node_address.into(), pod_cidr: Cidr::new([10, 244, number, 0].into(), 24).unwrap() }
    }

    fn uplink() -> Uplink {
        Uplink { index: 2, mtu: 1500, addresses: vec![(OWN.node_address, 24)] }
    }

    fn tunnel() -> Link {
        let (alias, mac) = (OWN.alias(), node::mac(OWN.address));
        Link { index: 7, name: TUNNEL.into(), alias, up: true, mtu: 1450, mac, bridge: 0 }
    }

    /// As it is when one node is near and one is far.
    fn observed() -> Observed {
        let (near, far) = (Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::new(198, 51, 100, 1));
        let end = Ipv4Addr::new(10, 244, 2, 0);
        Observed {
            tunnel: Some(tunnel()),
            tunnel_has_address: true,
            routes: [((Ipv4Addr::new(10, 244, 1, 0), 24), (near, 2)), ((end, 24), (end, 7))].into(),
            neighbours: [(end, node::mac(end))].into(),
            entries: [(node::mac(end), far)].into(),
        }
    }

    fn check(peers: &[Peer], observed: Observed, expected: &[Op]) {
        assert_eq!(plan(&desired(&uplink(), peers), &OWN, observed), expected);
    }

    #[test]
    fn near_nodes_have_a_route_and_far_ones_a_tunnel() {
        let near = peer([192, 0, 2, 9], 1);
        let far = peer([198, 51, 100, 1], 2);
        let (network, end) = (near.pod_cidr.address(), far.pod_cidr.address());
        let by_link = Op::SetRoute(network, 24, Way::Near { gateway: near.node_address, link_index: 2 });
        check(&[near], Observed::default(), std::slice::from_ref(&by_link));
        check(
            &[near, far],
            Observed::default(),
            &[
                Op::CreateTunnel,
                Op::AddAddress,
                Op::SetNeighbour(end),
                Op::SetEntry(node::mac(end), far.node_address),
                by_link,
                Op::SetRoute(end, 24, Way::Far { gateway: end }),
            ],
        );
        check(&[near, far], observed(), &[]);
    }

    #[test]
    fn what_is_no_longer_wanted_goes_and_what_is_wrong_is_mended() {
        let (near, far) = (peer([192, 0, 2, 9], 1), peer([198, 51, 100, 1], 2));
        let end = far.pod_cidr.address();
        check(&[near], observed(), &[Op::DeleteTunnel]);
        check(&[far], observed(), &[Op::DeleteRoute(near.pod_cidr.address(), 24)]);
        check(&[], observed(), &[Op::DeleteTunnel, Op::DeleteRoute(near.pod_cidr.address(), 24)]);
        // The node has moved.
        let moved = peer([198, 51, 100, 5], 2);
        check(&[near, moved], observed(), &[Op::SetEntry(node::mac(end), moved.node_address)]);
        // We have moved: the tunnel sends from another address.
        let mut before = observed();
        before.tunnel = Some(Link { alias: format!("{ALIAS_PREFIX}192.0.2.77"), ..tunnel() });
        check(
            &[near, far],
            before,
            &[
                Op::DeleteTunnel,
                Op::CreateTunnel,
                Op::AddAddress,
                Op::SetNeighbour(end),
                Op::SetEntry(node::mac(end), far.node_address),
                Op::SetRoute(end, 24, Way::Far { gateway: end }),
            ],
        );
        let mut stranger = observed();
        stranger.neighbours.insert([10, 244, 9, 0].into(), node::mac([10, 244, 9, 0].into()));
        check(&[near, far], stranger, &[Op::DeleteNeighbour([10, 244, 9, 0].into())]);
    }
}
