//! Server-side apply and `metadata.managedFields`: who owns which field, what a configuration changes, and where that collides.
//! It follows apimachinery's pkg/util/managedfields and structured-merge-diff. It never validates and never defaults.

mod set;
mod typed;

use serde_json::{Map, Value, json};

use self::set::Set;
use self::typed::{Comparison, Shape};
use super::defaults;
use super::schema::{Kind, resource_of_kind};
use super::status::{Cause, Status};
use crate::base::time::Timestamp;

/// Who writes: the field manager, and the subresource it writes through (empty for the object itself).
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Others own fields that it would change, and it was not forced.
    Conflicts(Vec<Conflict>),
    /// It cannot be applied at all.
    Invalid(String),
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As `"kubectl-edit" using apps/v1`.
    pub owner: String,
    /// As `.spec.replicas`.
    pub path: String,
}

impl Refused {
    /// The error that the client is told: 409 or 400.
    pub fn status(self) -> Status {
        match self {
            Self::Invalid(message) => Status::bad_request(message),
            Self::Conflicts(conflicts) => Status::apply_conflict(
                conflicts
                    .into_iter()
                    .map(|conflict| Cause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", conflict.owner),
                        field: conflict.path,
                    })
                    .collect(),
            ),
        }
    }
}

/// Entries of operation `Update` that one object keeps; older ones are put together.
const UPDATERS_MAX: usize = 10;
const OLD_UPDATES: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies `config` to `live` (none: the object is created) and gives the new object with its managed fields, not yet defaulted.
/// An object that does not change comes back as it was. `kind` is none for custom resources.
pub fn apply(
    kind: Option<Kind>,
    live: Option<&Value>,
    config: &Value,
    writer: Writer,
    force: bool,
    now: Timestamp,
) -> Result<Value, Refused> {
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Refused::Invalid("metadata.managedFields must be nil".into()));
    }
    match try_apply(kind, live, config, writer, force, now) {
        // kubectl used to keep what it had applied in an annotation; what stands there is its own.
        Err(Refused::Conflicts(conflicts)) if writer.manager == "kubectl" => {
            let own = live.and_then(|live| unchanged_since_last_applied(kind, live)).unwrap_or_default().paths();
            let foreign: Vec<Conflict> = conflicts.into_iter().filter(|conflict| !own.contains(&conflict.path)).collect();
            if foreign.is_empty() { try_apply(kind, live, config, writer, true, now) } else { Err(Refused::Conflicts(foreign)) }
        }
        other => other,
    }
}

fn try_apply(
    kind: Option<Kind>,
    live: Option<&Value>,
    config: &Value,
    writer: Writer,
    force: bool,
    now: Timestamp,
) -> Result<Value, Refused> {
    let shape = Shape::of_object(kind);
    let config = typed::without_nulls(config.clone());
    let empty = empty_object(kind, &config);
    let before = live.unwrap_or(&empty);
    let api_version = text(&config, "apiVersion");
    let original = decode(before);
    let live = typed::with_nulls(shape, without_managed_fields(before));
    let mut entries = original.clone();
    if entries.is_empty() {
        let writer = Writer { manager: BEFORE_FIRST_APPLY, subresource: "" };
        note_update(&mut entries, shape, kind, &typed::with_nulls(shape, empty.clone()), &live, writer, &api_version, now);
    }
    let own = |entry: &Entry| entry.applied && entry.manager == writer.manager && entry.subresource == writer.subresource;
    let mut wanted = Set::default();
    typed::fields(shape, &config, &mut wanted).map_err(Refused::Invalid)?;
    let wanted = owned_only(kind, writer.subresource, wanted.pruned());
    let mut last = Set::default();
    let mut time = None;
    if let Some(at) = entries.iter().position(own) {
        let entry = entries.remove(at);
        (last, time) = (entry.set, entry.time);
    }
    let merged = typed::merge(shape, Some(&live), Some(&config)).unwrap_or_default();
    let new = prune(shape, merged, &entries, &wanted, &last);
    let change = compared(shape, kind, writer.subresource, &live, &new);
    let touched = change.modified.clone().union(&change.added);
    let mut conflicts = Vec::new();
    for entry in &mut entries {
        let disputed = entry.set.intersection(&touched);
        conflicts.extend(disputed.paths().into_iter().map(|path| Conflict { owner: entry.describe(), path }));
        entry.set = entry.set.difference(&disputed).difference(&change.removed);
    }
    if !force && !conflicts.is_empty() {
        conflicts.sort_by(|a, b| a.owner.cmp(&b.owner));
        return Err(Refused::Conflicts(conflicts));
    }
    entries.retain(|entry| !entry.set.is_empty());
    let wanted = strip(wanted);
    if !wanted.is_empty() {
        entries.push(Entry {
            manager: writer.manager.into(),
            subresource: writer.subresource.into(),
            applied: true,
            api_version,
            time,
            set: wanted,
        });
    }
    // A list in another order is a change, though nobody's field is another for it.
    if new == live && sorted(entries.clone()) == sorted(original) {
        return Ok(before.clone());
    }
    if let Some(entry) = entries.iter_mut().find(|entry| own(entry)) {
        entry.time = Some(now);
    }
    let mut new = encode(typed::without_nulls(new), entries);
    if writer.manager == "kubectl" {
        keep_last_applied(&mut new, &config);
    }
    Ok(new)
}

/// Notes in `new` who changed what since `old` (none: it is created), for every write that is no apply. Both must be defaulted.
/// `new` is given back with its managed fields; those it brings along are taken over, unless it is written through a subresource.
pub fn track_update(kind: Option<Kind>, old: Option<&Value>, new: Value, writer: Writer, now: Timestamp) -> Value {
    let brought = new.pointer("/metadata/managedFields").cloned().unwrap_or_default();
    // A single empty entry asks to forget everything.
    let reset = brought == json!([{}]) && writer.subresource.is_empty();
    let mut entries = if writer.subresource.is_empty() { decode(&new) } else { Vec::new() };
    if entries.is_empty() && !reset {
        entries = old.map(decode).unwrap_or_default();
    }
    let new = without_managed_fields(&new);
    // Objects from before fields were managed stay without.
    if entries.is_empty() && old.is_some() {
        return new;
    }
    let shape = Shape::of_object(kind);
    let old = typed::with_nulls(shape, without_managed_fields(old.unwrap_or(&empty_object(kind, &new))));
    let api_version = text(&new, "apiVersion");
    note_update(&mut entries, shape, kind, &old, &typed::with_nulls(shape, new.clone()), writer, &api_version, now);
    encode(new, entries)
}

#[allow(clippy::too_many_arguments, reason = "one caller per way to write; a struct would only rename them")]
fn note_update(
    entries: &mut Vec<Entry>,
    shape: Shape,
    kind: Option<Kind>,
    old: &Value,
    new: &Value,
    writer: Writer,
    api_version: &str,
    now: Timestamp,
) {
    let change = compared(shape, kind, writer.subresource, old, new);
    let touched = change.modified.union(&change.added);
    for entry in entries.iter_mut() {
        entry.set = entry.set.difference(&touched).difference(&change.removed);
    }
    let taken = strip(owned_only(kind, writer.subresource, touched));
    if !taken.is_empty() {
        let own = |entry: &&mut Entry| {
            !entry.applied && entry.manager == writer.manager && entry.subresource == writer.subresource && entry.api_version == api_version
        };
        match entries.iter_mut().find(own) {
            Some(entry) => {
                entry.set = std::mem::take(&mut entry.set).union(&taken);
                entry.time = Some(now);
            }
            None => entries.push(Entry {
                manager: writer.manager.into(),
                subresource: writer.subresource.into(),
                applied: false,
                api_version: api_version.into(),
                time: Some(now),
                set: taken,
            }),
        }
    }
    entries.retain(|entry| !entry.set.is_empty());
    cap_updaters(entries);
}

/// Puts the oldest updaters together until there are no more than `UPDATERS_MAX`.
fn cap_updaters(entries: &mut Vec<Entry>) {
    while entries.iter().filter(|entry| !entry.applied).count() > UPDATERS_MAX {
        let mut updaters: Vec<usize> = (0..entries.len()).filter(|at| !entries[*at].applied).collect();
        updaters.sort_by_key(|at| (entries[*at].time, entries[*at].manager.clone()));
        let first = updaters[0];
        let Some(second) = updaters[1..].iter().copied().find(|at| entries[*at].api_version == entries[first].api_version) else { return };
        let (set, time) = (entries[second].set.clone(), entries[second].time);
        let bucket = &mut entries[first];
        bucket.set = std::mem::take(&mut bucket.set).union(&set);
        (bucket.manager, bucket.subresource, bucket.time) = (OLD_UPDATES.into(), String::new(), time);
        entries.remove(second);
    }
}

/// Takes away what the last configuration had and this one gave up, unless somebody else owns it.
fn prune(shape: Shape, merged: Value, others: &[Entry], wanted: &Set, last: &Set) -> Value {
    if last.is_empty() {
        return merged;
    }
    let members = |value: &Value| {
        let mut set = Set::default();
        // Lists of the live object may hold what cannot be told apart; it is then nobody's.
        let _ = typed::fields(shape, value, &mut set);
        typed::with_named_fields(shape, &set.pruned())
    };
    let gone = typed::with_named_fields(shape, last);
    let pruned = typed::without(shape, &merged, &gone).unwrap_or_else(|| json!({}));
    let all = members(&merged);
    // What others own comes back,
    let owned = others.iter().fold(wanted.clone(), |owned, entry| owned.union(&entry.set));
    let gone = all.difference(&members(&pruned)).difference(&typed::with_named_fields(shape, &owned));
    let pruned = typed::without(shape, &merged, &gone).unwrap_or_else(|| json!({}));
    // and so does what was never this manager's and only went with something around it.
    let gone = all.difference(&members(&pruned)).intersection(&typed::with_named_fields(shape, last));
    typed::without(shape, &merged, &gone).unwrap_or_else(|| json!({}))
}

fn compared(shape: Shape, kind: Option<Kind>, subresource: &str, old: &Value, new: &Value) -> Comparison {
    let mut change = Comparison::default();
    typed::compare(shape, Some(old), Some(new), &mut Vec::new(), &mut change);
    Comparison {
        added: owned_only(kind, subresource, change.added),
        modified: owned_only(kind, subresource, change.modified),
        removed: owned_only(kind, subresource, change.removed),
    }
}

/// Leaves out what a write through this subresource cannot change: the status of an object, or all but it.
fn owned_only(kind: Option<Kind>, subresource: &str, mut set: Set) -> Set {
    match subresource {
        "" => {
            let separate = kind.is_none_or(|kind| {
                resource_of_kind(kind.group, kind.version, kind.name).is_some_and(|row| row.subresource("status").is_some())
            });
            if separate {
                set.children.remove("f:status");
            }
        }
        "status" => set.children.retain(|key, _| key == "f:status" || key == "f:metadata"),
        _ => {}
    }
    set
}

/// Fields that the server writes and nobody owns.
fn strip(mut set: Set) -> Set {
    for path in [&["f:apiVersion"][..], &["f:kind"], &["f:metadata"]] {
        set.remove(path);
    }
    for key in
        ["name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"]
    {
        set.remove(&["f:metadata", &set::field(key)]);
    }
    set.pruned()
}

/// An entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    manager: String,
    subresource: String,
    applied: bool,
    api_version: String,
    time: Option<Timestamp>,
    set: Set,
}

impl Entry {
    fn describe(&self) -> String {
        let subresource = if self.subresource.is_empty() { String::new() } else { format!(" with subresource \"{}\"", self.subresource) };
        let using = if self.applied { String::new() } else { format!(" using {}", self.api_version) };
        format!("\"{}\"{subresource}{using}", self.manager)
    }
}

/// Reads the managed fields; entries that cannot be read are forgotten.
fn decode(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let mut entries: Vec<Entry> = Vec::new();
    for item in list {
        let Some(set) = item.get("fieldsV1").and_then(Set::parse) else { continue };
        let entry = Entry {
            manager: text(item, "manager"),
            subresource: text(item, "subresource"),
            applied: text(item, "operation") == "Apply",
            api_version: text(item, "apiVersion"),
            time: Timestamp::parse(&text(item, "time")),
            set,
        };
        entries.push(entry);
    }
    entries
}

fn encode(mut object: Value, entries: Vec<Entry>) -> Value {
    let list: Vec<Value> = sorted(entries)
        .into_iter()
        .map(|entry| {
            let mut item = Map::new();
            item.insert("manager".into(), entry.manager.into());
            item.insert("operation".into(), if entry.applied { "Apply" } else { "Update" }.into());
            item.insert("apiVersion".into(), entry.api_version.into());
            if let Some(time) = entry.time {
                item.insert("time".into(), time.to_string().into());
            }
            item.insert("fieldsType".into(), "FieldsV1".into());
            item.insert("fieldsV1".into(), entry.set.to_json());
            if !entry.subresource.is_empty() {
                item.insert("subresource".into(), entry.subresource.into());
            }
            item.into()
        })
        .collect();
    if let Some(object) = object.as_object_mut()
        && !list.is_empty()
        && let Some(metadata) = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
    {
        metadata.insert("managedFields".into(), list.into());
    }
    object
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| (!entry.applied, entry.time.map(Timestamp::seconds).unwrap_or_default());
        key(a).cmp(&key(b)).then_with(|| (&a.manager, &a.api_version, &a.subresource).cmp(&(&b.manager, &b.api_version, &b.subresource)))
    });
    entries
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().into()
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// What an object that does not exist yet is compared with: one of its kind in which nothing is set.
fn empty_object(kind: Option<Kind>, like: &Value) -> Value {
    let mut empty = json!({"apiVersion": text(like, "apiVersion"), "kind": text(like, "kind"), "metadata": {}});
    if let Some(kind) = kind {
        defaults::normalise(kind, &mut empty);
    }
    empty
}

/// The fields of the annotation that the object still has as they stand there.
fn unchanged_since_last_applied(kind: Option<Kind>, live: &Value) -> Option<Set> {
    let annotation = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let applied: Value = serde_json::from_str(annotation).ok()?;
    if text(&applied, "apiVersion") != text(live, "apiVersion") {
        return None;
    }
    let shape = Shape::of_object(kind);
    let mut set = Set::default();
    typed::fields(shape, &applied, &mut set).ok()?;
    let mut change = Comparison::default();
    typed::compare(shape, Some(&applied), Some(live), &mut Vec::new(), &mut change);
    Some(set.difference(&change.modified).difference(&change.added).difference(&change.removed))
}

/// Keeps kubectl's annotation true where there is one.
fn keep_last_applied(object: &mut Value, config: &Value) {
    let Some(annotation) = object.pointer_mut("/metadata/annotations").and_then(|annotations| annotations.get_mut(LAST_APPLIED)) else {
        return;
    };
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = format!("{config}\n").into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::kind_of;
    use crate::api::testdata;

    fn at(second: usize) -> Timestamp {
        Timestamp::from_seconds(second as i64)
    }

    /// Managed fields without times, in an order that does not depend on them.
    fn comparable(object: &Value) -> Value {
        let mut object = object.clone();
        if let Some(list) = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
            list.iter_mut().for_each(|entry| {
                entry.as_object_mut().unwrap().remove("time");
            });
            list.sort_by_key(|entry| format!("{} {}", entry["operation"], entry["manager"]));
        }
        object
    }

    #[test]
    fn histories_of_writes_end_as_they_do_upstream() {
        let lines = testdata::lines(include_bytes!("../testdata/apply.jsonl.zst"));
        for line in &lines {
            let kind = kind_of(line["apiVersion"].as_str().unwrap(), line["kind"].as_str().unwrap()).unwrap();
            let mut live: Option<Value> = None;
            let results = line["results"].as_array().unwrap();
            for (second, (step, expected)) in line["steps"].as_array().unwrap().iter().zip(results).enumerate() {
                let writer = Writer { manager: step["manager"].as_str().unwrap(), subresource: "" };
                let mut object = step["object"].clone();
                let result = if step["op"] == "apply" {
                    apply(Some(kind), live.as_ref(), &object, writer, step["force"] == true, at(second + 1)).map(|mut object| {
                        defaults::apply(kind, &mut object);
                        object
                    })
                } else {
                    defaults::apply(kind, &mut object);
                    Ok(track_update(Some(kind), live.as_ref(), object, writer, at(second + 1)))
                };
                match result {
                    Ok(object) => {
                        assert_eq!(expected.get("error"), None, "{step}");
                        testdata::assert_same(&comparable(&object), &comparable(&expected["object"]), &format!("{}.{second}", kind.name));
                        live = Some(object);
                    }
                    Err(refused) => assert_eq!(refused.status().message, expected["error"].as_str().unwrap_or_default(), "{step}"),
                }
            }
        }
        assert_eq!(lines.len(), 120);
    }

    const ME: Writer = Writer { manager: "me", subresource: "" };

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec})
    }

    fn kind() -> Option<Kind> {
        kind_of("apps/v1", "Deployment")
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let config = deployment(json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}));
        let first = apply(kind(), None, &config, ME, false, at(1)).unwrap();
        assert_eq!(apply(kind(), Some(&first), &config, ME, false, at(2)).unwrap(), first);
        assert_eq!(first["metadata"]["managedFields"][0]["time"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn fields_given_up_go_unless_another_owns_them() {
        let (one, two) = (deployment(json!({"replicas": 1, "minReadySeconds": 5})), deployment(json!({"replicas": 1})));
        let other = Writer { manager: "other", ..ME };
        let live = apply(kind(), None, &one, ME, false, at(1)).unwrap();
        let live = apply(kind(), Some(&live), &two, other, false, at(2)).unwrap();
        let live = apply(kind(), Some(&live), &deployment(json!({})), ME, false, at(3)).unwrap();
        assert_eq!((live["spec"]["replicas"].clone(), live["spec"].get("minReadySeconds")), (1.into(), None));
    }

    #[test]
    fn conflicts_name_the_owner_and_force_takes_over() {
        let live = track_update(kind(), None, deployment(json!({"replicas": 1})), Writer { manager: "kubectl-edit", ..ME }, at(1));
        let config = deployment(json!({"replicas": 2}));
        let refused = apply(kind(), Some(&live), &config, ME, false, at(2)).unwrap_err();
        let status = refused.status();
        assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using apps/v1: .spec.replicas");
        assert_eq!((status.code, &*status.details.causes[0].reason), (409, "FieldManagerConflict"));
        let live = apply(kind(), Some(&live), &config, ME, true, at(2)).unwrap();
        assert_eq!(live["spec"]["replicas"], 2);
        let managers: Vec<_> = live["metadata"]["managedFields"].as_array().unwrap().iter().map(|entry| entry["manager"].clone()).collect();
        assert_eq!(managers, ["me"]);
    }

    #[test]
    fn kubectl_takes_over_what_it_applied_from_the_client() {
        let config = deployment(json!({"replicas": 2}));
        let mut object = deployment(json!({"replicas": 2}));
        object["metadata"]["annotations"] = json!({LAST_APPLIED: config.to_string()});
        let live = track_update(kind(), None, object, Writer { manager: "kubectl-client-side-apply", ..ME }, at(1));
        let kubectl = Writer { manager: "kubectl", ..ME };
        let live = apply(kind(), Some(&live), &deployment(json!({"replicas": 3})), kubectl, false, at(2)).unwrap();
        assert_eq!(live["spec"]["replicas"], 3);
        assert!(live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().contains("\"replicas\":3"));
        assert!(apply(kind(), Some(&live), &config, ME, false, at(3)).is_err());
    }

    #[test]
    fn the_status_is_not_owned_through_the_object() {
        let mut object = deployment(json!({"replicas": 1}));
        object["status"] = json!({"replicas": 1});
        let live = track_update(kind(), None, object.clone(), ME, at(1));
        assert!(live["metadata"]["managedFields"][0]["fieldsV1"].get("f:status").is_none());
        object["status"] = json!({"replicas": 2});
        let live = track_update(kind(), Some(&live), object, Writer { manager: "controller", subresource: "status" }, at(2));
        assert_eq!(live["metadata"]["managedFields"][1]["subresource"], "status");
        assert_eq!(live["metadata"]["managedFields"][1]["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    }

    #[test]
    fn custom_resources_are_merged_key_by_key() {
        let custom = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": "a", "labels": {"a": "b"}}, "spec": spec});
        let live = apply(None, None, &custom(json!({"a": {"b": 1}, "l": [1, 2]})), ME, false, at(1)).unwrap();
        let live = apply(None, Some(&live), &custom(json!({"a": {"c": 1}, "l": [3]})), ME, false, at(2)).unwrap();
        assert_eq!(live["spec"], json!({"a": {"c": 1}, "l": [3]}));
    }

    #[test]
    fn old_updaters_are_put_together() {
        let mut live = None;
        for number in 0..15 {
            let manager = format!("m{number}");
            let mut object = deployment(json!({}));
            object["metadata"]["labels"] = (0..=number).map(|label| (format!("l{label}"), Value::from("x"))).collect::<Map<_, _>>().into();
            live = Some(track_update(kind(), live.as_ref(), object, Writer { manager: &manager, ..ME }, at(number)));
        }
        let live = live.unwrap();
        let entries = live["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), UPDATERS_MAX);
        assert_eq!(entries[0]["manager"], OLD_UPDATES);
    }

    #[test]
    fn objects_without_managed_fields_stay_without_until_they_are_applied() {
        let old = deployment(json!({"replicas": 1}));
        let new = track_update(kind(), Some(&old), deployment(json!({"replicas": 2})), ME, at(1));
        assert_eq!(new["metadata"].get("managedFields"), None);
        let live = apply(kind(), Some(&new), &deployment(json!({"paused": true})), ME, false, at(2)).unwrap();
        assert_eq!(live["metadata"]["managedFields"][1]["manager"], BEFORE_FIRST_APPLY);
        let config = json!({"metadata": {"managedFields": []}});
        assert!(matches!(apply(kind(), None, &config, ME, false, at(1)), Err(Refused::Invalid(_))));
    }
}
