//! How long questions to a log of a million records take: by time, level, component, module, field, trace, conversation,
//! words, phrases, beginnings of words, and several at once; on a fresh connection, and asked again.
//!
//! `cargo bench -p interlock-benches --bench log_queries`
//! `[-- --rows 1000000 --limit 100 --record NAME]`

use std::time::{Duration, Instant};

use interlock_actors::{
    log_record::{Level, LogRecord},
    store::{DATABASE_FILE, DataKey, LogQuery, LogRetention, Reader, Store, StoreOptions, limits},
};
use interlock_benches::{
    arguments::Arguments,
    report::{Report, one_digit, rate},
};

/// What a question may take.
const GOAL: Duration = Duration::from_millis(50);
/// Records in one append.
const BATCH: u64 = 1000;
/// When the first record was raised; one follows each millisecond, about.
const BASE_NS: u64 = 1_790_000_000_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const COMPONENTS: [&str; 8] =
    ["gateway", "conversation", "model", "broker", "store", "log-consumer", "log-transport", "runtime"];

fn main() {
    let arguments = Arguments::read(&["rows", "limit"]);
    let rows: u64 = arguments.value("rows", 1_000_000);
    let limit: usize = arguments.value("limit", 100);
    let mut report = Report::begin("log_queries");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let database = directory.path().join(DATABASE_FILE);
    let key = DataKey::load_or_create(&directory.path().join("keys"), &database).expect("a new data key");
    let words = vocabulary();
    fill(&mut report, &database, &key, &words, rows);

    report.line(&format!("\nThe newest {limit} of {rows} records that match, in ms:\n"));
    report.line("| question | found | fresh connection | again |\n|---|---|---|---|");
    let mut late = Vec::new();
    for (what, query) in questions(&words, rows) {
        let query = LogQuery { limit, ..query };
        let reader = Reader::open(&database, &key).expect("the database opens");
        let ask = || {
            let began = Instant::now();
            let found = reader.logs(&query).expect("the database can be read").len();
            (found, began.elapsed())
        };
        let ((found, first), (_, again)) = (ask(), ask());
        if first > GOAL {
            late.push(what);
        }
        let [first, again] = [first, again].map(|took| one_digit(took.as_secs_f64() * 1e3));
        report.line(&format!("| {what} | {found} | {first} | {again} |"));
    }
    let late = if late.is_empty() { "none".to_owned() } else { late.join(", ") };
    report.line(&format!("\nOver {} ms on a fresh connection: {late}.", GOAL.as_millis()));
    report.keep(arguments.text("record"));
}

/// Appends the records and waits until they are indexed.
fn fill(report: &mut Report, database: &std::path::Path, key: &DataKey, words: &[String], rows: u64) {
    let logs = LogRetention { rows_max: u64::MAX, age_max: Duration::MAX, ..LogRetention::default() };
    let options = StoreOptions { logs, ..StoreOptions::default() };
    let store = Store::open(database, key, options).expect("the store opens");
    let executor = tokio::runtime::Builder::new_current_thread().build().expect("an event loop");
    let mut random = Random(42);
    let (mut storing, mut worst) = (Duration::ZERO, Duration::ZERO);
    for first in (0..rows).step_by(BATCH as usize) {
        let batch = (first..rows.min(first + BATCH)).map(|at| record(at, rows, &mut random, words)).collect();
        let began = Instant::now();
        executor.block_on(store.append(batch)).expect("the disk takes it");
        storing += began.elapsed();
        worst = worst.max(began.elapsed());
    }
    let began = Instant::now();
    let reader = Reader::open(database, key).expect("the database opens");
    let not_indexed = || reader.logs_not_indexed().expect("the database can be read");
    while not_indexed() >= limits::INDEX_AT_ROWS as i64 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let indexed = storing + began.elapsed();
    let per_second = |took: Duration| rate(rows as f64 / took.as_secs_f64());
    report.line(&format!(
        "\nAppended {} records/s, {BATCH} at once, {} ms at most; indexed too: {} records/s.",
        per_second(storing),
        one_digit(worst.as_secs_f64() * 1e3),
        per_second(indexed)
    ));
    store.close();
}

/// Pseudo-random numbers (xorshift64*, Vigna 2016): each run has the same records.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % bound
    }
}

fn vocabulary() -> Vec<String> {
    let mut random = Random(77);
    let mut word =
        || (0..3 + random.below(7)).map(|_| char::from(b'a' + random.below(26) as u8)).collect::<String>();
    (0..3000).map(|_| word()).collect()
}

fn trace(of: u64) -> String {
    format!("{:032x}", of.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn record(at: u64, rows: u64, random: &mut Random, words: &[String]) -> LogRecord {
    let component = if at % (rows / 4) == 7 { "rare-thing" } else { COMPONENTS[random.below(8) as usize] };
    let level = match at {
        _ if at % (rows / 10) == 5 => Level::Error,
        _ if at % 1000 == 3 => Level::Warn,
        _ => Level::Info,
    };
    let mut message = String::from("request served");
    for _ in 0..4 + random.below(6) {
        // Zipf's law, about: the first words come most often.
        let place = random.below(1 << 20) as f64 / f64::from(1 << 20);
        message.push(' ');
        message.push_str(&words[((words.len() as f64).powf(place) - 1.0) as usize]);
    }
    if at == rows / 3 {
        message.push_str(" needleword");
    }
    let mut record = LogRecord::new(level, component, message);
    record.time_ns = BASE_NS + at * 1_000_000 + random.below(3_000_000);
    record.target = format!("interlock_actors::{component}::part{}", random.below(5));
    let path = format!("/v1/{}/{}", words[random.below(20) as usize], random.below(50));
    let status = if at.is_multiple_of(7) { "503" } else { "200" };
    record.fields = vec![
        ("status".to_owned(), status.to_owned()),
        ("duration_us".to_owned(), random.below(1_000_000).to_string()),
        ("path".to_owned(), path),
    ];
    if at == rows / 2 {
        record.fields.push(("once".to_owned(), "only".to_owned()));
    }
    record.trace_id = Some(trace(at / 8));
    record.conversation = at.is_multiple_of(3).then(|| format!("c{}", at / 300));
    record.spans = vec!["request".to_owned()];
    record
}

fn questions(words: &[String], rows: u64) -> Vec<(&'static str, LogQuery)> {
    let all = LogQuery::default;
    let text = |text: &str| LogQuery { text: Some(text.into()), ..LogQuery::default() };
    let old = Some(BASE_NS + 100 * SECOND_NS);
    let second = (Some(BASE_NS + 300 * SECOND_NS), Some(BASE_NS + 301 * SECOND_NS));
    let rare_component = || vec!["rare-thing".into()];
    let nowhere = || vec!["status=404".into()];
    let not_common = COMPONENTS.iter().map(|name| format!("!{name}").as_str().into()).collect();
    vec![
        ("the newest", all()),
        ("of one second", LogQuery { since_ns: second.0, until_ns: second.1, ..all() }),
        ("before an old time", LogQuery { until_ns: old, ..all() }),
        ("errors, ten in all", LogQuery { min_level: Some(Level::Error), ..all() }),
        ("warnings, one of 1,000", LogQuery { min_level: Some(Level::Warn), ..all() }),
        ("a component of four records", LogQuery { components: rare_component(), ..all() }),
        ("components `log-*`", LogQuery { components: vec!["log-*".into()], ..all() }),
        ("all components but the common ones", LogQuery { components: not_common, ..all() }),
        (
            "a module, warnings",
            LogQuery {
                targets: vec!["interlock_actors::model".into()],
                min_level: Some(Level::Warn),
                ..all()
            },
        ),
        ("a field that is there once", LogQuery { fields: vec!["once=only".into()], ..all() }),
        ("a field with a value that is nowhere", LogQuery { fields: nowhere(), ..all() }),
        (
            "a common field of a rare component",
            LogQuery { fields: vec!["status=200".into()], components: rare_component(), ..all() },
        ),
        ("a trace", LogQuery { trace_id: Some(trace(rows / 16)), ..all() }),
        ("a conversation", LogQuery { conversation: Some("c7".to_owned()), ..all() }),
        ("a word that is there once", text("needleword")),
        ("a word of every record", text("request")),
        ("a word that is nowhere", text("absent")),
        ("a word of every record, errors", LogQuery { min_level: Some(Level::Error), ..text("request") }),
        ("a word of every record, a field nowhere", LogQuery { fields: nowhere(), ..text("request") }),
        ("a word of every record, an old time", LogQuery { until_ns: old, ..text("request") }),
        ("two common words", text(&format!("{} {}", words[0], words[1]))),
        ("a rare phrase", text(&format!("\"{} {}\"", words[2000], words[2001]))),
        ("a phrase of every record", text("\"request served\"")),
        ("a phrase that is nowhere, of words that are everywhere", text("\"served request\"")),
        ("the beginning of a word, two letters", text(&format!("{}*", &words[2000][..2]))),
        ("the beginning of a word of every record", text("requ*")),
        ("one letter", text("r*")),
    ]
}
