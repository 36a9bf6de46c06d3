//! What the index finds is what looking at every record finds; what is deleted is gone and accounted for.

use proptest::prelude::*;
use rusqlite::Connection;

use super::{
    Append, StoredLog,
    filter::{FieldPattern, Grep, LogQuery, NamePattern},
    index::{self, Block},
    retention::{Deleted, LogRetention, Trim},
    search,
    words::TextQuery,
};
use crate::{
    log_record::{Level, LogRecord},
    store::{
        limits, migrate,
        writer::{Site, Work},
    },
};

/// A database in memory; the code under test does not know the difference.
struct Logs(Connection);

impl Logs {
    fn new() -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate::migrate(&mut connection, "memory".as_ref(), migrate::MIGRATIONS).unwrap();
        Self(connection)
    }

    fn work<W: Work>(&self, work: &W) -> W::Output {
        let transaction = self.0.unchecked_transaction().unwrap();
        let output = work.apply(&Site::new(&transaction, "memory".as_ref(), false)).unwrap();
        transaction.commit().unwrap();
        output
    }

    fn append(&self, records: &[LogRecord]) {
        self.work(&Append(records.to_vec()));
    }

    fn index_all(&self) {
        while index::step(&self.0).unwrap() > 0 {}
    }

    fn trim(&self, retention: LogRetention, now_ns: u64) -> Deleted {
        let mut all = Deleted::default();
        loop {
            let deleted = self.work(&Trim { retention, now_ns });
            if deleted.all() == 0 {
                return all;
            }
            assert!(deleted.all() <= 2 * limits::TRIM_BATCH_ROWS as u64 + 1024, "{deleted:?} in one step");
            all += deleted;
        }
    }

    fn find(&self, query: &LogQuery) -> Vec<StoredLog> {
        search::search(&self.0, query).unwrap().records
    }

    fn count(&self, sql: &str) -> i64 {
        self.0.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// What is known of the blocks is what stands in them.
    fn assert_blocks_are_true(&self) {
        let known = self.count("SELECT coalesce(sum(rows), 0) FROM log_blocks");
        let there = self.count("SELECT count(*) FROM logs WHERE seq <= (SELECT indexed_to FROM log_totals)");
        assert_eq!(known, there);
        let wrong = "SELECT count(*) FROM log_blocks WHERE (rows, oldest_ns, newest_ns) IS NOT (SELECT count(*), \
                     min(time_ns), max(time_ns) FROM logs WHERE seq / 1024 = block \
                     AND seq <= (SELECT indexed_to FROM log_totals))";
        assert_eq!(self.count(wrong), 0);
    }
}

/// The meaning, without any index.
fn naive(all: &[StoredLog], query: &LogQuery) -> Vec<i64> {
    let mut found: Vec<&StoredLog> = all
        .iter()
        .filter(|log| query.after_seq.is_none_or(|after| log.seq > after) && query.matches(&log.record))
        .collect();
    if query.after_seq.is_some() {
        found.truncate(query.limit);
    } else {
        found.sort_by_key(|log| (log.record.time_ns, log.seq));
        found.drain(..found.len().saturating_sub(query.limit));
    }
    found.iter().map(|log| log.seq).collect()
}

fn seqs(found: &[StoredLog]) -> Vec<i64> {
    found.iter().map(|log| log.seq).collect()
}

const WORDS: &[&str] = &[
    "disk",
    "Disk",
    "full",
    "\u{fc}ber",
    "\u{dc}BER",
    "\u{65e5}\u{672c}",
    "\u{1f600}",
    "100%_a",
    "*",
    "\"quoted\"",
    "a-b",
    "l_3",
    "z_long",
    "OR",
    "NEAR(",
    "'",
    "cafe\u{301}",
    "\u{130}x",
    "x\0y",
    "\\",
    "\u{20ac}",
];
const COMPONENTS: &[&str] = &["gateway", "model", "log-consumer", "log-transport", "G\u{e4}te"];
const TARGETS: &[&str] = &["a", "a::b", "a::b::c", "ab", ""];
const VALUES: &[&str] = &["", "t1", "1", "11", "one two", "\u{1f600}", "a=b", "\"", "c1"];

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(WORDS), 0..5).prop_map(|words| words.join(" "))
}

prop_compose! {
    fn record()(
        level in proptest::sample::select(&Level::ALL[..]),
        component in proptest::sample::select(COMPONENTS),
        target in proptest::sample::select(TARGETS),
        message in text(),
        fields in proptest::collection::vec((proptest::sample::select(&["k", "key", "trace_id", "turn"][..]), proptest::sample::select(VALUES)), 0..3),
        time_ns in 1000_u64..1100,
        (process, incarnation) in (1_u32..3, 0_u64..3),
        trace in proptest::option::of(proptest::sample::select(&["t1", "T1"][..])),
        conversation in proptest::option::of(proptest::sample::select(&["c1", "c2"][..])),
    ) -> LogRecord {
        let mut record = LogRecord::new(level, component, message);
        (record.component, record.target) = (component.to_owned(), target.to_owned());
        record.fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (record.time_ns, record.process, record.incarnation) = (time_ns, process, incarnation);
        (record.trace_id, record.conversation) = (trace.map(str::to_owned), conversation.map(str::to_owned));
        record
    }
}

/// Mostly `None`, so that combinations of two and three are common.
fn seldom<T: std::fmt::Debug + Clone + 'static>(
    some: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.2, some)
}

prop_compose! {
    fn query()(
        min_level in seldom(proptest::sample::select(&Level::ALL[..])),
        (since_ns, until_ns) in (seldom(990_u64..1110), seldom(990_u64..1110)),
        components in seldom(proptest::collection::vec(
            proptest::sample::select(&["gateway", "log-*", "!model", "!log-*", "*t*", "nobody", "G\u{e4}te", "none*"][..]), 1..3)),
        targets in seldom(proptest::collection::vec(proptest::sample::select(TARGETS), 1..3)),
        fields in seldom(proptest::collection::vec(
            proptest::sample::select(&["k=1", "k=11", "key", "key=one two", "k=", "key=a=b", "trace_id", "trace_id=t1", "conversation=c1", "no"][..]), 1..3)),
        (trace_id, conversation) in (seldom(Just("t1".to_owned())), seldom(Just("c1".to_owned()))),
        (process, incarnation) in (seldom(1_u32..3), seldom(0_u64..3)),
        text in seldom(prop_oneof![text(), text().prop_map(|text| format!("\"{text}\"*")), proptest::sample::select(WORDS).prop_map(|word| format!("{}*", word.chars().next().unwrap_or_default())), any::<String>()]),
        grep in seldom(proptest::sample::select(&["^disk", "k=1$", "(?i)FULL"][..])),
        limit in prop_oneof![0_usize..20, Just(10_000)],
        after_seq in seldom(0_i64..1500),
    ) -> LogQuery {
        LogQuery {
            min_level, since_ns, until_ns, targets: targets.into_iter().flatten().map(str::to_owned).collect(),
            components: components.into_iter().flatten().map(NamePattern::from).collect(),
            fields: fields.into_iter().flatten().map(FieldPattern::from).collect(),
            trace_id, conversation, process, incarnation,
            text: text.as_deref().map(TextQuery::new),
            grep: grep.map(|pattern| Grep::new(pattern).unwrap()),
            limit, after_seq,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_query_finds_exactly_what_looking_at_every_record_finds(
        records in proptest::collection::vec(record(), 1..120),
        queries in proptest::collection::vec(query(), 40),
        repeats in 1_usize..40,
        keep in 500_u64..5000,
        drift in 0_u64..3,
    ) {
        let logs = Logs::new();
        // Several blocks of the same texts: time runs on, with `drift` 0 it stands.
        for round in 0..repeats {
            let records: Vec<_> = records.iter().map(|record| LogRecord {
                id: uuid::Uuid::new_v4(),
                time_ns: record.time_ns + round as u64 * drift,
                ..record.clone()
            }).collect();
            logs.append(&records);
            if round == repeats / 2 {
                logs.index_all();
                logs.trim(LogRetention { rows_max: keep, ..LogRetention::default() }, 2000);
            }
        }
        logs.assert_blocks_are_true();
        let all = logs.find(&LogQuery { after_seq: Some(0), limit: 100_000, ..LogQuery::default() });
        for query in queries {
            prop_assert_eq!(seqs(&logs.find(&query)), naive(&all, &query), "{:?}", query);
        }
    }
}

fn numbered(numbers: std::ops::Range<u64>) -> Vec<LogRecord> {
    let record = |number| {
        let mut record = LogRecord::new(Level::Info, "test", format!("record {number}"));
        record.time_ns = number;
        record
    };
    numbers.map(record).collect()
}

#[test]
fn the_newest_are_the_newest_by_time_whatever_the_order_of_arrival() {
    let logs = Logs::new();
    // What a journal held back for a while comes late: a block of old ones, and one from the future before all.
    logs.append(&numbered(1_000_000..1_000_001));
    logs.append(&numbered(10_000..15_000));
    logs.append(&numbered(0..3000));
    logs.index_all();
    logs.append(&numbered(3000..3100));
    for text in [None, Some(TextQuery::new("record"))] {
        let query = LogQuery { limit: 100, text, ..LogQuery::default() };
        let times: Vec<_> = logs.find(&query).iter().map(|log| log.record.time_ns).collect();
        let expected: Vec<_> = (14_901..15_000).chain([1_000_000]).collect();
        assert_eq!(times, expected);
        let query = LogQuery { since_ns: Some(2990), until_ns: Some(3010), ..query };
        let times: Vec<_> = logs.find(&query).iter().map(|log| log.record.time_ns).collect();
        assert_eq!(times, (2990..3010).collect::<Vec<_>>());
    }
}

#[test]
fn retention_deletes_by_age_by_number_and_by_size_and_counts_each() {
    let logs = Logs::new();
    logs.append(&numbered(0..10_000));
    logs.index_all();
    logs.append(&numbered(10_000..10_100));
    let ages = LogRetention { age_max: std::time::Duration::from_nanos(1000), ..LogRetention::default() };
    let deleted = logs.trim(ages, 3000);
    assert_eq!(deleted, Deleted { by_age: 2000, ..Deleted::default() });
    assert_eq!(logs.count("SELECT min(time_ns) FROM logs"), 2000);
    let rows = LogRetention { rows_max: 5000, ..LogRetention::default() };
    assert_eq!(logs.trim(rows, 3000), Deleted { by_rows: 3100, ..Deleted::default() });
    assert_eq!(
        (logs.count("SELECT min(time_ns) FROM logs"), logs.count("SELECT count(*) FROM logs")),
        (5100, 5000)
    );
    logs.assert_blocks_are_true();
    let before = logs.count("SELECT sum(bytes) FROM log_blocks");
    let bytes = LogRetention { bytes_max: before as u64 / 2, ..LogRetention::default() };
    let deleted = logs.trim(bytes, 3000);
    assert!((2400..2700).contains(&deleted.by_bytes), "{deleted:?}");
    assert!(logs.count("SELECT sum(bytes) FROM log_blocks") <= before / 2);
    logs.assert_blocks_are_true();
    let counted = logs.count("SELECT by_age * 1000000 + by_rows FROM log_totals");
    assert_eq!(counted, 2_000_003_100);
    // Records that are not indexed go too: all of them are too old.
    logs.trim(ages, 1_000_000);
    assert_eq!(logs.count("SELECT count(*) FROM logs"), 0);
    assert_eq!(logs.count("SELECT count(*) FROM log_parts"), 0, "a part without records is in use");
}

#[test]
fn a_store_in_steady_flow_does_not_grow() {
    let logs = Logs::new();
    let retention = LogRetention { rows_max: 70_000, ..LogRetention::default() };
    let (mut next, mut sizes) = (0, Vec::new());
    for _ in 0..8 {
        for _ in 0..35 {
            logs.append(&numbered(next..next + 1000));
            next += 1000;
            logs.work(&super::retention::Index);
            logs.trim(retention, next);
        }
        logs.index_all();
        logs.trim(retention, next);
        sizes.push(logs.count("PRAGMA page_count"));
    }
    assert_eq!(logs.count("SELECT count(*) FROM logs"), 70_000);
    assert!(sizes[7] * 10 <= sizes[4] * 11, "pages after each round: {sizes:?}");
    assert!(logs.count("SELECT count(*) FROM log_parts") <= 3);
    let one = LogQuery { text: Some(TextQuery::new("279999")), ..LogQuery::default() };
    assert_eq!(logs.find(&one).len(), 1);
}

#[test]
fn what_is_left_of_a_sparse_part_is_found_and_its_index_is_small_again() {
    let logs = Logs::new();
    let mut records = numbered(0..10_000);
    records.iter_mut().step_by(100).for_each(|record| record.level = Level::Warn);
    logs.append(&records);
    logs.index_all();
    logs.0.execute("DELETE FROM logs WHERE level < 4", []).unwrap();
    for block in 0..=Block::of(10_000) {
        index::refresh(&logs.0, block).unwrap();
    }
    logs.assert_blocks_are_true();
    let query = LogQuery { text: Some(TextQuery::new("record")), ..LogQuery::default() };
    let (before, free) = (logs.find(&query), logs.count("PRAGMA freelist_count"));
    assert_eq!(before.len(), 100);
    assert!(index::rebuild_part(&logs.0).unwrap());
    assert_eq!(logs.find(&query), before);
    let freed = logs.count("PRAGMA freelist_count") - free;
    assert!(freed > 50, "{freed} pages were freed");
    assert!(!index::rebuild_part(&logs.0).unwrap(), "it is made anew again and again");
    // It takes records as before.
    logs.append(&numbered(10_000..15_000));
    logs.index_all();
    assert_eq!(logs.find(&LogQuery { limit: 10_000, ..query }).len(), 5100);
}

#[test]
fn who_follows_is_told_how_many_were_deleted_before_they_could_be_read() {
    let logs = Logs::new();
    logs.append(&numbered(0..3000));
    let follow = |after| {
        let query = LogQuery { after_seq: Some(after), limit: 500, ..LogQuery::default() };
        let found = search::search(&logs.0, &query).unwrap();
        (found.missed, found.records.first().unwrap().seq, found.seen_to)
    };
    assert_eq!(follow(0), (0, 1, 500));
    logs.index_all();
    logs.trim(LogRetention { rows_max: 2000, ..LogRetention::default() }, 3000);
    assert_eq!(follow(500), (500, 1001, 1500));
    assert_eq!(follow(1500), (0, 1501, 2000));
}

#[test]
fn a_summary_counts_what_is_there_indexed_or_not() {
    let logs = Logs::new();
    let mut records = numbered(10..5010);
    records[0].level = Level::Error;
    records[4999].component = "other".into();
    let mut told = LogRecord::new(
        Level::Warn,
        "log-transport",
        "7 log records dropped between a and b: the log buffer was full",
    );
    told.fields = vec![
        ("dropped_info".into(), "4".into()),
        ("dropped_debug".into(), "3".into()),
        ("dropped_x".into(), "9".into()),
    ];
    told.time_ns = 4000;
    records.push(told);
    logs.append(&records[..3000]);
    logs.index_all();
    logs.append(&records[3000..]);
    let summary = super::summary::summary(&logs.0).unwrap();
    assert_eq!((summary.rows, summary.unindexed, summary.dropped), (5001, 2001, 7));
    assert_eq!((summary.oldest_ns, summary.newest_ns), (Some(10), Some(5009)));
    assert_eq!(summary.counts["test"], [0, 0, 4998, 0, 1]);
    assert_eq!(
        (summary.counts["other"], summary.counts["log-transport"]),
        ([0, 0, 1, 0, 0], [0, 0, 0, 1, 0])
    );
    logs.index_all();
    assert_eq!(super::summary::summary(&logs.0).unwrap().bytes, summary.bytes);
}
