//! The functions that templates may call, on values that are out of their boxes. What they are called with was counted by `eval`.

use std::cmp::Ordering;

use anyhow::{Result, anyhow, bail};
use base64::Engine as _;

use super::print;
use super::value::Val;

/// The names, how many arguments each needs, and whether it takes more.
const FUNCTIONS: &[(&str, usize, bool)] = &[
    ("and", 1, true),
    ("base64decode", 1, false),
    ("eq", 1, true),
    ("exists", 1, true),
    ("ge", 2, false),
    ("gt", 2, false),
    ("html", 0, true),
    ("index", 1, true),
    ("js", 0, true),
    ("le", 2, false),
    ("len", 1, false),
    ("lt", 2, false),
    ("ne", 2, false),
    ("not", 1, false),
    ("or", 1, true),
    ("print", 0, true),
    ("printf", 1, true),
    ("println", 0, true),
    ("slice", 1, true),
    ("urlquery", 0, true),
];

pub fn is_known(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, ..)| *known == name)
}

/// How many arguments a function needs, and whether it takes more.
pub fn arity(name: &str) -> (usize, bool) {
    FUNCTIONS.iter().find(|(known, ..)| *known == name).map_or((0, true), |(_, least, more)| (*least, *more))
}

/// Whether the first argument must be a text.
pub fn wants_text(name: &str) -> bool {
    matches!(name, "base64decode" | "printf")
}

pub fn call<'a>(name: &str, values: Vec<Val<'a>>) -> Result<Val<'a>> {
    let mut values: Vec<Val> = values.into_iter().map(Val::unboxed).collect();
    Ok(match name {
        "and" | "or" => {
            let last = values.pop().unwrap_or(Val::Missing);
            values.into_iter().find(|value| value.truth() == (name == "or")).unwrap_or(last)
        }
        "not" => Val::Bool(!values[0].truth()),
        "eq" => Val::Bool(equal(&values[0], &values[1..])?),
        "ne" => Val::Bool(!equal(&values[0], &values[1..])?),
        "lt" => Val::Bool(less(&values[0], &values[1])?),
        "le" => Val::Bool(less(&values[0], &values[1])? || equal(&values[0], &values[1..])?),
        "gt" => Val::Bool(!(less(&values[0], &values[1])? || equal(&values[0], &values[1..])?)),
        "ge" => Val::Bool(!less(&values[0], &values[1])?),
        "len" => match values[0].length() {
            Some(length) => Val::Int(length as i64),
            None if values[0] == Val::Missing => bail!("reflect: call of reflect.Value.Type on zero Value"),
            None => bail!("len of type {}", values[0].type_name()),
        },
        "index" => index(values.remove(0), values)?,
        "slice" => slice(values.remove(0), &values)?,
        "exists" => Val::Bool(exists(values.remove(0), values)),
        "base64decode" => Val::Text(decode(&bytes(&values))?.into()),
        "printf" => match values.remove(0) {
            Val::Text(format) => Val::Text(print::format(&format, &values).into()),
            _ => Val::Missing,
        },
        "print" => Val::Text(print::sprint(&values).into()),
        "println" => {
            let mut out = vec![];
            for (index, value) in values.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b" " } else { b"" });
                print::plain(&mut out, value);
            }
            out.push(b'\n');
            Val::Text(out.into())
        }
        "html" => Val::Text(html(&bytes(&values)).into()),
        "js" => Val::text(js(&bytes(&values))),
        "urlquery" => {
            // Go keeps the tilde and not the star.
            let text: String = form_urlencoded::byte_serialize(&bytes(&values)).collect();
            Val::text(text.replace('*', "%2A").replace("%7E", "~"))
        }
        _ => bail!("no such function"),
    })
}

/// The text that the arguments are together.
fn bytes(values: &[Val]) -> Vec<u8> {
    let mut values = values.to_vec();
    values.iter_mut().filter(|value| **value == Val::Missing).for_each(|value| *value = Val::text("<no value>".to_owned()));
    print::sprint(&values)
}

/// What is compared together: Go's kinds.
fn kind(value: &Val) -> u8 {
    match value {
        Val::Bool(_) => 1,
        Val::Int(_) | Val::Int64(_) | Val::Byte(_) => 2,
        Val::Float(_) => 3,
        Val::Text(_) => 4,
        _ => 0,
    }
}

fn equal(one: &Val, others: &[Val]) -> Result<bool> {
    if others.is_empty() {
        bail!("missing argument for comparison");
    }
    for other in others {
        let equal = match (kind(one), kind(other)) {
            (a, b) if a != b => match one == &Val::Missing || other == &Val::Missing {
                true => false,
                false => bail!("incompatible types for comparison: {} and {}", one.type_name(), other.type_name()),
            },
            (0, _) => match (one, other) {
                (Val::Missing, Val::Missing) => true,
                (Val::Missing, _) | (_, Val::Missing) => false,
                _ if one.type_name() != other.type_name() => {
                    let types = (Val::text(one.type_name().to_owned()), Val::text(other.type_name().to_owned()));
                    let said = print::format(b"non-comparable types %s: %s, %s: %v", &[one.clone(), types.0, types.1, other.clone()]);
                    bail!("{}", String::from_utf8_lossy(&said))
                }
                _ => {
                    let shown = print::format(b"%s", std::slice::from_ref(other));
                    bail!("non-comparable type {}: {}", String::from_utf8_lossy(&shown), other.type_name())
                }
            },
            _ => one.order(other) == Some(Ordering::Equal),
        };
        if equal {
            return Ok(true);
        }
    }
    Ok(false)
}

fn less(one: &Val, other: &Val) -> Result<bool> {
    match (kind(one), kind(other)) {
        (0, _) | (_, 0) => bail!("invalid type for comparison"),
        (a, b) if a != b => bail!("incompatible types for comparison: {} and {}", one.type_name(), other.type_name()),
        (1, _) => bail!("invalid type for comparison"),
        _ => Ok(one.order(other) == Some(Ordering::Less)),
    }
}

/// A place in a list or a text of some length; the end is one.
fn place(index: &Val, length: usize) -> Result<usize> {
    let Some(whole) = index.whole() else {
        match index {
            Val::Missing => bail!("cannot index slice/array with nil"),
            other => bail!("cannot index slice/array with type {}", other.type_name()),
        }
    };
    usize::try_from(whole).ok().filter(|at| *at <= length).ok_or_else(|| anyhow!("index out of range: {whole}"))
}

fn index<'a>(item: Val<'a>, indexes: Vec<Val>) -> Result<Val<'a>> {
    let mut item = item;
    if item == Val::Missing {
        bail!("index of untyped nil");
    }
    for index in indexes {
        item = match (item.unboxed(), &index) {
            (Val::Missing, _) => bail!("index of nil pointer"),
            (Val::List(items), index) => match items.get(place(index, items.len())?) {
                Some(item) => Val::Boxed(item),
                None => bail!("reflect: slice index out of range"),
            },
            (Val::Text(text), index) => match text.get(place(index, text.len())?) {
                Some(byte) => Val::Byte(*byte),
                None => bail!("reflect: string index out of range"),
            },
            (Val::Map(fields), Val::Text(key)) => {
                fields.get(String::from_utf8_lossy(key).as_ref()).map_or(Val::Boxed(&serde_json::Value::Null), Val::Boxed)
            }
            (Val::Map(_), Val::Missing) => bail!("value is nil; should be of type string"),
            (Val::Map(_), other) => bail!("value has type {}; should be string", other.type_name()),
            (other, _) => bail!("can't index item of type {}", other.type_name()),
        };
    }
    Ok(item)
}

fn slice<'a>(item: Val<'a>, indexes: &[Val]) -> Result<Val<'a>> {
    let length = match &item {
        Val::Missing => bail!("slice of untyped nil"),
        Val::Text(_) if indexes.len() == 3 => bail!("cannot 3-index slice a string"),
        Val::Text(text) => text.len(),
        Val::List(items) => items.len(),
        other => bail!("can't slice item of type {}", other.type_name()),
    };
    if indexes.len() > 3 {
        bail!("too many slice indexes: {}", indexes.len());
    }
    let mut bounds = [0, length, length];
    for (bound, index) in bounds.iter_mut().zip(indexes) {
        *bound = place(index, length)?;
    }
    let [from, to, most] = bounds;
    if from > to || to > most {
        let (one, other) = if from > to { (from, to) } else { (to, most) };
        bail!("invalid slice index: {one} > {other}");
    }
    Ok(match item {
        Val::Text(text) => Val::Text(text[from..to].to_vec().into()),
        Val::List(items) => Val::List(&items[from..to]),
        other => other,
    })
}

/// kubectl's own: whether something is found by these keys and indexes.
fn exists(item: Val, indexes: Vec<Val>) -> bool {
    let mut item = item;
    for index in indexes {
        item = match (item.unboxed(), &index) {
            (Val::Map(fields), Val::Text(key)) => match fields.get(String::from_utf8_lossy(key).as_ref()) {
                Some(value) => Val::Boxed(value),
                None => return false,
            },
            (Val::List(items), index) => match index.whole().and_then(|at| items.get(usize::try_from(at).ok()?)) {
                Some(value) => Val::Boxed(value),
                None => return false,
            },
            (Val::Text(text), index) => match index.whole().and_then(|at| text.get(usize::try_from(at).ok()?).copied()) {
                Some(byte) => Val::Byte(byte),
                None => return false,
            },
            _ => return false,
        };
    }
    !matches!(item, Val::Boxed(serde_json::Value::Null))
}

fn decode(text: &[u8]) -> Result<Vec<u8>> {
    // Go passes over line ends, and says where it stopped.
    let text: Vec<u8> = text.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    base64::engine::general_purpose::STANDARD.decode(&text).map_err(|error| {
        let at = match error {
            // The padding is good, and what follows it is not.
            base64::DecodeError::InvalidByte(at, b'=') if at % 4 == 3 => at + 1,
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ if text.ends_with(b"=") => text.len(),
            _ => text.len() / 4 * 4,
        };
        anyhow!("base64 decode failed: illegal base64 data at input byte {at}")
    })
}

fn html(text: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    for byte in text {
        match byte {
            0 => out.extend_from_slice("\u{fffd}".as_bytes()),
            b'"' => out.extend_from_slice(b"&#34;"),
            b'\'' => out.extend_from_slice(b"&#39;"),
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            other => out.push(*other),
        }
    }
    out
}

fn js(text: &[u8]) -> String {
    let mut out = String::new();
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '\\' | '\'' | '"' => {
                out.push('\\');
                out.push(c);
            }
            '<' | '>' | '&' | '=' => out += &format!("\\u{:04X}", u32::from(c)),
            c if c.is_ascii() && c >= ' ' || !c.is_ascii() && print::is_printable(c) => out.push(c),
            c => out += &format!("\\u{:04X}", u32::from(c)),
        }
    }
    out
}
