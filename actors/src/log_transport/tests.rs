//! The whole way of a record: buffer, gate, broker, consumer, store, with any of them dying on the way.
//!
//! `INTERLOCK_TEST_ROUNDS=10000 cargo test -p interlock-actors start_up_races` is the soak size.

use std::{collections::HashMap, future::Future, path::PathBuf, time::Duration};

use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, ConnectOptions, Credentials, Endpoint, Header, KeyStore,
    Payload, PeerName, Permissions, SubscribeOptions, client::PublishOptions,
};
use tokio::{sync::watch, task::JoinHandle};
use uuid::Uuid;

use super::*;
use crate::{
    host::HostReport,
    log_consumer::{Consumer, ConsumerError, ConsumerReport, LogConsumer},
    log_record::{Confirm, Confirmed, ConsumerState, Level, LogRecord, Probe, ProbeAnswer},
    store::{DataKey, LogQuery, Reader, Store, StoreOptions},
    test_stage::Stage,
    topics,
};

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// An installation: keys and store in a directory of its own, a broker that can be killed.
pub(super) struct Site {
    pub(super) directory: tempfile::TempDir,
    keys: KeyStore,
    credentials: HashMap<&'static str, Credentials>,
    broker: Option<BrokerHandle>,
    pub(super) store: Store,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
        let lists: [(&str, [&[&str]; 4]); 4] = [
            ("log-transport", [&["logs/#"], &["log-consumer/#"], &[], &["log-consumer/#"]]),
            ("log-consumer", [&["log-consumer/#"], &["logs/#"], &["log-consumer/#"], &[]]),
            ("watcher", [&["logs/#"], &["logs/#"], &[], &[]]),
            ("outsider", [&["x/#"], &["log-consumer/#"], &[], &["log-consumer/#"]]),
        ];
        let mut credentials = HashMap::new();
        for (name, [publish, subscribe, serve, request]) in lists {
            let permissions = Permissions::from_lists(publish, subscribe, serve, request).unwrap();
            let issued = keys
                .issue(&name.parse().unwrap(), &permissions, std::slice::from_ref(&endpoint), None)
                .unwrap();
            credentials.insert(name, issued);
        }
        let database = directory.path().join("interlock.db");
        let key = DataKey::load_or_create(&directory.path().join("keys"), &database).unwrap();
        let store = Store::open(&database, &key, StoreOptions::default()).unwrap();
        Self { directory, keys, credentials, broker: None, store }
    }

    pub(super) fn with_broker() -> Self {
        let mut site = Self::new();
        site.start_broker();
        site
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    pub(super) fn start_broker(&mut self) {
        let config = BrokerConfig::from_key_store(&self.keys, vec![Endpoint::Ipc(self.socket())]).unwrap();
        self.broker = Some(Broker::start(config).unwrap());
    }

    pub(super) fn stop_broker(&mut self) {
        self.broker.take().unwrap().stop(Duration::ZERO);
    }

    pub(super) fn attach(&self, name: &str) -> Client {
        self.broker.as_ref().unwrap().attach(&name.parse::<PeerName>().unwrap()).unwrap()
    }

    async fn connect(&self, name: &str) -> Client {
        Client::connect(ConnectOptions::new(self.credentials[name].clone()).waits_for_broker(true))
            .await
            .unwrap()
    }

    /// Compares what is stored of the component `test`, in the order in which it arrived, with `0..to`.
    pub(super) fn assert_stored(&self, to: usize) {
        let database = self.store.path();
        let key = DataKey::load(&self.directory.path().join("keys"), database).unwrap();
        let reader = Reader::open(database, &key).unwrap();
        let (mut seq, mut next) = (0, 0);
        loop {
            let components = vec!["test".into()];
            let page = LogQuery { limit: 10_000, after_seq: Some(seq), components, ..LogQuery::default() };
            let found = reader.logs(&page).unwrap();
            let Some(last) = found.last() else { break };
            seq = last.seq;
            for log in found {
                assert_eq!(log.record.message, next.to_string(), "at number {next} of {to}");
                next += 1;
            }
        }
        assert_eq!(next, to, "the last ones are not stored");
    }
}

/// A drain or a consumer at work, which can be stopped or killed.
pub(super) struct Running<T, E> {
    task: JoinHandle<Result<(), E>>,
    report: watch::Receiver<Option<T>>,
    stop: watch::Sender<bool>,
}

impl<T: Copy + std::fmt::Debug, E: std::fmt::Debug> Running<T, E> {
    fn start<F: Future<Output = Result<(), E>> + Send + 'static>(
        work: impl FnOnce(watch::Sender<Option<T>>, watch::Receiver<bool>) -> F,
    ) -> Self
    where
        E: Send + 'static,
    {
        let (report_to, report) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        Self { task: tokio::spawn(work(report_to, stopped)), report, stop }
    }

    /// Waits until it reports what is wanted.
    pub(super) async fn until(&self, wanted: impl Fn(&T) -> bool) -> T {
        let mut reports = self.report.clone();
        let reached = reports.wait_for(|report| report.as_ref().is_some_and(&wanted));
        let last = || format!("{:?}", *self.report.borrow());
        let Ok(report) = tokio::time::timeout(DEADLINE, reached).await else {
            panic!("not reached; {}", last())
        };
        let report = report.unwrap_or_else(|_| panic!("it ended before; {}", last()));
        (*report).expect("it is there")
    }

    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(DEADLINE, self.task).await.expect("it did not stop").unwrap().unwrap();
    }

    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

pub(super) fn drain(client: Client, buffer: &LogBuffer) -> Running<DrainReport, DrainError> {
    let drain = Drain::new(client, buffer.clone());
    Running::start(|report, stop| async move {
        drain.run(move |now| report.send_modify(|last| *last = Some(now)), stopped(stop)).await
    })
}

pub(super) async fn consumer(client: Client, store: &Store) -> Running<ConsumerReport, ConsumerError> {
    let consumer = Consumer::start(client, store.clone()).await.unwrap();
    Running::start(|report, stop| async move {
        consumer.run(move |now| report.send_modify(|last| *last = Some(now)), stopped(stop)).await
    })
}

pub(super) fn log(buffer: &LogBuffer, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| buffer.add(LogRecord::new(Level::Info, "test", number.to_string())));
}

fn is_empty(report: &DrainReport) -> bool {
    report.buffer.waiting == 0 && report.buffer.flushed > 0
}

pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(4 * DEADLINE, test).await.expect("the test hangs") });
}

/// A random number below `bound`: where a round does something else each time.
pub(super) fn random(bound: u64) -> u64 {
    u64::from_le_bytes(interlock_bus::crypto::random()) % bound
}

pub(super) fn rounds(default: usize) -> usize {
    std::env::var("INTERLOCK_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

/// Lets the others run for a while of random length, counted in turns and not in time.
pub(super) async fn some_turns() {
    for _ in 0..random(60) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn records_logged_before_anything_was_there_are_stored_once_and_in_order() {
    run(async {
        let site = Site::with_broker();
        let buffer = LogBuffer::default();
        log(&buffer, 0..3000);
        let drain = drain(site.attach("log-transport"), &buffer);
        drain.until(|report| report.phase == gate::Phase::Waiting).await;
        assert_eq!(buffer.report().flushed, 0, "something was sent before the consumer was there");
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        drain.until(is_empty).await;
        site.assert_stored(3000);
        assert_eq!(consumer.until(|report| report.stored >= 3000).await.duplicates, 0);
        log(&buffer, 3000..3010);
        drain.stop().await;
        assert!(buffer.is_empty(), "stopping did not flush");
        consumer.stop().await;
        site.assert_stored(3010);
        // What the opening flushed is told, once.
        let told = site.store.read(|reader| {
            reader.logs(&LogQuery { text: Some("log path has caught up".into()), ..LogQuery::default() })
        });
        let told: Vec<_> = told.await.unwrap().into_iter().map(|log| log.record.message).collect();
        // Three thousand, and the steps to the opening.
        let [told] = &told[..] else { panic!("{told:?}") };
        assert!(
            told.starts_with("log path has caught up: flushed 300")
                && told.ends_with(", dropped 0, journal 0")
        );
    });
}

#[test]
fn each_step_that_is_held_back_shows_in_the_status_and_later_in_the_log() {
    run(async {
        let mut site = Site::new();
        let buffer = LogBuffer::default();
        log(&buffer, 0..3);
        let says = |text: &'static str| move |report: &DrainReport| report.to_string().starts_with(text);
        // Nothing is there. The client waits for the broker.
        let credentials = site.credentials["log-transport"].clone();
        let client = tokio::spawn(async move {
            Client::connect(ConnectOptions::new(credentials).waits_for_broker(true)).await.unwrap()
        });
        assert_eq!(gate::Gate::default().phase().to_string(), "held: no session with the broker");
        site.start_broker();
        let drain = drain(client.await.unwrap(), &buffer);
        drain.until(says("held: broker up, connected; no log consumer answers;")).await;
        // A consumer that is subscribed, announces itself and does not answer.
        let client = site.attach("log-consumer");
        let _logs = client.subscribe(&topics::filter(topics::LOGS_ALL), SubscribeOptions::default()).await;
        let serve = async |topic| client.serve(&topics::filter(topic), Default::default()).await.unwrap();
        let mut probes = serve(topics::LOG_CONSUMER_PROBE).await;
        let mut confirms = serve(topics::LOG_CONSUMER_CONFIRM).await;
        let announce = async |consumer| {
            let state = Payload::json(&ConsumerState { consumer, ready: true }).unwrap();
            let topic = topics::topic(topics::LOG_CONSUMER_STATE);
            client.publish_acknowledged(&topic, state, Default::default()).await.unwrap();
        };
        announce(Uuid::now_v7()).await;
        drain.until(says("held: broker up, connected; asking whether a log consumer is there;")).await;
        announce(Uuid::now_v7()).await;
        drain.until(says("held: broker up, connected, consumer subscribed; its probe is not back;")).await;
        assert_eq!(buffer.report().flushed, 0, "something was sent before the path was proven");
        let request = probes.next().await.unwrap();
        let probe: Probe = request.message.decode().unwrap();
        let answer = ProbeAnswer { probe: probe.probe, consumer: Uuid::now_v7() };
        request.end(Payload::json(&answer).unwrap()).await.unwrap();
        drain.until(says("open: broker up, connected, consumer subscribed, probe back;")).await;
        let _asked = confirms.next().await.unwrap();
        site.stop_broker();
        drain.until(says("held: no session with the broker;")).await;
        drop((probes, confirms, client));

        site.start_broker();
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        drain.until(|report| report.buffer.waiting == 0 && report.phase.proven() == [true; 4]).await;
        drain.stop().await;
        consumer.stop().await;
        let query = LogQuery { text: Some("log path ".into()), ..LogQuery::default() };
        let found = site.store.read(move |reader| reader.logs(&query)).await.unwrap();
        let told: Vec<_> =
            found.iter().map(|log| log.record.message.trim_start_matches("log path ")).collect();
        for step in [
            "held: broker up, connected; no",
            "held: broker up, connected, consumer",
            "open: ",
            "held: no session",
        ] {
            assert!(told.iter().any(|told| told.starts_with(step)), "{step} is not in {told:?}");
        }
        assert!(found.iter().any(|log| log.record.level == Level::Warn), "a loss is a warning");
    });
}

#[test]
fn start_up_races_lose_nothing_and_store_nothing_twice() {
    run(async {
        let mut site = Site::with_broker();
        let mut total = 0;
        for round in 0..rounds(150) {
            let buffer = LogBuffer::default();
            let begin = total;
            let mut log_some = |count: usize| {
                log(&buffer, total..total + count);
                total += count;
            };
            log_some(1 + random(5) as usize);
            let consumer_first = random(2) == 0;
            let mut consuming = None;
            if consumer_first {
                consuming = Some(consumer(site.attach("log-consumer"), &site.store).await);
                some_turns().await;
            }
            log_some(random(5) as usize);
            let mut draining = drain(site.attach("log-transport"), &buffer);
            some_turns().await;
            log_some(random(5) as usize);
            let mut consuming = match consuming {
                Some(consuming) => consuming,
                None => consumer(site.attach("log-consumer"), &site.store).await,
            };
            some_turns().await;
            match random(3) {
                0 => {
                    consuming.kill().await;
                    some_turns().await;
                    consuming = consumer(site.attach("log-consumer"), &site.store).await;
                }
                1 => {
                    draining.kill().await;
                    log_some(random(5) as usize);
                    draining = drain(site.attach("log-transport"), &buffer);
                }
                _ if random(10) == 0 => {
                    site.stop_broker();
                    draining.kill().await;
                    consuming.kill().await;
                    site.start_broker();
                    draining = drain(site.attach("log-transport"), &buffer);
                    some_turns().await;
                    consuming = consumer(site.attach("log-consumer"), &site.store).await;
                }
                _ => {}
            }
            log_some(random(5) as usize);
            draining.until(|report| report.buffer.flushed >= (total - begin) as u64).await;
            assert_eq!(buffer.report().dropped_total(), 0, "round {round}");
            draining.stop().await;
            consuming.stop().await;
            if round % 50 == 0 {
                site.assert_stored(total);
            }
        }
        site.assert_stored(total);
    });
}

#[test]
fn a_consumer_killed_again_and_again_under_load_loses_nothing() {
    run(async {
        let site = Site::with_broker();
        let buffer = LogBuffer::default();
        let drain = drain(site.attach("log-transport"), &buffer);
        let mut total = 0;
        for _ in 0..rounds(30) {
            let consumer = consumer(site.attach("log-consumer"), &site.store).await;
            let bursts = random(20);
            for _ in 0..bursts {
                log(&buffer, total..total + 37);
                total += 37;
                some_turns().await;
            }
            if bursts > 0 && random(2) == 0 {
                consumer.until(|report| report.stored + report.duplicates > 0).await;
            }
            if buffer.report().waiting > 10_000 {
                drain.until(|report| report.buffer.waiting == 0).await;
            }
            consumer.kill().await;
        }
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        log(&buffer, total..total + 1);
        total += 1;
        drain.until(|report| report.buffer.flushed >= total as u64 && report.buffer.waiting == 0).await;
        drain.stop().await;
        consumer.stop().await;
        site.assert_stored(total);
    });
}

#[test]
fn a_broker_killed_under_clients_of_other_processes_loses_nothing() {
    run(async {
        let mut site = Site::with_broker();
        let buffer = LogBuffer::default();
        let drain = drain(site.connect("log-transport").await, &buffer);
        let consumer = consumer(site.connect("log-consumer").await, &site.store).await;
        let mut total = 0;
        for _ in 0..rounds(4).min(50) {
            log(&buffer, total..total + 2500);
            total += 2500;
            some_turns().await;
            site.stop_broker();
            log(&buffer, total..total + 5);
            total += 5;
            site.start_broker();
            if buffer.report().waiting > 10_000 {
                drain.until(|report| report.buffer.waiting == 0).await;
            }
        }
        drain.until(|report| report.buffer.flushed >= total as u64).await;
        drain.stop().await;
        consumer.stop().await;
        site.assert_stored(total);
    });
}

#[test]
fn a_confirmation_is_answered_when_its_records_are_stored_and_not_before() {
    run(async {
        let site = Site::with_broker();
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let client = site.attach("log-transport");
        let ask = async |topic, payload: Payload| {
            client.request(&topics::topic(topic), payload, DEADLINE).await.unwrap()
        };
        let probe = Payload::json(&Probe { probe: Uuid::nil() }).unwrap();
        let answer: ProbeAnswer = ask(topics::LOG_CONSUMER_PROBE, probe.clone()).await.decode().unwrap();
        let confirm = |consumer, id| Payload::json(&Confirm { consumer, ids: vec![id] }).unwrap();
        let publish = async |record: &LogRecord| {
            let topic = record.topic().parse().unwrap();
            client
                .publish_acknowledged(&topic, Payload::json(record).unwrap(), Default::default())
                .await
                .unwrap();
        };

        let (first, second) =
            (LogRecord::new(Level::Info, "test", "0"), LogRecord::new(Level::Info, "test", "1"));
        let confirmed = ask(topics::LOG_CONSUMER_CONFIRM, confirm(answer.consumer, second.id));
        let mut confirmed = std::pin::pin!(confirmed);
        assert!(futures_util::poll!(&mut confirmed).is_pending());
        publish(&first).await;
        consumer.until(|report| report.stored == 1).await;
        // Whatever the consumer had to say about the second one, it would have said before this.
        ask(topics::LOG_CONSUMER_PROBE, probe).await;
        assert!(futures_util::poll!(&mut confirmed).is_pending(), "it confirmed what nobody has published");
        publish(&second).await;
        let nothing_missing = Confirmed { missing: Vec::new(), consumer: answer.consumer };
        assert_eq!(confirmed.await.decode::<Confirmed>().unwrap(), nothing_missing);
        site.assert_stored(2);

        let unknown = Uuid::now_v7();
        let of_another = ask(topics::LOG_CONSUMER_CONFIRM, confirm(Uuid::nil(), unknown)).await;
        assert_eq!(of_another.decode::<Confirmed>().unwrap().missing, [unknown]);
        let known = ask(topics::LOG_CONSUMER_CONFIRM, confirm(Uuid::nil(), first.id)).await;
        assert_eq!(known.decode::<Confirmed>().unwrap(), nothing_missing);
        consumer.stop().await;
    });
}

#[test]
fn what_was_sent_to_an_earlier_incarnation_is_left_to_its_sender() {
    run(async {
        let site = Site::with_broker();
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let client = site.attach("log-transport");
        let publish = async |message: &str, correlation| {
            let record = LogRecord::new(Level::Info, "test", message);
            let payload = Payload::json(&record).unwrap();
            let header = Header { correlation, ..Header::with_id(record.id, &payload) };
            let options = PublishOptions { header: Some(header), ..PublishOptions::default() };
            client.publish_acknowledged(&record.topic().parse().unwrap(), payload, options).await.unwrap();
        };
        publish("of another", Some(Uuid::now_v7())).await;
        publish("0", None).await;
        let report = consumer.until(|report| report.stored == 1).await;
        assert_eq!(report.strays, 1);
        site.assert_stored(1);
        consumer.stop().await;
    });
}

#[test]
fn what_a_consumer_misses_is_published_again_until_it_has_it() {
    run(async {
        let site = Site::with_broker();
        // A consumer of our own, which misses what we want it to.
        let client = site.attach("log-consumer");
        let mut seen =
            client.subscribe(&"logs/#".parse().unwrap(), SubscribeOptions::default()).await.unwrap();
        let serve = async |topic| client.serve(&topics::filter(topic), Default::default()).await.unwrap();
        let (mut probes, mut confirms) =
            (serve(topics::LOG_CONSUMER_PROBE).await, serve(topics::LOG_CONSUMER_CONFIRM).await);
        let buffer = LogBuffer::default();
        log(&buffer, 0..5);
        let drain = drain(site.attach("log-transport"), &buffer);
        let request = probes.next().await.unwrap();
        let probe = request.message.decode::<Probe>().unwrap().probe;
        request.end(Payload::json(&ProbeAnswer { probe, consumer: Uuid::nil() }).unwrap()).await.unwrap();

        let mut texts = async |count: usize| {
            let mut texts = String::new();
            for _ in 0..count {
                let Some(interlock_bus::Event::Message(message)) = seen.next().await else {
                    panic!("no message")
                };
                texts += &message.decode::<LogRecord>().unwrap().message;
            }
            texts
        };
        let mut confirm = async |missing: fn(Vec<Uuid>) -> Vec<Uuid>| {
            let request = confirms.next().await.unwrap();
            let missing = missing(request.message.decode::<Confirm>().unwrap().ids);
            request
                .end(Payload::json(&Confirmed { missing, ..Confirmed::default() }).unwrap())
                .await
                .unwrap();
        };
        // And the two steps to an open gate.
        assert!(texts(7).await.starts_with("01234log path "));
        confirm(|ids| vec![ids[1], ids[4]]).await;
        assert_eq!(texts(2).await, "14");
        confirm(|ids| ids[1..].to_vec()).await;
        assert_eq!(texts(1).await, "4");
        assert_eq!(buffer.report().waiting, 1);
        for _ in 0..3 {
            confirm(|ids| ids).await;
        }
        let error = drain.task.await.unwrap().unwrap_err();
        assert!(matches!(error, DrainError::Fruitless), "{error}");
        assert_eq!(buffer.report().waiting, 1, "a failed drain gave something up");
    });
}

#[test]
fn everybody_who_may_can_watch_the_records_as_topics() {
    run(async {
        let site = Site::with_broker();
        let watcher = site.attach("watcher");
        let mut seen =
            watcher.subscribe(&"logs/#".parse().unwrap(), SubscribeOptions::default()).await.unwrap();
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let buffer = LogBuffer::default();
        buffer.add(LogRecord::new(Level::Warn, "gate way", "text"));
        let drain = drain(site.attach("log-transport"), &buffer);
        let Some(interlock_bus::Event::Message(message)) = seen.next().await else { panic!("no message") };
        assert_eq!(message.topic.as_str(), "logs/gate_way/warn");
        assert_eq!(message.origin.as_str(), "log-transport");
        let record: LogRecord = message.decode().unwrap();
        assert_eq!((record.message.as_str(), record.id), ("text", message.header.id));
        drain.until(is_empty).await;
        drain.stop().await;
        consumer.stop().await;
    });
}

/// `record` as it was written before records had a run and a number, under an id of its own.
fn earlier(record: &LogRecord) -> Payload {
    let record = LogRecord { id: Uuid::now_v7(), message: "of an earlier version".into(), ..record.clone() };
    let whole = interlock_bus::codec::to_bytes(&record).unwrap();
    let added = interlock_bus::codec::to_bytes(&(0_u64, 0_u64)).unwrap();
    let mut payload = Payload::encode(&record).unwrap();
    payload.bytes = whole.slice(..whole.len() - added.len());
    payload
}

#[test]
fn what_others_publish_is_kept_and_what_they_claim_is_not_believed() {
    run(async {
        let site = Site::with_broker();
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let watcher = site.attach("watcher");
        let mut forged = LogRecord::new(Level::Info, "runtime", "forged");
        forged.origin = Some("runtime".into());
        for payload in [
            Payload::text("plain text"),
            Payload::json(&serde_json::json!({"level": 3})).unwrap(),
            Payload::bytes(vec![0xff; 10]),
            Payload::bytes(vec![b'x'; 3 << 20]),
            Payload::json(&forged).unwrap(),
            Payload::encode(&LogRecord { file: None, ..forged.clone() }).unwrap(),
            earlier(&forged),
        ] {
            watcher
                .publish_acknowledged(&"logs/test/error".parse().unwrap(), payload, Default::default())
                .await
                .unwrap();
        }
        consumer.until(|report| report.stored + report.duplicates == 7).await;
        consumer.stop().await;
        let found = site.store.read(|reader| reader.logs(&LogQuery::default())).await.unwrap();
        let texts: Vec<_> = found.iter().map(|log| log.record.message.as_str()).collect();
        assert_eq!(
            texts,
            [
                "forged",
                "of an earlier version",
                "plain text",
                r#"{"level":3}"#,
                "(10 bytes that are not a log record)",
                "(3145728 bytes that are not a log record)"
            ]
        );
        assert!(found.iter().all(|log| log.record.origin.as_deref() == Some("watcher")));
        assert!(found.iter().all(|log| log.record.component == "test"));
        assert_eq!(found.iter().filter(|log| log.record.level == Level::Error).count(), 4);
    });
}

#[test]
fn a_transport_without_rights_says_so_and_keeps_its_records() {
    run(async {
        let site = Site::with_broker();
        let _consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let buffer = LogBuffer::default();
        log(&buffer, 0..3);
        let error = Drain::new(site.attach("outsider"), buffer.clone())
            .run(|_| {}, std::future::pending())
            .await
            .unwrap_err();
        assert!(matches!(error, DrainError::Publish(_)), "{error}");
        let error = Drain::new(site.attach("watcher"), buffer.clone())
            .run(|_| {}, std::future::pending())
            .await
            .unwrap_err();
        assert!(matches!(error, DrainError::Listen(_)), "{error}");
        assert_eq!(buffer.report().flushed, 0);
        let drain = drain(site.attach("log-transport"), &buffer);
        drain.until(is_empty).await;
        drain.stop().await;
        site.assert_stored(3);
    });
}

#[test]
fn a_store_that_fails_fails_the_consumer_and_loses_nothing() {
    run(async {
        let site = Site::with_broker();
        let buffer = LogBuffer::default();
        let drain = drain(site.attach("log-transport"), &buffer);
        let closed = Store::open(
            &site.directory.path().join("other.db"),
            &DataKey::load(&site.directory.path().join("keys"), site.store.path()).unwrap(),
            StoreOptions::default(),
        )
        .unwrap();
        closed.close();
        let failing = Consumer::start(site.attach("log-consumer"), closed).await.unwrap();
        log(&buffer, 0..5);
        let error = failing.run(|_| {}, std::future::pending()).await.unwrap_err();
        assert!(matches!(error, ConsumerError::Store(_)), "{error}");
        drain.until(|report| report.phase == gate::Phase::Waiting).await;
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        drain.until(|report| report.buffer.flushed >= 5).await;
        drain.stop().await;
        consumer.stop().await;
        site.assert_stored(5);
    });
}

/// Raises more events for every event that is raised on the log path, as libraries beneath it would: of its own targets
/// and of foreign ones, at every level. Only for its own it raises none, or it would be the one that never ends.
struct Talkative(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Talkative {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        thread_local! {
            static TALKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }
        let thread = std::thread::current();
        let of_path =
            ["bus-", "store-", "log-"].iter().any(|of| thread.name().unwrap_or_default().starts_with(of));
        if TALKING.get() || !(of_path || path::is_marked()) {
            return;
        }
        let _ = event;
        TALKING.set(true);
        tracing::error!(target: "some_library", "a library at work for the log path");
        tracing::info!(target: "some_library::part", "a library at work for the log path");
        tracing::trace!(target: "interlock_actors::store", "a library at work for the log path");
        self.0.fetch_add(3, std::sync::atomic::Ordering::Relaxed);
        TALKING.set(false);
    }
}

/// Says that this process runs one test only.
const ALONE: &str = "INTERLOCK_TEST_ALONE";

#[test]
fn the_log_path_comes_to_rest_though_everything_beneath_it_logs_at_full_detail() {
    use tracing_subscriber::layer::SubscriberExt;
    // In a process of its own: threads that other tests started before there was a layer are not marked, and threads of
    // their actors have names like those of the log path.
    if std::env::var_os(ALONE).is_none() {
        let test = std::thread::current();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test.name().unwrap(), "--nocapture"]).env(ALONE, "1");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        return;
    }
    let buffer = LogBuffer::new(2000, 16 << 20);
    let sink = Sink::new(Box::new(std::io::sink()), Level::Trace).unwrap();
    let identity = Identity { component: "test".to_owned(), incarnation: 1 };
    let layer = LogLayer::new(identity, buffer.clone(), sink.clone());
    let raised = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    let subscriber =
        tracing_subscriber::registry().with(layer).with(Talkative(std::sync::Arc::clone(&raised)));
    // For the whole process, since broker and store have threads of their own.
    let _ = tracing::subscriber::set_global_default(subscriber);
    run(async {
        let mut site = Site::with_broker();
        let place = journal::JournalPlace {
            directory: site.directory.path().join("journal"),
            bytes_max: journal::BYTES_MAX,
            key: Box::new(|| Ok(zeroize::Zeroizing::new([1; 32]))),
        };
        buffer.attach_journal(place).unwrap();
        for round in 0..3 {
            (0..100).for_each(|number| tracing::info!(target: "program", number, "an event of the program"));
            // The journal is on the way, too: written and read.
            buffer.journal().unwrap().spill_all().await;
            let consumer = consumer(site.attach("log-consumer"), &site.store).await;
            let client =
                if round == 1 { site.connect("log-transport").await } else { site.attach("log-transport") };
            let drain = drain(client, &buffer);
            drain.until(|report| report.buffer.waiting == 0 && report.flushed() >= 100 * (round + 1)).await;
            drain.stop().await;
            consumer.stop().await;
            site.stop_broker();
            site.start_broker();
        }
        let query = LogQuery { text: Some("an event of the program".into()), ..LogQuery::default() };
        assert_eq!(site.store.read(move |reader| reader.logs(&query)).await.unwrap().len(), 300);
        let all = site.store.read(|reader| reader.logs(&LogQuery::default())).await.unwrap();
        let of_library: Vec<_> =
            all.iter().filter(|log| log.record.message.starts_with("a library at work")).collect();
        assert!(of_library.is_empty(), "the log path logged into itself: {of_library:?}");
        let own: Vec<_> = all.iter().filter(|log| path::is_own_target(&log.record.target)).collect();
        // Each of the three tells its steps and what it flushed; nothing else of the path is in the log.
        assert!(own.iter().all(|log| log.record.message.starts_with("log path ")), "{own:?}");
        assert!(own.len() <= 3 * 6, "{own:?}");
        // All of them were seen by the sink, which bounds what it writes.
        let (raised, seen) = (raised.load(std::sync::atomic::Ordering::Relaxed), sink.report());
        assert!(raised > 0 && seen.seen >= raised, "{raised} raised, {seen:?}");
        assert!(buffer.report().dropped_total() == 0, "{:?}", buffer.report());
    });
}

#[test]
fn as_actors_they_are_ready_by_proof_and_survive_each_other() {
    run(async {
        let stage = tokio::task::spawn_blocking(Stage::new).await.unwrap();
        let buffer = LogBuffer::default();
        log(&buffer, 0..50);
        let (stage, buffer_of_actor) = (std::sync::Arc::new(stage), buffer.clone());
        let on_stage = std::sync::Arc::clone(&stage);
        // The stage blocks while it waits for reports.
        let told = tokio::task::spawn_blocking(move || {
            let store = on_stage.store.clone();
            let transport =
                on_stage.start("log-transport", move || Ok(LogTransport::new(buffer_of_actor.clone())));
            let start = || {
                let store = store.clone();
                on_stage.start("log-consumer", move || Ok(LogConsumer::new(store.clone())))
            };
            start().kill();
            let mut consumer = start();
            let is_open = |report: &HostReport| matches!(report, HostReport::Status(text) if text.starts_with("open: "));
            let HostReport::Status(told) = transport.wait_for("an open gate", is_open) else {
                unreachable!()
            };
            let mut transport = transport;
            let exit = transport.stop();
            consumer.stop();
            (told, format!("{exit:?}"))
        });
        let (told, exit) = told.await.unwrap();
        assert!(told.contains("dropped 0") && buffer.is_empty(), "{told}; {exit}");
        let query = LogQuery { components: vec!["test".into()], ..LogQuery::default() };
        assert_eq!(stage.store.read(move |reader| reader.logs(&query)).await.unwrap().len(), 50);
        tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
    });
}
