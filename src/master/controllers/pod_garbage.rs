//! Deletes pods that nobody will ever end: of nodes that no longer exist, and finished ones beyond a threshold (upstream
//! `pkg/controller/podgc`). It never deletes a pod whose node is merely silent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::feed::{self, Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::api::workloads::Pod;
use crate::base::time::Timestamp;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

/// Finished pods that are kept; the oldest go first. kube-controller-manager `--terminated-pod-gc-threshold`.
const FINISHED_MAX: usize = 12_500;
/// How long a node must be gone before its pods are given up: it may only be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods are counted at most this often.
const COUNT_INTERVAL: Duration = Duration::from_secs(20);

pub struct Controller {
    shared: Rc<Shared>,
    nodes: &'static Resource,
    pods: &'static Resource,
    /// Nodes that pods name and that do not exist, and since when.
    gone: RefCell<HashMap<String, Timestamp>>,
    /// Names of nodes; the empty name stands for finished pods.
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>) -> Rc<Self> {
        let controller = Rc::new(Self {
            nodes: shared.resource("", "v1", "nodes"),
            pods: shared.resource("", "v1", "pods"),
            shared: shared.clone(),
            gone: RefCell::default(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        if notice.is(self.nodes) && notice.is_deleted() {
            self.give_up_later(&notice.object.key.name);
        } else if notice.is(self.pods) && !notice.is_deleted() {
            let node = &*notice.object.node;
            if !node.is_empty() && !self.exists(node) {
                self.give_up_later(node);
            }
            if is_finished(notice.object) {
                self.queue.add_after(Name::new("", ""), COUNT_INTERVAL);
            }
        }
    }

    fn give_up_later(&self, node: &str) {
        self.gone.borrow_mut().entry(node.to_owned()).or_insert_with(|| self.shared.now());
        self.queue.add_after(Name::new("", node), QUARANTINE);
    }

    fn exists(&self, node: &str) -> bool {
        self.shared.objects().store().get(&Key::new(self.nodes, "", node)).is_some()
    }

    /// Ends the pods of a node that has been gone for long enough.
    async fn give_up(&self, node: &str) -> anyhow::Result<Option<Duration>> {
        if self.exists(node) {
            self.gone.borrow_mut().remove(node);
            return Ok(None);
        }
        let now = self.shared.now();
        let since = *self.gone.borrow_mut().entry(node.to_owned()).or_insert(now);
        if now.since(since) < QUARANTINE {
            return Ok(Some(QUARANTINE - now.since(since)));
        }
        let (pods, _) = self.shared.objects().store().list_on_node(self.pods, None, node);
        for pod in &pods {
            self.end(pod, true).await?;
        }
        self.gone.borrow_mut().remove(node);
        Ok(None)
    }

    async fn end(&self, pod: &Object, lost: bool) -> anyhow::Result<()> {
        let objects = self.shared.objects();
        let key = &pod.key;
        if lost && !is_finished(pod) {
            let failed = objects
                .update(self.pods, &key.namespace, &key.name, Part::Status, false, |live| {
                    let mut desired = live.clone();
                    desired["status"]["phase"] = "Failed".into();
                    Ok(desired)
                })
                .await;
            match failed {
                Err(status) if !status.is_not_found() => return Err(status.into()),
                _ => (),
            }
        }
        let options = DeleteOptions { uid: Some(pod.uid.clone()), grace_seconds: Some(0), ..DeleteOptions::default() };
        match objects.delete(self.pods, &key.namespace, &key.name, &options).await {
            Ok(_) => log::info!("pod={}/{} deleted as garbage", key.namespace, key.name),
            Err(status) if status.is_not_found() || status.is_conflict() => (),
            Err(status) => return Err(status.into()),
        }
        Ok(())
    }

    async fn clear_finished(&self) -> anyhow::Result<()> {
        let (pods, _) = self.shared.objects().list(self.pods, None);
        if pods.len() <= FINISHED_MAX {
            return Ok(());
        }
        let mut finished: Vec<(Option<Timestamp>, &Object)> = pods
            .iter()
            .filter(|pod| is_finished(pod))
            .map(|pod| (pod.view::<Pod>().ok().and_then(|view| view.metadata.creation_timestamp), pod.as_ref()))
            .collect();
        finished.sort_by(|(a, pod_a), (b, pod_b)| (a, &pod_a.key.name).cmp(&(b, &pod_b.key.name)));
        for (_, pod) in finished.iter().take(finished.len().saturating_sub(FINISHED_MAX)) {
            self.end(pod, false).await?;
        }
        Ok(())
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "pod-garbage";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        if name.name.is_empty() {
            self.clear_finished().await?;
            return Ok(None);
        }
        self.give_up(&name.name).await
    }
}

fn is_finished(pod: &Object) -> bool {
    // The phase is looked for as text first: this is asked at every change of every pod.
    const WORDS: [&[u8]; 2] = [b"\"Succeeded\"", b"\"Failed\""];
    WORDS.iter().any(|word| feed::contains(&pod.json, word)) && pod.view::<Pod>().is_ok_and(|pod| pod.is_finished())
}
