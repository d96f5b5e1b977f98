//! Walks objects by their schema as structured-merge-diff does: which fields an object has, how two of them differ, one merged into
//! the other, and an object without some of its fields. Lists are keyed, sets or atomic as the schema table says.

use serde_json::{Map, Value};

use super::set::{Set, field};
use crate::api::schema::{Field, Kind, ListKind, Message, Type, element, kind};

/// How a value is owned and merged.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// As a whole: scalars, and atomic maps and lists.
    Whole,
    /// Field by field.
    Struct(Message),
    /// Key by key.
    Map(Type),
    /// Item by item, told apart by the values of some fields.
    Keyed(Field, Type),
    /// Item by item, told apart by their value.
    Set,
    /// Nothing is known: maps key by key, everything else as a whole. `true` for an object itself, whose metadata is known.
    Free(bool),
}

/// What changed between two objects.
#[derive(Default)]
pub(super) struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Shape {
    /// Of an object; without a kind it is a custom resource.
    pub fn of_object(kind: Option<Kind>) -> Self {
        kind.map_or(Self::Free(true), |kind| Self::Struct(kind.message))
    }

    fn of_field(field: Field) -> Self {
        match field.ty() {
            Type::Message(_) | Type::Map(_) if field.is_atomic() => Self::Whole,
            // An atomic struct may be opened up again where it is used.
            Type::Message(message) => Self::Struct(message),
            Type::List(of) | Type::WrappedList(of) => match field.list_kind() {
                ListKind::Atomic => Self::Whole,
                ListKind::Set => Self::Set,
                ListKind::Map => Self::Keyed(field, element(of)),
                ListKind::Unset if !field.strategy().merge => Self::Whole,
                ListKind::Unset if field.merge_key().is_some() => Self::Keyed(field, element(of)),
                ListKind::Unset => Self::Set,
            },
            ty => Self::of_type(ty),
        }
    }

    /// Of a list's item or a map's value.
    fn of_type(ty: Type) -> Self {
        match ty {
            Type::Message(message) if !message.is_atomic() => Self::Struct(message),
            Type::Map(of) => Self::Map(element(of)),
            _ => Self::Whole,
        }
    }

    /// Of the value at a key.
    fn at(self, key: &str) -> Self {
        match self {
            Self::Struct(message) => message.field(key).map_or(Self::Whole, Self::of_field),
            Self::Map(of) => Self::of_type(of),
            Self::Free(true) if key == "metadata" => {
                kind("", "v1", "Pod").and_then(|pod| pod.message.field("metadata")).map_or(Self::Free(false), Self::of_field)
            }
            _ => Self::Free(false),
        }
    }

    /// Of an item of a list.
    fn item(self) -> Self {
        match self {
            Self::Keyed(_, of) => Self::of_type(of),
            _ => Self::Whole,
        }
    }

    fn is_map(self) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Free(_))
    }

    fn is_list(self) -> bool {
        matches!(self, Self::Keyed(..) | Self::Set)
    }

    /// Has a field of this name by its schema.
    fn has_field(self, name: &str) -> bool {
        matches!(self, Self::Struct(message) if message.field(name).is_some())
    }

    /// The element that tells an item from others in its list; `None` if the item has none of the keys.
    fn element_of(self, item: &Value) -> Option<String> {
        let Self::Keyed(list, of) = self else {
            return (!item.is_object() && !item.is_array() && !item.is_null()).then(|| format!("v:{item}"));
        };
        let mut keys = Map::new();
        let named = list.list_map_keys().chain(if list.list_kind() == ListKind::Unset { list.merge_key() } else { None });
        for key in named {
            if let Some(value) = item.get(key).filter(|value| !value.is_null()) {
                keys.insert(key.into(), value.clone());
            } else if let Some(default) = key_default(of, key) {
                keys.insert(key.into(), default.into());
            }
        }
        (!keys.is_empty()).then(|| format!("k:{}", Value::Object(keys)))
    }
}

/// The only defaults of keys in the schema: ports are TCP unless they say otherwise.
fn key_default(of: Type, key: &str) -> Option<&'static str> {
    match of {
        Type::Message(message) if key == "protocol" && matches!(message.name(), "ContainerPort" | "ServicePort") => Some("TCP"),
        _ => None,
    }
}

fn map(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether the two are looked at as a whole: by their shape, or because neither has anything in it.
fn is_leaf(shape: Shape, a: Option<&Value>, b: Option<&Value>) -> bool {
    let fits = |value: &Value| value.is_null() || if shape.is_map() { value.is_object() } else { value.is_array() };
    if !shape.is_map() && !shape.is_list() || !a.is_none_or(fits) || !b.is_none_or(fits) {
        return true;
    }
    if shape.is_map() {
        map(a).is_none_or(Map::is_empty) && map(b).is_none_or(Map::is_empty)
    } else {
        list(a).is_empty() && list(b).is_empty()
    }
}

/// All keys of the two, each once.
fn keys<'a>(a: Option<&'a Value>, b: Option<&'a Value>) -> Vec<&'a String> {
    let mut all: Vec<&String> = map(a).into_iter().chain(map(b)).flat_map(Map::keys).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The fields an object has. What an associative list's item cannot be told apart by is an error.
pub(super) fn fields(shape: Shape, value: &Value, set: &mut Set) -> Result<(), String> {
    if shape.is_map() && value.is_object() {
        for (key, below) in map(Some(value)).into_iter().flatten() {
            let child = set.child(&field(key));
            fields(shape.at(key), below, child)?;
            let nothing = below.is_null() || below.as_object().is_some_and(Map::is_empty);
            child.member |= nothing || !shape.has_field(key);
        }
    } else if shape.is_list() && (value.is_array() || value.is_null()) {
        for item in list(Some(value)) {
            let name = shape.element_of(item).ok_or("associative list with keys has an element that omits all key fields")?;
            if set.children.contains_key(&name) {
                return Err(format!("duplicate entries for key {}", &name[2..]));
            }
            let child = set.child(&name);
            fields(shape.item(), item, child)?;
            child.member = true;
        }
    } else {
        set.member = true;
    }
    Ok(())
}

/// Notes every difference between two values below `path`.
pub(super) fn compare(shape: Shape, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<String>, found: &mut Comparison) {
    if is_leaf(shape, old, new) {
        match (old, new) {
            (None, Some(_)) => found.added.insert(path),
            (Some(_), None) => found.removed.insert(path),
            (old, new) if old != new => found.modified.insert(path),
            _ => {}
        }
        return;
    }
    if shape.is_map() {
        for key in keys(old, new) {
            path.push(field(key));
            compare(shape.at(key), map(old).and_then(|map| map.get(key)), map(new).and_then(|map| map.get(key)), path, found);
            path.pop();
        }
    } else {
        let (old, new) = (indexed(shape, list(old)), indexed(shape, list(new)));
        let added = new.iter().filter(|(name, _)| !old.iter().any(|(known, _)| known == name));
        for (name, _) in old.iter().chain(added) {
            let all = |list: &[(String, &Value)]| -> Vec<Value> {
                list.iter().filter(|(known, _)| known == name).map(|(_, item)| (*item).clone()).collect()
            };
            let (before, after) = (all(&old), all(&new));
            path.push(name.clone());
            match (&before[..], &after[..]) {
                ([] | [_], [] | [_]) => compare(shape.item(), before.first(), after.first(), path, found),
                // Items that stand twice are looked at together.
                ([_, _, ..], [_, _, ..]) if before != after => found.modified.insert(path),
                ([_, _, ..], [_, _, ..]) => {}
                ([_, _, ..], _) => {
                    if let Some(item) = after.first() {
                        compare(shape.item(), None, Some(item), path, found);
                    }
                    found.removed.insert(path);
                }
                _ => {
                    if let Some(item) = before.first() {
                        compare(shape.item(), Some(item), None, path, found);
                    }
                    found.added.insert(path);
                }
            }
            path.pop();
        }
    }
    match (old, new) {
        (None, _) => found.added.insert(path),
        (_, None) => found.removed.insert(path),
        _ => {}
    }
}

/// Items with their elements; those that cannot be told apart are left out.
fn indexed(shape: Shape, list: &[Value]) -> Vec<(String, &Value)> {
    list.iter().filter_map(|item| Some((shape.element_of(item)?, item))).collect()
}

/// `config` merged into `live`.
pub(super) fn merge(shape: Shape, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    if is_leaf(shape, live, config) {
        return config.or(live).cloned();
    }
    if shape.is_map() {
        let merged = keys(live, config).into_iter().filter_map(|key| {
            let value = merge(shape.at(key), map(live).and_then(|map| map.get(key)), map(config).and_then(|map| map.get(key)))?;
            Some((key.clone(), value))
        });
        return Some(Value::Object(merged.collect()));
    }
    Some(merge_lists(shape, &indexed(shape, list(live)), &indexed(shape, list(config))).into())
}

/// Keeps the order of the configuration, and of the live items around those that both have.
fn merge_lists(shape: Shape, live: &[(String, &Value)], config: &[(String, &Value)]) -> Vec<Value> {
    let find = |list: &[(String, &Value)], name: &str| list.iter().position(|(known, _)| known == name);
    let value = |list: &[(String, &Value)], name: &str| find(list, name).map(|at| list[at].1.clone());
    let mut shared = config.iter().map(|(name, _)| name).filter(|name| find(live, name).is_some());
    let mut next_shared = shared.next();
    let (mut out, mut done, mut l, mut c) = (Vec::new(), Vec::new(), 0, 0);
    while l < live.len() || c < config.len() {
        if l < live.len() && c < config.len() {
            let name = &live[l].0;
            if *name == config[c].0 {
                done.push(name);
                out.extend(merge(shape.item(), Some(live[l].1), Some(config[c].1)));
                (l, c) = (l + 1, c + 1);
                next_shared = shared.next();
                continue;
            }
            if find(config, name).is_some() && next_shared.is_some_and(|next| next != name) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if l < live.len() {
            let name = &live[l].0;
            if find(config, name).is_none() {
                out.push(live[l].1.clone());
                l += 1;
                continue;
            }
            if done.contains(&name) {
                l += 1;
            }
        }
        if c < config.len() {
            let name = &config[c].0;
            done.push(name);
            out.extend(merge(shape.item(), value(live, name).as_ref(), Some(config[c].1)));
            c += 1;
            if next_shared == Some(name) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The value without the members of `gone`; `None` if nothing is left.
pub(super) fn without(shape: Shape, value: &Value, gone: &Set) -> Option<Value> {
    if shape.is_map() && value.is_object() {
        let mut rest = Map::new();
        for (key, below) in map(Some(value)).into_iter().flatten() {
            match gone.children.get(&field(key)) {
                Some(child) if child.member => {}
                Some(child) if !child.children.is_empty() => {
                    // What has nothing left in it is null, not gone: the field itself was not taken away.
                    rest.insert(key.clone(), without(shape.at(key), below, child).unwrap_or_default());
                }
                _ => {
                    rest.insert(key.clone(), below.clone());
                }
            }
        }
        return (!rest.is_empty()).then(|| rest.into());
    }
    if shape.is_list() && value.is_array() {
        let mut rest = Vec::new();
        for item in list(Some(value)) {
            match shape.element_of(item).and_then(|name| gone.children.get(&name)) {
                Some(child) if child.member => {}
                Some(child) if !child.children.is_empty() => rest.extend(without(shape.item(), item, child)),
                _ => rest.push(item.clone()),
            }
        }
        return (!rest.is_empty()).then(|| rest.into());
    }
    // What is owned as a whole is not taken apart.
    None
}

/// Makes fields of structs members if anything below them is, so that they can be compared with what was taken away.
pub(super) fn with_named_fields(shape: Shape, set: &Set) -> Set {
    let children = set.children.iter().map(|(name, child)| {
        let (below, named) = match name.split_at_checked(2) {
            Some(("f:", key)) => (shape.at(key), shape.has_field(key)),
            _ => (shape.item(), false),
        };
        let mut child = with_named_fields(below, child);
        child.member |= named && !child.children.is_empty();
        (name.clone(), child)
    });
    Set { member: set.member, children: children.collect() }
}

/// The value with a null for each field that Go would write although nothing is in it: it is there and empty, not added later.
pub(super) fn with_nulls(shape: Shape, value: Value) -> Value {
    match value {
        Value::Object(mut map) if shape.is_map() => {
            if let Shape::Struct(message) = shape {
                for field in message.json_fields() {
                    if !field.omit_empty() && !map.contains_key(field.name()) {
                        map.insert(field.name().into(), Value::Null);
                    }
                }
            }
            map.into_iter().map(|(key, value)| (key.clone(), with_nulls(shape.at(&key), value))).collect()
        }
        Value::Array(list) if shape.is_list() => list.into_iter().map(|item| with_nulls(shape.item(), item)).collect(),
        other => other,
    }
}

/// The value without nulls.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
