//! Cluster addresses and node ports of Services. What is taken is read from the Services in the store at each allocation, so a
//! restart knows all of it. Ranges: 10.96.0.0/16 and 30000–32767.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::status::{Cause, Status};
use crate::api::{meta, schema};
use crate::base::id;
use crate::master::store::Objects;

/// The first address, of the Service `kubernetes`, and the last before the broadcast address.
const ADDRESSES: RangeInclusive<u32> = 0x0a60_0001..=0x0a60_fffe;
/// Addresses up to here are given out only to those who ask for one, or when all others are taken:
/// min(max(16, size / 16), 256), as KEP-3070 has it.
const ADDRESSES_STATIC: u32 = 256;
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// KEP-3668: min(max(16, size / 32), 128).
const NODE_PORTS_STATIC: u16 = 86;
/// What was given out stays taken for so long even if no stored Service has it yet: its creation is still under way.
const HELD: Duration = Duration::from_secs(10);
const HELD_MAX: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Address(u32),
    Port(u16),
}

thread_local! {
    static HELD_ITEMS: RefCell<VecDeque<(Instant, Item, String)>> = const { RefCell::new(VecDeque::new()) };
}

pub fn admit(objects: &Objects, service: &mut Value, live: Option<&Value>) -> Result<(), Status> {
    if !service["spec"].is_object() {
        return Ok(());
    }
    if let Some(live) = live {
        keep_allocated(service, live);
    }
    let mut taken = Taken::by_others(objects, service);
    address(service, &mut taken)?;
    ports(service, &mut taken)?;
    taken.hold(meta::uid(service));
    Ok(())
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

/// An update that leaves allocated fields out keeps them, unless the type does away with them.
fn keep_allocated(service: &mut Value, live: &Value) {
    let (kind, was) = (text(service, "type").to_owned(), text(live, "type"));
    let has_address = |kind: &str| kind != "ExternalName";
    let has_ports = |kind: &str| kind == "NodePort" || kind == "LoadBalancer";
    let spec = service["spec"].as_object_mut().expect("admit looked");
    if has_address(&kind) && has_address(was) {
        let absent =
            |value: Option<&Value>| value.is_none_or(|value| value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty));
        if absent(spec.get("clusterIP")) && absent(spec.get("clusterIPs")) {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(kept) = live["spec"].get(field) {
                    spec.insert(field.into(), kept.clone());
                }
            }
        }
    }
    if !has_address(&kind) && live["spec"].get("clusterIP") == spec.get("clusterIP") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    // What only another type has goes with the type, unless it was changed in the same breath and so is meant.
    let is_reachable = has_ports(&kind) || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    let is_balanced = kind == "LoadBalancer";
    let checks_health = is_balanced && spec.get("externalTrafficPolicy").is_some_and(|policy| policy == "Local");
    for (field, stays) in [
        ("externalTrafficPolicy", is_reachable && kind != "ExternalName"),
        ("allocateLoadBalancerNodePorts", is_balanced),
        ("loadBalancerClass", is_balanced),
        ("healthCheckNodePort", checks_health),
    ] {
        if !stays && live["spec"].get(field) == spec.get(field) {
            spec.remove(field);
        }
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter(|port| port.is_object()) {
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        let before =
            live["spec"]["ports"].as_array().into_iter().flatten().find(same).map_or(0, |port| port["nodePort"].as_i64().unwrap_or(0));
        let given = port["nodePort"].as_i64().unwrap_or(0);
        if has_ports(&kind) && has_ports(was) && given == 0 && before != 0 {
            port["nodePort"] = before.into();
        }
        if !has_ports(&kind) && has_ports(was) && given == before {
            port.as_object_mut().expect("filtered above").remove("nodePort");
        }
    }
}

fn address(service: &mut Value, taken: &mut Taken) -> Result<(), Status> {
    if text(service, "type") == "ExternalName" {
        return Ok(());
    }
    let first = service["spec"]["clusterIPs"][0].as_str().unwrap_or_default();
    let wanted = match text(service, "clusterIP") {
        "" => first,
        address => address,
    };
    let address = match wanted {
        "None" => "None".to_owned(),
        "" => Ipv4Addr::from(taken.free_address().ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?)
            .to_string(),
        given => {
            let refuse = |why: String| {
                let message = format!("Invalid value: [{given:?}]: failed to allocate IP {given}: {why}");
                invalid(service, "spec.clusterIPs", message)
            };
            let number = given.parse::<Ipv4Addr>().map(u32::from).map_err(|_| {
                let message = format!("Invalid value: {given:?}: must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
                invalid(service, "spec.clusterIPs[0]", message)
            })?;
            if !ADDRESSES.contains(&number) {
                return Err(refuse("the provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16".into()));
            }
            if !taken.take(Item::Address(number)) {
                return Err(refuse("provided IP is already allocated".into()));
            }
            given.to_owned()
        }
    };
    let spec = &mut service["spec"];
    spec["clusterIP"] = address.as_str().into();
    spec["clusterIPs"] = json!([address]);
    for (field, value) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
        if spec.get(field).is_none_or(Value::is_null) {
            spec[field] = value;
        }
    }
    Ok(())
}

fn ports(service: &mut Value, taken: &mut Taken) -> Result<(), Status> {
    let kind = text(service, "type").to_owned();
    let wants_all = kind == "NodePort" || kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != false;
    let count = service["spec"]["ports"].as_array().map_or(0, Vec::len);
    let mut own: HashSet<u16> = HashSet::new();
    for index in 0..count {
        let given = service["spec"]["ports"][index]["nodePort"].as_i64().unwrap_or(0);
        if given == 0 {
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        let refuse = |why: &str| invalid(service, &field, format!("Invalid value: {given}: {why}"));
        let port = u16::try_from(given).ok().filter(|port| NODE_PORTS.contains(port));
        let port = port.ok_or_else(|| refuse("provided port is not in the valid range. The range of valid ports is 30000-32767"))?;
        // TCP and UDP of one Service may share a number.
        if !taken.take(Item::Port(port)) && !own.contains(&port) {
            return Err(refuse("provided port is already allocated"));
        }
        own.insert(port);
    }
    if wants_all {
        for index in 0..count {
            let port = &mut service["spec"]["ports"][index];
            if port.is_object() && port["nodePort"].as_i64().unwrap_or(0) == 0 {
                port["nodePort"] =
                    taken.free_port().ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?.into();
            }
        }
    }
    let checks_health = kind == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local";
    match service["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) {
        0 if checks_health => {
            let port = taken.free_port().ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?;
            service["spec"]["healthCheckNodePort"] = port.into();
        }
        _ => (),
    }
    Ok(())
}

fn invalid(service: &Value, field: &str, message: String) -> Status {
    let cause = Cause { reason: "FieldValueInvalid".into(), message, field: field.into() };
    Status::invalid("", "Service", meta::name(service), vec![cause])
}

#[derive(Default)]
struct Taken {
    items: HashSet<Item>,
    /// Chosen by this admission.
    fresh: Vec<Item>,
}

impl Taken {
    /// What all Services but this one have, and what was given to others a moment ago.
    fn by_others(objects: &Objects, service: &Value) -> Self {
        let mut taken = Self::default();
        let uid = meta::uid(service);
        if let Some(services) = schema::resource("", "v1", "services") {
            for other in objects.list(services, None).0.iter().filter(|other| other.uid != uid) {
                taken.add(&other.value());
            }
        }
        HELD_ITEMS.with_borrow_mut(|held| {
            while held.front().is_some_and(|(since, ..)| since.elapsed() > HELD) || held.len() > HELD_MAX {
                held.pop_front();
            }
            taken.items.extend(held.iter().filter(|(_, _, of)| of != uid).map(|(_, item, _)| *item));
        });
        taken
    }

    fn add(&mut self, service: &Value) {
        let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|address| address.as_str()?.parse::<Ipv4Addr>().ok());
        self.items.extend(addresses.map(|address| Item::Address(address.into())));
        let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        let ports = ports.chain([&service["spec"]["healthCheckNodePort"]]).filter_map(Value::as_u64);
        self.items.extend(ports.filter_map(|port| u16::try_from(port).ok()).map(Item::Port));
    }

    /// What somebody asks for by name is not held: if the request fails, they will ask again.
    fn take(&mut self, item: Item) -> bool {
        self.items.insert(item)
    }

    fn give_out(&mut self, item: Item) {
        self.items.insert(item);
        self.fresh.push(item);
    }

    fn free_address(&mut self) -> Option<u32> {
        let dynamic = ADDRESSES.start() + ADDRESSES_STATIC..=*ADDRESSES.end();
        let candidates = from_anywhere(dynamic).chain(ADDRESSES.take(ADDRESSES_STATIC as usize));
        let free = candidates.into_iter().find(|address| !self.items.contains(&Item::Address(*address)))?;
        self.give_out(Item::Address(free));
        Some(free)
    }

    fn free_port(&mut self) -> Option<u16> {
        let dynamic = u32::from(NODE_PORTS.start() + NODE_PORTS_STATIC)..=u32::from(*NODE_PORTS.end());
        let candidates = from_anywhere(dynamic).map(|port| port as u16).chain(NODE_PORTS.take(usize::from(NODE_PORTS_STATIC)));
        let free = candidates.into_iter().find(|port| !self.items.contains(&Item::Port(*port)))?;
        self.give_out(Item::Port(free));
        Some(free)
    }

    fn hold(self, uid: &str) {
        let now = Instant::now();
        HELD_ITEMS.with_borrow_mut(|held| held.extend(self.fresh.into_iter().map(|item| (now, item, uid.to_owned()))));
    }
}

/// All of a range once, from a random place on: a number that was just given back is not at once somebody else's.
fn from_anywhere(range: RangeInclusive<u32>) -> impl Iterator<Item = u32> {
    let (start, end) = range.into_inner();
    let middle = start + u32::from_le_bytes(id::random()) % (end - start + 1);
    (middle..=end).chain(start..middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "web", "uid": "u"}, "spec": spec})
    }

    #[test]
    fn a_free_address_is_outside_the_static_part_until_all_others_are_taken() {
        let mut taken = Taken::default();
        let address = taken.free_address().unwrap();
        assert!(address >= ADDRESSES.start() + ADDRESSES_STATIC && address <= *ADDRESSES.end());
        assert_ne!(taken.free_address(), Some(address));
        taken.items.extend((ADDRESSES.start() + ADDRESSES_STATIC..=*ADDRESSES.end()).map(Item::Address));
        assert_eq!(taken.free_address().map(Ipv4Addr::from), Some(Ipv4Addr::new(10, 96, 0, 1)));
    }

    #[test]
    fn node_ports_are_given_to_the_types_that_have_them() {
        let mut web = service(json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30081}]}));
        ports(&mut web, &mut Taken::default()).unwrap();
        let given = web["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        assert!((30_086..=32_767).contains(&given), "{given}");
        let mut inner = service(json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
        ports(&mut inner, &mut Taken::default()).unwrap();
        assert!(inner["spec"]["ports"][0].get("nodePort").is_none());
        let mut low = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}));
        assert_eq!(ports(&mut low, &mut Taken::default()).unwrap_err().code, 422);
        let mut taken = Taken::default();
        taken.items.insert(Item::Port(30_081));
        assert!(
            ports(&mut web, &mut taken)
                .unwrap_err()
                .message
                .contains("spec.ports[1].nodePort: Invalid value: 30081: provided port is already allocated")
        );
    }

    #[test]
    fn what_only_another_type_has_goes_with_the_type() {
        let live = service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "example.com/a", "ports": []}));
        let changed = |kind: &str, policy: &str| {
            let mut service = live.clone();
            (service["spec"]["type"], service["spec"]["externalTrafficPolicy"]) = (kind.into(), policy.into());
            keep_allocated(&mut service, &live);
            service["spec"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(changed("ClusterIP", "Local"), "ports type");
        assert_eq!(changed("NodePort", "Local"), "externalTrafficPolicy ports type");
        assert_eq!(changed("ClusterIP", "Cluster"), "externalTrafficPolicy ports type", "this is for validation to refuse");
        assert_eq!(changed("LoadBalancer", "Cluster"), "allocateLoadBalancerNodePorts externalTrafficPolicy loadBalancerClass ports type");
    }

    #[test]
    fn addresses_may_be_asked_for_once() {
        let mut taken = Taken::default();
        let mut dns = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
        address(&mut dns, &mut taken).unwrap();
        assert_eq!(dns["spec"]["clusterIPs"], json!(["10.96.0.10"]));
        assert!(address(&mut dns, &mut taken).unwrap_err().message.contains("provided IP is already allocated"));
        let mut headless = service(json!({"type": "ClusterIP", "clusterIP": "None"}));
        address(&mut headless, &mut taken).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let mut outside = service(json!({"type": "ClusterIP", "clusterIP": "192.0.2.1"}));
        assert!(address(&mut outside, &mut taken).unwrap_err().message.contains("valid range"));
    }

    #[test]
    fn an_update_keeps_what_it_leaves_out() {
        let live = service(json!({"type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30100}]}));
        let mut update = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        keep_allocated(&mut update, &live);
        assert_eq!(update["spec"], live["spec"]);
        let mut inner = live.clone();
        inner["spec"]["type"] = "ClusterIP".into();
        keep_allocated(&mut inner, &live);
        assert!(inner["spec"]["ports"][0].get("nodePort").is_none());
    }
}
