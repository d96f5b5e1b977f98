//! Gives Services of type LoadBalancer their addresses: those of the nodes, which all lead to the Service's ports (upstream
//! `cloud-provider/controllers/service`, with the nodes in the cloud's place). It keeps off Services of another class.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::api::services::{EndpointSlice, Service};
use crate::api::{meta, status};
use crate::master::recorder::Recorder;
use crate::master::store::objects::Part;
use crate::master::store::{Key, Object};

const BALANCED: &str = "LoadBalancer";
/// Label of a node that no such Service shall lead to.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The Service of the API itself: a port that the nodes are asked on for it is no one else's.
const API_SERVICE: &str = "kubernetes";

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    services: &'static Resource,
    nodes: &'static Resource,
    slices: &'static Resource,
    /// The Services that have such addresses, or should have some.
    known: RefCell<BTreeSet<Name>>,
    /// What was told of those that have none, so that it is told once.
    told: RefCell<BTreeMap<Name, String>>,
    queue: Queue<Name>,
}

/// What becomes of a Service.
#[derive(Debug, PartialEq, Eq)]
enum Balance {
    /// It is not of this type, or not any more.
    None,
    Addresses(Vec<String>),
    /// Another one has the port.
    Refused(String),
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self {
            services: shared.resource("", "v1", "services"),
            nodes: shared.resource("", "v1", "nodes"),
            slices: shared.resource("discovery.k8s.io", "v1", "endpointslices"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            known: RefCell::default(),
            told: RefCell::default(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    /// They depend on each other: of two that want the same port the older one has it. So all are looked at together.
    fn notice(&self, notice: &Notice) {
        let object = notice.object;
        let name = Name::of(&object.key);
        let is_touched = if notice.is(self.services) {
            if !notice.is_deleted() && object.view::<Service>().is_ok_and(|service| concerns(&service)) {
                self.known.borrow_mut().insert(name.clone());
            }
            self.known.borrow().contains(&name)
        } else if notice.is(self.nodes) {
            let now = (!notice.is_deleted()).then(|| host(&object.value())).flatten();
            !self.known.borrow().is_empty() && notice.previous.is_none_or(|previous| host(&previous.value()) != now)
        } else {
            notice.is(self.slices) && self.known.borrow().contains(&service_of(object))
        };
        if is_touched {
            self.queue.add(Name::new("", "all"));
        }
    }

    async fn write(&self, object: &std::sync::Arc<Object>, balance: &Balance) -> Result<(), status::Status> {
        let Key { namespace, name, .. } = &object.key;
        let before = ingress(&object.value());
        let addresses: &[String] = if let Balance::Addresses(addresses) = balance { addresses } else { &[] };
        let why = match balance {
            Balance::Refused(why) => format!("Error syncing load balancer: failed to ensure load balancer: {why}"),
            Balance::Addresses(_) if addresses.is_empty() => "There are no available nodes for LoadBalancer".to_owned(),
            _ => String::new(),
        };
        let told = match why.is_empty() {
            true => self.told.borrow_mut().remove(&Name::of(&object.key)),
            false => self.told.borrow_mut().insert(Name::of(&object.key), why.clone()),
        };
        if !why.is_empty() && told.as_ref() != Some(&why) {
            let reason = if matches!(balance, Balance::Refused(_)) { "SyncLoadBalancerFailed" } else { "UnAvailableLoadBalancer" };
            self.recorder.warning(object, reason, why);
        }
        if before == addresses {
            return Ok(());
        }
        if before.is_empty() {
            self.recorder.normal(object, "EnsuringLoadBalancer", "Ensuring load balancer".into());
        }
        let written = self.shared.objects().update(self.services, namespace, name, Part::Status, false, |live| {
            let mut desired = live.clone();
            desired["status"]["loadBalancer"] = match addresses {
                [] => json!({}),
                _ => json!({"ingress": addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect::<Vec<_>>()}),
            };
            Ok(desired)
        });
        match written.await {
            Err(status) if status.is_not_found() => return Ok(()),
            written => written?,
        };
        match (balance, before.is_empty()) {
            (Balance::None, _) => self.recorder.normal(object, "DeletedLoadBalancer", "Deleted load balancer".into()),
            (_, true) => self.recorder.normal(object, "EnsuredLoadBalancer", "Ensured load balancer".into()),
            (_, false) => self.recorder.normal(object, "UpdatedLoadBalancer", "Updated load balancer with new hosts".into()),
        }
        log::info!("service={namespace}/{name} loadbalancer={}", addresses.join(","));
        Ok(())
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "load-balancer";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, _: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let names: Vec<Name> = self.known.borrow().iter().cloned().collect();
        let get = |name: &Name| objects.store().get(&Key::new(self.services, &name.namespace, &name.name));
        let mut found: Vec<_> = names.iter().filter_map(get).collect();
        found.retain(|object| object.view::<Service>().is_ok_and(|service| concerns(&service)));
        let services: Vec<Service> = found.iter().map(|object| object.view()).collect::<anyhow::Result<_>>()?;
        let hosts: Vec<Host> = objects.list(self.nodes, None).0.iter().filter_map(|node| host(&node.value())).collect();
        let slices_of = |name: &Name| -> Vec<EndpointSlice> {
            let (slices, _) = objects.list(self.slices, Some(&name.namespace));
            slices.iter().filter(|slice| service_of(slice) == *name).filter_map(|slice| slice.view().ok()).collect()
        };
        let api = slices_of(&Name::new("default", API_SERVICE));
        let ends = |service: &Service| slices_of(&Name::new(&service.metadata.namespace, &service.metadata.name));
        for (object, balance) in found.iter().zip(plan(&services, &hosts, &api, ends)) {
            self.write(object, &balance).await?;
        }
        let ours: BTreeSet<Name> =
            found.iter().zip(&services).filter(|(_, service)| is_ours(service)).map(|(object, _)| Name::of(&object.key)).collect();
        // What came meanwhile is told again by its own notice.
        self.known.borrow_mut().retain(|name| ours.contains(name) || !names.contains(name));
        self.told.borrow_mut().retain(|name, _| ours.contains(name));
        Ok(None)
    }
}

/// A node that Services lead to: its name and address.
type Host = (String, String);

fn is_ours(service: &Service) -> bool {
    service.spec.kind == BALANCED && service.spec.load_balancer_class.is_none() && !service.metadata.is_deleting()
}

/// Whether it is to be given addresses, or to lose those that it has from when it was of this type.
fn concerns(service: &Service) -> bool {
    is_ours(service) || service.spec.kind != BALANCED && !service.status.load_balancer.ingress.is_empty()
}

/// One that is cordoned still serves, as upstream has it: cordoning shall not cut off who is connected.
fn host(node: &Value) -> Option<Host> {
    let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let is_well = node["status"]["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(is_ready));
    let is_excluded = node["metadata"]["labels"].get(EXCLUDED).is_some() || node["metadata"]["deletionTimestamp"].is_string();
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| addresses.iter().find(|address| address["type"] == kind)?["address"].as_str();
    let address = of("ExternalIP").or_else(|| of("InternalIP"))?;
    (is_well && !is_excluded).then(|| (meta::name(node).to_owned(), address.to_owned()))
}

fn service_of(slice: &Object) -> Name {
    Name::new(&slice.key.namespace, slice.labels.get(EndpointSlice::SERVICE_LABEL).map_or("", String::as_str))
}

fn ingress(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    ingress.filter_map(|ingress| Some(ingress["ip"].as_str()?.to_owned())).collect()
}

/// What becomes of each of the Services, in their order.
fn plan(services: &[Service], hosts: &[Host], api: &[EndpointSlice], slices_of: impl Fn(&Service) -> Vec<EndpointSlice>) -> Vec<Balance> {
    let mut taken: BTreeMap<(String, i64), String> = BTreeMap::new();
    for port in api.iter().flat_map(|slice| &slice.ports) {
        taken.insert((port.protocol.clone().unwrap_or("TCP".into()), port.port.unwrap_or_default()), "the API server".to_owned());
    }
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by_key(|index| (services[*index].metadata.creation_timestamp, *index));
    let mut balances: Vec<Balance> = services.iter().map(|_| Balance::None).collect();
    for index in order {
        let service = &services[index];
        if !is_ours(service) {
            continue;
        }
        let name = format!("{}/{}", service.metadata.namespace, service.metadata.name);
        let ports = || service.spec.ports.iter().map(|port| (port.protocol.clone(), port.port));
        balances[index] = match ports().find_map(|port| Some((taken.get(&port)?.clone(), port))) {
            Some((holder, (protocol, port))) => Balance::Refused(format!("{protocol} port {port} of the nodes is taken by {holder}")),
            None => {
                taken.extend(ports().map(|port| (port, name.clone())));
                Balance::Addresses(addresses(service, hosts, &slices_of))
            }
        };
    }
    balances
}

fn addresses(service: &Service, hosts: &[Host], slices_of: impl Fn(&Service) -> Vec<EndpointSlice>) -> Vec<String> {
    let mut addresses: Vec<String> = match service.spec.external_traffic_policy == "Local" {
        false => hosts.iter().map(|(_, address)| address.clone()).collect(),
        true => {
            let slices = slices_of(service);
            let ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.is_ready());
            let nodes: BTreeSet<&str> = ready.filter_map(|endpoint| endpoint.node_name.as_deref()).collect();
            hosts.iter().filter(|(name, _)| nodes.contains(name.as_str())).map(|(_, address)| address.clone()).collect()
        }
    };
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, created: i64, port: i64, more: Value) -> Service {
        let mut spec = json!({"type": "LoadBalancer", "ports": [{"protocol": "TCP", "port": port}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let created = format!("2026-01-01T00:00:{created:02}Z");
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name, "creationTimestamp": created}, "spec": spec}))
            .unwrap()
    }

    fn planned(services: &[Service]) -> Vec<Balance> {
        let hosts = [("a", "192.0.2.1"), ("b", "192.0.2.2")].map(|(name, address)| (name.to_owned(), address.to_owned()));
        let slice = |slice: Value| serde_json::from_value::<EndpointSlice>(slice).unwrap();
        let api = [slice(json!({"ports": [{"protocol": "TCP", "port": 6443}]}))];
        let ends = json!({"endpoints": [{"nodeName": "b"}, {"nodeName": "a", "conditions": {"ready": false}}, {"nodeName": "gone"}]});
        plan(services, &hosts, &api, |_| vec![slice(ends.clone())])
    }

    fn at(addresses: &[&str]) -> Balance {
        Balance::Addresses(addresses.iter().map(|address| (*address).to_owned()).collect())
    }

    #[test]
    fn a_service_is_at_all_nodes_or_at_those_with_its_pods() {
        let services = [
            service("web", 0, 80, json!({})),
            service("local", 0, 81, json!({"externalTrafficPolicy": "Local"})),
            service("other", 0, 82, json!({"loadBalancerClass": "example.com/other"})),
            service("inside", 0, 83, json!({"type": "ClusterIP"})),
        ];
        assert_eq!(planned(&services), [at(&["192.0.2.1", "192.0.2.2"]), at(&["192.0.2.2"]), Balance::None, Balance::None]);
    }

    #[test]
    fn a_port_is_the_older_services_and_never_the_apis() {
        let both = || at(&["192.0.2.1", "192.0.2.2"]);
        let refused = |port: u16, holder: &str| Balance::Refused(format!("TCP port {port} of the nodes is taken by {holder}"));
        let services = [service("young", 9, 80, json!({})), service("old", 1, 80, json!({})), service("api", 2, 6443, json!({}))];
        assert_eq!(planned(&services), [refused(80, "shop/old"), both(), refused(6443, "the API server")]);
    }

    #[test]
    fn only_nodes_that_are_well_and_not_excluded_are_led_to() {
        let node = |change: fn(&mut Value)| {
            let mut node = json!({"metadata": {"name": "a", "labels": {}}, "status": {
                "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
            change(&mut node);
            host(&node).map(|(_, address)| address)
        };
        assert_eq!(node(|_| {}).as_deref(), Some("192.0.2.1"));
        assert_eq!(node(|node| node["spec"]["unschedulable"] = true.into()).as_deref(), Some("192.0.2.1"));
        assert_eq!(node(|node| node["status"]["conditions"][0]["status"] = "Unknown".into()), None);
        assert_eq!(node(|node| node["metadata"]["labels"][EXCLUDED] = "".into()), None);
        assert_eq!(node(|node| node["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()), None);
        assert_eq!(node(|node| node["status"]["addresses"] = json!([])), None);
    }
}
