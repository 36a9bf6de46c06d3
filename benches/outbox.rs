//! How many messages a second an outbox accepts (on disk, encrypted, synced), beside a bare loop that inserts the same rows
//! into the same tables in groups of the same size, in turns. And how long one acceptance takes with 10,000 messages
//! pending, at a steady pace.
//!
//! | row | what is in it |
//! |---|---|
//! | storage | [`OutboxStore`] alone, by as many callers at once as a group of the bare loop has rows |
//! | bus | `publish_durable` through an attached client, outbox, limits, answer; nobody consumes |
//! | bus, drained | the same, while a consumer takes and acknowledges everything; until all is acknowledged: a second column |
//!
//! A second table says where the processors' time went until the last message was accepted, by thread.
//!
//! `cargo bench -p interlock-benches --bench outbox [-- --messages 20000 --rounds 5 --callers 256 --pending 10000 --record NAME]`

use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use interlock_actors::store::{
    DataKey,
    outbox::{self, KeepFinished, OUTBOX_FILE, OutboxLimits, OutboxStore},
};
use interlock_benches::{
    arguments::Arguments,
    process::cpu_by_thread,
    report::{Repeats, Report, one_digit, rate, two_digits},
};
use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, Endpoint, KeyStore, Payload, PeerName, Permissions,
    TopicName,
    durable::{
        ConsumeOptions, DurableOptions, Outbox, OutboxOptions, OutboxReport, OutboxState, OutboxStorage,
        Routes, storage::NewEntry,
    },
};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::watch;

/// Bytes of each payload.
const PAYLOAD: [u8; 256] = [b'x'; 256];
/// How long anything here may take; something is broken then.
const DEADLINE: Duration = Duration::from_secs(300);
/// Acceptances that keep to a timetable, and how far apart they are.
const PACED: usize = 1000;
const EVERY: Duration = Duration::from_millis(5);
/// Ordering keys that messages are spread over.
const KEYS: usize = 1000;

fn main() {
    nix::sys::prctl::set_name(c"callers").expect("Linux takes any name");
    let arguments = Arguments::read(&["messages", "rounds", "callers", "pending"]);
    let messages: usize = arguments.value("messages", 20_000);
    let rounds: usize = arguments.value("rounds", 5);
    let callers: usize = arguments.value("callers", 256);
    let pending: usize = arguments.value("pending", 10_000);
    let mut report = Report::begin("outbox");
    report.line(&format!(
        "\n{messages} messages of {} bytes, {callers} callers at once, {rounds} times, in turns.\n",
        PAYLOAD.len()
    ));
    let [mut bare, mut alone, mut bus, mut drained, mut finished] = [const { Repeats::new() }; 5];
    let mut work = Work::default();
    let per_second = |took: Duration| messages as f64 / took.as_secs_f64();
    for _ in 0..rounds {
        bare.add(per_second(bare_loop(messages, callers, &mut work.meter(0))));
        alone.add(per_second(storage_alone(messages, callers, &mut work.meter(1))));
        bus.add(per_second(through_the_bus(messages, callers, false, &mut work.meter(2)).0));
        let (accepted, acknowledged) = through_the_bus(messages, callers, true, &mut work.meter(3));
        drained.add(per_second(accepted));
        finished.add(per_second(acknowledged));
    }
    report.line(
        "| | accepted a second | ratio (goal: 0.6 at least) | acknowledged a second |\n|---|---|---|---|",
    );
    report.line(&format!("| bare loop, {callers} rows in a transaction | {} | 1 | |", bare.shown(rate)));
    for (name, accepted, acknowledged) in
        [("storage", &alone, None), ("bus", &bus, None), ("bus, drained", &drained, Some(&finished))]
    {
        let ratio = accepted.over(&bare).shown(two_digits);
        let acknowledged = acknowledged.map(|finished| finished.shown(rate)).unwrap_or_default();
        report.line(&format!("| {name} | {} | {ratio} | {acknowledged} |", accepted.shown(rate)));
    }
    work.show(&mut report, messages);
    report.line(&format!(
        "\nOne acceptance, {pending} messages pending, 200 a second for 5 s, ms (goal: p99 10):\n"
    ));
    report.line("| | p50 | p99 | most |\n|---|---|---|---|");
    let mut sides =
        [("bare loop, one row in a transaction", Percentiles::new()), ("bus", Percentiles::new())];
    for _ in 0..rounds {
        sides[0].1.add(bare_paced(pending));
        sides[1].1.add(paced(pending));
    }
    for (name, Percentiles([median, p99, most])) in &sides {
        let [median, p99, most] = [median, p99, most].map(|at| at.shown(one_digit));
        report.line(&format!("| {name} | {median} | {p99} | {most} |"));
    }
    report.keep(arguments.text("record"));
}

/// Processor time by thread, of each column of the second table.
#[derive(Default)]
struct Work([BTreeMap<String, Repeats>; 4], [Repeats; 4]);

/// One run of one column, until it is stopped.
struct Meter<'a> {
    times: &'a mut BTreeMap<String, Repeats>,
    commits: &'a mut Repeats,
    before: BTreeMap<String, Duration>,
}

impl Work {
    fn meter(&mut self, column: usize) -> Meter<'_> {
        Meter { times: &mut self.0[column], commits: &mut self.1[column], before: BTreeMap::new() }
    }

    fn show(&self, report: &mut Report, messages: usize) {
        report.line("\nProcessor time until the last is accepted, us for each message:\n");
        report.line("| thread | bare loop | storage | bus | bus, drained |\n|---|---|---|---|---|");
        let names: std::collections::BTreeSet<&String> = self.0.iter().flat_map(BTreeMap::keys).collect();
        let shown = |times: &BTreeMap<String, Repeats>, name: &str| {
            let each = |total: f64| one_digit(total * 1e6 / messages as f64);
            times.get(name).map(|times| times.shown_median(each)).unwrap_or_default()
        };
        for name in names {
            let [bare, alone, bus, drained] = self.0.each_ref().map(|times| shown(times, name));
            report.line(&format!("| {name} | {bare} | {alone} | {bus} | {drained} |"));
        }
        let [bare, alone, bus, drained] = self.1.each_ref().map(|commits| commits.shown_median(rate));
        report.line(&format!("| commits in all | {bare} | {alone} | {bus} | {drained} |"));
    }
}

impl Meter<'_> {
    fn begin(&mut self) -> Instant {
        self.before = cpu_by_thread();
        Instant::now()
    }

    /// All threads that have begun are still there.
    fn end(&mut self, began: Instant, commits: u64) -> Duration {
        let took = began.elapsed();
        self.commits.add(commits as f64);
        for (name, time) in cpu_by_thread() {
            let spent = time.saturating_sub(self.before.get(&name).copied().unwrap_or_default());
            if !spent.is_zero() {
                self.times.entry(name).or_default().add(spent.as_secs_f64());
            }
        }
        took
    }
}

/// The median, the 99th percentile and the maximum of each round, in milliseconds.
struct Percentiles([Repeats; 3]);

impl Percentiles {
    const fn new() -> Self {
        Self([const { Repeats::new() }; 3])
    }

    fn add(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        for (repeats, share) in self.0.iter_mut().zip([0.5, 0.99, 1.0]) {
            repeats.add(times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3);
        }
    }
}

/// An outbox on a new database, a broker, and who may publish.
struct Site {
    handle: BrokerHandle,
    storage: OutboxStore,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

fn open(directory: &Path) -> OutboxStore {
    let path = directory.join(OUTBOX_FILE);
    let key = DataKey::load_or_create(&directory.join("keys"), &path).expect("a new data key");
    let limits = OutboxLimits { pending_max: 0, bytes_max: 0, disk_floor: 0, ..OutboxLimits::default() };
    let keep = KeepFinished { messages_max: u64::MAX, ..KeepFinished::default() };
    OutboxStore::open(&path, &key, limits, keep).expect("the outbox opens")
}

fn name(text: &str) -> PeerName {
    text.parse().expect("a valid name")
}

impl Site {
    fn start(consumes: bool) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).expect("a new key store");
        for (peer, serve, request) in [
            ("outbox", &["outbox/#"][..], &["inbox/#"][..]),
            ("shop", &[], &["outbox/put/#"]),
            ("billing", &["inbox/billing/#"], &["outbox/consume/v1"]),
        ] {
            let permissions = Permissions::from_lists(&[], &[], serve, request).expect("valid filters");
            keys.issue(&name(peer), &permissions, &[], None).expect("a key is issued");
        }
        let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
        let config = BrokerConfig::from_key_store(&keys, vec![endpoint]).expect("a valid configuration");
        let handle = Broker::start(config).expect("the broker starts");
        let storage = open(directory.path());
        let (stop, _) = watch::channel(false);
        let mut site = Self { handle, storage, stop, threads: Vec::new(), _directory: directory };
        site.send();
        if consumes {
            site.consume();
        }
        site
    }

    fn client(&self, peer: &str) -> Client {
        self.handle.attach(&name(peer)).expect("it is enrolled")
    }

    fn send(&mut self) {
        let filter = "orders/#".parse().expect("a valid filter");
        let routes = Routes::new([(filter, vec![name("billing")])]);
        let options = OutboxOptions { grace: Duration::ZERO, ..OutboxOptions::default() };
        let outbox = Outbox::new(self.client("outbox"), Arc::new(self.storage.clone()), routes, options);
        let mut stop = self.stop.subscribe();
        let (ready, is_ready) = std::sync::mpsc::channel();
        self.threads.push(named("outbox", move || {
            let stopping = async move {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            let on_report = |report: &OutboxReport| {
                if report.state == OutboxState::Running {
                    let _ = ready.send(());
                }
            };
            let _ = block_on(outbox.run(stopping, on_report));
        }));
        is_ready.recv().expect("the outbox begins");
    }

    fn consume(&mut self) {
        let (client, mut stop) = (self.client("billing"), self.stop.subscribe());
        let (ready, is_ready) = std::sync::mpsc::channel();
        self.threads.push(named("consumer", move || {
            block_on(async move {
                let filter = "orders/#".parse().expect("a valid filter");
                let mut consumer = client
                    .consume_durable(&filter, ConsumeOptions::default())
                    .await
                    .expect("the consumer is enrolled");
                let _ = ready.send(());
                loop {
                    tokio::select! {
                        delivery = consumer.next() => match delivery {
                            Some(delivery) => delivery.ack().await.expect("the outbox waits for it"),
                            None => return,
                        },
                        _ = stop.wait_for(|stop| *stop) => return,
                    }
                }
            });
        }));
        is_ready.recv().expect("the consumer begins");
    }

    fn end(mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            thread.join().expect("no thread of the bench panics");
        }
        self.handle.stop(Duration::from_secs(1));
        self.storage.close();
    }
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread starts")
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("an event loop").block_on(work)
}

/// As many at once as there are callers, until all are done.
async fn all<F: Future<Output = ()>>(count: usize, callers: usize, each: impl Fn(usize) -> F) {
    let mut under_way: FuturesUnordered<F> = (0..callers.min(count)).map(&each).collect();
    let mut begun = under_way.len();
    while under_way.next().await.is_some() {
        if begun < count {
            under_way.push(each(begun));
            begun += 1;
        }
    }
}

fn topic() -> TopicName {
    "orders/placed".parse().expect("a valid topic")
}

async fn publish(client: &Client, topic: &TopicName, number: usize) {
    let options =
        DurableOptions { key: Some(format!("customer-{}", number % KEYS)), ..DurableOptions::default() };
    let payload = Payload::bytes(PAYLOAD.as_slice());
    client.publish_durable(topic, payload, &options, DEADLINE).await.expect("it is accepted");
}

/// Until all are accepted, and until all are acknowledged (the same, if nobody consumes).
fn through_the_bus(
    messages: usize,
    callers: usize,
    consumes: bool,
    meter: &mut Meter<'_>,
) -> (Duration, Duration) {
    let site = Site::start(consumes);
    let (client, topic) = (site.client("shop"), topic());
    let began = meter.begin();
    block_on(async {
        all(messages, callers, |number| publish(&client, &topic, number)).await;
    });
    let accepted = meter.end(began, site.storage.statistics().commits);
    while consumes && block_on(site.storage.standing()).expect("it is open").open > 0 {
        assert!(began.elapsed() < DEADLINE, "not everything was acknowledged");
        std::thread::sleep(Duration::from_millis(2));
    }
    let acknowledged = began.elapsed();
    site.end();
    (accepted, acknowledged)
}

fn storage_alone(messages: usize, callers: usize, meter: &mut Meter<'_>) -> Duration {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let storage = open(directory.path());
    let header = vec![0; 64];
    let topic = topic();
    let began = meter.begin();
    block_on(all(messages, callers, |number| {
        let entry = NewEntry {
            id: uuid::Uuid::now_v7(),
            topic: topic.clone(),
            key: format!("customer-{}", number % KEYS),
            origin: name("shop"),
            header: header.clone().into(),
            payload: PAYLOAD.as_slice().into(),
            consumers: vec![name("billing")],
        };
        let put = storage.put(entry);
        async move {
            put.await.expect("it is accepted");
        }
    }));
    let took = meter.end(began, storage.statistics().commits);
    storage.close();
    took
}

/// A database with the same schema, the same cipher and the same durability.
fn bare() -> (tempfile::TempDir, Connection) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let connection = Connection::open(directory.path().join("bare.db")).expect("a new database");
    connection
        .execute_batch(
            "PRAGMA cipher_log_level = NONE; \
             PRAGMA key = \"x'2dd29ca851e7b56e4697b0e1f08507293d761a05ce4d1b628663f411a8086d99'\"; \
             PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;",
        )
        .expect("it is ours alone");
    outbox::schema_sql().for_each(|sql| connection.execute_batch(sql).expect("our own schema"));
    (directory, connection)
}

/// Inserts the same rows.
fn bare_loop(messages: usize, group: usize, meter: &mut Meter<'_>) -> Duration {
    let (_directory, mut connection) = bare();
    let began = meter.begin();
    fill(&mut connection, 0..messages, group);
    meter.end(began, messages.div_ceil(group) as u64)
}

fn fill(connection: &mut Connection, numbers: Range<usize>, group: usize) {
    for first in numbers.clone().step_by(group) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).expect("nobody else writes");
        for number in first..numbers.end.min(first + group) {
            insert(&transaction, number).expect("the disk takes it");
        }
        transaction.commit().expect("the disk takes it");
    }
}

/// The times of single commits of a bare loop, each begun when it is due.
fn bare_paced(pending: usize) -> Vec<Duration> {
    let (_directory, mut connection) = bare();
    fill(&mut connection, 0..pending, 256);
    let began = Instant::now();
    (0..PACED)
        .map(|number| {
            let due = began + EVERY * number as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            fill(&mut connection, pending + number..pending + number + 1, 1);
            due.elapsed()
        })
        .collect()
}

fn insert(connection: &Connection, number: usize) -> rusqlite::Result<()> {
    let at = (interlock_bus::envelope::now_ns() / 1_000_000) as i64;
    let (row, digest, header) = (number as i64 + 1, [7_u8; 32], [0_u8; 64]);
    connection
        .prepare_cached(
            "INSERT INTO entries (number, id, topic, key, origin, accepted_ms, bytes, content, seal) \
             VALUES (?1, ?2, 'orders/placed', ?3, 'shop', ?4, ?5, ?6, ?6)",
        )?
        .execute(rusqlite::params![
            row,
            uuid::Uuid::now_v7().as_bytes().as_slice(),
            format!("customer-{}", number % KEYS),
            at,
            (header.len() + PAYLOAD.len()) as i64,
            digest.as_slice(),
        ])?;
    connection
        .prepare_cached("INSERT INTO bodies (number, header, payload) VALUES (?1, ?2, ?3)")?
        .execute(rusqlite::params![row, header.as_slice(), PAYLOAD.as_slice()])?;
    connection
        .prepare_cached(
            "INSERT INTO deliveries (number, consumer, state, attempts, tries, due_ms, opened_ms, changed_ms) \
             VALUES (?1, 'billing', 0, 0, 0, 0, ?2, ?2)",
        )?
        .execute(rusqlite::params![row, at])?;
    Ok(())
}

/// The times of single acceptances, each begun when it is due, with so many messages pending.
fn paced(pending: usize) -> Vec<Duration> {
    let site = Site::start(false);
    let (client, topic) = (site.client("shop"), topic());
    let times = block_on(async {
        all(pending, 256, |number| publish(&client, &topic, number)).await;
        let (client, topic, began) = (&client, &topic, Instant::now());
        let (mut times, mut begun) = (Vec::with_capacity(PACED), 0);
        let mut under_way = FuturesUnordered::new();
        while times.len() < PACED {
            let due = began + EVERY * begun as u32;
            tokio::select! {
                biased;
                Some(time) = under_way.next() => times.push(time),
                () = tokio::time::sleep_until(due.into()), if begun < PACED => {
                    under_way.push(async move {
                        publish(client, topic, begun).await;
                        due.elapsed()
                    });
                    begun += 1;
                }
            }
        }
        times
    });
    site.end();
    times
}
