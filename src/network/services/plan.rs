//! What the kernel's sets should hold for the Services, and the steps from what they hold to that. Pure: it asks and changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Cidr;
use super::super::conntrack::Stale;
use super::super::nftables::{Element, Observed};
use super::rules::{self, BACKENDS_MAX, Front, INSIDE_INDEX, Kind, SETS};
use super::{Backend, Pending, ServicePort};

/// A key with the rank of its set.
pub type Key = (usize, Vec<u8>);

/// Where connections to a port of a Service come in, with what is behind it.
struct Entrance<'a> {
    front: Front,
    backends: &'a [Backend],
    by_client: bool,
    /// What who is on this node himself meets instead.
    inside: &'a [Backend],
    masquerades: bool,
    /// Who may come in; `None` for everyone.
    sources: Option<&'a [Cidr]>,
}

impl ServicePort {
    fn entrances(&self) -> impl Iterator<Item = Entrance<'_>> {
        let own = (!self.backends.is_empty()).then(|| Entrance {
            front: Front::Address(self.address, self.protocol, self.port),
            backends: &self.backends[..self.backends.len().min(BACKENDS_MAX)],
            by_client: self.affinity_seconds.is_some(),
            inside: &[],
            masquerades: false,
            sources: None,
        });
        own.into_iter().chain(self.outside_fronts().map(|front| Entrance {
            front,
            backends: &self.external_backends[..self.external_backends.len().min(BACKENDS_MAX)],
            by_client: self.affinity_seconds.is_some(),
            inside: if self.keeps_source { &self.backends[..self.backends.len().min(BACKENDS_MAX)] } else { &[] },
            masquerades: !self.keeps_source,
            sources: match front {
                Front::Address(address, ..) => self.sources.get(&address).map(Vec::as_slice),
                Front::NodePort(..) => None,
            },
        }))
    }

    /// People choose them, and may choose the same for two Services.
    fn outside_fronts(&self) -> impl Iterator<Item = Front> {
        let addresses = self.external_addresses.iter().map(|address| Front::Address(*address, self.protocol, self.port));
        addresses.chain(self.node_port.map(|number| Front::NodePort(self.protocol, number)))
    }
}

/// Whether something pending wants an entrance from outside that another Service has.
pub fn is_contested(pending: &Pending, known: &BTreeMap<String, Vec<ServicePort>>) -> bool {
    let fronts = |ports: &[ServicePort]| ports.iter().flat_map(|port| port.outside_fronts().collect::<Vec<_>>()).collect::<Vec<Front>>();
    let wanted: BTreeSet<Front> = pending.values().flat_map(|ports| fronts(ports)).collect();
    let others = || known.iter().filter(|(name, _)| !pending.contains_key(*name));
    !wanted.is_empty() && others().any(|(_, ports)| fronts(ports).iter().any(|front| wanted.contains(front)))
}

/// Keys with their values.
#[derive(Debug, Default)]
pub struct Elements {
    by_key: BTreeMap<Key, Vec<u8>>,
    /// Who came for an entrance that was taken: it stays with whom it was.
    pub conflicts: Vec<Front>,
}

impl Elements {
    /// Adds what the sets should hold for a Service.
    pub fn add(&mut self, ports: &[ServicePort]) {
        for entrance in ports.iter().flat_map(ServicePort::entrances) {
            let front = entrance.front;
            let kind = Kind::new(front, entrance.backends.len(), entrance.by_client, entrance.masquerades);
            if self.by_key.contains_key(&front.key()) {
                self.conflicts.push(front);
                continue;
            }
            self.by_key.insert(front.key(), kind.chain().into_bytes());
            if let Some(networks) = entrance.sources {
                self.by_key.extend(rules::restriction(front, networks).map(|key| (key, Vec::new())));
            }
            if !entrance.inside.is_empty() {
                let kind = Kind::inside(front, entrance.inside.len(), entrance.by_client);
                self.by_key.insert(front.inside_key(), kind.chain().into_bytes());
            }
            for (first, backends) in [(0, entrance.backends), (INSIDE_INDEX, entrance.inside)] {
                let keys = (first..).map(|index| front.backend_key(index));
                self.by_key.extend(keys.zip(backends.iter().map(|backend| rules::backend_value(*backend))));
            }
        }
    }

    pub fn observed(observed: &Observed) -> Self {
        let of_set = |(rank, set): (usize, &rules::Set)| {
            let elements = observed.elements.get(set.name).into_iter().flatten();
            elements.map(move |element| ((rank, element.key.clone()), element.value.clone())).collect::<Vec<_>>()
        };
        Self { by_key: SETS.iter().enumerate().flat_map(of_set).collect(), conflicts: Vec::new() }
    }

    /// The datagrams that must not go on as they did, once these have become `after`.
    fn stale(&self, after: &Self) -> Stale {
        let mut stale = Stale::default();
        for ((rank, key), value) in self.by_key.iter().filter(|((rank, _), _)| !rules::leads_to_chains(*rank)) {
            let (Some(front), Some(backend)) = (rules::datagram_front(*rank, key), rules::backend_of(value)) else { continue };
            // It may stand under another index.
            let prefix = &key[..key.len() - rules::INDEX_BYTES];
            let still =
                after.by_key.range((*rank, prefix.to_vec())..).take_while(|((other, key), _)| other == rank && key.starts_with(prefix));
            if !still.map(|(_, value)| value).any(|other| other == value) {
                stale.gone.insert((front, backend));
            }
        }
        let entrances = after.by_key.keys().filter(|key| rules::leads_to_chains(key.0) && !self.by_key.contains_key(*key));
        stale.fresh.extend(entrances.filter_map(|(rank, key)| rules::datagram_front(*rank, key)));
        stale
    }

    /// What is done with the connections that come by each entrance.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.by_key.iter().filter(|((rank, _), _)| rules::leads_to_chains(*rank)).filter_map(|(_, chain)| Kind::of_chain(chain))
    }
}

/// How many entrances lead to each kind's chain.
#[derive(Debug, Default)]
pub struct Users(BTreeMap<Kind, usize>);

impl Users {
    /// As it is once `before` has become `after`.
    pub fn moved(&self, before: &Elements, after: &Elements) -> Self {
        let mut users = self.0.clone();
        for kind in after.kinds() {
            *users.entry(kind).or_default() += 1;
        }
        for kind in before.kinds() {
            if let Some(count) = users.get_mut(&kind) {
                *count -= 1;
            }
        }
        users.retain(|_, count| *count > 0);
        Self(users)
    }
}

impl FromIterator<Kind> for Users {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        Self(kinds.into_iter().map(|kind| (kind, 1)).collect())
    }
}

/// One change that leaves every Service whole. Sets by their rank.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    CreateKind(Kind),
    /// The elements of the first list have their key again in the second.
    Put {
        rank: usize,
        replaced: Vec<Element>,
        with: Vec<Element>,
    },
    Delete {
        rank: usize,
        elements: Vec<Element>,
    },
    DeleteKind(Kind),
}

/// Elements in one step, so that a transaction can be cut behind it.
const ELEMENTS_PER_STEP: usize = 200;

#[derive(Debug, Default)]
pub struct Plan {
    /// The table anew, before the steps.
    pub rebuild: bool,
    pub steps: Vec<Step>,
    /// What is true once the steps are done.
    pub users: Users,
    pub conflicts: Vec<Front>,
    /// What has to be forgotten then.
    pub stale: Stale,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        !self.rebuild && self.steps.is_empty()
    }

    /// Backends are there before anything leads to them, and nothing leads to those that go. `present` are the chains that
    /// there are, `users` those that there shall be.
    pub fn new(before: &Elements, after: Elements, present: &Users, users: Users) -> Self {
        let mut steps = Vec::new();
        steps.extend(users.0.keys().filter(|kind| !present.0.contains_key(kind)).map(|kind| Step::CreateKind(*kind)));
        let element = |(key, value): (&Key, &Vec<u8>)| Element { key: key.1.clone(), value: value.clone() };
        let gone = |has_ranges: bool| -> Vec<_> {
            let gone = before.by_key.iter().filter(|(key, _)| !after.by_key.contains_key(key)).rev();
            gone.filter(|(key, _)| SETS[key.0].has_ranges == has_ranges).collect()
        };
        let delete = |steps: &mut Vec<Step>, gone: Vec<(&Key, &Vec<u8>)>| {
            for chunk in gone.chunk_by(|one, next| one.0.0 == next.0.0).flat_map(|rank| rank.chunks(ELEMENTS_PER_STEP)) {
                steps.push(Step::Delete { rank: chunk[0].0.0, elements: chunk.iter().copied().map(element).collect() });
            }
        };
        // The kernel takes no range beside another one that it overlaps.
        delete(&mut steps, gone(true));
        let put: Vec<_> = after.by_key.iter().filter(|(key, value)| before.by_key.get(key) != Some(value)).collect();
        for chunk in put.chunk_by(|one, next| one.0.0 == next.0.0).flat_map(|rank| rank.chunks(ELEMENTS_PER_STEP)) {
            let replaced = chunk.iter().filter_map(|(key, _)| before.by_key.get_key_value(*key)).map(element).collect();
            steps.push(Step::Put { rank: chunk[0].0.0, replaced, with: chunk.iter().copied().map(element).collect() });
        }
        delete(&mut steps, gone(false));
        steps.extend(present.0.keys().filter(|kind| !users.0.contains_key(kind)).map(|kind| Step::DeleteKind(*kind)));
        Self { rebuild: false, steps, users, stale: before.stale(&after), conflicts: after.conflicts }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Protocol;
    use super::*;

    fn service(backends: u8) -> ServicePort {
        ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            address: [10, 96, 0, 7].into(),
            external_addresses: vec![],
            node_port: None,
            backends: (0..backends).map(|last| Backend { address: [10, 244, 0, last].into(), port: 8080 }).collect(),
            external_backends: vec![],
            sources: BTreeMap::new(),
            keeps_source: false,
            affinity_seconds: None,
        }
    }

    /// The steps from one Service to another, as few words.
    fn steps(before: &[ServicePort], after: &[ServicePort]) -> Vec<String> {
        let [mut elements, mut desired] = [Elements::default(), Elements::default()];
        elements.add(before);
        desired.add(after);
        let present = Users::default().moved(&Elements::default(), &elements);
        let users = present.moved(&elements, &desired);
        let name = |step: Step| match step {
            Step::CreateKind(kind) => format!("create {}", kind.chain()),
            Step::Put { rank, replaced, with } => format!("put {} {} for {}", SETS[rank].name, with.len(), replaced.len()),
            Step::Delete { rank, elements } => format!("delete {} {}", SETS[rank].name, elements.len()),
            Step::DeleteKind(kind) => format!("delete {}", kind.chain()),
        };
        Plan::new(&elements, desired, &present, users).steps.into_iter().map(name).collect()
    }

    #[test]
    fn each_step_leaves_the_service_whole() {
        assert_eq!(steps(&[], &[service(2)]), ["create services-2", "put backends 2 for 0", "put services 1 for 0"]);
        assert_eq!(
            steps(&[service(2)], &[service(3)]),
            ["create services-3", "put backends 1 for 0", "put services 1 for 1", "delete services-2"]
        );
        assert_eq!(
            steps(&[service(2)], &[service(1)]),
            ["create services-1", "put services 1 for 1", "delete backends 1", "delete services-2"]
        );
        assert_eq!(steps(&[service(2)], &[]), ["delete services 1", "delete backends 2", "delete services-2"]);
        assert_eq!(steps(&[service(2)], &[service(2)]), [""; 0]);
        assert_eq!(steps(&[service(0)], &[service(0)]), [""; 0]);
    }

    #[test]
    fn who_may_come_by_an_address_is_there_before_the_address() {
        let of = |networks: &[&str]| {
            let external = "198.51.100.7".parse().unwrap();
            let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
            let backends = service(1).backends;
            ServicePort {
                external_addresses: vec![external],
                external_backends: backends,
                sources: [(external, networks)].into(),
                ..service(0)
            }
        };
        let created = [
            "create services-1-masquerade",
            "put backends 1 for 0",
            "put sources 1 for 0",
            "put restricted 1 for 0",
            "put services 1 for 0",
        ];
        assert_eq!(steps(&[], &[of(&["192.0.2.0/24", "192.0.2.8/30"])]), created);
        assert_eq!(steps(&[of(&["192.0.2.0/24"])], &[of(&["192.0.2.0/25"])]), ["delete sources 1", "put sources 1 for 0"]);
    }

    #[test]
    fn who_is_inside_has_all_backends() {
        let local = ServicePort { node_port: Some(30080), keeps_source: true, ..service(2) };
        let expected = ["create drop", "create services-2", "create node-ports-2-inside", "put backends 2 for 0"];
        let last = ["put node-port-backends 2 for 0", "put services 1 for 0", "put node-ports 1 for 0", "put node-ports-inside 1 for 0"];
        assert_eq!(steps(&[], &[local]), [expected.as_slice(), &last].concat());
    }

    #[test]
    fn a_changed_backend_is_one_element() {
        let mut changed = service(2);
        changed.backends[1].port = 8081;
        assert_eq!(steps(&[service(2)], &[changed]), ["put backends 1 for 1"]);
    }

    #[test]
    fn datagrams_go_on_only_to_backends_that_are_there() {
        let of = |backends: std::ops::Range<u8>| {
            let mut service = ServicePort { protocol: Protocol::Udp, port: 53, ..service(backends.end) };
            service.backends.drain(..backends.start as usize);
            let mut elements = Elements::default();
            elements.add(&[service]);
            elements
        };
        let front = (Some([10, 96, 0, 7].into()), 53);
        let gone = |last: u8| (front, Backend { address: [10, 244, 0, last].into(), port: 8080 });
        let check = |before: Elements, after: Elements, expected: Stale| assert_eq!(before.stale(&after), expected);
        check(of(0..3), of(1..3), Stale { gone: [gone(0)].into(), fresh: [].into() });
        check(of(0..2), of(0..0), Stale { gone: [gone(0), gone(1)].into(), fresh: [].into() });
        check(of(0..0), of(0..2), Stale { gone: [].into(), fresh: [front].into() });
        check(of(0..2), of(0..2), Stale::default());
    }

    #[test]
    fn only_entrances_from_outside_are_contested() {
        let outside = || ServicePort { node_port: Some(30080), ..service(1) };
        let check = |pending: ServicePort, known: ServicePort, expected| {
            let pending = [("shop/one".to_owned(), vec![pending])].into();
            assert!(!is_contested(&pending, &[("shop/one".to_owned(), vec![outside()])].into()));
            assert_eq!(is_contested(&pending, &[("shop/two".to_owned(), vec![known])].into()), expected);
        };
        check(outside(), outside(), true);
        check(outside(), ServicePort { node_port: Some(30081), ..outside() }, false);
        check(outside(), ServicePort { protocol: Protocol::Udp, ..outside() }, false);
        check(service(1), service(1), false);
    }
}
