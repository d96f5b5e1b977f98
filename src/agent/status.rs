//! What the agent tells of a pod: phase, conditions and the state of each container, from the record of its life.
//! Pure. It writes only what the node knows; the scheduler's condition is kept as it is.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase>

use serde_json::{Map, Value, json};

use super::machine::{ContainerRecord, ContainerState, Exit, Record, State};
use crate::api::pod::{Container, Pod};
use crate::base::time::Timestamp;

/// The pod's status subresource as it should read now.
pub fn status(pod: &Pod, record: &Record, host_ip: &str, pod_ip: &str, now: Timestamp) -> Value {
    let phase = phase(pod, record);
    let mut status = Map::new();
    let mut set = |field: &str, value: Value| {
        status.insert(field.to_owned(), value);
    };
    if let Some(qos) = pod.status.get("qosClass") {
        set("qosClass", qos.clone());
    }
    set("phase", phase.into());
    set("observedGeneration", pod.metadata.generation.into());
    set("startTime", record.started.to_string().into());
    set("hostIP", host_ip.into());
    set("hostIPs", json!([{"ip": host_ip}]));
    if !pod_ip.is_empty() {
        set("podIP", pod_ip.into());
        set("podIPs", json!([{"ip": pod_ip}]));
    }
    if let Some((reason, message)) = &record.failure {
        set("reason", (*reason).into());
        set("message", message.clone().into());
    }
    set("conditions", conditions(pod, record, phase, now));
    if !pod.spec.init_containers.is_empty() {
        set("initContainerStatuses", containers(pod, &pod.spec.init_containers, record, true));
    }
    set("containerStatuses", containers(pod, &pod.spec.containers, record, false));
    Value::Object(status)
}

fn phase(pod: &Pod, record: &Record) -> &'static str {
    let exits = |containers: &[Container]| -> Vec<Option<i32>> {
        let exit = |container: &Container| match record.containers.get(&container.name).map(|known| &known.state) {
            Some(ContainerState::Exited(exit)) => Some(exit.code),
            _ => None,
        };
        containers.iter().map(exit).collect()
    };
    let main = exits(&pod.spec.containers);
    if record.failure.is_some() && record.state >= State::Stopped {
        return "Failed";
    }
    match record.state {
        // It has lost its sandbox since.
        State::Starting | State::Initializing if any_ran(pod, record) => "Running",
        State::Starting | State::Initializing => "Pending",
        State::Running => {
            let started = |container: &Container| {
                let known = record.containers.get(&container.name);
                known.is_some_and(|known| known.restarts > 0 || !matches!(known.state, ContainerState::Waiting { .. }))
            };
            if pod.spec.containers.iter().any(started) { "Running" } else { "Pending" }
        }
        // A pod that never ran stays pending until it is gone.
        State::Stopping { .. } if main.iter().all(Option::is_none) && !any_ran(pod, record) => "Pending",
        State::Stopping { .. } => "Running",
        State::Stopped | State::Ended => {
            let init_failed = exits(&pod.spec.init_containers).iter().any(|code| code.is_some_and(|code| code != 0));
            match main.iter().all(|code| *code == Some(0)) && !init_failed {
                true => "Succeeded",
                false => "Failed",
            }
        }
    }
}

fn any_ran(pod: &Pod, record: &Record) -> bool {
    pod.spec.containers.iter().any(|container| {
        let known = record.containers.get(&container.name);
        known.is_some_and(|known| !matches!(known.state, ContainerState::Waiting { .. }) || known.last.is_some())
    })
}

/// The conditions that the node answers for, after those that others wrote. A condition that did not change keeps its time.
fn conditions(pod: &Pod, record: &Record, phase: &str, now: Timestamp) -> Value {
    const OURS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    let names = |containers: &[Container], wanted: fn(&ContainerRecord) -> bool| -> Vec<String> {
        let lacks = |container: &&Container| !record.containers.get(&container.name).is_some_and(wanted);
        containers.iter().filter(lacks).map(|container| container.name.clone()).collect()
    };
    let succeeded = |known: &ContainerRecord| matches!(&known.state, ContainerState::Exited(exit) if exit.code == 0);
    let running = |known: &ContainerRecord| matches!(known.state, ContainerState::Running { .. });
    let uninitialized = match record.state {
        State::Starting | State::Initializing => names(&pod.spec.init_containers, succeeded),
        _ => Vec::new(),
    };
    let unready = names(&pod.spec.containers, running);
    let waiting_for = |reason: &'static str, what: &str, names: Vec<String>| match names.is_empty() {
        true => None,
        false => Some((reason, format!("containers with {what} status: [{}]", names.join(" ")))),
    };
    let initialized = match record.state {
        State::Starting | State::Initializing if !pod.spec.init_containers.is_empty() => {
            waiting_for("ContainersNotInitialized", "incomplete", uninitialized)
        }
        _ => None,
    };
    let ready = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => waiting_for("ContainersNotReady", "unready", unready),
    };
    let initialized = match (phase, &initialized) {
        ("Succeeded", _) => Some(("PodCompleted", String::new())),
        _ => initialized,
    };
    let sandbox = (!record.sandbox).then(|| ("", String::new()));
    let before = pod.status["conditions"].as_array().cloned().unwrap_or_default();
    let kept = before.iter().filter(|condition| !OURS.contains(&condition["type"].as_str().unwrap_or_default())).cloned();
    let made = OURS.iter().map(|name| {
        let (holds, why) = match *name {
            "PodReadyToStartContainers" => (record.sandbox, &sandbox),
            "Initialized" => (initialized.is_none() || phase == "Succeeded", &initialized),
            _ => (ready.is_none(), &ready),
        };
        let old = before.iter().find(|condition| condition["type"] == *name);
        condition(name, holds, why.as_ref(), old, pod.metadata.generation, now)
    });
    made.chain(kept).collect()
}

fn condition(name: &str, holds: bool, why: Option<&(&str, String)>, old: Option<&Value>, generation: i64, now: Timestamp) -> Value {
    let status = if holds { "True" } else { "False" };
    let since = match old {
        Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
        _ => now.to_string().into(),
    };
    let mut condition = json!({
        "type": name, "status": status, "lastProbeTime": null, "lastTransitionTime": since, "observedGeneration": generation,
    });
    if let Some((reason, message)) = why {
        for (field, text) in [("reason", *reason), ("message", message.as_str())] {
            if !text.is_empty() {
                condition[field] = text.into();
            }
        }
    }
    condition
}

fn containers(pod: &Pod, containers: &[Container], record: &Record, init: bool) -> Value {
    let nothing = ContainerRecord::default();
    containers
        .iter()
        .map(|container| {
            let known = record.containers.get(&container.name).unwrap_or(&nothing);
            let running = matches!(known.state, ContainerState::Running { .. });
            let succeeded = matches!(&known.state, ContainerState::Exited(exit) if exit.code == 0);
            let mut status = json!({
                "name": container.name,
                "image": if known.image.is_empty() { &container.image } else { &known.image },
                "imageID": known.image_id,
                "restartCount": known.restarts,
                "ready": if init { succeeded } else { running },
                "started": running,
                "state": state(pod, container, record, known, init),
                "lastState": known.last.as_ref().map_or(json!({}), |exit| json!({"terminated": terminated(exit)})),
            });
            if !known.id.is_empty() {
                status["containerID"] = container_id(&known.id).into();
            }
            status
        })
        .collect()
}

fn state(pod: &Pod, container: &Container, record: &Record, known: &ContainerRecord, init: bool) -> Value {
    match &known.state {
        ContainerState::Running { since } => json!({"running": {"startedAt": since.to_string()}}),
        ContainerState::Exited(exit) => json!({"terminated": terminated(exit)}),
        ContainerState::Waiting { reason, message, .. } => {
            let waits_for_init = !init && !pod.spec.init_containers.is_empty() && record.state <= State::Initializing;
            let reason = if waits_for_init { "PodInitializing" } else { reason };
            let mut waiting = json!({"reason": reason});
            if reason == "CrashLoopBackOff" {
                let Pod { metadata, .. } = pod;
                waiting["message"] =
                    format!("{message} container={} pod={}_{}({})", container.name, metadata.name, metadata.namespace, metadata.uid).into();
            } else if !message.is_empty() {
                waiting["message"] = message.clone().into();
            }
            json!({"waiting": waiting})
        }
    }
}

fn terminated(exit: &Exit) -> Value {
    let mut terminated = json!({
        "exitCode": exit.code, "reason": exit.reason(), "startedAt": exit.started.to_string(), "finishedAt": exit.finished.to_string(),
        "containerID": container_id(&exit.id),
    });
    if exit.signal != 0 {
        terminated["signal"] = exit.signal.into();
    }
    if !exit.message.is_empty() {
        terminated["message"] = exit.message.clone().into();
    }
    terminated
}

fn container_id(id: &str) -> String {
    format!("edgectl://{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::machine;

    const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

    fn pod() -> Pod {
        Pod::read(&json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u"},
            "spec": {"restartPolicy": "Never", "initContainers": [{"name": "init"}], "containers": [{"name": "web", "image": "nginx"}]},
            "status": {"qosClass": "BestEffort", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            ]},
        }))
        .unwrap()
    }

    fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
        status["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == name).unwrap()
    }

    #[test]
    fn pod_that_starts_is_pending_and_says_what_it_waits_for() {
        let pod = pod();
        let mut record = Record::new(&pod, NOW);
        machine::step(&pod, &mut record, NOW);
        let status = status(&pod, &record, "10.0.0.1", "", NOW);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!(condition(&status, "Initialized")["reason"], "ContainersNotInitialized");
        assert_eq!(condition(&status, "PodScheduled")["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(status["qosClass"], "BestEffort");
    }

    #[test]
    fn running_pod_is_ready_and_ended_pod_succeeded_or_failed() {
        for (code, phase) in [(0, "Succeeded"), (1, "Failed")] {
            let pod = pod();
            let mut record = Record::new(&pod, NOW);
            record.sandbox = true;
            machine::step(&pod, &mut record, NOW);
            record.exited("init", Exit { started: NOW, finished: NOW, ..Exit::default() });
            machine::step(&pod, &mut record, NOW);
            record.running("web", "abc".into(), NOW);
            machine::step(&pod, &mut record, NOW);
            let running = status(&pod, &record, "10.0.0.1", "10.244.0.2", NOW);
            assert_eq!((running["phase"].as_str(), condition(&running, "Ready")["status"].as_str()), (Some("Running"), Some("True")));
            assert_eq!(running["containerStatuses"][0]["containerID"], "edgectl://abc");
            record.exited("web", Exit { code, started: NOW, finished: NOW, ..Exit::default() });
            machine::step(&pod, &mut record, NOW);
            let ended = status(&pod, &record, "10.0.0.1", "10.244.0.2", NOW);
            assert_eq!((ended["phase"].as_str(), condition(&ended, "Ready")["status"].as_str()), (Some(phase), Some("False")));
            assert_eq!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
        }
    }
}
