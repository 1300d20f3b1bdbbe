use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes of a text such as `256MiB`, `4GiB` or `512` (bytes). Binary units only. `None` if it is none, or too large.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = if unit.is_empty() { 1 } else { factor(&BYTE_UNITS, unit)? };
    number.checked_mul(factor)
}

/// The shortest exact text that [`parse_bytes`] takes back.
pub fn format_bytes(bytes: u64) -> String {
    let (unit, factor) =
        BYTE_UNITS.into_iter().find(|(_, f)| bytes != 0 && bytes.is_multiple_of(*f)).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Time of a text such as `200ms`, `5s`, `10m`, `2h` or `30d`. `None` if it is none, or too long.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    number.checked_mul(factor(&TIME_UNITS, unit)?).map(Duration::from_millis)
}

/// The shortest exact text that [`parse_duration`] takes back; what is finer than a millisecond is cut off.
pub fn format_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, factor) = TIME_UNITS.into_iter().find(|(_, f)| millis.is_multiple_of(*f)).unwrap_or(("ms", 1));
    format!("{}{unit}", millis / factor)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_binary_units() {
        assert_eq!(parse_bytes("256MiB"), Some(268_435_456));
        assert_eq!(parse_bytes(" 4 GiB "), Some(4_294_967_296));
        assert_eq!(parse_bytes("512"), Some(512));
        assert_eq!(parse_bytes("0B"), Some(0));
        for wrong in ["", "MiB", "256MB", "256mib", "-1", "1.5GiB", "99999999999TiB", "18446744073709551616"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("200ms"), Some(Duration::from_millis(200)));
        assert_eq!(parse_duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("10m"), Some(Duration::from_secs(600)));
        assert_eq!(parse_duration("30d"), Some(Duration::from_secs(2_592_000)));
        for wrong in ["", "5", "s", "5 sec", "-5s", "1.5s", "99999999999999999d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn formatted_values_are_exact() {
        assert_eq!(format_bytes(268_435_456), "256MiB");
        assert_eq!(format_bytes(1025), "1025B");
        assert_eq!(format_bytes(0), "0B");
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_secs(2_592_000)), "30d");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format_duration(Duration::ZERO), "0s");
    }
}
