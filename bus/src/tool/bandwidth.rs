//! `bus bw`: how many bytes flowed, and how large messages are, from the broker's own statistics. It subscribes to nothing.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Failure, Output, ask_broker, rate::Span, table};
use crate::{client::Client, exit::Exit};

/// What `bus bw` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Rates are those of the time asked for; the smallest and the largest message those since the broker \
    started. Units are decimal: 1 kB is 1000 bytes.\n\nExamples:\n  bus bw\n  bus bw 'logs/#' --since 10m"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    span: Span,
}

const COLUMNS: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("B/S", |row| table::bytes(&row["bytes_per_second"])),
    ("MIN/S", |row| table::bytes(&row["least_bytes"])),
    ("MAX/S", |row| table::bytes(&row["most_bytes"])),
    ("BYTES", |row| table::bytes(&row["bytes"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("SIZE", |row| table::bytes(&row["mean_size"])),
    ("SMALLEST", |row| match row["smallest_class"].as_array().map(Vec::as_slice) {
        Some([from, to]) if from != to => format!("{}-{}", table::bytes(from), table::bytes(to)),
        Some([from, _]) => table::bytes(from),
        _ => "-".to_owned(),
    }),
    ("LARGEST", |row| table::bytes(&row["largest"])),
];

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let mut rows = arguments.span.flow(client, output)?.summary();
    let known = ask_broker(client, "topics")?;
    let known: HashMap<&str, &Value> = known
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| Some((row["topic"].as_str()?, row)))
        .collect();
    for row in &mut rows {
        let Some(topic) = row["topic"].as_str().and_then(|topic| known.get(topic)) else { continue };
        row["largest"] = topic["largest"].clone();
        row["smallest_class"] = smallest(&topic["sizes"], &topic["largest"]);
    }
    // The one that takes most stands first.
    rows.sort_by(|one, other| {
        let rate = |row: &Value| row["bytes_per_second"].as_f64().unwrap_or_default();
        rate(other).total_cmp(&rate(one))
    });
    table::print(&rows, COLUMNS, output)?;
    Ok(if rows.is_empty() { Exit::Failed } else { Exit::Done })
}

/// Between which sizes the smallest message lies: the broker counts sizes by powers of two, and knows the largest exactly.
fn smallest(sizes: &Value, largest: &Value) -> Value {
    let Some(most) = sizes[0][0].as_u64() else { return Value::Null };
    // A class holds what has as many significant bits as its largest.
    let least = most.div_ceil(2);
    json!([least, most.min(largest.as_u64().unwrap_or(most))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_message_lies_in_the_first_class_that_has_any() {
        assert_eq!(smallest(&json!([[127, 3], [1023, 1]]), &json!(600)), json!([64, 127]));
        assert_eq!(smallest(&json!([[127, 3]]), &json!(100)), json!([64, 100]));
        assert_eq!(smallest(&json!([[0, 1]]), &json!(0)), json!([0, 0]));
        assert_eq!(smallest(&json!([]), &json!(0)), Value::Null);
    }
}
