//! A record as a line for people. What was logged cannot speak to the terminal: control characters are written out.

use std::fmt::Write as _;

use interlock_actors::log_record::{Level, LogRecord};
use jiff::{Timestamp, tz::TimeZone};

use crate::cli::{Output, ascii};

/// Columns that most component names fit into.
const COMPONENT_WIDTH: usize = 14;

pub(super) fn line(record: &LogRecord, wide: bool, output: &Output) -> String {
    let time = Timestamp::from_nanosecond(i128::from(record.time_ns))
        .unwrap_or_default()
        .to_zoned(TimeZone::system());
    let color = match record.level {
        Level::Error => "31",
        Level::Warn => "33",
        Level::Info => "32",
        Level::Debug | Level::Trace => "2",
    };
    let level = output.colored(color, &format!("{:<5}", record.level.as_str()));
    let mut line = format!(
        "{} {level} {:<COMPONENT_WIDTH$} {}",
        time.strftime("%Y-%m-%d %H:%M:%S%.3f"),
        plain(&record.component),
        plain(&record.message)
    );
    let mut rest = String::new();
    for (name, value) in &record.fields {
        let _ = write!(rest, " {}={}", plain(name), plain(value));
    }
    if wide {
        write_wide(&mut rest, record);
    }
    if !rest.is_empty() {
        line.push_str(&output.colored("2", &rest));
    }
    line
}

/// What is known of a record besides.
fn write_wide(out: &mut String, record: &LogRecord) {
    let _ = write!(out, " target={} process={}", plain(&record.target), record.process);
    if record.incarnation > 0 {
        let _ = write!(out, " incarnation={}", record.incarnation);
    }
    let options = [
        ("trace_id", &record.trace_id),
        ("conversation", &record.conversation),
        ("origin", &record.origin),
        ("file", &record.file),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            let _ = write!(out, " {name}={}", plain(value));
        }
    }
    if let Some(line) = record.line {
        let _ = write!(out, ":{line}");
    }
    if !record.spans.is_empty() {
        let _ = write!(out, " spans={}", plain(&record.spans.join(">")));
    }
}

/// A logged text without a character that does something.
fn plain(text: &str) -> String {
    ascii(text).replace('\u{1b}', "\\u{1b}").replace('\t', "\\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_logged_character_reaches_the_terminal_but_printable_ones() {
        let evil = "\u{1b}[2J\u{1b}]0;title\u{7}\r\n\t\u{9b}31m\u{202e}\u{7f}";
        let mut record = LogRecord::new(Level::Error, "gateway", evil);
        record.component = evil.into();
        record.fields = vec![(evil.into(), evil.into())];
        (record.trace_id, record.file, record.spans) =
            (Some(evil.into()), Some(evil.into()), vec![evil.into()]);
        let output = Output::new();
        for wide in [false, true] {
            let line = line(&record, wide, &output);
            assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line:?}");
            assert!(line.contains("\\u{1b}[2J"), "{line}");
        }
    }
}
