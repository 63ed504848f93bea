//! Points in time as the formats write them. Nothing in this crate reads the clock: callers pass the time in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::error::{Error, Result};

/// Seconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixSeconds(pub i64);

/// `20241027034640`, as in whitelists.
const COMPACT: StaticFormatDescription = format_description!("[year][month][day][hour][minute][second]");
/// `2024-10-27T03:46:40Z`, as in names of automatic tags.
const ISO: StaticFormatDescription = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
/// `2024-10-27 03:46:40`, as in databases.
const DATE_AND_TIME: StaticFormatDescription = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
/// `Sun Oct 27 03:46:40 UTC 2024`, as `date --utc` prints; monitoring tools expect it in status files.
const DATE_COMMAND: StaticFormatDescription = format_description!(
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] UTC [year]"
);

/// `28 Oct 2024 12:34:56`, as in the list of removed objects.
const DAY_AND_TIME: StaticFormatDescription =
    format_description!("[day padding:none] [month repr:short] [year] [hour]:[minute]:[second]");

impl UnixSeconds {
    /// This time and some days.
    #[must_use]
    pub fn plus_days(self, days: u32) -> Self {
        Self(self.0.saturating_add(i64::from(days) * 86_400))
    }

    /// Prints `YYYYMMDDhhmmss`.
    pub fn compact(self) -> String {
        self.format(COMPACT)
    }

    /// Prints `YYYY-MM-DDThh:mm:ssZ`.
    pub fn iso(self) -> String {
        self.format(ISO)
    }

    /// Prints `YYYY-MM-DD hh:mm:ss`.
    pub fn date_and_time(self) -> String {
        self.format(DATE_AND_TIME)
    }

    /// Prints `D Mon YYYY hh:mm:ss`.
    pub fn day_and_time(self) -> String {
        self.format(DAY_AND_TIME)
    }

    /// Prints what `date --utc` prints in the C locale.
    pub fn date_command(self) -> String {
        self.format(DATE_COMMAND)
    }

    /// Parses `YYYYMMDDhhmmss`.
    pub fn parse_compact(text: &str) -> Option<Self> {
        // The parser of the crate would accept signs and blanks in places.
        if text.len() != 14 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        PrimitiveDateTime::parse(text, COMPACT).ok().map(|time| Self(time.assume_utc().unix_timestamp()))
    }

    /// Parses what `date --utc` prints in the C locale.
    pub fn parse_date_command(text: &str) -> Option<Self> {
        // The hours of 12-hour locales and other zones are not UTC, and nobody writes them here.
        PrimitiveDateTime::parse(text, DATE_COMMAND).ok().map(|time| Self(time.assume_utc().unix_timestamp()))
    }

    /// Parses a time, or how long before this one it was: `3 days ago`.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn parse_since(self, text: &str) -> Result<Self> {
        match text.trim().strip_suffix("ago") {
            Some(age) => {
                let seconds = parse_duration(age)?.as_secs();
                Ok(Self(self.0.saturating_sub_unsigned(seconds)))
            }
            None => text.parse(),
        }
    }

    fn format(self, description: StaticFormatDescription) -> String {
        OffsetDateTime::from_unix_timestamp(self.0)
            .ok()
            .and_then(|time| time.format(description).ok())
            .unwrap_or_else(|| self.0.to_string())
    }
}

/// Parses a length of time: `2 weeks`, `3 days`, `12h`, `90 min`, `30s`, or just `0`.
///
/// # Errors
/// `InvalidInput` for anything else.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let seconds = match text[digits.len()..].trim() {
        "" if digits == "0" => 1,
        "s" | "sec" | "second" | "seconds" => 1,
        "min" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86_400,
        "w" | "week" | "weeks" => 7 * 86_400,
        "month" | "months" => 30 * 86_400,
        "year" | "years" => 365 * 86_400,
        _ => 0,
    };
    let length = digits.parse::<u64>().ok().filter(|_| seconds > 0).and_then(|number| number.checked_mul(seconds));
    let invalid = || Error::invalid(format!("{text:?}"), "no length of time such as 3 days or 12h");
    length.map(Duration::from_secs).ok_or_else(invalid)
}

impl FromStr for UnixSeconds {
    type Err = Error;

    /// Parses `YYYY-MM-DD`, `YYYY-MM-DDThh:mm:ssZ` and `@SECONDS`.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = match text.strip_prefix('@') {
            Some(seconds) => seconds.parse().ok().map(Self),
            None => {
                let digits = text.strip_suffix('Z').unwrap_or(text).replace(['-', ':', 'T'], "");
                let time = if digits.len() == 8 { format!("{digits}000000") } else { digits };
                Self::parse_compact(&time).filter(|time| time.iso() == text || time.iso().starts_with(text))
            }
        };
        let invalid =
            || Error::invalid(format!("{text:?}"), "no time such as 2024-10-27, 2024-10-27T03:46:40Z or @1730000800");
        parsed.ok_or_else(invalid)
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iso())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are those of GNU date for the same number of seconds.
    #[test]
    fn prints_and_parses_the_forms_of_the_formats() {
        let time = UnixSeconds(1_730_000_800);
        assert_eq!(time.compact(), "20241027034640");
        assert_eq!(time.iso(), "2024-10-27T03:46:40Z");
        assert_eq!(time.date_command(), "Sun Oct 27 03:46:40 UTC 2024");
        assert_eq!(time.day_and_time(), "27 Oct 2024 03:46:40");
        assert_eq!(UnixSeconds(1_725_341_820).day_and_time(), "3 Sep 2024 05:37:00");
        assert_eq!(UnixSeconds(1_725_341_820).date_command(), "Tue Sep  3 05:37:00 UTC 2024");
        assert_eq!(UnixSeconds::parse_compact("20241027034640"), Some(time));
        assert_eq!(UnixSeconds::parse_date_command("Sun Oct 27 03:46:40 UTC 2024"), Some(time));
        assert_eq!(UnixSeconds::parse_date_command("Tue Sep  3 05:37:00 UTC 2024"), Some(UnixSeconds(1_725_341_820)));
        assert_eq!(UnixSeconds::parse_date_command("Sun Oct 27 03:46:40 CET 2024"), None);
        for text in ["", "2024102703464", "202410270346400", "20241327034640", "+0241027034640", "2024102703464x"] {
            assert_eq!(UnixSeconds::parse_compact(text), None, "{text}");
        }
    }

    #[test]
    fn lengths_of_time_are_read() {
        for (text, seconds) in [
            ("0", 0),
            ("3 days", 259_200),
            ("12h", 43_200),
            ("1 week", 604_800),
            (" 90 min ", 5400),
            ("30s", 30),
            ("2 months", 5_184_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in
            ["", "3", "days", "-1 day", "3 fortnights", "1.5 h", "99999999999999999999 s", "999999999999999999 weeks"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        let now = UnixSeconds(1_730_000_800);
        assert_eq!(now.parse_since("3 days ago").unwrap(), UnixSeconds(1_729_741_600));
        assert_eq!(now.parse_since("2024-10-27").unwrap(), UnixSeconds(1_729_987_200));
        assert!(now.parse_since("3 days").is_err());
    }

    #[test]
    fn times_of_the_command_line_are_read() {
        for (text, seconds) in [
            ("2024-10-27", 1_729_987_200),
            ("2024-10-27T03:46:40Z", 1_730_000_800),
            ("@-5", -5),
            ("@1730000800", 1_730_000_800),
        ] {
            assert_eq!(text.parse::<UnixSeconds>().unwrap(), UnixSeconds(seconds), "{text}");
        }
        for text in
            ["", "@", "2024", "2024-10", "20241027", "2024-13-01", "2024-10-27T03:46", "2024-10-27 03:46:40", "now"]
        {
            assert!(text.parse::<UnixSeconds>().is_err(), "{text}");
        }
    }
}
