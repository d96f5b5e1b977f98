//! Reading and writing `metadata` of an object kept as JSON: the fields every kind has.
//! It judges nothing; a field of the wrong type reads as absent.

use serde_json::{Map, Value};

use crate::base::time::Timestamp;

/// The finalizer of a foreground deletion: the owner stays until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an orphaning deletion: the dependents lose this owner before it goes.
pub const ORPHAN: &str = "orphan";

pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

pub fn api_version(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or_default()
}

/// `namespace/name`, or the name alone for objects of the cluster.
pub fn full_name(object: &Value) -> String {
    match namespace(object) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or_default()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(key)?.as_str()
}

pub fn timestamp(object: &Value, field: &str) -> Option<Timestamp> {
    Timestamp::parse(object["metadata"][field].as_str()?)
}

pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).any(|each| each == finalizer)
}

pub fn add_finalizer(object: &mut Value, finalizer: &str) {
    if has_finalizer(object, finalizer) {
        return;
    }
    let finalizers = metadata_mut(object).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    match finalizers {
        Value::Array(finalizers) => finalizers.push(finalizer.into()),
        other => *other = Value::Array(vec![finalizer.into()]),
    }
}

pub fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let metadata = metadata_mut(object);
    if let Some(Value::Array(finalizers)) = metadata.get_mut("finalizers") {
        finalizers.retain(|each| each != finalizer);
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

pub fn owner_references(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}

/// The owner that manages this object, if it has one: the reference with `controller: true`.
pub fn controller(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|owner| owner["controller"] == true)
}

/// `metadata` as a map; made if it is missing or no map.
///
/// # Panics
/// If `object` is no map: nothing that passed the API's decoding is.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    section_mut(object.as_object_mut().expect("an API object is a map"), "metadata")
}

pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    metadata_mut(object).insert(field.into(), value.into());
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    section_mut(metadata_mut(object), "labels").insert(key.into(), value.into());
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    section_mut(metadata_mut(object), "annotations").insert(key.into(), value.into());
}

fn section_mut<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let section = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !section.is_object() {
        *section = Value::Object(Map::new());
    }
    section.as_object_mut().expect("it was made a map just above")
}
