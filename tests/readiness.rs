//! Waiting for subscribers, probes and gated publishers, over sockets and inside the broker's process.

use std::time::{Duration, Instant};

use interlock_bus::{
    Client, ConnectOptions, Credentials, GateOptions, Payload, PeerName, SubscribeOptions, Subscription,
    TopicFilter, TopicName, WaitError,
    blocking::{wait, wait_until},
    client::{
        Event,
        readiness::{Continuity, GateError, GateOverflow, GateReport, GateState, NeedState, Proof, Verdict},
    },
};

use crate::harness::{DEADLINE, TestBroker, TestProcess, eventually};

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn filter(text: &str) -> TopicFilter {
    text.parse().unwrap()
}

fn name(text: &str) -> PeerName {
    text.parse().unwrap()
}

/// A client of a peer that may publish and receive `a/#` and nothing of the bus's own.
fn peer(broker: &TestBroker, name: &str) -> Client {
    let path = broker.enrol(name, &["a/#"], &["a/#"], &[], &[]);
    let options = ConnectOptions::new(Credentials::load(&path).unwrap()).timeout(DEADLINE);
    Client::connect_blocking(options).unwrap()
}

fn subscribe(client: &Client, text: &str) -> Subscription {
    wait(client.subscribe(&filter(text), SubscribeOptions::default())).unwrap()
}

/// Takes messages until `count` are fresh, and gives their texts.
fn take(subscription: &mut Subscription, continuity: &mut Continuity, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        match subscription.next_blocking(Instant::now() + DEADLINE) {
            Ok(Event::Message(message)) => {
                if let Verdict::Fresh { missing } = continuity.judge(&message) {
                    assert_eq!(missing, 0);
                    texts.push(message.text().unwrap().to_owned());
                }
            }
            Ok(Event::Gap { .. }) => {}
            Err(error) => panic!("{error} after {} of {count}", texts.len()),
        }
    }
    texts
}

fn reach(
    publisher: &interlock_bus::GatedPublisher,
    what: &str,
    wanted: impl Fn(&GateReport) -> bool,
) -> GateReport {
    let mut reports = publisher.watch();
    let reached = wait_until(reports.wait_for(|report| wanted(report)), Instant::now() + DEADLINE);
    match reached {
        Some(report) => report.unwrap().clone(),
        None => panic!("{what} was not reached: {:?}", publisher.report()),
    }
}

#[test]
fn waiting_for_subscribers_ends_when_they_are_there_or_names_who_is() {
    let broker = TestBroker::start();
    let (publisher, one, other) = (peer(&broker, "publisher"), peer(&broker, "one"), peer(&broker, "other"));
    let waiting = {
        let publisher = publisher.clone();
        std::thread::spawn(move || wait(publisher.wait_for_subscribers(&topic("a/b"), 2, DEADLINE)))
    };
    let mut first = subscribe(&one, "a/#");
    let short = Duration::from_millis(50);
    let missing = wait(publisher.wait_for_subscribers(&topic("a/b"), 3, short));
    match missing {
        Err(WaitError::TimedOut { wanted: 3, present, .. }) => {
            assert!(present.contains(&name("one")), "{present:?}")
        }
        other => panic!("{other:?}"),
    }
    let _elsewhere = subscribe(&other, "a/c");
    let mut second = subscribe(&other, "a/+");
    let mut present = waiting.join().unwrap().unwrap();
    present.sort();
    assert_eq!(present, [name("one"), name("other")]);
    publisher.publish(&topic("a/b"), Payload::text("x")).unwrap();
    for subscription in [&mut first, &mut second] {
        assert!(matches!(subscription.next_blocking(Instant::now() + DEADLINE), Ok(Event::Message(_))));
    }
    let denied = wait(one.wait_for_subscribers(&topic("b"), 1, DEADLINE));
    assert!(matches!(denied, Err(WaitError::Denied { .. })), "{denied:?}");
}

#[test]
fn a_probe_comes_back_when_the_application_has_taken_everything_before_it() {
    let broker = TestBroker::start();
    let (publisher, consumer) = (peer(&broker, "publisher"), peer(&broker, "consumer"));
    let absent = wait(publisher.probe(&topic("a/b"), &name("consumer"), DEADLINE));
    assert!(matches!(absent, Err(WaitError::Absent { .. })), "{absent:?}");
    let mut subscription = subscribe(&consumer, "a/#");
    for text in ["1", "2"] {
        publisher.publish(&topic("a/b"), Payload::text(text)).unwrap();
    }
    let stuck = wait(publisher.probe(&topic("a/b"), &name("consumer"), Duration::from_millis(50)));
    assert!(matches!(stuck, Err(WaitError::Unproven { .. })), "{stuck:?}");
    let probing = {
        let publisher = publisher.clone();
        std::thread::spawn(move || wait(publisher.probe(&topic("a/b"), &name("consumer"), DEADLINE)))
    };
    for text in ["1", "2"] {
        assert!(!probing.is_finished(), "the probe came back before `{text}` was taken");
        match subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
            Event::Message(message) => assert_eq!(message.text(), Some(text)),
            gap => panic!("{gap:?}"),
        }
    }
    // Coming back for more is what answers; nobody sees the probe itself.
    let consuming = std::thread::spawn(move || subscription.next_blocking(Instant::now() + DEADLINE));
    assert_eq!(probing.join().unwrap(), Ok(Proof::Proven));
    publisher.publish(&topic("a/b"), Payload::text("3")).unwrap();
    assert!(matches!(consuming.join().unwrap(), Ok(Event::Message(message)) if message.text() == Some("3")));
}

#[test]
fn a_gate_holds_until_its_consumer_is_proven_flushes_in_order_and_says_so() {
    let broker = TestBroker::start();
    let (publisher, consumer) = (peer(&broker, "publisher"), peer(&broker, "consumer"));
    let gate = publisher
        .gated_publisher(&topic("a/b"), GateOptions::default().needs(name("consumer")).buffer(3, 1 << 20))
        .unwrap();
    for number in 0..3 {
        gate.publish(Payload::text(number.to_string())).unwrap();
    }
    match gate.publish(Payload::text("too many")) {
        Err(GateError::Full { payload, messages: 3, .. }) => assert_eq!(payload, Payload::text("too many")),
        other => panic!("{other:?}"),
    }
    let held = reach(&gate, "waiting", |report| report.state == GateState::Waiting && report.refused == 1);
    assert_eq!((held.needs[0].state, held.buffered, held.flushed), (NeedState::Connected, 3, 0));
    let mut subscription = subscribe(&consumer, "a/#");
    // Subscribed is not proven: the application has not come yet.
    let probing = reach(&gate, "probing", |report| report.state == GateState::Probing);
    assert_eq!(probing.needs[0].state, NeedState::Subscribed);
    let mut continuity = Continuity::default();
    assert_eq!(take(&mut subscription, &mut continuity, 3), ["0", "1", "2"]);
    let consuming = std::thread::spawn(move || take(&mut subscription, &mut continuity, 1));
    let open = reach(&gate, "open", |report| report.state == GateState::Open);
    let flush = open.last_flush.unwrap();
    assert_eq!((flush.flushed, flush.dropped, open.cursor, open.buffered), (3, 0, 3, 0));
    assert_eq!(open.needs[0].state, NeedState::Proven);
    gate.publish(Payload::text("3")).unwrap();
    assert_eq!(consuming.join().unwrap(), ["3"]);
}

#[test]
fn a_gate_reopens_at_its_cursor_when_its_consumer_comes_back() {
    let broker = TestBroker::start();
    let (publisher, consumer) = (peer(&broker, "publisher"), peer(&broker, "consumer"));
    let options = GateOptions::default().needs(name("consumer"));
    let gate = publisher.gated_publisher(&topic("a/b"), options).unwrap();
    let mut subscription = subscribe(&consumer, "a/b");
    let mut continuity = Continuity::default();
    gate.publish(Payload::text("0")).unwrap();
    assert_eq!(take(&mut subscription, &mut continuity, 1), ["0"]);
    // Not confirmed: the application has not come back for more. What follows is sent to it and never taken.
    gate.publish(Payload::text("1")).unwrap();
    drop(subscription);
    reach(&gate, "waiting", |report| report.state == GateState::Waiting);
    gate.publish(Payload::text("2")).unwrap();
    let mut subscription = subscribe(&consumer, "a/b");
    assert_eq!(take(&mut subscription, &mut continuity, 2), ["1", "2"], "0 came twice or 1 was lost");
    let taking = std::thread::spawn(move || take(&mut subscription, &mut continuity, 1));
    wait_until(gate.flushed(), Instant::now() + DEADLINE).expect("not flushed").unwrap();
    let report = gate.report();
    assert!(report.again >= 1 && report.openings >= 2, "{report:?}");
    gate.publish(Payload::text("3")).unwrap();
    assert_eq!(taking.join().unwrap(), ["3"]);
}

#[test]
fn a_gate_for_a_stock_socket_opens_when_it_has_subscribed() {
    let broker = TestBroker::start();
    let publisher = peer(&broker, "publisher");
    let stock = broker.enrol("stock", &[], &["a/#"], &[], &[]);
    let strict =
        publisher.gated_publisher(&topic("a/b"), GateOptions::default().needs(name("stock"))).unwrap();
    let lenient = publisher
        .gated_publisher(&topic("a/b"), GateOptions::default().needs_subscribed(name("stock")))
        .unwrap();
    lenient.publish(Payload::text("held")).unwrap();
    let waiter = broker.enrol("waiter", &["a/#"], &[], &[], &[]);
    let question = r#"{"topic": "a/b", "at_least": 1}"#;
    let asking = ["req", waiter.to_str().unwrap(), "$sys/broker/receivers", question];
    let asking = TestProcess::python("stock.py", &asking);
    let subscriber = TestProcess::python("stock.py", &["sub", stock.to_str().unwrap(), "a/"]);
    assert_eq!(subscriber.json()["state"], "subscribed");
    assert_eq!(subscriber.json()["frames"][1], "held");
    let answer = asking.json();
    assert!(answer["frames"][0] == "final" && answer.to_string().contains("stock"), "{answer}");
    reach(&lenient, "flushed", |report| report.flushed == 1);
    let held = reach(&strict, "told", |report| report.needs[0].state == NeedState::AnswersNoProbes);
    assert_eq!(held.state, GateState::Waiting);
}

#[test]
fn a_gate_that_is_refused_says_so_and_asks_again() {
    let broker = TestBroker::start();
    let publisher = peer(&broker, "publisher");
    let options =
        GateOptions::default().needs(name("consumer")).overflow(GateOverflow::DropOldest).buffer(1, 1000);
    let gate = publisher.gated_publisher(&topic("b"), options).unwrap();
    reach(&gate, "refused", |report| report.state == GateState::Refused);
    match gate.publish(Payload::text("x")) {
        Err(GateError::Refused { reason, .. }) => {
            assert!(reason.contains("may not ask about `b`"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    let registry = broker.keys().join("authorized.toml");
    let rules = std::fs::read_to_string(&registry).unwrap();
    std::fs::write(&registry, rules.replace("\"a/#\"", "\"a/#\", \"b\"")).unwrap();
    // The broker looks for edits; each publish that is refused asks it again.
    let report = eventually("the gate to be let in", || {
        let _ = gate.publish(Payload::text("y"));
        let report = gate.report();
        (report.state == GateState::Waiting).then_some(report)
    });
    assert_eq!(report.needs[0].state, NeedState::Absent);
    assert!(gate.report().buffered <= 1);
}
