//! Pods as rows; above all their STATUS column, which sums up phase, conditions and the states of all containers.

use serde_json::{Value, json};

use super::*;

pub const ALL: &[(&str, &Layout)] = &[("pods", &PODS), ("podtemplates", &POD_TEMPLATES)];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

static PODS: Layout = Layout {
    columns: &[
        NAME,
        text_column("Ready"),
        text_column("Status"),
        text_column("Restarts"),
        AGE,
        wide_column("IP"),
        wide_column("Node"),
        wide_column("Nominated Node"),
        wide_column("Readiness Gates"),
    ],
    cells: pod,
    conditions: |pod| {
        let (reason, message) = match text(pod, "/status/phase") {
            "Succeeded" => ("Succeeded", "The pod has completed successfully."),
            "Failed" => ("Failed", "The pod failed."),
            _ => return None,
        };
        Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
    },
};

static POD_TEMPLATES: Layout =
    layout(&[NAME, text_column("Containers"), text_column("Images"), text_column("Pod Labels")], |template, _| {
        let [names, images] = containers(template, "/template/spec/containers");
        vec![name(template), names, images, labels(template, "/template/metadata/labels")]
    });

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let mut restarts = summary.restarts.to_string();
    if let (1.., Some(last)) = (summary.restarts, summary.last_restart) {
        restarts = format!("{restarts} ({} ago)", duration::human(now.0 - last.0));
    }
    let gates = items(pod, "/spec/readinessGates");
    let gates = if gates.is_empty() {
        "<none>".into()
    } else {
        let passed = gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType")) == "True").count();
        format!("{passed}/{}", gates.len())
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        text_or(pod, "/status/podIPs/0/ip", "<none>"),
        text_or(pod, "/spec/nodeName", "<none>"),
        text_or(pod, "/status/nominatedNodeName", "<none>"),
        gates.into(),
    ]
}

struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// Counts restarts and remembers the last.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += integer(container, "/restartCount");
        self.last = self.last.max(Timestamp::parse(text(container, "/lastState/terminated/finishedAt")));
    }
}

fn summarize(pod: &Value) -> Summary {
    let mut status = match text(pod, "/status/reason") {
        "" => text(pod, "/status/phase"),
        reason => reason,
    }
    .to_owned();
    let gated = |condition: &&Value| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated";
    if items(pod, "/status/conditions").iter().any(|condition| gated(&condition)) {
        status = "SchedulingGated".into();
    }
    let init_containers = items(pod, "/spec/initContainers");
    let is_sidecar = |named: &Value| {
        let spec = init_containers.iter().find(|container| container["name"] == *named);
        spec.is_some_and(|spec| spec["restartPolicy"] == "Always")
    };
    let sidecars = init_containers.iter().filter(|container| container["restartPolicy"] == "Always").count();
    let total = items(pod, "/spec/containers").len() + sidecars;
    let mut ready = 0;

    let (mut init_restarts, mut restarts) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, container) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar(&container["name"]);
        init_restarts.add(container);
        if sidecar {
            restarts.add(container);
        }
        let terminated = container["state"].get("terminated");
        if terminated.is_some_and(|terminated| integer(terminated, "/exitCode") == 0) {
            continue;
        }
        if sidecar && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        status = match (terminated, text(container, "/state/waiting/reason")) {
            (Some(terminated), _) => format!("Init:{}", exit(terminated)),
            (None, "" | "PodInitializing") => format!("Init:{index}/{}", init_containers.len()),
            (None, reason) => format!("Init:{reason}"),
        };
        initializing = true;
        break;
    }

    let initialized = !initializing || condition(pod, "Initialized") == "True";
    if initialized {
        let mut running = false;
        for container in items(pod, "/status/containerStatuses").iter().rev() {
            restarts.add(container);
            let state = &container["state"];
            match (text(state, "/waiting/reason"), state.get("terminated")) {
                ("", None) if container["ready"] == true && state.get("running").is_some() => {
                    running = true;
                    ready += 1;
                }
                ("", None) => (),
                ("", Some(terminated)) => status = exit(terminated),
                (reason, _) => status = reason.into(),
            }
        }
        if status == "Completed" && running {
            status = if condition(pod, "Ready") == "True" { "Running".into() } else { "NotReady".into() };
        }
    }

    if pod["metadata"]["deletionTimestamp"].is_string() {
        if text(pod, "/status/reason") == "NodeLost" {
            status = "Unknown".into();
        } else if !["Succeeded", "Failed"].contains(&text(pod, "/status/phase")) {
            status = "Terminating".into();
        }
    }
    let shown = if initialized { restarts } else { init_restarts };
    Summary { status, ready, total, restarts: shown.count, last_restart: shown.last }
}

/// Why a container ended: the reason, or else the signal or exit code.
fn exit(terminated: &Value) -> String {
    match (text(terminated, "/reason"), integer(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ready, status and restarts of a pod with this status, two containers, and the init containers given.
    fn check(init: Value, status: Value, expected: [&str; 3]) {
        let mut object = json!({
            "metadata": {"name": "web"}, "status": status,
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": init},
        });
        let deleting = object["status"].as_object_mut().unwrap().remove("deleting");
        if deleting.is_some() {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let now = Timestamp::parse("2026-01-01T01:00:00Z").unwrap();
        let cells = pod(&object, now);
        assert_eq!([&cells[1], &cells[2], &cells[3]], [expected[0], expected[1], expected[2]], "{object}");
    }

    #[test]
    fn the_status_column_is_upstreams() {
        let running = json!({"ready": true, "state": {"running": {}}});
        let completed = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        check(json!([]), json!({"phase": "Pending"}), ["0/2", "Pending", "0"]);
        check(json!([]), json!({"phase": "Running", "containerStatuses": [running, running]}), ["2/2", "Running", "0"]);
        check(
            json!([]),
            json!({"phase": "Running", "containerStatuses": [running, {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}),
            ["1/2", "CrashLoopBackOff", "3 (5m ago)"],
        );
        check(json!([]), json!({"phase": "Succeeded", "containerStatuses": [completed, completed]}), ["0/2", "Completed", "0"]);
        check(json!([]), json!({"phase": "Running", "containerStatuses": [completed, running]}), ["1/2", "NotReady", "0"]);
        check(
            json!([]),
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
            ["0/2", "Signal:9", "0"],
        );
        check(json!([]), json!({"phase": "Running", "deleting": true}), ["0/2", "Terminating", "0"]);
        check(json!([]), json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]);
        let init = json!([{"name": "i"}, {"name": "j"}]);
        check(
            init.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
            ["0/2", "Init:1/2", "0"],
        );
        check(
            init.clone(),
            json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ["0/2", "Init:CrashLoopBackOff", "1"],
        );
        check(
            init,
            json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
            ["0/2", "Init:ExitCode:3", "0"],
        );
        check(
            json!([{"name": "s", "restartPolicy": "Always"}]),
            json!({"phase": "Running", "initContainerStatuses": [
            {"name": "s", "started": true, "ready": true, "state": {"running": {}}}], "containerStatuses": [running, running]}),
            ["3/3", "Running", "0"],
        );
    }
}
