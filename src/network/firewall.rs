//! The node's own nf_tables table: pods leave the cluster under the node's address, and a node's port leads to a pod.
//! `plan` compares what should be with what is there; one transaction brings the one to the other. No other table is
//! ever read or written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::lease::Lease;
use super::nftables::{self, Connection, Element, Expression, Hook, Observed, Register, Set, Transaction};
use super::nftables::{TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR};
use super::{Cidr, NodeConfig};

pub(super) const TABLE: &str = "edgectl";

/// From a node's address, protocol and port to a pod's address and port. The address 0.0.0.0 stands for all of the node's.
const HOST_PORTS: Set = Set {
    name: "host-ports",
    key: &[TYPE_IPV4_ADDR, TYPE_INET_PROTO, TYPE_INET_SERVICE],
    value: &[TYPE_IPV4_ADDR, TYPE_INET_SERVICE],
    has_ranges: false,
};

/// A pod that speaks to itself by a port of the node or by a Service: it would drop a packet that comes from its own address.
/// All that this node may ever have are in it, so that no pod's coming and going changes it.
const HAIRPINS: Set = Set { name: "hairpins", key: &[TYPE_IPV4_ADDR, TYPE_IPV4_ADDR], value: &[], has_ranges: false };

const SETS: [Set; 2] = [HOST_PORTS, HAIRPINS];

const PREROUTING: (&str, Hook) = ("prerouting", Hook { kind: "nat", number: libc::NF_INET_PRE_ROUTING as u32, priority: -100 });
const OUTPUT: (&str, Hook) = ("output", Hook { kind: "nat", number: libc::NF_INET_LOCAL_OUT as u32, priority: -100 });
const POSTROUTING: (&str, Hook) = ("postrouting", Hook { kind: "nat", number: libc::NF_INET_POST_ROUTING as u32, priority: 100 });
const HOST_PORTS_CHAIN: &str = "host-ports";

/// Rules that others change meanwhile are read again, this many times.
const ATTEMPTS_MAX: usize = 10;

/// Where the addresses lie in an IPv4 header (RFC 791), and the destination port in a TCP, UDP or SCTP header.
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const PORT_OFFSET: u32 = 2;

/// What the table should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pod_cidr: Cidr,
    cluster_cidr: Cidr,
    elements: BTreeMap<String, BTreeSet<Element>>,
}

/// What is to be done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// The rules are right, elements of these sets are not.
    Elements(Vec<Change>),
    /// The whole table anew, in one transaction: no packet meets half of it.
    Rebuild,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    set: Set<'static>,
    delete: Vec<Element>,
    add: Vec<Element>,
}

impl Rules {
    pub fn desired<'a>(config: &NodeConfig, cluster_cidr: Cidr, leases: impl Iterator<Item = &'a Lease>) -> Self {
        let mut host_ports = BTreeSet::new();
        let addresses = (0..config.pod_cidr.size()).filter_map(|offset| config.pod_cidr.nth(offset));
        let hairpins = addresses.map(|address| Element { key: [address.octets(), address.octets()].concat(), value: Vec::new() }).collect();
        for lease in leases {
            let address = lease.address.octets();
            for port in &lease.host_ports {
                host_ports.insert(Element {
                    key: [port.host_ip.octets(), [port.protocol.number(), 0, 0, 0], padded(port.host_port)].concat(),
                    value: [address, padded(port.container_port)].concat(),
                });
            }
        }
        let elements = [(HOST_PORTS.name.to_owned(), host_ports), (HAIRPINS.name.to_owned(), hairpins)].into();
        Self { pod_cidr: config.pod_cidr, cluster_cidr, elements }
    }

    /// The rules of each chain in their order, each with the comment that says all that it does.
    fn rules(&self) -> Vec<(&'static str, String, Vec<Expression<'static>>)> {
        let to_node = "connections to the node".to_owned();
        let to_host_ports = || {
            let local = u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec();
            vec![
                Expression::LoadDestinationKind(Register(0)),
                Expression::Equal { register: Register(0), bytes: local },
                Expression::Jump(HOST_PORTS_CHAIN),
            ]
        };
        let (pods, cluster) = (self.pod_cidr, self.cluster_cidr);
        vec![
            (PREROUTING.0, to_node.clone(), to_host_ports()),
            (OUTPUT.0, to_node, to_host_ports()),
            (HOST_PORTS_CHAIN, "ports of one address".to_owned(), host_port_rule(u32::MAX)),
            (HOST_PORTS_CHAIN, "ports of all addresses".to_owned(), host_port_rule(0)),
            (POSTROUTING.0, format!("pods {pods} leave {cluster}"), masquerade_rule(pods, cluster)),
            (POSTROUTING.0, "a pod to itself".to_owned(), hairpin_rule()),
        ]
    }
}

/// A port as a part of a concatenation.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// `dnat to ip daddr & MASK . meta l4proto . th dport map @host-ports`: with a mask of 0, the element of all addresses.
fn host_port_rule(mask: u32) -> Vec<Expression<'static>> {
    vec![
        Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(0) },
        Expression::And { register: Register(0), mask: mask.to_be_bytes() },
        Expression::LoadProtocol(Register(1)),
        Expression::LoadTransportHeader { offset: PORT_OFFSET, length: 2, into: Register(2) },
        Expression::LookUp { set: HOST_PORTS.name, key: Register(0), value: Some(Register(0)) },
        Expression::DestinationNat { address: Register(0), port: Register(1) },
    ]
}

/// `ip saddr PODS ip daddr != CLUSTER masquerade`
fn masquerade_rule(pods: Cidr, cluster: Cidr) -> Vec<Expression<'static>> {
    let masked = |offset, cidr: Cidr| {
        [
            Expression::LoadNetworkHeader { offset, length: 4, into: Register(0) },
            Expression::And { register: Register(0), mask: cidr.mask().octets() },
        ]
    };
    let bytes = |address: Ipv4Addr| address.octets().to_vec();
    let mut rule = masked(SOURCE_OFFSET, pods).to_vec();
    rule.push(Expression::Equal { register: Register(0), bytes: bytes(pods.address()) });
    rule.extend(masked(DESTINATION_OFFSET, cluster));
    rule.push(Expression::NotEqual { register: Register(0), bytes: bytes(cluster.address()) });
    rule.push(Expression::Masquerade);
    rule
}

/// `ip saddr . ip daddr @hairpins masquerade`
fn hairpin_rule() -> Vec<Expression<'static>> {
    vec![
        Expression::LoadNetworkHeader { offset: SOURCE_OFFSET, length: 4, into: Register(0) },
        Expression::LoadNetworkHeader { offset: DESTINATION_OFFSET, length: 4, into: Register(1) },
        Expression::LookUp { set: HAIRPINS.name, key: Register(0), value: None },
        Expression::Masquerade,
    ]
}

fn plan(desired: &Rules, observed: Option<&Observed>) -> Plan {
    let Some(observed) = observed else { return Plan::Rebuild };
    let mut comments = BTreeMap::<String, Vec<String>>::new();
    for (chain, comment, _) in desired.rules() {
        comments.entry(chain.to_owned()).or_default().push(comment);
    }
    if comments != observed.rules {
        return Plan::Rebuild;
    }
    let mut changes = Vec::new();
    for set in SETS {
        let desired = desired.elements.get(set.name).cloned().unwrap_or_default();
        let observed = observed.elements.get(set.name).cloned().unwrap_or_default();
        let delete: Vec<Element> = observed.difference(&desired).cloned().collect();
        let add: Vec<Element> = desired.difference(&observed).cloned().collect();
        if !delete.is_empty() || !add.is_empty() {
            changes.push(Change { set, delete, add });
        }
    }
    if changes.is_empty() { Plan::Nothing } else { Plan::Elements(changes) }
}

/// Brings the kernel's table to what is desired; answers the generation of the ruleset that it changed, if it did. Blocks; see
/// [`Transaction::commit`].
pub fn apply(connection: &Connection, desired: &Rules) -> Result<Option<u32>> {
    for _ in 0..ATTEMPTS_MAX {
        let generation = nftables::generation(connection).context("read the generation of the rules")?;
        let observed = nftables::observe(connection, TABLE, &SETS).with_context(|| format!("read table {TABLE}"))?;
        let mut transaction = Transaction::new(TABLE, generation);
        match plan(desired, observed.as_ref()) {
            Plan::Nothing => return Ok(None),
            Plan::Elements(changes) => {
                for change in changes {
                    transaction.delete_elements(change.set, &change.delete);
                    transaction.add_elements(change.set, &change.add);
                }
            }
            Plan::Rebuild => rebuild(&mut transaction, desired),
        }
        match transaction.commit(connection) {
            Err(error) if error.raw_os_error() == Some(libc::ERESTART) => {}
            committed => return committed.map(|()| Some(generation)).with_context(|| format!("write table {TABLE}")),
        }
    }
    bail!("the rules change faster than table {TABLE} can be written")
}

fn rebuild(transaction: &mut Transaction, desired: &Rules) {
    // Deleting what is not there is an error; creating what is there is none.
    transaction.create_table();
    transaction.delete_table();
    transaction.create_table();
    for (name, hook) in [PREROUTING, OUTPUT, POSTROUTING] {
        transaction.create_chain(name, Some(hook));
    }
    transaction.create_chain(HOST_PORTS_CHAIN, None);
    for set in SETS {
        transaction.create_set(set);
        let elements: Vec<Element> = desired.elements.get(set.name).into_iter().flatten().cloned().collect();
        transaction.add_elements(set, &elements);
    }
    for (chain, comment, expressions) in desired.rules() {
        transaction.add_rule(chain, &comment, &expressions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(port: u16) -> Element {
        Element { key: [[0; 4], [6, 0, 0, 0], padded(port)].concat(), value: [[10, 244, 0, 2], padded(80)].concat() }
    }

    fn rules(ports: &[u16]) -> Rules {
        Rules {
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            elements: [
                (HOST_PORTS.name.to_owned(), ports.iter().copied().map(element).collect()),
                (HAIRPINS.name.to_owned(), BTreeSet::new()),
            ]
            .into(),
        }
    }

    fn observed(rules: &Rules) -> Observed {
        let mut observed = Observed { elements: rules.elements.clone(), ..Observed::default() };
        for (chain, comment, _) in rules.rules() {
            observed.rules.entry(chain.to_owned()).or_default().push(comment);
        }
        observed
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(plan(&rules(&[80]), Some(&observed(&rules(&[80])))), Plan::Nothing);
    }

    #[test]
    fn a_missing_or_changed_rule_rebuilds_the_table() {
        let desired = rules(&[80]);
        let check = |change: fn(&mut Observed)| {
            let mut observed = observed(&desired);
            change(&mut observed);
            assert_eq!(plan(&desired, Some(&observed)), Plan::Rebuild);
        };
        assert_eq!(plan(&desired, None), Plan::Rebuild);
        check(|observed| observed.rules.clear());
        check(|observed| observed.rules.get_mut("host-ports").unwrap().reverse());
        check(|observed| observed.rules.get_mut("output").unwrap().push(String::new()));
        check(|observed| {
            observed.rules.remove("postrouting");
        });
        let other = Rules { pod_cidr: "10.244.1.0/24".parse().unwrap(), ..rules(&[80]) };
        assert_eq!(plan(&other, Some(&observed(&desired))), Plan::Rebuild);
    }

    #[test]
    fn ports_come_and_go_element_by_element() {
        let plan = plan(&rules(&[80, 82]), Some(&observed(&rules(&[80, 81]))));
        assert_eq!(plan, Plan::Elements(vec![Change { set: HOST_PORTS, delete: vec![element(81)], add: vec![element(82)] }]));
    }
}
