//! Strategic merge patch: lists are merged by their merge key, which the schema table knows, and directives in the patch replace,
//! delete and order. It follows apimachinery's pkg/util/strategicpatch step by step, so that kubectl's patches do what they did there.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::api::schema::{Field, Kind, Message, Type, element};

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of `kind`.
pub fn strategic(kind: Kind, document: &Value, patch: &Value) -> Result<Value> {
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else { bail!("a strategic merge patch must be a JSON object") };
    merge_map(document.clone(), patch.clone(), Shape::Message(kind.message)).map(Value::Object)
}

/// What is known of the maps being merged.
#[derive(Clone, Copy)]
enum Shape {
    Message(Message),
    /// A map whose values all have this type.
    Map(Type),
    /// Nothing: maps are merged, lists replaced.
    Free,
}

/// How a field is merged: its own shape (of the elements, for a list), strategy and merge key.
struct Rule {
    inner: Shape,
    merge: bool,
    replace: bool,
    key: Option<&'static str>,
}

impl Shape {
    fn of(ty: Type) -> Self {
        match ty {
            Type::Message(message) => Self::Message(message),
            Type::Map(of) => Self::Map(element(of)),
            _ => Self::Free,
        }
    }

    fn rule(self, key: &str) -> Rule {
        let ty = match self {
            Self::Message(message) => match message.field(key) {
                Some(field) => return Rule::of(field),
                None => None,
            },
            Self::Map(ty) => Some(ty),
            Self::Free => None,
        };
        Rule { inner: ty.map_or(Self::Free, Self::of), merge: false, replace: false, key: None }
    }
}

impl Rule {
    fn of(field: Field) -> Self {
        let inner = match field.ty() {
            Type::List(of) => Shape::of(element(of)),
            ty => Shape::of(ty),
        };
        let strategy = field.strategy();
        Self { inner, merge: strategy.merge, replace: strategy.replace, key: field.merge_key() }
    }
}

fn merge_map(mut original: Object, mut patch: Object, shape: Shape) -> Result<Object> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => bail!("unknown patch type: {directive} in a map"),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, shape)?;
    for (key, value) in patch {
        let (key, delete_list) = match key.strip_prefix(DELETE_FROM) {
            Some(list) => (list.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(original)), Value::Object(patch)) => {
                let rule = shape.rule(&key);
                Some(Value::Object(if rule.replace { patch } else { merge_map(original, patch, rule.inner)? }))
            }
            (Some(Value::Array(original)), Value::Array(patch)) => {
                let rule = shape.rule(&key);
                Some(Value::Array(merge_list(original, patch, &rule, delete_list).with_context(|| key.clone())?))
            }
            // There is nothing to delete from.
            (original, _) if delete_list => original,
            (Some(_), value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => Some(value),
            (_, value) => without_directives(without_nulls(value)),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: whatever is not in the list goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { bail!("invalid patch format of {RETAIN_KEYS}") };
    let kept = |key: &str| keys.iter().any(|kept| kept == key);
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_FROM) || key.starts_with(ORDER);
        ensure!(value.is_null() || directive || kept(key), "invalid patch format of {RETAIN_KEYS}: {key} is not in it");
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// `$setElementOrder/list`: merges the list it belongs to and puts it in order, and takes both out of the patch.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, shape: Shape) -> Result<()> {
    let orders: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for key in orders {
        let Some(Value::Array(order)) = patch.remove(&key) else { bail!("invalid patch format of {key}") };
        let list = &key[ORDER.len()..];
        let rule = shape.rule(list);
        let before = match original.get(list) {
            Some(Value::Array(before)) => Some(before.clone()),
            Some(_) => bail!("{list} is not a list"),
            None => None,
        };
        let changes = match patch.remove(list) {
            Some(Value::Array(changes)) => Some(changes),
            Some(Value::Null) | None => None,
            Some(_) => bail!("{list} is not a list in the patch"),
        };
        check_order(changes.as_deref().unwrap_or_default(), &order, rule.key).with_context(|| key.clone())?;
        let merged = match (before.clone(), changes) {
            (None, None) => continue,
            (Some(before), None) => before,
            (None, Some(changes)) => match without_directives(Value::Array(changes)) {
                Some(Value::Array(changes)) => changes,
                _ => continue,
            },
            (Some(before), Some(changes)) => merge_list(before, changes, &rule, false)?,
        };
        let (ordered, others) = partition(merged, &order, rule.key)?;
        let sorted = in_order(ordered, others, &order, before.as_deref().unwrap_or_default(), rule.key);
        original.insert(list.into(), sorted.into());
    }
    Ok(())
}

/// The items of the patch must come in the order that the directive gives.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<()> {
    if changes.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut order = order.iter();
    for change in changes.iter().filter(|change| change.get(PATCH).is_none()) {
        if !order.any(|item| same(item, change, key)) {
            bail!("the order in the patch list does not match the {ORDER} list");
        }
    }
    Ok(())
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, rule: &Rule, delete_list: bool) -> Result<Vec<Value>> {
    if !rule.merge && !delete_list {
        return Ok(patch);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if !original.iter().chain(&patch).any(Value::is_object) {
        if delete_list {
            return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (changed, others) = partition(merged, &patch, None)?;
        return Ok(in_order(changed, others, &patch, &original, None));
    }
    let key = rule.key.context("cannot merge lists without merge key")?;
    let (original, patch) = apply_special_items(original, patch, key)?;
    let mut merged = original.clone();
    for item in &patch {
        let Value::Object(change) = item else { bail!("a list of objects has an item that is none") };
        ensure!(change.contains_key(key), "map: {item} does not contain declared merge key: {key}");
        match merged.iter_mut().find(|known| same(known, item, Some(key))) {
            Some(known) => {
                let Value::Object(before) = known.take() else { bail!("a list of objects has an item that is none") };
                *known = merge_map(before, change.clone(), rule.inner)?.into();
            }
            None => merged.push(item.clone()),
        }
    }
    let (changed, others) = partition(merged, &patch, Some(key))?;
    Ok(in_order(changed, others, &patch, &original, Some(key)))
}

/// Items with `$patch` delete others or replace the whole list.
fn apply_special_items(mut original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut plain, mut replace) = (Vec::new(), false);
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("delete") => {
                ensure!(item.get(key).is_some(), "map: {item} does not contain declared merge key: {key}");
                original.retain(|known| !same(known, &item, Some(key)));
            }
            Some("replace") => replace = true,
            Some("merge") => bail!("merging lists cannot yet be specified in the patch"),
            Some(other) => bail!("unknown patch type: {other}"),
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// The same item: by merge key, or by value if there is none.
fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        None => a == b,
        // Upstream compares keys by their text, so that 80 and "80" are the same.
        Some(key) => match (a.get(key), b.get(key)) {
            (Some(a), Some(b)) => a == b || plain(a) == plain(b),
            _ => false,
        },
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Splits a list into what is in `by` and what is not.
fn partition(list: Vec<Value>, by: &[Value], key: Option<&str>) -> Result<(Vec<Value>, Vec<Value>)> {
    if let Some(key) = key {
        for item in &list {
            ensure!(item.get(key).is_some(), "map: {item} does not contain declared merge key: {key}");
        }
    }
    Ok(list.into_iter().partition(|item| by.iter().any(|wanted| same(wanted, item, key))))
}

/// Merges the items the patch names, in its order, with the others in the order they had. Where the two orders say nothing
/// of each other, the patch's item comes first.
fn in_order(mut patched: Vec<Value>, mut others: Vec<Value>, patch_order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |order: &[Value], item: &Value| order.iter().position(|known| same(known, item, key));
    patched.sort_by_key(|item| place(patch_order, item).map_or(0, |at| at + 1));
    others.sort_by_key(|item| place(before, item).map_or(0, |at| at + 1));
    let (mut patched, mut others) = (patched.into_iter().peekable(), others.into_iter().peekable());
    let mut all = Vec::new();
    loop {
        let next = match (others.peek(), patched.peek()) {
            (None, None) => return all,
            (Some(_), None) => others.next(),
            (None, Some(_)) => patched.next(),
            (Some(other), Some(item)) => match (place(before, other), place(before, item)) {
                (Some(other), Some(item)) if other < item => others.next(),
                _ => patched.next(),
            },
        };
        all.extend(next);
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What is left of a value that is new in the object: objects with `$patch` go.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(map.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?))).collect()),
        Value::Array(list) => Some(list.into_iter().filter_map(without_directives).collect()),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema::kind_of;
    use crate::api::testdata::lines;

    #[test]
    fn patches_do_what_they_do_upstream() {
        let lines = lines(include_bytes!("../testdata/patches.jsonl.zst"));
        for line in &lines {
            let kind = kind_of(line["apiVersion"].as_str().unwrap(), line["kind"].as_str().unwrap()).unwrap();
            match strategic(kind, &line["original"], &line["patch"]) {
                Ok(patched) => assert_eq!(patched, line["out"], "{} {}", kind.name, line["patch"]),
                Err(error) => assert!(line.get("error").is_some(), "{} {}: {error:#}", kind.name, line["patch"]),
            }
        }
        assert_eq!(lines.len(), 150);
    }

    fn check(original: Value, patch: Value, expected: Value) {
        let kind = kind_of("v1", "Pod").unwrap();
        let wrap = |spec: Value| json!({"spec": spec});
        assert_eq!(strategic(kind, &wrap(original), &wrap(patch)).unwrap(), wrap(expected));
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let two = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]});
        check(
            two.clone(),
            json!({"containers": [{"name": "b", "image": "3"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}),
        );
        check(
            two.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "2"}]}),
        );
        check(two.clone(), json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}), json!({"containers": [{"name": "c"}]}));
        check(two.clone(), json!({"$patch": "replace", "nodeName": "x"}), json!({"nodeName": "x"}));
        check(two.clone(), json!({"$patch": "delete"}), json!({}));
        check(two, json!({"containers": null}), json!({}));
        check(
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        );
        check(
            json!({"nodeSelector": {"a": "b", "c": "d"}}),
            json!({"nodeSelector": {"a": null, "e": "f"}}),
            json!({"nodeSelector": {"c": "d", "e": "f"}}),
        );
    }

    #[test]
    fn primitive_lists_are_merged_deleted_from_and_ordered() {
        let finalizers = |patch: Value| {
            let pod = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
            strategic(kind_of("v1", "Pod").unwrap(), &pod, &json!({"metadata": patch})).map(|pod| pod["metadata"]["finalizers"].clone())
        };
        assert_eq!(finalizers(json!({"finalizers": ["d", "a"]})).unwrap(), json!(["d", "a", "b", "c"]));
        assert_eq!(finalizers(json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]})).unwrap(), json!(["a", "c"]));
        assert_eq!(finalizers(json!({"$setElementOrder/finalizers": ["c", "b", "a"]})).unwrap(), json!(["c", "b", "a"]));
        assert_eq!(
            finalizers(
                json!({"$setElementOrder/finalizers": ["d", "a"], "$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"]})
            )
            .unwrap(),
            json!(["d", "a", "c"])
        );
        assert!(finalizers(json!({"$setElementOrder/finalizers": ["a"], "finalizers": ["d"]})).is_err());
    }

    #[test]
    fn broken_patches_are_refused() {
        let kind = kind_of("v1", "Pod").unwrap();
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        for patch in [
            json!({"spec": {"$patch": "merge"}}),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": [{"$patch": "delete"}]}}),
            json!({"spec": {"$setElementOrder/containers": 1}}),
            json!({"spec": {"$retainKeys": ["nodeName"], "hostname": "x"}}),
            json!([]),
        ] {
            assert!(strategic(kind, &pod, &patch).is_err(), "{patch}");
        }
    }
}
