//! Checks an object against the schema table: unknown fields with the one that was probably meant, and values of a wrong type.
//! What is unknown is taken out, as the typed objects of upstream would lose it. It does not judge values.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::api::quantity::Quantity;
use crate::api::schema::{Kind, Message, Type, element};
use crate::api::text;
use crate::base::time::Timestamp;

/// Something that the schema does not know, or knows otherwise. Paths are as `spec.containers[0].name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldProblem {
    /// The kind has no such field; `likely` is the one that was probably meant.
    Unknown { path: String, likely: Option<String> },
    /// A key stands twice in its object.
    Duplicate { path: String },
    /// The value cannot be read at all. This is an error whatever `fieldValidation` says.
    WrongType { path: String, message: String },
}

impl FieldProblem {
    /// The object cannot be taken even with `fieldValidation=Ignore`.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::WrongType { .. })
    }
}

/// Upstream's words, as they stand in `strict decoding error: …` and in Warning headers.
impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unknown { path, likely: None } => write!(f, "unknown field \"{path}\""),
            Self::Unknown { path, likely: Some(likely) } => write!(f, "unknown field \"{path}\" (did you mean \"{likely}\"?)"),
            Self::Duplicate { path } => write!(f, "duplicate field \"{path}\""),
            Self::WrongType { path, message } => write!(f, "{message} in field \"{path}\""),
        }
    }
}

/// Problems reported per object; the rest is pruned all the same.
const PROBLEMS_MAX: usize = 100;

/// Checks `object` against `kind`, and takes out unknown fields and nulls.
pub fn check_fields(kind: Kind, object: &mut Value) -> Vec<FieldProblem> {
    let mut check = Check { kind, problems: Vec::new() };
    check.message(kind.message, object, &mut String::new());
    check.problems
}

struct Check {
    kind: Kind,
    problems: Vec<FieldProblem>,
}

impl Check {
    fn note(&mut self, problem: FieldProblem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn wrong(&mut self, path: &str, message: impl Into<String>) {
        self.note(FieldProblem::WrongType { path: path.into(), message: message.into() });
    }

    fn mismatch(&mut self, path: &str, value: &Value, go: &str) {
        let what = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.wrong(path, format!("json: cannot unmarshal {what} into Go struct field {}.{path} of type {go}", self.kind.name));
    }

    fn message(&mut self, message: Message, value: &mut Value, path: &mut String) {
        let Value::Object(map) = value else { return self.mismatch(path, value, message.name()) };
        let all: Vec<String> = map.keys().cloned().collect();
        let top = path.is_empty();
        for key in all {
            let length = path.len();
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&key);
            match message.field(&key) {
                Some(field) => {
                    if map[&key].is_null() {
                        map.remove(&key);
                    } else if let Some(value) = map.get_mut(&key) {
                        self.value(field.ty(), value, path);
                    }
                }
                None if top && matches!(key.as_str(), "apiVersion" | "kind") => {}
                None => {
                    map.remove(&key);
                    // Looking for the likely field takes long; past the bound nobody would see it.
                    if self.problems.len() < PROBLEMS_MAX {
                        let likely = text::likely(&key, message.json_fields().map(|field| field.name())).map(String::from);
                        self.problems.push(FieldProblem::Unknown { path: path.clone(), likely });
                    }
                }
            }
            path.truncate(length);
        }
    }

    fn value(&mut self, ty: Type, value: &mut Value, path: &mut String) {
        match ty {
            Type::Bool if value.is_boolean() => {}
            Type::Bool => self.mismatch(path, value, "bool"),
            Type::Int32 => {
                if value.as_i64().is_none_or(|number| i32::try_from(number).is_err()) {
                    self.mismatch(path, value, "int32");
                }
            }
            Type::Int64 if value.is_i64() => {}
            Type::Int64 => self.mismatch(path, value, "int64"),
            Type::Double if value.is_number() => {}
            Type::Double => self.mismatch(path, value, "float64"),
            Type::String | Type::Enum(_) if value.is_string() => {}
            Type::String | Type::Enum(_) => self.mismatch(path, value, "string"),
            Type::Bytes => match value {
                Value::String(text) => {
                    if let Err(error) = STANDARD.decode(text.replace(['\n', '\r'], "")) {
                        let at = match error {
                            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                            _ => text.len() & !3,
                        };
                        self.wrong(path, format!("illegal base64 data at input byte {at}"));
                    }
                }
                _ => self.mismatch(path, value, "[]uint8"),
            },
            Type::Quantity => match value {
                Value::String(text) => {
                    if let Err(error) = Quantity::parse(text.trim()) {
                        self.wrong(path, error.to_string());
                    }
                }
                Value::Number(number) => *value = number.to_string().into(),
                _ => self.mismatch(path, value, "resource.Quantity"),
            },
            Type::Time | Type::MicroTime => match value {
                Value::String(text) => {
                    if Timestamp::parse(text).is_none() {
                        let message =
                            format!("parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" as \"2006\"");
                        self.wrong(path, message);
                    }
                }
                _ => self.mismatch(path, value, "Time"),
            },
            Type::Duration => match value {
                Value::String(text) if text::parse_duration(text).is_some() => {}
                Value::String(text) => {
                    let message = format!("time: invalid duration \"{text}\"");
                    self.wrong(path, message);
                }
                _ => self.mismatch(path, value, "Duration"),
            },
            Type::IntOrString => {
                if !value.is_string() && value.as_i64().is_none_or(|number| i32::try_from(number).is_err()) {
                    self.mismatch(path, value, "intstr.IntOrString");
                }
            }
            Type::Raw | Type::Fields if value.is_object() => {}
            Type::Raw | Type::Fields => self.mismatch(path, value, "map[string]interface {}"),
            Type::Json | Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {}
            Type::Message(message) => self.message(message, value, path),
            Type::List(of) | Type::WrappedList(of) => {
                let Value::Array(list) = value else { return self.mismatch(path, value, "[]") };
                for (index, item) in list.iter_mut().enumerate() {
                    if item.is_null() {
                        *item = zero(element(of));
                    }
                    let length = path.len();
                    path.push_str(&format!("[{index}]"));
                    self.value(element(of), item, path);
                    path.truncate(length);
                }
            }
            Type::Map(of) => {
                let Value::Object(map) = value else { return self.mismatch(path, value, "map[string]") };
                for (key, item) in map.iter_mut() {
                    if item.is_null() {
                        *item = zero(element(of));
                    }
                    let length = path.len();
                    path.push('.');
                    path.push_str(key);
                    self.value(element(of), item, path);
                    path.truncate(length);
                }
            }
        }
    }
}

/// What Go makes of a null in a list or a map: the zero of its type.
fn zero(ty: Type) -> Value {
    match ty {
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        Type::Message(_) => Map::new().into(),
        Type::List(_) | Type::WrappedList(_) => Vec::<Value>::new().into(),
        Type::Map(_) | Type::Raw | Type::Fields => Map::new().into(),
        Type::Json | Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => Value::Null,
        _ => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema::kind;

    fn check(group: &str, name: &str, mut object: Value) -> (Vec<String>, Value) {
        let problems = check_fields(kind(group, "v1", name).unwrap(), &mut object);
        (problems.iter().map(|problem| problem.to_string()).collect(), object)
    }

    #[test]
    fn unknown_fields_are_named_with_the_likely_one_and_taken_out() {
        let (problems, object) = check(
            "apps",
            "Deployment",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "creationTimestamp": null, "labels": {"anything": "goes"}},
                "spec": {"replicass": 1, "paused": true, 
                    "template": {"spec": {"containers": [{"name": "a", "imag": "b"}], "volumes": [{"name": "v", "emptyDir": {}, "zzz": 1}]}}},
                "unknown": 1}),
        );
        assert_eq!(
            problems,
            [
                "unknown field \"spec.replicass\" (did you mean \"replicas\"?)",
                "unknown field \"spec.template.spec.containers[0].imag\" (did you mean \"image\"?)",
                "unknown field \"spec.template.spec.volumes[0].zzz\"",
                "unknown field \"unknown\"",
            ]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "labels": {"anything": "goes"}},
                "spec": {"paused": true, "template": {"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}}}})
        );
    }

    #[test]
    fn wrong_types_are_fatal_and_read_as_upstream() {
        let (problems, _) = check("apps", "Deployment", json!({"spec": {"replicas": "3"}}));
        assert_eq!(
            problems,
            ["json: cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32 in field \"spec.replicas\""]
        );
        for bad in [
            json!({"metadata": {"labels": {"a": 1}}}),
            json!({"spec": {"containers": {}}}),
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "one"}}}]}}),
            json!({"metadata": {"deletionTimestamp": "yesterday"}}),
            json!({"spec": {"terminationGracePeriodSeconds": 1.5}}),
            json!({"spec": []}),
        ] {
            let mut object = bad.clone();
            let problems = check_fields(kind("", "v1", "Pod").unwrap(), &mut object);
            assert!(problems.len() == 1 && problems[0].is_fatal(), "{bad}: {problems:?}");
        }
        let (problems, _) = check("", "Secret", json!({"data": {"a": "%"}}));
        assert_eq!(problems, ["illegal base64 data at input byte 0 in field \"data.a\""]);
    }

    #[test]
    fn what_is_right_passes() {
        let (problems, object) = check(
            "",
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1, "memory": "64Mi"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3}, "command": null, "args": [null]}]}}),
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(object["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
        assert_eq!(object["spec"]["containers"][0]["args"], json!([""]));
    }
}
