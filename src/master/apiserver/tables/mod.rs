//! Objects as rows for people: the columns of upstream's `pkg/printers/internalversion/printers.go`, one function per kind.
//! A row is computed from the object alone and the clock that is passed in; nothing is looked up.
//! Column descriptions are left empty: no client shows them.

mod access;
mod cluster;
mod duration;
mod network;
mod pods;
mod storage;
mod workloads;

use serde_json::{Value, json};

use super::negotiate::MetaVersion;
use super::query::IncludeObject;
use crate::api::schema::Resource;
use crate::base::time::Timestamp;

/// Name, type, and whether the column shows in `-o wide` only.
pub struct Column(&'static str, &'static str, bool);

/// How one kind is shown. The cells are as many as the columns.
pub struct Layout {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// `conditions` of the row: kubectl greys out what is completed.
    conditions: fn(&Value) -> Option<Value>,
}

const NAME: Column = Column("Name", "string", false);
const AGE: Column = Column("Age", "string", false);

const fn text_column(name: &'static str) -> Column {
    Column(name, "string", false)
}

const fn wide_column(name: &'static str) -> Column {
    Column(name, "string", true)
}

const fn number_column(name: &'static str) -> Column {
    Column(name, "integer", false)
}

const fn layout(columns: &'static [Column], cells: fn(&Value, Timestamp) -> Vec<Value>) -> Layout {
    Layout { columns, cells, conditions: |_| None }
}

/// Kinds that upstream gives no columns of their own.
static PLAIN: Layout =
    layout(&[NAME, text_column("Created At")], |object, _| vec![name(object), text(object, "/metadata/creationTimestamp").into()]);

static SCALE: Layout = layout(&[text_column("Name"), number_column("Desired"), number_column("Available"), AGE], |scale, now| {
    vec![name(scale), number(scale, "/spec/replicas"), number(scale, "/status/replicas"), age(scale, now)]
});

/// The layout of what a request answers with: the resource, or its scale.
pub fn of(resource: &Resource, subresource: &str) -> &'static Layout {
    if subresource == "scale" {
        return &SCALE;
    }
    let plural = resource.plural;
    match resource.group {
        "" => pods::of(plural).or_else(|| cluster::of(plural)).or_else(|| network::of(plural)).or_else(|| storage::of(plural)),
        "apps" | "batch" | "autoscaling" | "policy" => workloads::of(plural),
        "networking.k8s.io" | "discovery.k8s.io" | "extensions" => network::of(plural).or_else(|| workloads::of(plural)),
        "storage.k8s.io" | "resource.k8s.io" => storage::of(plural),
        "rbac.authorization.k8s.io" | "certificates.k8s.io" | "admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io" => {
            access::of(plural)
        }
        _ => cluster::of(plural),
    }
    .or_else(|| if resource.group.is_empty() { workloads::of(plural) } else { None })
    .unwrap_or(&PLAIN)
}

/// One object, or the items of a list, as a `Table`. `columns` is false for all but the first event of a watch.
pub fn table(layout: &Layout, objects: &[&Value], list: &Value, version: MetaVersion, include: IncludeObject, columns: bool) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects.iter().map(|object| layout.row(object, version, include, now)).collect();
    let mut metadata = serde_json::Map::new();
    for field in ["resourceVersion", "continue", "remainingItemCount"] {
        if let Some(value) = list["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let definitions = if columns { layout.definitions() } else { Value::Null };
    json!({"kind": "Table", "apiVersion": version.api_version(), "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}

/// The object's metadata as `PartialObjectMetadata`.
pub fn partial(object: &Value, version: MetaVersion) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"]})
}

impl Layout {
    fn definitions(&self) -> Value {
        let definition = |column: &Column| {
            let format = if column.0 == "Name" { "name" } else { "" };
            json!({"name": column.0, "type": column.1, "format": format, "description": "", "priority": i32::from(column.2)})
        };
        self.columns.iter().map(definition).collect()
    }

    fn row(&self, object: &Value, version: MetaVersion, include: IncludeObject, now: Timestamp) -> Value {
        let cells = (self.cells)(object, now);
        debug_assert_eq!(cells.len(), self.columns.len());
        let mut row = json!({"cells": cells});
        match include {
            IncludeObject::None => (),
            IncludeObject::Metadata => row["object"] = partial(object, version),
            IncludeObject::Object => row["object"] = object.clone(),
        }
        if let Some(conditions) = (self.conditions)(object) {
            row["conditions"] = conditions;
        }
        row
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The text there, or `otherwise` if it is missing or empty.
fn text_or(object: &Value, pointer: &str, otherwise: &str) -> Value {
    match text(object, pointer) {
        "" => otherwise.into(),
        text => text.into(),
    }
}

fn integer(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

fn number(object: &Value, pointer: &str) -> Value {
    integer(object, pointer).into()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn size(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(object, "/metadata/creationTimestamp", now).into()
}

/// How long ago the instant there was, as upstream writes it; `<unknown>` without one.
fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    match Timestamp::parse(text(object, pointer)) {
        Some(then) => duration::human(now.0 - then.0),
        None => "<unknown>".into(),
    }
}

/// IntOrString, quantity or text, as it is written.
fn scalar(value: Option<&Value>, otherwise: &str) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => otherwise.into(),
    }
}

fn boolean(object: &Value, pointer: &str, otherwise: bool) -> Value {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(otherwise).into()
}

/// `a=1,b=2`, or `<none>`.
fn labels(object: &Value, pointer: &str) -> Value {
    match object.pointer(pointer).and_then(Value::as_object) {
        Some(map) if !map.is_empty() => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            pairs.join(",").into()
        }
        _ => "<none>".into(),
    }
}

/// A LabelSelector as a selector is written on a command line.
pub fn selector(object: &Value, pointer: &str) -> String {
    let Some(selector) = object.pointer(pointer) else { return String::new() };
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let mut values: Vec<&str> = items(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

fn selector_or_none(object: &Value, pointer: &str) -> Value {
    match selector(object, pointer) {
        empty if empty.is_empty() => "<none>".into(),
        text => text.into(),
    }
}

/// One field of each item, joined by commas.
fn joined(object: &Value, pointer: &str, field: &str) -> String {
    let texts: Vec<&str> =
        items(object, pointer).iter().map(|item| if field.is_empty() { item } else { &item[field] }).filter_map(Value::as_str).collect();
    texts.join(",")
}

/// Names and images of a pod template's containers.
fn containers(object: &Value, pointer: &str) -> [Value; 2] {
    ["name", "image"].map(|field| joined(object, pointer, field).into())
}

/// At most three of a list, and how many more there are.
fn at_most_three(list: &[String], empty: &str) -> String {
    match list {
        [] => empty.into(),
        [_] | [_, _] | [_, _, _] => list.join(","),
        _ => format!("{} + {} more...", list[..3].join(","), list.len() - 3),
    }
}

/// The status of a condition, "" if it is not there.
fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let found = items(object, "/status/conditions").iter().find(|condition| condition["type"] == kind);
    found.map_or("", |condition| text(condition, "/status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_on_a_command_line() {
        let object = json!({"s": {"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "Exists"}, {"key": "d", "operator": "DoesNotExist"}]}});
        assert_eq!(selector(&object, "/s"), "a in (x,y),b=1,c,!d");
        assert_eq!(selector_or_none(&object, "/t"), "<none>");
    }

    #[test]
    fn a_table_has_a_cell_for_each_column() {
        let pod = json!({"metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        let every = [pods::ALL, workloads::ALL, network::ALL, cluster::ALL, storage::ALL, access::ALL].concat();
        for (plural, layout) in every {
            let cells = (layout.cells)(&pod, Timestamp::now());
            assert_eq!(cells.len(), layout.columns.len(), "{plural}");
        }
        let table = table(&PLAIN, &[&pod], &json!({"metadata": {"resourceVersion": "7"}}), MetaVersion::V1, IncludeObject::Metadata, true);
        assert_eq!(table["metadata"], json!({"resourceVersion": "7"}));
        assert_eq!(table["rows"][0]["cells"], json!(["web", "2026-01-01T00:00:00Z"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
    }
}
