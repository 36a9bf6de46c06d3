//! Tables for people: columns as wide as their widest cell, numbers to the right.

use serde_json::Value;

use super::{failure::Failure, output::Output};

/// One column: its heading and what its cell is for a row.
pub(super) type Column = (&'static str, fn(&Value) -> String);

/// Prints `rows`: JSON objects as they are if asked for, else the columns.
pub(super) fn print(rows: &[Value], columns: &[Column], output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return rows.iter().try_for_each(|row| output.json(row));
    }
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|(_, cell)| output.harmless(&cell(row))).collect());
    let lines: Vec<Vec<String>> = std::iter::once(headings).chain(cells).collect();
    let is_number = |column: usize| {
        lines.len() > 1
            && lines[1..].iter().all(|line| line[column].starts_with(|first: char| first.is_ascii_digit()))
    };
    let widths: Vec<(usize, bool)> = (0..columns.len())
        .map(|column| {
            let widest = lines.iter().map(|line| line[column].chars().count()).max();
            (widest.unwrap_or_default(), is_number(column))
        })
        .collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, (width, is_number))| match is_number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        output.line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A text, number or nothing as a cell.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A list of names.
pub(super) fn names(value: &Value) -> String {
    let names: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// A rate with one digit behind the point.
pub(super) fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

/// Bytes with a decimal prefix.
pub(super) fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_f64() else { return "-".to_owned() };
    let (divisor, unit) = match bytes {
        ..1e3 => return format!("{bytes:.0}B"),
        ..1e6 => (1e3, "kB"),
        ..1e9 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{:.1}{unit}", bytes / divisor)
}

/// How long ago a time in Unix milliseconds was.
pub(super) fn age(value: &Value) -> String {
    let now_ms = crate::envelope::now_ns() / 1_000_000;
    let Some(at_ms) = value.as_u64().filter(|at_ms| *at_ms > 0) else { return "-".to_owned() };
    match now_ms.saturating_sub(at_ms) / 1_000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A time in Unix milliseconds, UTC.
pub(super) fn time(value: &Value) -> String {
    let timestamp =
        value.as_i64().and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok());
    // Always milliseconds, so that columns stand under each other.
    timestamp.map_or_else(|| "-".to_owned(), |timestamp| format!("{timestamp:.3}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_short_and_say_nothing_as_a_dash() {
        assert_eq!(bytes(&json!(999)), "999B");
        assert_eq!(bytes(&json!(4100)), "4.1kB");
        assert_eq!(bytes(&json!(7_000_000)), "7.0MB");
        assert_eq!(rate(&json!(1.25)), "1.2");
        assert_eq!(names(&json!(["a", "b"])), "a,b");
        assert_eq!(names(&json!([])), "-");
        assert_eq!(age(&json!(0)), "-");
        assert_eq!(time(&json!(1_000)), "1970-01-01T00:00:01.000Z");
        assert_eq!(time(&json!(1_234)), "1970-01-01T00:00:01.234Z");
        assert_eq!(text(&json!(null)), "-");
    }
}
