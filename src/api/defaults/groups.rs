//! Defaults of all groups but core: workloads, autoscaling, networking, storage, admission, RBAC and the rest.

use serde_json::{Value, json};

use super::{Object, made, object, objects, set, text};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn message(package: &str, name: &str, map: &mut Object) {
    let group = package.strip_prefix("io.k8s.api.").unwrap_or(package);
    match (group, name) {
        ("apps.v1", "Deployment") => deployment(map),
        ("apps.v1", "ReplicaSet") => spec(map, |spec| set(spec, "replicas", 1)),
        ("apps.v1", "DaemonSet") => spec(map, daemon_set),
        ("apps.v1", "StatefulSet") => spec(map, stateful_set),
        ("batch.v1", "Job") => job(map),
        ("batch.v1", "CronJob") => spec(map, |spec| {
            set(spec, "concurrencyPolicy", "Allow");
            set(spec, "suspend", false);
            set(spec, "successfulJobsHistoryLimit", 3);
            set(spec, "failedJobsHistoryLimit", 1);
        }),
        ("batch.v1", "PodFailurePolicyOnPodConditionsPattern") if text(map, "status").is_empty() => {
            map.insert("status".into(), "True".into());
        }
        ("autoscaling.v1", "HorizontalPodAutoscaler") => spec(map, |spec| set(spec, "minReplicas", 1)),
        ("autoscaling.v2", "HorizontalPodAutoscaler") => spec(map, autoscaler),
        ("networking.v1", "NetworkPolicyPort") => set(map, "protocol", "TCP"),
        ("networking.v1", "NetworkPolicy") => spec(map, |spec| {
            let egress = spec.contains_key("egress");
            set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }),
        ("networking.v1", "IngressClass") => spec(map, |spec| {
            if let Some(parameters) = object(spec, "parameters") {
                set(parameters, "scope", "Cluster");
            }
        }),
        ("discovery.v1", "EndpointPort") => {
            set(map, "name", "");
            set(map, "protocol", "TCP");
        }
        ("rbac.v1", "RoleBinding" | "ClusterRoleBinding") => {
            if let Some(role) = made(map, "roleRef")
                && text(role, "apiGroup").is_empty()
            {
                role.insert("apiGroup".into(), RBAC.into());
            }
        }
        ("rbac.v1", "Subject") => {
            if matches!(text(map, "kind"), "User" | "Group") {
                set(map, "apiGroup", RBAC);
            }
        }
        ("storage.v1", "StorageClass") => {
            set(map, "reclaimPolicy", "Delete");
            set(map, "volumeBindingMode", "Immediate");
        }
        ("storage.v1", "CSIDriver") => spec(map, |spec| {
            set(spec, "attachRequired", true);
            set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            set(spec, "volumeLifecycleModes", json!(["Persistent"]));
            for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
                set(spec, key, false);
            }
        }),
        ("scheduling.v1", "PriorityClass") => set(map, "preemptionPolicy", "PreemptLowerPriority"),
        ("authentication.v1", "TokenRequestSpec") => set(map, "expirationSeconds", 3600),
        ("admissionregistration.v1", _) => admission(name, map),
        ("resource.v1", "ExactDeviceRequest" | "DeviceSubRequest") => {
            set(map, "allocationMode", "ExactCount");
            if text(map, "allocationMode") == "ExactCount" {
                set(map, "count", 1);
            }
        }
        ("resource.v1", "DeviceToleration") => set(map, "operator", "Equal"),
        ("flowcontrol.v1", "PriorityLevelConfiguration") => spec(map, priority_level),
        ("flowcontrol.v1", "FlowSchemaSpec") if map.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 => {
            map.insert("matchingPrecedence".into(), 1000.into());
        }
        _ if package.contains("apiextensions") => custom_resource(name, map),
        _ if package.contains("kube-aggregator") && name == "ServiceReference" => set(map, "port", 443),
        _ => {}
    }
}

/// Runs `fill` on the object's spec.
fn spec(map: &mut Object, fill: impl FnOnce(&mut Object)) {
    if let Some(spec) = made(map, "spec") {
        fill(spec);
    }
}

fn deployment(map: &mut Object) {
    spec(map, |spec| {
        set(spec, "replicas", 1);
        if let Some(strategy) = made(spec, "strategy") {
            set(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = made(strategy, "rollingUpdate")
            {
                set(rolling, "maxUnavailable", "25%");
                set(rolling, "maxSurge", "25%");
            }
        }
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
    });
}

fn daemon_set(spec: &mut Object) {
    if let Some(strategy) = made(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", 1);
            set(rolling, "maxSurge", 0);
        }
    }
    set(spec, "revisionHistoryLimit", 10);
}

fn stateful_set(spec: &mut Object) {
    set(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = made(spec, "updateStrategy") {
        if text(strategy, "type").is_empty() {
            strategy.insert("type".into(), "RollingUpdate".into());
            made(strategy, "rollingUpdate");
        }
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
        }
    }
    if let Some(retention) = made(spec, "persistentVolumeClaimRetentionPolicy") {
        set(retention, "whenDeleted", "Retain");
        set(retention, "whenScaled", "Retain");
    }
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
}

fn job(map: &mut Object) {
    let labels = map.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).filter(|labels| labels.is_object()).cloned();
    spec(map, |spec| {
        if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
            spec.insert("completions".into(), 1.into());
        }
        set(spec, "parallelism", 1);
        let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
        set(spec, "backoffLimit", limit);
        set(spec, "completionMode", "NonIndexed");
        set(spec, "suspend", false);
        let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        set(spec, "podReplacementPolicy", replacement);
        set(spec, "manualSelector", false);
    });
    if let (Some(labels), Some(metadata)) = (labels, made(map, "metadata")) {
        set(metadata, "labels", labels);
    }
}

fn autoscaler(spec: &mut Object) {
    set(spec, "minReplicas", 1);
    set(
        spec,
        "metrics",
        json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
    );
    let Some(behavior) = object(spec, "behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    if let Some(up) = made(behavior, "scaleUp") {
        set(up, "stabilizationWindowSeconds", 0);
        set(up, "selectPolicy", "Max");
        set(up, "policies", json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]));
    }
    if let Some(down) = made(behavior, "scaleDown") {
        set(down, "selectPolicy", "Max");
        set(down, "policies", json!([percent]));
    }
}

fn admission(name: &str, map: &mut Object) {
    match name {
        "ValidatingWebhook" | "MutatingWebhook" => {
            set(map, "failurePolicy", "Fail");
            set(map, "timeoutSeconds", 10);
            matches(map);
            if name == "MutatingWebhook" {
                set(map, "reinvocationPolicy", "Never");
            }
        }
        "RuleWithOperations" | "Rule" | "NamedRuleWithOperations" => set(map, "scope", "*"),
        "ServiceReference" => set(map, "port", 443),
        "ValidatingAdmissionPolicySpec" | "MutatingAdmissionPolicySpec" => set(map, "failurePolicy", "Fail"),
        "MatchResources" => matches(map),
        _ => {}
    }
}

fn matches(map: &mut Object) {
    set(map, "matchPolicy", "Equivalent");
    set(map, "namespaceSelector", json!({}));
    set(map, "objectSelector", json!({}));
}

fn priority_level(spec: &mut Object) {
    if let Some(exempt) = object(spec, "exempt") {
        set(exempt, "nominalConcurrencyShares", 0);
        set(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = object(spec, "limited") {
        set(limited, "nominalConcurrencyShares", 30);
        set(limited, "lendablePercent", 0);
        if let Some(queuing) = object(limited, "limitResponse").and_then(|response| object(response, "queuing")) {
            for (key, value) in [("queues", 64), ("queueLengthLimit", 50), ("handSize", 8)] {
                if queuing.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    queuing.insert(key.into(), value.into());
                }
            }
        }
    }
}

fn custom_resource(name: &str, map: &mut Object) {
    match name {
        "CustomResourceDefinition" => {
            let stored = object(map, "spec")
                .and_then(|spec| objects(spec, "versions").find(|version| version.get("storage") == Some(&Value::Bool(true))))
                .and_then(|version| version.get("name").cloned());
            if let (Some(stored), Some(status)) = (stored, made(map, "status"))
                && status.get("storedVersions").and_then(Value::as_array).is_none_or(Vec::is_empty)
            {
                status.insert("storedVersions".into(), json!([stored]));
            }
        }
        "CustomResourceDefinitionSpec" => {
            if let Some(names) = made(map, "names") {
                let kind = text(names, "kind").to_owned();
                if !kind.is_empty() {
                    set(names, "singular", kind.to_lowercase());
                    set(names, "listKind", format!("{kind}List"));
                }
            }
            set(map, "conversion", json!({"strategy": "None"}));
        }
        "ServiceReference" => set(map, "port", 443),
        _ => {}
    }
}
