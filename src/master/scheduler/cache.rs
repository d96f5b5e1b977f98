//! What each node offers and what is taken from it, kept up to date change by change, so that no decision reads all pods.
//! It never decides anything; a pod that was just given a node counts at once, before the store has it.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;

use super::pod::{HostPort, Pod, PodTerm, RawQuantity, Resources};
use crate::api::workloads::ObjectMeta;
use crate::master::store::Object;

/// What a container without requests is taken for when nodes are compared (not when they are filtered), so that many such pods
/// do not pile up on one node; kube-scheduler `DefaultMilliCPURequest`, `DefaultMemoryRequest`.
const CPU_MILLI_ASSUMED: i64 = 100;
const MEMORY_BYTES_ASSUMED: i64 = 200 << 20;

/// A node as the scheduler compares it with pods.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: Rc<str>,
    /// `None`: pods name the node, but there is no such object (yet).
    pub offer: Option<Offer>,
    pub used: Resources,
    /// CPU and memory with every pod taken for at least something.
    pub used_for_score: (i64, i64),
    pub pods: i64,
    pub ports: Vec<HostPort>,
    /// Pods by their controller's uid.
    pub by_owner: HashMap<String, u32>,
}

/// What the Node object says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub pods_max: i64,
}

/// core/v1 Taint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

impl Offer {
    pub fn read(json: &[u8]) -> anyhow::Result<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Object {
            metadata: ObjectMeta,
            spec: Spec,
            status: Status,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            taints: Vec<Taint>,
            unschedulable: bool,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            allocatable: BTreeMap<String, RawQuantity>,
        }
        let Object { metadata, spec, status } = serde_json::from_slice(json)?;
        let pods_max = status.allocatable.get("pods").and_then(RawQuantity::parse).map_or(0, |pods| pods.value());
        Ok(Self {
            labels: metadata.labels,
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            allocatable: Resources::read(&status.allocatable),
            pods_max,
        })
    }
}

/// What one pod takes from its node.
#[derive(Debug)]
struct Charge {
    /// The store's own, so that labels are not kept twice.
    object: Arc<Object>,
    is_ending: bool,
    node: Rc<str>,
    requests: Resources,
    for_score: (i64, i64),
    ports: Vec<HostPort>,
    owner: Option<String>,
}

/// A pod that is there already, as seen by one that looks for a place.
pub struct Neighbour<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub is_ending: bool,
    pub offer: &'a Offer,
}

#[derive(Default)]
pub struct Cache {
    /// Pods that cannot stand others, by uid.
    touchy: HashMap<String, Vec<PodTerm>>,
    nodes: Vec<Node>,
    places: HashMap<Rc<str>, usize>,
    charges: HashMap<String, Charge>,
    existing: usize,
}

impl Cache {
    /// Every node, also those of which no object is known.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many nodes have an object.
    pub fn existing(&self) -> usize {
        self.existing
    }

    /// Takes a Node object's word. Returns whether that may change where pods fit.
    pub fn set_node(&mut self, name: &str, offer: Offer) -> bool {
        let index = self.place(name);
        let node = &mut self.nodes[index];
        let changed = node.offer.as_ref() != Some(&offer);
        self.existing += usize::from(node.offer.is_none());
        node.offer = Some(offer);
        changed
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.places.get(name).copied() {
            self.existing -= usize::from(self.nodes[index].offer.take().is_some());
            self.drop_if_unused(index);
        }
    }

    /// Every pod on a node that exists.
    pub fn neighbours(&self) -> impl Iterator<Item = Neighbour<'_>> {
        self.charges.values().filter_map(|charge| self.neighbour(charge))
    }

    /// Those with required anti-affinity, and its terms.
    pub fn touchy(&self) -> impl Iterator<Item = (Neighbour<'_>, &[PodTerm])> {
        self.touchy.iter().filter_map(|(uid, terms)| Some((self.neighbour(self.charges.get(uid)?)?, terms.as_slice())))
    }

    fn neighbour<'a>(&'a self, charge: &'a Charge) -> Option<Neighbour<'a>> {
        let offer = self.node(&charge.node)?.offer.as_ref()?;
        let Object { key, labels, .. } = charge.object.as_ref();
        Some(Neighbour { namespace: &key.namespace, labels, is_ending: charge.is_ending, offer })
    }

    /// Counts a pod on a node; if it was counted before, as it is now.
    pub fn charge(&mut self, object: &Arc<Object>, node: &str, pod: &Pod) {
        let uid = object.uid.as_str();
        self.discharge(uid);
        let requests = pod.requests();
        let index = self.place(node);
        let charge = Charge {
            object: object.clone(),
            is_ending: pod.metadata.is_deleting(),
            node: self.nodes[index].name.clone(),
            for_score: for_score(&requests),
            requests,
            ports: pod.host_ports(),
            owner: pod.metadata.controller().map(|owner| owner.uid.clone()),
        };
        let node = &mut self.nodes[index];
        node.used.add(&charge.requests);
        node.used_for_score.0 += charge.for_score.0;
        node.used_for_score.1 += charge.for_score.1;
        node.pods += 1;
        node.ports.extend(charge.ports.iter().cloned());
        if let Some(owner) = &charge.owner {
            *node.by_owner.entry(owner.clone()).or_default() += 1;
        }
        self.charges.insert(uid.to_owned(), charge);
        let shunned = &pod.spec.affinity.pod_anti_affinity.required;
        if !shunned.is_empty() {
            self.touchy.insert(uid.to_owned(), shunned.clone());
        }
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        Some(&self.nodes[*self.places.get(name)?])
    }

    /// Counts a pod no longer. Returns the node where it was counted.
    pub fn discharge(&mut self, uid: &str) -> Option<Rc<str>> {
        let charge = self.charges.remove(uid)?;
        self.touchy.remove(uid);
        let index = *self.places.get(&charge.node).expect("a node with pods keeps its place");
        let node = &mut self.nodes[index];
        node.used.subtract(&charge.requests);
        node.used_for_score.0 -= charge.for_score.0;
        node.used_for_score.1 -= charge.for_score.1;
        node.pods -= 1;
        for port in &charge.ports {
            if let Some(at) = node.ports.iter().position(|each| each == port) {
                node.ports.swap_remove(at);
            }
        }
        if let Some(count) = charge.owner.as_ref().and_then(|owner| node.by_owner.get_mut(owner)) {
            *count -= 1;
        }
        node.by_owner.retain(|_, count| *count > 0);
        self.drop_if_unused(index);
        Some(charge.node)
    }

    fn place(&mut self, name: &str) -> usize {
        if let Some(index) = self.places.get(name) {
            return *index;
        }
        let name: Rc<str> = name.into();
        self.nodes.push(Node { name: name.clone(), ..Node::default() });
        self.places.insert(name, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn drop_if_unused(&mut self, index: usize) {
        if self.nodes[index].offer.is_some() || self.nodes[index].pods > 0 {
            return;
        }
        let gone = self.nodes.swap_remove(index);
        self.places.remove(&gone.name);
        if let Some(moved) = self.nodes.get(index) {
            self.places.insert(moved.name.clone(), index);
        }
    }
}

pub fn for_score(requests: &Resources) -> (i64, i64) {
    let or = |amount: i64, assumed: i64| if amount == 0 { assumed } else { amount };
    (or(requests.cpu_milli, CPU_MILLI_ASSUMED), or(requests.memory_bytes, MEMORY_BYTES_ASSUMED))
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema;
    use crate::master::store::Key;

    fn pod(cpu: &str, port: u16) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"ownerReferences": [{"uid": "set", "controller": true}]},
            "spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}, "ports": [{"hostPort": port}]}]},
        }))
        .unwrap()
    }

    pub fn object(uid: &str) -> Arc<Object> {
        let key = Key::new(schema::resource("", "v1", "pods").unwrap(), "default", uid);
        Arc::new(Object { key, revision: 1, uid: uid.to_owned(), labels: BTreeMap::new(), node: Box::default(), json: Box::default() })
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing_behind() {
        let mut cache = Cache::default();
        cache.charge(&object("p1"), "a", &pod("1", 80));
        assert_eq!((cache.existing(), cache.nodes().len()), (0, 1), "its node is not known yet");
        assert!(cache.set_node("a", Offer::default()));
        assert!(!cache.set_node("a", Offer::default()), "a heartbeat changes nothing");
        assert!(cache.set_node("b", Offer { unschedulable: true, ..Offer::default() }));
        cache.charge(&object("p2"), "a", &pod("500m", 0));
        cache.charge(&object("p2"), "a", &pod("500m", 0));
        let node = &cache.nodes()[0];
        assert_eq!((node.used.cpu_milli, node.pods, node.ports.len(), node.by_owner["set"]), (1500, 2, 1, 2));
        assert_eq!((cache.discharge("p1").as_deref(), cache.discharge("p1")), (Some("a"), None));
        cache.remove_node("a");
        assert_eq!(cache.existing(), 1);
        assert!(cache.discharge("p2").is_some());
        assert_eq!(cache.nodes().iter().map(|node| &*node.name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(cache.places.len(), 1);
    }
}
