//! What a template computes with: parts of the object, and what functions make of them. It never prints them.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Map, Value};

#[derive(Debug, Clone, PartialEq)]
pub enum Val<'a> {
    /// There is nothing: a key that a map has not, or nil.
    Missing,
    /// As it lies in a map or a list: Go's `interface {}`, which messages and null tell apart from what is in it.
    Boxed(&'a Value),
    Map(&'a Map<String, Value>),
    List(&'a [Value]),
    /// Bytes, for base64decode gives any.
    Text(Cow<'a, [u8]>),
    /// A constant, an index or a length: Go's int.
    Int(i64),
    /// A whole number of the object: Go's int64.
    Int64(i64),
    Float(f64),
    Bool(bool),
    /// One byte of a text: Go's uint8.
    Byte(u8),
}

impl<'a> Val<'a> {
    pub fn text(text: String) -> Self {
        Self::Text(Cow::Owned(text.into_bytes()))
    }

    /// What is in the box.
    pub fn unboxed(self) -> Self {
        let Self::Boxed(value) = self else { return self };
        match value {
            Value::Null => Self::Missing,
            Value::Bool(bool) => Self::Bool(*bool),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Self::Int64(whole),
                None => Self::Float(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Self::Text(Cow::Borrowed(text.as_bytes())),
            Value::Array(items) => Self::List(items),
            Value::Object(fields) => Self::Map(fields),
        }
    }

    /// Go's name for the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Missing => "<nil>",
            Self::Boxed(_) => "interface {}",
            Self::Map(_) => "map[string]interface {}",
            Self::List(_) => "[]interface {}",
            Self::Text(_) => "string",
            Self::Int(_) => "int",
            Self::Int64(_) => "int64",
            Self::Float(_) => "float64",
            Self::Bool(_) => "bool",
            Self::Byte(_) => "uint8",
        }
    }

    /// Whether it is more than the zero of its type.
    pub fn truth(&self) -> bool {
        match self.clone().unboxed() {
            Self::Missing | Self::Boxed(_) => false,
            Self::Map(fields) => !fields.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Text(text) => !text.is_empty(),
            Self::Int(whole) | Self::Int64(whole) => whole != 0,
            Self::Float(float) => float != 0.0,
            Self::Bool(bool) => bool,
            Self::Byte(byte) => byte != 0,
        }
    }

    pub fn whole(&self) -> Option<i64> {
        match self {
            Self::Int(whole) | Self::Int64(whole) => Some(*whole),
            Self::Byte(byte) => Some(i64::from(*byte)),
            _ => None,
        }
    }

    pub fn length(&self) -> Option<usize> {
        match self {
            Self::Map(fields) => Some(fields.len()),
            Self::List(items) => Some(items.len()),
            Self::Text(text) => Some(text.len()),
            _ => None,
        }
    }

    /// The order of two values of the same kind, both out of their boxes.
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => Some(one.cmp(other)),
            (Self::Float(one), Self::Float(other)) => one.partial_cmp(other),
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            _ => Some(self.whole()?.cmp(&other.whole()?)),
        }
    }
}
