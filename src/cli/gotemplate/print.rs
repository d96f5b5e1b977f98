//! Values as Go's fmt prints them, plain and by the verbs of printf. It never fails: what does not fit is told in the text, as Go does.

use super::value::Val;

/// `%-08.3x`: what stands between the percent sign and the verb.
#[derive(Default)]
struct Flags {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// The widest that a format may make a value.
const WIDTH_MAX: usize = 1_000_000;

/// A value as `%v` prints it.
pub fn plain(out: &mut Vec<u8>, value: &Val) {
    print(out, 'v', &Flags::default(), value);
}

/// Values one after the other; a space stands between two of which none is a text.
pub fn sprint(values: &[Val]) -> Vec<u8> {
    let mut out = vec![];
    for (index, value) in values.iter().enumerate() {
        if index > 0 && !matches!(value, Val::Text(_)) && !matches!(values[index - 1], Val::Text(_)) {
            out.push(b' ');
        }
        plain(&mut out, value);
    }
    out
}

/// A text in quotes, as `%q` prints it.
pub fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        chunk.valid().chars().for_each(|c| escape(&mut out, c, '"'));
        chunk.invalid().iter().for_each(|byte| out += &format!("\\x{byte:02x}"));
    }
    out.push('"');
    out
}

fn escape(out: &mut String, c: char, quote: char) {
    match c {
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\\' => out.push_str("\\\\"),
        c if c == quote => {
            out.push('\\');
            out.push(c);
        }
        c if is_printable(c) => out.push(c),
        c if c < ' ' || c == '\x7f' => *out += &format!("\\x{:02x}", u32::from(c)),
        c if u32::from(c) < 0x10000 => *out += &format!("\\u{:04x}", u32::from(c)),
        c => *out += &format!("\\U{:08x}", u32::from(c)),
    }
}

/// Whether a character shows as itself.
pub fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// What printf makes of a format and its arguments.
pub fn format(format: &[u8], values: &[Val]) -> Vec<u8> {
    let mut out = vec![];
    let mut used = 0;
    let mut rest = format;
    while let Some(percent) = rest.iter().position(|byte| *byte == b'%') {
        out.extend_from_slice(&rest[..percent]);
        rest = &rest[percent + 1..];
        let flags = flags(&mut rest);
        let Some(verb) = rest.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()) else {
            out.extend_from_slice(b"%!(NOVERB)");
            break;
        };
        rest = &rest[verb.len_utf8()..];
        match values.get(used) {
            _ if verb == '%' => out.push(b'%'),
            None => out.extend_from_slice(format!("%!{verb}(MISSING)").as_bytes()),
            Some(value) => {
                used += 1;
                print(&mut out, verb, &flags, value);
            }
        }
    }
    if !out.ends_with(b"%!(NOVERB)") {
        out.extend_from_slice(rest);
    }
    if used < values.len() {
        out.extend_from_slice(b"%!(EXTRA ");
        for (index, value) in values[used..].iter().enumerate() {
            out.extend_from_slice(if index > 0 { b", " } else { b"" });
            typed(&mut out, value);
        }
        out.push(b')');
    }
    out
}

fn flags(rest: &mut &[u8]) -> Flags {
    let mut flags = Flags::default();
    while let Some(byte) = rest.first() {
        match byte {
            b'-' => flags.minus = true,
            b'+' => flags.plus = true,
            b'#' => flags.sharp = true,
            b' ' => flags.space = true,
            b'0' => flags.zero = true,
            _ => break,
        }
        *rest = &rest[1..];
    }
    flags.width = number(rest);
    if let Some(after) = rest.strip_prefix(b".") {
        *rest = after;
        flags.precision = Some(number(rest));
    }
    flags
}

fn number(rest: &mut &[u8]) -> usize {
    let mut number: usize = 0;
    while let Some(digit) = rest.first().filter(|byte| byte.is_ascii_digit()) {
        number = (number * 10 + usize::from(digit - b'0')).min(WIDTH_MAX);
        *rest = &rest[1..];
    }
    number
}

/// `string=a`
fn typed(out: &mut Vec<u8>, value: &Val) {
    let value = value.clone().unboxed();
    out.extend_from_slice(value.type_name().as_bytes());
    if value != Val::Missing {
        out.push(b'=');
        plain(out, &value);
    }
}

fn print(out: &mut Vec<u8>, verb: char, flags: &Flags, value: &Val) {
    let inside = matches!(value, Val::Boxed(_));
    let value = value.clone().unboxed();
    match (&value, verb) {
        (value, 'T') => pad(out, flags, value.type_name().as_bytes()),
        (Val::Missing, 'v') => pad(out, flags, b"<nil>"),
        (Val::Missing, _) if inside => out.extend_from_slice(b"<nil>"),
        (Val::Map(fields), _) if verb != 'p' => {
            out.extend_from_slice(b"map[");
            for (index, (key, value)) in fields.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b" " } else { b"" });
                print(out, verb, flags, &Val::Text(key.as_bytes().into()));
                out.push(b':');
                print(out, verb, flags, &Val::Boxed(value));
            }
            out.push(b']');
        }
        (Val::List(items), _) if verb != 'p' => {
            out.push(b'[');
            for (index, value) in items.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b" " } else { b"" });
                print(out, verb, flags, &Val::Boxed(value));
            }
            out.push(b']');
        }
        (Val::Text(text), 'v' | 's' | 'q' | 'x' | 'X') => string(out, verb, flags, text),
        (Val::Bool(bool), 'v' | 't') => pad(out, flags, bool.to_string().as_bytes()),
        (Val::Float(float), 'v' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G') => floating(out, verb, flags, *float),
        (Val::Int(_) | Val::Int64(_) | Val::Byte(_), 'v' | 'd' | 'b' | 'o' | 'O' | 'x' | 'X' | 'c' | 'q' | 'U') => {
            whole(out, verb, flags, value.whole().unwrap_or_default());
        }
        (value, verb) => {
            out.extend_from_slice(format!("%!{verb}(").as_bytes());
            typed(out, value);
            out.push(b')');
        }
    }
}

/// A text of at least the width that was asked for, counted in characters.
fn pad(out: &mut Vec<u8>, flags: &Flags, text: &[u8]) {
    let length: usize = text.utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len()).sum();
    let missing = flags.width.saturating_sub(length);
    if flags.minus {
        out.extend_from_slice(text);
        out.resize(out.len() + missing, b' ');
    } else {
        out.resize(out.len() + missing, if flags.zero { b'0' } else { b' ' });
        out.extend_from_slice(text);
    }
}

fn string(out: &mut Vec<u8>, verb: char, flags: &Flags, text: &[u8]) {
    let mut text = text;
    if let Some(precision) = flags.precision {
        // Characters for a text, bytes for its digits.
        text = match (verb, std::str::from_utf8(text)) {
            ('x' | 'X', _) | (_, Err(_)) => &text[..precision.min(text.len())],
            (_, Ok(whole)) => &text[..whole.char_indices().nth(precision).map_or(text.len(), |(at, _)| at)],
        };
    }
    match verb {
        'q' if flags.sharp && !text.contains(&b'`') => pad(out, flags, &[b"`", text, b"`"].concat()),
        'q' => pad(out, flags, quoted(text).as_bytes()),
        'x' | 'X' => {
            let between = if flags.space { " " } else { "" };
            let prefix = if flags.sharp { "0x" } else { "" };
            let prefixes = if flags.space { prefix } else { "" };
            let digits: Vec<String> = text.iter().map(|byte| format!("{byte:02x}")).collect();
            let digits = match digits.is_empty() {
                true => String::new(),
                false => format!("{prefix}{}", digits.join(&format!("{between}{prefixes}"))),
            };
            pad(out, flags, if verb == 'X' { digits.to_uppercase() } else { digits }.as_bytes());
        }
        _ => pad(out, flags, text),
    }
}

fn whole(out: &mut Vec<u8>, verb: char, flags: &Flags, value: i64) {
    let character = u32::try_from(value).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
    let size = value.unsigned_abs();
    let (prefix, digits) = match verb {
        'c' => return pad(out, flags, character.to_string().as_bytes()),
        'q' => {
            let mut text = String::from("'");
            escape(&mut text, character, '\'');
            return pad(out, flags, format!("{text}'").as_bytes());
        }
        'U' => {
            let shown = if flags.sharp && is_printable(character) { format!(" '{character}'") } else { String::new() };
            return pad(out, &Flags { zero: false, ..*flags }, format!("U+{size:04X}{shown}").as_bytes());
        }
        'b' => (if flags.sharp { "0b" } else { "" }, format!("{size:b}")),
        'o' => (if flags.sharp { "0" } else { "" }, format!("{size:o}")),
        'O' => ("0o", format!("{size:o}")),
        'x' => (if flags.sharp { "0x" } else { "" }, format!("{size:x}")),
        'X' => (if flags.sharp { "0X" } else { "" }, format!("{size:X}")),
        _ => ("", size.to_string()),
    };
    let sign = sign(flags, value < 0);
    let least = match flags.precision {
        Some(precision) => precision,
        None if flags.zero && !flags.minus => flags.width.saturating_sub(sign.len()),
        None => 0,
    };
    let text = match flags.precision == Some(0) && size == 0 {
        true => String::new(),
        false => format!("{sign}{prefix}{digits:0>least$}"),
    };
    pad(out, &Flags { zero: false, ..*flags }, text.as_bytes());
}

fn sign(flags: &Flags, negative: bool) -> &'static str {
    match (negative, flags.plus, flags.space) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (.., true) => " ",
        _ => "",
    }
}

fn floating(out: &mut Vec<u8>, verb: char, flags: &Flags, value: f64) {
    let size = value.abs();
    // Rust writes `1.5e7`, Go `1.5e+07`.
    let exponential = |text: String| match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{mantissa}e{sign}{exponent:0>2}")
        }
        None => text,
    };
    let text = match (verb.to_ascii_lowercase(), flags.precision) {
        ('e', precision) => exponential(format!("{size:.*e}", precision.unwrap_or(6))),
        ('f', precision) => format!("{size:.*}", precision.unwrap_or(6)),
        (_, precision) => {
            let shortest = match precision {
                Some(precision) => format!("{size:.*e}", precision.max(1) - 1),
                None => format!("{size:e}"),
            };
            let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
            let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
            let exponent: i64 = exponent.parse().unwrap_or_default();
            let digits = mantissa.len() as i64 - i64::from(mantissa.contains('.'));
            let most = match precision.map(|precision| precision.max(1) as i64) {
                Some(most) if most > digits && digits > exponent => digits,
                Some(most) => most,
                None => 6,
            };
            match exponent < -4 || exponent >= most {
                true => exponential(format!("{mantissa}e{exponent}")),
                false => format!("{size:.*}", usize::try_from(digits - 1 - exponent).unwrap_or_default()),
            }
        }
    };
    let text = if verb.is_ascii_uppercase() { text.to_uppercase() } else { text };
    let sign = sign(flags, value.is_sign_negative());
    let least = if flags.zero && !flags.minus { flags.width.saturating_sub(sign.len()) } else { 0 };
    pad(out, &Flags { zero: false, ..*flags }, format!("{sign}{text:0>least$}").as_bytes());
}
