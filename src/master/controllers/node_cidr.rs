//! Gives every node a network of its own for its pods: the lowest free /24, first of 10.244.0.0/16, and of 10.224.0.0/11 around it once
//! more nodes came than that has room for (upstream `pkg/controller/nodeipam`). It never changes one that was given: the node's pods
//! live in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::master::recorder::Recorder;
use crate::master::store::objects::Part;
use crate::master::store::{Key, Object};

/// The first octet of every pod's address, and the second one's range; 10.244.0.0/16 is given out first.
const FIRST: u8 = 10;
const SECOND: std::ops::RangeInclusive<u8> = 224..=255;
const SECOND_FIRST: u8 = 244;
const NETWORKS: u16 = 32 * 256;

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    nodes: &'static Resource,
    /// Who has which network, by its number. One whose node is gone is free.
    taken: RefCell<HashMap<u16, String>>,
    /// Every network before this one was taken when it was looked at.
    next: Cell<u16>,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self {
            nodes: shared.resource("", "v1", "nodes"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            taken: RefCell::default(),
            next: Cell::new(0),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if !notice.is(self.nodes) {
            return;
        }
        match (cidr(notice.object), notice.is_deleted()) {
            (Some(cidr), true) => self.next.set(number(&cidr).map_or(0, |number| number.min(self.next.get()))),
            (Some(cidr), false) => self.note(&cidr, &key.name),
            (None, true) => (),
            (None, false) => self.queue.add(Name::of(key)),
        }
    }

    fn note(&self, cidr: &str, node: &str) {
        if let Some(number) = number(cidr) {
            self.taken.borrow_mut().insert(number, node.to_owned());
        }
    }

    /// The lowest network that no node has.
    fn lowest_free(&self) -> Option<u16> {
        let taken = self.taken.borrow();
        let is_there = |node: &String| self.shared.objects().store().get(&Key::new(self.nodes, "", node)).is_some();
        let is_free = |number: &u16| !taken.get(number).is_some_and(is_there);
        // What was given back while the log was lost is found in the second round.
        (self.next.get()..NETWORKS).find(is_free).or_else(|| (0..NETWORKS).find(is_free))
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "node-cidr";
    // One at a time: two at once would give the same network out twice.
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(node) = objects.store().get(&Key::new(self.nodes, "", &name.name)) else { return Ok(None) };
        if cidr(&node).is_some() {
            return Ok(None);
        }
        // Networks that nodes brought along count, too.
        self.shared.feed.catch_up();
        let Some(number) = self.lowest_free() else {
            self.recorder.warning(&node, "CIDRNotAvailable", format!("Node {name} status is now: CIDRNotAvailable"));
            anyhow::bail!("all networks for pods are given out");
        };
        let free = network(number);
        self.note(&free, &name.name);
        self.next.set(number);
        let given = objects.update(self.nodes, "", &name.name, Part::Subresource, false, |live| {
            let mut desired = live.clone();
            desired["spec"]["podCIDR"] = free.clone().into();
            desired["spec"]["podCIDRs"] = json!([free]);
            Ok(desired)
        });
        match given.await {
            Err(status) if !status.is_not_found() => return Err(status.into()),
            _ => log::info!("node={name} pods={free}"),
        }
        Ok(None)
    }
}

fn cidr(node: &Object) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Node {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Spec {
        #[serde(rename = "podCIDR")]
        pod_cidr: String,
    }
    let node: Node = node.view().unwrap_or_default();
    Some(node.spec.pod_cidr).filter(|cidr| !cidr.is_empty())
}

/// The number of a network among those that are given out, in their order.
fn number(cidr: &str) -> Option<u16> {
    let octets: Vec<u8> = cidr.split(['.', '/']).filter_map(|part| part.parse().ok()).collect();
    let [FIRST, second, third, ..] = octets[..] else { return None };
    if !SECOND.contains(&second) {
        return None;
    }
    let after = u16::from(second.wrapping_sub(SECOND_FIRST)) % (NETWORKS / 256);
    Some(after * 256 + u16::from(third))
}

fn network(number: u16) -> String {
    let [after, third] = number.to_be_bytes();
    let second = SECOND.start() + (SECOND_FIRST - SECOND.start() + after) % (NETWORKS / 256) as u8;
    format!("{FIRST}.{second}.{third}.0/24")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_numbered_from_the_one_that_small_clusters_have() {
        for (expected, cidr) in [
            (0, "10.244.0.0/24"),
            (255, "10.244.255.0/24"),
            (256, "10.245.0.0/24"),
            (11 * 256 + 255, "10.255.255.0/24"),
            (12 * 256, "10.224.0.0/24"),
            (NETWORKS - 1, "10.243.255.0/24"),
        ] {
            assert_eq!((number(cidr), network(expected).as_str()), (Some(expected), cidr));
        }
        assert!((0..NETWORKS).all(|each| number(&network(each)) == Some(each)));
        for foreign in ["192.168.0.0/24", "10.96.0.0/24", "10.223.0.0/24", "nonsense", ""] {
            assert_eq!(number(foreign), None, "{foreign}");
        }
    }
}
