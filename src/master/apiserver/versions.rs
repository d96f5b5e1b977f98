//! Objects travel in the version of the path and are kept in one: what stands between. Most versions share their fields; events and
//! autoscalers do not. Pure, and there and back again is where it began.

use serde_json::{Map, Value, json};

use crate::api::meta;
use crate::api::schema::Resource;

/// Where autoscaling/v1 keeps what it has no fields for; upstream's names.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Fields of an Event in the core group and in events.k8s.io.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// A stored object as this version of its resource shows it.
pub fn of(resource: &'static Resource, stored: Value) -> Value {
    between(resource.stored_as(), resource, stored)
}

/// An object of this version as it is stored.
pub fn stored(resource: &'static Resource, object: Value) -> Value {
    between(resource, resource.stored_as(), object)
}

fn between(from: &'static Resource, to: &'static Resource, mut object: Value) -> Value {
    match (from.plural, from.group, to.group, from.version, to.version) {
        ("events", "", "events.k8s.io", ..) => rename(&mut object, EVENT_FIELDS),
        ("events", "events.k8s.io", "", ..) => rename(&mut object, EVENT_FIELDS.map(|(core, newer)| (newer, core))),
        ("horizontalpodautoscalers", _, _, "v2", "v1") => autoscaler_v1(&mut object),
        ("horizontalpodautoscalers", _, _, "v1", "v2") => autoscaler_v2(&mut object),
        _ => (),
    }
    object["apiVersion"] = to.api_version().into();
    object["kind"] = to.kind.into();
    object
}

fn rename<const N: usize>(object: &mut Value, fields: [(&str, &str); N]) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(content) = map.remove(from) {
            map.insert(to.into(), content);
        }
    }
}

fn is_cpu(metric: &Value, place: &str) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu" && metric["resource"][place]["averageUtilization"].is_i64()
}

fn autoscaler_v1(object: &mut Value) {
    let mut annotations: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let target = split(spec, "metrics", "target");
        spec.extend(target.0.map(|percent| ("targetCPUUtilizationPercentage".to_owned(), percent)));
        annotations.extend(target.1.map(|rest| (METRICS, rest)));
        annotations.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let current = split(status, "currentMetrics", "current");
        status.extend(current.0.map(|percent| ("currentCPUUtilizationPercentage".to_owned(), percent)));
        annotations.extend(current.1.map(|rest| (CURRENT_METRICS, rest)));
        annotations.extend(status.remove("conditions").map(|conditions| (CONDITIONS, conditions)));
    }
    for (key, content) in annotations {
        meta::set_annotation(object, key, &content.to_string());
    }
}

/// Takes a list of metrics out: the percentage of the first that is about CPU, and the others.
fn split(section: &mut Map<String, Value>, field: &str, place: &str) -> (Option<Value>, Option<Value>) {
    let Some(Value::Array(mut metrics)) = section.remove(field) else { return (None, None) };
    let cpu = metrics.iter().position(|metric| is_cpu(metric, place)).map(|index| metrics.remove(index));
    let percent = cpu.map(|metric| metric["resource"][place]["averageUtilization"].clone());
    (percent, if metrics.is_empty() { None } else { Some(metrics.into()) })
}

fn autoscaler_v2(object: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let kept = object.pointer_mut("/metadata/annotations")?.as_object_mut()?.remove(key)?;
        serde_json::from_str(kept.as_str()?).ok()
    };
    let (metrics, current, conditions, behavior) = (take(METRICS), take(CURRENT_METRICS), take(CONDITIONS), take(BEHAVIOR));
    if object["metadata"]["annotations"].as_object().is_some_and(Map::is_empty) {
        meta::metadata_mut(object).remove("annotations");
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let cpu = spec.remove("targetCPUUtilizationPercentage").map(|percent| {
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
        });
        join(spec, "metrics", cpu, metrics);
        spec.extend(behavior.map(|behavior| ("behavior".to_owned(), behavior)));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let cpu = status.remove("currentCPUUtilizationPercentage");
        let cpu = cpu.map(|percent| json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
        join(status, "currentMetrics", cpu, current);
        status.extend(conditions.map(|conditions| ("conditions".to_owned(), conditions)));
    }
}

fn join(section: &mut Map<String, Value>, field: &str, first: Option<Value>, rest: Option<Value>) {
    let rest = match rest {
        Some(Value::Array(rest)) => rest,
        _ => Vec::new(),
    };
    let all: Vec<Value> = first.into_iter().chain(rest).collect();
    if !all.is_empty() {
        section.insert(field.into(), all.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema;

    fn there_and_back(group: &str, version: &str, plural: &str, object: Value) -> Value {
        let resource = schema::resource(group, version, plural).unwrap();
        let shown = of(resource, object.clone());
        assert_eq!(stored(resource, shown.clone()), object);
        shown
    }

    #[test]
    fn events_have_other_names_in_their_own_group() {
        let event =
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "web"}, "message": "m", "count": 2, "reason": "R"});
        let shown = there_and_back("events.k8s.io", "v1", "events", event);
        assert_eq!(shown["apiVersion"], "events.k8s.io/v1");
        assert_eq!((&shown["regarding"]["name"], &shown["note"], &shown["deprecatedCount"]), (&json!("web"), &json!("m"), &json!(2)));
    }

    #[test]
    fn autoscalers_of_both_versions_say_the_same() {
        let memory =
            json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 70}}});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"maxReplicas": 5, "metrics": [cpu, memory], "behavior": {"scaleUp": {}}}});
        let shown = there_and_back("autoscaling", "v1", "horizontalpodautoscalers", autoscaler);
        assert_eq!((&shown["spec"]["targetCPUUtilizationPercentage"], shown["spec"].get("metrics")), (&json!(80), None));
        assert!(meta::annotation(&shown, METRICS).unwrap().contains("memory"));
    }
}
