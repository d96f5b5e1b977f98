//! The nf_tables table of the network policies: what chains, rules and sets there are for what is isolated. A pod's address leads
//! to a chain that says who may, and pods that may the same share it, for it is named by what it says. Whom a selector
//! selects lies in a set of its own. So a pod that comes or goes is an element or two, and a policy the few chains that it means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use super::super::nftables::{Element, Expression, Hook, Observed, Register, Set};
use super::super::nftables::{TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, TYPE_VERDICT};
use super::super::{Cidr, Protocol};
use super::{Allowance, Isolation, Peers, Ports};

pub const TABLE: &str = "edgectl-policies";

/// After `services`, which tells a client at once that nobody serves an address. One behind the other: what the first lets pass,
/// the second still judges.
pub const EGRESS: (&str, Hook) = ("egress", Hook { kind: "filter", number: libc::NF_INET_FORWARD as u32, priority: 1 });
pub const INGRESS: (&str, Hook) = ("ingress", Hook { kind: "filter", number: libc::NF_INET_FORWARD as u32, priority: 2 });

/// From an isolated pod's address to the chain of what it may.
const ISOLATED_KEY: [u32; 1] = [TYPE_IPV4_ADDR];
const TO_CHAIN: [u32; 1] = [TYPE_VERDICT];
const EGRESS_PODS: Set = Set { name: "egress-pods", key: &ISOLATED_KEY, value: &TO_CHAIN, has_ranges: false };
const INGRESS_PODS: Set = Set { name: "ingress-pods", key: &ISOLATED_KEY, value: &TO_CHAIN, has_ranges: false };
/// A pod that has come to itself by a Service: it is never shut out from itself.
const SELVES: Set = Set { name: "selves", key: &[TYPE_IPV4_ADDR, TYPE_IPV4_ADDR], value: &[], has_ranges: false };
const BASE_SETS: [Set; 3] = [EGRESS_PODS, INGRESS_PODS, SELVES];

const GROUP_KEY: &[u32] = &[TYPE_IPV4_ADDR];
const SOCKETS_KEY: &[u32] = &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE];

/// linux/netfilter/nf_conntrack_common.h: IP_CT_DIR_REPLY, and NF_CT_STATE_BIT(IP_CT_RELATED).
const DIRECTION_REPLY: u8 = 1;
const STATE_RELATED: u32 = 1 << 2;

/// Where the addresses lie in an IPv4 header (RFC 791), and the destination's port in a TCP, UDP or SCTP header.
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const PORT_OFFSET: u32 = 2;

/// All that stands in the table; nothing at all if no pod is isolated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains by their rank and name: a chain leads only to chains of higher rank.
    pub chains: BTreeMap<(Rank, String), Vec<Line>>,
    pub elements: BTreeMap<String, BTreeSet<Element>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// What some pods may.
    Pods,
    /// A network with holes.
    Block,
    Ports,
}

/// One rule. What it is shows in its comment, by which it is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    filter: Filter,
    verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    All,
    Group(Side, String),
    Within(Side, Cidr),
    Sockets(String),
    Ports(Ports),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
}

/// On which the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn load(self) -> Expression<'static> {
        let offset = if self == Self::Source { SOURCE_OFFSET } else { DESTINATION_OFFSET };
        Expression::LoadNetworkHeader { offset, length: 4, into: Register(0) }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if *self == Self::Source { "from" } else { "to" })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.filter {
            Filter::All => f.write_str("all")?,
            Filter::Group(side, set) => write!(f, "{side} {set}")?,
            Filter::Within(side, cidr) => write!(f, "{side} {cidr}")?,
            Filter::Sockets(set) => write!(f, "to {set}")?,
            Filter::Ports(Ports { protocol, first, last }) => write!(f, "{} {first}-{last}", protocol.name())?,
        }
        match &self.verdict {
            Verdict::Accept => f.write_str(": accept"),
            Verdict::Drop => f.write_str(": drop"),
            Verdict::Return => f.write_str(": not these"),
            Verdict::Jump(chain) => write!(f, ": {chain}"),
        }
    }
}

impl Line {
    pub fn expressions(&self) -> Vec<Expression<'_>> {
        let mut rule = match &self.filter {
            Filter::All => Vec::new(),
            Filter::Group(side, set) => vec![side.load(), Expression::LookUp { set, key: Register(0), value: None }],
            Filter::Within(side, cidr) => vec![
                side.load(),
                Expression::And { register: Register(0), mask: cidr.mask().octets() },
                Expression::Equal { register: Register(0), bytes: cidr.address().octets().to_vec() },
            ],
            Filter::Sockets(set) => vec![
                Side::Destination.load(),
                Expression::LoadProtocol(Register(1)),
                Expression::LoadTransportHeader { offset: PORT_OFFSET, length: 2, into: Register(2) },
                Expression::LookUp { set, key: Register(0), value: None },
            ],
            Filter::Ports(ports) => of_ports(*ports),
        };
        rule.push(match &self.verdict {
            Verdict::Accept => Expression::Accept,
            Verdict::Drop => Expression::Drop,
            Verdict::Return => Expression::Return,
            Verdict::Jump(chain) => Expression::Jump(chain),
        });
        rule
    }
}

fn of_ports(ports: Ports) -> Vec<Expression<'static>> {
    let mut rule =
        vec![Expression::LoadProtocol(Register(0)), Expression::Equal { register: Register(0), bytes: vec![ports.protocol.number()] }];
    if ports != Ports::all(ports.protocol) {
        let bytes = |port: u16| port.to_be_bytes().to_vec();
        rule.extend([
            Expression::LoadTransportHeader { offset: PORT_OFFSET, length: 2, into: Register(0) },
            Expression::AtLeast { register: Register(0), bytes: bytes(ports.first) },
            Expression::AtMost { register: Register(0), bytes: bytes(ports.last) },
        ]);
    }
    rule
}

/// The rules of the chains that packets come to first, in their order. A packet is judged as long as it goes the way in which
/// its connection began, so that a policy holds for connections that there were before it; answers always pass.
pub fn base_rules() -> Vec<(&'static str, &'static str, Vec<Expression<'static>>)> {
    let answers = || {
        vec![
            Expression::LoadConnectionDirection(Register(0)),
            Expression::Equal { register: Register(0), bytes: vec![DIRECTION_REPLY] },
            Expression::Accept,
        ]
    };
    let related = || {
        vec![
            Expression::LoadConnectionState(Register(0)),
            Expression::And { register: Register(0), mask: STATE_RELATED.to_ne_bytes() },
            Expression::NotEqual { register: Register(0), bytes: vec![0; 4] },
            Expression::Accept,
        ]
    };
    let selves = || {
        vec![
            Side::Source.load(),
            Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(1) },
            Expression::LookUp { set: SELVES.name, key: Register(0), value: None },
            Expression::Accept,
        ]
    };
    let pods = |side: Side, map: Set<'static>| vec![side.load(), Expression::Decide { map: map.name, key: Register(0) }];
    let mut rules = Vec::new();
    for (chain, side, map) in [(EGRESS.0, Side::Source, EGRESS_PODS), (INGRESS.0, Side::Destination, INGRESS_PODS)] {
        rules.push((chain, "answers", answers()));
        rules.push((chain, "what belongs to a connection", related()));
        rules.push((chain, "a pod to itself", selves()));
        rules.push((chain, "isolated pods", pods(side, map)));
    }
    rules
}

impl Ruleset {
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub fn of(isolation: &Isolation) -> Self {
        let mut ruleset = Self::default();
        if isolation.ingress.is_empty() && isolation.egress.is_empty() {
            return ruleset;
        }
        ruleset.elements = BASE_SETS.iter().map(|set| (set.name.to_owned(), BTreeSet::new())).collect();
        for (side, map, pods) in [(Side::Destination, EGRESS_PODS, &isolation.egress), (Side::Source, INGRESS_PODS, &isolation.ingress)] {
            for (address, allowances) in pods {
                let chain = ruleset.chain_of(side, allowances, isolation);
                ruleset.put(map, Element { key: address.octets().to_vec(), value: chain.into_bytes() });
                ruleset.put(SELVES, Element { key: [address.octets(), address.octets()].concat(), value: Vec::new() });
            }
        }
        ruleset
    }

    fn put(&mut self, set: Set, element: Element) {
        self.elements.entry(set.name.to_owned()).or_default().insert(element);
    }

    /// Adds what is allowed as a chain, with all that it leads to; answers its name.
    fn chain_of(&mut self, side: Side, allowances: &BTreeSet<Allowance>, isolation: &Isolation) -> String {
        let mut lines = Vec::new();
        for Allowance { peers, ports } in allowances {
            let verdict = match ports {
                None => Verdict::Accept,
                Some(ports) => {
                    let lines = ports.iter().map(|ports| Line { filter: Filter::Ports(*ports), verdict: Verdict::Accept });
                    Verdict::Jump(self.add_chain(Rank::Ports, "ports", lines.collect()))
                }
            };
            let filter = match peers {
                Peers::Anyone => Filter::All,
                Peers::Group(name) => {
                    let members = isolation.groups.get(name).into_iter().flatten();
                    let keys = members.map(|address| address.octets().to_vec());
                    Filter::Group(side, self.add_set("pods", name, keys.collect()))
                }
                Peers::Sockets(name) => {
                    let members = isolation.sockets.get(name).into_iter().flatten();
                    let keys = members.map(|(address, protocol, port)| socket_key(*address, *protocol, *port));
                    Filter::Sockets(self.add_set("sockets", name, keys.collect()))
                }
                Peers::Block { within, except } if except.is_empty() => Filter::Within(side, *within),
                Peers::Block { within, except } => {
                    let holes = except.iter().map(|hole| Line { filter: Filter::Within(side, *hole), verdict: Verdict::Return });
                    let block = holes.chain([Line { filter: Filter::All, verdict }]).collect();
                    let verdict = Verdict::Jump(self.add_chain(Rank::Block, "block", block));
                    lines.push(Line { filter: Filter::Within(side, *within), verdict });
                    continue;
                }
            };
            lines.push(Line { filter, verdict });
        }
        lines.push(Line { filter: Filter::All, verdict: Verdict::Drop });
        self.add_chain(Rank::Pods, if side == Side::Source { INGRESS.0 } else { EGRESS.0 }, lines)
    }

    fn add_chain(&mut self, rank: Rank, kind: &str, lines: Vec<Line>) -> String {
        let said: Vec<String> = lines.iter().map(Line::to_string).collect();
        let name = format!("{kind}-{:016x}", hash(&said.join("\n")));
        self.chains.insert((rank, name.clone()), lines);
        name
    }

    fn add_set(&mut self, kind: &str, name: &str, keys: Vec<Vec<u8>>) -> String {
        let set = format!("{kind}-{:016x}", hash(name));
        self.elements.entry(set.clone()).or_insert_with(|| keys.into_iter().map(|key| Element { key, value: Vec::new() }).collect());
        set
    }

    pub fn sets(&self) -> impl Iterator<Item = Set<'_>> {
        self.elements.keys().map(|name| set(name))
    }

    /// Whether the table holds this and no rule more.
    pub fn is_observed(&self, observed: &Observed) -> bool {
        let mut rules = BTreeMap::<String, Vec<String>>::new();
        if !self.is_empty() {
            for (chain, comment, _) in base_rules() {
                rules.entry(chain.to_owned()).or_default().push(comment.to_owned());
            }
        }
        for ((_, chain), lines) in &self.chains {
            rules.insert(chain.clone(), lines.iter().map(Line::to_string).collect());
        }
        rules == observed.rules && self.elements == observed.elements
    }
}

/// A set by its name, which says of what kind it is.
pub fn set(name: &str) -> Set<'_> {
    let base = BASE_SETS.into_iter().find(|set| set.name == name);
    base.unwrap_or(Set { name, key: if name.starts_with("sockets-") { SOCKETS_KEY } else { GROUP_KEY }, value: &[], has_ranges: false })
}

fn socket_key(address: Ipv4Addr, protocol: Protocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [address.octets(), [protocol.number(), 0, 0, 0], [high, low, 0, 0]].concat()
}

/// FNV-1a: the same for a text each time, also in a later process.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
