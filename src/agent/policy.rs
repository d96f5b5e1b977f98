//! What the cluster's NetworkPolicies mean for the pods of this node: it follows them, and while there is one also Pods and
//! Namespaces, and tells the network who may speak to whom, in addresses. It touches no rule itself, and judges no packet.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use event_listener::Event as Wake;
use futures_lite::{FutureExt, future};
use serde_json::{Value, json};
use smol::Timer;

use super::ledger::{self, Followed};
use super::{Node, services};
use crate::api::meta;
use crate::api::selector::Labels;
use crate::client::cache::Event;
use crate::network::policy::{Allowance, Isolation, Peers, Ports};
use crate::network::{Cidr, Protocol};

/// What comes within this time belongs into the same change: a Deployment that grows makes many events.
const GATHER: Duration = Duration::from_millis(50);
/// Pause before rules that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// For how long a pod that starts waits until it is known what it may; then it is tried again as a pod whose start has failed.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What this node has heard.
#[derive(Default)]
pub struct Policies {
    known: RefCell<Known>,
    heard: Wake,
}

/// Follows the cluster's policies, for ever. What holds stays as it is until all lists are there.
pub async fn follow(node: Rc<Node>) {
    let follow = |path, file, kept| Followed::start(&node.ledger, &node.client, path, file, kept);
    let policies = follow("/apis/networking.k8s.io/v1/networkpolicies", "networkpolicies.json", ledger::without_history);
    let mut others: Option<[Followed; 2]> = None;
    loop {
        let mut is_touched = node.policies.hear(next(&policies, others.as_ref()).await);
        Timer::after(GATHER).await;
        while let Some(news) = future::poll_once(next(&policies, others.as_ref())).await {
            is_touched |= node.policies.hear(news);
        }
        // A cluster without policies follows no pod but its own.
        let is_needed = node.policies.known.borrow().policies.as_ref().is_some_and(|policies| !policies.is_empty());
        if is_needed && others.is_none() {
            let pods = follow("/api/v1/pods", "pods.json", kept);
            others = Some([pods, follow("/api/v1/namespaces", "namespaces.json", ledger::without_history)]);
        } else if !is_needed && others.take().is_some() {
            let mut known = node.policies.known.borrow_mut();
            (known.pods, known.namespaces) = (None, None);
        }
        if is_touched && node.policies.known.borrow().is_whole() {
            while let Err(error) = node.write_policies().await {
                log::error!("{error:#}");
                Timer::after(RETRY).await;
            }
        }
        node.policies.heard.notify(usize::MAX);
    }
}

enum News {
    Policies(Event),
    Pods(Event),
    Namespaces(Event),
}

async fn next(policies: &Followed, others: Option<&[Followed; 2]>) -> News {
    let policy = async { News::Policies(policies.next().await) };
    let other = async {
        let Some([pods, namespaces]) = others else { return future::pending().await };
        let pod = async { News::Pods(pods.next().await) };
        pod.or(async { News::Namespaces(namespaces.next().await) }).await
    };
    policy.or(other).await
}

impl Node {
    /// The rules for a pod that has its address stand when this is done, before anything runs in it.
    pub async fn isolate(&self, pod_uid: &str) -> Result<()> {
        let known = async {
            loop {
                let heard = self.policies.heard.listen();
                if self.policies.known.borrow().knows(pod_uid) {
                    return Ok(());
                }
                heard.await;
            }
        };
        let late = async {
            Timer::after(START_PATIENCE).await;
            bail!("the cluster's network policies are not known yet")
        };
        known.or(late).await?;
        let has_policies = self.policies.known.borrow().pods.is_some();
        if has_policies { self.write_policies().await } else { Ok(()) }
    }

    async fn write_policies(&self) -> Result<()> {
        let isolation = self.policies.known.borrow_mut().isolation(|uid| Some(self.network.attachment(uid)?.address));
        self.network.set_policies(isolation);
        self.network.apply_policies().await
    }
}

impl Policies {
    /// Answers whether anything may be different now.
    fn hear(&self, news: News) -> bool {
        let mut known = self.known.borrow_mut();
        match news {
            News::Policies(event) => {
                tell(known.policies.get_or_insert_default(), event, |object| Some((meta::full_name(object), policy(object))))
            }
            News::Namespaces(event) => {
                tell(known.namespaces.get_or_insert_default(), event, |object| Some((meta::name(object).to_owned(), labels(object))))
            }
            News::Pods(event) => known.hear_pod(event),
        }
    }
}

/// Keeps a map as the event says; answers whether it has changed.
fn tell<T: PartialEq>(known: &mut BTreeMap<String, T>, event: Event, read: impl Fn(&Value) -> Option<(String, T)>) -> bool {
    match event {
        Event::Relisted(objects) => {
            *known = objects.iter().filter_map(read).collect();
            true
        }
        Event::Added(object) | Event::Modified(object) => read(&object).is_some_and(|(name, read)| {
            let is_other = known.get(&name) != Some(&read);
            known.insert(name, read);
            is_other
        }),
        Event::Deleted(object) => read(&object).is_some_and(|(name, _)| known.remove(&name).is_some()),
    }
}

#[derive(Default)]
struct Known {
    /// By `namespace/name`; None before the first list. The others are followed only while there is one.
    policies: Option<BTreeMap<String, Policy>>,
    namespaces: Option<BTreeMap<String, Labelled>>,
    /// By uid.
    pods: Option<HashMap<String, Pod>>,
}

type Labelled = BTreeMap<String, String>;

/// A pod of whatever node that has, or gets, an address of its own.
#[derive(Clone, Debug, PartialEq)]
struct Pod {
    namespace: String,
    labels: Labelled,
    address: Option<Ipv4Addr>,
    ports: Vec<(String, Protocol, u16)>,
    /// From the API; while it still runs here it stays as it was.
    is_gone: bool,
}

#[derive(Debug, PartialEq)]
struct Policy {
    namespace: String,
    selector: Labels,
    /// None if it does not isolate for this direction.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

#[derive(Debug, PartialEq)]
struct Rule {
    /// None for everyone.
    peers: Option<Vec<Peer>>,
    /// None for all.
    ports: Option<Vec<Port>>,
}

#[derive(Debug, PartialEq)]
enum Peer {
    /// Without a selector of namespaces those of the policy's own.
    Pods {
        namespaces: Option<Labels>,
        pods: Labels,
    },
    Block {
        within: Cidr,
        except: BTreeSet<Cidr>,
    },
}

#[derive(Debug, PartialEq)]
enum Port {
    Numbers(Ports),
    Name(Protocol, String),
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Ingress,
    Egress,
}

impl Known {
    /// Whether all is there that policies are made of.
    fn is_whole(&self) -> bool {
        let is_free = self.policies.as_ref().is_some_and(BTreeMap::is_empty);
        is_free || self.policies.is_some() && self.namespaces.is_some() && self.pods.is_some()
    }

    /// Whether it is known what this pod may.
    fn knows(&self, pod_uid: &str) -> bool {
        self.is_whole() && self.pods.as_ref().is_none_or(|pods| pods.contains_key(pod_uid))
    }

    fn hear_pod(&mut self, event: Event) -> bool {
        let pods = self.pods.get_or_insert_default();
        match event {
            Event::Relisted(objects) => {
                let listed: HashSet<&str> = objects.iter().map(meta::uid).collect();
                pods.iter_mut().filter(|(uid, _)| !listed.contains(uid.as_str())).for_each(|(_, pod)| pod.is_gone = true);
                pods.extend(objects.iter().filter_map(|object| Some((meta::uid(object).to_owned(), pod(object)?))));
                true
            }
            Event::Added(object) | Event::Modified(object) => match pod(&object) {
                Some(pod) if pods.get(meta::uid(&object)) == Some(&pod) => false,
                Some(pod) => pods.insert(meta::uid(&object).to_owned(), pod).is_none_or(|_| true),
                None => pods.get_mut(meta::uid(&object)).is_some_and(|pod| !std::mem::replace(&mut pod.is_gone, true)),
            },
            Event::Deleted(object) => pods.get_mut(meta::uid(&object)).is_some_and(|pod| !std::mem::replace(&mut pod.is_gone, true)),
        }
    }

    /// What the pods of this node, whose addresses are `attached` by their uid, may do.
    fn isolation(&mut self, attached: impl Fn(&str) -> Option<Ipv4Addr>) -> Isolation {
        let mut isolation = Isolation::default();
        let (Some(policies), Some(pods)) = (&self.policies, &mut self.pods) else { return isolation };
        pods.retain(|uid, pod| !pod.is_gone || attached(uid).is_some());
        let namespaces = self.namespaces.iter().flatten().collect();
        let local: Vec<(Ipv4Addr, String)> = pods.keys().filter_map(|uid| Some((attached(uid)?, uid.clone()))).collect();
        for (address, uid) in &local {
            // The network knows it earlier than the API.
            pods.entry(uid.clone()).and_modify(|pod| pod.address = Some(*address));
        }
        let cluster = Cluster { namespaces, pods };
        for (address, uid) in &local {
            let pod = &pods[uid];
            let selects = |policy: &&Policy| policy.namespace == pod.namespace && policy.selector.matches_map(&pod.labels);
            for policy in policies.values().filter(selects) {
                for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
                    let Some(rules) = rules else { continue };
                    let allowed: Vec<Allowance> =
                        rules.iter().flat_map(|rule| cluster.allowances(direction, policy, rule, pod, &mut isolation)).collect();
                    let isolated = if direction == Direction::Ingress { &mut isolation.ingress } else { &mut isolation.egress };
                    isolated.entry(*address).or_default().extend(allowed);
                }
            }
        }
        isolation
    }
}

/// Whom selectors select.
struct Cluster<'a> {
    namespaces: BTreeMap<&'a String, &'a Labelled>,
    pods: &'a HashMap<String, Pod>,
}

impl Cluster<'_> {
    /// What a rule allows a pod; the groups that it means are added to `isolation`.
    fn allowances(&self, direction: Direction, policy: &Policy, rule: &Rule, pod: &Pod, isolation: &mut Isolation) -> Vec<Allowance> {
        let mut numbers = BTreeSet::new();
        let mut names = Vec::new();
        for port in rule.ports.iter().flatten() {
            match port {
                Port::Numbers(ports) => drop(numbers.insert(*ports)),
                Port::Name(protocol, name) if direction == Direction::Egress => names.push((*protocol, name)),
                Port::Name(protocol, name) => numbers.extend(named(pod, *protocol, name).map(|port| Ports::one(*protocol, port))),
            }
        }
        let everyone = [None];
        let peers: Vec<Option<&Peer>> = rule.peers.as_ref().map_or(everyone.to_vec(), |peers| peers.iter().map(Some).collect());
        let mut allowances = Vec::new();
        for peer in peers {
            // A name means another port on each pod that is connected to.
            for (protocol, port_name) in &names {
                let Some((group, pods)) = self.selected(policy, peer) else { continue };
                let name = format!("{group} {}/{port_name}", protocol.name());
                isolation.sockets.entry(name.clone()).or_insert_with(|| {
                    let of_pod = |pod: &Pod| {
                        let ports: Vec<u16> = named(pod, *protocol, port_name).collect();
                        pod.address
                            .into_iter()
                            .flat_map(move |address| ports.clone().into_iter().map(move |port| (address, *protocol, port)))
                    };
                    pods.flat_map(of_pod).collect()
                });
                allowances.push(Allowance { peers: Peers::Sockets(name), ports: None });
            }
            if rule.ports.is_some() && numbers.is_empty() {
                continue;
            }
            let peers = match peer {
                None => Peers::Anyone,
                Some(Peer::Block { within, except }) => Peers::Block { within: *within, except: except.clone() },
                Some(Peer::Pods { .. }) => {
                    let Some((name, pods)) = self.selected(policy, peer) else { continue };
                    isolation.groups.entry(name.clone()).or_insert_with(|| pods.filter_map(|pod| pod.address).collect());
                    Peers::Group(name)
                }
            };
            allowances.push(Allowance { peers, ports: rule.ports.as_ref().map(|_| numbers.clone()) });
        }
        allowances
    }

    /// The pods that are meant, and a name that means the same ones in whatever policy; nothing for a block of addresses.
    fn selected<'b>(&'b self, policy: &'b Policy, peer: Option<&'b Peer>) -> Option<(String, Box<dyn Iterator<Item = &'b Pod> + 'b>)> {
        let (namespaces, selector) = match peer {
            None => return Some(("everyone".to_owned(), Box::new(self.pods.values()))),
            Some(Peer::Block { .. }) => return None,
            Some(Peer::Pods { namespaces, pods }) => (namespaces, pods),
        };
        let name = match namespaces {
            None => format!("in {}: {selector}", policy.namespace),
            Some(namespaces) => format!("where {namespaces}: {selector}"),
        };
        let is_within = move |pod: &Pod| match namespaces {
            None => pod.namespace == policy.namespace,
            Some(wanted) => self.namespaces.get(&pod.namespace).is_some_and(|labels| wanted.matches_map(labels)),
        };
        Some((name, Box::new(self.pods.values().filter(move |pod| selector.matches_map(&pod.labels) && is_within(pod)))))
    }
}

/// The ports of a pod that have this name.
fn named<'a>(pod: &'a Pod, protocol: Protocol, name: &'a str) -> impl Iterator<Item = u16> + 'a {
    let is_meant = move |port: &&(String, Protocol, u16)| port.0 == name && port.1 == protocol;
    pod.ports.iter().filter(is_meant).map(|port| port.2)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn labels(object: &Value) -> Labelled {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// What the ledger keeps of a pod of whatever node.
fn kept(object: &Value) -> Value {
    let mut kept = ledger::without_history(object);
    kept["metadata"]["uid"] = meta::uid(object).into();
    let ports = |containers: &Value| -> Vec<Value> {
        list(containers)
            .iter()
            .filter(|container| container["ports"].is_array())
            .map(|container| json!({"ports": container["ports"]}))
            .collect()
    };
    let (spec, status) = (&object["spec"], &object["status"]);
    kept["spec"] = json!({
        "hostNetwork": spec["hostNetwork"], "containers": ports(&spec["containers"]), "initContainers": ports(&spec["initContainers"]),
    });
    kept["status"] = json!({"phase": status["phase"], "podIP": status["podIP"]});
    kept
}

/// None for one that has ended, or that shares its node's network and so is no pod to a policy.
fn pod(object: &Value) -> Option<Pod> {
    let (spec, status) = (&object["spec"], &object["status"]);
    if spec["hostNetwork"] == true || matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let containers = list(&spec["containers"]).iter().chain(list(&spec["initContainers"]));
    let port = |port: &Value| {
        let number = u16::try_from(port["containerPort"].as_u64()?).ok()?;
        Some((port["name"].as_str()?.to_owned(), services::protocol(port["protocol"].as_str().unwrap_or_default()), number))
    };
    Some(Pod {
        namespace: meta::namespace(object).to_owned(),
        labels: labels(object),
        address: status["podIP"].as_str().and_then(|address| address.parse().ok()),
        ports: containers.flat_map(|container| list(&container["ports"])).filter_map(port).collect(),
        is_gone: false,
    })
}

fn policy(object: &Value) -> Policy {
    let spec = &object["spec"];
    let isolates = |direction: &str| list(&spec["policyTypes"]).iter().any(|kind| kind == direction);
    let rules = |rules: &Value, peers: &str| {
        list(rules).iter().map(|rule| Rule { peers: of_peers(&rule[peers]), ports: of_ports(&rule["ports"]) }).collect()
    };
    Policy {
        namespace: meta::namespace(object).to_owned(),
        selector: spec.get("podSelector").and_then(selector).unwrap_or_default(),
        ingress: isolates("Ingress").then(|| rules(&spec["ingress"], "from")),
        egress: isolates("Egress").then(|| rules(&spec["egress"], "to")),
    }
}

/// None if the API has taken what cannot be read.
fn selector(value: &Value) -> Option<Labels> {
    Labels::from_selector(value).inspect_err(|error| log::error!("read the selector {value}: {error}")).ok()
}

/// An absent or empty list means everyone; one of which nothing can be read, nobody.
fn of_peers(value: &Value) -> Option<Vec<Peer>> {
    let peers = list(value);
    let read = |peer: &Value| {
        let network = |value: &Value| {
            // Bits behind the prefix are allowed, and mean nothing.
            let (address, prefix) = value.as_str()?.split_once('/')?;
            Cidr::new(address.parse().ok()?, prefix.parse().ok()?).ok()
        };
        if peer["ipBlock"].is_object() {
            let except = list(&peer["ipBlock"]["except"]).iter().filter_map(network).collect();
            return Some(Peer::Block { within: network(&peer["ipBlock"]["cidr"])?, except });
        }
        let of = |field: &str| peer.get(field).filter(|selector| selector.is_object());
        let namespaces = match of("namespaceSelector") {
            Some(namespaces) => Some(selector(namespaces)?),
            None => None,
        };
        let pods = match of("podSelector") {
            Some(pods) => selector(pods)?,
            None => Labels::default(),
        };
        Some(Peer::Pods { namespaces, pods })
    };
    (!peers.is_empty()).then(|| peers.iter().filter_map(read).collect())
}

fn of_ports(value: &Value) -> Option<Vec<Port>> {
    let ports = list(value);
    let read = |port: &Value| {
        let protocol = services::protocol(port["protocol"].as_str().unwrap_or_default());
        let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
        Some(match &port["port"] {
            Value::Null => Port::Numbers(Ports::all(protocol)),
            Value::String(name) => Port::Name(protocol, name.clone()),
            first => {
                let first = number(first)?;
                Port::Numbers(Ports { protocol, first, last: number(&port["endPort"]).unwrap_or(first) })
            }
        })
    };
    (!ports.is_empty()).then(|| ports.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_of(namespace: &str, name: &str, address: &str) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}/{name}"), "labels": {"app": name}},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"containerPort": 9}]}]},
            "status": {"podIP": address, "phase": "Running"},
        })
    }

    fn namespace(name: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
    }

    /// `shop/web` is on this node, as 10.244.0.2; the others are on another one.
    fn known(specs: &[Value]) -> Known {
        let policies = Policies::default();
        let object = |(index, spec): (usize, &Value)| json!({"metadata": {"namespace": "shop", "name": index.to_string()}, "spec": spec});
        policies.hear(News::Policies(Event::Relisted(specs.iter().enumerate().map(object).collect())));
        policies.hear(News::Namespaces(Event::Relisted(["shop", "lab"].map(namespace).into())));
        let mut ended = pod_of("shop", "ended", "10.244.1.4");
        ended["status"]["phase"] = "Failed".into();
        let mut host = pod_of("shop", "host", "192.0.2.7");
        host["spec"]["hostNetwork"] = true.into();
        let pods = [pod_of("shop", "web", ""), pod_of("shop", "db", "10.244.1.2"), pod_of("lab", "web", "10.244.1.3"), ended, host];
        policies.hear(News::Pods(Event::Relisted(pods.into())));
        policies.known.into_inner()
    }

    fn attached(uid: &str) -> Option<Ipv4Addr> {
        (uid == "shop/web").then_some(Ipv4Addr::new(10, 244, 0, 2))
    }

    /// The rules for `shop/web`, each as a few words, with the members of its group.
    fn told(specs: &[Value], direction: Direction) -> Option<Vec<String>> {
        let isolation = known(specs).isolation(attached);
        let pods = if direction == Direction::Ingress { &isolation.ingress } else { &isolation.egress };
        assert!(pods.keys().all(|address| *address == Ipv4Addr::new(10, 244, 0, 2)));
        let word = |Allowance { peers, ports }: &Allowance| {
            let peers = match peers {
                Peers::Anyone => "anyone".to_owned(),
                Peers::Group(name) => format!("{:?}", isolation.groups[name]),
                Peers::Sockets(name) => {
                    let sockets: Vec<String> = isolation.sockets[name].iter().map(|socket| format!("{}:{}", socket.0, socket.2)).collect();
                    format!("{sockets:?}")
                }
                Peers::Block { within, except } => format!("{within} but {}", except.len()),
            };
            let ports = ports.iter().flatten().map(|ports| format!(" {} {}-{}", ports.protocol.name(), ports.first, ports.last));
            peers + &ports.collect::<String>()
        };
        pods.values().next().map(|allowances| allowances.iter().map(word).collect())
    }

    #[test]
    fn the_ledger_keeps_all_that_policies_ask_of_a_pod() {
        let object = pod_of("shop", "web", "10.244.0.2");
        assert_eq!(pod(&kept(&object)), pod(&object));
        assert_eq!(meta::uid(&kept(&object)), "shop/web");
    }

    #[test]
    fn what_selects_no_pod_of_this_node_isolates_none() {
        let types = json!(["Ingress"]);
        assert_eq!(told(&[], Direction::Ingress), None);
        assert_eq!(told(&[json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": types})], Direction::Ingress), None);
        assert_eq!(told(&[json!({"podSelector": {}, "policyTypes": types})], Direction::Egress), None);
        assert_eq!(told(&[json!({"podSelector": {}, "policyTypes": types})], Direction::Ingress), Some(vec![]));
    }

    #[test]
    fn peers_are_selected_by_labels_and_namespaces() {
        let check = |from: Value, expected: &[&str]| {
            let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": from}]});
            assert_eq!(told(&[spec], Direction::Ingress).unwrap(), expected, "{from}");
        };
        let app = |name: &str| json!({"matchLabels": {"app": name}});
        let lab = || json!({"matchLabels": {"kubernetes.io/metadata.name": "lab"}});
        check(Value::Null, &["anyone"]);
        check(json!([]), &["anyone"]);
        check(json!([{"podSelector": app("db")}]), &["{10.244.1.2}"]);
        check(json!([{"podSelector": {}}]), &["{10.244.0.2, 10.244.1.2}"]);
        check(json!([{"podSelector": app("nobody")}]), &["{}"]);
        check(json!([{"namespaceSelector": lab()}]), &["{10.244.1.3}"]);
        check(json!([{"namespaceSelector": {}}]), &["{10.244.0.2, 10.244.1.2, 10.244.1.3}"]);
        check(json!([{"namespaceSelector": {}, "podSelector": app("web")}]), &["{10.244.0.2, 10.244.1.3}"]);
        check(json!([{"namespaceSelector": lab()}, {"podSelector": app("db")}]), &["{10.244.1.2}", "{10.244.1.3}"]);
        check(json!([{"ipBlock": {"cidr": "192.0.2.1/24", "except": ["192.0.2.0/28", "192.0.2.64/28"]}}]), &["192.0.2.0/24 but 2"]);
        check(json!([{"ipBlock": {"cidr": "2001:db8::/32"}}]), &[]);
    }

    #[test]
    fn ports_are_numbers_ranges_and_names() {
        let check = |ports: Value, expected: &[&str]| {
            let rule = json!([{"ports": ports}]);
            let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": rule});
            assert_eq!(told(&[spec], Direction::Ingress).unwrap(), expected, "{ports}");
        };
        check(json!([]), &["anyone"]);
        check(json!([{"protocol": "UDP"}]), &["anyone UDP 0-65535"]);
        check(json!([{"port": 80}, {"protocol": "SCTP", "port": 90, "endPort": 99}]), &["anyone TCP 80-80 SCTP 90-99"]);
        check(json!([{"port": "http"}]), &["anyone TCP 8080-8080"]);
        check(json!([{"port": "http", "protocol": "UDP"}]), &[]);
        check(json!([{"port": "nobody"}]), &[]);

        let egress =
            |rule: Value| told(&[json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]})], Direction::Egress).unwrap();
        let db = json!({"podSelector": {"matchLabels": {"app": "db"}}});
        assert_eq!(egress(json!({"to": [db], "ports": [{"port": "http"}]})), ["[\"10.244.1.2:8080\"]"]);
        assert_eq!(
            egress(json!({"to": [db], "ports": [{"port": "http"}, {"port": 53}]})),
            ["{10.244.1.2} TCP 53-53", "[\"10.244.1.2:8080\"]"]
        );
        assert_eq!(egress(json!({"ports": [{"port": "http"}]})), ["[\"10.244.0.2:8080\", \"10.244.1.2:8080\", \"10.244.1.3:8080\"]"]);
        assert_eq!(egress(json!({"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": "http"}]})), [""; 0]);
    }

    #[test]
    fn policies_add_up() {
        let one = |port: u16| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": port}]}]});
        let nothing = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        assert_eq!(told(&[nothing, one(80), one(81), one(80)], Direction::Ingress).unwrap(), ["anyone TCP 80-80", "anyone TCP 81-81"]);
    }

    #[test]
    fn only_what_matters_is_heard() {
        let mut known = known(&[json!({"podSelector": {}, "policyTypes": ["Ingress"]})]);
        let mut db = pod_of("shop", "db", "10.244.1.2");
        db["status"]["conditions"] = json!([{"type": "Ready"}]);
        assert!(!known.hear_pod(Event::Modified(db.clone())));
        db["metadata"]["labels"] = json!({"app": "other"});
        assert!(known.hear_pod(Event::Modified(db.clone())));
        assert!(known.hear_pod(Event::Deleted(db.clone())));
        assert!(!known.hear_pod(Event::Deleted(db)));
        // A pod that the API has forgotten stays isolated as long as it runs here.
        assert!(known.hear_pod(Event::Relisted(vec![])));
        assert_eq!(known.isolation(attached).ingress.len(), 1);
        assert_eq!(known.pods.as_ref().unwrap().len(), 1);
        assert!(known.isolation(|_| None).ingress.is_empty());
        assert!(known.pods.unwrap().is_empty());
    }

    #[test]
    fn a_pod_waits_until_it_is_known_what_it_may() {
        let mut known = Known::default();
        assert!(!known.knows("a"));
        known.policies = Some(BTreeMap::new());
        assert!(known.knows("a"));
        known.policies = Some([("shop/0".to_owned(), policy(&json!({"spec": {"podSelector": {}}})))].into());
        assert!(!known.is_whole() && !known.knows("a"));
        (known.pods, known.namespaces) = (Some(HashMap::new()), Some(BTreeMap::new()));
        assert!(known.is_whole() && !known.knows("a"));
        known.hear_pod(Event::Added(json!({"metadata": {"uid": "a"}})));
        assert!(known.knows("a"));
    }
}
