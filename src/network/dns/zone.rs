//! The names of the cluster's domain and what they stand for, by the specification of DNS-based service discovery 1.1.0
//! (github.com/kubernetes/dns/blob/master/docs/specification.md). Services come and go one by one; a question is answered
//! from memory. It knows no packet and no Kubernetes object.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::super::Protocol;

/// Version of the specification, told by the name `dns-version`.
const VERSION: &str = "1.1.0";

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its own address, with its ports.
    Address(Ipv4Addr, Vec<Port>),
    /// Those of its endpoints: a headless Service.
    Endpoints(Vec<Endpoint>),
    /// Another name: `ExternalName`.
    Alias(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty for the only port of a Service.
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's own name within the Service; empty if it has none.
    pub hostname: String,
    pub address: Ipv4Addr,
    pub ports: Vec<Port>,
}

impl Endpoint {
    /// Its label below the Service's name; one that has no name is called after its address.
    fn label(&self) -> String {
        if self.hostname.is_empty() { dashed(self.address) } else { self.hostname.to_ascii_lowercase() }
    }
}

/// A record; names are whole, without the dot at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Address { name: String, address: Ipv4Addr },
    Service { name: String, port: u16, target: String },
    Alias { name: String, target: String },
    Pointer { name: String, target: String },
    Text { name: String, text: String },
}

/// What the zone says of a name, whatever was asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The name is not below the cluster's domain, nor the reverse of an address of the cluster.
    Foreign,
    /// There is no such name.
    Nothing,
    /// There is, with these records; there may be none.
    Records(Vec<Record>),
}

/// The names of one cluster.
#[derive(Debug)]
pub struct Zone {
    /// `cluster.local`, in lower case.
    domain: String,
    /// By namespace and name.
    services: BTreeMap<(String, String), Target>,
    /// The Services' own addresses and those of named endpoints, each with its whole name.
    reverse: HashMap<Ipv4Addr, String>,
}

impl Zone {
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.to_ascii_lowercase(), services: BTreeMap::new(), reverse: HashMap::new() }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The Service stands for this from now on; for `None`, it is gone.
    pub fn set(&mut self, namespace: &str, name: &str, target: Option<Target>) {
        let key = (namespace.to_owned(), name.to_owned());
        let before = match &target {
            Some(target) => self.services.insert(key, target.clone()),
            None => self.services.remove(&key),
        };
        for (address, whole) in before.map(|target| self.pointers(namespace, name, &target)).unwrap_or_default() {
            // Another Service may have the address by now.
            if self.reverse.get(&address) == Some(&whole) {
                self.reverse.remove(&address);
            }
        }
        for (address, whole) in target.map(|target| self.pointers(namespace, name, &target)).unwrap_or_default() {
            self.reverse.insert(address, whole);
        }
    }

    fn service(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.domain)
    }

    fn pointers(&self, namespace: &str, name: &str, target: &Target) -> Vec<(Ipv4Addr, String)> {
        let service = self.service(namespace, name);
        match target {
            Target::Address(address, _) => vec![(*address, service)],
            Target::Endpoints(endpoints) => {
                endpoints.iter().map(|endpoint| (endpoint.address, format!("{}.{service}", endpoint.label()))).collect()
            }
            Target::Alias(_) => Vec::new(),
        }
    }

    /// What there is at a name, in any spelling, without the dot at its end.
    pub fn find(&self, name: &str) -> Found {
        let name = name.to_ascii_lowercase();
        if let Some(reversed) = name.strip_suffix(".in-addr.arpa") {
            // Foreign addresses, too, have names: the upstream's.
            return match from_reversed(reversed).and_then(|address| self.reverse.get(&address)) {
                Some(target) => Found::Records(vec![Record::Pointer { target: target.clone(), name }]),
                None => Found::Foreign,
            };
        }
        let Some(below) = name.strip_suffix(&self.domain) else { return Found::Foreign };
        if below.is_empty() {
            return Found::Records(Vec::new());
        }
        let Some(below) = below.strip_suffix('.') else { return Found::Foreign };
        let labels: Vec<&str> = below.split('.').rev().collect();
        let found = match labels.as_slice() {
            ["dns-version"] => Some(vec![Record::Text { name: name.clone(), text: VERSION.to_owned() }]),
            ["svc"] | ["pod"] => Some(Vec::new()),
            ["svc", namespace] | ["pod", namespace] => self.has_namespace(namespace).then(Vec::new),
            ["pod", namespace, pod] if self.has_namespace(namespace) => {
                from_dashed(pod).map(|address| vec![Record::Address { name: name.clone(), address }])
            }
            ["svc", namespace, service, rest @ ..] => {
                let target = self.services.get(&((*namespace).to_owned(), (*service).to_owned()));
                target.and_then(|target| self.records(&name, &self.service(namespace, service), target, rest))
            }
            _ => None,
        };
        found.map_or(Found::Nothing, Found::Records)
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        let first = (namespace.to_owned(), String::new());
        self.services.range(first..).next().is_some_and(|((found, _), _)| found == namespace)
    }

    /// At a Service's name or below it; `rest` are the labels before its name, the nearest first.
    fn records(&self, name: &str, service: &str, target: &Target, rest: &[&str]) -> Option<Vec<Record>> {
        let address = |address: Ipv4Addr| Record::Address { name: name.to_owned(), address };
        match (target, rest) {
            (Target::Alias(target), []) => Some(vec![Record::Alias { name: name.to_owned(), target: target.clone() }]),
            (Target::Address(own, _), []) => Some(vec![address(*own)]),
            (Target::Endpoints(endpoints), []) => Some(endpoints.iter().map(|endpoint| address(endpoint.address)).collect()),
            (Target::Address(_, ports), [protocol]) if protocol.starts_with('_') => {
                ports.iter().any(|port| is_protocol(port, protocol)).then(Vec::new)
            }
            (Target::Endpoints(endpoints), [protocol]) if protocol.starts_with('_') => {
                endpoints.iter().flat_map(|endpoint| &endpoint.ports).any(|port| is_protocol(port, protocol)).then(Vec::new)
            }
            (Target::Endpoints(endpoints), [label]) => {
                let found = endpoints.iter().filter(|endpoint| endpoint.label() == *label);
                Some(found.map(|endpoint| address(endpoint.address)).collect()).filter(|records: &Vec<Record>| !records.is_empty())
            }
            (Target::Address(_, ports), [protocol, port]) => {
                let found = ports.iter().filter(|known| is_port(known, protocol, port));
                let record = |port: &Port| Record::Service { name: name.to_owned(), port: port.number, target: service.to_owned() };
                Some(found.map(record).collect()).filter(|records: &Vec<Record>| !records.is_empty())
            }
            (Target::Endpoints(endpoints), [protocol, port]) => {
                let found = endpoints.iter().flat_map(|endpoint| endpoint.ports.iter().map(move |known| (endpoint, known)));
                let found = found.filter(|(_, known)| is_port(known, protocol, port));
                let target = |endpoint: &Endpoint| format!("{}.{service}", endpoint.label());
                let record = |(endpoint, port): (&Endpoint, &Port)| Record::Service {
                    name: name.to_owned(),
                    port: port.number,
                    target: target(endpoint),
                };
                Some(found.map(record).collect()).filter(|records: &Vec<Record>| !records.is_empty())
            }
            _ => None,
        }
    }
}

/// `_tcp` of a port of that protocol that has a name.
fn is_protocol(port: &Port, label: &str) -> bool {
    !port.name.is_empty() && label.strip_prefix('_').is_some_and(|protocol| protocol.eq_ignore_ascii_case(port.protocol.name()))
}

/// `_tcp` and `_http`.
fn is_port(port: &Port, protocol: &str, name: &str) -> bool {
    is_protocol(port, protocol) && name.strip_prefix('_').is_some_and(|name| name.eq_ignore_ascii_case(&port.name))
}

/// `10-244-0-5`.
fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

fn from_dashed(label: &str) -> Option<Ipv4Addr> {
    if label.contains('.') { None } else { label.replace('-', ".").parse().ok() }
}

/// `5.0.244.10`, as it stands before `.in-addr.arpa`.
fn from_reversed(text: &str) -> Option<Ipv4Addr> {
    let [a, b, c, d] = text.parse::<Ipv4Addr>().ok()?.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, number: u16) -> Port {
        Port { name: name.into(), protocol: Protocol::Tcp, number }
    }

    fn endpoint(hostname: &str, last: u8) -> Endpoint {
        Endpoint { hostname: hostname.into(), address: [10, 244, 0, last].into(), ports: vec![port("http", 8080)] }
    }

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local");
        zone.set("shop", "web", Some(Target::Address([10, 96, 0, 7].into(), vec![port("http", 80), port("", 81)])));
        zone.set("shop", "db", Some(Target::Endpoints(vec![endpoint("db-0", 2), endpoint("", 3)])));
        zone.set("shop", "out", Some(Target::Alias("example.org".into())));
        zone
    }

    fn addresses(name: &str) -> Option<Vec<[u8; 4]>> {
        match zone().find(name) {
            Found::Records(records) => Some(
                records
                    .iter()
                    .filter_map(|record| match record {
                        Record::Address { address, .. } => Some(address.octets()),
                        _ => None,
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    #[test]
    fn names_stand_for_the_addresses_of_services_and_endpoints() {
        for (name, expected) in [
            ("web.shop.svc.cluster.local", Some(vec![[10, 96, 0, 7]])),
            ("WEB.Shop.svc.Cluster.local", Some(vec![[10, 96, 0, 7]])),
            ("db.shop.svc.cluster.local", Some(vec![[10, 244, 0, 2], [10, 244, 0, 3]])),
            ("db-0.db.shop.svc.cluster.local", Some(vec![[10, 244, 0, 2]])),
            ("10-244-0-3.db.shop.svc.cluster.local", Some(vec![[10, 244, 0, 3]])),
            ("10-244-9-9.shop.pod.cluster.local", Some(vec![[10, 244, 9, 9]])),
            ("shop.svc.cluster.local", Some(vec![])),
            ("svc.cluster.local", Some(vec![])),
            ("cluster.local", Some(vec![])),
            ("nobody.svc.cluster.local", None),
            ("nobody.shop.svc.cluster.local", None),
            ("x.web.shop.svc.cluster.local", None),
            ("10-244-0-9.db.shop.svc.cluster.local", None),
            ("web.shop.pod.cluster.local", None),
        ] {
            assert_eq!(addresses(name), expected, "{name}");
        }
    }

    #[test]
    fn ports_have_service_records_that_lead_to_names() {
        let check = |name: &str, expected: &[(u16, &str)]| {
            let Found::Records(records) = zone().find(name) else { panic!("{name}") };
            let found: Vec<_> = records
                .iter()
                .map(|record| match record {
                    Record::Service { port, target, .. } => (*port, target.as_str()),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(found, expected, "{name}");
        };
        check("_http._tcp.web.shop.svc.cluster.local", &[(80, "web.shop.svc.cluster.local")]);
        check(
            "_http._tcp.db.shop.svc.cluster.local",
            &[(8080, "db-0.db.shop.svc.cluster.local"), (8080, "10-244-0-3.db.shop.svc.cluster.local")],
        );
        check("_tcp.web.shop.svc.cluster.local", &[]);
        for name in ["_http._udp.web.shop.svc.cluster.local", "_x._tcp.web.shop.svc.cluster.local"] {
            assert_eq!(zone().find(name), Found::Nothing, "{name}");
        }
    }

    #[test]
    fn addresses_lead_back_to_names_as_long_as_they_are_held() {
        let mut zone = zone();
        let pointer = |zone: &Zone, name: &str| match zone.find(name) {
            Found::Records(records) => match &records[..] {
                [Record::Pointer { target, .. }] => Some(target.clone()),
                other => panic!("{other:?}"),
            },
            Found::Foreign => None,
            Found::Nothing => panic!("{name}"),
        };
        assert_eq!(pointer(&zone, "7.0.96.10.in-addr.arpa").as_deref(), Some("web.shop.svc.cluster.local"));
        assert_eq!(pointer(&zone, "2.0.244.10.in-addr.arpa").as_deref(), Some("db-0.db.shop.svc.cluster.local"));
        zone.set("shop", "new", Some(Target::Address([10, 96, 0, 7].into(), vec![])));
        zone.set("shop", "web", None);
        assert_eq!(pointer(&zone, "7.0.96.10.in-addr.arpa").as_deref(), Some("new.shop.svc.cluster.local"));
        zone.set("shop", "new", None);
        assert_eq!(pointer(&zone, "7.0.96.10.in-addr.arpa"), None);
        assert_eq!(zone.find("new.shop.svc.cluster.local"), Found::Nothing);
        assert_eq!(pointer(&zone, "8.8.8.8.in-addr.arpa"), None);
    }

    #[test]
    fn names_outside_are_foreign() {
        for name in ["example.org", "notcluster.local", "local", ""] {
            assert_eq!(zone().find(name), Found::Foreign, "{name}");
        }
        let alias = Record::Alias { name: "out.shop.svc.cluster.local".into(), target: "example.org".into() };
        assert_eq!(zone().find("out.shop.svc.cluster.local"), Found::Records(vec![alias]));
    }
}
