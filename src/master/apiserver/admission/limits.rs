//! LimitRange: defaults of what containers request, and bounds on pods, containers and claims.
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use serde_json::{Map, Value, json};

use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::master::store::Objects;

/// The limits of all LimitRanges in the namespace of an object.
fn limits_for(objects: &Objects, object: &Value) -> Vec<Value> {
    let Some(ranges) = schema::resource("", "v1", "limitranges") else { return Vec::new() };
    let ranges = objects.list(ranges, Some(meta::namespace(object))).0;
    ranges.iter().flat_map(|range| range.value()["spec"]["limits"].as_array().cloned().unwrap_or_default()).collect()
}

/// Fills in what containers of a new pod leave out.
pub fn apply(objects: &Objects, pod: &mut Value) {
    for limit in limits_for(objects, pod) {
        fill(&limit, pod);
    }
}

fn fill(limit: &Value, pod: &mut Value) {
    if limit["type"] != "Container" {
        return;
    }
    for field in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|container| container.is_object()) {
            for (kind, defaults) in [("limits", &limit["default"]), ("requests", &limit["defaultRequest"])] {
                for (resource, amount) in defaults.as_object().into_iter().flatten() {
                    if container["resources"][kind].get(resource).is_some() {
                        continue;
                    }
                    for part in [&["resources"][..], &["resources", kind][..]] {
                        let place = part.iter().fold(&mut *container, |place, key| &mut place[*key]);
                        if !place.is_object() {
                            *place = json!({});
                        }
                    }
                    container["resources"][kind][resource] = amount.clone();
                }
            }
        }
    }
}

/// # Errors
/// 403 if a new pod or claim is outside of what a LimitRange allows.
pub fn check(objects: &Objects, resource: &Resource, object: &Value, live: Option<&Value>) -> Result<(), Status> {
    let claim = match (resource.group, resource.plural) {
        ("", "pods") => false,
        ("", "persistentvolumeclaims") => true,
        _ => return Ok(()),
    };
    if live.is_some() {
        return Ok(());
    }
    let mut problems = Vec::new();
    for limit in limits_for(objects, object) {
        match (limit["type"].as_str(), claim) {
            (Some("PersistentVolumeClaim"), true) => compare(&limit, &object["spec"]["resources"], "PersistentVolumeClaim", &mut problems),
            (Some("Container"), false) => {
                for container in
                    ["initContainers", "containers"].iter().flat_map(|field| object["spec"][field].as_array().into_iter().flatten())
                {
                    compare(&limit, &container["resources"], "Container", &mut problems);
                }
            }
            (Some("Pod"), false) => compare(&limit, &pod_resources(object), "Pod", &mut problems),
            _ => (),
        }
    }
    match &problems[..] {
        [] => Ok(()),
        [one] => Err(Status::forbidden(resource.group, resource.plural, meta::name(object), one)),
        all => Err(Status::forbidden(resource.group, resource.plural, meta::name(object), format!("[{}]", all.join(", ")))),
    }
}

/// The sum over the containers of a pod.
pub fn pod_resources(pod: &Value) -> Value {
    let mut sums = json!({"requests": {}, "limits": {}});
    for kind in ["requests", "limits"] {
        let mut sum: Map<String, Value> = Map::new();
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            for (resource, amount) in container["resources"][kind].as_object().into_iter().flatten() {
                let total = quantity(sum.get(resource)).unwrap_or(Quantity::ZERO).add(quantity(Some(amount)).unwrap_or(Quantity::ZERO));
                sum.insert(resource.clone(), total.to_string().into());
            }
        }
        // Init containers run before the others, one at a time: the largest of them counts if it is larger than all others together.
        for container in pod["spec"]["initContainers"].as_array().into_iter().flatten() {
            for (resource, amount) in container["resources"][kind].as_object().into_iter().flatten() {
                if quantity(Some(amount)) > quantity(sum.get(resource)) {
                    sum.insert(resource.clone(), amount.clone());
                }
            }
        }
        sums[kind] = sum.into();
    }
    sums
}

pub fn quantity(value: Option<&Value>) -> Option<Quantity> {
    match value? {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn compare(limit: &Value, resources: &Value, kind: &str, problems: &mut Vec<String>) {
    let each = |bound: &str| -> Vec<(String, Quantity)> {
        let bounds = limit[bound].as_object().into_iter().flatten();
        bounds.filter_map(|(resource, amount)| Some((resource.clone(), quantity(Some(amount))?))).collect()
    };
    let amounts = |resource: &str| ["requests", "limits"].map(|kind| quantity(resources[kind].get(resource)));
    for (resource, min) in each("min") {
        match amounts(&resource) {
            [None, _] => problems.push(format!("minimum {resource} usage per {kind} is {min}.  No request is specified")),
            [Some(request), _] if request < min => {
                problems.push(format!("minimum {resource} usage per {kind} is {min}, but request is {request}"));
            }
            [_, Some(limit)] if limit < min => problems.push(format!("minimum {resource} usage per {kind} is {min}, but limit is {limit}")),
            _ => (),
        }
    }
    for (resource, max) in each("max") {
        match amounts(&resource) {
            [request, None] if kind == "PersistentVolumeClaim" => {
                if let Some(request) = request.filter(|request| *request > max) {
                    problems.push(format!("maximum {resource} usage per {kind} is {max}, but request is {request}"));
                }
            }
            [_, None] => problems.push(format!("maximum {resource} usage per {kind} is {max}.  No limit is specified")),
            [_, Some(limit)] if limit > max => problems.push(format!("maximum {resource} usage per {kind} is {max}, but limit is {limit}")),
            [Some(request), _] if request > max => {
                problems.push(format!("maximum {resource} usage per {kind} is {max}, but request is {request}"));
            }
            _ => (),
        }
    }
    for (resource, ratio) in each("maxLimitRequestRatio") {
        if let [Some(request), Some(limit)] = amounts(&resource)
            && !request.is_zero()
        {
            let actual = limit.milli() as f64 / request.milli() as f64;
            if actual > ratio.milli() as f64 / 1000.0 {
                problems.push(format!("{resource} max limit to request ratio per {kind} is {ratio}, but provided ratio is {actual:.6}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_only_what_is_left_out() {
        let limit = json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}}}]}});
        fill(&limit, &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
            ])
        );
    }

    #[test]
    fn bounds_are_told_in_upstreams_words() {
        let check = |limit: Value, resources: Value, expected: &[&str]| {
            let mut problems = Vec::new();
            compare(&limit, &resources, "Container", &mut problems);
            assert_eq!(problems, expected);
        };
        let max = json!({"max": {"cpu": "1"}});
        check(max.clone(), json!({"limits": {"cpu": "2"}}), &["maximum cpu usage per Container is 1, but limit is 2"]);
        check(max.clone(), json!({}), &["maximum cpu usage per Container is 1.  No limit is specified"]);
        check(max, json!({"limits": {"cpu": "1"}}), &[]);
        check(
            json!({"min": {"cpu": "1"}}),
            json!({"requests": {"cpu": "500m"}}),
            &["minimum cpu usage per Container is 1, but request is 500m"],
        );
    }
}
