//! What the scheduler reads of a pod: its wishes and what it takes from a node. Read once for each change of the pod's spec, kept small.
//! It never looks at containers beyond their requests and host ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::api::quantity::Quantity;
use crate::api::workloads::{Condition, LabelSelector, ObjectMeta, Requirement};
use crate::master::store::Object;

/// What a pod asks for or a node offers: CPU in thousandths, all else in whole units (bytes, pieces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    /// Extended resources and huge pages by name.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    pub fn read(list: &BTreeMap<String, RawQuantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            let Some(quantity) = quantity.parse() else { continue };
            match name.as_str() {
                "cpu" => resources.cpu_milli = quantity.milli(),
                "memory" => resources.memory_bytes = quantity.value(),
                "ephemeral-storage" => resources.storage_bytes = quantity.value(),
                "pods" => (),
                _ => drop(resources.others.insert(name.clone(), quantity.value())),
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu_milli += other.cpu_milli;
        self.memory_bytes += other.memory_bytes;
        self.storage_bytes += other.storage_bytes;
        for (name, amount) in &other.others {
            *self.others.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu_milli -= other.cpu_milli;
        self.memory_bytes -= other.memory_bytes;
        self.storage_bytes -= other.storage_bytes;
        for (name, amount) in &other.others {
            *self.others.entry(name.clone()).or_default() -= amount;
        }
        self.others.retain(|_, amount| *amount != 0);
    }

    fn raise_to(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.storage_bytes = self.storage_bytes.max(other.storage_bytes);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }

    /// Name and amount of everything that is asked for, in the order in which upstream judges it.
    pub fn asked(&self) -> impl Iterator<Item = (&str, i64)> {
        let named = [("cpu", self.cpu_milli), ("memory", self.memory_bytes), ("ephemeral-storage", self.storage_bytes)];
        named.into_iter().chain(self.others.iter().map(|(name, amount)| (name.as_str(), *amount))).filter(|(_, amount)| *amount > 0)
    }

    pub fn of(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu_milli,
            "memory" => self.memory_bytes,
            "ephemeral-storage" => self.storage_bytes,
            _ => self.others.get(name).copied().unwrap_or_default(),
        }
    }
}

/// A quantity as JSON may have it: a string or a plain number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum RawQuantity {
    Text(String),
    Number(serde_json::Number),
}

impl RawQuantity {
    pub fn parse(&self) -> Option<Quantity> {
        match self {
            Self::Text(text) => Quantity::parse(text).ok(),
            Self::Number(number) => Quantity::parse(&number.to_string()).ok(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: String,
    pub scheduler_name: String,
    /// Only whether there are any is asked.
    pub scheduling_gates: Vec<IgnoredAny>,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Affinity,
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    pub tolerations: Vec<Toleration>,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub overhead: BTreeMap<String, RawQuantity>,
    pub resources: Requests,
    pub priority: i64,
    pub preemption_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    pub node_affinity: NodeAffinity,
    pub pod_affinity: PodAffinity,
    pub pod_anti_affinity: PodAffinity,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Vec<PodTerm>,
}

/// core/v1 PodAffinityTerm: pods of these labels, in these namespaces, on nodes that are the same by this label.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTerm {
    pub label_selector: Option<LabelSelector>,
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
    pub match_label_keys: Vec<String>,
    pub mismatch_label_keys: Vec<String>,
}

/// core/v1 TopologySpreadConstraint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    pub when_unsatisfiable: String,
    pub label_selector: Option<LabelSelector>,
    pub min_domains: i64,
    pub node_affinity_policy: String,
    pub node_taints_policy: String,
    pub match_label_keys: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Vec<Preferred>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    pub node_selector_terms: Vec<Term>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preferred {
    pub weight: i64,
    pub preference: Term,
}

/// core/v1 NodeSelectorTerm: all of its requirements must hold; an empty one holds nowhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    pub match_expressions: Vec<Requirement>,
    pub match_fields: Vec<Requirement>,
}

/// core/v1 Toleration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub resources: Requests,
    pub ports: Vec<Port>,
    pub restart_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requests {
    pub requests: BTreeMap<String, RawQuantity>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub phase: String,
    pub conditions: Vec<Condition>,
}

/// A port taken on a node: address (`0.0.0.0` is all), protocol, number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: u16,
}

impl HostPort {
    pub fn conflicts_with(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

impl Pod {
    pub fn read(object: &Arc<Object>) -> anyhow::Result<Self> {
        object.view()
    }

    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// What the pod takes from a node: its containers together or the greediest init container, whichever is more, and its overhead.
    /// Init containers that go on running (restartPolicy Always) count with all that start after them.
    /// <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>
    pub fn requests(&self) -> Resources {
        let read = |container: &Container| Resources::read(&container.resources.requests);
        let mut running = Resources::default();
        let mut starting = Resources::default();
        for init in &self.spec.init_containers {
            let mut now = read(init);
            if init.restart_policy == "Always" {
                running.add(&now);
                now = running.clone();
            } else {
                now.add(&running);
            }
            starting.raise_to(&now);
        }
        for container in &self.spec.containers {
            running.add(&read(container));
        }
        running.raise_to(&starting);
        // Requests of the pod as a whole stand in for those of its containers (KEP-2837).
        let whole = Resources::read(&self.spec.resources.requests);
        for (name, amount) in whole.asked() {
            match name {
                "cpu" => running.cpu_milli = amount,
                "memory" => running.memory_bytes = amount,
                _ => drop(running.others.insert(name.to_owned(), amount)),
            }
        }
        running.add(&Resources::read(&self.spec.overhead));
        running
    }

    pub fn host_ports(&self) -> Vec<HostPort> {
        let containers = self.spec.init_containers.iter().filter(|init| init.restart_policy == "Always").chain(&self.spec.containers);
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        containers
            .flat_map(|container| &container.ports)
            .filter(|port| port.host_port != 0)
            .map(|port| HostPort { ip: or(&port.host_ip, "0.0.0.0"), protocol: or(&port.protocol, "TCP"), port: port.host_port })
            .collect()
    }

    /// Whether it depends on other pods where this one may go: then a change anywhere may help it.
    pub fn minds_neighbours(&self) -> bool {
        let Affinity { pod_affinity, pod_anti_affinity, .. } = &self.spec.affinity;
        !(pod_affinity.required.is_empty() && pod_anti_affinity.required.is_empty() && self.spec.topology_spread_constraints.is_empty())
    }

    /// Whether the pod waits for this scheduler to place it.
    pub fn is_waiting(&self) -> bool {
        self.spec.node_name.is_empty()
            && matches!(self.spec.scheduler_name.as_str(), "default-scheduler" | "")
            && !self.metadata.is_deleting()
            && !self.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn asks(cpu: &str, restart: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}, "restartPolicy": restart})
    }

    #[test]
    fn init_containers_run_before_and_sidecars_beside_the_others() {
        let check = |init: Value, containers: Value, expected| {
            let pod = pod(json!({"initContainers": init, "containers": containers}));
            assert_eq!(pod.requests().cpu_milli, expected, "{:?}", pod.spec);
        };
        check(json!([]), json!([asks("100m", ""), asks("1", "")]), 1100);
        check(json!([asks("2", "")]), json!([asks("1", "")]), 2000);
        check(json!([asks("200m", "Always")]), json!([asks("1", "")]), 1200);
        check(json!([asks("200m", "Always"), asks("1500m", "")]), json!([asks("1", "")]), 1700);
        check(json!([asks("1500m", ""), asks("200m", "Always")]), json!([asks("1", "")]), 1500);
    }

    #[test]
    fn overhead_and_extended_resources_count() {
        let pod = pod(json!({
            "containers": [{"resources": {"requests": {"memory": "64Mi", "example.com/gpu": 2}}}],
            "overhead": {"memory": "1Mi", "cpu": "10m"},
        }));
        let requests = pod.requests();
        assert_eq!((requests.cpu_milli, requests.memory_bytes, requests.of("example.com/gpu")), (10, 65 << 20, 2));
        assert_eq!(requests.asked().map(|(name, _)| name).collect::<Vec<_>>(), ["cpu", "memory", "example.com/gpu"]);
    }

    #[test]
    fn host_ports_conflict_on_the_same_or_on_all_addresses() {
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.to_owned(), protocol: protocol.to_owned(), port };
        let all = port("0.0.0.0", "TCP", 80);
        for (other, expected) in
            [(port("127.0.0.1", "TCP", 80), true), (port("0.0.0.0", "UDP", 80), false), (port("0.0.0.0", "TCP", 81), false)]
        {
            assert_eq!(all.conflicts_with(&other), expected, "{other:?}");
        }
        assert!(!port("10.0.0.1", "TCP", 80).conflicts_with(&port("10.0.0.2", "TCP", 80)));
    }
}
