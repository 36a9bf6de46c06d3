//! A broker, an outbox on a memory storage, and consumers by script, all in one process over real sockets.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    broker::{Broker, BrokerConfig, BrokerHandle},
    client::{Client, ConnectOptions},
    durable::{
        ConsumeOptions, Delivery, DurableOptions, Left, MemoryStorage, Outbox, OutboxError, OutboxHandle,
        OutboxOptions, OutboxReport, Routes, Schedule,
        memory::{DeliveryState, KeptDelivery},
    },
    endpoint::Endpoint,
    envelope::Payload,
    keys::{Credentials, KeyStore, Permissions},
    peer::PeerName,
    topic::TopicName,
};

/// How long anything may take that should come at once; generous, because CI machines are busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn name(text: &str) -> PeerName {
    text.parse().unwrap()
}

pub(super) fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

pub(super) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not come in time"))
}

/// Waits until something is so; looks again whenever time has passed, because nothing else tells.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, looking).await;
}

/// What is left when all was saved: so many open, and so many to `books` cut off.
pub(super) fn left(open: u64, cut_off: u64) -> Left {
    let cut_off = (cut_off > 0).then(|| (name("books"), cut_off));
    Left { open: Some(open), cut_off: cut_off.into_iter().collect(), is_saved: true }
}

/// Retries at a thousandth of the usual times, and no sweep unless it is asked for.
pub(super) fn quick() -> OutboxOptions {
    OutboxOptions {
        schedule: Schedule {
            base: Duration::from_millis(30),
            cap: Duration::from_millis(3600),
            attempts_max: 10,
        },
        sweep_interval: Duration::from_secs(3600),
        storage_pause: Duration::from_millis(5),
        ..OutboxOptions::default()
    }
}

pub(super) struct Stage {
    directory: tempfile::TempDir,
    pub(super) store: KeyStore,
    pub(super) broker: BrokerHandle,
    pub(super) storage: Arc<MemoryStorage>,
}

/// Everybody who plays.
pub(super) const CONSUMERS: [&str; 3] = ["books", "audit", "never"];

impl Stage {
    pub(super) fn new() -> Self {
        Self::with_storage(MemoryStorage::default())
    }

    pub(super) fn with_storage(storage: MemoryStorage) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let endpoints = [Endpoint::Ipc(directory.path().join("bus.sock"))];
        let issue = |peer: &str, serve: &[&str], request: &[&str]| {
            let permissions = Permissions::from_lists(&[], &[], serve, request).unwrap();
            store.issue(&name(peer), &permissions, &endpoints, None).unwrap();
        };
        issue("outbox", &["outbox/#"], &["inbox/#"]);
        issue("shop", &[], &["outbox/put/#", "outbox/look/v1"]);
        for consumer in CONSUMERS {
            issue(consumer, &[&format!("inbox/{consumer}/#")], &["outbox/consume/v1"]);
        }
        let broker = Self::start_broker(&store, &directory);
        Self { directory, store, broker, storage: Arc::new(storage) }
    }

    fn start_broker(store: &KeyStore, directory: &tempfile::TempDir) -> BrokerHandle {
        let endpoints = vec![Endpoint::Ipc(directory.path().join("bus.sock"))];
        Broker::start(BrokerConfig::from_key_store(store, endpoints).unwrap()).unwrap()
    }

    /// The broker dies and another one starts in its place.
    pub(super) async fn restart_broker(&mut self) {
        let broker = self.broker.clone();
        tokio::task::spawn_blocking(move || broker.stop(Duration::ZERO)).await.unwrap();
        self.broker = Self::start_broker(&self.store, &self.directory);
    }

    pub(super) async fn connect(&self, peer: &str) -> Client {
        let path = Credentials::path_in(&self.directory.path().join("keys"), &name(peer));
        let options = ConnectOptions::new(Credentials::load(&path).unwrap()).timeout(DEADLINE);
        soon("a session", Client::connect(options)).await.unwrap()
    }

    /// An outbox on the stage's storage; `orders/#` goes to `books`, `both/#` to `books` and `audit`, `lost/#` to `never`.
    pub(super) async fn outbox(&self, options: OutboxOptions) -> Running {
        self.outbox_on(Arc::clone(&self.storage), options).await
    }

    pub(super) async fn outbox_on(&self, storage: Arc<MemoryStorage>, options: OutboxOptions) -> Running {
        let route = |filter: &str, names: &[&str]| {
            (filter.parse().unwrap(), names.iter().map(|consumer| name(consumer)).collect())
        };
        let routes = Routes::new([
            route("orders/#", &["books"]),
            route("both/#", &["books", "audit"]),
            route("lost/#", &["never"]),
        ]);
        let outbox = Outbox::new(self.connect("outbox").await, storage, routes, options);
        let handle = outbox.handle(name("inside"));
        let (stop, stopping) = oneshot::channel::<()>();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&reports);
        let task = tokio::spawn(async move {
            let stopping = async move { drop(stopping.await) };
            outbox.run(stopping, move |report| seen.lock().unwrap().push(report.clone())).await
        });
        let running = Running { handle, stop: Some(stop), task, reports };
        running.until("it serves", |report| report.state != Default::default()).await;
        running
    }

    /// A consumer whose answers the script gives.
    pub(super) async fn consumer(
        &self,
        peer: &str,
        answer: impl Fn(&Delivery) -> Answer + Send + 'static,
    ) -> Consumer {
        self.consumer_with(peer, ConsumeOptions::default(), answer).await
    }

    pub(super) async fn consumer_with(
        &self,
        peer: &str,
        options: ConsumeOptions,
        answer: impl Fn(&Delivery) -> Answer + Send + 'static,
    ) -> Consumer {
        let client = self.connect(peer).await;
        let mut consuming = client.consume_durable(&"#".parse().unwrap(), options).await.unwrap();
        let came = Came::default();
        let effects = Effects::default();
        let (seen, happened) = (came.clone(), Arc::clone(&effects));
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(delivery) = consuming.next().await {
                seen.note(&delivery);
                // What cannot be told comes again.
                let _ = match answer(&delivery) {
                    Answer::Ack => {
                        happened.lock().unwrap().push(delivery.message.text().unwrap().to_owned());
                        delivery.ack().await
                    }
                    Answer::Retry => delivery.retry("not now").await,
                    Answer::Reject => delivery.reject("never").await,
                    Answer::Drop => {
                        drop(delivery);
                        Ok(())
                    }
                    Answer::Keep => {
                        kept.push(delivery);
                        Ok(())
                    }
                    Answer::UntilCancelled => {
                        delivery.cancelled().wait().await;
                        Ok(())
                    }
                };
            }
        });
        Consumer { client, came, effects, task }
    }

    /// What is kept of every delivery, by number and consumer.
    pub(super) fn deliveries(&self) -> BTreeMap<(u64, String), KeptDelivery> {
        let messages = self.storage.messages();
        let each = messages.into_iter().flat_map(|(number, message)| {
            message.deliveries.into_iter().map(move |(peer, kept)| ((number, peer.to_string()), kept))
        });
        each.collect()
    }

    pub(super) fn delivery(&self, number: u64, peer: &str) -> KeptDelivery {
        self.deliveries().remove(&(number, peer.to_owned())).unwrap()
    }

    /// Waits until nothing is pending or leased.
    pub(super) async fn drained(&self) {
        let is_over = |kept: &KeptDelivery| {
            matches!(kept.state, DeliveryState::Acknowledged | DeliveryState::Dead { .. })
        };
        until("the drain", || self.deliveries().values().all(is_over)).await;
    }
}

/// What a consumer by script does with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    Retry,
    Reject,
    Drop,
    /// Never says a word.
    Keep,
    /// Lets it go when the outbox does not wait for it any more.
    UntilCancelled,
}

/// What came to a consumer: text and attempt, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Came(Arc<Mutex<Vec<(String, u32)>>>);

impl Came {
    fn note(&self, delivery: &Delivery) {
        let text = delivery.message.text().unwrap().to_owned();
        self.0.lock().unwrap().push((text, delivery.attempt));
    }

    pub(super) fn all(&self) -> Vec<(String, u32)> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn texts(&self) -> Vec<String> {
        self.all().into_iter().map(|(text, _)| text).collect()
    }
}

/// What was done about deliveries, in order.
type Effects = Arc<Mutex<Vec<String>>>;

pub(super) struct Consumer {
    pub(super) client: Client,
    pub(super) came: Came,
    effects: Effects,
    task: JoinHandle<()>,
}

impl Consumer {
    pub(super) fn effects(&self) -> Vec<String> {
        self.effects.lock().unwrap().clone()
    }

    pub(super) async fn came_times(&self, times: usize) {
        until("a delivery", || self.came.all().len() >= times).await;
    }

    /// Ends without a word, in the middle of whatever it does.
    pub(super) async fn dies(self) {
        self.task.abort();
        let _ = self.task.await;
        self.client.close().await;
    }
}

pub(super) struct Running {
    pub(super) handle: OutboxHandle,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Left, OutboxError>>,
    /// Every report that was given.
    pub(super) reports: Arc<Mutex<Vec<OutboxReport>>>,
}

impl Running {
    pub(super) async fn until(&self, what: &str, mut is_so: impl FnMut(&OutboxReport) -> bool) {
        let mut reports = self.handle.watch();
        let waiting = reports.wait_for(|report| is_so(report));
        let in_time = tokio::time::timeout(DEADLINE, waiting).await.is_ok();
        assert!(in_time, "{what}; the last report is {:#?}", self.handle.report());
    }

    pub(super) async fn put(&self, topic_name: &str, text: &str) -> u64 {
        let options = DurableOptions::default();
        let (topic, payload) = (topic(topic_name), Payload::text(text));
        self.handle.put(&topic, payload, &options, DEADLINE).await.unwrap().number
    }

    pub(super) fn ask_stop(&mut self) {
        drop(self.stop.take());
    }

    pub(super) async fn ended(self) -> Result<Left, OutboxError> {
        soon("the end of the outbox", self.task).await.unwrap()
    }

    pub(super) async fn stop(mut self) -> Left {
        self.ask_stop();
        self.ended().await.unwrap()
    }

    /// As a process that is killed: nothing is told to the storage.
    pub(super) async fn killed(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
