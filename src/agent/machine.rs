//! The life of a pod on its node, as one enum and one step. It only decides: given what is wanted and what is known, it says
//! the one thing to do next, or until when to wait. It reads no clock, starts nothing, and a pod never goes back a state.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::pod::{Container, Pod, RestartPolicy};
use crate::base::time::Timestamp;

/// A crashed container waits this long, then twice as long each time up to the maximum.
/// k8s.io/kubernetes/pkg/kubelet: `backOffPeriod`, `MaxContainerBackOff`.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long has mended: its next crash waits the first time again.
const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(600);
/// What could not be prepared (a missing ConfigMap, no address left) is tried again after this, doubled up to the maximum.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Exit code of a run whose end nobody saw, as container runtimes tell it after the machine was started anew.
const LOST_CODE: i32 = 255;

/// Where a pod is in its life; it only moves downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Volumes, namespaces and network are being made.
    Starting,
    /// Init containers run, one after the other.
    Initializing,
    Running,
    /// Containers were told to end; at the deadline they are killed.
    Stopping {
        deadline: Timestamp,
    },
    /// Nothing runs any more; what was made is being taken away.
    Stopped,
    /// Nothing is left on the node but logs.
    Ended,
}

/// What is known of a pod on this node. The worker writes what it observes; [`step`] writes the rest.
#[derive(Clone, Debug)]
pub struct Record {
    pub state: State,
    pub containers: BTreeMap<String, ContainerRecord>,
    pub started: Timestamp,
    /// When the pod's preparation may be tried again, and how often it failed.
    pub retry: Retry,
    /// Set when the pod was ended by the node and not by its containers: reason and message of the status.
    pub failure: Option<(&'static str, String)>,
    /// Containers were told to end.
    pub termination_sent: bool,
    /// The grace that the deadline of `Stopping` comes from.
    pub grace_seconds: u64,
    /// The namespaces and cgroups exist.
    pub sandbox: bool,
}

/// When to try again after a failure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retry {
    pub at: Timestamp,
    failures: u32,
}

impl Retry {
    /// Notes a failure; the pause doubles.
    pub fn fail(&mut self, now: Timestamp) {
        self.at = now.plus((RETRY_FIRST * 2u32.saturating_pow(self.failures)).min(RETRY_MAX));
        self.failures = (self.failures + 1).min(16);
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerRecord {
    pub state: ContainerState,
    /// How the run before ended.
    pub last: Option<Exit>,
    /// Runs that were started after the first.
    pub restarts: u32,
    /// The runtime's name of the present or latest run; empty before the first.
    pub id: String,
    /// The image as it was resolved.
    pub image: String,
    pub image_id: String,
    /// The pause before the next start, if the container crashes again.
    backoff: Duration,
    /// Why it could not be started, and when that is tried again.
    pub retry: Retry,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ContainerState {
    /// Not started. The reason is one of Kubernetes' words.
    Waiting {
        reason: &'static str,
        message: String,
        until: Timestamp,
    },
    Running {
        since: Timestamp,
    },
    Exited(Exit),
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting { reason: "ContainerCreating", message: String::new(), until: Timestamp::default() }
    }
}

impl ContainerRecord {
    /// The number of the run that comes next; the first is 0.
    pub fn next_attempt(&self) -> u32 {
        if self.id.is_empty() { 0 } else { self.restarts + 1 }
    }
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exit {
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    pub oom_killed: bool,
    /// Nobody saw it end: the machine was started anew.
    pub lost: bool,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// What the container left in its termination message.
    pub message: String,
    pub id: String,
}

impl Exit {
    /// Kubernetes' word for it.
    pub fn reason(&self) -> &'static str {
        match (self.oom_killed, self.code) {
            _ if self.lost => "Unknown",
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        }
    }
}

/// The one thing to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make volumes, namespaces and network.
    Prepare,
    /// Get the image if need be, make and start the container.
    Start(String),
    /// Ask the containers to end, by the signal of their image.
    Terminate,
    /// End what did not end by itself.
    Kill,
    /// Take away namespaces, network and volumes.
    Teardown,
    /// Tell the API that a deleted pod is gone from this node.
    Release,
    /// Nothing, until something changes or this instant comes.
    Wait(Option<Timestamp>),
}

impl Record {
    pub fn new(pod: &Pod, now: Timestamp) -> Self {
        let initial = |container: &Container| (container.name.clone(), ContainerRecord::default());
        Self {
            state: State::Starting,
            containers: pod.all_containers().map(initial).collect(),
            started: now,
            retry: Retry::default(),
            failure: None,
            termination_sent: false,
            grace_seconds: 0,
            sandbox: false,
        }
    }

    pub fn is_running(&self, container: &str) -> bool {
        matches!(self.containers.get(container), Some(ContainerRecord { state: ContainerState::Running { .. }, .. }))
    }

    fn any_running(&self) -> bool {
        self.containers.values().any(|container| matches!(container.state, ContainerState::Running { .. }))
    }

    /// Notes that the sandbox was lost with all that ran in it; the one exception to going forward only. What succeeded for
    /// good stays so.
    pub fn restart_sandbox(&mut self) {
        // One that is stopping anyway is taken away as it is.
        if self.state <= State::Running {
            self.sandbox = false;
            self.state = State::Starting;
        }
    }

    /// Notes that the machine was started anew while the pod ran. A container of which no end is known ended with the machine, and may run
    /// again at once; init containers prepare again what was only in memory.
    pub fn rebooted(&mut self, pod: &Pod, now: Timestamp) {
        for known in self.containers.values_mut() {
            if let ContainerState::Running { since } = known.state {
                let id = known.id.clone();
                known.state =
                    ContainerState::Exited(Exit { code: LOST_CODE, lost: true, started: since, finished: now, id, ..Exit::default() });
            }
        }
        for container in &pod.spec.init_containers {
            if let Some(known) = self.containers.get_mut(&container.name)
                && let ContainerState::Exited(exit) = &known.state
                && exit.code == 0
            {
                known.last = Some(exit.clone());
                known.state = ContainerState::default();
            }
        }
    }

    /// Notes that a container ended, and when it may run again.
    pub fn exited(&mut self, name: &str, exit: Exit) {
        if let Some(container) = self.containers.get_mut(name) {
            let ran = exit.finished.since(exit.started);
            container.backoff = match ran {
                _ if ran >= BACKOFF_FORGOTTEN || container.backoff.is_zero() => BACKOFF_FIRST,
                _ => (container.backoff * 2).min(BACKOFF_MAX),
            };
            container.state = ContainerState::Exited(exit);
        }
    }

    /// Notes that a container runs, for the first time or again.
    pub fn running(&mut self, name: &str, id: String, since: Timestamp) {
        if let Some(container) = self.containers.get_mut(name) {
            container.restarts = container.next_attempt();
            container.state = ContainerState::Running { since };
            container.id = id;
            container.retry = Retry::default();
        }
    }

    /// Notes why a container cannot be started yet; it is tried again with growing pauses.
    pub fn not_started(&mut self, name: &str, reason: &'static str, message: String, now: Timestamp) {
        if let Some(container) = self.containers.get_mut(name) {
            container.retry.fail(now);
            container.state = ContainerState::Waiting { reason, message, until: container.retry.at };
        }
    }
}

/// Decides the next thing to do for a pod. Call it again after each action and each change.
pub fn step(pod: &Pod, record: &mut Record, now: Timestamp) -> Action {
    loop {
        let action = match record.state {
            State::Starting => starting(pod, record, now),
            State::Initializing => initializing(pod, record, now),
            State::Running => running(pod, record, now),
            State::Stopping { deadline } => stopping(pod, record, deadline, now),
            State::Stopped if record.sandbox => Some(Action::Teardown),
            State::Stopped => advance(record, State::Ended),
            State::Ended if pod.is_deleting() => Some(Action::Release),
            State::Ended => Some(Action::Wait(None)),
        };
        if let Some(action) = action {
            return action;
        }
    }
}

/// Enters a later state; the caller decides anew from there.
fn advance(record: &mut Record, state: State) -> Option<Action> {
    assert!(state > record.state, "a pod cannot go back from {:?} to {state:?}", record.state);
    record.state = state;
    None
}

fn starting(pod: &Pod, record: &mut Record, now: Timestamp) -> Option<Action> {
    if pod.is_deleting() {
        return advance(record, State::Stopped);
    }
    if overdue(pod, record, now).is_some() {
        return begin_stop(pod, record, now);
    }
    if record.sandbox {
        return advance(record, State::Initializing);
    }
    // Its sandbox was lost after all was done: no new one is made, and what is left of the old one taken away.
    if is_over(pod, record) {
        record.sandbox = true;
        return advance(record, State::Stopped);
    }
    match record.retry.at > now {
        true => Some(Action::Wait(earliest([Some(record.retry.at), deadline(pod, record)]))),
        false => Some(Action::Prepare),
    }
}

/// Whether no container will run again.
fn is_over(pod: &Pod, record: &Record) -> bool {
    let exit = |container: &Container| match record.containers.get(&container.name).map(|known| &known.state) {
        Some(ContainerState::Exited(exit)) => Some(exit.code),
        _ => None,
    };
    let is_done = |container: &Container| match pod.spec.restart_policy {
        RestartPolicy::Always => false,
        RestartPolicy::OnFailure => exit(container) == Some(0),
        RestartPolicy::Never => exit(container).is_some(),
    };
    let is_failed = |container: &Container| exit(container).is_some_and(|code| code != 0);
    pod.spec.containers.iter().all(is_done)
        || pod.spec.restart_policy == RestartPolicy::Never && pod.spec.init_containers.iter().any(is_failed)
}

fn initializing(pod: &Pod, record: &mut Record, now: Timestamp) -> Option<Action> {
    if pod.is_deleting() || overdue(pod, record, now).is_some() {
        return begin_stop(pod, record, now);
    }
    for container in &pod.spec.init_containers {
        let Some(known) = record.containers.get_mut(&container.name) else { continue };
        // An init container runs until it succeeds, unless the pod may not restart anything.
        let policy = match pod.spec.restart_policy {
            RestartPolicy::Never => RestartPolicy::Never,
            RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        };
        match next_of(known, policy, now) {
            Next::Start => return Some(Action::Start(container.name.clone())),
            Next::Wait(until) => return Some(Action::Wait(earliest([until, deadline(pod, record)]))),
            Next::Done { success: true } => continue,
            Next::Done { success: false } => return advance(record, State::Stopped),
        }
    }
    advance(record, State::Running)
}

fn running(pod: &Pod, record: &mut Record, now: Timestamp) -> Option<Action> {
    if pod.is_deleting() || overdue(pod, record, now).is_some() {
        return begin_stop(pod, record, now);
    }
    let mut wake = deadline(pod, record);
    let mut done = true;
    for container in &pod.spec.containers {
        let Some(known) = record.containers.get_mut(&container.name) else { continue };
        match next_of(known, pod.spec.restart_policy, now) {
            Next::Start => return Some(Action::Start(container.name.clone())),
            Next::Wait(until) => {
                done = false;
                wake = earliest([wake, until]);
            }
            Next::Done { .. } => (),
        }
    }
    match done {
        true => advance(record, State::Stopped),
        false => Some(Action::Wait(wake)),
    }
}

fn stopping(pod: &Pod, record: &mut Record, deadline: Timestamp, now: Timestamp) -> Option<Action> {
    if !record.any_running() {
        return advance(record, State::Stopped);
    }
    // A second deletion may shorten the grace, counted from when it is seen: the API's instants are whole seconds of another clock.
    let grace = grace_seconds(pod);
    let deadline = match grace < record.grace_seconds {
        true => deadline.min(now.plus(Duration::from_secs(grace))),
        false => deadline,
    };
    record.grace_seconds = grace.min(record.grace_seconds);
    record.state = State::Stopping { deadline };
    if now >= deadline {
        return Some(Action::Kill);
    }
    match record.termination_sent {
        false => Some(Action::Terminate),
        true => Some(Action::Wait(Some(deadline))),
    }
}

/// How long containers may take to end after they were told to.
fn grace_seconds(pod: &Pod) -> u64 {
    let seconds = match pod.metadata.deletion_grace_period_seconds {
        Some(seconds) if pod.is_deleting() => seconds,
        _ => pod.spec.termination_grace_period_seconds.unwrap_or(30),
    };
    seconds.max(0) as u64
}

fn begin_stop(pod: &Pod, record: &mut Record, now: Timestamp) -> Option<Action> {
    if !pod.is_deleting() {
        record.failure = overdue(pod, record, now);
    }
    record.grace_seconds = grace_seconds(pod);
    let deadline = now.plus(Duration::from_secs(record.grace_seconds));
    advance(record, State::Stopping { deadline })
}

/// `activeDeadlineSeconds`: when the pod must have ended.
fn deadline(pod: &Pod, record: &Record) -> Option<Timestamp> {
    let seconds = pod.spec.active_deadline_seconds?;
    Some(record.started.plus(Duration::from_secs(seconds.max(0) as u64)))
}

fn overdue(pod: &Pod, record: &Record, now: Timestamp) -> Option<(&'static str, String)> {
    let over = deadline(pod, record).is_some_and(|deadline| now >= deadline);
    over.then(|| ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline".into()))
}

enum Next {
    Start,
    Wait(Option<Timestamp>),
    Done { success: bool },
}

/// What one container needs. A crashed one is put to wait for its back-off here.
fn next_of(container: &mut ContainerRecord, policy: RestartPolicy, now: Timestamp) -> Next {
    match &container.state {
        ContainerState::Running { .. } => Next::Wait(None),
        ContainerState::Waiting { until, .. } if *until > now => Next::Wait(Some(*until)),
        ContainerState::Waiting { .. } => Next::Start,
        ContainerState::Exited(exit) => {
            let again = match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => exit.code != 0,
                RestartPolicy::Never => false,
            };
            if !again {
                return Next::Done { success: exit.code == 0 };
            }
            // The first restart comes at once; only a container that crashes again waits.
            if container.last.is_none() && container.restarts == 0 {
                container.last = Some(exit.clone());
                container.backoff = Duration::ZERO;
                return Next::Start;
            }
            let until = exit.finished.plus(container.backoff);
            let message = format!("back-off {} restarting failed container", seconds(container.backoff));
            container.last = Some(exit.clone());
            container.state = ContainerState::Waiting { reason: "CrashLoopBackOff", message, until };
            match until > now {
                true => Next::Wait(Some(until)),
                false => Next::Start,
            }
        }
    }
}

/// As Go prints a duration: `10s`, `2m40s`.
fn seconds(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

fn earliest<const N: usize>(instants: [Option<Timestamp>; N]) -> Option<Timestamp> {
    instants.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000_000);

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn pod(policy: RestartPolicy, init: &[&str], main: &[&str]) -> Pod {
        let container = |name: &&str| Container { name: (*name).into(), ..Container::default() };
        let mut pod = Pod::default();
        pod.spec.restart_policy = policy;
        pod.spec.init_containers = init.iter().map(container).collect();
        pod.spec.containers = main.iter().map(container).collect();
        pod
    }

    fn exit(code: i32, started: u64, finished: u64) -> Exit {
        Exit { code, started: at(started), finished: at(finished), ..Exit::default() }
    }

    fn prepared(pod: &Pod) -> Record {
        let mut record = Record::new(pod, START);
        assert_eq!(step(pod, &mut record, START), Action::Prepare);
        record.sandbox = true;
        record
    }

    fn start(name: &str) -> Action {
        Action::Start(name.into())
    }

    #[test]
    fn init_containers_run_one_after_the_other_and_before_the_rest() {
        let pod = pod(RestartPolicy::Always, &["one", "two"], &["web", "log"]);
        let mut record = prepared(&pod);
        assert_eq!(step(&pod, &mut record, START), start("one"));
        record.running("one", "1".into(), START);
        assert_eq!(step(&pod, &mut record, START), Action::Wait(None));
        record.exited("one", exit(0, 0, 1));
        assert_eq!(step(&pod, &mut record, at(1)), start("two"));
        record.exited("two", exit(0, 1, 2));
        assert_eq!(step(&pod, &mut record, at(2)), start("web"));
        record.running("web", "3".into(), at(2));
        assert_eq!(step(&pod, &mut record, at(2)), start("log"));
        record.running("log", "4".into(), at(2));
        assert_eq!(step(&pod, &mut record, at(2)), Action::Wait(None));
        assert_eq!(record.state, State::Running);
    }

    #[test]
    fn after_a_reboot_a_pod_begins_anew_unless_it_never_restarts() {
        for (policy, expected) in
            [(RestartPolicy::Always, vec![Action::Prepare, start("init"), start("web")]), (RestartPolicy::Never, vec![Action::Teardown])]
        {
            let pod = pod(policy, &["init"], &["web"]);
            let mut record = Record::new(&pod, START);
            record.exited("init", exit(0, 0, 1));
            record.running("web", "1".into(), at(1));
            record.rebooted(&pod, at(100));
            let mut actions = vec![];
            for (at, id) in [(at(100), "2"), (at(101), "3"), (at(102), "4")] {
                let action = step(&pod, &mut record, at);
                actions.push(action.clone());
                match action {
                    Action::Prepare => record.sandbox = true,
                    Action::Start(name) if name == "init" => record.exited("init", exit(0, 100, 101)),
                    Action::Start(name) => record.running(&name, id.into(), at),
                    _ => break,
                }
            }
            assert_eq!(actions, expected);
            let web = &record.containers["web"];
            let lost = web.last.clone().or(match &web.state {
                ContainerState::Exited(exit) => Some(exit.clone()),
                _ => None,
            });
            let lost = lost.unwrap();
            assert_eq!((lost.code, lost.reason(), web.restarts), (255, "Unknown", if policy == RestartPolicy::Never { 0 } else { 1 }));
        }
    }

    #[test]
    fn failed_init_container_ends_a_pod_that_never_restarts() {
        let pod = pod(RestartPolicy::Never, &["one"], &["web"]);
        let mut record = prepared(&pod);
        assert_eq!(step(&pod, &mut record, START), start("one"));
        record.exited("one", exit(3, 0, 1));
        assert_eq!(step(&pod, &mut record, at(1)), Action::Teardown);
    }

    #[test]
    fn crashing_container_waits_twice_as_long_each_time_up_to_five_minutes() {
        let pod = pod(RestartPolicy::Always, &[], &["web"]);
        let mut record = prepared(&pod);
        assert_eq!(step(&pod, &mut record, START), start("web"));
        let mut now = 0;
        for pause in [0, 10, 20, 40, 80, 160, 300, 300] {
            record.running("web", "x".into(), at(now));
            now += 1;
            record.exited("web", exit(1, now - 1, now));
            if pause > 0 {
                assert_eq!(step(&pod, &mut record, at(now)), Action::Wait(Some(at(now + pause))), "pause {pause}");
                now += pause;
            }
            assert_eq!(step(&pod, &mut record, at(now)), start("web"), "pause {pause}");
        }
        record.running("web", "x".into(), at(now));
        let crash = now + BACKOFF_FORGOTTEN.as_secs();
        record.exited("web", exit(1, now, crash));
        assert_eq!(step(&pod, &mut record, at(crash)), Action::Wait(Some(at(crash + 10))));
    }

    #[test]
    fn restart_policy_decides_what_an_exit_means() {
        for (policy, code, ends) in [
            (RestartPolicy::Always, 0, false),
            (RestartPolicy::OnFailure, 0, true),
            (RestartPolicy::OnFailure, 1, false),
            (RestartPolicy::Never, 0, true),
            (RestartPolicy::Never, 1, true),
        ] {
            let pod = pod(policy, &[], &["job"]);
            let mut record = prepared(&pod);
            step(&pod, &mut record, START);
            record.exited("job", exit(code, 0, 1));
            let action = step(&pod, &mut record, at(1));
            assert_eq!(action, if ends { Action::Teardown } else { start("job") }, "{policy:?} {code}");
        }
    }

    #[test]
    fn deleted_pod_is_asked_then_killed_then_taken_away_then_released() {
        let mut pod = pod(RestartPolicy::Always, &[], &["web"]);
        let mut record = prepared(&pod);
        step(&pod, &mut record, START);
        record.running("web", "1".into(), START);
        pod.metadata.deletion_timestamp = Some(at(15).to_string());
        pod.metadata.deletion_grace_period_seconds = Some(10);
        assert_eq!(step(&pod, &mut record, at(5)), Action::Terminate);
        record.termination_sent = true;
        assert_eq!(step(&pod, &mut record, at(5)), Action::Wait(Some(at(15))));
        assert_eq!(step(&pod, &mut record, at(15)), Action::Kill);
        record.exited("web", exit(137, 0, 15));
        assert_eq!(step(&pod, &mut record, at(15)), Action::Teardown);
        record.sandbox = false;
        assert_eq!(step(&pod, &mut record, at(15)), Action::Release);
    }

    #[test]
    fn the_grace_is_whole_whatever_the_clock_of_the_api_says() {
        let mut pod = pod(RestartPolicy::Always, &[], &["web"]);
        let mut record = prepared(&pod);
        step(&pod, &mut record, START);
        record.running("web", "1".into(), START);
        pod.metadata.deletion_timestamp = Some(START.to_string());
        pod.metadata.deletion_grace_period_seconds = Some(2);
        assert_eq!(step(&pod, &mut record, at(10)), Action::Terminate);
        record.termination_sent = true;
        assert_eq!(step(&pod, &mut record, at(11)), Action::Wait(Some(at(12))));
        assert_eq!(step(&pod, &mut record, at(12)), Action::Kill);
    }

    #[test]
    fn forced_deletion_cuts_a_running_grace_short() {
        let mut pod = pod(RestartPolicy::Always, &[], &["web"]);
        let mut record = prepared(&pod);
        step(&pod, &mut record, START);
        record.running("web", "1".into(), START);
        pod.metadata.deletion_timestamp = Some(at(30).to_string());
        pod.metadata.deletion_grace_period_seconds = Some(30);
        assert_eq!(step(&pod, &mut record, START), Action::Terminate);
        record.termination_sent = true;
        pod.metadata.deletion_grace_period_seconds = Some(0);
        assert_eq!(step(&pod, &mut record, at(1)), Action::Kill);
    }

    #[test]
    fn preparation_is_tried_again_with_growing_pauses() {
        let pod = pod(RestartPolicy::Always, &[], &["web"]);
        let mut record = Record::new(&pod, START);
        let mut now = START;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(step(&pod, &mut record, now), Action::Prepare);
            record.retry.fail(now);
            assert_eq!(step(&pod, &mut record, now), Action::Wait(Some(record.retry.at)));
            pauses.push(record.retry.at.since(now).as_millis());
            now = record.retry.at;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn active_deadline_ends_a_pod_for_good() {
        let mut pod = pod(RestartPolicy::Always, &[], &["web"]);
        pod.spec.active_deadline_seconds = Some(5);
        let mut record = prepared(&pod);
        step(&pod, &mut record, START);
        record.running("web", "1".into(), START);
        assert_eq!(step(&pod, &mut record, at(4)), Action::Wait(Some(at(5))));
        assert_eq!(step(&pod, &mut record, at(5)), Action::Terminate);
        record.exited("web", exit(143, 0, 6));
        assert_eq!(step(&pod, &mut record, at(6)), Action::Teardown);
        assert_eq!(record.failure.as_ref().map(|(reason, _)| *reason), Some("DeadlineExceeded"));
    }
}
