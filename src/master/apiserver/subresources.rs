//! The parts of an object with an address of their own: status, scale, binding, eviction, ephemeralcontainers, resize, finalize, approval.
//! Each changes what it is for and nothing else.

use hyper::Response;
use serde_json::{Value, json};

use super::crud::{Call, delete_options};
use super::routes::Verb;
use super::{content, respond, tables};
use crate::api::selector::Labels;
use crate::api::status::{Cause, Status};
use crate::api::{decode, meta, patch, schema};
use crate::base::time::Timestamp;
use crate::master::store::Object;
use crate::master::store::objects::{Deleted, Part};
use crate::wire::body::Body;

/// Answers a request for a subresource that is part of a stored object.
///
/// # Errors
/// Whatever the object's own verbs give; 405 for a verb that the subresource does not have.
pub async fn answer(call: &Call<'_>, verb: Verb, body: &[u8]) -> Result<Response<Body>, Status> {
    match (call.subresource, verb) {
        ("scale", Verb::Get) => {
            let object = call.objects.get(call.resource, call.namespace, call.name)?;
            Ok(call.answer(200, &scale_of(call, &object)?))
        }
        ("scale", Verb::Update | Verb::Patch) => scale(call, verb, body).await,
        ("binding", Verb::Create) => bind(call, call.name, body).await,
        ("eviction", Verb::Create) => evict(call, body).await,
        (_, Verb::Get) => call.get(),
        ("status", Verb::Update) => call.update(body).await,
        ("status", Verb::Patch) => call.patch(body).await,
        ("finalize" | "approval" | "ephemeralcontainers" | "resize", Verb::Update | Verb::Patch) => partial(call, verb, body).await,
        _ => Err(Status::method_not_allowed(verb.as_str())),
    }
}

/// Changes only the fields that the subresource is for; the rest of what was sent is ignored.
async fn partial(call: &Call<'_>, verb: Verb, body: &[u8]) -> Result<Response<Body>, Status> {
    let kind = call.resource.schema();
    let mut warnings = Vec::new();
    let sent = match verb {
        Verb::Update => content::object(call.headers, body, kind, call.query.field_validation, &mut warnings)?,
        _ => decode::json(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error:#}")))?.0,
    };
    let media_type = content::media_type(call.headers);
    let change = |live: &Value| {
        let mut desired = match (verb, media_type) {
            (Verb::Update, _) => Ok(sent.clone()),
            (_, "application/json-patch+json") => patch::json(live, &sent),
            (_, "application/merge-patch+json") => patch::merge(live, &sent),
            _ => patch::strategic(kind, live, &sent),
        }
        .map_err(|error| Status::new(422, "Invalid", format!("{error:#}")))?;
        content::check(&mut desired, Vec::new(), kind, call.query.field_validation, &mut Vec::new())?;
        let mut value = live.clone();
        if let Some(version) = desired["metadata"].get("resourceVersion") {
            value["metadata"]["resourceVersion"] = version.clone();
        }
        match call.subresource {
            "finalize" => value["spec"]["finalizers"] = desired["spec"]["finalizers"].take(),
            "approval" => {
                if let conditions @ Value::Array(_) = desired["status"]["conditions"].take() {
                    value["status"]["conditions"] = conditions;
                }
            }
            "ephemeralcontainers" => {
                value["spec"]["ephemeralContainers"] = ephemeral_containers(live, desired["spec"]["ephemeralContainers"].take())?
            }
            _ => resize(&mut value, &desired),
        }
        Ok(call.track(Some(live), value))
    };
    let object = call.objects.update(call.resource, call.namespace, call.name, Part::Subresource, call.query.dry_run, change).await?;
    let mut response = call.answer(200, &call.stored(&object));
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// They can only be added.
fn ephemeral_containers(live: &Value, desired: Value) -> Result<Value, Status> {
    let kept = live["spec"]["ephemeralContainers"].as_array().map_or(&[][..], Vec::as_slice);
    let wanted = desired.as_array().map_or(&[][..], Vec::as_slice);
    let missing = kept.iter().find(|container| !wanted.iter().any(|other| other["name"] == container["name"]));
    match missing {
        None => Ok(desired),
        Some(container) => {
            let message = format!("Forbidden: existing ephemeral containers {} may not be removed", container["name"]);
            let cause = Cause { reason: "FieldValueForbidden".into(), message, field: "spec.ephemeralContainers".into() };
            Err(Status::invalid("", "Pod", meta::name(live), vec![cause]))
        }
    }
}

fn resize(pod: &mut Value, desired: &Value) {
    for field in ["initContainers", "containers"] {
        let wanted = desired["spec"][field].as_array().map_or(&[][..], Vec::as_slice);
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(other) = wanted.iter().find(|other| other["name"] == container["name"]) {
                for part in ["resources", "resizePolicy"] {
                    if let Some(content) = other.get(part) {
                        container[part] = content.clone();
                    }
                }
            }
        }
    }
    let generation = meta::generation(pod) + 1;
    meta::set(pod, "generation", generation);
}

/// autoscaling/v1 Scale of an object with `spec.replicas`.
fn scale_of(call: &Call, object: &Object) -> Result<Value, Status> {
    let value = call.stored(object);
    let selector = &value["spec"]["selector"];
    // A replication controller has a plain map.
    let selector = match selector.get("matchLabels").or(selector.get("matchExpressions")) {
        Some(_) => tables::selector(&value, "/spec/selector"),
        None => {
            let pairs = selector.as_object().into_iter().flatten();
            pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
        }
    };
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {},
        "spec": {}, "status": {"replicas": value["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(content) = value["metadata"].get(field) {
            scale["metadata"][field] = content.clone();
        }
    }
    if let Some(replicas) = value["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    Ok(scale)
}

async fn scale(call: &Call<'_>, verb: Verb, body: &[u8]) -> Result<Response<Body>, Status> {
    let kind = content::known_kind("autoscaling", "v1", "Scale")?;
    let mut warnings = Vec::new();
    let sent = match verb {
        Verb::Update => content::object(call.headers, body, kind, call.query.field_validation, &mut warnings)?,
        _ => decode::yaml(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error:#}")))?.0,
    };
    let media_type = content::media_type(call.headers);
    let change = |live: &Value| {
        let before = scale_value(call, live)?;
        let desired = match (verb, media_type) {
            (Verb::Update, _) => Ok(sent.clone()),
            (_, "application/json-patch+json") => patch::json(&before, &sent),
            _ => patch::merge(&before, &sent),
        }
        .map_err(|error| Status::new(422, "Invalid", format!("{error:#}")))?;
        let replicas = desired["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let message = format!("Invalid value: {replicas}: must be greater than or equal to 0");
            let cause = Cause { reason: "FieldValueInvalid".into(), message, field: "spec.replicas".into() };
            return Err(Status::invalid("autoscaling", "Scale", call.name, vec![cause]));
        }
        let mut value = live.clone();
        for field in ["resourceVersion", "uid"] {
            if let Some(given) = desired["metadata"].get(field) {
                value["metadata"][field] = given.clone();
            }
        }
        value["spec"]["replicas"] = replicas.into();
        Ok(call.track(Some(live), value))
    };
    // The replicas are part of the spec: this is a change like any other, and counts as a generation.
    let object = call.objects.update(call.resource, call.namespace, call.name, Part::Whole, call.query.dry_run, change).await?;
    let mut response = call.answer(200, &scale_of(call, &object)?);
    respond::warn(&mut response, &warnings);
    Ok(response)
}

fn scale_value(call: &Call, live: &Value) -> Result<Value, Status> {
    let replicas = live["spec"]["replicas"].as_i64().unwrap_or(0);
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "spec": {"replicas": replicas}, "status": {},
        "metadata": {
            "name": call.name, "namespace": call.namespace,
            "resourceVersion": live["metadata"]["resourceVersion"], "uid": live["metadata"]["uid"],
        },
    }))
}

/// Gives a pod to a node; `pods/binding` and the older `bindings`.
///
/// # Errors
/// 409 if it has one or is going.
pub async fn bind(call: &Call<'_>, pod: &str, body: &[u8]) -> Result<Response<Body>, Status> {
    let kind = content::known_kind("", "v1", "Binding")?;
    let binding = content::object(call.headers, body, kind, call.query.field_validation, &mut Vec::new())?;
    let pod = if pod.is_empty() { meta::name(&binding) } else { pod };
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() || !["", "Node"].contains(&binding["target"]["kind"].as_str().unwrap_or_default()) {
        let cause = Cause { reason: "FieldValueRequired".into(), message: "Required value".into(), field: "target.name".into() };
        return Err(Status::invalid("", "Binding", pod, vec![cause]));
    }
    let pods = schema::resource("", "v1", "pods").ok_or_else(Status::no_such_resource)?;
    let assign = |live: &Value| {
        let conflict = |why: String| Err(Status::conflict("", "pods/binding", pod, why));
        if meta::is_deleting(live) {
            return conflict(format!("pod {pod} is being deleted, cannot be assigned to a host"));
        }
        if let Some(other) = live["spec"]["nodeName"].as_str().filter(|other| !other.is_empty()) {
            return conflict(format!("pod {pod} is already assigned to node {other:?}"));
        }
        let mut value = live.clone();
        value["spec"]["nodeName"] = node.into();
        let uid = meta::uid(&binding);
        if !uid.is_empty() {
            meta::set(&mut value, "uid", uid);
        }
        for (key, annotation) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            meta::set_annotation(&mut value, key, annotation.as_str().unwrap_or_default());
        }
        let condition =
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": Timestamp::now().to_string()});
        let others = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let others = others.into_iter().filter(|condition| condition["type"] != "PodScheduled");
        value["status"]["conditions"] = others.chain([condition]).collect();
        Ok(value)
    };
    call.objects.update(pods, call.namespace, pod, Part::Subresource, call.query.dry_run, assign).await?;
    Ok(respond::json(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})))
}

/// Deletes a pod unless that breaks a disruption budget. <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>
async fn evict(call: &Call<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
    let kind = content::known_kind("policy", "v1", "Eviction")?;
    let eviction = content::object(call.headers, body, kind, call.query.field_validation, &mut Vec::new())?;
    let options = delete_options(call.query, &eviction["deleteOptions"])?;
    let pod = call.objects.get(call.resource, call.namespace, call.name)?;
    let value = pod.value();
    let ended = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if !ended && !meta::is_deleting(&value) {
        check_budgets(call, &pod)?;
    }
    match call.objects.delete(call.resource, call.namespace, call.name, &options).await? {
        Deleted::Gone(_) | Deleted::Pending(_) => {
            Ok(respond::json(201, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})))
        }
    }
}

fn check_budgets(call: &Call, pod: &Object) -> Result<(), Status> {
    let Some(budgets) = schema::resource("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    for budget in call.objects.list(budgets, Some(call.namespace)).0 {
        let value = budget.value();
        let selects = Labels::from_selector(&value["spec"]["selector"]).is_ok_and(|labels| labels.matches_map(&pod.labels));
        let status = &value["status"];
        if !selects || status["disruptionsAllowed"].as_i64().unwrap_or(0) > 0 {
            continue;
        }
        let name = &budget.key.name;
        let healthy = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status["desiredHealthy"].as_i64().unwrap_or(0),
            status["currentHealthy"].as_i64().unwrap_or(0)
        );
        let refused = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
        return Err(refused.with_cause("DisruptionBudget", healthy, ""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_containers_are_only_added() {
        let live = json!({"metadata": {"name": "web"}, "spec": {"ephemeralContainers": [{"name": "a"}]}});
        assert!(ephemeral_containers(&live, json!([{"name": "a"}, {"name": "b"}])).is_ok());
        assert_eq!(ephemeral_containers(&live, json!([{"name": "b"}])).unwrap_err().code, 422);
    }

    #[test]
    fn a_resize_changes_resources_only() {
        let mut pod = json!({"metadata": {"generation": 1}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
        resize(&mut pod, &json!({"spec": {"containers": [{"name": "a", "image": "y", "resources": {"limits": {"cpu": "1"}}}]}}));
        assert_eq!(pod["spec"]["containers"], json!([{"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}}}]));
        assert_eq!(pod["metadata"]["generation"], 2);
    }
}
