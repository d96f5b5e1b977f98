//! What this node knows of the cluster's Services: it follows Services and EndpointSlices and tells the name server and the
//! network, Service by Service, what each stands for. What it has heard stays true while the master is away. It decides no
//! address, and touches no rule itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{FutureExt, future};
use serde::de::DeserializeOwned;
use serde_json::Value;
use smol::{Async, Timer};

use super::Node;
use super::ledger::{self, Followed};
use crate::api::meta;
use crate::api::services::{Endpoint, EndpointSlice, Service};
use crate::client::cache::Event;
use crate::network::dns::{self, Target, Upstream};
use crate::network::services::{Backend, ServicePort};
use crate::network::{Cidr, Protocol};
use crate::wire::dial::Dialer;

/// Where every pod finds the name server.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const DNS_PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Pause before rules that could not be written are tried again, or sockets that broke are opened again.
const RETRY: Duration = Duration::from_secs(1);
/// For how long a client comes to the same pod again unless the Service says otherwise; core/v1 DefaultClientIPServiceAffinitySeconds.
const AFFINITY_SECONDS: u32 = 10_800;

/// The way to the node's own name servers.
pub struct Outside(pub Dialer);

impl Upstream for Outside {
    async fn udp(&self, server: SocketAddr) -> io::Result<Async<UdpSocket>> {
        let socket = self.0.udp(server.is_ipv6()).await.map_err(io::Error::other)?;
        socket.get_ref().connect(server)?;
        Ok(socket)
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<Async<TcpStream>> {
        self.0.connect_address(server).await.map_err(io::Error::other)
    }
}

pub type NameServer = dns::Server<Outside>;

/// The name server of this node, which knows nothing yet.
pub fn name_server(domain: &str, dialer: Dialer) -> Rc<NameServer> {
    dns::Server::new(domain, DNS_ADDRESS.into(), RESOLV_CONF, Outside(dialer))
}

/// Answers the node's pods, for ever.
pub async fn serve(server: Rc<NameServer>) {
    loop {
        let ended = match server.listen(DNS_PORT) {
            Ok(serving) => serving.await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::error!("name server: {error:#}");
        }
        Timer::after(RETRY).await;
    }
}

/// Follows the cluster's Services, for ever. Nothing is told before both lists are there: the rules of an agent before this
/// one stay as they are until then.
pub async fn follow(node: Rc<Node>, server: Rc<NameServer>) {
    let follow = |path, file| Followed::start(&node.ledger, &node.client, path, file, ledger::without_history);
    let services = follow("/api/v1/services", "services.json");
    let slices = follow("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices.json");
    let next = async || {
        let service = async { News::Services(services.next().await) };
        service.or(async { News::Slices(slices.next().await) }).await
    };
    let mut known = Known::default();
    let mut touched = BTreeSet::new();
    loop {
        touched.extend(known.hear(next().await));
        // What has come meanwhile belongs into the same transaction.
        while let Some(news) = future::poll_once(next()).await {
            touched.extend(known.hear(news));
        }
        if !(known.has_services && known.has_slices) {
            continue;
        }
        for name in std::mem::take(&mut touched) {
            let (target, ports) = known.served(&name, &node.facts.node_name);
            if let Some((namespace, service)) = name.split_once('/') {
                server.zone().set(namespace, service, target);
            }
            node.network.set_service(&name, ports);
        }
        while let Err(error) = node.network.apply_services().await {
            log::error!("{error:#}");
            Timer::after(RETRY).await;
        }
    }
}

enum News {
    Services(Event),
    Slices(Event),
}

/// The Services and their endpoints, by `namespace/name`.
#[derive(Default)]
struct Known {
    has_services: bool,
    has_slices: bool,
    services: HashMap<String, Service>,
    slices: HashMap<String, EndpointSlice>,
    /// The slices of each Service.
    slices_of: HashMap<String, BTreeSet<String>>,
}

impl Known {
    /// Answers which Services have to be looked at.
    fn hear(&mut self, news: News) -> Vec<String> {
        match news {
            News::Services(Event::Relisted(objects)) => {
                self.has_services = true;
                let mut touched: Vec<String> = self.services.drain().map(|(name, _)| name).collect();
                touched.extend(objects.iter().filter_map(|object| self.take_service(object)));
                touched
            }
            News::Services(Event::Added(object) | Event::Modified(object)) => self.take_service(&object).into_iter().collect(),
            News::Services(Event::Deleted(object)) => {
                let name = full_name(&object);
                self.services.remove(&name);
                vec![name]
            }
            News::Slices(Event::Relisted(objects)) => {
                self.has_slices = true;
                self.slices.clear();
                let mut touched: Vec<String> = self.slices_of.drain().map(|(name, _)| name).collect();
                touched.extend(objects.iter().flat_map(|object| self.take_slice(object)));
                touched
            }
            News::Slices(Event::Added(object) | Event::Modified(object)) => self.take_slice(&object),
            News::Slices(Event::Deleted(object)) => self.drop_slice(&full_name(&object)).into_iter().collect(),
        }
    }

    fn take_service(&mut self, object: &Value) -> Option<String> {
        let name = full_name(object);
        self.services.insert(name.clone(), read(object)?);
        Some(name)
    }

    /// A slice may have been given to another Service.
    fn take_slice(&mut self, object: &Value) -> Vec<String> {
        let name = full_name(object);
        let mut touched: Vec<String> = self.drop_slice(&name).into_iter().collect();
        let Some(slice) = read::<EndpointSlice>(object) else { return touched };
        if let Some(service) = service_of(&slice) {
            self.slices_of.entry(service.clone()).or_default().insert(name.clone());
            touched.push(service);
            self.slices.insert(name, slice);
        }
        touched
    }

    fn drop_slice(&mut self, name: &str) -> Option<String> {
        let service = service_of(&self.slices.remove(name)?)?;
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        Some(service)
    }

    /// What the Service's name stands for, and what its ports lead to; nothing if it is gone.
    fn served(&self, name: &str, node_name: &str) -> (Option<Target>, Vec<ServicePort>) {
        let Some(service) = self.services.get(name) else { return (None, Vec::new()) };
        let names = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            names.filter_map(|name| self.slices.get(name)).filter(|slice| slice.address_type == "IPv4").collect();
        (target(service, &slices), ports(service, &slices, node_name))
    }
}

fn full_name(object: &Value) -> String {
    format!("{}/{}", meta::namespace(object), meta::name(object))
}

fn service_of(slice: &EndpointSlice) -> Option<String> {
    let service = slice.metadata.labels.get(EndpointSlice::SERVICE_LABEL)?;
    Some(format!("{}/{service}", slice.metadata.namespace))
}

fn read<T: DeserializeOwned>(object: &Value) -> Option<T> {
    serde_json::from_value(object.clone()).inspect_err(|error| log::error!("read {}: {error}", full_name(object))).ok()
}

pub fn protocol(name: &str) -> Protocol {
    match name {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn number(port: i64) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn address(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    endpoint.addresses.first()?.parse().ok()
}

/// What the Service's name stands for.
fn target(service: &Service, slices: &[&EndpointSlice]) -> Option<Target> {
    if service.spec.kind == "ExternalName" {
        return Some(Target::Alias(service.spec.external_name.trim_end_matches('.').to_owned()));
    }
    if !service.is_headless() {
        let port = |port: &crate::api::services::ServicePort| {
            Some(dns::Port { name: port.name.clone(), protocol: protocol(&port.protocol), number: number(port.port)? })
        };
        return Some(Target::Address(service.spec.cluster_ip.parse().ok()?, service.spec.ports.iter().filter_map(port).collect()));
    }
    let mut endpoints = Vec::new();
    for slice in slices {
        let port = |port: &crate::api::services::EndpointPort| {
            let (name, protocol) = (port.name.clone().unwrap_or_default(), protocol(port.protocol.as_deref().unwrap_or_default()));
            Some(dns::Port { name, protocol, number: number(port.port?)? })
        };
        let ports: Vec<dns::Port> = slice.ports.iter().filter_map(port).collect();
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.is_ready()) {
            let hostname = endpoint.hostname.clone().unwrap_or_default();
            endpoints.extend(address(endpoint).map(|address| dns::Endpoint { hostname, address, ports: ports.clone() }));
        }
    }
    Some(Target::Endpoints(endpoints))
}

/// What each of the Service's ports leads to on this node; nothing for a Service without an address.
fn ports(service: &Service, slices: &[&EndpointSlice], node_name: &str) -> Vec<ServicePort> {
    let spec = &service.spec;
    let Ok(own) = spec.cluster_ip.parse::<Ipv4Addr>() else { return Vec::new() };
    // The name server is on every node, and no pod.
    if own == DNS_ADDRESS || spec.kind == "ExternalName" {
        return Vec::new();
    }
    let ingress = service.status.load_balancer.ingress.iter().filter(|_| spec.kind == "LoadBalancer").map(|ingress| &ingress.ip);
    let balanced: Vec<Ipv4Addr> = ingress.filter_map(|text| text.parse().ok()).collect();
    let networks: Vec<Cidr> = spec.load_balancer_source_ranges.iter().filter_map(|text| text.trim().parse().ok()).collect();
    let is_restricted = !spec.load_balancer_source_ranges.is_empty();
    let sources: BTreeMap<_, _> = balanced.iter().filter(|_| is_restricted).map(|address| (*address, networks.clone())).collect();
    let mut external: Vec<Ipv4Addr> = spec.external_ips.iter().filter_map(|text| text.parse().ok()).chain(balanced).collect();
    external.sort_unstable();
    external.dedup();
    let keeps_source = spec.external_traffic_policy == "Local";
    let affinity_seconds =
        (spec.session_affinity == "ClientIP").then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_SECONDS));
    let one = |port: &crate::api::services::ServicePort| {
        let behind = |only_local: bool| backends(port, slices, only_local.then_some(node_name));
        Some(ServicePort {
            name: port.name.clone(),
            protocol: protocol(&port.protocol),
            port: number(port.port)?,
            address: own,
            external_addresses: external.clone(),
            sources: sources.clone(),
            node_port: number(port.node_port),
            backends: behind(spec.internal_traffic_policy == "Local"),
            external_backends: behind(keeps_source),
            keeps_source,
            affinity_seconds,
        })
    };
    spec.ports.iter().filter_map(one).collect()
}

/// The endpoints that connections go to: those that are ready, and if there is none, those that end but still answer.
fn backends(port: &crate::api::services::ServicePort, slices: &[&EndpointSlice], only_on: Option<&str>) -> Vec<Backend> {
    let mut candidates: Vec<(&Endpoint, u16)> = Vec::new();
    for slice in slices {
        let same = |each: &&crate::api::services::EndpointPort| {
            each.name.as_deref().unwrap_or_default() == port.name && each.protocol.as_deref().unwrap_or("TCP") == port.protocol
        };
        let Some(target) = slice.ports.iter().find(same).and_then(|port| number(port.port?)) else { continue };
        candidates.extend(slice.endpoints.iter().map(|endpoint| (endpoint, target)));
    }
    candidates.retain(|(endpoint, _)| only_on.is_none_or(|node| endpoint.node_name.as_deref() == Some(node)));
    let choose = |wanted: fn(&Endpoint) -> bool| -> Vec<Backend> {
        let chosen = candidates.iter().filter(|(endpoint, _)| wanted(endpoint));
        let mut chosen: Vec<Backend> =
            chosen.filter_map(|(endpoint, port)| Some(Backend { address: address(endpoint)?, port: *port })).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    };
    let ready = choose(Endpoint::is_ready);
    if ready.is_empty() { choose(Endpoint::serves_to_the_end) } else { ready }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec})
    }

    fn slice(name: &str, endpoints: Value) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        })
    }

    fn ready(last: u8, node: &str) -> Value {
        json!({"addresses": [format!("10.244.0.{last}")], "conditions": {"ready": true}, "nodeName": node})
    }

    fn http() -> Value {
        json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}])
    }

    fn known(spec: Value, endpoints: Value) -> Known {
        let mut known = Known::default();
        known.hear(News::Services(Event::Relisted(vec![service(spec)])));
        known.hear(News::Slices(Event::Relisted(vec![slice("web-1", endpoints)])));
        known
    }

    fn lasts(backends: &[Backend]) -> Vec<u8> {
        backends.iter().map(|backend| backend.address.octets()[3]).collect()
    }

    #[test]
    fn connections_go_to_ready_endpoints_and_to_ending_ones_if_there_is_no_other() {
        let ending = |last: u8| json!({"addresses": [format!("10.244.0.{last}")], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let starting = json!({"addresses": ["10.244.0.9"], "conditions": {"ready": false}});
        let check = |endpoints: Value, expected: &[u8]| {
            let (_, ports) = known(json!({"clusterIP": "10.96.0.7", "ports": http()}), endpoints).served("shop/web", "a");
            assert_eq!(lasts(&ports[0].backends), expected);
            assert_eq!(
                (ports[0].port, ports[0].node_port, ports[0].backends.first().map(|backend| backend.port)),
                (80, Some(30080), expected.first().map(|_| 8080))
            );
        };
        check(json!([ready(2, "a"), ending(3), starting]), &[2]);
        check(json!([ending(4), ending(3), starting]), &[3, 4]);
        check(json!([starting]), &[]);
    }

    #[test]
    fn policies_keep_connections_on_the_node() {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": http(), "externalIPs": ["192.0.2.7"],
            "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        });
        let (_, ports) = known(spec, json!([ready(2, "a"), ready(3, "b")])).served("shop/web", "b");
        assert_eq!((lasts(&ports[0].backends), lasts(&ports[0].external_backends)), (vec![2, 3], vec![3]));
        assert_eq!((ports[0].keeps_source, ports[0].affinity_seconds), (true, Some(AFFINITY_SECONDS)));
        assert_eq!(ports[0].external_addresses, [Ipv4Addr::new(192, 0, 2, 7)]);
    }

    #[test]
    fn names_stand_for_what_the_service_is() {
        let target = |spec: Value| known(spec, json!([{"addresses": ["10.244.0.2"], "hostname": "web-0"}])).served("shop/web", "a");
        assert_eq!(
            target(json!({"type": "ExternalName", "externalName": "example.org."})),
            (Some(Target::Alias("example.org".into())), vec![])
        );
        let (headless, rules) = target(json!({"clusterIP": "None", "ports": http()}));
        let port = |number| dns::Port { name: "http".into(), protocol: Protocol::Tcp, number };
        let endpoint = dns::Endpoint { hostname: "web-0".into(), address: [10, 244, 0, 2].into(), ports: vec![port(8080)] };
        assert_eq!((headless, rules), (Some(Target::Endpoints(vec![endpoint])), vec![]));
        let (own, _) = target(json!({"clusterIP": "10.96.0.7", "ports": http()}));
        assert_eq!(own, Some(Target::Address([10, 96, 0, 7].into(), vec![port(80)])));
    }

    #[test]
    fn each_change_touches_its_own_service() {
        let mut known = known(json!({"clusterIP": "10.96.0.7", "ports": http()}), json!([ready(2, "a")]));
        let touched = |known: &mut Known, news| known.hear(news);
        assert_eq!(touched(&mut known, News::Slices(Event::Added(slice("web-2", json!([ready(3, "a")]))))), ["shop/web"]);
        assert_eq!(lasts(&known.served("shop/web", "a").1[0].backends), [2, 3]);
        assert_eq!(touched(&mut known, News::Slices(Event::Deleted(slice("web-1", json!([]))))), ["shop/web"]);
        assert_eq!(lasts(&known.served("shop/web", "a").1[0].backends), [3]);
        assert_eq!(touched(&mut known, News::Services(Event::Deleted(service(json!({}))))), ["shop/web"]);
        assert_eq!(known.served("shop/web", "a"), (None, vec![]));
        assert_eq!(touched(&mut known, News::Slices(Event::Relisted(vec![]))), ["shop/web"]);
        assert!(known.slices.is_empty() && known.slices_of.is_empty());
    }
}
