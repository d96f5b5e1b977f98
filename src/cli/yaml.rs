//! YAML and JSON as kubectl prints them, to the letter: key order, quoting, folding of long lines. It reads nothing.

use serde_json::{Map, Value};

/// Long scalars are folded at the first space past this column.
const COLUMN_MAX: usize = 80;

/// An object as a YAML document.
pub fn yaml(value: &Value) -> String {
    let mut writer = Writer { out: String::new(), column: 0 };
    match value {
        Value::Object(fields) if !fields.is_empty() => writer.mapping(fields, 0, true),
        Value::Array(items) if !items.is_empty() => writer.sequence(items, 0, true),
        other => {
            writer.scalar(other, 0, false);
            writer.newline();
        }
    }
    writer.out
}

/// An object as JSON, four spaces deep, with the characters that mean something in HTML escaped.
pub fn json(value: &Value) -> String {
    let mut bytes = vec![];
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    serde::Serialize::serialize(value, &mut serializer).expect("a value always serializes");
    let text = String::from_utf8(bytes).expect("JSON is UTF-8");
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn newline(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    fn indent(&mut self, spaces: usize) {
        for _ in 0..spaces {
            self.put(" ");
        }
    }

    /// Writes the fields below each other; the first one stands where the cursor is.
    fn mapping(&mut self, fields: &Map<String, Value>, indent: usize, mut at_start: bool) {
        let mut keys: Vec<&String> = fields.keys().collect();
        keys.sort_by(|a, b| natural(a, b));
        for key in keys {
            if at_start {
                at_start = false;
            } else {
                self.indent(indent);
            }
            self.text(key, indent, true);
            self.put(":");
            match &fields[key] {
                Value::Object(inner) if !inner.is_empty() => {
                    self.newline();
                    self.mapping(inner, indent + 2, false);
                }
                Value::Array(items) if !items.is_empty() => {
                    self.newline();
                    self.sequence(items, indent, false);
                }
                scalar => {
                    self.put(" ");
                    self.scalar(scalar, indent + 2, false);
                    self.newline();
                }
            }
        }
    }

    /// Lists stand as deep as the key they belong to.
    fn sequence(&mut self, items: &[Value], indent: usize, mut at_start: bool) {
        for item in items {
            if at_start {
                at_start = false;
            } else {
                self.indent(indent);
            }
            self.put("- ");
            match item {
                Value::Object(inner) if !inner.is_empty() => self.mapping(inner, indent + 2, true),
                Value::Array(inner) if !inner.is_empty() => self.sequence(inner, indent + 2, true),
                scalar => {
                    self.scalar(scalar, indent + 2, false);
                    self.newline();
                }
            }
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize, key: bool) {
        match value {
            Value::String(text) => self.text(text, indent, key),
            other => self.put(&other.to_string()),
        }
    }

    fn text(&mut self, text: &str, indent: usize, key: bool) {
        let facts = Facts::of(text);
        if text.contains('\n') {
            match facts.block && !key {
                true => self.literal(text, indent),
                false => self.double(text, indent, !key),
            }
        } else if resolves_to_other(text) {
            self.double(text, indent, !key);
        } else if facts.plain {
            self.folded(text, indent, !key, false);
        } else if facts.single {
            self.put("'");
            self.folded(text, indent, !key, true);
            self.put("'");
        } else {
            self.double(text, indent, !key);
        }
    }

    fn folded(&mut self, text: &str, indent: usize, folds: bool, quoted: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        for (at, c) in chars.iter().enumerate() {
            let next_is_space = chars.get(at + 1) == Some(&' ');
            let inside = !quoted || (at > 0 && at + 1 < chars.len());
            if *c == ' ' && folds && !after_space && self.column > COLUMN_MAX && inside && !next_is_space {
                self.newline();
                self.indent(indent);
            } else if *c == '\'' && quoted {
                self.put("''");
            } else {
                self.out.push(*c);
                self.column += 1;
            }
            after_space = *c == ' ';
        }
    }

    fn double(&mut self, text: &str, indent: usize, folds: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut after_space = false;
        self.put("\"");
        for (at, c) in chars.iter().enumerate() {
            if *c == ' ' && folds && !after_space && self.column > COLUMN_MAX && at > 0 && at + 1 < chars.len() {
                self.newline();
                self.indent(indent);
                if chars[at + 1] == ' ' {
                    self.put("\\");
                }
            } else {
                self.escaped(*c);
            }
            after_space = *c == ' ';
        }
        self.put("\"");
    }

    fn escaped(&mut self, c: char) {
        let short = match c {
            '\0' => "\\0",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\t' => "\\t",
            '\n' => "\\n",
            '\u{b}' => "\\v",
            '\u{c}' => "\\f",
            '\r' => "\\r",
            '\u{1b}' => "\\e",
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{85}' => "\\N",
            '\u{a0}' => "\\_",
            '\u{2028}' => "\\L",
            '\u{2029}' => "\\P",
            c if is_printable(c) => {
                self.out.push(c);
                self.column += 1;
                return;
            }
            c => {
                let code = c as u32;
                let text = match code {
                    0..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                };
                return self.put(&text);
            }
        };
        self.put(short);
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put("2");
        }
        let body = match text.strip_suffix('\n') {
            None => {
                self.put("-");
                text
            }
            Some(body) => {
                if body.is_empty() || body.ends_with('\n') {
                    self.put("+");
                }
                body
            }
        };
        for line in body.split('\n') {
            self.newline();
            if !line.is_empty() {
                self.indent(indent);
                self.put(line);
            }
        }
    }
}

/// In which styles a text may be written.
struct Facts {
    plain: bool,
    single: bool,
    block: bool,
}

impl Facts {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        if chars.is_empty() {
            return Self { plain: false, single: true, block: false };
        }
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut space_break) = (false, false);
        for (at, c) in chars.iter().enumerate() {
            let space_before = at > 0 && matches!(chars[at - 1], ' ' | '\n');
            let space_after = chars.get(at + 1).is_none_or(|next| matches!(next, ' ' | '\t' | '\n' | '\r'));
            indicators |= match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' if at == 0 => true,
                '?' | '-' if at == 0 => space_after,
                ':' => space_after,
                '#' => space_before,
                _ => false,
            };
            special |= *c != '\n' && !is_printable(*c);
            space_break |= *c == '\n' && at > 0 && chars[at - 1] == ' ';
        }
        let spaced = text.starts_with([' ', '\n']) || text.ends_with([' ', '\n']);
        Self {
            plain: !indicators && !special && !space_break && !spaced,
            single: !special && !space_break,
            block: !special && !space_break && !text.ends_with(' '),
        }
    }
}

/// What go-yaml writes as it is: no controls, no byte order mark, nothing beyond the basic plane.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}

/// Whether a plain scalar of this text would be read as something else than a string.
fn resolves_to_other(text: &str) -> bool {
    match text {
        "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => return true,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return true,
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" => return true,
        _ => {}
    }
    if !text.starts_with(['+', '-', '.', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        return false;
    }
    is_integer(&text.replace('_', "")) || is_float(text) || is_float(&text.replace('_', "")) || is_base_60(text) || is_timestamp(text)
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix: &str, radix: u32| digits.strip_prefix(prefix).is_some_and(|digits| u64::from_str_radix(digits, radix).is_ok());
    let has_sign_inside = digits.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).starts_with(['+', '-']);
    if has_sign_inside {
        return false;
    }
    if digits.len() > 1 && digits.starts_with('0') {
        let other = radix("0x", 16) || radix("0X", 16) || radix("0o", 8) || radix("0O", 8) || radix("0b", 2) || radix("0B", 2);
        return other || u64::from_str_radix(digits, 8).is_ok() || is_float(text);
    }
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(mantissa, exponent)| (mantissa, Some(exponent)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_fits = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa_fits && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// `1:20`, which YAML 1.1 reads as a number.
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    first.starts_with(|c: char| c.is_ascii_digit())
        && number(first)
        && !rest.is_empty()
        && rest.iter().enumerate().all(|(index, part)| {
            let (whole, fraction) = part.split_once('.').unwrap_or((part, ""));
            let last = index + 1 == rest.len();
            whole.parse::<u8>().is_ok_and(|value| value < 60 && whole.len() <= 2) && (last || !part.contains('.')) && number(fraction)
        })
}

/// `2024-01-02`, alone or with a time.
fn is_timestamp(text: &str) -> bool {
    let digits = |text: &str, min: usize, max: usize| (min..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let (date, clock) = text.split_once(['T', 't', ' ']).map_or((text, None), |(date, clock)| (date, Some(clock)));
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return false };
    if !(digits(year, 4, 4) && digits(month, 1, 2) && digits(day, 1, 2)) {
        return false;
    }
    let Some(clock) = clock else { return true };
    let zone = clock.find(['Z', '+', '-']).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(zone);
    let clock = clock.split_once('.').map_or(clock, |(clock, _)| clock);
    let parts: Vec<&str> = clock.split(':').collect();
    parts.len() == 3 && parts.iter().all(|part| digits(part, 1, 2)) && (text.contains(' ') == zone.is_empty())
}

/// The order of keys: letters by their code, numbers in them by their value.
fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = (0..a.len().min(b.len())).find(|at| a[*at] != b[*at]) else { return a.len().cmp(&b.len()) };
    let in_digits = at > 0 && a[at - 1].is_numeric();
    match (a[at].is_alphabetic(), b[at].is_alphabetic()) {
        (true, true) => return a[at].cmp(&b[at]),
        // A letter comes before other signs inside a number, and after them elsewhere.
        (true, false) => return if in_digits { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater },
        (false, true) => return if in_digits { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less },
        (false, false) => {}
    }
    let zero = a[at] == '0' || b[at] == '0';
    let nonzero_before = zero && a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let number = |text: &[char]| {
        let digits = text.iter().take_while(|c| c.is_ascii_digit());
        digits.fold((u64::from(nonzero_before), 0), |(value, length), c| {
            (value.saturating_mul(10).saturating_add(u64::from(*c as u32 - '0' as u32)), length + 1)
        })
    };
    number(&a[at..]).cmp(&number(&b[at..])).then(a[at].cmp(&b[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kubectl 1.36 printed for `golden/scalars.json` with an annotation added.
    fn object() -> Value {
        let mut object: Value = serde_json::from_str(include_str!("golden/scalars.json")).unwrap();
        object["metadata"]["annotations"] = serde_json::json!({"z": "1"});
        object
    }

    #[test]
    fn yaml_is_kubectls_to_the_letter() {
        let ours = yaml(&object());
        let theirs = include_str!("golden/scalars.yaml");
        for (ours, theirs) in ours.lines().zip(theirs.lines()) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours.len(), theirs.len());
    }

    #[test]
    fn json_is_kubectls_to_the_letter() {
        let ours = json(&object());
        for (ours, theirs) in ours.lines().zip(include_str!("golden/scalars.out.json").lines()) {
            assert_eq!(ours, theirs);
        }
    }
}
