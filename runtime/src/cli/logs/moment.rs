//! Points in time as people write them.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned, civil, tz::TimeZone};

use crate::config::duration;

/// A point in time: how long ago (`10m`), `now`, `today`, `yesterday`, a date, a date and a time, a time of today (all
/// in the local zone), or RFC 3339.
pub(super) fn parse(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let zone = |moment: civil::DateTime| {
        moment.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp())
    };
    let text = text.trim();
    let moment = match text {
        "now" => Some(now.timestamp()),
        "today" => now.start_of_day().ok().map(|day| day.timestamp()),
        "yesterday" => {
            let day = now.checked_sub(1.day()).and_then(|day| day.start_of_day());
            day.ok().map(|day| day.timestamp())
        }
        _ => duration::parse(text)
            .and_then(|ago| now.timestamp().checked_sub(ago).ok())
            .or_else(|| text.parse::<Timestamp>().ok())
            .or_else(|| text.parse::<civil::DateTime>().ok().and_then(zone))
            .or_else(|| {
                text.parse::<civil::Date>()
                    .ok()
                    .and_then(|date| zone(date.to_datetime(civil::Time::midnight())))
            })
            // A number alone would be an hour.
            .or_else(|| {
                let time = text.contains(':').then(|| text.parse::<civil::Time>().ok())??;
                zone(now.date().to_datetime(time))
            }),
    };
    moment.ok_or_else(|| {
        format!(
            "`{}` is no time; write how long ago (`10m`), `today`, `yesterday`, `2026-01-31`, `2026-01-31 08:00`, `08:00` \
             or `2026-01-31T08:00:00Z`",
            text.escape_debug()
        )
    })
}

/// The same, seen from now.
pub(in crate::cli) fn argument(text: &str) -> Result<Timestamp, String> {
    parse(text, &Timestamp::now().to_zoned(TimeZone::system()))
}

/// What `--last` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// So many records.
    Lines(usize),
    /// What is not older.
    Time(Duration),
}

pub(super) fn last(text: &str) -> Result<Last, String> {
    text.parse()
        .map(Last::Lines)
        .ok()
        .or_else(|| duration::parse(text).map(Last::Time))
        .ok_or_else(|| format!("`{}` is neither a number nor a duration such as `10m`", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_people_write_it() {
        let now: Zoned = "2026-03-05T14:30:00[+01:00]"
            .parse::<Zoned>()
            .or_else(|_| "2026-03-05T14:30:00+01:00[+01:00]".parse())
            .unwrap();
        let reads = |text: &str| parse(text, &now).unwrap().to_string();
        for (text, moment) in [
            ("now", "2026-03-05T13:30:00Z"),
            ("90m", "2026-03-05T12:00:00Z"),
            ("today", "2026-03-04T23:00:00Z"),
            ("yesterday", "2026-03-03T23:00:00Z"),
            ("2026-01-31", "2026-01-30T23:00:00Z"),
            ("2026-01-31 08:00", "2026-01-31T07:00:00Z"),
            ("2026-01-31T08:00:01.5", "2026-01-31T07:00:01.5Z"),
            ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00Z"),
            ("2026-01-31T08:00:00+02:00", "2026-01-31T06:00:00Z"),
            ("08:00", "2026-03-05T07:00:00Z"),
        ] {
            assert_eq!(reads(text), moment, "{text}");
        }
        for text in ["", "soon", "10", "2026-13-01", "10 m", "-5m"] {
            assert!(parse(text, &now).is_err(), "{text}");
        }
        assert_eq!((last("7"), last("2h")), (Ok(Last::Lines(7)), Ok(Last::Time(Duration::from_secs(7200)))));
        assert!(last("x").is_err());
    }
}
