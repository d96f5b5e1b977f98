//! Gives every node a network of its own for its pods: the lowest free /24 of the cluster's 10.244.0.0/16
//! (upstream `pkg/controller/nodeipam`). It never changes one that was given: the node's pods live in it.

use std::rc::Rc;
use std::time::Duration;

use serde_json::json;

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::master::recorder::Recorder;
use crate::master::store::objects::Part;
use crate::master::store::{Key, Object};

/// The first two octets of every pod's address.
const CLUSTER: [u8; 2] = [10, 244];

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    nodes: &'static Resource,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self {
            nodes: shared.resource("", "v1", "nodes"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        if notice.is(self.nodes) && !notice.is_deleted() && cidr(notice.object).is_none() {
            self.queue.add(Name::of(&notice.object.key));
        }
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
        let (nodes, _) = objects.list(self.nodes, None);
        let Some(free) = lowest_free(nodes.iter().filter_map(|node| cidr(node))) else {
            self.recorder.warning(&node, "CIDRNotAvailable", format!("Node {name} status is now: CIDRNotAvailable"));
            anyhow::bail!("all networks for pods are given out");
        };
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
    let node = node.value();
    node["spec"]["podCIDR"].as_str().filter(|cidr| !cidr.is_empty()).map(str::to_owned)
}

/// The lowest /24 that is not among the taken ones.
fn lowest_free(taken: impl Iterator<Item = String>) -> Option<String> {
    let mut free = [true; 256];
    for cidr in taken {
        let octets: Vec<u8> = cidr.split(['.', '/']).filter_map(|part| part.parse().ok()).collect();
        if let [first, second, third, ..] = octets.as_slice()
            && [*first, *second] == CLUSTER
        {
            free[usize::from(*third)] = false;
        }
    }
    let third = free.iter().position(|free| *free)?;
    Some(format!("{}.{}.{third}.0/24", CLUSTER[0], CLUSTER[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_network_that_nobody_has_is_next() {
        let check = |taken: &[&str], expected: Option<&str>| {
            assert_eq!(lowest_free(taken.iter().map(|each| (*each).to_owned())).as_deref(), expected, "{taken:?}");
        };
        check(&[], Some("10.244.0.0/24"));
        check(&["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24"));
        check(&["192.168.0.0/24", "nonsense", "10.244.0.0/24"], Some("10.244.1.0/24"));
        let all: Vec<String> = (0..256).map(|third| format!("10.244.{third}.0/24")).collect();
        assert_eq!(lowest_free(all.into_iter()), None);
    }
}
