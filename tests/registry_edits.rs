use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Event, Payload, SubscribeOptions, blocking::wait, native::Record,
};
use serde_json::Value;

use crate::{
    harness::{DEADLINE, TestBroker, TestProcess, eventually},
    raw_peer::RawPeer,
};

fn connect(path: &Path) -> Client {
    let options = ConnectOptions::new(Credentials::load(path).unwrap()).timeout(DEADLINE);
    Client::connect_blocking(options).unwrap()
}

fn info(client: &Client) -> Value {
    let topic = "$sys/broker/info".parse().unwrap();
    let reply = wait(client.request(&topic, Payload::default(), DEADLINE)).unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

#[test]
fn a_revocation_ends_its_sessions_within_100_ms_and_another_stream_has_no_gap() {
    let broker = TestBroker::start();
    let endpoint = &broker.handle.endpoints()[0];
    let publisher = connect(&broker.enrol("publisher", &["stream"], &[], &[], &[]));
    let subscriber = connect(&broker.enrol("subscriber", &[], &["stream"], &[], &[]));
    let (topic, filter) = ("stream".parse().unwrap(), "stream".parse().unwrap());
    let mut stream = wait(subscriber.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let stopped = AtomicBool::new(false);
    let mut waited = Vec::new();
    let published = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut number = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                wait(publisher.publish_acknowledged(
                    &topic,
                    Payload::bytes(number.to_le_bytes().to_vec()),
                    Default::default(),
                ))
                .unwrap();
                number += 1;
            }
            number
        });
        for round in 0..5 {
            let name = format!("victim-{round}");
            let path = broker.enrol(&name, &["a"], &["a"], &[], &[]);
            let mut victim = RawPeer::native(endpoint, &Credentials::load(&path).unwrap());
            broker.store.revoke(&name.parse().unwrap()).unwrap();
            // From here on the edit is in the file.
            let edited = Instant::now();
            let goodbye = victim.record_where(|record| matches!(record, Record::Goodbye { .. })).unwrap();
            waited.push(edited.elapsed());
            assert!(matches!(goodbye, Record::Goodbye { code, .. } if code == "revoked"));
        }
        stopped.store(true, Ordering::Relaxed);
        publishing.join().unwrap()
    });
    waited.sort();
    // One of five may have met a machine that was busy elsewhere.
    assert!(waited[3] < Duration::from_millis(100), "{waited:?}");
    for number in 0..published {
        match wait(stream.next()) {
            Some(Event::Message(message)) => assert_eq!(message.payload[..], number.to_le_bytes()),
            other => panic!("{other:?} instead of message {number}"),
        }
    }
}

#[test]
fn a_revoked_stock_subscriber_is_cut_off_at_once() {
    let broker = TestBroker::start();
    let publisher = connect(&broker.enrol("publisher", &["a"], &[], &[], &["$sys/broker/#"]));
    let path = broker.enrol("stock", &[], &["a"], &[], &[]);
    let _stock = TestProcess::python("stock.py", &["sub", path.to_str().unwrap(), "a"]);
    let topic = "$sys/broker/peers".parse().unwrap();
    let sessions = || {
        let reply = wait(publisher.request(&topic, Payload::default(), DEADLINE)).unwrap();
        let rows: Value = serde_json::from_slice(&reply.payload).unwrap();
        rows.as_array().unwrap().iter().filter(|row| row["peer"] == "stock").count()
    };
    eventually("the stock session", || (sessions() == 1).then_some(()));
    broker.store.revoke(&"stock".parse().unwrap()).unwrap();
    let edited = Instant::now();
    eventually("the end of the stock session", || (sessions() == 0).then_some(()));
    assert!(edited.elapsed() < Duration::from_secs(1), "{:?}", edited.elapsed());
}

#[test]
fn a_mistake_in_the_registry_changes_nothing_is_visible_and_goes_when_it_is_mended() {
    let broker = TestBroker::start();
    let observer = connect(&broker.enrol("observer", &[], &["$sys/#"], &[], &["$sys/broker/#"]));
    let member = connect(&broker.enrol("member", &["a"], &[], &[], &[]));
    let filter = "$sys/auth/registry".parse().unwrap();
    let mut events = wait(observer.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let path = broker.store.registry_path();
    let good = std::fs::read_to_string(&path).unwrap();
    let next_error = |events: &mut interlock_bus::Subscription| loop {
        match wait(events.next()) {
            Some(Event::Message(message)) => return message.decode::<Value>().unwrap()["error"].clone(),
            Some(_) => {}
            None => panic!("the events have ended"),
        }
    };
    // The tail is lost, as when a disk is full: the half that can be read must not be taken either.
    let half = good[..good.len() - 20].to_owned();
    // Nothing at all would cut everybody, the observer too.
    for broken in [good.replacen("public_key", "publik_key", 1), half, String::new()] {
        std::fs::write(&path, &broken).unwrap();
        let error = eventually("the refusal of the edit", || {
            let error = next_error(&mut events);
            error.as_str().map(str::to_owned)
        });
        assert!(error.contains("authorized.toml"), "{error}");
        assert!(info(&observer)["registry_problem"]["error"].as_str().unwrap().contains("authorized.toml"));
        let topic = "a".parse().unwrap();
        wait(member.publish_acknowledged(&topic, Payload::default(), Default::default())).unwrap();
    }
    std::fs::write(&path, &good).unwrap();
    eventually("the good registry to be in force", || {
        info(&observer)["registry_problem"].is_null().then_some(())
    });
}

#[test]
fn a_right_that_is_taken_away_ends_what_it_allowed_and_one_that_is_given_begins_at_once() {
    let broker = TestBroker::start();
    let path = broker.enrol("member", &["a"], &[], &[], &[]);
    let mut member = RawPeer::native(&broker.handle.endpoints()[0], &Credentials::load(&path).unwrap());
    let mut publish = |topic: &str| {
        let mut block = interlock_bus::native::Block::new(&topic.parse().unwrap(), b"", b"x");
        block.flags = interlock_bus::native::Block::ACKNOWLEDGE;
        member.send_record(&Record::Publish(block)).unwrap();
        let answer = member
            .record_where(|record| matches!(record, Record::Accepted { .. } | Record::Denied { .. }))
            .unwrap();
        matches!(answer, Record::Accepted { .. })
    };
    assert!(publish("a") && !publish("b"));
    let rights = interlock_bus::Permissions::from_lists(&["b"], &[], &[], &[]).unwrap();
    broker.store.set_permissions(&"member".parse().unwrap(), &rights).unwrap();
    eventually("the new right", || publish("b").then_some(()));
    assert!(!publish("a"), "both halves of an edit are in force, or neither is");
}
