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

/// Reads a duration given on the command line.
pub(crate) fn argument(text: &str) -> Result<Duration, String> {
    parse(text)
        .ok_or_else(|| format!("`{text}` is no duration; write a number and a unit, for example `30s`"))
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

/// A duration for somebody who reads a table: two or three digits and a unit.
pub fn brief(duration: Duration) -> String {
    let micros = duration.as_micros();
    let tenths = |of: u128, unit: &str| {
        let (whole, tenth) = (micros / of, micros % of * 10 / of);
        if whole < 10 && tenth > 0 { format!("{whole}.{tenth} {unit}") } else { format!("{whole} {unit}") }
    };
    match duration.as_secs() {
        0 if micros < 1000 => format!("{micros} us"),
        0 => tenths(1000, "ms"),
        1..120 => tenths(1_000_000, "s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
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

/// For `#[serde(with)]` where there may be none.
pub(super) mod optional {
    use std::time::Duration;

    use serde::Deserialize;

    pub(in crate::config) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let none = || serde::de::Error::custom(format_args!("`{text}` is no duration"));
        super::parse(&text).map(Some).ok_or_else(none)
    }

    pub(in crate::config) fn serialize<S: serde::Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.serialize_some(&super::text(*duration)),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brief_duration_has_two_or_three_digits() {
        let brief = |micros| brief(Duration::from_micros(micros));
        assert_eq!([brief(0), brief(999), brief(1500), brief(42_700)], ["0 us", "999 us", "1.5 ms", "42 ms"]);
        assert_eq!([brief(2_000_000), brief(2_340_000), brief(119_000_000)], ["2 s", "2.3 s", "119 s"]);
        assert_eq!(
            [brief(120_000_000), brief(7_200_000_000), brief(200_000_000_000)],
            ["2 min", "2 h", "2 d"]
        );
    }

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
