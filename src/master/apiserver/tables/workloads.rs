//! Rows of what runs pods: deployments, sets, jobs, autoscalers, disruption budgets.

use serde_json::Value;

use super::*;

pub const ALL: &[(&str, &Layout)] = &[
    ("deployments", &DEPLOYMENTS),
    ("replicasets", &REPLICA_SETS),
    ("replicationcontrollers", &REPLICATION_CONTROLLERS),
    ("statefulsets", &STATEFUL_SETS),
    ("daemonsets", &DAEMON_SETS),
    ("controllerrevisions", &CONTROLLER_REVISIONS),
    ("jobs", &JOBS),
    ("cronjobs", &CRON_JOBS),
    ("horizontalpodautoscalers", &AUTOSCALERS),
    ("poddisruptionbudgets", &DISRUPTION_BUDGETS),
];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

const TEMPLATE: &str = "/spec/template/spec/containers";
const CONTAINERS: Column = wide_column("Containers");
const IMAGES: Column = wide_column("Images");
const SELECTOR: Column = wide_column("Selector");

static DEPLOYMENTS: Layout = layout(
    &[NAME, text_column("Ready"), text_column("Up-to-date"), text_column("Available"), AGE, CONTAINERS, IMAGES, SELECTOR],
    |deployment, now| {
        let [names, images] = containers(deployment, TEMPLATE);
        vec![
            name(deployment),
            format!("{}/{}", integer(deployment, "/status/readyReplicas"), integer(deployment, "/spec/replicas")).into(),
            number(deployment, "/status/updatedReplicas"),
            number(deployment, "/status/availableReplicas"),
            age(deployment, now),
            names,
            images,
            selector(deployment, "/spec/selector").into(),
        ]
    },
);

static REPLICA_SETS: Layout = layout(REPLICA_COLUMNS, |set, now| replicas(set, now, selector_or_none(set, "/spec/selector")));

static REPLICATION_CONTROLLERS: Layout = layout(REPLICA_COLUMNS, |set, now| replicas(set, now, labels(set, "/spec/selector")));

const REPLICA_COLUMNS: &[Column] =
    &[NAME, number_column("Desired"), number_column("Current"), number_column("Ready"), AGE, CONTAINERS, IMAGES, SELECTOR];

fn replicas(set: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let [names, images] = containers(set, TEMPLATE);
    vec![
        name(set),
        number(set, "/spec/replicas"),
        number(set, "/status/replicas"),
        number(set, "/status/readyReplicas"),
        age(set, now),
        names,
        images,
        selector,
    ]
}

static STATEFUL_SETS: Layout = layout(&[NAME, text_column("Ready"), AGE, CONTAINERS, IMAGES], |set, now| {
    let [names, images] = containers(set, TEMPLATE);
    let ready = format!("{}/{}", integer(set, "/status/readyReplicas"), integer(set, "/spec/replicas"));
    vec![name(set), ready.into(), age(set, now), names, images]
});

static DAEMON_SETS: Layout = layout(
    &[
        NAME,
        number_column("Desired"),
        number_column("Current"),
        number_column("Ready"),
        number_column("Up-to-date"),
        number_column("Available"),
        text_column("Node Selector"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |set, now| {
        let [names, images] = containers(set, TEMPLATE);
        vec![
            name(set),
            number(set, "/status/desiredNumberScheduled"),
            number(set, "/status/currentNumberScheduled"),
            number(set, "/status/numberReady"),
            number(set, "/status/updatedNumberScheduled"),
            number(set, "/status/numberAvailable"),
            labels(set, "/spec/template/spec/nodeSelector"),
            age(set, now),
            names,
            images,
            selector_or_none(set, "/spec/selector"),
        ]
    },
);

static CONTROLLER_REVISIONS: Layout = layout(&[NAME, text_column("Controller"), text_column("Revision"), AGE], |revision, now| {
    let owner = items(revision, "/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true);
    let owner = owner.map_or("<none>".to_owned(), |owner| {
        let kind = text(owner, "/kind").to_lowercase();
        match text(owner, "/apiVersion").split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "/name")),
            None => format!("{kind}/{}", text(owner, "/name")),
        }
    });
    vec![name(revision), owner.into(), number(revision, "/revision"), age(revision, now)]
});

static JOBS: Layout = layout(
    &[NAME, text_column("Status"), text_column("Completions"), text_column("Duration"), AGE, CONTAINERS, IMAGES, SELECTOR],
    |job, now| {
        let succeeded = integer(job, "/status/succeeded");
        let completions = match (job.pointer("/spec/completions").and_then(Value::as_i64), integer(job, "/spec/parallelism")) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let started = Timestamp::parse(text(job, "/status/startTime"));
        let ended = Timestamp::parse(text(job, "/status/completionTime"));
        let took = started.map_or(String::new(), |started| duration::human(ended.unwrap_or(now).0 - started.0));
        let [names, images] = containers(job, TEMPLATE);
        vec![
            name(job),
            job_status(job).into(),
            completions.into(),
            took.into(),
            age(job, now),
            names,
            images,
            selector_or_none(job, "/spec/selector"),
        ]
    },
);

fn job_status(job: &Value) -> &'static str {
    let is = |kind| condition(job, kind) == "True";
    match () {
        _ if is("Complete") => "Complete",
        _ if is("Failed") => "Failed",
        _ if job["metadata"]["deletionTimestamp"].is_string() => "Terminating",
        _ if is("Suspended") => "Suspended",
        _ if is("FailureTarget") => "FailureTarget",
        _ => "Running",
    }
}

static CRON_JOBS: Layout = layout(
    &[
        NAME,
        text_column("Schedule"),
        text_column("Timezone"),
        Column("Suspend", "boolean", false),
        number_column("Active"),
        text_column("Last Schedule"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    |job, now| {
        let [names, images] = containers(job, "/spec/jobTemplate/spec/template/spec/containers");
        let suspended = match job.pointer("/spec/suspend").and_then(Value::as_bool) {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = match text(job, "/status/lastScheduleTime") {
            "" => "<none>".into(),
            _ => since(job, "/status/lastScheduleTime", now),
        };
        vec![
            name(job),
            text(job, "/spec/schedule").into(),
            text_or(job, "/spec/timeZone", "<none>"),
            suspended.into(),
            size(job, "/status/active").into(),
            last.into(),
            age(job, now),
            names,
            images,
            selector_or_none(job, "/spec/jobTemplate/spec/selector"),
        ]
    },
);

static AUTOSCALERS: Layout = layout(
    &[NAME, text_column("Reference"), text_column("Targets"), text_column("MinPods"), text_column("MaxPods"), text_column("Replicas"), AGE],
    |autoscaler, now| {
        let target = &autoscaler["spec"]["scaleTargetRef"];
        vec![
            name(autoscaler),
            format!("{}/{}", text(target, "/kind"), text(target, "/name")).into(),
            targets(autoscaler).into(),
            scalar(autoscaler.pointer("/spec/minReplicas"), "<unset>").into(),
            number(autoscaler, "/spec/maxReplicas"),
            number(autoscaler, "/status/currentReplicas"),
            age(autoscaler, now),
        ]
    },
);

/// `cpu: 12%/80%`; autoscaling/v1 has but the one target of CPU.
fn targets(autoscaler: &Value) -> String {
    let percent =
        |value: Option<&Value>, otherwise: &str| value.and_then(Value::as_i64).map_or(otherwise.into(), |value| format!("{value}%"));
    if let Some(target) = autoscaler.pointer("/spec/targetCPUUtilizationPercentage") {
        let current = percent(autoscaler.pointer("/status/currentCPUUtilizationPercentage"), "<unknown>");
        return format!("cpu: {current}/{}", percent(Some(target), "<auto>"));
    }
    let metrics = items(autoscaler, "/spec/metrics");
    if metrics.is_empty() {
        return "<none>".into();
    }
    let mut list: Vec<String> = Vec::new();
    for (index, metric) in metrics.iter().enumerate() {
        let (field, named) = match text(metric, "/type") {
            "External" => ("external", false),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            _ => {
                list.push("<unknown type>".into());
                continue;
            }
        };
        let target = &metric[field]["target"];
        let current = autoscaler.pointer(&format!("/status/currentMetrics/{index}/{field}/current")).unwrap_or(&Value::Null);
        let of = |kind: &str| (scalar(current.get(kind), "<unknown>"), scalar(target.get(kind), ""));
        let shown = match (target.get("averageValue"), named) {
            (Some(_), true) => {
                let (now, wanted) = of("averageValue");
                format!("{now}/{wanted}")
            }
            (Some(_), false) => {
                let (now, wanted) = of("averageValue");
                if field == "pods" { format!("{now}/{wanted}") } else { format!("{now}/{wanted} (avg)") }
            }
            (None, true) => {
                let now = percent(current.get("averageUtilization"), "<unknown>");
                format!("{now}/{}", percent(target.get("averageUtilization"), "<auto>"))
            }
            (None, false) => {
                let (now, wanted) = of("value");
                format!("{now}/{wanted}")
            }
        };
        list.push(if named { format!("{}: {shown}", text(&metric[field], "/name")) } else { shown });
    }
    match list.len() {
        0..=2 => list.join(", "),
        more => format!("{} + {} more...", list[..2].join(", "), more - 2),
    }
}

static DISRUPTION_BUDGETS: Layout = layout(
    &[NAME, text_column("Min Available"), text_column("Max Unavailable"), number_column("Allowed Disruptions"), AGE],
    |budget, now| {
        vec![
            name(budget),
            scalar(budget.pointer("/spec/minAvailable"), "N/A").into(),
            scalar(budget.pointer("/spec/maxUnavailable"), "N/A").into(),
            number(budget, "/status/disruptionsAllowed"),
            age(budget, now),
        ]
    },
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscaler_targets_are_upstreams() {
        let check = |object: Value, expected: &str| assert_eq!(targets(&object), expected, "{object}");
        check(json!({"spec": {}}), "<none>");
        check(json!({"spec": {"targetCPUUtilizationPercentage": 80}}), "cpu: <unknown>/80%");
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        check(
            json!({"spec": {"metrics": [cpu]}, "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 12}}}]}}),
            "cpu: 12%/80%",
        );
        check(json!({"spec": {"metrics": [cpu, cpu, cpu]}}), "cpu: <unknown>/80%, cpu: <unknown>/80% + 1 more...");
    }

    #[test]
    fn jobs_say_how_far_they_are() {
        let job = json!({"spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z"}});
        let cells = (JOBS.cells)(&job, Timestamp::parse("2026-01-01T00:00:30Z").unwrap());
        assert_eq!(cells[1..4], ["Running", "1/3", "30s"].map(Value::from));
    }
}
