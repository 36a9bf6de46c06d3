//! How many log records a second get from a log call into the encrypted store, through layer, buffer, bus and consumer,
//! beside a bare loop that inserts the same rows into an encrypted database of the same schema, in batches, in turns.
//!
//! The store indexes records for full text and all else behind their back, while nobody writes or when 262,144 are not
//! indexed. So there are two measures of each side: until every record is committed, beside a loop that fills the table
//! alone; and until every record is indexed too, beside one that indexes each thousand rows that it has inserted.
//!
//! `cargo bench -p interlock-benches --bench log_store`
//! `[-- --records 100000 --rounds 5 --batch 1000 --record NAME]`

use std::time::{Duration, Instant};

use interlock_actors::store;
use interlock_benches::{
    arguments::Arguments,
    log_path::LogPath,
    report::{Repeats, Report, rate, two_digits},
};
use rusqlite::{Connection, TransactionBehavior};
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt;

/// What the logging thread lets wait: a fifth of the buffer, so that nothing is dropped.
const WAITING_MAX: usize = 12_000;

fn main() {
    let arguments = Arguments::read(&["records", "rounds", "batch"]);
    let records: usize = arguments.value("records", 100_000);
    let rounds: usize = arguments.value("rounds", 5);
    let batch: usize = arguments.value("batch", 1000);
    let mut report = Report::begin("log_store");
    report.line(&format!("\n{records} records each, {rounds} times, in turns. Records a second:\n"));
    report.line("| | until committed | until indexed too |\n|---|---|---|");
    let [mut committed, mut indexed, mut bare, mut bare_indexed] = [const { Repeats::new() }; 4];
    let (mut most, mut dropped) = (0, 0);
    let per_second = |took: Duration| records as f64 / took.as_secs_f64();
    for _ in 0..rounds {
        let run = through_the_log_path(records);
        committed.add(per_second(run.committed));
        indexed.add(per_second(run.indexed));
        (most, dropped) = (most.max(run.most), dropped + run.dropped);
        bare.add(per_second(bare_loop(records, batch, false)));
        bare_indexed.add(per_second(bare_loop(records, batch, true)));
    }
    let row = |what, one: String, other: String| format!("| {what} | {one} | {other} |");
    report.line(&row("from the log call", committed.shown(rate), indexed.shown(rate)));
    let what = format!("bare loop, {batch} rows in a transaction");
    report.line(&row(&what, bare.shown(rate), bare_indexed.shown(rate)));
    let ratios = [committed.over(&bare), indexed.over(&bare_indexed)];
    let [first, second] = ratios.map(|ratio| ratio.shown(two_digits));
    report.line(&row("ratio (goal: 0.75 at least)", first, second));
    report.line(&format!("\nAt most {most} records waited in the buffer, {dropped} were dropped."));
    report.keep(arguments.text("record"));
    assert_eq!(dropped, 0, "records were dropped, though the logging thread waited for room");
}

struct Run {
    /// From the first call until every record is confirmed.
    committed: Duration,
    /// From the first call until every whole block of records is indexed.
    indexed: Duration,
    most: usize,
    dropped: u64,
}

fn through_the_log_path(records: usize) -> Run {
    let path = LogPath::start();
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(path.layer()));
    // The path is proven before the clock starts.
    tracing::dispatcher::with_default(&dispatch, || log(0));
    path.wait_until_empty();
    let mut most = 0;
    let began = Instant::now();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!(target: "app::orders", "order", customer = "c-1234").in_scope(|| {
            for number in 0..records {
                log(number);
                if number % 1000 == 0 {
                    let waiting = path.buffer().report().waiting;
                    most = most.max(waiting);
                    if waiting > WAITING_MAX {
                        while path.buffer().report().waiting > WAITING_MAX / 2 {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                    }
                }
            }
        });
    });
    path.wait_until_empty();
    let committed = began.elapsed();
    while path.not_indexed() >= store::limits::INDEX_AT_ROWS as i64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    Run { committed, indexed: began.elapsed(), most, dropped: path.buffer().report().dropped_total() }
}

/// Inserts the same rows, in a database with the same schema, the same cipher and the same durability.
fn bare_loop(records: usize, batch: usize, indexes: bool) -> Duration {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut connection = Connection::open(directory.path().join("bare.db")).expect("a new database");
    connection
        .execute_batch(
            "PRAGMA cipher_log_level = NONE; \
             PRAGMA key = \"x'2dd29ca851e7b56e4697b0e1f08507293d761a05ce4d1b628663f411a8086d99'\"; \
             PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;",
        )
        .expect("it is ours alone");
    store::schema_sql().for_each(|sql| connection.execute_batch(sql).expect("our own schema"));
    let began = Instant::now();
    let mut number = 0;
    while number < records {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).expect("nobody else writes");
        for number in number..records.min(number + batch) {
            insert(&transaction, number);
        }
        while indexes && store::index_logs(&transaction).expect("our own schema") >= batch as i64 {}
        transaction.commit().expect("the disk takes it");
        number += batch;
    }
    began.elapsed()
}

fn insert(connection: &Connection, number: usize) {
    let fields = format!(
        r#"[["number","{number}"],["amount_cents","1999"],["currency","EUR"],["customer","c-1234"]]"#
    );
    connection
        .prepare_cached(
            "INSERT INTO logs (id, time_ns, level, target, component, process, incarnation, message, fields, spans, \
             file, line, trace_id, conversation, origin) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )
        .and_then(|mut statement| {
            statement.execute(rusqlite::params![
                uuid::Uuid::now_v7().as_bytes().as_slice(),
                interlock_bus::envelope::now_ns() as i64,
                3,
                "app::orders",
                "orders",
                std::process::id(),
                1,
                "the order was accepted",
                fields,
                r#"["order"]"#,
                file!(),
                line!(),
                None::<String>,
                None::<String>,
                "log-transport",
            ])
        })
        .expect("the disk takes it");
}

/// What a program says about what it does: a text and three fields.
fn log(number: usize) {
    tracing::info!(target: "app::orders", number, amount_cents = 1999, currency = "EUR", "the order was accepted");
}
