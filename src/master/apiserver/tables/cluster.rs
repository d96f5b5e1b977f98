//! Rows of what belongs to the cluster itself or holds data: nodes, namespaces, events, config maps, secrets, quotas, leases, classes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

pub const ALL: &[(&str, &Layout)] = &[
    ("nodes", &NODES),
    ("namespaces", &NAMESPACES),
    ("events", &EVENTS),
    ("configmaps", &CONFIG_MAPS),
    ("secrets", &SECRETS),
    ("serviceaccounts", &SERVICE_ACCOUNTS),
    ("resourcequotas", &RESOURCE_QUOTAS),
    ("componentstatuses", &COMPONENT_STATUSES),
    ("leases", &LEASES),
    ("leasecandidates", &LEASE_CANDIDATES),
    ("priorityclasses", &PRIORITY_CLASSES),
    ("runtimeclasses", &RUNTIME_CLASSES),
    ("apiservices", &API_SERVICES),
];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

static NODES: Layout = layout(
    &[
        NAME,
        text_column("Status"),
        text_column("Roles"),
        AGE,
        text_column("Version"),
        wide_column("Internal-IP"),
        wide_column("External-IP"),
        wide_column("OS-Image"),
        wide_column("Kernel-Version"),
        wide_column("Container-Runtime"),
    ],
    |node, now| {
        let mut status = match condition(node, "Ready") {
            "" => "Unknown".to_owned(),
            "True" => "Ready".into(),
            _ => "NotReady".into(),
        };
        if node["spec"]["unschedulable"] == true {
            status += ",SchedulingDisabled";
        }
        let address = |kind: &str| {
            let found = items(node, "/status/addresses").iter().find(|address| address["type"] == kind);
            Value::from(found.map_or("<none>", |address| text(address, "/address")))
        };
        vec![
            name(node),
            status.into(),
            roles(node).into(),
            age(node, now),
            text(node, "/status/nodeInfo/kubeletVersion").into(),
            address("InternalIP"),
            address("ExternalIP"),
            text_or(node, "/status/nodeInfo/osImage", "<unknown>"),
            text_or(node, "/status/nodeInfo/kernelVersion", "<unknown>"),
            text_or(node, "/status/nodeInfo/containerRuntimeVersion", "<unknown>"),
        ]
    },
);

/// Roles are labels: `node-role.kubernetes.io/ROLE`, or `kubernetes.io/role: ROLE`.
fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

static NAMESPACES: Layout = layout(&[NAME, text_column("Status"), AGE], |namespace, now| {
    vec![name(namespace), text(namespace, "/status/phase").into(), age(namespace, now)]
});

static EVENTS: Layout = layout(
    &[
        text_column("Last Seen"),
        text_column("Type"),
        text_column("Reason"),
        text_column("Object"),
        wide_column("Subobject"),
        wide_column("Source"),
        text_column("Message"),
        wide_column("First Seen"),
        wide_column("Count"),
        Column("Name", "string", true),
    ],
    |event, now| {
        // events.k8s.io/v1 calls the same fields by other names.
        let either = |core: &str, newer: &str| match text(event, core) {
            "" => text(event, newer).to_owned(),
            text => text.to_owned(),
        };
        let moment = |pointers: &[&str]| {
            let found = pointers.iter().find(|pointer| !text(event, pointer).is_empty());
            found.map_or("<unknown>".into(), |pointer| since(event, pointer, now))
        };
        let first = moment(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
        let last = match event.get("series").filter(|series| series.is_object()) {
            Some(_) => since(event, "/series/lastObservedTime", now),
            None => match moment(&["/lastTimestamp", "/deprecatedLastTimestamp"]) {
                unknown if unknown == "<unknown>" => first.clone(),
                last => last,
            },
        };
        let count = [integer(event, "/series/count"), integer(event, "/count"), integer(event, "/deprecatedCount")];
        let regarding = if event.get("involvedObject").is_some() { &event["involvedObject"] } else { &event["regarding"] };
        let kind = text(regarding, "/kind").to_lowercase();
        let object = match text(regarding, "/name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let component = either("/source/component", "/reportingComponent");
        let component = if component.is_empty() { text(event, "/reportingController").to_owned() } else { component };
        let source = match either("/source/host", "/reportingInstance") {
            host if host.is_empty() => component,
            host => format!("{component}, {host}"),
        };
        vec![
            last.into(),
            text(event, "/type").into(),
            text(event, "/reason").into(),
            object.into(),
            text(regarding, "/fieldPath").into(),
            source.into(),
            either("/message", "/note").trim().into(),
            first.into(),
            count.into_iter().find(|count| *count > 0).unwrap_or(1).into(),
            name(event),
        ]
    },
);

static CONFIG_MAPS: Layout = layout(&[NAME, text_column("Data"), AGE], |map, now| {
    vec![name(map), (size(map, "/data") + size(map, "/binaryData")).into(), age(map, now)]
});

static SECRETS: Layout = layout(&[NAME, text_column("Type"), text_column("Data"), AGE], |secret, now| {
    vec![name(secret), text(secret, "/type").into(), size(secret, "/data").into(), age(secret, now)]
});

static SERVICE_ACCOUNTS: Layout =
    layout(&[NAME, text_column("Secrets"), AGE], |account, now| vec![name(account), size(account, "/secrets").into(), age(account, now)]);

static RESOURCE_QUOTAS: Layout = layout(&[NAME, text_column("Request"), text_column("Limit"), AGE], |quota, now| {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in quota.pointer("/status/hard").and_then(Value::as_object).into_iter().flatten() {
        let used = scalar(quota["status"]["used"].get(resource), "0");
        let shown = format!("{resource}: {used}/{}", scalar(Some(hard), "0"));
        if resource.starts_with("limits.") { &mut limits } else { &mut requests }.push(shown);
    }
    vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
});

static COMPONENT_STATUSES: Layout = layout(&[NAME, text_column("Status"), text_column("Message"), text_column("Error")], |component, _| {
    let healthy = items(component, "/conditions").iter().find(|condition| condition["type"] == "Healthy");
    let null = Value::Null;
    let healthy = healthy.unwrap_or(&null);
    let status = match text(healthy, "/status") {
        "True" => "Healthy",
        "" => "Unknown",
        _ => "Unhealthy",
    };
    vec![name(component), status.into(), text(healthy, "/message").into(), text(healthy, "/error").into()]
});

static LEASES: Layout = layout(&[NAME, text_column("Holder"), AGE], |lease, now| {
    vec![name(lease), text(lease, "/spec/holderIdentity").into(), age(lease, now)]
});

static LEASE_CANDIDATES: Layout =
    layout(&[NAME, text_column("LeaseName"), text_column("BinaryVersion"), text_column("EmulationVersion"), AGE], |candidate, now| {
        let field = |pointer| Value::from(text(candidate, pointer));
        vec![name(candidate), field("/spec/leaseName"), field("/spec/binaryVersion"), field("/spec/emulationVersion"), age(candidate, now)]
    });

static PRIORITY_CLASSES: Layout = layout(
    &[NAME, number_column("Value"), Column("Global-Default", "boolean", false), AGE, text_column("PreemptionPolicy")],
    |class, now| {
        vec![
            name(class),
            number(class, "/value"),
            boolean(class, "/globalDefault", false),
            age(class, now),
            text(class, "/preemptionPolicy").into(),
        ]
    },
);

static RUNTIME_CLASSES: Layout =
    layout(&[NAME, text_column("Handler"), AGE], |class, now| vec![name(class), text(class, "/handler").into(), age(class, now)]);

static API_SERVICES: Layout = layout(&[NAME, text_column("Service"), text_column("Available"), AGE], |service, now| {
    let by = match service.pointer("/spec/service") {
        Some(by) if by.is_object() => format!("{}/{}", text(by, "/namespace"), text(by, "/name")),
        _ => "Local".into(),
    };
    let available = items(service, "/status/conditions").iter().find(|condition| condition["type"] == "Available");
    let available = available.map_or("Unknown".into(), |condition| match (text(condition, "/status"), text(condition, "/reason")) {
        ("True", _) => "True".to_owned(),
        (status, reason) => format!("{status} ({reason})"),
    });
    vec![name(service), by.into(), available.into(), age(service, now)]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_show_readiness_and_roles() {
        let node = json!({"metadata": {"name": "board-1", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        let cells = (NODES.cells)(&node, Timestamp::now());
        assert_eq!(cells[..3], ["board-1", "Ready,SchedulingDisabled", "control-plane,edge"].map(Value::from));
        assert_eq!(cells[4..8], ["v1.36.0", "192.0.2.1", "<none>", "<unknown>"].map(Value::from));
    }

    #[test]
    fn events_of_both_groups_look_the_same() {
        let now = Timestamp::parse("2026-01-01T00:05:00Z").unwrap();
        let core = json!({"type": "Normal", "reason": "Pulled", "involvedObject": {"kind": "Pod", "name": "web"}, "message": "done\n",
            "lastTimestamp": "2026-01-01T00:04:30Z", "count": 3});
        assert_eq!((EVENTS.cells)(&core, now)[..4], ["30s", "Normal", "Pulled", "pod/web"].map(Value::from));
        let newer = json!({"type": "Normal", "reason": "Pulled", "regarding": {"kind": "Pod", "name": "web"}, "note": "done",
            "eventTime": "2026-01-01T00:04:30.000000Z", "reportingController": "agent"});
        let cells = (EVENTS.cells)(&newer, now);
        assert_eq!((&cells[0], &cells[5], &cells[6], &cells[8]), (&json!("30s"), &json!("agent"), &json!("done"), &json!(1)));
    }
}
