//! Decides for one Deployment what its ReplicaSets should become next and what its status says then (upstream `pkg/controller/deployment`).
//! Pure: it never reads a clock or the store, and one pass takes one step; what that step changes brings the next one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::revision::{self, DESIRED_REPLICAS, MAX_REPLICAS, REVISION};
use super::status::{self, Progress};
use crate::api::workloads::{Deployment, DeploymentStatus, ReplicaSet};
use crate::base::time::Timestamp;

/// apps/v1 default of `revisionHistoryLimit`.
const HISTORY_LIMIT: i64 = 10;

#[derive(Debug, PartialEq)]
pub enum Op {
    /// Make the ReplicaSet of the current template.
    Create {
        name: String,
        hash: String,
        replicas: i64,
        annotations: BTreeMap<String, String>,
    },
    /// Bring annotations and `minReadySeconds` of the current ReplicaSet up to date.
    Annotate {
        name: String,
        annotations: BTreeMap<String, String>,
        min_ready_seconds: i64,
    },
    Scale {
        name: String,
        from: i64,
        to: i64,
        annotations: BTreeMap<String, String>,
    },
    Delete {
        name: String,
    },
}

#[derive(Debug)]
pub struct Plan {
    pub ops: Vec<Op>,
    /// The revision annotation that the Deployment should carry; `None`: leave it.
    pub revision: Option<String>,
    pub status: DeploymentStatus,
    /// When to look again without an event: the progress deadline.
    pub check_after: Option<Duration>,
}

/// The next step of `deployment`. `sets` are the ReplicaSets it owns, in any order; `old_pods_remain` says whether any pod of a
/// ReplicaSet with another template than the current one is still there (only `Recreate` asks).
pub fn plan(deployment: &Deployment, sets: &[ReplicaSet], old_pods_remain: bool, now: Timestamp) -> Plan {
    let mut rollout = Rollout::new(deployment, sets, now);
    if deployment.metadata.is_deleting() {
        return rollout.finish(Progress::Unjudged);
    }
    rollout.progress.note_paused(deployment, now);
    if deployment.spec.paused || rollout.is_scaling() {
        rollout.sync_current(false);
        rollout.scale();
        if deployment.spec.paused {
            rollout.clean_history();
        }
        return rollout.finish(Progress::Unjudged);
    }
    if deployment.spec.strategy.kind == "Recreate" {
        rollout.recreate(old_pods_remain);
    } else {
        rollout.roll();
    }
    rollout.finish(Progress::Judged)
}

pub fn replicas(deployment: &Deployment) -> i64 {
    deployment.spec.replicas.unwrap_or(1)
}

/// maxSurge and maxUnavailable in pods. Surge rounds up and unavailability down; if both come to nothing, one pod may be unavailable,
/// or no step would ever be possible.
fn fence_posts(deployment: &Deployment) -> (i64, i64) {
    let rolling = deployment.spec.strategy.rolling_update.clone().unwrap_or_default();
    let surge = rolling.max_surge.map_or(0, |surge| surge.of(replicas(deployment), true));
    let unavailable = rolling.max_unavailable.map_or(0, |unavailable| unavailable.of(replicas(deployment), false));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(deployment: &Deployment) -> i64 {
    if is_rolling(deployment) { fence_posts(deployment).0 } else { 0 }
}

/// How many pods of those asked for may be missing at any time.
pub fn max_unavailable(deployment: &Deployment) -> i64 {
    if is_rolling(deployment) { fence_posts(deployment).1.min(replicas(deployment)) } else { 0 }
}

fn is_rolling(deployment: &Deployment) -> bool {
    deployment.spec.strategy.kind != "Recreate"
}

/// Whether two pod templates ask for the same pods; the hash label that tells their ReplicaSets apart does not count.
pub fn same_template(a: &Value, b: &Value) -> bool {
    fn bare(template: &Value) -> Value {
        let mut template = template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove(revision::HASH_LABEL);
        }
        template
    }
    bare(a) == bare(b)
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    /// Working copies, oldest first: they show what the ops so far will make of them.
    sets: Vec<ReplicaSet>,
    /// The set of the current template.
    current: Option<usize>,
    progress: status::Conditions,
    revision: Option<String>,
    ops: Vec<Op>,
}

impl<'a> Rollout<'a> {
    fn new(deployment: &'a Deployment, sets: &[ReplicaSet], now: Timestamp) -> Self {
        let mut sets = sets.to_vec();
        sets.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
        let current = sets.iter().position(|set| same_template(&set.spec.template, &deployment.spec.template));
        let progress = status::Conditions::of(&deployment.status);
        Self { deployment, now, sets, current, progress, revision: None, ops: Vec::new() }
    }

    fn old(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let current = self.current;
        (0..self.sets.len()).filter(move |index| Some(*index) != current)
    }

    fn active(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|index| self.sets[*index].replicas() > 0).collect()
    }

    fn total(&self) -> i64 {
        self.sets.iter().map(ReplicaSet::replicas).sum()
    }

    /// Places taken: a set that was scaled down has its pods until its controller has seen that. Upstream counts only what is asked for,
    /// and so has more pods than maxSurge allows for a moment; a small board has no room for them.
    fn occupied(&self) -> i64 {
        self.sets.iter().map(|set| set.replicas().max(set.status.replicas)).sum()
    }

    /// Whether somebody changed `spec.replicas` since the sets were last sized: the new number must be shared out before the rollout goes
    /// on.
    fn is_scaling(&self) -> bool {
        let desired = replicas(self.deployment).to_string();
        self.active()
            .into_iter()
            .any(|index| self.sets[index].metadata.annotations.get(DESIRED_REPLICAS).is_some_and(|then| *then != desired))
    }

    /// Finds the set of the current template, brings its annotations up to date, or asks for it to be made.
    fn sync_current(&mut self, create: bool) {
        let newest_old = self.old().map(|index| revision::of(&self.sets[index])).max().unwrap_or_default();
        let Some(current) = self.current else {
            if create {
                self.create_current(newest_old + 1);
            }
            return;
        };
        let set = &mut self.sets[current];
        let mut annotations = set.metadata.annotations.clone();
        revision::inherit(&mut annotations, &self.deployment.metadata.annotations);
        revision::advance(&mut annotations, newest_old + 1);
        if annotations != set.metadata.annotations || set.spec.min_ready_seconds != self.deployment.spec.min_ready_seconds {
            set.metadata.annotations = annotations.clone();
            set.spec.min_ready_seconds = self.deployment.spec.min_ready_seconds;
            let name = set.metadata.name.clone();
            self.ops.push(Op::Annotate { name, annotations, min_ready_seconds: self.deployment.spec.min_ready_seconds });
        }
        let set = &self.sets[current];
        self.revision = set.metadata.annotations.get(REVISION).cloned();
        self.progress.note_found(self.deployment, &set.metadata.name, self.now);
    }

    fn create_current(&mut self, number: i64) {
        let collisions = self.deployment.status.collision_count.unwrap_or_default();
        let hash = revision::template_hash(&self.deployment.spec.template, collisions);
        let name = format!("{}-{hash}", self.deployment.metadata.name);
        let room = (replicas(self.deployment) + max_surge(self.deployment) - self.occupied()).max(0);
        let size = if is_rolling(self.deployment) { room.min(replicas(self.deployment)) } else { replicas(self.deployment) };
        let mut annotations = self.size_annotations();
        revision::inherit(&mut annotations, &self.deployment.metadata.annotations);
        revision::advance(&mut annotations, number);
        let mut set = ReplicaSet::default();
        set.metadata.name = name.clone();
        set.metadata.annotations = annotations.clone();
        set.metadata.creation_timestamp = Some(self.now);
        set.metadata.generation = 1;
        set.spec.replicas = Some(size);
        self.sets.push(set);
        self.current = Some(self.sets.len() - 1);
        self.revision = Some(number.to_string());
        self.progress.note_created(self.deployment, &name, self.now);
        self.ops.push(Op::Create { name, hash, replicas: size, annotations });
    }

    fn size_annotations(&self) -> BTreeMap<String, String> {
        let desired = replicas(self.deployment);
        let max = desired + max_surge(self.deployment);
        [(DESIRED_REPLICAS.to_owned(), desired.to_string()), (MAX_REPLICAS.to_owned(), max.to_string())].into()
    }

    /// Gives set `index` this many replicas. Returns whether that is another number than before.
    fn scale_set(&mut self, index: usize, to: i64) -> bool {
        let size_annotations = self.size_annotations();
        let set = &mut self.sets[index];
        let from = set.replicas();
        let mut annotations = set.metadata.annotations.clone();
        annotations.extend(size_annotations);
        if from != to || annotations != set.metadata.annotations {
            set.spec.replicas = Some(to);
            set.metadata.annotations = annotations.clone();
            self.ops.push(Op::Scale { name: set.metadata.name.clone(), from, to, annotations });
        }
        from != to
    }

    fn roll(&mut self) {
        self.sync_current(true);
        let scaled = self.grow_current() || self.shrink_old();
        if !scaled && status::is_complete(self.deployment, &self.deployment.status) {
            self.clean_history();
        }
    }

    /// Towards the number asked for, as far as maxSurge leaves room.
    fn grow_current(&mut self) -> bool {
        let Some(current) = self.current else { return false };
        let (have, desired) = (self.sets[current].replicas(), replicas(self.deployment));
        if have == desired {
            return false;
        }
        let room = (desired + max_surge(self.deployment) - self.occupied()).max(0);
        let to = if have > desired { desired } else { (have + room).min(desired) };
        if to == have {
            return false;
        }
        self.scale_set(current, to)
    }

    /// Takes pods from the old sets, unhealthy ones first, as far as maxUnavailable allows. Pods of the current set that are not
    /// available yet count as unavailable, so that a template that never gets ready stops the rollout.
    fn shrink_old(&mut self) -> bool {
        let Some(current) = self.current else { return false };
        let minimum = replicas(self.deployment) - max_unavailable(self.deployment);
        let unavailable = self.sets[current].replicas() - self.sets[current].status.available_replicas;
        let budget = self.total() - minimum - unavailable;
        if self.old().all(|index| self.sets[index].replicas() == 0) || budget <= 0 {
            return false;
        }
        let mut cleaned = 0;
        for index in self.old() {
            let set = &self.sets[index];
            let unhealthy = set.replicas() - set.status.available_replicas;
            let take = unhealthy.min(budget - cleaned);
            if set.replicas() > 0 && take > 0 {
                cleaned += take;
                self.scale_set(index, self.sets[index].replicas() - take);
            }
        }
        // A set that was just scaled down still counts the pods it will lose, in its status.
        let available: i64 = self.sets.iter().map(|set| set.status.available_replicas.min(set.replicas())).sum();
        let mut spare = available - minimum;
        let mut taken = 0;
        for index in self.old() {
            let take = self.sets[index].replicas().min(spare);
            if take > 0 {
                spare -= take;
                taken += take;
                self.scale_set(index, self.sets[index].replicas() - take);
            }
        }
        cleaned + taken > 0
    }

    fn recreate(&mut self, old_pods_remain: bool) {
        self.sync_current(false);
        let mut stopped = false;
        for index in self.old() {
            if self.sets[index].replicas() > 0 {
                stopped |= self.scale_set(index, 0);
            }
        }
        let still_there = self.old().any(|index| self.sets[index].status.replicas > 0);
        if stopped || still_there || old_pods_remain {
            return;
        }
        self.sync_current(true);
        if let Some(current) = self.current
            && self.sets[current].replicas() != replicas(self.deployment)
        {
            self.scale_set(current, replicas(self.deployment));
        }
        if status::is_complete(self.deployment, &self.deployment.status) {
            self.clean_history();
        }
    }

    /// Shares a changed `spec.replicas` out. With one active set it takes all; in the middle of a rollout every set gets its proportion.
    fn scale(&mut self) {
        let desired = replicas(self.deployment);
        let active = self.active();
        let only = match active.as_slice() {
            [] => self.current.or_else(|| self.old().next_back()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(only) = only {
            self.scale_set(only, desired);
            return;
        }
        if self.current.is_some_and(|current| is_saturated(self.deployment, &self.sets[current])) {
            for index in self.old() {
                if self.sets[index].replicas() > 0 {
                    self.scale_set(index, 0);
                }
            }
            return;
        }
        if is_rolling(self.deployment) {
            self.scale_proportionally(active);
        }
    }

    fn scale_proportionally(&mut self, mut active: Vec<usize>) {
        let desired = replicas(self.deployment);
        let allowed = if desired > 0 { desired + max_surge(self.deployment) } else { 0 };
        let to_add = allowed - self.total();
        // The largest set carries the rounding; of equal ones the newest when pods are added, the oldest when they go.
        active.sort_by_key(|index| Reverse((self.sets[*index].replicas(), if to_add > 0 { *index as i64 } else { -(*index as i64) })));
        let mut added = 0;
        let mut sizes: Vec<(usize, i64)> = Vec::with_capacity(active.len());
        for index in active {
            let share = proportion(self.deployment, &self.sets[index], to_add, added);
            added += share;
            sizes.push((index, self.sets[index].replicas() + share));
        }
        if let Some((_, size)) = sizes.first_mut() {
            *size = (*size + to_add - added).max(0);
        }
        for (index, size) in sizes {
            self.scale_set(index, size);
        }
    }

    /// Deletes the oldest empty sets beyond `revisionHistoryLimit`.
    fn clean_history(&mut self) {
        let limit = self.deployment.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let mut old: Vec<usize> = self.old().filter(|index| !self.sets[*index].metadata.is_deleting()).collect();
        let surplus = usize::try_from(old.len() as i64 - limit).unwrap_or_default();
        old.sort_by_key(|index| revision::of(&self.sets[*index]));
        for index in old.into_iter().take(surplus) {
            let set = &self.sets[index];
            let unobserved = set.metadata.generation > set.status.observed_generation;
            if set.replicas() == 0 && set.status.replicas == 0 && !unobserved {
                self.ops.push(Op::Delete { name: set.metadata.name.clone() });
            }
        }
    }

    fn finish(self, judge: Progress) -> Plan {
        let current = self.current.map(|index| &self.sets[index]);
        let (status, check_after) = status::status(self.deployment, &self.sets, current, self.progress, judge, self.now);
        let revision = self.revision.filter(|revision| self.deployment.metadata.annotations.get(REVISION) != Some(revision));
        Plan { ops: self.ops, revision, status, check_after }
    }
}

/// Whether the set has, and offers, all the pods asked for.
fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let desired = replicas(deployment);
    set.metadata.annotations.get(DESIRED_REPLICAS).is_some_and(|then| *then == desired.to_string())
        && set.replicas() == desired
        && set.status.available_replicas == desired
}

/// The share of `to_add` (which may be negative) that falls to `set`, never more than what is left of it.
fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i64, added: i64) -> i64 {
    let size = set.replicas();
    if size == 0 || to_add == added {
        return 0;
    }
    let share = if replicas(deployment) == 0 {
        -size
    } else {
        let max = replicas(deployment) + max_surge(deployment);
        let recorded = set.metadata.annotations.get(MAX_REPLICAS).and_then(|max| max.parse::<i64>().ok()).filter(|max| *max != 0);
        match recorded.unwrap_or(deployment.status.replicas) {
            0 => 0,
            before => (size as f64 * max as f64 / before as f64).round() as i64 - size,
        }
    };
    if to_add > 0 { share.clamp(0, to_add - added) } else { share.clamp(to_add - added, 0) }
}

#[cfg(test)]
mod tests;
