//! The ledger as every test with a broker reads it.

use interlock_bus::{
    Client, Endpoint, KeyStore, Payload, Permissions, TopicName, blocking::wait, client::ConnectOptions,
};
use serde_json::Value;

use super::DEADLINE;

/// The name under which tests ask the broker.
pub(crate) const AUDITOR: &str = "auditor";

/// A client that may ask the broker everything, and receive everything.
pub(crate) fn auditor(store: &KeyStore, endpoints: &[Endpoint]) -> Client {
    let permissions =
        Permissions::from_lists(&["$sys/#"], &["#", "$sys/#"], &[], &["$sys/broker/#"]).unwrap();
    let credentials = store.ensure(&AUDITOR.parse().unwrap(), &permissions, endpoints).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

/// The broker's answer on `$sys/broker/WHAT`.
pub(crate) fn ask(client: &Client, what: &str) -> Value {
    let topic: TopicName = format!("$sys/broker/{what}").parse().unwrap();
    let answer = wait(client.request(&topic, Payload::default(), DEADLINE)).unwrap_or_else(|error| {
        let link = client.watch().borrow().clone();
        panic!("asked `{topic}`: {error}; the link is {link:?}, {:?}", client.closed_reason())
    });
    serde_json::from_slice(&answer.payload).unwrap()
}

/// The counts of one publisher, topic and subscriber.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) publisher: String,
    pub(crate) topic: String,
    /// Empty for "nobody".
    pub(crate) subscriber: String,
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) queued: u64,
    pub(crate) denied: u64,
    dropped: Value,
    balances: bool,
}

impl Row {
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.dropped[reason].as_u64().unwrap_or(0)
    }
}

/// All rows, each of which must balance by the broker's own word and by ours.
pub(crate) fn assert_balances(client: &Client) -> Vec<Row> {
    let answer = ask(client, "ledger");
    let rows: Vec<Row> = answer.as_array().unwrap().iter().map(row).collect();
    for row in &rows {
        let dropped: u64 =
            row.dropped.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        let sum = row.delivered + row.queued + row.denied + dropped;
        assert!(row.balances && row.published == sum, "a row does not balance: {row:?}");
    }
    rows
}

fn row(value: &Value) -> Row {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let count = |name: &str| value[name].as_u64().unwrap();
    Row {
        publisher: text("publisher"),
        topic: text("topic"),
        subscriber: text("subscriber"),
        published: count("published"),
        delivered: count("delivered"),
        queued: count("queued"),
        denied: count("denied"),
        dropped: value["dropped"].clone(),
        balances: value["balances"] == true,
    }
}
