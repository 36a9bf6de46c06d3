//! Start-up races: broker, consumer and publisher start, connect, subscribe and publish in a random order after
//! random delays, on sockets of their own; in some rounds one of them is a process that is killed (-9) meanwhile
//! and started again. Whatever happens, each message that the gated publisher has accepted is taken once and in
//! order, or what is missing is counted.
//!
//! `INTERLOCK_RACES=10000 cargo test -p interlock-tests startup_races -- --nocapture` is the soak size. The seed is
//! printed; `INTERLOCK_RACES_SEED` runs it again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, ConnectOptions, Credentials, Endpoint, Event, GateOptions,
    GatedPublisher, KeyStore, LinkState, Payload, PeerName, Permissions, SubscribeOptions, Subscription,
    blocking::{wait, wait_until},
    client::readiness::{Continuity, Verdict},
    error::SubscribeError,
};

use crate::harness::{
    TestProcess,
    dice::{Dice, environment, round_deadline},
};

const CREDENTIALS: &str = "INTERLOCK_RACES_CREDENTIALS";
const DIRECTORY: &str = "INTERLOCK_RACES_DIRECTORY";
const FIRST: &str = "INTERLOCK_RACES_FIRST";

/// What happens beside the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing.
    Peace,
    ConsumerKilled,
    BrokerKilled,
    BothKilled,
    PublisherKilled,
}

/// Keys and names that all rounds share.
struct Site {
    directory: tempfile::TempDir,
    store: KeyStore,
    publisher: Credentials,
    consumer: Credentials,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let nowhere = [Endpoint::Ipc(directory.path().join("bus.sock"))];
        let issue = |name: &str, publish: &[&str], subscribe: &[&str]| {
            let permissions = Permissions::from_lists(publish, subscribe, &[], &[]).unwrap();
            store.issue(&name.parse::<PeerName>().unwrap(), &permissions, &nowhere, None).unwrap()
        };
        let (publisher, consumer) =
            (issue("publisher", &["race/#"], &[]), issue("consumer", &[], &["race/#"]));
        Self { directory, store, publisher, consumer }
    }
}

/// One message that a consumer's application has taken.
#[derive(Clone, Debug)]
struct Taken {
    id: String,
    sequence: u64,
    again: bool,
    missing: u64,
}

impl Taken {
    fn line(&self) -> String {
        format!("took: {} {} {} {}", self.id, self.sequence, self.again, self.missing)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_once("took: ")?.1.split(' ');
        let mut word = || words.next().unwrap().to_owned();
        Some(Self {
            id: word(),
            sequence: word().parse().unwrap(),
            again: word().parse().unwrap(),
            missing: word().parse().unwrap(),
        })
    }
}

fn connect(credentials: &Credentials) -> Client {
    let deadline = Instant::now() + round_deadline("INTERLOCK_RACES");
    loop {
        let options = ConnectOptions::new(credentials.clone())
            .timeout(round_deadline("INTERLOCK_RACES"))
            .waits_for_broker(true);
        match Client::connect_blocking(options) {
            Ok(client) => return client,
            // A broker that is killed in the middle of a handshake; whoever supervises a program starts it again.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

fn subscribe(client: &Client) -> Subscription {
    loop {
        match wait(client.subscribe(&"race/#".parse().unwrap(), SubscribeOptions::default())) {
            Ok(subscription) => return subscription,
            Err(SubscribeError::NotConnected { .. }) => {
                let mut state = client.watch();
                let ready = wait_until(
                    state.wait_for(|state| *state == LinkState::Ready),
                    Instant::now() + round_deadline("INTERLOCK_RACES"),
                );
                assert!(ready.is_some_and(|ready| ready.is_ok()), "no session came");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The consumer's application: tells each message that it takes before it asks for the next one.
fn consume(
    credentials: &Credentials,
    dice: &mut Dice,
    connected: impl FnOnce(Client),
    mut took: impl FnMut(Taken),
) {
    dice.delay();
    let client = connect(credentials);
    connected(client.clone());
    dice.delay();
    let mut subscription = subscribe(&client);
    dice.delay();
    let mut continuity = Continuity::default();
    while let Some(event) = wait(subscription.next()) {
        let Event::Message(message) = event else { continue };
        let missing = match continuity.judge(&message) {
            Verdict::Fresh { missing } => missing,
            Verdict::Seen | Verdict::Early { .. } => continue,
            verdict => panic!("{verdict:?}"),
        };
        let mark = message.header.stream.unwrap();
        let id = message.header.id.to_string();
        took(Taken { id, sequence: mark.sequence, again: mark.again, missing });
    }
}

fn gate(client: &Client, first: u64) -> GatedPublisher {
    let options = GateOptions::default().needs("consumer".parse().unwrap()).first_sequence(first);
    client.gated_publisher(&"race/track".parse().unwrap(), options).unwrap()
}

/// The publisher's application: publishes from `first` to `last` and tells each that was accepted.
fn publish(
    credentials: &Credentials,
    dice: &mut Dice,
    first: u64,
    last: u64,
    mut told: impl FnMut(u64, String),
) {
    dice.delay();
    let client = connect(credentials);
    let gate = gate(&client, first);
    for number in first..=last {
        if dice.below(3) == 0 {
            dice.delay();
        }
        let accepted = gate.publish(Payload::text(format!("{}/{number}", std::process::id()))).unwrap();
        assert_eq!(accepted.sequence, number);
        told(number, accepted.id.to_string());
    }
    match wait_until(gate.flushed(), Instant::now() + round_deadline("INTERLOCK_RACES")) {
        Some(flushed) => flushed.unwrap(),
        None => panic!("not flushed: {:?}", gate.report()),
    }
    let report = gate.report();
    assert_eq!((report.refused, report.dropped), (0, 0), "{report:?}");
}

// ---- processes ------------------------------------------------------------------------------

fn spawn(role: &str, variables: &[(&str, &Path)], first: u64) -> TestProcess {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("startup_races::{role}"), "--ignored", "--nocapture"]);
    command.envs(variables.iter().copied()).env(FIRST, first.to_string());
    command.stderr(std::process::Stdio::null());
    TestProcess::spawn(command)
}

#[allow(clippy::print_stdout, reason = "the line that the parent waits for")]
fn say(line: &str) {
    println!("{line}");
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
    let Some(path) = variable(CREDENTIALS) else { return };
    let mut dice = Dice(u64::from(std::process::id()));
    consume(&Credentials::load(&path).unwrap(), &mut dice, drop, |taken| say(&taken.line()));
}

#[test]
#[ignore = "not a test: the publisher that races start and kill"]
fn publisher_process() {
    let Some(path) = variable(CREDENTIALS) else { return };
    let first = std::env::var(FIRST).unwrap().parse().unwrap();
    let mut dice = Dice(u64::from(std::process::id()));
    publish(&Credentials::load(&path).unwrap(), &mut dice, first, first + 30, |number, id| {
        say(&format!("accepted: {number} {id}"));
    });
    say("flushed: all");
}

#[test]
#[ignore = "not a test: the broker that races start and kill"]
fn broker_process() {
    let Some(directory) = variable(DIRECTORY) else { return };
    let store = KeyStore::open(&directory.join("keys")).unwrap();
    let socket = variable(CREDENTIALS).unwrap();
    let broker =
        Broker::start(BrokerConfig::from_key_store(&store, vec![Endpoint::Ipc(socket)]).unwrap()).unwrap();
    let _ = wait(broker.ended().wait_for(Option::is_some));
}

// ---- rounds ---------------------------------------------------------------------------------

enum RunningBroker {
    Thread(BrokerHandle),
    Process(TestProcess),
}

impl RunningBroker {
    fn end(self) {
        match self {
            Self::Thread(handle) => handle.stop(Duration::ZERO),
            Self::Process(mut process) => process.kill(),
        }
    }
}

enum RunningConsumer {
    Thread { thread: JoinHandle<()>, client: mpsc::Receiver<Client>, taken: mpsc::Receiver<Taken> },
    Process(TestProcess),
}

struct Round<'a> {
    site: &'a Site,
    fate: Fate,
    dice: Dice,
    directory: tempfile::TempDir,
    publisher: Credentials,
    consumer: Credentials,
    broker: Option<RunningBroker>,
    consuming: Option<RunningConsumer>,
    taken: Vec<Taken>,
}

/// What was accepted, in order.
type Accepted = Vec<(u64, String)>;

impl<'a> Round<'a> {
    fn new(site: &'a Site, fate: Fate, dice: Dice) -> Self {
        let directory = tempfile::tempdir_in(site.directory.path()).unwrap();
        let endpoints = vec![Endpoint::Ipc(directory.path().join("bus.sock"))];
        let at_home = |credentials: &Credentials| {
            let credentials = Credentials { endpoints: endpoints.clone(), ..credentials.clone() };
            credentials.save(&directory.path().join(format!("{}.toml", credentials.name))).unwrap();
            credentials
        };
        let (publisher, consumer) = (at_home(&site.publisher), at_home(&site.consumer));
        Self {
            site,
            fate,
            dice,
            directory,
            publisher,
            consumer,
            broker: None,
            consuming: None,
            taken: Vec::new(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_broker(&mut self) {
        let socket = self.file("bus.sock");
        self.broker = Some(if matches!(self.fate, Fate::BrokerKilled | Fate::BothKilled) {
            let variables = [(DIRECTORY, self.site.directory.path()), (CREDENTIALS, socket.as_path())];
            RunningBroker::Process(spawn("broker_process", &variables, 0))
        } else {
            let config = BrokerConfig::from_key_store(&self.site.store, vec![Endpoint::Ipc(socket)]).unwrap();
            RunningBroker::Thread(Broker::start(config).unwrap())
        });
    }

    fn start_consumer(&mut self) {
        self.consuming = Some(if matches!(self.fate, Fate::ConsumerKilled | Fate::BothKilled) {
            let credentials = self.file("consumer.toml");
            RunningConsumer::Process(spawn("consumer_process", &[(CREDENTIALS, &credentials)], 0))
        } else {
            let (took, taken) = mpsc::channel();
            let (connected, client) = mpsc::channel();
            let (credentials, mut dice) = (self.consumer.clone(), self.dice.another());
            // Nobody listens any more once the round is judged.
            let work = move || {
                consume(
                    &credentials,
                    &mut dice,
                    |client| drop(connected.send(client)),
                    |one| drop(took.send(one)),
                );
            };
            RunningConsumer::Thread { thread: thread::spawn(work), client, taken }
        });
    }

    /// Kills the consumer's process; what it has taken is what it told before.
    fn kill_consumer(&mut self) {
        if let Some(RunningConsumer::Process(mut process)) = self.consuming.take() {
            process.kill();
            while let Some(line) = process.line_within(round_deadline("INTERLOCK_RACES")) {
                self.taken.extend(Taken::parse(&line));
            }
        }
    }

    fn start_publisher(&mut self) -> JoinHandle<Accepted> {
        let (credentials, mut dice) = (self.publisher.clone(), self.dice.another());
        if self.fate == Fate::PublisherKilled {
            let path = self.file("publisher.toml");
            return thread::spawn(move || publish_from_two_processes(&path, &mut dice));
        }
        let last = 1 + dice.below(60);
        thread::spawn(move || {
            let mut accepted = Vec::new();
            publish(&credentials, &mut dice, 1, last, |number, id| accepted.push((number, id)));
            accepted
        })
    }

    fn run(mut self) -> u64 {
        let mut order = [0, 1, 2];
        for at in (1..order.len()).rev() {
            order.swap(at, self.dice.below(at as u64 + 1) as usize);
        }
        let mut publishing = None;
        for side in order {
            match side {
                0 => self.start_broker(),
                1 => self.start_consumer(),
                _ => publishing = Some(self.start_publisher()),
            }
            self.dice.delay();
        }
        if matches!(self.fate, Fate::ConsumerKilled | Fate::BothKilled) {
            thread::sleep(Duration::from_micros(self.dice.below(60_000)));
            self.kill_consumer();
            self.dice.delay();
            self.start_consumer();
        }
        if matches!(self.fate, Fate::BrokerKilled | Fate::BothKilled) {
            thread::sleep(Duration::from_micros(self.dice.below(60_000)));
            self.broker.take().unwrap().end();
            self.dice.delay();
            self.start_broker();
        }
        let accepted = publishing.unwrap().join().unwrap();
        self.take_until(&accepted.last().unwrap().1);
        self.judge(&accepted);
        if let Some(RunningConsumer::Thread { thread, client, .. }) = self.consuming.take() {
            client.recv().unwrap().close_blocking();
            thread.join().unwrap();
        }
        self.broker.take().unwrap().end();
        accepted.len() as u64
    }

    /// Collects what was taken until the message with this id.
    fn take_until(&mut self, last: &str) {
        while self.taken.iter().all(|taken| taken.id != last) {
            let one = match self.consuming.as_ref().unwrap() {
                RunningConsumer::Thread { taken, .. } => {
                    taken.recv_timeout(round_deadline("INTERLOCK_RACES")).ok()
                }
                RunningConsumer::Process(process) => {
                    let line = process
                        .line_within(round_deadline("INTERLOCK_RACES"))
                        .expect("the last message was not taken");
                    match Taken::parse(&line) {
                        Some(taken) => Some(taken),
                        None => continue,
                    }
                }
            };
            self.taken.push(one.expect("the last message was not taken"));
        }
    }

    fn judge(&self, accepted: &Accepted) {
        let mut first_seen = BTreeMap::new();
        let mut once = Vec::new();
        for (at, taken) in self.taken.iter().enumerate() {
            match first_seen.get(&taken.id) {
                None => {
                    first_seen.insert(taken.id.clone(), at);
                    once.push(taken);
                }
                // A consumer that was killed may have taken it in its first life; the mark says that it comes again.
                Some(_) => {
                    assert!(
                        matches!(self.fate, Fate::ConsumerKilled | Fate::BothKilled),
                        "{taken:?} came twice"
                    );
                    assert!(taken.again, "{taken:?} came twice and is not marked");
                }
            }
        }
        // The first number it sees tells what came before there was anything to compare with.
        let before = once.first().map_or(0, |first| first.sequence - 1);
        let missing: u64 = before + once.iter().map(|taken| taken.missing).sum::<u64>();
        let taken: Vec<&str> = once.iter().map(|taken| taken.id.as_str()).collect();
        let wanted: Vec<&str> = accepted.iter().map(|(_, id)| id.as_str()).collect();
        if self.fate != Fate::PublisherKilled {
            assert_eq!(taken, wanted, "not each once and in order");
            assert_eq!(missing, 0);
            return;
        }
        // What died with the publisher is counted; it may also have sent what it could not tell of any more.
        let known: Vec<&str> = taken.iter().copied().filter(|id| wanted.contains(id)).collect();
        let lost = wanted.iter().filter(|id| !taken.contains(id)).count() as u64;
        let in_order: Vec<&str> = wanted.iter().copied().filter(|id| taken.contains(id)).collect();
        assert_eq!(known, in_order, "not in order");
        assert_eq!(lost, missing, "{lost} are lost and {missing} counted: {:?}", self.taken);
    }
}

/// Kills the publisher after some of its messages were accepted; another one goes on with its numbers.
fn publish_from_two_processes(credentials: &Path, dice: &mut Dice) -> Accepted {
    let mut accepted = Accepted::new();
    let take = |process: &TestProcess, accepted: &mut Accepted| {
        let line = process.line_within(round_deadline("INTERLOCK_RACES"))?;
        if let Some((_, words)) = line.split_once("accepted: ") {
            let (number, id) = words.split_once(' ').unwrap();
            accepted.push((number.parse().unwrap(), id.to_owned()));
        }
        Some(line.contains("flushed: "))
    };
    let mut first = spawn("publisher_process", &[(CREDENTIALS, credentials)], 1);
    let enough = dice.below(25) as usize + 1;
    while accepted.len() < enough && take(&first, &mut accepted).is_some() {}
    dice.delay();
    first.kill();
    while take(&first, &mut accepted).is_some() {}
    let next = accepted.last().unwrap().0 + 1;
    let second = spawn("publisher_process", &[(CREDENTIALS, credentials)], next);
    while !take(&second, &mut accepted).expect("the second publisher did not flush") {}
    accepted
}

#[test]
fn races_at_the_start_lose_nothing_also_when_somebody_is_killed_meanwhile() {
    let races = environment("INTERLOCK_RACES").unwrap_or(100);
    let seed = environment("INTERLOCK_RACES_SEED")
        .unwrap_or_else(|| u64::from_le_bytes(interlock_bus::crypto::random()));
    say(&format!("start-up races: {races} rounds, INTERLOCK_RACES_SEED={seed}"));
    let site = Site::new();
    let mut messages = 0;
    let mut fates = BTreeMap::<String, u64>::new();
    let mut slowest = (Duration::ZERO, 0, String::new());
    for round in 0..races {
        let mut dice = Dice(seed.wrapping_add(round));
        let fate = match dice.below(20) {
            0..15 => Fate::Peace,
            15 => Fate::ConsumerKilled,
            16 => Fate::BrokerKilled,
            17 => Fate::BothKilled,
            _ => Fate::PublisherKilled,
        };
        let began = Instant::now();
        let outcome = std::panic::catch_unwind(|| Round::new(&site, fate, dice).run());
        let Ok(published) = outcome else {
            panic!(
                "round {round} ({fate:?}) failed; INTERLOCK_RACES_SEED={} runs it alone",
                seed.wrapping_add(round)
            );
        };
        messages += published;
        *fates.entry(format!("{fate:?}")).or_default() += 1;
        slowest = slowest.max((began.elapsed(), round, format!("{fate:?}")));
        if round % 500 == 499 {
            say(&format!("{} rounds, {messages} messages, {fates:?}", round + 1));
        }
    }
    say(&format!(
        "{races} rounds, {messages} messages, {fates:?}: each taken once and in order, or counted; slowest {slowest:?}"
    ));
}
