//! What verbs print: one JSON object, or text for people.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::failure::Failure;

/// Writes to standard output; a reader that went away (`| head`) is no failure.
///
/// # Errors
/// [`Failure`] if the output can't take it.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::caused("Could not write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Says something on standard error. Where nobody reads that (`2>&1 | head`) there is nobody to tell.
pub fn complain(text: &str) {
    let _unread = writeln!(io::stderr(), "{text}");
}

/// Prints the JSON form, or the text.
///
/// # Errors
/// [`Failure`] if the output can't take it.
pub fn show(json: bool, value: &Value, text: &str) -> Result<(), Failure> {
    if json { print(&value.to_string()) } else { print(text) }
}

/// Bytes with at most one digit after the point, as `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A word for a shell.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@%,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A time as `2026-02-28 13:05:09Z` (UTC).
pub fn utc(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let rest = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The time now as [`utc`] writes it.
pub fn utc_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    utc(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar (H. Hinnant, `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A reply's fields as lines `name: value`, nested ones indented; `ok` is left out.
pub fn lines(value: &Value) -> String {
    let mut text = String::new();
    write_lines(value, 0, &mut text);
    text.trim_end().to_owned()
}

fn write_lines(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| depth > 0 || key.as_str() != "ok") {
                if is_flat(value) {
                    text.push_str(&format!("{indent}{key}: {}\n", flat(value)));
                } else {
                    text.push_str(&format!("{indent}{key}:\n"));
                    write_lines(value, depth + 1, text);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(map) => {
                        let fields: Vec<String> =
                            map.iter().map(|(key, value)| format!("{key}={}", flat(value))).collect();
                        text.push_str(&format!("{indent}{}\n", fields.join("  ")));
                    }
                    other => text.push_str(&format!("{indent}{}\n", flat(other))),
                }
            }
        }
        other => text.push_str(&format!("{indent}{}\n", flat(other))),
    }
}

fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(","),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", flat(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_610_612_736, "1.5 GiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("/mnt/vault"), "/mnt/vault");
        assert_eq!(quoted("/mnt/my vault's"), r"'/mnt/my vault'\''s'");
        assert_eq!(quoted("s3://b/p?x=1&y"), "'s3://b/p?x=1&y'");
    }

    /// Values from `date -u -d @N`.
    #[test]
    fn times_are_those_of_date() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_772_283_909, "2026-02-28 13:05:09Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn replies_are_lines() {
        let reply = serde_json::json!({"ok": true, "a": {"b": [1, 2], "c": "x"}, "list": [{"id": "zstd", "n": [1, 2], "p": {"level": 3}}], "none": null});
        assert_eq!(lines(&reply), "a:\n  b:\n    1\n    2\n  c: x\nlist:\n  id=zstd  n=1,2  p=level=3\nnone: -");
    }
}
