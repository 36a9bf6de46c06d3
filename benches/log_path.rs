//! The log path with nothing left out, in this process: a buffer, its drain, the broker, the consumer, the store.

use std::{
    future::Future,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use interlock_actors::{
    log_consumer::Consumer,
    log_transport::{Drain, Identity, LogBuffer, LogLayer, Sink},
    store::{DATABASE_FILE, DataKey, LogRetention, Store, StoreOptions},
};
use interlock_bus::{Broker, BrokerConfig, BrokerHandle, Client, Endpoint, KeyStore, Permissions};
use tokio::sync::watch;

/// How long anything here may take; something is broken then.
const DEADLINE: Duration = Duration::from_secs(300);

/// The log path at work.
#[derive(Debug)]
pub struct LogPath {
    buffer: LogBuffer,
    store: Store,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    broker: Option<BrokerHandle>,
    waits: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl LogPath {
    /// Starts all of it, on a new database. A store that keeps everything, as long as a bench runs.
    ///
    /// # Panics
    /// If something does not start.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let keys_path = directory.path().join("keys");
        let (keys, _) = KeyStore::open_or_create(&keys_path).expect("a new key store");
        let of_consumer: &[&str] = &["log-consumer/#"];
        for (name, lists) in [
            ("log-transport", [&["logs/#"], of_consumer, &[], of_consumer]),
            ("log-consumer", [of_consumer, &["logs/#"], of_consumer, &[]]),
        ] {
            let [publish, subscribe, serve, request] = lists;
            let permissions =
                Permissions::from_lists(publish, subscribe, serve, request).expect("valid filters");
            keys.issue(&name.parse().expect("a valid name"), &permissions, &[], None)
                .expect("a key is issued");
        }
        let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
        let config = BrokerConfig::from_key_store(&keys, vec![endpoint]).expect("a valid configuration");
        let broker = Broker::start(config).expect("the broker starts");
        let attach =
            |name: &str| broker.attach(&name.parse().expect("a valid name")).expect("it is enrolled");
        let database = directory.path().join(DATABASE_FILE);
        let key = DataKey::load_or_create(&keys_path, &database).expect("a new data key");
        let logs = LogRetention { rows_max: u64::MAX, ..LogRetention::default() };
        let options = StoreOptions { logs, ..StoreOptions::default() };
        let store = Store::open(&database, &key, options).expect("the store opens");

        let (buffer, (stop, _)) = (LogBuffer::default(), watch::channel(false));
        let threads = vec![
            consume(attach("log-consumer"), store.clone(), stop.subscribe()),
            drain(attach("log-transport"), buffer.clone(), stop.subscribe()),
        ];
        let waits = tokio::runtime::Builder::new_current_thread().build().expect("an event loop");
        Self { buffer, store, stop, threads, broker: Some(broker), waits, _directory: directory }
    }

    /// What the layer of [`layer`](Self::layer) fills.
    pub fn buffer(&self) -> &LogBuffer {
        &self.buffer
    }

    /// Records that are stored and not indexed yet.
    ///
    /// # Panics
    /// If the store cannot be read.
    pub fn not_indexed(&self) -> i64 {
        let reading = self.store.read(|reader| reader.logs_not_indexed());
        self.waits.block_on(reading).expect("the store can be read")
    }

    /// The layer of a program that logs.
    ///
    /// # Panics
    /// If the thread of its sink does not start.
    pub fn layer(&self) -> LogLayer {
        let identity = Identity { component: "orders".to_owned(), incarnation: 1 };
        LogLayer::new(identity, self.buffer.clone(), Sink::standard_error().expect("a thread"))
    }

    /// Waits until no record waits any more.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_until_empty(&self) {
        let began = Instant::now();
        while !self.buffer.is_empty() {
            assert!(began.elapsed() < DEADLINE, "the log path stands still: {:?}", self.buffer.report());
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for LogPath {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A panic there has been printed.
            let _ = thread.join();
        }
        self.store.close();
        if let Some(broker) = self.broker.take() {
            broker.stop(Duration::ZERO);
        }
    }
}

fn consume(client: Client, store: Store, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    on_its_thread("consumer", async move {
        let consumer = Consumer::start(client, store).await.expect("the consumer starts");
        consumer.run(|_| {}, asked(stop)).await.expect("the consumer consumes");
    })
}

fn drain(client: Client, buffer: LogBuffer, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    on_its_thread("drain", async move {
        Drain::new(client, buffer).run(|_| {}, asked(stop)).await.expect("the drain drains");
    })
}

async fn asked(mut stop: watch::Receiver<bool>) {
    // An error says that nobody can ask any more.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn on_its_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("an event loop").block_on(work);
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread starts")
}
