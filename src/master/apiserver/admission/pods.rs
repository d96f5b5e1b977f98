//! Pods at creation: their service account with its token, tolerations, priority, runtime class, and the status they begin with.
//! Upstream's plugins ServiceAccount, DefaultTolerationSeconds, Priority, RuntimeClass, and the pod strategy.

use serde_json::{Value, json};

use crate::api::quantity::Quantity;
use crate::api::status::Status;
use crate::api::{meta, schema};
use crate::base::id;
use crate::master::store::Objects;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and a little, so that a kubelet that renews at 80 % does so before the hour is over.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod stays on a node that is not ready.
const TOLERATION_SECONDS: i64 = 300;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub fn admit(objects: &Objects, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        // Validation will say so.
        return Ok(());
    }
    if meta::annotation(pod, MIRROR).is_none() {
        service_account(objects, pod)?;
    }
    tolerate_sick_nodes(pod);
    priority(objects, pod)?;
    runtime_class(objects, pod)?;
    pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    Ok(())
}

fn forbidden(pod: &Value, why: String) -> Status {
    Status::forbidden("", "pods", meta::name(pod), why)
}

fn service_account(objects: &Objects, pod: &mut Value) -> Result<(), Status> {
    let spec = &pod["spec"];
    let given =
        [&spec["serviceAccountName"], &spec["serviceAccount"]].into_iter().find_map(|name| name.as_str().filter(|name| !name.is_empty()));
    let name = given.unwrap_or("default").to_owned();
    let namespace = meta::namespace(pod);
    let accounts = schema::resource("", "v1", "serviceaccounts").ok_or_else(Status::no_such_resource)?;
    let account = match objects.get(accounts, namespace, &name) {
        Ok(account) => account.value(),
        // A new namespace's default account is made a moment after it; a pod that comes first is not refused for that.
        Err(_) if name == "default" => Value::Null,
        Err(missing) => return Err(forbidden(pod, format!("error looking up service account {namespace}/{name}: {}", missing.message))),
    };
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty())
    {
        pod["spec"]["imagePullSecrets"] = secrets.clone().into();
    }
    let mount = pod["spec"]["automountServiceAccountToken"].as_bool().or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true);
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.into();
    if mount {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let volumes = pod["spec"]["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let existing = volumes.iter().filter_map(|volume| volume["name"].as_str()).find(|name| name.starts_with(TOKEN_VOLUME_PREFIX));
    let (volume, exists) = match existing {
        Some(name) => (name.to_owned(), true),
        None => (format!("{TOKEN_VOLUME_PREFIX}{}", id::suffix()), false),
    };
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| container.is_object()) {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            let mount = json!({"mountPath": TOKEN_PATH, "name": volume, "readOnly": true});
            container["volumeMounts"] = mounts.into_iter().chain([mount]).collect();
            mounted = true;
        }
    }
    if mounted && !exists {
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]);
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let token = json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": sources}});
        pod["spec"]["volumes"] = volumes.into_iter().chain([token]).collect();
    }
}

fn tolerate_sick_nodes(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let tolerated = tolerations.iter().any(|toleration| {
            ["", key].contains(&&*text(&toleration["key"])) && ["", "NoExecute"].contains(&&*text(&toleration["effect"]))
        });
        if !tolerated {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
}

fn priority(objects: &Objects, pod: &mut Value) -> Result<(), Status> {
    let classes = schema::resource("scheduling.k8s.io", "v1", "priorityclasses").ok_or_else(Status::no_such_resource)?;
    let class = match pod["spec"]["priorityClassName"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => {
            let class = objects.get(classes, "", name);
            Some(class.map_err(|_| forbidden(pod, format!("no PriorityClass with name {name} was found")))?.value())
        }
        None => {
            let all = objects.list(classes, None).0.into_iter().map(|class| class.value());
            all.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
        }
    };
    let class = class.unwrap_or_else(|| json!({"value": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    let computed = class["value"].as_i64().unwrap_or_default();
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != computed) {
        return Err(forbidden(
            pod,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed \
                 {computed} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(name) = class["metadata"]["name"].as_str() {
        pod["spec"]["priorityClassName"] = name.into();
    }
    pod["spec"]["priority"] = computed.into();
    let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

fn runtime_class(objects: &Objects, pod: &mut Value) -> Result<(), Status> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().filter(|name| !name.is_empty()) else { return Ok(()) };
    let classes = schema::resource("node.k8s.io", "v1", "runtimeclasses").ok_or_else(Status::no_such_resource)?;
    let missing = |_| forbidden(pod, format!("pod rejected: RuntimeClass {name:?} not found"));
    let class = objects.get(classes, "", name).map_err(missing)?.value();
    if class["overhead"]["podFixed"].is_object() {
        pod["spec"]["overhead"] = class["overhead"]["podFixed"].clone();
    }
    let chosen = class["scheduling"]["nodeSelector"].as_object().cloned().unwrap_or_default();
    for (key, value) in chosen {
        let own = pod["spec"]["nodeSelector"].get(&key);
        if own.is_some_and(|own| *own != value) {
            return Err(forbidden(pod, format!("pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}]")));
        }
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][&key] = value;
    }
    if let Some(more) = class["scheduling"]["tolerations"].as_array() {
        let tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        pod["spec"]["tolerations"] = tolerations.into_iter().chain(more.iter().cloned()).collect();
    }
    Ok(())
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>: from requests and limits of cpu and memory of all containers.
fn qos_class(pod: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for container in ["initContainers", "containers"].iter().flat_map(|field| pod["spec"][field].as_array().into_iter().flatten()) {
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| {
                let text = container["resources"][kind][resource].as_str()?;
                Quantity::parse(text).ok().filter(|quantity| quantity.milli() > 0)
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_token_once() {
        let mut pod =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}]}]}});
        mount_token(&mut pod);
        let name = pod["spec"]["volumes"][0]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with(TOKEN_VOLUME_PREFIX));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"], json!([{"name": name, "mountPath": TOKEN_PATH, "readOnly": true}]));
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let before = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, before);
    }

    #[test]
    fn tolerations_are_added_only_where_none_is() {
        let check = |tolerations: Value, expected: usize| {
            let mut pod = json!({"spec": {"tolerations": tolerations}});
            tolerate_sick_nodes(&mut pod);
            assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), expected, "{pod}");
        };
        check(json!(null), 2);
        check(json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]), 2);
        check(json!([{"operator": "Exists"}]), 1);
        check(json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}]), 3);
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let check = |resources: Value, expected: &str| {
            assert_eq!(qos_class(&json!({"spec": {"containers": [{"resources": resources}]}})), expected, "{resources}");
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}), "Guaranteed");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Gi"}}), "Burstable");
    }
}
