//! Ends pods that do not tolerate a NoExecute taint of their node, or not for so long (upstream `pkg/controller/tainteviction`). So the
//! pods of a node that is silent come up elsewhere. It decides by the taints alone; who sets them, and why, is another's affair.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::feed::{self, Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::api::workloads::ObjectMeta;
use crate::base::time::Timestamp;
use crate::master::recorder::Recorder;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

const NO_EXECUTE: &str = "NoExecute";

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    nodes: &'static Resource,
    pods: &'static Resource,
    /// Since when a node has a taint that does not say so itself, by the node's name and the taint's key.
    seen: RefCell<HashMap<(String, String), Timestamp>>,
    /// Nodes that had such a taint when they were last noticed: as a rule there is none, and then no pod is read.
    tainted: RefCell<BTreeSet<String>>,
    /// Names of nodes.
    queue: Queue<Name>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Taint {
    key: String,
    value: String,
    effect: String,
    time_added: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Toleration {
    key: String,
    operator: String,
    value: String,
    effect: String,
    toleration_seconds: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tainted {
    spec: TaintedSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TaintedSpec {
    taints: Vec<Taint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Placed {
    metadata: ObjectMeta,
    spec: PlacedSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PlacedSpec {
    tolerations: Vec<Toleration>,
}

impl Toleration {
    /// k8s.io/api core/v1 Toleration.ToleratesTaint.
    fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() || self.key == taint.key;
        let value = match self.operator.as_str() {
            "Exists" => true,
            _ => !self.key.is_empty() && self.value == taint.value,
        };
        effect && key && value
    }
}

/// When a pod has to go; never, if it tolerates every taint for ever. A taint comes with the instant since when it is there.
fn leaves_at(tolerations: &[Toleration], taints: &[(Taint, Timestamp)]) -> Option<Timestamp> {
    let by_taint = taints.iter().filter_map(|(taint, since)| match tolerations.iter().find(|toleration| toleration.tolerates(taint)) {
        None => Some(*since),
        Some(toleration) => {
            toleration.toleration_seconds.map(|seconds| since.plus(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
        }
    });
    by_taint.min()
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self {
            nodes: shared.resource("", "v1", "nodes"),
            pods: shared.resource("", "v1", "pods"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            seen: RefCell::default(),
            tainted: RefCell::default(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.nodes) {
            let mut tainted = self.tainted.borrow_mut();
            if notice.is_deleted() {
                tainted.remove(&key.name);
                self.seen.borrow_mut().retain(|(node, _), _| *node != key.name);
            } else if is_tainted(notice.object) {
                tainted.insert(key.name.clone());
                self.queue.add(Name::of(key));
            } else if tainted.remove(&key.name) {
                self.queue.add(Name::of(key));
            }
        } else if notice.is(self.pods) && !notice.is_deleted() && !self.tainted.borrow().is_empty() {
            let node = &*notice.object.node;
            if self.tainted.borrow().contains(node) {
                self.queue.add(Name::new("", node));
            }
        }
    }

    /// The node's NoExecute taints, each with the instant since when it is there.
    fn taints(&self, node: &Object) -> Vec<(Taint, Timestamp)> {
        let taints = node.view::<Tainted>().unwrap_or_default().spec.taints.into_iter().filter(|taint| taint.effect == NO_EXECUTE);
        let mut seen = self.seen.borrow_mut();
        let taints: Vec<(Taint, Timestamp)> = taints
            .map(|taint| {
                let said = taint.time_added.as_deref().and_then(Timestamp::parse);
                let place = (node.key.name.clone(), taint.key.clone());
                let since = said.unwrap_or_else(|| *seen.entry(place).or_insert_with(|| self.shared.now()));
                (taint, since)
            })
            .collect();
        seen.retain(|(of, key), _| *of != node.key.name || taints.iter().any(|(taint, _)| taint.key == *key));
        taints
    }

    async fn evict(&self, pod: &Arc<Object>) -> anyhow::Result<()> {
        let (objects, key) = (self.shared.objects(), &pod.key);
        let now = self.shared.now().to_string();
        let marked = objects.update(self.pods, &key.namespace, &key.name, Part::Status, false, |live| Ok(disrupt(live, &now))).await;
        match marked {
            Err(status) if !status.is_not_found() => return Err(status.into()),
            _ => (),
        }
        self.recorder.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {}/{}", key.namespace, key.name));
        let options = DeleteOptions { uid: Some(pod.uid.clone()), ..DeleteOptions::default() };
        match objects.delete(self.pods, &key.namespace, &key.name, &options).await {
            Ok(_) => log::info!("pod={}/{} evicted by a taint of its node", key.namespace, key.name),
            Err(status) if status.is_not_found() || status.is_conflict() => (),
            Err(status) => return Err(status.into()),
        }
        Ok(())
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "taint-eviction";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(node) = objects.store().get(&Key::new(self.nodes, "", &name.name)) else { return Ok(None) };
        let taints = self.taints(&node);
        if taints.is_empty() {
            return Ok(None);
        }
        let now = self.shared.now();
        let mut next: Option<Timestamp> = None;
        for pod in &objects.store().list_on_node(self.pods, None, &name.name).0 {
            let placed = pod.view::<Placed>().unwrap_or_default();
            if placed.metadata.is_deleting() {
                continue;
            }
            match leaves_at(&placed.spec.tolerations, &taints) {
                Some(at) if at <= now => self.evict(pod).await?,
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => (),
            }
        }
        Ok(next.map(|at| at.since(now)))
    }
}

/// Most nodes have none: the word is looked for before the object is read.
fn is_tainted(node: &Object) -> bool {
    feed::contains(&node.json, NO_EXECUTE.as_bytes())
}

/// The pod with the condition that says why it goes; KEP-3329.
fn disrupt(live: &Value, now: &str) -> Value {
    let mut pod = live.clone();
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "lastProbeTime": null,
        "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now,
    });
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|each| each["type"] != "DisruptionTarget");
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let since = Timestamp::from_seconds(1_000);
        let taint =
            |key: &str, value: &str| (Taint { key: key.into(), value: value.into(), effect: NO_EXECUTE.into(), time_added: None }, since);
        let check = |tolerations: Value, taints: &[(Taint, Timestamp)], expected: Option<i64>| {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            assert_eq!(leaves_at(&tolerations, taints), expected.map(Timestamp::from_seconds), "{tolerations:?}");
        };
        let (sick, other) = (taint("sick", ""), taint("other", "yes"));
        check(json!([]), std::slice::from_ref(&sick), Some(1_000));
        check(
            json!([{"key": "sick", "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": 300}]),
            std::slice::from_ref(&sick),
            Some(1_300),
        );
        check(json!([{"key": "sick", "operator": "Exists"}]), std::slice::from_ref(&sick), None);
        check(json!([{"operator": "Exists"}]), &[sick.clone(), other.clone()], None);
        check(json!([{"key": "sick", "operator": "Exists", "effect": "NoSchedule"}]), std::slice::from_ref(&sick), Some(1_000));
        check(
            json!([{"key": "other", "value": "yes", "tolerationSeconds": 9}, {"key": "sick", "operator": "Exists"}]),
            &[sick.clone(), other.clone()],
            Some(1_009),
        );
        check(json!([{"key": "other", "value": "no"}, {"key": "sick", "operator": "Exists"}]), &[sick, other], Some(1_000));
        check(json!([{"key": "sick", "operator": "Exists", "tolerationSeconds": -5}]), &[taint("sick", "")], Some(1_000));
    }
}
