//! What stands in the tables: columns with their cells and their order, rows that match a filter.

use std::cmp::Ordering;

use super::picture::{ActorRow, PeerRow, TopicRow};

/// How a cell is to be understood, beside its text. Never by colour only: the text says it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    /// Lost, refused, failed.
    Bad,
    /// On its way to good or bad.
    Warn,
    /// Nothing to look at.
    Faint,
}

/// What stands in one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String, Mark),
    /// Numbers over time, drawn as wide as there is room.
    Trend(Vec<u64>),
}

/// One column of a table.
pub(super) struct Column<R> {
    pub(super) title: &'static str,
    /// Characters it takes; the first column takes what is left.
    pub(super) width: u16,
    /// It is left out of terminals that are narrower.
    pub(super) from_width: u16,
    pub(super) is_number: bool,
    cell: fn(&R, &Look) -> Cell,
    order: fn(&R, &R) -> Ordering,
}

/// What cells need beside their row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// The broker's clock.
    pub(super) now_ms: u64,
}

/// Which column decides the order. Numbers go down, names go up, unless reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) reverse: bool,
}

/// A table as it is drawn.
#[derive(Clone, Debug, Default)]
pub(super) struct Grid {
    pub(super) headings: Vec<Heading>,
    pub(super) rows: Vec<Line>,
    /// Rows that the filter has left out.
    pub(super) filtered: usize,
}

/// The head of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heading {
    pub(super) title: &'static str,
    pub(super) width: u16,
    pub(super) from_width: u16,
    pub(super) is_number: bool,
    /// `Some(true)` if the table is in its order, greatest first.
    pub(super) falling: Option<bool>,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) cells: Vec<Cell>,
    pub(super) is_bad: bool,
}

/// What a row is called.
pub(super) trait Named {
    fn name(&self) -> &str;
    /// Everything that a filter looks into.
    fn searched(&self) -> String {
        self.name().to_owned()
    }
}

impl Named for TopicRow {
    fn name(&self) -> &str {
        &self.topic
    }
}

impl Named for PeerRow {
    fn name(&self) -> &str {
        &self.peer
    }

    fn searched(&self) -> String {
        format!("{} {} {}", self.peer, self.state, self.places.join(" "))
    }
}

impl Named for ActorRow {
    fn name(&self) -> &str {
        &self.name
    }

    fn searched(&self) -> String {
        format!("{} {} {}", self.name, self.state, self.reason)
    }
}

/// The table of these rows.
pub(super) fn grid<R: Named>(
    rows: &[R],
    columns: &[Column<R>],
    sort: Option<Sort>,
    filter: &str,
    look: Look,
) -> Grid {
    let needle = filter.to_lowercase();
    let is_wanted = |row: &&R| needle.is_empty() || row.searched().to_lowercase().contains(&needle);
    let mut chosen: Vec<&R> = rows.iter().filter(is_wanted).collect();
    let falls = |sort: Sort| columns.get(sort.column).is_some_and(|column| column.is_number) != sort.reverse;
    if let Some((sort, column)) = sort.and_then(|sort| Some((sort, columns.get(sort.column)?))) {
        chosen.sort_by(|one, other| {
            let order = (column.order)(one, other);
            let order = if falls(sort) { order.reverse() } else { order };
            order.then_with(|| one.name().cmp(other.name()))
        });
    }
    let lines = chosen.iter().map(|row| {
        let cells: Vec<Cell> = columns.iter().map(|column| (column.cell)(row, &look)).collect();
        let is_bad = cells.iter().any(|cell| matches!(cell, Cell::Text(_, Mark::Bad)));
        Line { name: row.name().to_owned(), cells, is_bad }
    });
    let headings = columns.iter().enumerate().map(|(at, column)| Heading {
        title: column.title,
        width: column.width,
        from_width: column.from_width,
        is_number: column.is_number,
        falling: sort.filter(|sort| sort.column == at).map(falls),
    });
    Grid { headings: headings.collect(), filtered: rows.len() - chosen.len(), rows: lines.collect() }
}

fn plain(text: impl Into<String>) -> Cell {
    Cell::Text(text.into(), Mark::Plain)
}

/// A number that should be zero.
fn alarming(number: u64) -> Cell {
    match number {
        0 => Cell::Text("0".to_owned(), Mark::Faint),
        _ => Cell::Text(count(number), Mark::Bad),
    }
}

/// A rate; nothing for those that are not known.
fn rated(rate: Option<f64>) -> Cell {
    match rate {
        None => Cell::Text("-".to_owned(), Mark::Faint),
        Some(0.0) => Cell::Text("0".to_owned(), Mark::Faint),
        Some(rate) => plain(rate_text(rate)),
    }
}

/// A column that is in the order of a number.
macro_rules! by {
    ($field:ident) => {
        |one, other| one.$field.partial_cmp(&other.$field).unwrap_or(Ordering::Equal)
    };
}

pub(super) const TOPICS: &[Column<TopicRow>] = &[
    Column {
        title: "TOPIC",
        width: 0,
        from_width: 0,
        is_number: false,
        cell: |row, _| plain(&row.topic),
        order: by!(topic),
    },
    Column {
        title: "MSG/S",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, _| rated(Some(row.messages_per_second)),
        order: by!(messages_per_second),
    },
    Column {
        title: "B/S",
        width: 7,
        from_width: 0,
        is_number: true,
        cell: |row, _| match row.bytes_per_second {
            0.0 => Cell::Text("0".to_owned(), Mark::Faint),
            bytes => plain(bytes_text(bytes)),
        },
        order: by!(bytes_per_second),
    },
    Column {
        title: "TOTAL",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, _| plain(count(row.messages)),
        order: by!(messages),
    },
    Column {
        title: "SUBS",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| match row.subscribers + row.servers {
            // Said in words, for it is why nobody gets anything.
            0 => Cell::Text("none".to_owned(), Mark::Warn),
            all => plain(all.to_string()),
        },
        order: |one, other| (one.subscribers + one.servers).cmp(&(other.subscribers + other.servers)),
    },
    Column {
        title: "LOST",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, _| alarming(row.lost),
        order: by!(lost),
    },
    Column {
        title: "DENIED",
        width: 7,
        from_width: 100,
        is_number: true,
        cell: |row, _| alarming(row.denied),
        order: by!(denied),
    },
    Column {
        title: "LAST",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, look| plain(ago(look.now_ms, row.last_seen_ms)),
        order: by!(last_seen_ms),
    },
    Column {
        title: "TREND 2 min",
        width: 12,
        from_width: 0,
        is_number: true,
        cell: |row, _| Cell::Trend(row.cells.clone()),
        order: |one, other| one.cells.iter().sum::<u64>().cmp(&other.cells.iter().sum()),
    },
];

fn peer_state(row: &PeerRow) -> Cell {
    let mark = match row.state {
        "slow" => Mark::Bad,
        "held" | "expired" | "revoked" => Mark::Warn,
        "absent" => Mark::Faint,
        _ => Mark::Plain,
    };
    Cell::Text(row.state.to_owned(), mark)
}

/// How long what waits for it will take at its present pace.
fn lag(row: &PeerRow) -> (f64, Cell) {
    match (row.queued, row.out_rate) {
        (0, _) => (0.0, Cell::Text("0".to_owned(), Mark::Faint)),
        (_, None) => (0.0, Cell::Text("-".to_owned(), Mark::Faint)),
        (_, Some(0.0)) => (f64::INFINITY, Cell::Text("stuck".to_owned(), Mark::Warn)),
        (queued, Some(rate)) => {
            let seconds = queued as f64 / rate;
            (seconds, plain(format!("{seconds:.1}s")))
        }
    }
}

pub(super) const PEERS: &[Column<PeerRow>] = &[
    Column {
        title: "PEER",
        width: 0,
        from_width: 0,
        is_number: false,
        cell: |row, _| plain(&row.peer),
        order: by!(peer),
    },
    Column {
        title: "STATE",
        width: 7,
        from_width: 0,
        is_number: false,
        cell: |row, _| peer_state(row),
        order: |one, other| one.state.cmp(other.state),
    },
    Column {
        title: "SES",
        width: 3,
        from_width: 0,
        is_number: true,
        cell: |row, _| plain(row.sessions.to_string()),
        order: by!(sessions),
    },
    Column {
        title: "IN/S",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| rated(row.in_rate),
        order: by!(in_rate),
    },
    Column {
        title: "OUT/S",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| rated(row.out_rate),
        order: by!(out_rate),
    },
    Column {
        title: "QUEUE",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| plain(count(row.queued)),
        order: by!(queued),
    },
    Column {
        title: "FULL",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| match row.fill_percent {
            full @ 90.. => Cell::Text(format!("{full}%"), Mark::Bad),
            full @ 50.. => Cell::Text(format!("{full}%"), Mark::Warn),
            full => plain(format!("{full}%")),
        },
        order: by!(fill_percent),
    },
    Column {
        title: "LAG",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, _| lag(row).1,
        order: |one, other| lag(one).0.total_cmp(&lag(other).0),
    },
    Column {
        title: "LOST",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, _| alarming(row.dropped),
        order: by!(dropped),
    },
    Column {
        title: "DENIED",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, _| alarming(row.denied),
        order: by!(denied),
    },
    Column {
        title: "SINCE",
        width: 5,
        from_width: 0,
        is_number: true,
        cell: |row, look| plain(ago(look.now_ms, row.since_ms)),
        order: |one, other| other.since_ms.cmp(&one.since_ms),
    },
    Column {
        title: "WHERE",
        width: 28,
        from_width: 110,
        is_number: false,
        cell: |row, _| plain(row.places.first().cloned().unwrap_or_default()),
        order: |one, other| one.places.cmp(&other.places),
    },
];

fn actor_state(row: &ActorRow) -> Cell {
    let mark = match row.state.as_str() {
        "error" | "degraded" => Mark::Bad,
        "starting" | "stopping" | "stopped" => Mark::Warn,
        _ => Mark::Plain,
    };
    Cell::Text(row.state.clone(), mark)
}

pub(super) const ACTORS: &[Column<ActorRow>] = &[
    Column {
        title: "ACTOR",
        width: 0,
        from_width: 0,
        is_number: false,
        cell: |row, _| plain(&row.name),
        order: by!(name),
    },
    Column {
        title: "STATE",
        width: 9,
        from_width: 0,
        is_number: false,
        cell: |row, _| actor_state(row),
        order: by!(state),
    },
    Column {
        title: "RESTARTS",
        width: 9,
        from_width: 0,
        is_number: true,
        cell: |row, _| match row.restarts {
            0 => Cell::Text("0".to_owned(), Mark::Faint),
            restarts => Cell::Text(restarts.to_string(), Mark::Warn),
        },
        order: by!(restarts),
    },
    Column {
        title: "MAILBOX",
        width: 8,
        from_width: 0,
        is_number: true,
        cell: |row, _| plain(count(row.mailbox)),
        order: by!(mailbox),
    },
    Column {
        title: "SINCE",
        width: 6,
        from_width: 0,
        is_number: true,
        cell: |row, look| plain(ago(look.now_ms, row.since_ms)),
        order: |one, other| other.since_ms.cmp(&one.since_ms),
    },
    Column {
        title: "REASON",
        width: 30,
        from_width: 0,
        is_number: false,
        cell: |row, _| plain(&row.reason),
        order: by!(reason),
    },
];

/// A number in few characters.
pub(super) fn count(number: u64) -> String {
    rate_text(number as f64)
}

/// A number a second in few characters.
pub(super) fn rate_text(rate: f64) -> String {
    match rate {
        ..10.0 if rate.fract() != 0.0 => format!("{rate:.1}"),
        ..1e4 => format!("{rate:.0}"),
        ..1e5 => format!("{:.1}k", rate / 1e3),
        ..1e6 => format!("{:.0}k", rate / 1e3),
        ..1e8 => format!("{:.1}M", rate / 1e6),
        ..1e9 => format!("{:.0}M", rate / 1e6),
        _ => format!("{:.1}G", rate / 1e9),
    }
}

/// Bytes with a decimal prefix.
pub(super) fn bytes_text(bytes: f64) -> String {
    crate::tool::table::bytes(&serde_json::json!(bytes))
}

/// How long ago, by the broker's clock.
pub(super) fn ago(now_ms: u64, at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".to_owned();
    }
    match now_ms.saturating_sub(at_ms) / 1000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(topic: &str, messages: u64, lost: u64) -> TopicRow {
        TopicRow { topic: topic.to_owned(), messages, lost, ..TopicRow::default() }
    }

    fn names(sort: Sort, filter: &str) -> Vec<String> {
        let rows = [row("b", 5, 0), row("a", 5, 2), row("c/x", 9, 0)];
        let grid = grid(&rows, TOPICS, Some(sort), filter, Look::default());
        grid.rows.into_iter().map(|line| line.name).collect()
    }

    #[test]
    fn numbers_fall_names_rise_and_equal_ones_are_in_the_order_of_their_names() {
        let by = |column, reverse| names(Sort { column, reverse }, "");
        assert_eq!(by(0, false), ["a", "b", "c/x"]);
        assert_eq!(by(0, true), ["c/x", "b", "a"]);
        assert_eq!(by(3, false), ["c/x", "a", "b"]);
        assert_eq!(by(3, true), ["a", "b", "c/x"]);
    }

    #[test]
    fn a_filter_looks_for_a_part_in_either_case_and_says_how_many_it_left_out() {
        assert_eq!(names(Sort::default(), "/X"), ["c/x"]);
        let grid = grid(&[row("a", 1, 0), row("b", 1, 3)], TOPICS, None, "B", Look::default());
        assert_eq!((grid.filtered, grid.rows[0].is_bad), (1, true));
    }

    #[test]
    fn numbers_are_short() {
        let told = [0.0, 0.5, 7.0, 123.4, 12_345.0, 7_000_000.0].map(rate_text);
        assert_eq!(told, ["0", "0.5", "7", "123", "12.3k", "7.0M"]);
        assert_eq!([ago(100_000, 40_000), ago(100_000, 99_000), ago(1, 0)], ["1m", "1s", "-"]);
    }

    #[test]
    fn what_waits_for_a_peer_is_told_in_seconds_of_its_pace() {
        let peer = |queued, out_rate| PeerRow { queued, out_rate, ..PeerRow::default() };
        let told = |queued, rate| match lag(&peer(queued, rate)).1 {
            Cell::Text(text, _) => text,
            Cell::Trend(_) => String::new(),
        };
        assert_eq!(
            [told(0, None), told(5, None), told(5, Some(0.0)), told(50, Some(20.0))],
            ["0", "-", "stuck", "2.5s"]
        );
    }
}
