//! Quantities: `500m`, `1Gi`, `1e3` (apimachinery's resource.Quantity). Arithmetic is exact, in billionths; text is canonical as
//! upstream writes it. Amounts beyond ±1.7e29 are held at that bound.

use std::cmp::Ordering;
use std::fmt;

/// Billionths in one unit; upstream rounds anything finer up as well.
const NANO: i128 = 1_000_000_000;

/// An amount with the notation it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How an amount is written; it is kept through arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `k`, `M`, `m`, …
    Decimal,
    /// `Ki`, `Mi`, …
    Binary,
    /// `e3`, `E-6`.
    Exponent,
}

/// The text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    }
}

impl std::error::Error for Malformed {}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// Whole units, written in decimal notation.
    pub fn from_value(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::Decimal }
    }

    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(Malformed);
        }
        let (format, shift, exponent) = notation(suffix)?;
        let mut nanos = Some(0i128);
        let mut inexact = false;
        // The digits times 10^exponent times 2^shift, in billionths: place the decimal point first, so that nothing is lost on the way.
        let mut power = exponent + 9 - fraction.len() as i32;
        for digit in whole.bytes().chain(fraction.bytes()) {
            nanos = nanos.and_then(|nanos| nanos.checked_mul(10)?.checked_add((digit - b'0') as i128));
            if nanos.is_none() {
                break;
            }
        }
        nanos = nanos.and_then(|nanos| nanos.checked_mul(1i128 << shift));
        while power > 0 && nanos.is_some_and(|nanos| nanos != 0) {
            nanos = nanos.and_then(|nanos| nanos.checked_mul(10));
            power -= 1;
        }
        while power < 0 && nanos.is_some_and(|nanos| nanos != 0) {
            nanos = nanos.map(|nanos| {
                inexact |= nanos % 10 != 0;
                nanos / 10
            });
            power += 1;
        }
        let nanos = nanos.unwrap_or(i128::MAX).saturating_add(inexact as i128);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// Whole units, rounded up (away from zero), as upstream's `Value()`.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded up, as upstream's `MilliValue()`.
    pub fn milli(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Has no fraction of a unit.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// Rounded up (away from zero) to thousandths, as upstream rounds resource lists.
    pub fn round_up_to_milli(self) -> Self {
        let unit = NANO / 1000;
        let rest = self.nanos % unit;
        Self { nanos: self.nanos - rest + rest.signum() * unit, ..self }
    }

    /// Keeps the notation of `self`, unless that is zero.
    #[allow(clippy::should_implement_trait)]
    pub fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    fn scaled(self, unit: i128) -> i64 {
        let (quotient, rest) = (self.nanos / unit, self.nanos % unit);
        let value = quotient + rest.signum();
        value.clamp(i64::MIN as i128, i64::MAX as i128) as i64
    }
}

/// (format, binary shift, decimal exponent) of a suffix.
fn notation(suffix: &str) -> Result<(Format, u32, i32), Malformed> {
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Binary, *shift, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Decimal, 0, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(Malformed)?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    // Past this everything is zero or the bound.
    let exponent: i32 = exponent.parse().unwrap_or(100);
    Ok((Format::Exponent, 0, exponent.clamp(-100, 100)))
}

/// The canonical form: no fraction, the largest suffix that leaves none.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let below_ki = self.nanos.unsigned_abs() < 1024 * NANO as u128;
        if self.format == Format::Binary && self.nanos % NANO == 0 && !below_ki {
            let mut value = self.nanos / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = name;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (Format::Exponent, 0) => write!(f, "{value}"),
            (Format::Exponent, _) => write!(f, "{value}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, power)| *power == exponent).map_or("", |(name, _)| name);
                write!(f, "{value}{suffix}")
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_canonical() {
        for (text, canonical) in [
            ("0", "0"),
            ("-0", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1Gi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("512Mi", "512Mi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1000k", "1M"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            ("0.001", "1m"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("100000000000000000000Ei", "170141183460469231731687303715"),
            ("1000Ki", "1000Ki"),
            ("1025Mi", "1025Mi"),
            ("0.1Ki", "102400m"),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            if text.len() < 20 {
                assert_eq!(quantity.to_string(), canonical, "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", ".", "-", "1.2.3", "Ki", "1 Gi", "1ki", "1K", "1e", "1e+", "0x10", "1GiB", "one", "1mm", " 1"] {
            assert_eq!(Quantity::parse(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert_eq!(quantity("1500m").value(), 2);
        assert_eq!(quantity("-1500m").value(), -2);
        assert_eq!(quantity("1.0001").milli(), 1001);
        assert_eq!(quantity("250m").milli(), 250);
        assert_eq!(quantity("64Mi").value(), 64 << 20);
        assert_eq!(quantity("1e100").value(), i64::MAX);
        assert!(quantity("1Gi") > quantity("1G") && quantity("1000m") == quantity("1"));
    }

    #[test]
    fn sums_keep_the_notation() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert_eq!(quantity("1Gi").add(quantity("512Mi")).to_string(), "1536Mi");
        assert_eq!(Quantity::ZERO.add(quantity("512Mi")).to_string(), "512Mi");
        assert_eq!(quantity("750m").add(quantity("0.25")).to_string(), "1");
    }
}
