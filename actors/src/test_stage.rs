//! A broker, a store and actors in one process, for tests of components.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, bounded};
use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, Endpoint, Message, Permissions,
    client::{Event, ReplyStream, SubscribeOptions, Subscription},
    error::RequestError,
    keys::KeyStore,
};

use crate::{
    actor::{Actor, Failure},
    gateway::Attach,
    host::{ActorHost, Bus, Host, HostReport, Mailroom, Reports, Stop},
    store::{DataKey, Store, StoreOptions},
};

/// How long anything may take that should come at once; generous, because CI machines are busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Ends a test that waits for something that never comes.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not come in time"))
}

pub(crate) struct Stage {
    broker: Arc<BrokerHandle>,
    pub(crate) keys: KeyStore,
    mailroom: Arc<Mailroom>,
    pub(crate) store: Store,
    _directory: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let permissions = Permissions::from_lists(&["#"], &["#"], &["#"], &["#", "$sys/broker/#"]).unwrap();
        for name in [
            "user",
            "watcher",
            "model",
            "conversation",
            "log-transport",
            "log-consumer",
            "gateway",
            "runtime",
            "operator",
        ] {
            keys.issue(&name.parse().unwrap(), &permissions, &[], None).unwrap();
        }
        let endpoints = vec![Endpoint::Ipc(directory.path().join("bus.sock"))];
        let broker = Broker::start(BrokerConfig::from_key_store(&keys, endpoints).unwrap()).unwrap();
        let database = directory.path().join("test.db");
        let key = DataKey::load_or_create(&directory.path().join("keys"), &database).unwrap();
        let store = Store::open(&database, &key, StoreOptions::default()).unwrap();
        let mailroom = Mailroom::open().unwrap();
        Self { broker: Arc::new(broker), keys, mailroom, store, _directory: directory }
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        self.broker.attach(&name.parse().unwrap()).unwrap()
    }

    /// How others are given sessions.
    pub(crate) fn attach(&self) -> Arc<Attach> {
        let broker = Arc::clone(&self.broker);
        Arc::new(move |peer| broker.attach(peer))
    }

    /// Starts an actor and waits until it is ready.
    pub(crate) fn start<A: Actor>(
        &self,
        name: &str,
        factory: impl Fn() -> Result<A, Failure> + Send + Sync + 'static,
    ) -> Stand {
        let (broker, peer) = (Arc::clone(&self.broker), name.parse().unwrap());
        let bus = Bus::attach(move || {
            let client = broker.attach(&peer).map_err(Failure::from);
            async move { client }
        });
        let mut host = ActorHost::new(name.parse().unwrap(), bus, &self.mailroom, factory);
        let (sink, reports) = bounded(1024);
        host.start(1, Reports::new(move |report| drop(sink.try_send(report))));
        let stand = Stand { host, reports };
        stand.wait_for("readiness", |report| matches!(report, HostReport::Ready { .. }));
        stand
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.broker.stop(Duration::from_secs(1));
    }
}

/// A started actor.
pub(crate) struct Stand {
    host: ActorHost,
    reports: Receiver<HostReport>,
}

impl Stand {
    pub(crate) fn wait_for(&self, what: &str, mut wanted: impl FnMut(&HostReport) -> bool) -> HostReport {
        loop {
            let report = self.reports.recv_timeout(DEADLINE);
            let report = report.unwrap_or_else(|_| panic!("{what} was not reported in time"));
            if wanted(&report) {
                return report;
            }
            assert!(!matches!(report, HostReport::Exited(_)), "{report:?} instead of {what}");
        }
    }

    /// Ends it without asking.
    pub(crate) fn kill(&mut self) {
        self.host.kill(false);
        self.wait_for("the exit", |report| matches!(report, HostReport::Exited(_)));
    }

    pub(crate) fn stop(&mut self) -> HostReport {
        self.host.stop(Stop::Final);
        self.wait_for("the exit", |report| matches!(report, HostReport::Exited(_)))
    }
}

/// All parts of an answer, and the error that ended it.
pub(crate) async fn parts(mut stream: ReplyStream) -> (Vec<Message>, Option<RequestError>) {
    let mut parts = Vec::new();
    while let Some(part) = soon("a part", stream.next()).await {
        match part {
            Ok(part) => parts.push(part),
            Err(error) => return (parts, Some(error)),
        }
    }
    (parts, None)
}

/// A subscription to everything that matches.
pub(crate) async fn watch(client: &Client, filter: &str) -> Subscription {
    client.subscribe(&filter.parse().unwrap(), SubscribeOptions::default()).await.unwrap()
}

/// The next message of a subscription.
pub(crate) async fn seen(subscription: &mut Subscription) -> Message {
    match soon("a message", subscription.next()).await {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} instead of a message"),
    }
}
