//! Rolls a Deployment's template out through ReplicaSets: one for each template, the old ones kept as history.
//! It never touches a pod.

mod plan;
mod revision;
mod status;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use self::plan::{Op, Plan};
use super::adoption::{self, Claimant, Owned};
use super::feed::{Index, Notice, is_of};
use super::queue::Queue;
use super::replicaset::is_namespace_ending;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::status::Status;
use crate::api::workloads::{Deployment, DeploymentStatus, Pod, ReplicaSet};
use crate::master::recorder::Recorder;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

pub struct Controller {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    deployments: &'static Resource,
    sets: &'static Resource,
    pods: &'static Resource,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, recorder: &Rc<Recorder>) -> Rc<Self> {
        let controller = Rc::new(Self {
            deployments: shared.resource("apps", "v1", "deployments"),
            sets: shared.resource("apps", "v1", "replicasets"),
            pods: shared.resource("", "v1", "pods"),
            shared: shared.clone(),
            recorder: recorder.clone(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.deployments) {
            self.queue.add(Name::of(key));
        } else if notice.is(self.sets) {
            self.add_owner(notice.object, notice);
            if !notice.has_controller() && !notice.is_deleted() {
                self.offer(notice.object);
            }
        } else if notice.is(self.pods) && notice.is_deleted() {
            // Only `Recreate` waits for pods, and for nothing but their end.
            for owner in notice.controllers("apps", "ReplicaSet") {
                let set = self.shared.objects().store().get(&Key::new(self.sets, &key.namespace, &owner.name));
                for owner in set.iter().flat_map(|set| super::feed::owners(set)) {
                    if owner.controller && is_of(&owner, "apps", "Deployment") {
                        self.queue.add(Name::new(&key.namespace, &owner.name));
                    }
                }
            }
        }
    }

    fn add_owner(&self, object: &Object, notice: &Notice) {
        for owner in notice.controllers("apps", "Deployment") {
            self.queue.add(Name::new(&object.key.namespace, &owner.name));
        }
    }

    /// Wakes every Deployment that may want to adopt this ReplicaSet.
    fn offer(&self, set: &Object) {
        if set.labels.is_empty() {
            return;
        }
        for deployment in self.shared.objects().list(self.deployments, Some(&set.key.namespace)).0 {
            let selector = deployment.view::<Deployment>().ok().and_then(|deployment| deployment.spec.selector);
            if selector.is_some_and(|selector| !selector.is_empty() && selector.matches(&set.labels)) {
                self.queue.add(Name::of(&deployment.key));
            }
        }
    }

    /// Whether a pod of another template than the current one has not ended yet.
    fn old_pods_remain(&self, deployment: &Deployment, sets: &[ReplicaSet]) -> bool {
        let old = |set: &&ReplicaSet| !plan::same_template(&set.spec.template, &deployment.spec.template);
        self.shared.feed.look(|index| {
            let pods = sets.iter().filter(old).flat_map(|set| index.dependents_of(&set.metadata.uid));
            let mut pods = pods.filter(|object| std::ptr::eq(object.key.resource, self.pods));
            pods.any(|pod| pod.view::<Pod>().is_ok_and(|pod| !pod.is_finished()))
        })
    }

    async fn apply(&self, object: &Arc<Object>, deployment: &Deployment, op: Op) -> Result<(), Status> {
        let objects = self.shared.objects();
        let namespace = &deployment.metadata.namespace;
        match op {
            Op::Create { name, hash, replicas, annotations } => {
                let set = set_of(&object.value(), deployment, &name, &hash, replicas, &annotations);
                objects.create(self.sets, namespace, set, false).await?;
                if replicas > 0 {
                    self.scaled(object, &name, 0, replicas);
                }
                log::info!("deployment={namespace}/{} new replicaset={name} replicas={replicas}", deployment.metadata.name);
            }
            Op::Annotate { name, annotations, min_ready_seconds } => {
                self.update_set(namespace, &name, |set| {
                    set["metadata"]["annotations"] = json!(annotations);
                    if min_ready_seconds != set["spec"]["minReadySeconds"].as_i64().unwrap_or_default() {
                        set["spec"]["minReadySeconds"] = min_ready_seconds.into();
                    }
                })
                .await?;
            }
            Op::Scale { name, from, to, annotations } => {
                self.update_set(namespace, &name, |set| {
                    set["metadata"]["annotations"] = json!(annotations);
                    set["spec"]["replicas"] = to.into();
                })
                .await?;
                if from != to {
                    self.scaled(object, &name, from, to);
                }
            }
            Op::Delete { name } => match objects.delete(self.sets, namespace, &name, &DeleteOptions::default()).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => (),
            },
        }
        Ok(())
    }

    async fn update_set(&self, namespace: &str, name: &str, change: impl Fn(&mut Value)) -> Result<(), Status> {
        let updated = self
            .shared
            .objects()
            .update(self.sets, namespace, name, Part::Whole, false, |live| {
                let mut set = live.clone();
                change(&mut set);
                Ok(set)
            })
            .await;
        updated.map(drop)
    }

    fn scaled(&self, deployment: &Arc<Object>, set: &str, from: i64, to: i64) {
        let way = if to > from { "up" } else { "down" };
        self.recorder.normal(deployment, "ScalingReplicaSet", format!("Scaled {way} replica set {set} from {from} to {to}"));
    }

    /// Writes status and revision, if there is anything new in them.
    async fn write_status(&self, deployment: &Deployment, status: &DeploymentStatus, revision: Option<&str>) -> anyhow::Result<()> {
        if *status == deployment.status && revision.is_none() {
            return Ok(());
        }
        let status = serde_json::to_value(status).context("write the status")?;
        let metadata = &deployment.metadata;
        let written = self
            .shared
            .objects()
            .update(self.deployments, &metadata.namespace, &metadata.name, Part::Status, false, |live| {
                let mut desired = live.clone();
                if meta::uid(live) == metadata.uid {
                    desired["status"] = status.clone();
                    if let Some(revision) = revision {
                        meta::set_annotation(&mut desired, revision::REVISION, revision);
                    }
                }
                Ok(desired)
            })
            .await;
        match written {
            Err(status) if !status.is_not_found() => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// The name for the new ReplicaSet is another's, or the set was refused: say so, and choose another name next time.
    async fn note_refusal(&self, object: &Arc<Object>, deployment: &Deployment, refused: &Status) -> anyhow::Result<()> {
        let mut status = deployment.status.clone();
        if refused.is_already_exists() {
            status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
        } else {
            let message = refused.to_string();
            self.recorder.warning(object, "ReplicaSetCreateError", format!("Failed to create new replica set: {message}"));
            status::with_create_error(&mut status, deployment, message, self.shared.now());
        }
        self.write_status(deployment, &status, None).await
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "deployment";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let key = Key::new(self.deployments, &name.namespace, &name.name);
        let Some(object) = self.shared.objects().store().get(&key) else { return Ok(None) };
        let deployment: Deployment = object.view()?;
        let Some(selector) = deployment.spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&object, "SelectingAll", message.to_owned());
            return Ok(None);
        };
        let claimant = Claimant { api_version: "apps/v1", kind: "Deployment", metadata: &deployment.metadata, selector };
        let sets = adoption::claim(&self.shared.feed, self.sets, &claimant, |set: &ReplicaSet| &set.metadata).await?;
        let sets: Vec<ReplicaSet> = sets.into_iter().map(|Owned { view, .. }| view).collect();
        let old_pods_remain = deployment.spec.strategy.kind == "Recreate" && self.old_pods_remain(&deployment, &sets);
        let Plan { ops, revision, status, check_after } = plan::plan(&deployment, &sets, old_pods_remain, self.shared.now());
        for op in ops {
            let creates = matches!(op, Op::Create { .. });
            match self.apply(&object, &deployment, op).await {
                Ok(()) => (),
                Err(refused) if is_namespace_ending(&refused) => return Ok(None),
                Err(refused) => {
                    if creates {
                        self.note_refusal(&object, &deployment, &refused).await?;
                    }
                    return Err(refused.into());
                }
            }
        }
        self.write_status(&deployment, &status, revision.as_deref()).await?;
        Ok(check_after)
    }
}

/// A ReplicaSet of the Deployment's template. The hash label keeps its pods apart from those of the other sets.
fn set_of(object: &Value, deployment: &Deployment, name: &str, hash: &str, replicas: i64, annotations: &BTreeMap<String, String>) -> Value {
    let mut template = deployment.spec.template.clone();
    template["metadata"]["labels"][revision::HASH_LABEL] = hash.into();
    let mut selector = object["spec"]["selector"].clone();
    selector["matchLabels"][revision::HASH_LABEL] = hash.into();
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "namespace": deployment.metadata.namespace,
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [adoption::controller_reference("apps/v1", "Deployment", &deployment.metadata)],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    });
    if deployment.spec.min_ready_seconds != 0 {
        set["spec"]["minReadySeconds"] = deployment.spec.min_ready_seconds.into();
    }
    set
}
