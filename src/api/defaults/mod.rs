//! Fills in what the user left out, as upstream does before an object is validated and stored, and brings the object into the form
//! that upstream's typed objects have in JSON. It never refuses anything and never looks beyond the object.
//!
//! Upstream registers its defaulting functions by Go type and calls them wherever the type occurs; so does the walk below.
//! Source: kubernetes/kubernetes pkg/apis/*/*/defaults.go and the `+default` markers of k8s.io/api, 1.36.

mod core;
mod groups;

use serde_json::{Map, Value, json};

use super::quantity::Quantity;
use super::schema::{Field, Kind, Message, Type, element};
use crate::base::time::Timestamp;

type Object = Map<String, Value>;

/// Defaults `object`. Unknown fields are left alone; applying it again changes nothing.
pub fn apply(kind: Kind, object: &mut Value) {
    if let Value::Object(map) = object {
        // First all of it: what a default looks at may lie deeper than where it is set.
        message(kind.message, map, false);
        message(kind.message, map, true);
    }
}

/// Brings values into canonical form (quantities, times) and takes out zeros, as `apply` does, without any default.
/// Objects from clients that write zeros and objects from clients that leave them out are the same after it.
pub fn normalise(kind: Kind, object: &mut Value) {
    if let Value::Object(map) = object {
        message(kind.message, map, false);
    }
}

fn message(of: Message, map: &mut Object, fill: bool) {
    for field in of.json_fields() {
        tidy(field, map);
    }
    if fill {
        match of.package() {
            "io.k8s.api.core.v1" => core::message(of.name(), map),
            package => groups::message(package, of.name(), map),
        }
    }
    for field in of.json_fields() {
        if let Some(inner) = map.get_mut(field.name()) {
            value(field.ty(), inner, fill);
        }
    }
}

fn value(ty: Type, value: &mut Value, fill: bool) {
    match (ty, value) {
        (Type::Message(of), Value::Object(map)) => message(of, map, fill),
        (Type::List(of) | Type::WrappedList(of), Value::Array(list)) => {
            list.iter_mut().for_each(|item| self::value(element(of), item, fill))
        }
        (Type::Map(of), Value::Object(map)) => map.values_mut().for_each(|item| match element(of) {
            // A resource list; upstream keeps no more than thousandths.
            Type::Quantity => quantity(item, fill),
            of => self::value(of, item, fill),
        }),
        (Type::Quantity, item) => quantity(item, false),
        (Type::Time, Value::String(text)) => {
            if let Some(at) = Timestamp::parse(text) {
                *text = at.to_string();
            }
        }
        (Type::MicroTime, Value::String(text)) => {
            if let Some(at) = Timestamp::parse(text) {
                *text = at.rfc3339_micros();
            }
        }
        _ => {}
    }
}

fn quantity(value: &mut Value, round: bool) {
    let text = match &*value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = Quantity::parse(&text) {
        *value = if round { quantity.round_up_to_milli() } else { quantity }.to_string().into();
    }
}

/// Takes out what Go leaves out, and puts in what it always writes.
fn tidy(field: Field, map: &mut Object) {
    let name = field.name();
    let dropped = field.omit_empty() && !field.pointer();
    if map.get(name).is_some_and(|value| value.is_null() || dropped && is_empty(field.ty(), value)) {
        map.remove(name);
    }
    if field.pointer() || map.contains_key(name) {
        return;
    }
    let always = match field.ty() {
        Type::Message(_) if !field.omit_zero() => json!({}),
        Type::Quantity if !field.omit_zero() => json!("0"),
        _ if field.omit_empty() => return,
        Type::Bool => json!(false),
        Type::Int32 | Type::Int64 | Type::IntOrString => json!(0),
        Type::String | Type::Enum(_) => json!(""),
        _ => return,
    };
    map.insert(name.into(), always);
}

fn is_empty(ty: Type, value: &Value) -> bool {
    match value {
        Value::Bool(set) => !set,
        Value::Number(number) => !matches!(ty, Type::IntOrString | Type::Quantity) && number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() && !matches!(ty, Type::IntOrString | Type::Quantity),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(ty, Type::Map(_)),
        Value::Null => true,
    }
}

/// Sets `key` if it is not there.
fn set(map: &mut Object, key: &str, value: impl Into<Value>) {
    map.entry(key).or_insert_with(|| value.into());
}

/// The object at `key`, if there is one.
fn object<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key)?.as_object_mut()
}

/// The object at `key`, made if it is not there.
fn made<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.entry(key).or_insert_with(|| json!({})).as_object_mut()
}

/// The objects in the list at `key`.
fn objects<'a>(map: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn text<'a>(map: &'a Object, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::kind_of;
    use crate::api::testdata::{assert_same, lines};

    #[test]
    fn objects_become_what_upstream_makes_of_them() {
        let lines = lines(include_bytes!("../testdata/defaults.jsonl.zst"));
        for line in &lines {
            let mut object = line["in"].clone();
            let kind = kind_of(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()).unwrap();
            apply(kind, &mut object);
            assert_same(&object, &line["out"], kind.name);
            let once = object.clone();
            apply(kind, &mut object);
            assert_eq!(once, object, "{} changes when it is defaulted again", kind.name);
        }
        assert!(lines.len() > 300);
    }

    #[test]
    fn images_are_pulled_always_when_they_may_change() {
        let policy = |image: &str| {
            let mut pod = json!({"spec": {"containers": [{"image": image}]}});
            apply(kind_of("v1", "Pod").unwrap(), &mut pod);
            pod["spec"]["containers"][0]["imagePullPolicy"].as_str().unwrap().to_owned()
        };
        for image in ["nginx", "nginx:latest", "r:5000/nginx", "docker.io/library/nginx"] {
            assert_eq!(policy(image), "Always", "{image}");
        }
        for image in ["", "nginx:1", "r:5000/nginx:1", "nginx@sha256:00", "nginx:1@sha256:00"] {
            assert_eq!(policy(image), "IfNotPresent", "{image}");
        }
    }
}
