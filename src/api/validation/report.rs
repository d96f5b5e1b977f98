//! Walks an object with its path in hand and writes down what is wrong in upstream's words (apimachinery/pkg/util/validation/field).

use serde_json::{Map, Value};

use crate::api::status::Cause;

/// Causes kept per object; more would not help anybody.
const CAUSES_MAX: usize = 100;

/// A value and where it stands. What is not there is null.
#[derive(Clone)]
pub(super) struct Node<'a> {
    pub value: &'a Value,
    pub path: String,
}

impl<'a> Node<'a> {
    pub fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field; the empty path is that of the object itself.
    pub fn get(&self, key: &str) -> Node<'a> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Node { value: self.value.get(key).unwrap_or(&Value::Null), path }
    }

    /// A field of a field: `a.b.c`.
    pub fn at(&self, keys: &str) -> Node<'a> {
        keys.split('.').fold(self.clone(), |node, key| node.get(key))
    }

    /// The same value under another path.
    pub fn named(&self, path: impl Into<String>) -> Node<'a> {
        Node { value: self.value, path: path.into() }
    }

    /// An entry of a map: `data[key]`.
    pub fn entry(&self, key: &str) -> Node<'a> {
        Node { value: self.value.get(key).unwrap_or(&Value::Null), path: format!("{}[{key}]", self.path) }
    }

    pub fn items(&self) -> impl Iterator<Item = Node<'a>> {
        let path = self.path.clone();
        let list = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().enumerate().map(move |(index, value)| Node { value, path: format!("{path}[{index}]") })
    }

    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.value.as_object().into_iter().flatten()
    }

    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn bool(&self) -> bool {
        self.value.as_bool().unwrap_or_default()
    }

    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        self.value.as_object()
    }

    /// Is there at all.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Is not there, or has nothing in it.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        }
    }
}

#[derive(Default)]
pub(super) struct Report {
    pub causes: Vec<Cause>,
}

impl Report {
    fn add(&mut self, reason: &'static str, field: &str, message: String) {
        if self.causes.len() < CAUSES_MAX {
            self.causes.push(Cause { reason: reason.into(), message, field: field.into() });
        }
    }

    pub fn required(&mut self, node: &Node, detail: &str) {
        self.add("FieldValueRequired", &node.path, joined("Required value", detail));
    }

    pub fn forbidden(&mut self, node: &Node, detail: &str) {
        self.add("FieldValueForbidden", &node.path, joined("Forbidden", detail));
    }

    pub fn invalid(&mut self, node: &Node, detail: impl AsRef<str>) {
        self.wrong(node, node.value, detail);
    }

    /// Invalid because of a value that is not the one at the path.
    pub fn wrong(&mut self, node: &Node, value: &Value, detail: impl AsRef<str>) {
        self.add("FieldValueInvalid", &node.path, joined(&format!("Invalid value: {value}"), detail.as_ref()));
    }

    pub fn duplicate(&mut self, node: &Node, value: &Value) {
        self.add("FieldValueDuplicate", &node.path, format!("Duplicate value: {value}"));
    }

    pub fn not_found(&mut self, node: &Node) {
        self.add("FieldValueNotFound", &node.path, format!("Not found: {}", node.value));
    }

    pub fn too_long(&mut self, node: &Node, max_bytes: usize) {
        self.add("FieldValueTooLong", &node.path, format!("Too long: may not be more than {max_bytes} bytes"));
    }

    pub fn not_supported(&mut self, node: &Node, values: &[&str]) {
        let list: Vec<String> = values.iter().map(|value| format!("\"{value}\"")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", node.value, list.join(", "));
        self.add("FieldValueNotSupported", &node.path, message);
    }

    /// Each of `problems` is a reason why the value is invalid.
    pub fn all(&mut self, node: &Node, problems: Vec<String>) {
        problems.iter().for_each(|problem| self.invalid(node, problem));
    }

    /// The value must be one of these; empty is for others to judge.
    pub fn one_of(&mut self, node: &Node, values: &[&str]) {
        if node.is_set() && !values.contains(&node.text()) {
            self.not_supported(node, values);
        }
    }

    pub fn not_negative(&mut self, node: &Node) {
        if node.int().is_some_and(|number| number < 0) {
            self.invalid(node, "must be greater than or equal to 0");
        }
    }

    pub fn between(&mut self, node: &Node, low: i64, high: i64) {
        if node.int().is_some_and(|number| number < low || number > high) {
            self.invalid(node, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A number or name of a port; nothing at all is the number 0.
    pub fn port(&mut self, node: &Node) {
        match node.value {
            Value::String(text) => self.all(node, super::names::port_name(text)),
            Value::Null => self.wrong(node, &Value::from(0), "must be between 1 and 65535, inclusive"),
            _ => self.between(node, 1, 65535),
        }
    }

    /// May not differ from what it was.
    pub fn immutable(&mut self, node: &Node, old: &Node) {
        if node.value != old.value {
            self.invalid(node, "field is immutable");
        }
    }
}

fn joined(what: &str, detail: &str) -> String {
    if detail.is_empty() { what.into() } else { format!("{what}: {detail}") }
}
