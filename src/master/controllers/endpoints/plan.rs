//! Decides which addresses and ports stand behind a Service, as Endpoints (upstream `pkg/controller/endpoint`) and as EndpointSlices
//! (KEP-752). Pure; an address stays in the slice it is in, so that a change touches only its own slice.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::api::services::{Service, ServicePort};
use crate::api::workloads::{IntOrString, Pod};

/// Endpoints of one slice; kube-controller-manager `--max-endpoints-per-slice`.
pub const SLICE_MAX: usize = 100;
/// Addresses of one Endpoints object; more are left out and an annotation says so.
pub const ADDRESSES_MAX: usize = 1000;

/// One address behind the Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The pod's uid: an address that moves to another pod is another endpoint.
    pub uid: String,
    /// As in an EndpointSlice.
    pub value: Value,
}

/// A slice as it is.
#[derive(Clone, Debug)]
pub struct Slice {
    pub name: String,
    pub ports: Value,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, PartialEq)]
pub enum Op {
    Create { ports: Value, endpoints: Vec<Value> },
    Update { name: String, endpoints: Vec<Value> },
    Delete { name: String },
}

/// Whether a pod's address is used at all; one that ends is, where `terminating` ones are asked for.
fn counts(pod: &Pod, terminating: bool) -> bool {
    !pod.is_finished() && !pod.status.pod_ip.is_empty() && (terminating || !pod.metadata.is_deleting())
}

/// The Service's ports on this pod; a named one that the pod lacks is left out.
fn ports_on(service: &Service, pod: &Pod) -> Vec<Value> {
    let number = |port: &ServicePort| match &port.target_port {
        Some(IntOrString::Int(0)) | None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let running = pod.spec.init_containers.iter().filter(|init| init.restart_policy.as_deref() == Some("Always"));
            let mut ports = pod.spec.containers.iter().chain(running).flat_map(|container| &container.ports);
            ports.find(|each| each.name == *name && each.protocol == port.protocol).map(|each| each.container_port)
        }
    };
    let port = |port: &ServicePort| {
        let mut value = json!({"name": port.name, "port": number(port)?, "protocol": port.protocol});
        if let Some(protocol) = &port.app_protocol {
            value["appProtocol"] = protocol.clone().into();
        }
        Some(value)
    };
    service.spec.ports.iter().filter_map(port).collect()
}

fn reference(pod: &Pod) -> Value {
    json!({"kind": "Pod", "namespace": pod.metadata.namespace, "name": pod.metadata.name, "uid": pod.metadata.uid})
}

/// The pod's own name in the Service's domain, if it has one.
fn hostname<'a>(service: &Service, pod: &'a Pod) -> Option<&'a str> {
    (!pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name).then_some(pod.spec.hostname.as_str())
}

/// The `subsets` of the Endpoints object, and whether some addresses had to be left out.
pub fn subsets(service: &Service, pods: &[Pod]) -> (Value, bool) {
    // Pods that have the same ports are in one subset: ports, addresses that are ready, addresses that are not.
    type Subset = (Vec<Value>, Vec<Value>, Vec<Value>);
    let mut groups: BTreeMap<String, Subset> = BTreeMap::new();
    let mut count = 0;
    for pod in pods.iter().filter(|pod| counts(pod, service.spec.publish_not_ready_addresses)) {
        let ports = ports_on(service, pod);
        if ports.is_empty() && !(service.is_headless() && service.spec.ports.is_empty()) {
            continue;
        }
        count += 1;
        if count > ADDRESSES_MAX {
            break;
        }
        let mut address = json!({"ip": pod.status.pod_ip, "targetRef": reference(pod)});
        if !pod.spec.node_name.is_empty() {
            address["nodeName"] = pod.spec.node_name.clone().into();
        }
        if let Some(hostname) = hostname(service, pod) {
            address["hostname"] = hostname.into();
        }
        let group = groups.entry(json!(ports).to_string()).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        if pod.is_ready() || service.spec.publish_not_ready_addresses { group.1.push(address) } else { group.2.push(address) }
    }
    let subset = |(mut ports, ready, waiting): Subset| {
        let mut subset = json!({});
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            if !addresses.is_empty() {
                subset[field] = addresses.into();
            }
        }
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            port.retain(|field, value| field != "name" || value != "");
        }
        if !ports.is_empty() {
            subset["ports"] = ports.into();
        }
        subset
    };
    (groups.into_values().map(subset).collect(), count > ADDRESSES_MAX)
}

/// What the slices should hold, by their ports.
pub fn endpoints(service: &Service, pods: &[Pod]) -> Vec<(Value, Vec<Endpoint>)> {
    let mut groups: BTreeMap<String, (Value, Vec<Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| counts(pod, true)) {
        let ports = json!(ports_on(service, pod));
        let (serving, terminating) = (pod.is_ready(), pod.metadata.is_deleting());
        let ready = service.spec.publish_not_ready_addresses || serving && !terminating;
        let mut value = json!({
            "addresses": [pod.status.pod_ip],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "targetRef": reference(pod),
        });
        if !pod.spec.node_name.is_empty() {
            value["nodeName"] = pod.spec.node_name.clone().into();
        }
        if let Some(hostname) = hostname(service, pod) {
            value["hostname"] = hostname.into();
        }
        let endpoint = Endpoint { uid: pod.metadata.uid.clone(), value };
        groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
    }
    groups.into_values().collect()
}

/// What brings the slices to what they should hold, with as few of them touched as may be. A Service without any endpoint keeps one empty
/// slice, by which clients see that it is looked after.
pub fn plan(desired: Vec<(Value, Vec<Endpoint>)>, observed: Vec<Slice>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut observed: Vec<Slice> = observed;
    let mut kept = 0;
    for (ports, endpoints) in desired {
        let (mine, others): (Vec<Slice>, Vec<Slice>) = observed.into_iter().partition(|slice| slice.ports == ports);
        observed = others;
        kept += fill(ports, endpoints, mine, &mut ops);
    }
    // What is left has ports that no pod offers any more. One that is empty and has none is the sign of an empty Service.
    let mut leftover = observed.into_iter();
    if kept == 0 {
        let is_sign = |slice: &Slice| slice.endpoints.is_empty() && slice.ports == json!([]);
        match leftover.clone().find(is_sign) {
            Some(sign) => {
                ops.extend(leftover.filter(|slice| slice.name != sign.name).map(|slice| Op::Delete { name: slice.name }));
                return ops;
            }
            None => ops.push(Op::Create { ports: json!([]), endpoints: Vec::new() }),
        }
    }
    ops.extend(leftover.by_ref().map(|slice| Op::Delete { name: slice.name }));
    ops
}

/// Brings the slices of one set of ports up to date; returns how many there are then.
fn fill(ports: Value, endpoints: Vec<Endpoint>, slices: Vec<Slice>, ops: &mut Vec<Op>) -> usize {
    let mut missing: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        order.push(endpoint.uid.clone());
        missing.insert(endpoint.uid.clone(), endpoint);
    }
    let mut left: Vec<(Slice, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let staying = slice.endpoints.iter().filter_map(|endpoint| missing.remove(&endpoint.uid)).collect();
        left.push((slice, staying));
    }
    let mut added = order.into_iter().filter_map(|uid| missing.remove(&uid)).collect::<Vec<Endpoint>>().into_iter();
    // Those that change anyway take new ones first, then the fullest that has room.
    left.sort_by_key(|(slice, staying)| (slice.endpoints == *staying, std::cmp::Reverse(staying.len())));
    let mut kept = 0;
    for (slice, mut staying) in left {
        staying.extend(added.by_ref().take(SLICE_MAX.saturating_sub(staying.len())));
        if staying.is_empty() {
            ops.push(Op::Delete { name: slice.name });
            continue;
        }
        kept += 1;
        if staying != slice.endpoints {
            ops.push(Op::Update { name: slice.name, endpoints: staying.into_iter().map(|endpoint| endpoint.value).collect() });
        }
    }
    loop {
        let some: Vec<Value> = added.by_ref().take(SLICE_MAX).map(|endpoint| endpoint.value).collect();
        if some.is_empty() {
            return kept;
        }
        kept += 1;
        ops.push(Op::Create { ports: ports.clone(), endpoints: some });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(change: Value) -> Service {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
        });
        json_patch::merge(&mut value, &change);
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, ready: bool, change: Value) -> Pod {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {
                "phase": "Running", "podIP": format!("10.244.0.{}", name.len()),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        json_patch::merge(&mut value, &change);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn endpoints_are_the_ready_pods_by_named_port() {
        let pods = [
            pod("a", true, json!({})),
            pod("bb", false, json!({})),
            pod("ccc", true, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("dddd", true, json!({"status": {"phase": "Failed"}})),
            pod("eeeee", true, json!({"status": {"podIP": ""}})),
            pod("ffffff", true, json!({"spec": {"containers": []}})),
        ];
        let reference = |name: &str| json!({"kind": "Pod", "namespace": "default", "name": name, "uid": name});
        let expected = json!([{
            "addresses": [{"ip": "10.244.0.1", "nodeName": "n", "targetRef": reference("a")}],
            "notReadyAddresses": [{"ip": "10.244.0.2", "nodeName": "n", "targetRef": reference("bb")}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }]);
        assert_eq!(subsets(&service(json!({})), &pods), (expected, false));
        let all = subsets(&service(json!({"spec": {"publishNotReadyAddresses": true}})), &pods).0;
        assert_eq!(all[0]["addresses"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn slices_say_who_is_ready_who_serves_and_who_ends() {
        let pods = [
            pod("a", true, json!({})),
            pod("b", false, json!({})),
            pod("c", true, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ];
        let groups = endpoints(&service(json!({})), &pods);
        let conditions: Vec<_> = groups[0].1.iter().map(|endpoint| endpoint.value["conditions"].clone()).collect();
        let expected = [(true, true, false), (false, false, false), (false, true, true)];
        let expected =
            expected.map(|(ready, serving, terminating)| json!({"ready": ready, "serving": serving, "terminating": terminating}));
        assert_eq!(conditions, expected);
    }

    #[test]
    fn a_headless_service_without_ports_has_addresses_and_names() {
        let service = service(json!({"spec": {"clusterIP": "None", "ports": null}}));
        let named = pod("a", true, json!({"spec": {"hostname": "web-0", "subdomain": "web"}}));
        let (subsets, _) = subsets(&service, &[named]);
        assert_eq!((&subsets[0]["addresses"][0]["hostname"], subsets[0].get("ports")), (&json!("web-0"), None));
    }

    fn endpoint(number: usize) -> Endpoint {
        Endpoint { uid: number.to_string(), value: json!({"addresses": [number.to_string()]}) }
    }

    #[test]
    fn one_change_touches_one_slice() {
        let ports = json!([{"port": 80}]);
        let slice = |name: &str, from: usize, to: usize| Slice {
            name: name.to_owned(),
            ports: ports.clone(),
            endpoints: (from..to).map(endpoint).collect(),
        };
        let names = |ops: &[Op]| {
            let name = |op: &Op| match op {
                Op::Create { endpoints, .. } => format!("create {}", endpoints.len()),
                Op::Update { name, endpoints } => format!("update {name} {}", endpoints.len()),
                Op::Delete { name } => format!("delete {name}"),
            };
            ops.iter().map(name).collect::<Vec<_>>()
        };
        let check = |desired: Vec<usize>, observed: Vec<Slice>, expected: &[&str]| {
            let desired = vec![(ports.clone(), desired.into_iter().map(endpoint).collect())];
            assert_eq!(names(&plan(desired, observed)), expected);
        };
        let both = || vec![slice("a", 0, 100), slice("b", 100, 150)];
        check((0..150).collect(), both(), &[]);
        check((0..151).collect(), both(), &["update b 51"]);
        check((1..151).collect(), both(), &["update a 100"]);
        check((0..100).collect(), both(), &["delete b"]);
        check((0..250).collect(), vec![], &["create 100", "create 100", "create 50"]);
        let sign = Slice { name: "sign".to_owned(), ports: json!([]), endpoints: vec![] };
        assert_eq!(names(&plan(vec![], vec![])), ["create 0"]);
        assert_eq!(names(&plan(vec![], vec![sign.clone()])), [""; 0]);
        assert_eq!(names(&plan(vec![], both())), ["create 0", "delete a", "delete b"]);
        check(vec![1], vec![sign], &["create 1", "delete sign"]);
    }
}
