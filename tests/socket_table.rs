use std::{path::PathBuf, time::Duration};

use interlock_bus::{
    Client, Credentials, Endpoint, Payload, TopicFilter,
    blocking::wait,
    client::{ConnectOptions, ServeOptions},
};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestBroker, TestProcess};

/// A broker, and three peers whose credentials name one transport.
struct Table {
    broker: TestBroker,
    peers: [PathBuf; 3],
}

/// The table is the same over either transport.
fn on_each_transport(check: impl Fn(&Table)) {
    for transport in 0..2 {
        let broker = TestBroker::start();
        let publisher = broker.enrol("publisher", &["a/#", "secret", "allowed"], &[], &[], &[]);
        let subscriber = broker.enrol("subscriber", &[], &["a/#", "$sys/denied"], &[], &[]);
        let requester = broker.enrol("requester", &[], &[], &[], &["count", "a/#", "$sys/broker/#"]);
        let peers = [publisher, subscriber, requester].map(|path| {
            let mut credentials = Credentials::load(&path).unwrap();
            credentials.endpoints = vec![broker.handle.endpoints()[transport].clone()];
            credentials.save(&path).unwrap();
            path
        });
        let expected = if transport == 0 { "tcp" } else { "ipc" };
        let endpoint: &Endpoint = &broker.handle.endpoints()[transport];
        assert!(endpoint.to_string().starts_with(expected));
        check(&Table { broker, peers });
    }
}

impl Table {
    fn run(&self, scenario: &str) -> TestProcess {
        let mut arguments = vec![scenario];
        arguments.extend(self.peers.iter().map(|path| path.to_str().unwrap()));
        TestProcess::python("socket_table.py", &arguments)
    }
}

#[test]
fn publishers_and_subscribers_of_every_kind_mean_what_the_table_says() {
    on_each_transport(|table| {
        let python = table.run("publish_and_subscribe");
        assert_eq!(python.json(), json!({"subscription": "01"}));
        let of_b = json!([["a/b", "one"], ["a/b", ""], ["a/b", "two", "", "parts"], ["a/b", "end"]]);
        let of_all = json!([
            ["a/b", "one"],
            ["a/b", ""],
            ["a/b", "two", "", "parts"],
            ["a/c", "only for the first"],
            ["a/b", "end"]
        ]);
        assert_eq!(python.json(), json!({"sub": of_all, "xsub": of_b, "everything": of_all}));
        assert_eq!(python.json(), json!({"after_unsubscribe": [["a/b", "end"]]}));
        let denied = vec![json!(["publish", "invalid_topic", 1]); 5];
        assert_eq!(python.json(), json!({"denied": denied}));
        assert_eq!(python.json(), json!({"balances": true, "written": true}));
    });
}

#[test]
fn reserved_topics_need_a_reserved_prefix_and_what_is_refused_is_said_there() {
    on_each_transport(|table| {
        let python = table.run("reserved");
        let event = json!({"peer": "publisher", "operation": "publish", "topic": "forbidden", "code": "not_permitted", "count": 1});
        assert_eq!(python.json(), json!({"topic": "$sys/denied", "event": event}));
        let event = json!({"peer": "subscriber", "operation": "subscribe", "topic": "secret", "code": "not_permitted"});
        assert_eq!(python.json(), json!({"topic": "$sys/denied", "event": event}));
        assert_eq!(python.json(), json!({"everything": [["a/b", "end"]]}));
        let denied = json!([["forbidden", null, 1], ["secret", "subscriber", 1]]);
        assert_eq!(python.json(), json!({"ledger_denied": denied}));
    });
}

#[test]
fn requesters_get_their_envelope_back_one_final_answer_or_every_part() {
    on_each_transport(|table| {
        let path = table.broker.enrol("server", &[], &[], &["count"], &[]);
        let server = Credentials::load(&path).unwrap();
        let server = Client::connect_blocking(ConnectOptions::new(server).timeout(DEADLINE)).unwrap();
        let filter: TopicFilter = "count".parse().unwrap();
        let mut service = wait(server.serve(&filter, ServeOptions::default())).unwrap();
        let serving = std::thread::spawn(move || {
            while let Some(request) = wait(service.next()) {
                wait(async {
                    request.reply(Payload::text("1")).await.unwrap();
                    request.reply(Payload::text("2")).await.unwrap();
                    request.end(Payload::text("3")).await.unwrap();
                });
            }
        });
        let python = table.run("requesters");
        let streamed = |head: &[&str]| -> Value {
            let parts = [["more", "1"], ["more", "2"], ["final", "3"]];
            json!(parts.map(|part| [head, &part[..]].concat()))
        };
        let denied = "not_permitted: `requester` may not request `forbidden`";
        assert_eq!(python.json(), json!({"req": [["final", "3"]]}));
        assert_eq!(python.json(), json!({"dealer": streamed(&[])}));
        assert_eq!(python.json(), json!({"delimiter": streamed(&[""])}));
        assert_eq!(python.json(), json!({"envelope": streamed(&["id", "more of it", ""])}));
        assert_eq!(python.json(), json!({"topic_alone": streamed(&[])}));
        assert_eq!(python.json(), json!({"denied": [["denied", denied]]}));
        assert_eq!(python.json(), json!({"denied_dealer": [["id", "", "denied", denied]]}));
        for invalid in ["invalid", "not_text"] {
            let answer = python.json();
            assert_eq!(answer[invalid][0][0], "denied", "{answer}");
            assert!(answer[invalid][0][1].as_str().unwrap().starts_with("invalid_topic: "), "{answer}");
        }
        assert_eq!(python.json(), json!({"again": true}));
        server.close_blocking();
        serving.join().unwrap();
    });
}

#[test]
fn sockets_without_a_place_here_are_refused_by_name_on_both_sides() {
    on_each_transport(|table| {
        let python = table.run("refused");
        let outcome = json!(["HANDSHAKE_FAILED_AUTH", 400]);
        let kinds = ["REP", "ROUTER", "PUSH", "PULL", "PAIR"];
        let outcomes: serde_json::Map<String, Value> =
            kinds.iter().map(|kind| ((*kind).to_owned(), outcome.clone())).collect();
        assert_eq!(python.json(), json!({"outcomes": outcomes}));
        let counted = python.json();
        assert_eq!(counted["counted"], json!({"socket_type": 5}));
        for (kind, text) in kinds.iter().zip(counted["texts"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            assert!(text.contains(kind) && text.contains("use PUB, SUB, REQ or DEALER"), "{text}");
        }
    });
}

#[test]
fn revoking_a_key_ends_its_stock_session_and_its_way_back_is_refused() {
    on_each_transport(|table| {
        let python = table.run("revoked_while_connected");
        assert_eq!(python.json(), json!({"state": "connected"}));
        let begun = std::time::Instant::now();
        table.broker.store.revoke(&"subscriber".parse().unwrap()).unwrap();
        assert_eq!(python.json(), json!({"event": "DISCONNECTED"}));
        assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
        assert_eq!(python.json(), json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400}));
    });
}
