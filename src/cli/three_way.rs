//! Makes patches: what must be sent so that the server's object becomes the wanted one, keeping what others wrote into it.
//! Merge keys and strategies come from the schema; no kind is treated by name. It applies nothing.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::api::schema::{self, Field, Message, Type};
use crate::client::Patch;

/// The patch that takes `current` to `wanted`, where `last` is what was wanted the last time: what is in `last` and no longer in `wanted`
/// goes, what is in `current` alone stays. An empty map if there is nothing to do.
pub fn patch(api_version: &str, kind: &str, last: &Value, wanted: &Value, current: &Value) -> (Patch, Value) {
    let message = schema::kind_of(api_version, kind).map(|kind| kind.message);
    let patch = maps(message, &map_of(last), &map_of(wanted), &map_of(current));
    (if message.is_some() { Patch::Strategic } else { Patch::Merge }, Value::Object(patch))
}

/// The patch between two states of one object, for verbs that change what they read.
pub fn difference(api_version: &str, kind: &str, from: &Value, to: &Value) -> (Patch, Value) {
    patch(api_version, kind, from, to, from)
}

fn map_of(value: &Value) -> Cow<'_, Map<String, Value>> {
    match value {
        Value::Object(map) => Cow::Borrowed(map),
        _ => Cow::Owned(Map::new()),
    }
}

fn maps(
    message: Option<Message>,
    last: &Map<String, Value>,
    wanted: &Map<String, Value>,
    current: &Map<String, Value>,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, wanted) in wanted {
        let field = message.and_then(|message| message.field(key));
        let inside = field.and_then(|field| inner(field.ty()));
        let nothing = Value::Null;
        let last = last.get(key).unwrap_or(&nothing);
        match (wanted, current.get(key)) {
            (Value::Null, None | Some(Value::Null)) => {}
            (Value::Null, Some(_)) => {
                patch.insert(key.clone(), Value::Null);
            }
            (wanted, None | Some(Value::Null)) => {
                patch.insert(key.clone(), wanted.clone());
            }
            (Value::Object(wanted), Some(Value::Object(current))) if !replaces(field) => {
                let mut below = maps(inside, &map_of(last), wanted, current);
                if !below.is_empty() {
                    retain_keys(field, wanted, &mut below);
                    patch.insert(key.clone(), Value::Object(below));
                }
            }
            (Value::Array(wanted), Some(Value::Array(current))) if merges(field) => {
                let last = last.as_array().map_or(&[][..], Vec::as_slice);
                match field.and_then(Field::merge_key) {
                    Some(merge_key) => keyed_lists(key, field, merge_key, last, wanted, current, &mut patch),
                    None => plain_lists(key, last, wanted, current, &mut patch),
                }
            }
            (wanted, Some(current)) => {
                if wanted != current {
                    patch.insert(key.clone(), wanted.clone());
                }
            }
        }
    }
    for key in last.keys() {
        if !wanted.contains_key(key) && current.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

/// What a map or a list holds, if the schema says more about it.
fn inner(ty: Type) -> Option<Message> {
    match ty {
        Type::Message(message) => Some(message),
        Type::List(elements) | Type::Map(elements) => inner(schema::element(elements)),
        _ => None,
    }
}

fn merges(field: Option<Field>) -> bool {
    field.is_some_and(|field| field.strategy().merge)
}

fn replaces(field: Option<Field>) -> bool {
    field.is_some_and(|field| field.strategy().replace)
}

/// Of a union only the member that is wanted may stay.
fn retain_keys(field: Option<Field>, wanted: &Map<String, Value>, patch: &mut Map<String, Value>) {
    if field.is_some_and(|field| field.strategy().retain_keys) {
        let keys: Vec<&String> = wanted.keys().collect();
        patch.insert("$retainKeys".into(), json!(keys));
    }
}

/// Lists whose elements are told apart by a key, as containers by their name.
fn keyed_lists(
    key: &str,
    field: Option<Field>,
    merge_key: &str,
    last: &[Value],
    wanted: &[Value],
    current: &[Value],
    patch: &mut Map<String, Value>,
) {
    let message = field.and_then(|field| inner(field.ty()));
    let find = |list: &[Value], element: &Value| list.iter().find(|other| other[merge_key] == element[merge_key]).cloned();
    let mut changes = vec![];
    for element in wanted {
        match find(current, element) {
            None => changes.push(element.clone()),
            Some(present) => {
                let before = find(last, element).unwrap_or(Value::Null);
                let mut below = maps(message, &map_of(&before), &map_of(element), &map_of(&present));
                if !below.is_empty() {
                    retain_keys(field, &map_of(element), &mut below);
                    below.insert(merge_key.to_owned(), element[merge_key].clone());
                    changes.push(Value::Object(below));
                }
            }
        }
    }
    for element in last {
        if find(wanted, element).is_none() && find(current, element).is_some() {
            changes.push(json!({"$patch": "delete", merge_key: element[merge_key]}));
        }
    }
    let common: Vec<&Value> = current
        .iter()
        .map(|element| &element[merge_key])
        .filter(|name| wanted.iter().any(|element| element[merge_key] == **name))
        .collect();
    let in_order: Vec<&Value> = wanted.iter().map(|element| &element[merge_key]).filter(|name| common.contains(name)).collect();
    if !changes.is_empty() || common != in_order {
        let order: Vec<Value> = wanted.iter().map(|element| json!({merge_key: element[merge_key]})).collect();
        patch.insert(format!("$setElementOrder/{key}"), json!(order));
    }
    if !changes.is_empty() {
        patch.insert(key.to_owned(), json!(changes));
    }
}

/// Lists that are sets of plain values, as finalizers.
fn plain_lists(key: &str, last: &[Value], wanted: &[Value], current: &[Value], patch: &mut Map<String, Value>) {
    let added: Vec<&Value> = wanted.iter().filter(|value| !current.contains(value)).collect();
    let removed: Vec<&Value> = last.iter().filter(|value| !wanted.contains(value) && current.contains(value)).collect();
    if !added.is_empty() || !removed.is_empty() {
        patch.insert(format!("$setElementOrder/{key}"), json!(wanted));
    }
    if !added.is_empty() {
        patch.insert(key.to_owned(), json!(added));
    }
    if !removed.is_empty() {
        patch.insert(format!("$deleteFromPrimitiveList/{key}"), json!(removed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(last: Value, wanted: Value, current: Value, expected: Value) {
        let (kind, made) = patch("apps/v1", "Deployment", &last, &wanted, &current);
        assert_eq!((kind, made), (Patch::Strategic, expected));
    }

    fn pod_spec(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn only_what_differs_is_sent_and_what_others_wrote_stays() {
        check(
            json!({"spec": {"replicas": 1}}),
            json!({"spec": {"replicas": 2}}),
            json!({"spec": {"replicas": 1, "paused": true}}),
            json!({"spec": {"replicas": 2}}),
        );
        check(
            json!({"spec": {"replicas": 1}}),
            json!({"spec": {"replicas": 1}}),
            json!({"spec": {"replicas": 1}, "status": {}}),
            json!({}),
        );
        // Somebody scaled it; the manifest says nothing of replicas.
        check(json!({"spec": {}}), json!({"spec": {}}), json!({"spec": {"replicas": 5}}), json!({}));
        // What the manifest no longer says goes.
        check(
            json!({"spec": {"replicas": 1, "paused": true}}),
            json!({"spec": {"replicas": 1}}),
            json!({"spec": {"replicas": 1, "paused": true}}),
            json!({"spec": {"paused": null}}),
        );
        check(
            json!({}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"name": "x"}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
        );
    }

    #[test]
    fn containers_are_matched_by_name() {
        let last = pod_spec(json!({"containers": [{"name": "a", "image": "x:1"}, {"name": "old", "image": "y"}]}));
        let wanted = pod_spec(json!({"containers": [{"name": "a", "image": "x:2"}, {"name": "b", "image": "z"}]}));
        let current =
            pod_spec(json!({"containers": [{"name": "a", "image": "x:1", "imagePullPolicy": "Always"}, {"name": "old", "image": "y"}]}));
        let expected = pod_spec(json!({
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"image": "x:2", "name": "a"}, {"image": "z", "name": "b"}, {"$patch": "delete", "name": "old"}]
        }));
        check(last, wanted, current, expected);
    }

    #[test]
    fn unions_retain_only_what_is_wanted() {
        check(
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}}),
        );
    }

    #[test]
    fn plain_sets_and_atomic_lists_differ() {
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
            json!({"metadata": {"finalizers": ["a", "b", "x"]}}),
            json!({"metadata": {"$setElementOrder/finalizers": ["b", "c"],
                "finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
        );
        let args = |args: Value| pod_spec(json!({"containers": [{"name": "a", "args": args}]}));
        let expected = pod_spec(json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "args": ["3"]}]}));
        check(args(json!(["1"])), args(json!(["3"])), args(json!(["1", "2"])), expected);
    }

    #[test]
    fn unknown_kinds_get_a_merge_patch() {
        let (kind, made) = patch("example.com/v1", "Thing", &json!({"a": 1}), &json!({"l": [1]}), &json!({"a": 1, "l": [1, 2]}));
        assert_eq!((kind, made), (Patch::Merge, json!({"a": null, "l": [1]})));
    }
}
