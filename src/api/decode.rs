//! Reads request bodies and manifests: JSON, and YAML as kubectl reads it, into `serde_json::Value`.
//! A key that stands twice is reported and the last one wins. It does not look at kinds; `validation` does.

use std::cell::RefCell;
use std::fmt;

use anyhow::{Result, anyhow, bail};
use serde::de::{Deserialize, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::schema::{Type, element, kind_of};
use super::validation::FieldProblem;

/// Reads one JSON document. Nesting is bounded by serde_json (128).
pub fn json(bytes: &[u8]) -> Result<(Value, Vec<FieldProblem>)> {
    let reader = Reader::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = reader.seed("").deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, reader.problems.into_inner()))
}

/// Reads the first document of a YAML text that is not empty; `Null` if there is none.
pub fn yaml(bytes: &[u8]) -> Result<(Value, Vec<FieldProblem>)> {
    let documents = yaml_documents(bytes)?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

/// Reads all documents of a YAML text (or JSON, which is YAML), without the empty ones.
pub fn yaml_documents(bytes: &[u8]) -> Result<Vec<(Value, Vec<FieldProblem>)>> {
    let text = std::str::from_utf8(bytes).map_err(|error| anyhow!("not UTF-8 text after byte {}", error.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let reader = Reader { yaml: true, ..Reader::default() };
        // The iterator repeats a syntax error for ever: the first one ends it.
        let mut value = reader.seed("").deserialize(document).map_err(|error| explain(text, &error))?;
        older_scalars(&mut value);
        if !value.is_null() {
            documents.push((value, reader.problems.into_inner()));
        }
    }
    Ok(documents)
}

/// kubectl reads YAML 1.1, where `0644` is octal and `yes` is true; the reader here leaves both as text. Where the schema of a
/// built-in kind wants a number or a boolean, they become one. (Quoted ones do too: the quotes are not known any more.)
fn older_scalars(object: &mut Value) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    match kind_of(text("apiVersion"), text("kind")) {
        Some(kind) => older_scalar(Type::Message(kind.message), object),
        None if text("apiVersion") == "v1" && text("kind") == "List" => {
            object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(older_scalars);
        }
        None => {}
    }
}

fn older_scalar(ty: Type, value: &mut Value) {
    match (ty, value) {
        (Type::Message(message), Value::Object(map)) => map.iter_mut().for_each(|(key, value)| {
            if let Some(field) = message.field(key) {
                older_scalar(field.ty(), value);
            }
        }),
        (Type::List(of) | Type::WrappedList(of), Value::Array(list)) => list.iter_mut().for_each(|item| older_scalar(element(of), item)),
        (Type::Map(of), Value::Object(map)) => map.values_mut().for_each(|item| older_scalar(element(of), item)),
        (Type::Int32 | Type::Int64, value @ Value::String(_)) => {
            let text = value.as_str().unwrap_or_default();
            let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
            if let Some(number) = digits.and_then(|digits| i64::from_str_radix(digits, 8).ok()) {
                *value = number.into();
            }
        }
        (Type::Bool, value @ Value::String(_)) => match value.as_str().unwrap_or_default() {
            "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => *value = true.into(),
            "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => *value = false.into(),
            _ => {}
        },
        _ => {}
    }
}

/// Says where a YAML text is broken, and names the commonest cause.
fn explain(text: &str, error: &serde_yaml::Error) -> anyhow::Error {
    let Some(at) = error.location() else { return anyhow!("{error}") };
    let line = text.lines().nth(at.line().saturating_sub(1)).unwrap_or_default();
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    match indent.find('\t') {
        Some(column) => anyhow!("line {} column {}: a tab indents the line; YAML allows spaces only", at.line(), column + 1),
        None => {
            let what = error.to_string();
            let what = what.replace(&format!(" at line {} column {}", at.line(), at.column()), "");
            anyhow!("line {} column {}: {what}", at.line(), at.column())
        }
    }
}

#[derive(Default)]
struct Reader {
    yaml: bool,
    problems: RefCell<Vec<FieldProblem>>,
}

impl Reader {
    fn seed<'a>(&'a self, path: &str) -> Seed<'a> {
        Seed { reader: self, path: path.into() }
    }
}

/// Builds one value and notes duplicate keys below `path`.
struct Seed<'a> {
    reader: &'a Reader,
    path: String,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // JSON has no infinity and no NaN.
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom(format!("{value} is no number in JSON")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.reader.seed(&format!("{}[{}]", self.path, list.len())))? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            let value = entries.next_value_seed(self.reader.seed(&path))?;
            if self.reader.yaml && key == "<<" {
                merged.push(value);
            } else if map.insert(key, value).is_some() {
                self.reader.problems.borrow_mut().push(FieldProblem::Duplicate { path });
            }
        }
        for source in merged {
            merge(&mut map, source).map_err(A::Error::custom)?;
        }
        Ok(map.into())
    }
}

/// YAML's `<<`: takes over what is not there yet.
fn merge(map: &mut Map<String, Value>, source: Value) -> Result<()> {
    match source {
        Value::Object(source) => source.into_iter().for_each(|(key, value)| {
            map.entry(key).or_insert(value);
        }),
        Value::Array(sources) => sources.into_iter().try_for_each(|source| merge(map, source))?,
        _ => bail!("map merge requires map or sequence of maps as the value"),
    }
    Ok(())
}

/// A key; YAML may write a number or a boolean there, which JSON has as text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, value: &str) -> Result<Key, E> {
                Ok(Key(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<Key, E> {
                Ok(Key(value))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_unit<E>(self) -> Result<Key, E> {
                Ok(Key("null".into()))
            }
        }
        deserializer.deserialize_any(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::*;

    #[test]
    fn json_reports_keys_that_stand_twice() {
        let (read, problems) = json(br#"{"a":{"b":[{"c":1,"c":2}]},"d":null,"d":1}"#).unwrap();
        assert_eq!(read, value!({"a": {"b": [{"c": 2}]}, "d": 1}));
        let problems: Vec<_> = problems.iter().map(|problem| problem.to_string()).collect();
        assert_eq!(problems, ["duplicate field \"a.b[0].c\"", "duplicate field \"d\""]);
        assert!(json(b"{} x").is_err() && json(b"").is_err());
    }

    #[test]
    fn yaml_reads_documents_merges_and_odd_keys() {
        let text = b"# nothing\n---\na: &x {b: 1}\nc:\n  <<: *x\n  d: \"yes\"\n8080: on\n---\n---\nz: ~\n";
        let documents = yaml_documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].0, value!({"a": {"b": 1}, "c": {"b": 1, "d": "yes"}, "8080": "on"}));
        assert_eq!(yaml(b"").unwrap().0, Value::Null);
        assert_eq!(yaml(b"a: 1\na: 2\n").unwrap().1.len(), 1);
    }

    #[test]
    fn yaml_of_built_in_kinds_knows_octal_numbers_and_yes() {
        let text = b"{apiVersion: v1, kind: Pod, spec: {hostNetwork: yes, volumes: [{name: a, secret: {defaultMode: 0440}}], \
            containers: [{env: [{name: A, value: yes}]}]}}";
        let (pod, _) = yaml(text).unwrap();
        assert_eq!(pod["spec"]["hostNetwork"], true);
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["defaultMode"], 0o440);
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "yes");
        let (list, _) =
            yaml(b"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Service, spec: {publishNotReadyAddresses: on}}]}").unwrap();
        assert_eq!(list["items"][0]["spec"]["publishNotReadyAddresses"], true);
    }

    #[test]
    fn yaml_errors_name_the_place() {
        let error = yaml(b"a:\n\tb: 1\n").unwrap_err().to_string();
        assert_eq!(error, "line 2 column 1: a tab indents the line; YAML allows spaces only");
        let error = yaml(b"a: [1\nb: 2\n").unwrap_err().to_string();
        assert!(error.starts_with("line 2 column "), "{error}");
    }
}
