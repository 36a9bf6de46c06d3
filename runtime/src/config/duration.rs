//! Durations as people write them: a number and a unit, `500ms`, `10s`, `5m`, `2h`, `30d`.

use std::time::Duration;

/// Units, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads a duration. `None` if it is none, or longer than fits.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(*milliseconds)?))
}

/// Writes a duration in the largest unit that divides it. What is below a millisecond is left out.
pub fn text(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let whole = |unit: &(&str, u64)| milliseconds.is_multiple_of(u128::from(unit.1));
    match UNITS.iter().find(|unit| milliseconds > 0 && whole(unit)) {
        Some((unit, size)) => format!("{}{unit}", milliseconds / u128::from(*size)),
        None => "0s".to_owned(),
    }
}

/// For `#[serde(with)]`.
pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom(format_args!("`{text}` is no duration")))
}

/// For `#[serde(with)]`.
pub(super) fn serialize<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_back_as_it_was_written() {
        for written in ["500ms", "10s", "5m", "2h", "30d", "1500ms", "0s"] {
            assert_eq!(text(parse(written).unwrap()), written);
        }
        assert_eq!(parse("120s"), Some(Duration::from_secs(120)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in
            ["", "s", "10", "-1s", "1.5s", "10 s", "10sec", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
