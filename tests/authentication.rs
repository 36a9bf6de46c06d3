use std::{
    io::Write,
    time::{Duration, Instant},
};

use interlock_bus::{
    Broker, BrokerConfig, Client, ConnectOptions, Credentials, Endpoint, Event, KeyStore, Permissions,
    SubscribeOptions, blocking::wait, crypto::KeyPair,
};
use serde_json::json;

use crate::{
    harness::{DEADLINE, TestBroker, TestProcess, eventually},
    raw_peer::RawStream,
};

#[test]
fn a_stock_client_learns_of_a_wrong_server_key_and_of_an_unknown_a_revoked_and_a_rightless_one() {
    let broker = TestBroker::start();
    let stranger = TestBroker::start();
    let observer = broker.enrol("observer", &[], &[], &[], &["$sys/broker/#"]);
    let member = broker.enrol("member", &["a"], &[], &[], &[]);
    let foreign = stranger.enrol("foreign", &["a"], &[], &[], &[]);
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| TestProcess::python("stock.py", arguments).json();

    // A key of another installation's broker.
    let wrong_key = stranger.handle.public_key().to_string();
    assert_eq!(
        run(&["refused", &path(&member), "PUB", &wrong_key]),
        json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 500}),
    );
    // A key this broker has never seen.
    let foreign_file = std::fs::read_to_string(&foreign).unwrap();
    let relocated = foreign_file
        .replace(&stranger.handle.endpoints()[0].to_string(), &broker.handle.endpoints()[0].to_string());
    let unknown = stranger.directory.path().join("unknown.toml");
    std::fs::write(&unknown, relocated).unwrap();
    assert_eq!(
        run(&["refused", &path(&unknown), "DEALER", &broker.handle.public_key().to_string()]),
        json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400}),
    );
    // A revoked one: the edit applies to the running broker.
    broker.store.revoke(&"member".parse().unwrap()).unwrap();
    eventually("the revocation", || {
        let outcome = run(&["refused", &path(&member), "SUB"]);
        (outcome == json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400})).then_some(())
    });
    // One without any right.
    let rightless = broker.enrol("rightless", &[], &[], &[], &[]);
    assert_eq!(
        run(&["refused", &path(&rightless), "PUB"]),
        json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 400}),
    );
    // No CURVE at all.
    assert_ne!(run(&["plaintext", &path(&member)])["event"], "HANDSHAKE_SUCCEEDED");

    let answer = run(&["req", &path(&observer), "$sys/broker/refusals", ""]);
    let refusals: serde_json::Value = serde_json::from_str(answer["frames"][1].as_str().unwrap()).unwrap();
    for code in ["wrong_server_key", "unknown_key", "revoked_key", "no_rights", "not_curve"] {
        assert!(refusals["counts"][code].as_u64() >= Some(1), "{code} is not counted: {refusals}");
    }
}

#[test]
fn each_refusal_is_an_event_of_its_own_name_within_a_second() {
    let broker = TestBroker::start();
    let stranger = TestBroker::start();
    let observer = broker.enrol("observer", &[], &["$sys/auth/refused"], &[], &[]);
    let observer =
        Client::connect_blocking(ConnectOptions::new(Credentials::load(&observer).unwrap())).unwrap();
    let filter = "$sys/auth/refused".parse().unwrap();
    let mut events = wait(observer.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let endpoint = &broker.handle.endpoints()[0];
    // One endpoint: each that is tried is a refusal of its own.
    let load = |name: &str, rights: &[&str]| {
        let credentials = Credentials::load(&broker.enrol(name, rights, &[], &[], &[])).unwrap();
        Credentials { endpoints: vec![endpoint.clone()], ..credentials }
    };
    let (member, revoked, rightless) =
        (load("member", &["a"]), load("revoked", &["a"]), load("rightless", &[]));
    broker.store.revoke(&revoked.name).unwrap();
    let unknown = Credentials { keys: KeyPair::generate(), ..member.clone() };
    let elsewhere = Credentials { broker: stranger.handle.public_key(), ..member };
    // Held until the broker has said no: an end of the stream would be a reason of its own.
    let bare = |greeting: Vec<u8>| {
        move || {
            let mut stream = RawStream::connect(endpoint);
            stream.write_all(&greeting).unwrap();
            assert!(stream.reads_to_the_end());
        }
    };
    let null = [&b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL"[..], &[0; 48]].concat();
    let knock = |credentials: Credentials| {
        move || assert!(Client::connect_blocking(ConnectOptions::new(credentials.clone())).is_err())
    };
    type Attempt<'a> = Box<dyn Fn() + 'a>;
    let ways: [(&str, Option<&str>, Attempt<'_>); 6] = [
        ("wrong_server_key", None, Box::new(knock(elsewhere))),
        ("unknown_key", None, Box::new(knock(unknown))),
        ("revoked_key", Some("revoked"), Box::new(knock(revoked))),
        ("no_rights", Some("rightless"), Box::new(knock(rightless))),
        ("not_curve", None, Box::new(bare(null))),
        ("not_zmtp", None, Box::new(bare(b"GET / HTTP/1.1\r\n\r\n".to_vec()))),
    ];
    let mut waited = Vec::new();
    for (code, peer, attempt) in ways {
        let begun = Instant::now();
        attempt();
        let event = match events.next_blocking(begun + DEADLINE).unwrap() {
            Event::Message(message) => message.decode::<serde_json::Value>().unwrap(),
            gap => panic!("{gap:?}"),
        };
        waited.push(begun.elapsed());
        assert_eq!((&event["code"], &event["peer"]), (&code.into(), &peer.into()), "{event}");
    }
    waited.sort();
    // One of them may have met a machine that was busy elsewhere.
    assert!(waited[4] < Duration::from_secs(1), "{waited:?}");
}

#[test]
fn a_registry_that_cannot_be_read_stops_a_broker_that_starts() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
    store.issue(&"member".parse().unwrap(), &permissions, &[], None).unwrap();
    let good = std::fs::read_to_string(store.registry_path()).unwrap();
    let endpoints = || vec![Endpoint::Ipc(directory.path().join("bus.sock"))];
    for broken in [good.replacen("public_key", "publik_key", 1), good[..good.len() - 20].to_owned()] {
        std::fs::write(store.registry_path(), broken).unwrap();
        let error = BrokerConfig::from_key_store(&store, endpoints()).unwrap_err().to_string();
        assert!(error.contains("authorized.toml"), "{error}");
    }
    std::fs::write(store.registry_path(), good).unwrap();
    let broker = Broker::start(BrokerConfig::from_key_store(&store, endpoints()).unwrap()).unwrap();
    broker.stop(Duration::ZERO);
}
