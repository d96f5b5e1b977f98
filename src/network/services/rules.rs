//! The nf_tables table of the Services: its sets, and rules that never name a Service. An address and port lead to a chain,
//! and the chain picks one of the backends that stand under that address and port; it serves all Services with that many. So
//! a Service comes, changes and goes by elements alone, and the kernel, which checks all chains when an element leads to one,
//! has only as many to look at as there are different counts of backends.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

pub use super::super::nftables::Set;
use super::super::nftables::{Expression, Hook, Observed, Register, Transaction};
use super::super::nftables::{TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, TYPE_MARK, TYPE_VERDICT};
use super::super::{Cidr, Protocol, conntrack};
use super::plan::{Elements, Key, Step};
use super::{Backend, Networks};

pub const TABLE: &str = "edgectl-services";

/// From an address of a Service and an index to a backend.
const BACKENDS: Set = Set {
    name: "backends",
    key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_MARK],
    value: &[TYPE_IPV4_ADDR, TYPE_INET_SERVICE],
    has_ranges: false,
};
/// The same for a port of the node's own addresses.
const NODE_PORT_BACKENDS: Set = Set {
    name: "node-port-backends",
    key: &[TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_MARK],
    value: &[TYPE_IPV4_ADDR, TYPE_INET_SERVICE],
    has_ranges: false,
};
/// Addresses that only some may come by,
const RESTRICTED: Set =
    Set { name: "restricted", key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE], value: &[], has_ranges: false };
/// and from where.
const SOURCES: Set =
    Set { name: "sources", key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR], value: &[], has_ranges: true };
/// From an address of a Service to the chain of its kind.
const SERVICES: Set =
    Set { name: "services", key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE], value: &[TYPE_VERDICT], has_ranges: false };
/// From a port of the node's own addresses to the chain of its kind.
const NODE_PORTS: Set = Set { name: "node-ports", key: &[TYPE_INET_PROTO, TYPE_INET_SERVICE], value: &[TYPE_VERDICT], has_ranges: false };

/// From an address of a Service to the chain for who is on this node himself, where others meet only backends of this node.
const INSIDE: Set =
    Set { name: "inside", key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE], value: &[TYPE_VERDICT], has_ranges: false };
/// The same for a port of the node's own addresses.
const NODE_PORTS_INSIDE: Set =
    Set { name: "node-ports-inside", key: &[TYPE_INET_PROTO, TYPE_INET_SERVICE], value: &[TYPE_VERDICT], has_ranges: false };

/// In the order in which they are written: what is written first is not led to yet.
pub const SETS: [Set; 8] = [BACKENDS, NODE_PORT_BACKENDS, SOURCES, RESTRICTED, SERVICES, NODE_PORTS, INSIDE, NODE_PORTS_INSIDE];
const BACKENDS_RANK: usize = 0;
const NODE_PORT_BACKENDS_RANK: usize = 1;
const SOURCES_RANK: usize = 2;
const RESTRICTED_RANK: usize = 3;
const SERVICES_RANK: usize = 4;
const NODE_PORTS_RANK: usize = 5;
const INSIDE_RANK: usize = 6;
const NODE_PORTS_INSIDE_RANK: usize = 7;

pub fn leads_to_chains(rank: usize) -> bool {
    rank >= SERVICES_RANK
}

/// At the end of a backend's key.
pub const INDEX_BYTES: usize = 4;

/// Further ones get no connections.
pub const BACKENDS_MAX: usize = 1000;

/// The index of the first backend for who is on this node himself.
pub const INSIDE_INDEX: u32 = BACKENDS_MAX as u32;

/// What Kubernetes' own proxy uses; the bit is taken away again before the packet leaves.
const MASQUERADE_MARK: u32 = 0x4000;

/// Host ports (see `firewall`) come first: a pod has asked for exactly this node.
const DNAT_PRIORITY: i32 = -99;
const PREROUTING: (&str, Hook) = ("prerouting", Hook { kind: "nat", number: libc::NF_INET_PRE_ROUTING as u32, priority: DNAT_PRIORITY });
const OUTPUT: (&str, Hook) = ("output", Hook { kind: "nat", number: libc::NF_INET_LOCAL_OUT as u32, priority: DNAT_PRIORITY });
const POSTROUTING: (&str, Hook) = ("postrouting", Hook { kind: "nat", number: libc::NF_INET_POST_ROUTING as u32, priority: 99 });
const FORWARDED: (&str, Hook) = ("forwarded", Hook { kind: "filter", number: libc::NF_INET_FORWARD as u32, priority: 0 });
const SENT: (&str, Hook) = ("sent", Hook { kind: "filter", number: libc::NF_INET_LOCAL_OUT as u32, priority: 0 });
const REJECT_CHAIN: &str = "reject";
const DROP_CHAIN: &str = "drop";
const INSIDE_SUFFIX: &str = "-inside";
const BY_CLIENT_SUFFIX: &str = "-by-client";
const MASQUERADE_SUFFIX: &str = "-masquerade";

/// Where the addresses lie in an IPv4 header (RFC 791), and the destination's port in a TCP, UDP or SCTP header.
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const PORT_OFFSET: u32 = 2;

/// Where connections to a Service come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    Address(Ipv4Addr, Protocol, u16),
    NodePort(Protocol, u16),
}

impl Front {
    pub fn key(self) -> Key {
        match self {
            Self::Address(address, protocol, port) => {
                (SERVICES_RANK, [address.octets(), [protocol.number(), 0, 0, 0], padded(port)].concat())
            }
            Self::NodePort(protocol, port) => (NODE_PORTS_RANK, [[protocol.number(), 0, 0, 0], padded(port)].concat()),
        }
    }

    pub fn inside_key(self) -> Key {
        (if matches!(self, Self::NodePort(..)) { NODE_PORTS_INSIDE_RANK } else { INSIDE_RANK }, self.key().1)
    }

    pub fn backend_key(self, index: u32) -> Key {
        let rank = if matches!(self, Self::NodePort(..)) { NODE_PORT_BACKENDS_RANK } else { BACKENDS_RANK };
        (rank, [&self.key().1, index.to_ne_bytes().as_slice()].concat())
    }
}

/// That only these networks may come by an address. Of networks that lie in each other the kernel takes the outer one alone.
pub fn restriction(front: Front, networks: &[Cidr]) -> impl Iterator<Item = Key> {
    let (_, key) = front.key();
    let is_inner = |network: &&Cidr| networks.iter().any(|other| other.prefix() < network.prefix() && other.contains(network.address()));
    let outer = networks.iter().filter(move |network| !is_inner(network)).map({
        let key = key.clone();
        move |network| {
            let last = Ipv4Addr::from(u32::from(network.address()) | !u32::from(network.mask()));
            (SOURCES_RANK, [key.as_slice(), &network.address().octets(), &key, &last.octets()].concat())
        }
    });
    outer.chain([(RESTRICTED_RANK, key)])
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Address(address, protocol, port) => write!(f, "{address} {} {port}", protocol.name()),
            Self::NodePort(protocol, port) => write!(f, "node port {} {port}", protocol.name()),
        }
    }
}

/// Where datagrams that come by this key are sent; nothing for other protocols.
pub fn datagram_front(rank: usize, key: &[u8]) -> Option<conntrack::Front> {
    let (address, rest) = match rank {
        BACKENDS_RANK | SERVICES_RANK => (Some(Ipv4Addr::from(*key.first_chunk::<4>()?)), &key[4..]),
        NODE_PORT_BACKENDS_RANK | NODE_PORTS_RANK => (None, key),
        _ => return None,
    };
    match rest {
        [protocol, _, _, _, high, low, ..] if *protocol == Protocol::Udp.number() => Some((address, u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// What is done with a connection, whatever Service it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Drop,
    Pick {
        backends: u32,
        by_node_port: bool,
        /// For who is on this node himself: all backends, where others meet only those of this node.
        inside: bool,
        /// A client's address always leads to the same of the backends.
        by_client: bool,
        masquerades: bool,
    },
}

impl Kind {
    /// Without backends the connection is dropped.
    pub fn new(front: Front, backends: usize, by_client: bool, masquerades: bool) -> Self {
        let by_node_port = matches!(front, Front::NodePort(..));
        match backends {
            0 => Self::Drop,
            _ => Self::Pick { backends: backends as u32, by_node_port, inside: false, by_client, masquerades },
        }
    }

    pub fn inside(front: Front, backends: usize, by_client: bool) -> Self {
        let by_node_port = matches!(front, Front::NodePort(..));
        Self::Pick { backends: backends as u32, by_node_port, inside: true, by_client, masquerades: false }
    }

    pub fn chain(self) -> String {
        match self {
            Self::Drop => DROP_CHAIN.to_owned(),
            Self::Pick { backends, by_node_port, inside, by_client, masquerades } => {
                let map = if by_node_port { NODE_PORTS } else { SERVICES }.name;
                let suffix = |is_set, suffix| if is_set { suffix } else { "" };
                let inside = suffix(inside, INSIDE_SUFFIX);
                format!("{map}-{backends}{inside}{}{}", suffix(by_client, BY_CLIENT_SUFFIX), suffix(masquerades, MASQUERADE_SUFFIX))
            }
        }
    }

    pub fn of_chain(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        if name == DROP_CHAIN {
            return Some(Self::Drop);
        }
        let (name, masquerades) = name.strip_suffix(MASQUERADE_SUFFIX).map_or((name, false), |name| (name, true));
        let (name, by_client) = name.strip_suffix(BY_CLIENT_SUFFIX).map_or((name, false), |name| (name, true));
        let (name, inside) = name.strip_suffix(INSIDE_SUFFIX).map_or((name, false), |name| (name, true));
        let (map, backends) = name.rsplit_once('-')?;
        let by_node_port = [SERVICES, NODE_PORTS].iter().position(|set| set.name == map)? == 1;
        Some(Self::Pick { backends: backends.parse().ok()?, by_node_port, inside, by_client, masquerades })
    }

    fn rules(self) -> Vec<Rule> {
        let Self::Pick { backends, by_node_port, inside, by_client, masquerades } = self else {
            return vec![("there is no backend".to_owned(), vec![Expression::Drop])];
        };
        let mut rules = Vec::new();
        if masquerades {
            let mark = vec![
                Expression::LoadMark(Register(0)),
                Expression::Or { register: Register(0), bits: MASQUERADE_MARK.to_ne_bytes() },
                Expression::SetMark(Register(0)),
            ];
            rules.push(("the answer comes back by this node".to_owned(), mark));
        }
        let (mut pick, map, index) = match by_node_port {
            true => (load_node_port().to_vec(), NODE_PORT_BACKENDS, Register(2)),
            false => (load_service().to_vec(), BACKENDS, Register(3)),
        };
        let first = if inside { INSIDE_INDEX } else { 0 };
        match by_client {
            true => pick.extend([
                Expression::LoadNetworkHeader { offset: SOURCE_OFFSET, length: 4, into: index },
                Expression::LoadHash { from: index, first, below: backends, into: index },
            ]),
            false => pick.push(Expression::LoadRandom { first, below: backends, into: index }),
        }
        pick.extend([
            Expression::LookUp { set: map.name, key: Register(0), value: Some(Register(0)) },
            Expression::DestinationNat { address: Register(0), port: Register(1) },
        ]);
        rules.push((format!("one of {backends}{}", if by_client { " by the client's address" } else { "" }), pick));
        rules
    }
}

/// The comment says all that the rule does beside what its chain is for.
type Rule = (String, Vec<Expression<'static>>);

/// A port as a part of a concatenation.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub fn backend_of(value: &[u8]) -> Option<Backend> {
    match value {
        [a, b, c, d, high, low, ..] => Some(Backend { address: [*a, *b, *c, *d].into(), port: u16::from_be_bytes([*high, *low]) }),
        _ => None,
    }
}

pub fn backend_value(backend: Backend) -> Vec<u8> {
    [backend.address.octets(), padded(backend.port)].concat()
}

/// `ip daddr . meta l4proto . th dport`
fn load_service() -> [Expression<'static>; 3] {
    [
        Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(0) },
        Expression::LoadProtocol(Register(1)),
        Expression::LoadTransportHeader { offset: PORT_OFFSET, length: 2, into: Register(2) },
    ]
}

/// `meta l4proto . th dport`
fn load_node_port() -> [Expression<'static>; 2] {
    [Expression::LoadProtocol(Register(0)), Expression::LoadTransportHeader { offset: PORT_OFFSET, length: 2, into: Register(1) }]
}

fn local() -> Vec<u8> {
    u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec()
}

/// The rules of each chain in their order, but for the chains of kinds.
fn base_rules(Networks { services: service_cidr, pods }: Networks) -> Vec<(&'static str, String, Vec<Expression<'static>>)> {
    let addresses = |map: Set<'static>| [load_service().as_slice(), &[Expression::Decide { map: map.name, key: Register(0) }]].concat();
    let from_pods = || {
        vec![
            Expression::LoadNetworkHeader { offset: SOURCE_OFFSET, length: 4, into: Register(0) },
            Expression::And { register: Register(0), mask: pods.mask().octets() },
            Expression::Equal { register: Register(0), bytes: pods.address().octets().to_vec() },
        ]
    };
    let node_ports = |map: Set<'static>| {
        let mut rule = vec![
            Expression::LoadDestinationKind(Register(0)),
            Expression::Equal { register: Register(0), bytes: local() },
            Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(0) },
            Expression::And { register: Register(0), mask: [255, 0, 0, 0] },
            Expression::NotEqual { register: Register(0), bytes: Ipv4Addr::new(127, 0, 0, 0).octets().to_vec() },
        ];
        rule.extend(load_node_port());
        rule.push(Expression::Decide { map: map.name, key: Register(0) });
        rule
    };
    let restricted = || {
        let mut rule = load_service().to_vec();
        rule.extend([
            Expression::LookUp { set: RESTRICTED.name, key: Register(0), value: None },
            Expression::LoadNetworkHeader { offset: SOURCE_OFFSET, length: 4, into: Register(3) },
            Expression::Miss { set: SOURCES.name, key: Register(0) },
            Expression::Drop,
        ]);
        rule
    };
    let not_served = || {
        vec![
            Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(0) },
            Expression::And { register: Register(0), mask: service_cidr.mask().octets() },
            Expression::Equal { register: Register(0), bytes: service_cidr.address().octets().to_vec() },
            Expression::LoadDestinationKind(Register(0)),
            Expression::NotEqual { register: Register(0), bytes: local() },
            Expression::Jump(REJECT_CHAIN),
        ]
    };
    let masquerade = vec![
        Expression::LoadMark(Register(0)),
        Expression::And { register: Register(0), mask: MASQUERADE_MARK.to_ne_bytes() },
        Expression::NotEqual { register: Register(0), bytes: vec![0; 4] },
        // A packet that is wrapped into another hands its mark on to it.
        Expression::LoadMark(Register(0)),
        Expression::And { register: Register(0), mask: (!MASQUERADE_MARK).to_ne_bytes() },
        Expression::SetMark(Register(0)),
        Expression::Masquerade,
    ];
    let reset = vec![
        Expression::LoadProtocol(Register(0)),
        Expression::Equal { register: Register(0), bytes: vec![libc::IPPROTO_TCP as u8] },
        Expression::Reset,
    ];
    let (to_address, to_node_port) = ("addresses of Services".to_owned(), "node ports".to_owned());
    let by_others = "by whom it may not be reached".to_owned();
    let nobody = format!("no Service of {service_cidr}");
    vec![
        (PREROUTING.0, by_others.clone(), restricted()),
        (PREROUTING.0, format!("{to_address} from {pods}"), [from_pods(), addresses(INSIDE)].concat()),
        (PREROUTING.0, format!("{to_node_port} from {pods}"), [from_pods(), node_ports(NODE_PORTS_INSIDE)].concat()),
        (PREROUTING.0, to_address.clone(), addresses(SERVICES)),
        (PREROUTING.0, to_node_port.clone(), node_ports(NODE_PORTS)),
        (OUTPUT.0, by_others, restricted()),
        (OUTPUT.0, format!("{to_address} from the node"), addresses(INSIDE)),
        (OUTPUT.0, format!("{to_node_port} from the node"), node_ports(NODE_PORTS_INSIDE)),
        (OUTPUT.0, to_address, addresses(SERVICES)),
        (OUTPUT.0, to_node_port, node_ports(NODE_PORTS)),
        (POSTROUTING.0, "by this node's address".to_owned(), masquerade),
        (FORWARDED.0, nobody.clone(), not_served()),
        (SENT.0, nobody, not_served()),
        (REJECT_CHAIN, "tcp".to_owned(), reset),
        (REJECT_CHAIN, "all else".to_owned(), vec![Expression::PortUnreachable]),
    ]
}

/// Every rule is what it should be, and every element leads to a chain that has its rules.
pub fn is_usable(observed: &Observed, elements: &Elements, networks: Networks) -> bool {
    let mut expected = BTreeMap::<String, Vec<String>>::new();
    for (chain, comment, _) in base_rules(networks) {
        expected.entry(chain.to_owned()).or_default().push(comment);
    }
    for kind in kinds_of(observed).chain(elements.kinds()) {
        expected.insert(kind.chain(), kind.rules().into_iter().map(|(comment, _)| comment).collect());
    }
    expected == observed.rules
}

/// The kinds that have a chain.
pub fn kinds_of(observed: &Observed) -> impl Iterator<Item = Kind> {
    observed.rules.keys().filter_map(|chain| Kind::of_chain(chain.as_bytes()))
}

/// The table anew, without a Service.
pub fn rebuild(transaction: &mut Transaction, networks: Networks) {
    // Deleting what is not there is an error; creating what is there is none.
    transaction.create_table();
    transaction.delete_table();
    transaction.create_table();
    for (name, hook) in [PREROUTING, OUTPUT, POSTROUTING, FORWARDED, SENT] {
        transaction.create_chain(name, Some(hook));
    }
    transaction.create_chain(REJECT_CHAIN, None);
    for set in SETS {
        transaction.create_set(set);
    }
    for (chain, comment, expressions) in base_rules(networks) {
        transaction.add_rule(chain, &comment, &expressions);
    }
}

pub fn step(transaction: &mut Transaction, step: &Step) {
    match step {
        Step::CreateKind(kind) => {
            let chain = kind.chain();
            transaction.create_chain(&chain, None);
            for (comment, expressions) in kind.rules() {
                transaction.add_rule(&chain, &comment, &expressions);
            }
        }
        Step::Put { rank, replaced, with } => {
            transaction.delete_elements(SETS[*rank], replaced);
            transaction.add_elements(SETS[*rank], with);
        }
        Step::Delete { rank, elements } => transaction.delete_elements(SETS[*rank], elements),
        Step::DeleteKind(kind) => transaction.delete_chain(&kind.chain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_known_by_its_chain() {
        let fronts = [Front::Address([10, 96, 0, 7].into(), Protocol::Tcp, 80), Front::NodePort(Protocol::Udp, 30053)];
        for front in fronts {
            for (backends, by_client, masquerades) in
                [(0, true, true), (1, false, false), (2, true, false), (3, false, true), (40, true, true)]
            {
                for kind in [Kind::new(front, backends, by_client, masquerades), Kind::inside(front, backends, by_client)] {
                    assert_eq!(Kind::of_chain(kind.chain().as_bytes()), Some(kind), "{}", kind.chain());
                }
            }
        }
        for strange in ["prerouting", "reject", "services-", "other-2", "services-2-other"] {
            assert_eq!(Kind::of_chain(strange.as_bytes()), None, "{strange}");
        }
    }
}
