//! ResourceQuota: what a namespace may hold in all. Usage is counted anew from the objects in the store, so nothing can drift.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>; scopes other than those of pods match nothing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::limits::{pod_resources, quantity};
use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::master::store::Objects;

type Amounts = BTreeMap<String, Quantity>;

/// Resources whose objects count as such under a name of their own.
const COUNTED: [&str; 8] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services", "serviceaccounts"];

/// Completes a quota that is written, and refuses an object that would break one.
///
/// # Errors
/// 403 in upstream's words.
pub fn check(objects: &Objects, resource: &'static Resource, object: &mut Value, live: Option<&Value>) -> Result<(), Status> {
    if resource.group.is_empty() && resource.plural == "resourcequotas" {
        if live.is_none_or(|live| live["spec"] != object["spec"]) {
            let used = used(objects, object, None);
            object["status"] = status(object, &used);
        }
        return Ok(());
    }
    if !resource.namespaced || live.is_some() || resource.volatile {
        return Ok(());
    }
    let Some(quotas) = schema::resource("", "v1", "resourcequotas") else { return Ok(()) };
    for quota in objects.list(quotas, Some(meta::namespace(object))).0 {
        let quota = quota.value();
        let wanted = cost(resource, object, &quota);
        // A pod that says nothing of what a quota bounds is the quota's affair all the same.
        let is_pod = resource.group.is_empty() && resource.plural == "pods";
        if !wanted.is_empty() || is_pod && in_scope(object, &quota) {
            fits(&quota, &wanted, &used(objects, &quota, Some(&wanted)), object, resource)?;
        }
    }
    Ok(())
}

fn hard(quota: &Value) -> Amounts {
    let hard = quota["spec"]["hard"].as_object().into_iter().flatten();
    hard.filter_map(|(name, amount)| Some((name.clone(), quantity(Some(amount))?))).collect()
}

fn status(quota: &Value, used: &Amounts) -> Value {
    let written: serde_json::Map<String, Value> =
        hard(quota).into_keys().map(|name| (name.clone(), used.get(&name).unwrap_or(&Quantity::ZERO).to_string().into())).collect();
    serde_json::json!({"hard": quota["spec"]["hard"], "used": written})
}

/// What the namespace of a quota uses of what it bounds; only of the names in `of`, if given.
fn used(objects: &Objects, quota: &Value, of: Option<&Amounts>) -> Amounts {
    let mut total = Amounts::new();
    let hard = hard(quota);
    let names: Vec<&String> = hard.keys().filter(|name| of.is_none_or(|of| of.contains_key(*name))).collect();
    let mut seen: Vec<&'static Resource> = Vec::new();
    for name in names {
        let Some(resource) = counted_by(name).filter(|resource| !seen.contains(resource)) else { continue };
        seen.push(resource);
        for object in objects.list(resource, Some(meta::namespace(quota))).0 {
            for (name, amount) in cost(resource, &object.value(), quota) {
                let sum = total.entry(name).or_insert(Quantity::ZERO);
                *sum = sum.add(amount);
            }
        }
    }
    total
}

/// The resource whose objects use up this name.
fn counted_by(name: &str) -> Option<&'static Resource> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return schema::resources().find(|resource| resource.plural == plural && resource.group == group).map(Resource::stored_as);
    }
    let plural = match name {
        "services.loadbalancers" | "services.nodeports" => "services",
        "requests.storage" => "persistentvolumeclaims",
        name if COUNTED.contains(&name) => name,
        _ => "pods",
    };
    schema::resource("", "v1", plural)
}

/// What one object uses of each name that the quota bounds.
fn cost(resource: &Resource, object: &Value, quota: &Value) -> Amounts {
    let mut all = Amounts::new();
    let one = Quantity::from_value(1);
    let is_core = resource.group.is_empty();
    let count_name = if is_core { format!("count/{}", resource.plural) } else { format!("count/{}.{}", resource.plural, resource.group) };
    all.insert(count_name, one);
    match resource.plural {
        "pods" if is_core => {
            if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) || !in_scope(object, quota) {
                return Amounts::new();
            }
            all.insert("pods".into(), one);
            let resources = pod_resources(object);
            for kind in ["requests", "limits"] {
                for (name, amount) in resources[kind].as_object().into_iter().flatten() {
                    let Some(amount) = quantity(Some(amount)) else { continue };
                    all.insert(format!("{kind}.{name}"), amount);
                    if kind == "requests" {
                        all.insert(name.clone(), amount);
                    }
                }
            }
        }
        "services" if is_core => {
            all.insert("services".into(), one);
            let kind = object["spec"]["type"].as_str();
            if kind == Some("LoadBalancer") {
                all.insert("services.loadbalancers".into(), one);
            }
            if matches!(kind, Some("NodePort" | "LoadBalancer")) {
                let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
                all.insert("services.nodeports".into(), Quantity::from_value(ports as i64));
            }
        }
        "persistentvolumeclaims" if is_core => {
            all.insert("persistentvolumeclaims".into(), one);
            all.extend(quantity(object.pointer("/spec/resources/requests/storage")).map(|amount| ("requests.storage".to_owned(), amount)));
        }
        plural if is_core && COUNTED.contains(&plural) => {
            all.insert(plural.into(), one);
        }
        _ => (),
    }
    let hard = hard(quota);
    all.retain(|name, _| hard.contains_key(name));
    all
}

/// Whether a pod is among those that the quota is about.
fn in_scope(pod: &Value, quota: &Value) -> bool {
    let best_effort = pod["status"]["qosClass"] == "BestEffort";
    let terminating = pod["spec"]["activeDeadlineSeconds"].is_i64();
    quota["spec"]["scopes"].as_array().into_iter().flatten().all(|scope| match scope.as_str() {
        Some("BestEffort") => best_effort,
        Some("NotBestEffort") => !best_effort,
        Some("Terminating") => terminating,
        Some("NotTerminating") => !terminating,
        _ => false,
    })
}

fn fits(quota: &Value, wanted: &Amounts, used: &Amounts, object: &Value, resource: &Resource) -> Result<(), Status> {
    let refuse = |why: String| Err(Status::forbidden(resource.group, resource.plural, meta::name(object), why));
    let name = meta::name(quota);
    let hard = hard(quota);
    if resource.plural == "pods" {
        let is_compute =
            |name: &&String| ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"].contains(&name.as_str());
        let missing: Vec<&str> = hard.keys().filter(is_compute).filter(|name| !wanted.contains_key(*name)).map(String::as_str).collect();
        if !missing.is_empty() {
            return refuse(format!("failed quota: {name}: must specify {} for: {}", missing.join(","), container_names(object)));
        }
    }
    let zero = Quantity::ZERO;
    let exceeded: Vec<&String> =
        wanted.iter().filter(|(name, amount)| used.get(*name).unwrap_or(&zero).add(**amount) > hard[*name]).map(|(name, _)| name).collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    let show = |amounts: &Amounts| -> String {
        exceeded.iter().map(|name| format!("{name}={}", amounts.get(*name).unwrap_or(&zero))).collect::<Vec<_>>().join(",")
    };
    refuse(format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", show(wanted), show(used), show(&hard)))
}

fn container_names(pod: &Value) -> String {
    let names = pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str());
    names.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_exceed_a_quota_is_refused_in_upstreams_words() {
        let pods = schema::resource("", "v1", "pods").unwrap();
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.cpu": "1"}}});
        let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]}});
        let wanted = cost(pods, &pod, &quota);
        assert!(fits(&quota, &wanted, &Amounts::new(), &pod, pods).is_ok());
        let refused = fits(&quota, &wanted, &wanted, &pod, pods).unwrap_err();
        let expected =
            "pods \"web\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1";
        assert_eq!(refused.message, expected);
        let bare = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}});
        let refused = fits(&quota, &cost(pods, &bare, &quota), &Amounts::new(), &bare, pods).unwrap_err();
        assert!(refused.message.ends_with("failed quota: q: must specify requests.cpu for: c"), "{refused}");
    }

    #[test]
    fn ended_pods_use_nothing() {
        let pods = schema::resource("", "v1", "pods").unwrap();
        let quota = json!({"spec": {"hard": {"pods": "2", "count/pods": "2"}}});
        assert_eq!(cost(pods, &json!({"status": {"phase": "Running"}}), &quota).len(), 2);
        assert!(cost(pods, &json!({"status": {"phase": "Failed"}}), &quota).is_empty());
    }
}
