//! Wall-clock instants as Kubernetes writes them (RFC 3339, UTC), without a calendar library.
//! It never reads the clock behind the caller's back: only `Timestamp::now` does.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// An instant in UTC, in microseconds since 1970-01-01. Kubernetes' `Time` has seconds, its `MicroTime` microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

const DAY_SECONDS: i64 = 86_400;

/// The time when this machine was booted, in microseconds, by a clock that is better than its own; 0 as long as there is none. Together
/// with the time since then it gives the time, whoever sets the machine's clock meanwhile.
static BOOTED: AtomicI64 = AtomicI64::new(0);

/// For a process that this one starts: what `set_booted` wants.
pub fn booted() -> Option<i64> {
    Some(BOOTED.load(Ordering::Relaxed)).filter(|booted| *booted != 0)
}

/// From here on `Timestamp::now` goes by it.
pub fn set_booted(booted: i64) {
    BOOTED.store(booted, Ordering::Relaxed);
}

/// From here on `Timestamp::now` goes by this, which is now: for a machine whose own clock says anything.
pub fn follow(now: Timestamp) {
    set_booted(now.0 - since_boot().as_micros() as i64);
}

fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39").into()
}

impl Timestamp {
    pub fn now() -> Self {
        if let Some(booted) = booted() {
            return Self(booted + since_boot().as_micros() as i64);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_micros() as i64)
    }

    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds * 1_000_000)
    }

    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as i64))
    }

    /// `2026-01-02T03:04:05.000006Z`, Kubernetes' `MicroTime`.
    pub fn rfc3339_micros(self) -> String {
        format!("{}.{:06}Z", self.date_time(), self.0.rem_euclid(1_000_000))
    }

    /// `2026-01-02T03:04:05.000006000Z`, the form of CRI log lines.
    pub fn rfc3339_nanos(self) -> String {
        format!("{}.{:06}000Z", self.date_time(), self.0.rem_euclid(1_000_000))
    }

    /// Reads RFC 3339 with or without a fraction, in UTC or with a numeric offset.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(['T', 't', ' '])?;
        let mut parts = date.split('-');
        let year: i64 = parts.next()?.parse().ok()?;
        let month: i64 = parts.next()?.parse().ok()?;
        let day: i64 = parts.next()?.parse().ok()?;
        let zone_at = rest.find(['Z', 'z', '+', '-'])?;
        let (clock, zone) = rest.split_at(zone_at);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let mut parts = clock.split(':');
        let hour: i64 = parts.next()?.parse().ok()?;
        let minute: i64 = parts.next()?.parse().ok()?;
        let second: i64 = parts.next()?.parse().ok()?;
        let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
        if !in_range || parts.next().is_some() {
            return None;
        }
        let mut micros = 0;
        for place in 0..6 {
            let digit = fraction.as_bytes().get(place).map_or(Some(0), |b| b.is_ascii_digit().then(|| (b - b'0') as i64));
            micros = micros * 10 + digit?;
        }
        let offset = match zone {
            "Z" | "z" => 0,
            _ => {
                let (hours, minutes) = zone.get(1..)?.split_once(':')?;
                let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
                if zone.starts_with('-') { -seconds } else { seconds }
            }
        };
        let seconds = days_from_civil(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second - offset;
        Some(Self(seconds * 1_000_000 + micros))
    }

    fn date_time(self) -> String {
        let seconds = self.seconds();
        let (year, month, day) = civil_from_days(seconds.div_euclid(DAY_SECONDS));
        let rest = seconds.rem_euclid(DAY_SECONDS);
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
    }
}

/// Kubernetes' `Time`: whole seconds, as in `creationTimestamp`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}Z", self.date_time())
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms"). Years are counted from March so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of `days_from_civil`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_back_what_they_write() {
        for seconds in [0, 951_782_400, 951_868_800, 1_709_164_800, 1_764_000_000, 4_102_444_799, -1] {
            let at = Timestamp::from_seconds(seconds);
            assert_eq!(Timestamp::parse(&at.to_string()), Some(at), "{at}");
        }
        let at = Timestamp(1_764_000_000_123_456);
        assert_eq!(Timestamp::parse(&at.rfc3339_micros()), Some(at));
        assert_eq!(Timestamp::parse(&at.rfc3339_nanos()), Some(at));
    }

    #[test]
    fn timestamps_match_known_dates() {
        assert_eq!(Timestamp::from_seconds(951_782_400).to_string(), "2000-02-29T00:00:00Z");
        assert_eq!(Timestamp::parse("2026-03-04T05:06:07.5+02:00"), Timestamp::parse("2026-03-04T03:06:07.500Z"));
    }

    #[test]
    fn timestamps_refuse_what_is_no_instant() {
        for text in ["", "2026-13-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00.x0Z", "yesterday"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
