//! Who is whose: objects that match a selector and have no controller are adopted, owned ones that match no longer are released
//! (<https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>, upstream `controller_ref_manager.go`).
//! It never takes an object from another controller.

use std::sync::Arc;

use serde_json::{Value, json};

use super::feed::Feed;
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::status::Status;
use crate::api::workloads::{LabelSelector, ObjectMeta};
use crate::master::store::Object;
use crate::master::store::objects::Part;

/// The controller in whose name objects are claimed.
pub struct Claimant<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub metadata: &'a ObjectMeta,
    pub selector: &'a LabelSelector,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Owned,
    Adopt,
    Release,
    NotOurs,
}

fn verdict(claimant: &Claimant, candidate: &ObjectMeta) -> Verdict {
    let matches = claimant.selector.matches(&candidate.labels);
    let deleting = claimant.metadata.is_deleting();
    match candidate.controller() {
        Some(owner) if owner.uid != claimant.metadata.uid => Verdict::NotOurs,
        Some(_) if matches => Verdict::Owned,
        Some(_) if deleting => Verdict::NotOurs,
        Some(_) => Verdict::Release,
        None if matches && !deleting && !candidate.is_deleting() => Verdict::Adopt,
        None => Verdict::NotOurs,
    }
}

/// An object that turned out to be the claimant's, with the view of it that was asked for.
pub struct Owned<T> {
    pub object: Arc<Object>,
    pub view: T,
}

/// All objects of `resource` in the claimant's namespace that are its own, after adopting and releasing what is to be.
///
/// # Errors
/// If an adoption or release cannot be written for another reason than that the object is gone or somebody else's by now.
pub async fn claim<T: serde::de::DeserializeOwned>(
    feed: &Feed,
    resource: &'static Resource,
    claimant: &Claimant<'_>,
    metadata: impl Fn(&T) -> &ObjectMeta,
) -> anyhow::Result<Vec<Owned<T>>> {
    let namespace = &claimant.metadata.namespace;
    let candidates: Vec<Arc<Object>> = feed.look(|index| {
        let owned = index.dependents_of(&claimant.metadata.uid).filter(|object| std::ptr::eq(object.key.resource, resource));
        let free = index.unmanaged(resource, namespace).filter(|object| claimant.selector.matches(&object.labels));
        owned.chain(free).cloned().collect()
    });
    let mut claimed = Vec::with_capacity(candidates.len());
    for object in candidates {
        let view: T = object.view()?;
        match verdict(claimant, metadata(&view)) {
            Verdict::Owned => claimed.push(Owned { object, view }),
            Verdict::NotOurs => (),
            Verdict::Release => {
                settle(feed, &object, |live| without_owner(live, &claimant.metadata.uid)).await?;
                log::info!("{}={} released by {} {}", resource.singular, object.key.name, claimant.kind, claimant.metadata.name);
            }
            Verdict::Adopt => {
                let adopted = settle(feed, &object, |live| adopt(live, claimant)).await?;
                if let Some(object) = adopted {
                    log::info!("{}={} adopted by {} {}", resource.singular, object.key.name, claimant.kind, claimant.metadata.name);
                    claimed.push(Owned { view: object.view()?, object });
                }
            }
        }
    }
    Ok(claimed)
}

/// The reference that makes `metadata`'s object the controller of another.
pub fn controller_reference(api_version: &str, kind: &str, metadata: &ObjectMeta) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "name": metadata.name, "uid": metadata.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The object without its reference to the owner `uid`.
pub fn without_owner(live: &Value, uid: &str) -> Option<Value> {
    let mut object = live.clone();
    let metadata = meta::metadata_mut(&mut object);
    let owners = metadata.get_mut("ownerReferences")?.as_array_mut()?;
    owners.retain(|owner| owner["uid"] != uid);
    if owners.is_empty() {
        metadata.remove("ownerReferences");
    }
    Some(object)
}

fn adopt(live: &Value, claimant: &Claimant) -> Option<Value> {
    if meta::controller(live).is_some() || meta::is_deleting(live) {
        return None;
    }
    let mut object = live.clone();
    let reference = controller_reference(claimant.api_version, claimant.kind, claimant.metadata);
    match meta::metadata_mut(&mut object).entry("ownerReferences").or_insert_with(|| Value::Array(Vec::new())) {
        Value::Array(owners) => {
            owners.retain(|owner| owner["uid"] != reference["uid"]);
            owners.push(reference);
        }
        other => *other = Value::Array(vec![reference]),
    }
    Some(object)
}

/// Writes a change of owners; `None` if by now there is nothing to change, or another object has the name.
async fn settle(feed: &Feed, object: &Object, change: impl Fn(&Value) -> Option<Value>) -> Result<Option<Arc<Object>>, Status> {
    let key = &object.key;
    let mut moot = false;
    let written = feed
        .objects()
        .update(key.resource, &key.namespace, &key.name, Part::Whole, false, |live| {
            let changed = if meta::uid(live) == object.uid { change(live) } else { None };
            moot = changed.is_none();
            Ok(changed.unwrap_or_else(|| live.clone()))
        })
        .await;
    match written {
        Ok(_) if moot => Ok(None),
        Ok(object) => Ok(Some(object)),
        Err(status) if status.is_not_found() => Ok(None),
        Err(status) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_free_matching_objects_are_adopted() {
        let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
        let read = |value: Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let living = read(json!({"uid": "me"}));
        let dying = read(json!({"uid": "me", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let check = |metadata: &ObjectMeta, candidate: Value, expected: Verdict| {
            let claimant = Claimant { api_version: "apps/v1", kind: "ReplicaSet", metadata, selector: &selector };
            assert_eq!(verdict(&claimant, &read(candidate.clone())), expected, "{candidate}");
        };
        let owned = |uid: &str, app: &str| json!({"labels": {"app": app}, "ownerReferences": [{"uid": uid, "controller": true}]});
        check(&living, owned("me", "web"), Verdict::Owned);
        check(&living, owned("me", "db"), Verdict::Release);
        check(&dying, owned("me", "db"), Verdict::NotOurs);
        check(&living, owned("other", "web"), Verdict::NotOurs);
        check(&living, json!({"labels": {"app": "web"}}), Verdict::Adopt);
        check(&living, json!({"labels": {"app": "web"}, "ownerReferences": [{"uid": "other"}]}), Verdict::Adopt);
        check(&living, json!({"labels": {"app": "db"}}), Verdict::NotOurs);
        check(&living, json!({"labels": {"app": "web"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}), Verdict::NotOurs);
        check(&dying, json!({"labels": {"app": "web"}}), Verdict::NotOurs);
    }

    #[test]
    fn releasing_leaves_the_other_owners() {
        let live = json!({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}});
        let once = without_owner(&live, "a").unwrap();
        assert_eq!(once, json!({"metadata": {"ownerReferences": [{"uid": "b"}]}}));
        assert_eq!(without_owner(&once, "b").unwrap(), json!({"metadata": {}}));
    }
}
