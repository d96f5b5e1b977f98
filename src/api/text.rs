//! Small texts as Go writes them: durations, and how alike two words are. It knows no object.

/// A duration in nanoseconds as Go's `time.Duration` prints it: `1h30m0s`, `1.5s`, `0s`.
pub fn duration(nanos: i64) -> String {
    let negative = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let below_second = |unit: u64, name: &str| format!("{negative}{}{name}", fraction(nanos / unit, nanos % unit, unit));
    match nanos {
        0 => "0s".into(),
        1..1_000 => below_second(1, "ns"),
        1_000..1_000_000 => below_second(1_000, "µs"),
        1_000_000..1_000_000_000 => below_second(1_000_000, "ms"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = fraction(seconds % 60, nanos % 1_000_000_000, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{negative}{rest}s"),
                (0, _) => format!("{negative}{minutes}m{rest}s"),
                _ => format!("{negative}{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

fn fraction(whole: u64, rest: u64, unit: u64) -> String {
    if rest == 0 {
        return whole.to_string();
    }
    let digits = format!("{:0width$}", rest, width = unit.ilog10() as usize);
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// Reads a duration as Go's `time.ParseDuration` does, in nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    (total < i64::MAX as f64).then_some((sign * total) as i64)
}

/// How many single characters must be added, removed, changed or swapped with a neighbour to make one word of the other
/// (optimal string alignment).
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(!a[i - 1].eq_ignore_ascii_case(&b[j - 1]));
                let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

/// The candidate most like `word`, if it is like enough to have been meant.
pub fn likely<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words bear more slips; names far longer than any field are not worth the time.
    let allowed = (word.len() / 3).clamp(1, 3);
    if word.len() > 64 {
        return None;
    }
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_000_000_000, "1s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
            (3_661_000_000_001, "1h1m1.000000001s"),
        ] {
            assert_eq!(duration(nanos), text);
            if nanos.abs() < 3_661_000_000_000 {
                assert_eq!(parse_duration(text), Some(nanos), "{text}");
            }
        }
        assert_eq!(
            (parse_duration("5"), parse_duration(""), parse_duration("1x"), parse_duration("1h15m")),
            (None, None, None, Some(4_500_000_000_000))
        );
    }

    #[test]
    fn the_likely_word_is_the_one_a_slip_away() {
        let fields = ["replicas", "selector", "template", "strategy"];
        assert_eq!(likely("replicass", fields.into_iter()), Some("replicas"));
        assert_eq!(likely("repilcas", fields.into_iter()), Some("replicas"));
        assert_eq!(likely("Replicas", fields.into_iter()), Some("replicas"));
        assert_eq!(likely("unknown", fields.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
