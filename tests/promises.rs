use std::time::Instant;

use interlock_bus::{
    Bounds, Client, Credentials, Payload, PublishError, TopicName,
    blocking::wait,
    client::{ConnectOptions, Event, PublishOptions, SubscribeOptions, Subscription},
    error::ConnectError,
    native::Record,
    zmtp::{FrameFlags, SocketType},
};
use serde_json::Value;

use crate::{
    harness::{DEADLINE, TestBroker, eventually},
    raw_peer::RawPeer,
};

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn credentials(broker: &TestBroker, name: &str, publish: &[&str], subscribe: &[&str]) -> Credentials {
    let path = broker.enrol(name, publish, subscribe, &[], &["$sys/broker/#"]);
    Credentials::load(&path).unwrap()
}

fn connect(broker: &TestBroker, name: &str, publish: &[&str], subscribe: &[&str]) -> Client {
    let options = ConnectOptions::new(credentials(broker, name, publish, subscribe)).timeout(DEADLINE);
    Client::connect_blocking(options).unwrap()
}

fn subscribe(client: &Client, filter: &str, options: SubscribeOptions) -> Subscription {
    wait(client.subscribe(&filter.parse().unwrap(), options)).unwrap()
}

fn next(subscription: &mut Subscription) -> interlock_bus::Message {
    loop {
        if let Event::Message(message) = subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
            return message;
        }
    }
}

fn publish(client: &Client, name: &str, text: &str, retain: bool) {
    let options = PublishOptions { retain, ..PublishOptions::default() };
    wait(client.publish_acknowledged(&topic(name), Payload::text(text), options)).unwrap();
}

/// Everything that a client of version 1.0 does, as the bytes it sent then. What is added to the protocol must not
/// change what these mean.
#[test]
fn a_client_of_version_1_0_is_served_as_it_was_then() {
    let broker = TestBroker::start();
    let path = broker.enrol("old", &["a/#"], &["a/#"], &["a/#"], &["#"]);
    let endpoint = &broker.handle.endpoints()[0];
    let credentials = Credentials::load(&path).unwrap();
    let mut old = RawPeer::connect(endpoint, &credentials, SocketType::Dealer, true).unwrap();
    fn exchange(old: &mut RawPeer, digits: &str) -> Record {
        let digits: String = digits.split_whitespace().collect();
        let bytes =
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
        old.send_frame(&bytes.collect::<Vec<_>>(), FrameFlags::LAST).unwrap();
        old.record().unwrap()
    }
    // hello 1.0, program `p`.
    let hello = exchange(&mut old, "18000000 01 0100 0000 01 70 00 00000000000000000000000000000000");
    assert!(matches!(&hello, Record::Hello { major: 1, peer, .. } if peer == "old"), "{hello:?}");
    // subscribe 1 to `a/#`.
    let subscribed = exchange(&mut old, "14000000 02 01000000 00 00 00000000 00000000 03 612f23 00");
    assert!(matches!(subscribed, Record::Subscribed { id: 1, .. }), "{subscribed:?}");
    // publish `hi` on `a/b`, acknowledged: origin and delivery come, too.
    let accepted =
        exchange(&mut old, "1e000000 05 02 03 0000 00000000 0100000000000000 0000000000000000 612f62 6869");
    let mut records = vec![accepted];
    while records.len() < 3 {
        records.push(old.record().unwrap());
    }
    let has = |wanted: &dyn Fn(&Record) -> bool| records.iter().any(wanted);
    assert!(has(&|record| matches!(
        record,
        Record::Accepted { sequence: 1, subscribers: 1, dropped: 0, .. }
    )));
    assert!(has(&|record| matches!(record, Record::Origin { peer, .. } if peer == "old")));
    assert!(has(
        &|record| matches!(record, Record::Deliver { block, .. } if block.payload()[..] == b"hi"[..])
    ));
    // credit of one message; then a ping, as a barrier; both in one batch.
    let pong = exchange(
        &mut old,
        "12000000 0b 00 0100000000000000 0100000000000000  0a000000 0c 0700000000000000 00",
    );
    assert!(matches!(pong, Record::Ping { number: 7, answer: true }), "{pong:?}");
    // publish where it may not, asks where nobody serves, registers a schema, unsubscribes, cancels what is not.
    let denied =
        exchange(&mut old, "1b000000 05 00 01 0000 00000000 0200000000000000 0000000000000000 78 79");
    assert!(
        matches!(&denied, Record::Denied { reference: 2, code, .. } if code == "not_permitted"),
        "{denied:?}"
    );
    let ended = exchange(
        &mut old,
        "2b000000 07 0100000000000000 00000000 40000000 00 01 0000 00000000 0000000000000000 0000000000000000 71 3f",
    );
    assert!(matches!(ended, Record::ReplyEnd { id: 1, .. }), "{ended:?}");
    let pong = exchange(
        &mut old,
        "15000000 0f 1100000000000000 01 54 06 6669656c6473 7b7d 7d  05000000 04 01000000  \
         09000000 0a 0100000000000000  0a000000 0c 0800000000000000 00",
    );
    assert!(matches!(pong, Record::Ping { number: 8, answer: true }), "{pong:?}");
    // goodbye `closing`.
    let goodbye = exchange(&mut old, "0b000000 10 07 636c6f73696e67 0000");
    assert!(matches!(&goodbye, Record::Goodbye { code, .. } if code == "closing"), "{goodbye:?}");
}

#[test]
fn another_major_version_gets_a_goodbye_that_says_so_and_unknown_records_are_skipped() {
    let broker = TestBroker::start();
    let member = credentials(&broker, "member", &["a"], &[]);
    let endpoint = &broker.handle.endpoints()[0];
    let mut future = RawPeer::connect(endpoint, &member, SocketType::Dealer, true).unwrap();
    let (program, peer) = ("future".to_owned(), String::new());
    future.send_record(&Record::Hello { major: 2, minor: 0, program, peer, epoch: [0; 16] }).unwrap();
    let goodbye = future.record().unwrap();
    assert!(matches!(&goodbye, Record::Goodbye { code, .. } if code == "version"), "{goodbye:?}");

    // A later minor version: records of unknown kinds, and more behind the fields that are known.
    let mut later = RawPeer::native(endpoint, &member);
    let ping = [12, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xbb];
    let batch = [&[3, 0, 0, 0, 200, 1, 2][..], &[ping.len() as u8, 0, 0, 0], &ping].concat();
    later.send_frame(&batch, FrameFlags::LAST).unwrap();
    let pong = later.record().unwrap();
    assert!(matches!(pong, Record::Ping { number: 9, answer: true }), "{pong:?}");
}

#[test]
fn of_a_batch_nothing_counts_after_a_goodbye_or_before_a_hello_that_fits() {
    let broker = TestBroker::start();
    let observer = connect(&broker, "observer", &[], &["a"]);
    let mut heard = subscribe(&observer, "a", SubscribeOptions::default());
    let marker = connect(&broker, "marker", &["a"], &[]);
    let member = credentials(&broker, "member", &["a"], &[]);
    let endpoint = &broker.handle.endpoints()[0];
    let hello = |major| {
        let (program, peer) = ("raw".to_owned(), String::new());
        Record::Hello { major, minor: 0, program, peer, epoch: [0; 16] }
    };
    let block = || interlock_bus::native::Block::new(&topic("a"), b"", b"must not be heard");
    let goodbye = || Record::Goodbye { code: "closing".to_owned(), text: String::new() };
    let will = || Record::Will { block: Some(block()) };
    let publish_it = || Record::Publish(block());
    for (records, code) in [
        (vec![publish_it(), hello(1), publish_it()], "protocol"),
        (vec![hello(2), publish_it(), hello(1), publish_it()], "version"),
        (vec![hello(1), goodbye(), publish_it(), will(), hello(1), publish_it(), will()], "closing"),
    ] {
        let mut raw = RawPeer::connect(endpoint, &member, SocketType::Dealer, true).unwrap();
        let mut batch = Vec::new();
        for record in &records {
            interlock_bus::native::BatchWriter::default().put(record, &mut batch);
        }
        raw.send_frame(&batch, FrameFlags::LAST).unwrap();
        let last = raw.record_where(|record| matches!(record, Record::Goodbye { .. })).unwrap();
        assert!(matches!(&last, Record::Goodbye { code: said, .. } if said == code), "{last:?}");
        publish(&marker, "a", code, false);
        assert_eq!(next(&mut heard).text().unwrap(), code);
    }
}

#[test]
fn what_an_incarnation_had_sent_is_taken_although_its_key_is_void() {
    const MESSAGES: usize = 200;
    let broker = TestBroker::start();
    let watcher = connect(&broker, "watcher", &[], &["a"]);
    let mut heard = subscribe(&watcher, "a", SubscribeOptions::default());
    broker.enrol("worker", &["a"], &[], &[], &[]);
    let payload = vec![1; 16 << 10];
    for _ in 0..3 {
        for endpoint in broker.handle.endpoints() {
            let incarnation = broker.handle.issue_incarnation(&"worker".parse().unwrap());
            let mut worker = RawPeer::native(endpoint, &incarnation);
            let mut batch = Vec::new();
            let block = interlock_bus::native::Block::new(&topic("a"), b"", &payload);
            interlock_bus::native::BatchWriter::default().put(&Record::Publish(block), &mut batch);
            (0..MESSAGES).for_each(|_| worker.engine.send(&[&batch], FrameFlags::LAST).unwrap());
            // All at once, so that the kernel still has some of it when the key ends.
            worker.flush().unwrap();
            drop(worker);
            broker.handle.end_incarnation(&incarnation.keys.public);
            (0..MESSAGES).for_each(|_| assert_eq!(next(&mut heard).payload.len(), payload.len()));
        }
    }
}

#[test]
fn nobody_speaks_in_the_name_or_with_the_number_of_another() {
    let broker = TestBroker::start();
    let watcher = connect(&broker, "watcher", &[], &["a"]);
    let mut heard = subscribe(&watcher, "a", SubscribeOptions::default());
    let other = connect(&broker, "other", &["a"], &[]);
    publish(&other, "a", "known now", false);
    let first = next(&mut heard);
    assert_eq!(first.origin.as_str(), "other");
    let member = credentials(&broker, "member", &["a"], &[]);
    let mut forger = RawPeer::native(&broker.handle.endpoints()[0], &member);
    // Plain, and with what makes it go another way through the broker.
    for (flags, deadline_ms) in [(0, 0), (0xf8, 0), (0, u64::MAX)] {
        for origin in 0..8 {
            let mut block = interlock_bus::native::Block::new(&topic("a"), b"", b"forged");
            (block.flags, block.origin) = (flags, origin);
            (block.sequence, block.deadline_ms) = (u64::MAX, deadline_ms);
            forger.send_record(&Record::Publish(block)).unwrap();
        }
    }
    let mut last = first.sequence;
    for _ in 0..24 {
        let message = next(&mut heard);
        assert_eq!((message.origin.as_str(), message.text().unwrap()), ("member", "forged"));
        assert!(message.sequence > last && !message.retained, "{message:?}");
        last = message.sequence;
    }
}

#[test]
fn whoever_subscribes_later_learns_who_is_there_and_who_is_not() {
    let broker = TestBroker::start();
    let here = connect(&broker, "here", &["a"], &[]);
    connect(&broker, "gone", &["a"], &[]).close_blocking();
    let observer = connect(&broker, "observer", &[], &["$peers/#"]);
    let client = observer.clone();
    let present = || {
        let mut presence = subscribe(&client, "$peers/#", SubscribeOptions::default().retained());
        // Its own retained values are in the queue before anything that happens later.
        let mut names = Vec::new();
        while let Ok(Event::Message(message)) = presence.next_blocking(Instant::now()) {
            assert!(message.retained);
            names.push(message.decode::<Value>().unwrap()["peer"].as_str().unwrap().to_owned());
        }
        names
    };
    eventually("both to be present, and no other", || {
        let names = present();
        (names.contains(&"here".to_owned()) && names.contains(&"observer".to_owned()) && names.len() == 2)
            .then_some(())
    });
    here.close_blocking();
    eventually("the one that left to be absent", || (present() == ["observer"]).then_some(()));
}

#[test]
fn each_message_goes_to_one_member_of_a_group_and_to_everybody_else() {
    let broker = TestBroker::start();
    let publisher = connect(&broker, "publisher", &["work"], &[]);
    let member = |name: &str, group: Option<&str>| {
        let client = connect(&broker, name, &[], &["work"]);
        let options = SubscribeOptions { group: group.map(str::to_owned), ..SubscribeOptions::default() };
        subscribe(&client, "work", options)
    };
    let (mut one, mut two) = (member("one", Some("workers")), member("two", Some("workers")));
    let mut all = member("all", None);
    for number in 0..100 {
        publish(&publisher, "work", &number.to_string(), false);
    }
    for number in 0..100 {
        assert_eq!(next(&mut all).text().unwrap(), number.to_string());
    }
    let take = |subscription: &mut Subscription| {
        let mut taken: Vec<u32> = Vec::new();
        while let Ok(Event::Message(message)) = subscription.next_blocking(Instant::now()) {
            taken.push(message.text().unwrap().parse().unwrap());
        }
        taken
    };
    let mut shares: [Vec<u32>; 2] = Default::default();
    eventually("the group to have every message", || {
        shares[0].extend(take(&mut one));
        shares[1].extend(take(&mut two));
        (shares[0].len() + shares[1].len() == 100).then_some(())
    });
    assert!(shares.iter().all(|share| share.len() >= 25 && share.is_sorted()), "{shares:?}");
    let mut both = shares.concat();
    both.sort_unstable();
    assert_eq!(both, (0..100).collect::<Vec<_>>());
}

#[test]
fn the_last_value_is_replaced_taken_away_by_an_empty_one_and_never_a_stale_one() {
    let bounds = Bounds { retained_bytes_max: 4096, ..Bounds::default() };
    let broker = TestBroker::start_with(|config| config.bounds = bounds);
    let client = connect(&broker, "client", &["last/#"], &["last/#", "$sys/#"]);
    let mut events = subscribe(&client, "$sys/retained_full", SubscribeOptions::default());
    let last = || -> Vec<String> {
        let mut values = subscribe(&client, "last/#", SubscribeOptions::default().retained());
        publish(&client, "last/end", "end", false);
        std::iter::from_fn(|| Some(next(&mut values)).filter(|message| message.retained))
            .map(|message| message.text().unwrap().to_owned())
            .collect()
    };
    publish(&client, "last/a", "one", true);
    publish(&client, "last/b", "other", true);
    publish(&client, "last/a", "two", true);
    publish(&client, "last/a", "not kept", false);
    assert_eq!(last(), ["other", "two"]);
    publish(&client, "last/b", "", true);
    assert_eq!(last(), ["two"]);
    let options = PublishOptions { retain: true, ..PublishOptions::default() };
    let large = Payload::text("x".repeat(8192));
    let ack = wait(client.publish_acknowledged(&topic("last/a"), large, options)).unwrap();
    assert!(ack.not_retained, "the publisher itself is told");
    assert!(last().is_empty(), "what has no room must not leave the value before it");
    let event: Value = next(&mut events).decode().unwrap();
    assert_eq!((&event["topic"], &event["publisher"]), (&"last/a".into(), &"client".into()));
}

#[test]
fn a_queue_is_never_larger_than_the_broker_allows_and_every_loss_is_told_and_counted() {
    let bounds = Bounds { send_queue_messages: 10, ..Bounds::default() };
    let broker = TestBroker::start_with(|config| config.bounds = bounds);
    let publisher = connect(&broker, "publisher", &["flood"], &["$sys/#"]);
    let mut events = subscribe(&publisher, "$sys/dropped", SubscribeOptions::default());
    let endpoint = &broker.handle.endpoints()[0];
    let mut stopped = RawPeer::native(endpoint, &credentials(&broker, "stopped", &[], &["flood"]));
    let spec = interlock_bus::native::SubscribeSpec {
        id: 1,
        serve: false,
        retained: false,
        probes: false,
        overflow: interlock_bus::native::Overflow::DropNewest,
        queue_messages_max: u32::MAX,
        queue_bytes_max: u32::MAX,
        filter: "flood".to_owned(),
        group: String::new(),
    };
    stopped.send_record(&Record::Subscribe(spec)).unwrap();
    stopped.record_where(|record| matches!(record, Record::Subscribed { .. })).unwrap();
    // Beyond the credit of 4 MiB messages wait in the queue.
    let payload = "x".repeat(256 << 10);
    let mut dropped = 0;
    for _ in 0..60 {
        let options = PublishOptions::default();
        let ack =
            wait(publisher.publish_acknowledged(&topic("flood"), Payload::text(payload.clone()), options));
        dropped += u64::from(ack.unwrap().dropped);
    }
    assert!(dropped >= 60 - 10 - 17, "{dropped}");
    let mut told = 0;
    while told < dropped {
        let event: Value = next(&mut events).decode().unwrap();
        assert_eq!(
            (&event["publisher"], &event["topic"], &event["subscriber"], &event["reason"]),
            (&"publisher".into(), &"flood".into(), &"stopped".into(), &"slow_consumer".into()),
        );
        told += event["count"].as_u64().unwrap();
    }
    assert_eq!(told, dropped);
    // What waits for somebody who is lost is lost with him, and that is told, too.
    drop(stopped);
    let event: Value = next(&mut events).decode().unwrap();
    assert_eq!((&event["reason"], event["count"].as_u64().unwrap()), (&"disconnected".into(), 60 - dropped));
}

#[test]
fn a_will_that_may_not_be_left_ends_connecting_with_its_reason() {
    let broker = TestBroker::start();
    let member = credentials(&broker, "member", &["mine"], &[]);
    let options = |name: &str| {
        ConnectOptions::new(member.clone()).timeout(DEADLINE).will(topic(name), Payload::text("gone"), false)
    };
    assert!(Client::connect_blocking(options("mine")).is_ok());
    let refused = Client::connect_blocking(options("other"));
    assert!(
        matches!(&refused, Err(ConnectError::Will { source, .. }) if matches!(**source, PublishError::Denied { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_message_that_waited_beyond_its_deadline_is_not_delivered_and_counted_as_expired() {
    let broker = TestBroker::start();
    let publisher = connect(&broker, "publisher", &["late"], &["$sys/#"]);
    let mut events = subscribe(&publisher, "$sys/dropped", SubscribeOptions::default());
    let endpoint = &broker.handle.endpoints()[0];
    let mut slow = RawPeer::native(endpoint, &credentials(&broker, "slow", &[], &["late"]));
    let spec = interlock_bus::native::SubscribeSpec {
        id: 1,
        serve: false,
        retained: false,
        probes: false,
        overflow: interlock_bus::native::Overflow::DropNewest,
        queue_messages_max: 0,
        queue_bytes_max: 0,
        filter: "late".to_owned(),
        group: String::new(),
    };
    slow.send_record(&Record::Subscribe(spec)).unwrap();
    slow.record_where(|record| matches!(record, Record::Subscribed { .. })).unwrap();
    // One message takes the whole credit; those behind it wait, and one of them not for long.
    let large = Payload::bytes(vec![0; interlock_bus::limits::CREDIT_WINDOW_BYTES as usize]);
    wait(publisher.publish_acknowledged(&topic("late"), large, PublishOptions::default())).unwrap();
    // Not too brief to come in time from a thread that had to wait for a busy machine.
    let brief = std::time::Duration::from_millis(500);
    let options = PublishOptions { expires_after: Some(brief), ..PublishOptions::default() };
    wait(publisher.publish_acknowledged(&topic("late"), Payload::text("brief"), options)).unwrap();
    let expired_at = Instant::now() + brief;
    publish(&publisher, "late", "patient", false);
    let first = slow.record_where(|record| {
        matches!(record, Record::Fragment { last: true, .. } | Record::Deliver { .. })
    });
    first.unwrap();
    // The broker's clock has whole milliseconds.
    eventually("the deadline", || (Instant::now() > expired_at + brief).then_some(()));
    let scope = interlock_bus::native::CreditScope::Subscription { id: 1, messages: 1 };
    slow.send_record(&Record::Credit { scope }).unwrap();
    let Record::Deliver { block, .. } =
        slow.record_where(|record| matches!(record, Record::Deliver { .. })).unwrap()
    else {
        unreachable!("it was just asked for")
    };
    assert_eq!(block.payload()[..], b"patient"[..]);
    let event: Value = next(&mut events).decode().unwrap();
    assert_eq!(
        (&event["reason"], &event["subscriber"], &event["count"]),
        (&"expired".into(), &"slow".into(), &1.into())
    );
}

#[test]
fn nobody_changes_how_the_messages_of_another_are_shown() {
    let broker = TestBroker::start();
    let owner = connect(&broker, "owner", &["a"], &[]);
    let other = credentials(&broker, "other", &["a"], &[]);
    let mut other = RawPeer::native(&broker.handle.endpoints()[0], &other);
    let schema = interlock_bus::Schema::parse("Delta", r#"{"struct":[["text","string"]]}"#).unwrap();
    let fingerprint = schema.fingerprint();
    let known = || {
        let answer =
            wait(owner.request(&topic("$sys/broker/schemas"), Payload::default(), DEADLINE)).unwrap();
        let rows: Vec<Value> = answer.decode().unwrap();
        rows.iter().find(|row| row["fingerprint"] == fingerprint).map(|row| row["body"].clone())
    };
    let mut register = |body: &'static str| {
        let (name, format) = ("Delta".to_owned(), "fields".to_owned());
        other.send_record(&Record::Schema { fingerprint, name, format, body: body.into() }).unwrap();
        other.send_record(&Record::Ping { number: 1, answer: false }).unwrap();
        let answer = other.record().unwrap();
        let is_denied = matches!(&answer, Record::Denied { code, .. } if code == "schema_taken");
        if is_denied {
            other.record().unwrap();
        }
        is_denied
    };
    // Whoever was there first with what does not fit gives way to what does, and not the other way round.
    assert!(!register(r#"{"struct":[["lie","u8"]]}"#));
    owner.register_schema(&schema);
    eventually("the schema that fits", || {
        (known()? == serde_json::json!({ "struct": [["text", "string"]] })).then_some(())
    });
    assert!(register(r#"{"struct":[["lie","u8"]]}"#));
    assert_eq!(known().unwrap(), serde_json::json!({ "struct": [["text", "string"]] }));
}
