//! The other nodes of the cluster, as this one reaches their pods: it follows the Nodes and tells the network. What it has heard
//! stays true while the master is away. It makes no route itself.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{FutureExt, future};
use serde_json::{Value, json};
use smol::Timer;

use super::Node;
use super::ledger::Followed;
use crate::api::meta;
use crate::client::cache::Event;
use crate::network::Peer;

/// Pause before ways that could not be made are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether the ways are still there: with a link that goes down the kernel forgets them, and says it to nobody here.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Follows the cluster's nodes, for ever.
pub async fn follow(node: Rc<Node>) {
    let feed = Followed::start(&node.ledger, &node.client, "/api/v1/nodes", "nodes.json", kept);
    let mut known: BTreeMap<String, Peer> = BTreeMap::new();
    let mut done: Option<Vec<Peer>> = None;
    loop {
        let heard = async { Some(feed.next().await) };
        let unheard = async {
            Timer::after(CHECK_INTERVAL).await;
            None
        };
        let mut next = heard.or(unheard).await;
        let is_check = next.is_none();
        // Nothing is known yet: the ways of an agent before this one stay.
        if is_check && done.is_none() {
            continue;
        }
        while let Some(event) = next {
            // The master gave this node up while it could not be heard: it has to say anew how it is.
            if is_doubted(&event, &node.facts.node_name) {
                node.status_due.set(true);
            }
            hear(&mut known, event);
            next = future::poll_once(feed.next()).await;
        }
        let peers: Vec<Peer> = known.iter().filter(|(name, _)| **name != node.facts.node_name).map(|(_, peer)| *peer).collect();
        // Most of what nodes have to say is that they are well.
        let is_known = done.as_ref() == Some(&peers);
        if is_known && !is_check {
            continue;
        }
        let mut is_told = false;
        while let Err(error) = node.network.set_peers(&peers).await {
            // Once: it lasts as long as the link is down.
            if !std::mem::replace(&mut is_told, true) {
                log::error!("{error:#}");
            }
            Timer::after(RETRY).await;
        }
        if is_known {
            continue;
        }
        log::info!("node={} reaches the pods of {} other nodes", node.facts.node_name, peers.len());
        done = Some(peers);
    }
}

fn hear(known: &mut BTreeMap<String, Peer>, event: Event) {
    match event {
        Event::Relisted(nodes) => *known = nodes.iter().filter_map(|node| Some((meta::name(node).to_owned(), peer(node)?))).collect(),
        Event::Added(node) | Event::Modified(node) => match peer(&node) {
            Some(peer) => drop(known.insert(meta::name(&node).to_owned(), peer)),
            None => drop(known.remove(meta::name(&node))),
        },
        Event::Deleted(node) => drop(known.remove(meta::name(&node))),
    }
}

/// Whether the node of this name is said not to be well.
fn is_doubted(event: &Event, name: &str) -> bool {
    let nodes = match event {
        Event::Relisted(nodes) => nodes.as_slice(),
        Event::Added(node) | Event::Modified(node) => std::slice::from_ref(node),
        Event::Deleted(_) => &[],
    };
    let is_well = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    nodes.iter().any(|node| meta::name(node) == name && !is_well(node))
}

/// What the ledger keeps of a node.
fn kept(node: &Value) -> Value {
    json!({
        "metadata": {"name": meta::name(node)}, "spec": {"podCIDR": node["spec"]["podCIDR"]},
        "status": {"addresses": node["status"]["addresses"]},
    })
}

/// What can be reached of a node; nothing before it has its address and its pod network.
fn peer(node: &Value) -> Option<Peer> {
    let addresses = node["status"]["addresses"].as_array()?;
    let address = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    Some(Peer { node_address: address["address"].as_str()?.parse().ok()?, pod_cidr: node["spec"]["podCIDR"].as_str()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_hears_that_it_was_given_up() {
        let node =
            |name: &str, ready: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        assert!(is_doubted(&Event::Modified(node("a", "Unknown")), "a"));
        assert!(is_doubted(&Event::Relisted(vec![node("b", "True"), node("a", "Unknown")]), "a"));
        assert!(!is_doubted(&Event::Relisted(vec![node("b", "Unknown"), node("a", "True")]), "a"));
        assert!(!is_doubted(&Event::Deleted(node("a", "Unknown")), "a"));
    }

    #[test]
    fn nodes_count_from_when_they_have_address_and_network() {
        let node =
            |address: Value, cidr: Value| json!({"metadata": {"name": "b"}, "spec": {"podCIDR": cidr}, "status": {"addresses": address}});
        let addresses = json!([{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "192.0.2.2"}]);
        let whole = node(addresses.clone(), json!("10.244.1.0/24"));
        let expected = Peer { node_address: [192, 0, 2, 2].into(), pod_cidr: "10.244.1.0/24".parse().unwrap() };
        assert_eq!(peer(&whole), Some(expected));
        assert_eq!(peer(&node(addresses, Value::Null)), None);
        assert_eq!(peer(&node(json!([]), json!("10.244.1.0/24"))), None);
        let mut known = BTreeMap::new();
        hear(&mut known, Event::Added(whole.clone()));
        assert_eq!(known.get("b"), Some(&expected));
        hear(&mut known, Event::Modified(node(json!([]), json!("10.244.1.0/24"))));
        assert!(known.is_empty());
        hear(&mut known, Event::Relisted(vec![whole.clone()]));
        hear(&mut known, Event::Deleted(whole));
        assert!(known.is_empty());
    }
}
