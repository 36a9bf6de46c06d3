//! Races from the first log call to the encrypted store: producers log from their first instruction, broker, log consumer
//! and store come in a random order after random delays; in some rounds the consumer, the broker's process or a producer
//! is killed (-9). Whatever happens, each record is in the store once and in the order in which its process raised it, and
//! what a killed producer took with it is counted; what it had spilled to its journal is never lost.
//!
//! `INTERLOCK_LOG_RACES=10000 cargo test -p interlock-tests log_races -- --nocapture` is the soak size. The seed is printed;
//! `INTERLOCK_SEED` runs it again.

mod producer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use interlock_actors::{
    log_consumer::Consumer,
    store::{DataKey, LogQuery, Store, StoreOptions},
};
use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, ConnectOptions, Credentials, Endpoint, KeyStore, Permissions,
    blocking::wait,
};
use tokio::sync::oneshot;

use self::producer::{Orders, Produced, produce};
use crate::harness::{
    TestProcess,
    dice::{Dice, environment, round_deadline, seed},
};

/// How many rounds there are.
const SOAK: &str = "INTERLOCK_LOG_RACES";
const DIRECTORY: &str = "INTERLOCK_LOG_RACES_DIRECTORY";
const SOCKET: &str = "INTERLOCK_LOG_RACES_SOCKET";
const NAME: &str = "INTERLOCK_LOG_RACES_NAME";
const COUNT: &str = "INTERLOCK_LOG_RACES_COUNT";
const DICE: &str = "INTERLOCK_LOG_RACES_DICE";

#[allow(clippy::print_stdout, reason = "the line that the parent waits for")]
fn say(line: &str) {
    println!("{line}");
}

/// What happens beside the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Nothing.
    Peace,
    /// The consumer's task is thrown away between two of its steps.
    ConsumerActorKilled,
    /// The process with consumer and store is killed.
    ConsumerProcessKilled,
    /// The broker's process is killed.
    BrokerKilled,
    /// Both of them.
    BothKilled,
    /// A producer's process is killed, and started again.
    ProducerKilled,
}

impl Fate {
    fn kills_consumer_process(self) -> bool {
        matches!(self, Self::ConsumerProcessKilled | Self::BothKilled)
    }

    fn kills_broker(self) -> bool {
        matches!(self, Self::BrokerKilled | Self::BothKilled)
    }
}

/// Keys and a store that all rounds share.
struct Site {
    directory: tempfile::TempDir,
    keys: KeyStore,
    store: Store,
}

const PRODUCERS: [&str; 3] = ["first", "second", "third"];

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let nowhere = [Endpoint::Ipc(directory.path().join("bus.sock"))];
        let issue = |name: &str, lists: [&[&str]; 4]| {
            let [publish, subscribe, serve, request] = lists;
            let permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
            keys.issue(&name.parse().unwrap(), &permissions, &nowhere, None).unwrap();
        };
        issue("log-consumer", [&["log-consumer/#"], &["logs/#"], &["log-consumer/#"], &[]]);
        for name in PRODUCERS {
            issue(name, [&["logs/#"], &["log-consumer/#"], &[], &["log-consumer/#"]]);
        }
        let store = open_store(directory.path());
        Self { directory, keys, store }
    }
}

fn open_store(directory: &Path) -> Store {
    let database = directory.join("interlock.db");
    let key = DataKey::load_or_create(&directory.join("keys"), &database).unwrap();
    Store::open(&database, &key, StoreOptions::default()).unwrap()
}

fn credentials(directory: &Path, name: &str, socket: &Path) -> Credentials {
    let path = Credentials::path_in(&directory.join("keys"), &name.parse().unwrap());
    Credentials { endpoints: vec![Endpoint::Ipc(socket.to_owned())], ..Credentials::load(&path).unwrap() }
}

async fn connect(credentials: &Credentials) -> Client {
    let deadline = Instant::now() + round_deadline(SOAK);
    loop {
        let options =
            ConnectOptions::new(credentials.clone()).timeout(round_deadline(SOAK)).waits_for_broker(true);
        match Client::connect(options).await {
            Ok(client) => return client,
            // A broker that is killed in the middle of a handshake; whoever supervises a program starts it again.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Lets a future run on this thread, which then is one of tokio's.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The consumer's life, as its supervisor would have it: again after each failure. Ends when dropped.
async fn consume(credentials: Credentials, store: Store, mut dice: Dice) {
    dice.delay();
    loop {
        let client = connect(&credentials).await;
        dice.delay();
        if let Ok(consumer) = Consumer::start(client.clone(), store.clone()).await {
            // Its end is a lost session.
            let _ = consumer.run(|_report| (), std::future::pending()).await;
        }
        client.close().await;
    }
}

// ---- processes ------------------------------------------------------------------------------

fn spawn(role: &str, variables: &[(&str, &Path)]) -> TestProcess {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("log_races::{role}"), "--ignored", "--nocapture"]);
    command.envs(variables.iter().copied()).stderr(Stdio::null());
    TestProcess::spawn(command)
}

/// A process that others started ends when they do.
fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    Some(value.into())
}

#[test]
#[ignore = "not a test: the consumer that races start and kill"]
fn consumer_process() {
    let (Some(directory), Some(socket)) = (variable(DIRECTORY), variable(SOCKET)) else { return };
    let credentials = credentials(&directory, "log-consumer", &socket);
    block_on(consume(credentials, open_store(&directory), Dice(u64::from(std::process::id()))));
}

#[test]
#[ignore = "not a test: the broker that races start and kill"]
fn broker_process() {
    let (Some(directory), Some(socket)) = (variable(DIRECTORY), variable(SOCKET)) else { return };
    let keys = KeyStore::open(&directory.join("keys")).unwrap();
    let broker =
        Broker::start(BrokerConfig::from_key_store(&keys, vec![Endpoint::Ipc(socket)]).unwrap()).unwrap();
    let _ = wait(broker.ended().wait_for(Option::is_some));
}

#[test]
#[ignore = "not a test: the producer that races start and kill"]
fn producer_process() {
    let (Some(directory), Some(socket)) = (variable(DIRECTORY), variable(SOCKET)) else { return };
    let (name, text) = (std::env::var(NAME).unwrap(), |name| std::env::var(name).unwrap());
    let orders = Orders {
        component: name.clone(),
        count: text(COUNT).parse().unwrap(),
        journal: socket.with_file_name(format!("journal-{}", PRODUCERS[0])),
        // Fate kills it somewhere: sometimes all that it has logged is to be safe before.
        spills: true,
    };
    let credentials = credentials(&directory, PRODUCERS[0], &socket);
    let produced = produce(orders, credentials, Dice(text(DICE).parse().unwrap()), |said| say(&said));
    say(&format!("flushed: {}", produced.count));
}

// ---- rounds ---------------------------------------------------------------------------------

enum RunningBroker {
    Thread(BrokerHandle),
    Process(TestProcess),
}

enum RunningConsumer {
    Thread { thread: JoinHandle<()>, end: oneshot::Sender<()> },
    Process(TestProcess),
}

struct Round<'a> {
    site: &'a Site,
    number: u64,
    fate: Fate,
    dice: Dice,
    directory: tempfile::TempDir,
    broker: Option<RunningBroker>,
    consumer: Option<RunningConsumer>,
}

impl<'a> Round<'a> {
    fn new(site: &'a Site, number: u64, fate: Fate, dice: Dice) -> Self {
        let directory = tempfile::tempdir_in(site.directory.path()).unwrap();
        Self { site, number, fate, dice, directory, broker: None, consumer: None }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    fn another(&mut self) -> Dice {
        Dice(self.dice.roll())
    }

    fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [(DIRECTORY, self.site.directory.path().to_owned()), (SOCKET, self.socket())]
    }

    fn spawn(&self, role: &str) -> TestProcess {
        let variables = self.variables();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_path())).collect();
        spawn(role, &variables)
    }

    fn start_broker(&mut self) {
        self.broker = Some(if self.fate.kills_broker() {
            RunningBroker::Process(self.spawn("broker_process"))
        } else {
            let endpoints = vec![Endpoint::Ipc(self.socket())];
            let config = BrokerConfig::from_key_store(&self.site.keys, endpoints).unwrap();
            RunningBroker::Thread(Broker::start(config).unwrap())
        });
    }

    fn end_broker(&mut self) {
        match self.broker.take().unwrap() {
            RunningBroker::Thread(handle) => handle.stop(Duration::ZERO),
            RunningBroker::Process(mut process) => process.kill(),
        }
    }

    fn start_consumer(&mut self) {
        self.consumer = Some(if self.fate.kills_consumer_process() {
            RunningConsumer::Process(self.spawn("consumer_process"))
        } else {
            let credentials = credentials(self.site.directory.path(), "log-consumer", &self.socket());
            let (store, dice) = (self.site.store.clone(), self.another());
            let (end, ended) = oneshot::channel();
            let thread = thread::spawn(move || {
                block_on(async {
                    tokio::select! {
                        () = consume(credentials, store, dice) => {}
                        _ = ended => {}
                    }
                });
            });
            RunningConsumer::Thread { thread, end }
        });
    }

    fn end_consumer(&mut self) {
        match self.consumer.take().unwrap() {
            RunningConsumer::Thread { thread, end } => {
                drop(end);
                thread.join().unwrap();
            }
            RunningConsumer::Process(mut process) => process.kill(),
        }
    }

    /// A name that no other round has: what is stored under it was logged in this one.
    fn component(&self, producer: &str) -> String {
        format!("r{}-{producer}", self.number)
    }

    fn start_producer(&mut self, producer: &'static str) -> JoinHandle<Vec<Produced>> {
        let (component, socket) = (self.component(producer), self.socket());
        let mut dice = self.another();
        let count = 1 + dice.below(150);
        if self.fate == Fate::ProducerKilled && producer == PRODUCERS[0] {
            let variables = self.variables();
            return thread::spawn(move || {
                let killed = produce_and_be_killed(&component, &variables, count, &mut dice);
                let next = format!("{component}-again");
                vec![killed, produce_in_process(&next, &variables, count, &mut dice)]
            });
        }
        let credentials = credentials(self.site.directory.path(), producer, &socket);
        let journal = socket.with_file_name(format!("journal-{producer}"));
        thread::spawn(move || {
            let spills = dice.one_in(4);
            vec![produce(Orders { component, count, journal, spills }, credentials, dice, |_| ())]
        })
    }

    /// How many records were raised, and how many of them a killed producer took with it.
    fn run(mut self) -> (u64, u64) {
        let before = self.site.store.clone();
        let before = wait(before.read(|reader| reader.newest_log_seq())).unwrap();
        let producers = &PRODUCERS[..1 + self.dice.below(PRODUCERS.len() as u64) as usize];
        let mut order: Vec<usize> = (0..2 + producers.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, self.dice.below(at as u64 + 1) as usize);
        }
        let mut producing = Vec::new();
        for side in order {
            match side {
                0 => self.start_broker(),
                1 => self.start_consumer(),
                number => producing.push(self.start_producer(producers[number - 2])),
            }
            self.dice.delay();
        }
        if self.fate.kills_consumer_process() || self.fate == Fate::ConsumerActorKilled {
            thread::sleep(Duration::from_micros(self.dice.below(60_000)));
            self.end_consumer();
            self.dice.delay();
            self.start_consumer();
        }
        if self.fate.kills_broker() {
            thread::sleep(Duration::from_micros(self.dice.below(60_000)));
            self.end_broker();
            self.dice.delay();
            self.start_broker();
        }
        let produced: Vec<Produced> =
            producing.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let lost = produced.iter().map(|produced| self.judge(produced, before)).sum();
        self.end_consumer();
        self.end_broker();
        (produced.iter().map(|produced| produced.count).sum(), lost)
    }

    /// Compares what is stored with what was logged; how many records are lost.
    fn judge(&self, produced: &Produced, before: i64) -> u64 {
        let components = vec![produced.component.as_str().into()];
        let query = LogQuery { components, after_seq: Some(before), limit: 10_000, ..LogQuery::default() };
        let found = wait(self.site.store.read(move |reader| reader.logs(&query))).unwrap();
        let records: Vec<_> = found.into_iter().map(|log| log.record).collect();
        assert!(records.iter().all(|record| record.run == records[0].run && record.run != 0));
        assert!(records.is_sorted_by(|one, next| one.number < next.number), "their numbers do not rise");
        let numbers: Vec<u64> = records.iter().map(|record| record.message.parse().unwrap()).collect();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "`{}`: not each once and in order", produced.component);
        let stored = numbers.len() as u64;
        if produced.is_killed {
            assert!(stored >= produced.spilled, "{stored} are stored of {produced:?}");
            // It may have stored one of which it could not tell any more.
            assert!(stored <= produced.count + 1, "{stored} are stored of {produced:?}");
        } else {
            assert_eq!(stored, produced.count, "the last ones of {produced:?} are not stored");
        }
        produced.count.saturating_sub(stored)
    }
}

fn spawn_producer(
    component: &str,
    variables: &[(&'static str, PathBuf)],
    count: u64,
    dice: &mut Dice,
) -> TestProcess {
    let (count, dice) = (PathBuf::from(count.to_string()), PathBuf::from(dice.roll().to_string()));
    let mut all: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_path())).collect();
    all.extend([(NAME, Path::new(component)), (COUNT, &count), (DICE, &dice)]);
    spawn("producer_process", &all)
}

fn produce_in_process(
    component: &str,
    variables: &[(&'static str, PathBuf)],
    count: u64,
    dice: &mut Dice,
) -> Produced {
    let process = spawn_producer(component, variables, count, dice);
    loop {
        let line = process.line_within(round_deadline(SOAK)).expect("the second producer has not flushed");
        if let Some(count) = line.strip_prefix("flushed: ") {
            return Produced::whole(component, count.parse().unwrap());
        }
    }
}

/// Kills a producer after some of its records; what it logged and spilled is what it told before.
fn produce_and_be_killed(
    component: &str,
    variables: &[(&'static str, PathBuf)],
    count: u64,
    dice: &mut Dice,
) -> Produced {
    let mut process = spawn_producer(component, variables, count, dice);
    let mut produced = Produced { is_killed: true, ..Produced::whole(component, 0) };
    let mut take = |line: &str| {
        let number = |what| line.split_once(what).map(|(_, number)| number.parse::<u64>().unwrap());
        produced.count = number("logged: ").unwrap_or(produced.count);
        produced.spilled = number("spilled: ").unwrap_or(produced.spilled);
        produced.count
    };
    let enough = 1 + dice.below(count);
    while let Some(line) = process.line_within(round_deadline(SOAK)) {
        if take(&line) >= enough || line.starts_with("flushed: ") {
            break;
        }
    }
    dice.delay();
    process.kill();
    while let Some(line) = process.line_within(round_deadline(SOAK)) {
        take(&line);
    }
    produced
}

#[test]
fn races_from_the_first_log_call_to_the_store_lose_nothing_and_store_nothing_twice() {
    let races = environment(SOAK).unwrap_or(100);
    let seed = seed("log races");
    let site = Site::new();
    let (mut records, mut lost) = (0, 0);
    let mut fates = BTreeMap::<Fate, u64>::new();
    let mut slowest = (Duration::ZERO, 0);
    for round in 0..races {
        let mut dice = Dice(seed.wrapping_add(round));
        let fate = match dice.below(20) {
            0..12 => Fate::Peace,
            12..15 => Fate::ConsumerActorKilled,
            15 => Fate::ConsumerProcessKilled,
            16 => Fate::BrokerKilled,
            17 => Fate::BothKilled,
            _ => Fate::ProducerKilled,
        };
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Round::new(&site, round, fate, dice).run()
        }));
        let Ok((raised, gone)) = outcome else {
            panic!(
                "round {round} ({fate:?}) failed; INTERLOCK_SEED={} begins with it",
                seed.wrapping_add(round)
            );
        };
        (records, lost) = (records + raised, lost + gone);
        *fates.entry(fate).or_default() += 1;
        slowest = slowest.max((began.elapsed(), round));
        if round % 500 == 499 {
            say(&format!("{} rounds, {records} records, {lost} with killed producers, {fates:?}", round + 1));
        }
    }
    say(&format!(
        "{races} rounds, {records} records each stored once and in order, {lost} counted as gone with killed producers, \
         {fates:?}; slowest {slowest:?}"
    ));
}
