//! Reads request bodies in Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`): the envelope `runtime.Unknown` and every
//! built-in kind, by the schema table, into the JSON that the same object would have had. It never writes protobuf.

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};

use super::schema::{Field, Message, Type, element, kind_of};
use super::text;
use crate::base::time::Timestamp;

/// What a body starts with (apimachinery/pkg/runtime/serializer/protobuf).
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; the deepest object of the built-in kinds, a schema in a CustomResourceDefinition, has no bound of its own.
const DEPTH_MAX: usize = 100;

/// Reads a body: magic, envelope, message. `apiVersion` and `kind` of the result are those of the envelope.
pub fn decode(body: &[u8]) -> Result<Value> {
    let envelope =
        body.strip_prefix(MAGIC).context("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let (mut api_version, mut kind_name, mut raw, mut content_type) = (String::new(), String::new(), &b""[..], String::new());
    for part in Wire(envelope) {
        match part? {
            (1, Part::Bytes(type_meta)) => {
                for part in Wire(type_meta) {
                    match part? {
                        (1, Part::Bytes(text)) => api_version = lossy(text),
                        (2, Part::Bytes(text)) => kind_name = lossy(text),
                        _ => {}
                    }
                }
            }
            (2, Part::Bytes(bytes)) => raw = bytes,
            (4, Part::Bytes(text)) => content_type = lossy(text),
            _ => {}
        }
    }
    if content_type == "application/json" {
        return serde_json::from_slice(raw).context("the JSON within the protobuf envelope");
    }
    let kind = kind_of(&api_version, &kind_name).ok_or_else(|| {
        anyhow!("no kind \"{kind_name}\" is registered for version \"{api_version}\" in scheme \"pkg/api/legacyscheme/scheme.go\"")
    })?;
    let mut object = Map::new();
    read_message(kind.message, raw, &mut object, 0).with_context(|| format!("read {kind_name} of {api_version}"))?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind_name.into());
    Ok(object.into())
}

/// Reads the fields of `message` into `object`; unknown numbers are skipped.
fn read_message(message: Message, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<()> {
    ensure!(depth < DEPTH_MAX, "more than {DEPTH_MAX} messages within each other");
    for part in Wire(bytes) {
        let (number, part) = part?;
        let Some(field) = message.numbered(number) else { continue };
        if let Some(inner) = field.inlined() {
            read_message(inner, part.bytes()?, object, depth + 1)?;
            continue;
        }
        read_field(message, field, part, object, depth).with_context(|| field.name())?;
    }
    Ok(())
}

fn read_field(outer: Message, field: Field, part: Part, object: &mut Map<String, Value>, depth: usize) -> Result<()> {
    match field.ty() {
        Type::List(of) => {
            let of = element(of);
            let slot = object.entry(field.name()).or_insert_with(|| json!([]));
            let Value::Array(list) = slot else { bail!("field is both a list and none") };
            match (of, part) {
                // Numbers may come packed into one run of bytes.
                (Type::Bool | Type::Int32 | Type::Int64, Part::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        list.push(number(of, varint(&mut packed)?));
                    }
                }
                (of, part) => list.push(read_value(outer, of, part, depth)?.unwrap_or(Value::Null)),
            }
        }
        Type::Map(of) => {
            let of = element(of);
            let slot = object.entry(field.name()).or_insert_with(|| json!({}));
            let Value::Object(map) = slot else { bail!("field is both a map and none") };
            let (mut key, mut value) = (String::new(), None);
            for part in Wire(part.bytes()?) {
                match part? {
                    (1, Part::Bytes(text)) => key = lossy(text),
                    (2, part) => value = read_value(outer, of, part, depth)?,
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                // A value that was left out is the zero of its type.
                None => read_value(outer, of, Part::zero(of), depth)?.unwrap_or(Value::Null),
            };
            map.insert(key, value);
        }
        ty => {
            let Some(value) = read_value(outer, ty, part, depth)? else { return Ok(()) };
            // Go writes zeros of what is no pointer to the wire and leaves them out of JSON.
            let zero = !matches!(ty, Type::Message(_)) && is_zero(&value);
            if !(zero && field.omit_empty() && !field.pointer()) {
                // A message that comes in two pieces is merged.
                match (object.get_mut(field.name()), value) {
                    (Some(Value::Object(first)), Value::Object(second)) => first.extend(second),
                    (_, value) => {
                        object.insert(field.name().into(), value);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads one value; `None` if it is what JSON leaves out, as a time that was never set.
fn read_value(outer: Message, ty: Type, part: Part, depth: usize) -> Result<Option<Value>> {
    Ok(Some(match ty {
        Type::Bool | Type::Int32 | Type::Int64 => number(ty, part.varint()?),
        Type::Double => match part {
            Part::Fixed64(bits) => real(f64::from_bits(bits)),
            Part::Fixed32(bits) => real(f32::from_bits(bits).into()),
            _ => bail!("not a floating-point number"),
        },
        Type::String | Type::Enum(_) => lossy(part.bytes()?).into(),
        Type::Bytes => STANDARD.encode(part.bytes()?).into(),
        Type::Quantity => {
            let mut text = String::from("0");
            for part in Wire(part.bytes()?) {
                if let (1, Part::Bytes(bytes)) = part? {
                    text = lossy(bytes);
                }
            }
            if text.is_empty() { "0".into() } else { text.into() }
        }
        Type::Time | Type::MicroTime => {
            let bytes = part.bytes()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let (seconds, nanos) = (varint_field(bytes, 1)?, varint_field(bytes, 2)? as i32);
            let at = seconds.checked_mul(1_000_000).context("time out of range")?.saturating_add(nanos as i64 / 1000);
            if ty == Type::Time { Timestamp(at).to_string() } else { Timestamp(at).rfc3339_micros() }.into()
        }
        Type::Duration => text::duration(varint_field(part.bytes()?, 1)?).into(),
        Type::IntOrString => {
            let bytes = part.bytes()?;
            if varint_field(bytes, 1)? == 0 { (varint_field(bytes, 2)? as i32).into() } else { lossy(bytes_field(bytes, 3)?).into() }
        }
        Type::Raw => match bytes_field(part.bytes()?, 1)? {
            b"" => return Ok(None),
            raw if raw.starts_with(MAGIC) => decode(raw)?,
            raw => embedded(raw)?,
        },
        Type::Fields | Type::Json => match bytes_field(part.bytes()?, 1)? {
            b"" => return Ok(None),
            raw => embedded(raw)?,
        },
        Type::SchemaOrArray | Type::SchemaOrStrings | Type::SchemaOrBool => schema_or(outer, ty, part.bytes()?, depth)?,
        Type::Message(message) => {
            let mut inner = Map::new();
            read_message(message, part.bytes()?, &mut inner, depth + 1)?;
            inner.into()
        }
        Type::WrappedList(of) => {
            let mut list = Vec::new();
            for part in Wire(part.bytes()?) {
                if let (1, part) = part? {
                    list.push(read_value(outer, element(of), part, depth)?.unwrap_or(Value::Null));
                }
            }
            list.into()
        }
        Type::List(_) | Type::Map(_) => bail!("a list of lists is not in protobuf"),
    }))
}

/// The unions within a CustomResourceDefinition's schema; `outer` is JSONSchemaProps itself, which they hold.
fn schema_or(outer: Message, ty: Type, bytes: &[u8], depth: usize) -> Result<Value> {
    let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
    for part in Wire(bytes) {
        let (number, part) = part?;
        let read = |part: Part| read_value(outer, Type::Message(outer), part, depth + 1).map(Option::unwrap_or_default);
        match (ty, number) {
            (Type::SchemaOrBool, 1) => allows = part.varint()? != 0,
            (Type::SchemaOrBool, 2) | (_, 1) => schema = Some(read(part)?),
            (Type::SchemaOrArray, 2) => list.push(read(part)?),
            (Type::SchemaOrStrings, 2) => list.push(lossy(part.bytes()?).into()),
            _ => {}
        }
    }
    Ok(match (ty, schema) {
        (Type::SchemaOrBool, None) => allows.into(),
        (_, Some(schema)) if list.is_empty() => schema,
        _ => list.into(),
    })
}

fn embedded(raw: &[u8]) -> Result<Value> {
    serde_json::from_slice(raw).context("embedded JSON")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(ty: Type, raw: u64) -> Value {
    match ty {
        Type::Bool => (raw != 0).into(),
        Type::Int32 => (raw as i32).into(),
        _ => (raw as i64).into(),
    }
}

fn real(value: f64) -> Value {
    // A whole number has no fraction in Go's JSON.
    if value.fract() == 0.0 && value.abs() < 1e15 {
        (value as i64).into()
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// The last varint with this number, 0 if there is none.
fn varint_field(bytes: &[u8], wanted: u32) -> Result<i64> {
    let mut found = 0;
    for part in Wire(bytes) {
        if let (number, Part::Varint(value)) = part?
            && number == wanted
        {
            found = value as i64;
        }
    }
    Ok(found)
}

/// The last run of bytes with this number, empty if there is none.
fn bytes_field(bytes: &[u8], wanted: u32) -> Result<&[u8]> {
    let mut found = &b""[..];
    for part in Wire(bytes) {
        if let (number, Part::Bytes(value)) = part?
            && number == wanted
        {
            found = value;
        }
    }
    Ok(found)
}

/// One value on the wire (protobuf's wire types 0, 1, 2 and 5).
enum Part<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Part<'a> {
    fn bytes(self) -> Result<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { bail!("wire type is not bytes") }
    }

    fn varint(self) -> Result<u64> {
        if let Self::Varint(value) = self { Ok(value) } else { bail!("wire type is not varint") }
    }

    fn zero(ty: Type) -> Part<'static> {
        match ty {
            Type::Bool | Type::Int32 | Type::Int64 => Part::Varint(0),
            Type::Double => Part::Fixed64(0),
            _ => Part::Bytes(b""),
        }
    }
}

/// The (number, value) pairs of a message; ends after the first error.
struct Wire<'a>(&'a [u8]);

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u32, Part<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.read();
        if part.is_err() {
            self.0 = b"";
        }
        Some(part)
    }
}

impl<'a> Wire<'a> {
    fn read(&mut self) -> Result<(u32, Part<'a>)> {
        let key = varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0).context("field number out of range")?;
        let part = match key & 7 {
            0 => Part::Varint(varint(&mut self.0)?),
            1 => Part::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("take gives as many as asked"))),
            2 => {
                let length = varint(&mut self.0)?;
                Part::Bytes(self.take(usize::try_from(length).context("length out of range")?)?)
            }
            5 => Part::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("take gives as many as asked"))),
            other => bail!("wire type {other} is not in use"),
        };
        Ok((number, part))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("unexpected end of the message")?;
        self.0 = rest;
        Ok(taken)
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first().context("unexpected end of the message")?;
        *bytes = rest;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("number longer than ten bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testdata::{assert_same, lines};

    /// Every built-in kind with every field set, as upstream's own round-trip tests keep them (k8s.io/api/testdata/HEAD) or its serializer
    /// writes them (apiextensions, apiregistration, metrics):
    /// lines of {pb: base64, json}.
    const OBJECTS: &[u8] = include_bytes!("testdata/objects.jsonl.zst");

    #[test]
    fn every_kind_reads_as_upstream_writes_it_in_json() {
        let lines = lines(OBJECTS);
        for line in &lines {
            let expected = &line["json"];
            let name = format!("{} {}", expected["apiVersion"], expected["kind"]);
            let read = decode(&STANDARD.decode(line["pb"].as_str().unwrap()).unwrap()).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_same(&read, expected, &name);
        }
        assert_eq!(lines.len(), 111);
    }

    #[test]
    fn broken_bodies_are_errors() {
        for body in [&b""[..], b"{}", b"k8s\0\x0a", b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"k8s\0\x0f", b"k8s\0\x00\x00"] {
            assert!(decode(body).is_err(), "{body:?}");
        }
        let error = decode(b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Foo").unwrap_err().to_string();
        assert!(error.starts_with("no kind \"Foo\" is registered for version \"v1\""), "{error}");
    }

    #[test]
    fn nesting_is_bounded() {
        // not: {not: {not: …}} in a CustomResourceDefinition's schema.
        let wrap = |number: u64, inner: &[u8]| {
            let mut out = Vec::new();
            for mut value in [number << 3 | 2, inner.len() as u64] {
                while value >= 0x80 {
                    out.push(value as u8 | 0x80);
                    value >>= 7;
                }
                out.push(value as u8);
            }
            out.extend_from_slice(inner);
            out
        };
        let mut schema = Vec::new();
        for _ in 0..10_000 {
            schema = wrap(28, &schema);
        }
        let definition = wrap(2, &wrap(7, &wrap(4, &wrap(1, &schema))));
        let type_meta = [wrap(1, b"apiextensions.k8s.io/v1"), wrap(2, b"CustomResourceDefinition")].concat();
        let body = [MAGIC, &wrap(1, &type_meta), &wrap(2, &definition)].concat();
        let error = format!("{:#}", decode(&body).unwrap_err());
        assert!(error.ends_with("more than 100 messages within each other"), "{}", &error[error.len() - 80..]);
    }
}
