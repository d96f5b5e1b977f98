//! What a Deployment says of itself: its counts and the conditions Available, Progressing and ReplicaFailure, in Kubernetes' words.
//! Pure; it never changes how many pods there are.

use std::time::Duration;

use super::plan::{max_unavailable, replicas};
use crate::api::workloads::{Condition, Deployment, DeploymentStatus, ReplicaSet};
use crate::base::time::Timestamp;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Whether this pass may say how the rollout goes: not while it is paused or scaled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Judged,
    Unjudged,
}

/// The conditions of a status while a pass works on them; one of each type.
pub struct Conditions(Vec<Condition>);

impl Conditions {
    pub fn of(status: &DeploymentStatus) -> Self {
        Self(status.conditions.clone())
    }

    fn get(&self, kind: &str) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.kind == kind)
    }

    fn remove(&mut self, kind: &str) {
        self.0.retain(|condition| condition.kind != kind);
    }

    /// Sets a condition unless one of the same status and reason is there; the time of transition moves only with the status.
    fn set(&mut self, mut condition: Condition) {
        if let Some(before) = self.get(&condition.kind)
            && before.status == condition.status
        {
            if before.reason == condition.reason {
                return;
            }
            condition.last_transition_time = before.last_transition_time;
        }
        self.remove(&condition.kind);
        self.0.push(condition);
    }

    /// So that a rollout that was paused for longer than its deadline is not called late when it goes on.
    pub fn note_paused(&mut self, deployment: &Deployment, now: Timestamp) {
        let reason = self.get(PROGRESSING).map(|condition| condition.reason.clone()).unwrap_or_default();
        if deadline(deployment).is_none() || reason == TIMED_OUT {
            return;
        }
        if deployment.spec.paused && reason != PAUSED {
            self.set(condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now));
        } else if !deployment.spec.paused && reason == PAUSED {
            self.set(condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned(), now));
        }
    }

    pub fn note_created(&mut self, deployment: &Deployment, set: &str, now: Timestamp) {
        if deadline(deployment).is_some() {
            self.set(condition(PROGRESSING, "True", "NewReplicaSetCreated", format!("Created new replica set \"{set}\""), now));
        }
    }

    pub fn note_found(&mut self, deployment: &Deployment, set: &str, now: Timestamp) {
        if deadline(deployment).is_some() && self.get(PROGRESSING).is_none() {
            self.set(condition(PROGRESSING, "True", "FoundNewReplicaSet", format!("Found new replica set \"{set}\""), now));
        }
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_update_time: Some(now),
        last_transition_time: Some(now),
    }
}

/// The condition of a Deployment whose new ReplicaSet was refused.
pub fn with_create_error(status: &mut DeploymentStatus, deployment: &Deployment, message: String, now: Timestamp) {
    if deadline(deployment).is_some() {
        let mut conditions = Conditions(std::mem::take(&mut status.conditions));
        conditions.set(condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now));
        status.conditions = conditions.0;
    }
}

/// `progressDeadlineSeconds`; the largest number means that there is none.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i64::from(i32::MAX))?;
    Some(Duration::from_secs(seconds.max(0) as u64))
}

/// Whether every pod asked for is there, of the current template and available, and no other.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = replicas(deployment);
    status.updated_replicas == desired
        && status.replicas == desired
        && status.available_replicas == desired
        && status.observed_generation >= deployment.metadata.generation
}

/// The status that `sets` amount to, and when to look whether the deadline has passed. `current` is the set of the current template.
pub fn status(
    deployment: &Deployment,
    sets: &[ReplicaSet],
    current: Option<&ReplicaSet>,
    conditions: Conditions,
    judge: Progress,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let sum = |count: &dyn Fn(&ReplicaSet) -> i64| sets.iter().map(count).sum::<i64>();
    let desired = sum(&ReplicaSet::replicas);
    let available = sum(&|set| set.status.available_replicas);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: sum(&|set| set.status.replicas),
        updated_replicas: current.map_or(0, |set| set.status.replicas),
        ready_replicas: sum(&|set| set.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (desired - available).max(0),
        terminating_replicas: Some(sum(&|set| set.status.terminating_replicas.unwrap_or_default())),
        collision_count: deployment.status.collision_count,
        conditions: Vec::new(),
    };
    let mut conditions = conditions;
    conditions.set(if available >= replicas(deployment) - max_unavailable(deployment) {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned(), now)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    });
    let mut check_after = None;
    if judge == Progress::Judged {
        judge_progress(deployment, &status, current, &mut conditions, now);
        check_after = next_check(deployment, &status, &conditions, now);
        note_failure(sets, current, &mut conditions);
    }
    status.conditions = conditions.0;
    (status, check_after)
}

fn judge_progress(
    deployment: &Deployment,
    status: &DeploymentStatus,
    current: Option<&ReplicaSet>,
    conditions: &mut Conditions,
    now: Timestamp,
) {
    let Some(deadline) = deadline(deployment) else {
        conditions.remove(PROGRESSING);
        return;
    };
    let before = conditions.get(PROGRESSING).cloned();
    let finished = before.as_ref().is_some_and(|condition| condition.reason == NEW_SET_AVAILABLE);
    if finished && status.replicas == status.updated_replicas {
        return;
    }
    let subject = match current {
        Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name),
        None => format!("Deployment \"{}\"", deployment.metadata.name),
    };
    if is_complete(deployment, status) {
        conditions.set(condition(PROGRESSING, "True", NEW_SET_AVAILABLE, format!("{subject} has successfully progressed."), now));
    } else if has_progressed(&deployment.status, status) {
        let mut progressing = condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(before) = before.filter(|before| before.status == "True") {
            progressing.last_transition_time = before.last_transition_time;
        }
        // Each sign of progress moves lastUpdateTime, from which the deadline counts, so the condition is made anew.
        conditions.remove(PROGRESSING);
        conditions.set(progressing);
    } else if before.is_some_and(|before| !finished && is_late(&before, deadline, now)) {
        conditions.set(condition(PROGRESSING, "False", TIMED_OUT, format!("{subject} has timed out progressing."), now));
    }
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    after.updated_replicas > before.updated_replicas
        || after.replicas - after.updated_replicas < before.replicas - before.updated_replicas
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

fn is_late(progressing: &Condition, deadline: Duration, now: Timestamp) -> bool {
    progressing.reason == TIMED_OUT || progressing.last_update_time.unwrap_or_default().plus(deadline) < now
}

/// How long until the deadline would have passed; a second more, because Kubernetes' times have no fractions.
fn next_check(deployment: &Deployment, status: &DeploymentStatus, conditions: &Conditions, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let progressing = conditions.get(PROGRESSING)?;
    if is_complete(deployment, status) || progressing.reason == TIMED_OUT || progressing.reason == NEW_SET_AVAILABLE {
        return None;
    }
    let due = progressing.last_update_time.unwrap_or_default().plus(deadline);
    Some(due.since(now) + Duration::from_secs(1))
}

/// What hinders a ReplicaSet hinders its Deployment; the current set speaks first.
fn note_failure(sets: &[ReplicaSet], current: Option<&ReplicaSet>, conditions: &mut Conditions) {
    let failure = current.into_iter().chain(sets).flat_map(|set| &set.status.conditions).find(|condition| condition.kind == FAILURE);
    match failure {
        Some(failure) => conditions.set(Condition { last_update_time: failure.last_transition_time, ..failure.clone() }),
        None => conditions.remove(FAILURE),
    }
}
