use std::time::{Duration, Instant};

use interlock_bus::{
    Client, Credentials, Header, Payload, TopicFilter, TopicName,
    blocking::wait,
    client::{ConnectOptions, Event, PublishOptions, ServeOptions, SubscribeOptions},
    error::{ConnectError, PublishError, RequestError},
};

use crate::harness::{DEADLINE, TestBroker, eventually};

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn filter(text: &str) -> TopicFilter {
    text.parse().unwrap()
}

fn connect(path: &std::path::Path) -> Client {
    try_connect(Credentials::load(path).unwrap()).unwrap()
}

fn try_connect(credentials: Credentials) -> Result<Client, ConnectError> {
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE))
}

/// A peer that may do everything, once over the encrypted socket and once inside the broker's process.
fn both_links(broker: &TestBroker, name: &str) -> [Client; 2] {
    let far = format!("{name}-far");
    let remote = broker.enrol(&far, &["#"], &["#"], &["#"], &["#", "$sys/broker/#"]);
    let local: interlock_bus::PeerName = format!("{name}-near").parse().unwrap();
    broker.enrol(local.as_str(), &["#"], &["#"], &["#"], &["#", "$sys/broker/#"]);
    [connect(&remote), eventually("the registry to be read", || broker.handle.attach(&local).ok())]
}

fn next_text(subscription: &mut interlock_bus::client::Subscription) -> String {
    match subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
        Event::Message(message) => message.text().unwrap().to_owned(),
        Event::Gap { .. } => "gap".to_owned(),
    }
}

#[test]
fn what_is_published_right_after_subscribe_returned_arrives_in_order_on_every_link() {
    let broker = TestBroker::start();
    for subscriber in both_links(&broker, "subscriber") {
        for publisher in both_links(&broker, &format!("publisher-{}", subscriber.name())) {
            let mut subscription =
                wait(subscriber.subscribe(&filter("a/+"), SubscribeOptions::default())).unwrap();
            for number in 0..500 {
                publisher.publish(&topic("a/b"), Payload::text(number.to_string())).unwrap();
            }
            for number in 0..500 {
                assert_eq!(next_text(&mut subscription), number.to_string());
            }
        }
    }
}

#[test]
fn each_of_more_overlapping_subscriptions_than_one_record_can_name_gets_the_message() {
    let broker = TestBroker::start();
    for client in both_links(&broker, "client") {
        let subscribe =
            |text: &str| wait(client.subscribe(&filter(text), SubscribeOptions::default())).unwrap();
        let mut subscriptions: Vec<_> = ["a/+", "a/b", "a/#"].map(subscribe).into();
        subscriptions.extend((0..600).map(|_| subscribe("a/b")));
        for number in 0..3 {
            client.publish(&topic("a/b"), Payload::text(number.to_string())).unwrap();
            let large = Payload::text("x".repeat(100_000));
            client.publish(&topic("a/b"), large).unwrap();
        }
        for (place, subscription) in subscriptions.iter_mut().enumerate() {
            for number in 0..3 {
                assert_eq!(next_text(subscription), number.to_string(), "subscription {place}");
                assert_eq!(next_text(subscription).len(), 100_000, "subscription {place}");
            }
        }
    }
}

#[test]
fn what_a_publisher_says_of_its_message_arrives_as_it_was_said() {
    let broker = TestBroker::start();
    for publisher in both_links(&broker, "publisher") {
        for subscriber in both_links(&broker, &format!("subscriber-{}", publisher.name())) {
            let mut subscription =
                wait(subscriber.subscribe(&filter("a"), SubscribeOptions::default())).unwrap();
            let payload = Payload::text("hello");
            let header = Header {
                reply_to: Some(topic("answers/here")),
                correlation: Some(Header::new().id),
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
                user: vec![("name".to_owned(), "value".to_owned()), ("name".to_owned(), "again".to_owned())],
                ..Header::for_payload(&payload)
            };
            let options = PublishOptions { header: Some(header.clone()), ..PublishOptions::default() };
            wait(publisher.publish_acknowledged(&topic("a"), payload, options)).unwrap();
            match subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
                Event::Message(message) => {
                    assert_eq!(message.header, header);
                    assert_eq!((message.text(), &message.origin), (Some("hello"), publisher.name()));
                }
                gap => panic!("{gap:?}"),
            }
        }
    }
}

#[test]
fn a_request_that_nobody_serves_is_answered_at_once() {
    let broker = TestBroker::start();
    for client in both_links(&broker, "client") {
        let begun = Instant::now();
        let error =
            wait(client.request(&topic("nobody"), Payload::default(), Duration::from_secs(600))).unwrap_err();
        assert!(matches!(error, RequestError::NoResponders { .. }), "{error}");
        assert!(begun.elapsed() < DEADLINE, "it waited for its deadline of ten minutes");
    }
}

#[test]
fn an_answer_is_streamed_in_parts_and_ends_once() {
    let broker = TestBroker::start();
    for server in both_links(&broker, "server") {
        for client in both_links(&broker, &format!("client-{}", server.name())) {
            let served = topic(&format!("count/{}/{}", server.name(), client.name()));
            let mut service =
                wait(server.serve(&TopicFilter::exactly(&served), ServeOptions::default())).unwrap();
            let serving = std::thread::spawn(move || {
                wait(async move {
                    let request = service.next().await.unwrap();
                    // More parts than the reply window: credit must flow back.
                    for number in 0..300 {
                        request.reply(Payload::text(number.to_string())).await.unwrap();
                    }
                    request.end(Payload::text("end")).await.unwrap();
                });
            });
            let parts = wait(async {
                let mut stream = client.request_stream(&served, Payload::text("go"), DEADLINE).await.unwrap();
                let mut parts = Vec::new();
                while let Some(part) = stream.next().await {
                    parts.push(part.unwrap().text().unwrap().to_owned());
                }
                parts
            });
            serving.join().unwrap();
            assert_eq!(parts.len(), 301);
            assert_eq!(parts.last().unwrap(), "end");
            assert!(parts[..300].iter().enumerate().all(|(number, part)| *part == number.to_string()));
        }
    }
}

#[test]
fn dropping_a_stream_cancels_the_request_at_its_server() {
    let broker = TestBroker::start();
    let [server, local_server] = both_links(&broker, "server");
    let [client, _] = both_links(&broker, "client");
    for (server, name) in [(server, "far"), (local_server, "near")] {
        let served = topic(name);
        let mut service =
            wait(server.serve(&TopicFilter::exactly(&served), ServeOptions::default())).unwrap();
        let mut stream = wait(client.request_stream(&served, Payload::default(), DEADLINE)).unwrap();
        let request = wait(service.next()).unwrap();
        wait(request.reply(Payload::text("part"))).unwrap();
        assert!(wait(stream.next()).unwrap().is_ok());
        assert!(!request.cancelled().is_cancelled());
        drop(stream);
        wait(request.cancelled().wait());
    }
}

#[test]
fn a_request_ends_when_its_server_goes_or_drops_it() {
    let broker = TestBroker::start();
    for client in both_links(&broker, "client") {
        for server in both_links(&broker, &format!("server-{}", client.name())) {
            let served = topic(&format!("gone/{}", server.name()));
            let mut service =
                wait(server.serve(&TopicFilter::exactly(&served), ServeOptions::default())).unwrap();
            let mut first = wait(client.request_stream(&served, Payload::default(), DEADLINE)).unwrap();
            drop(wait(service.next()).unwrap());
            let error = wait(first.next()).unwrap().unwrap_err();
            assert!(matches!(error, RequestError::Failed { .. }), "{error}");

            let mut second = wait(client.request_stream(&served, Payload::default(), DEADLINE)).unwrap();
            let request = wait(service.next()).unwrap();
            server.close_blocking();
            let error = wait(second.next()).unwrap().unwrap_err();
            assert!(matches!(error, RequestError::ServerGone | RequestError::Failed { .. }), "{error}");
            drop(request);
        }
    }
}

#[test]
fn a_missing_permission_is_an_error_of_the_operation_and_an_event() {
    let broker = TestBroker::start();
    let observer = broker.enrol("observer", &[], &["$sys/#"], &[], &["$sys/broker/#"]);
    let observer = connect(&observer);
    let mut events = wait(observer.subscribe(&filter("$sys/denied"), SubscribeOptions::default())).unwrap();
    let limited = broker.enrol("limited", &["mine"], &["mine"], &[], &["mine"]);
    let limited = connect(&limited);

    let refused =
        wait(limited.publish_acknowledged(&topic("other"), Payload::text("x"), PublishOptions::default()));
    assert!(matches!(refused, Err(PublishError::Denied { .. })), "{refused:?}");
    assert!(wait(limited.subscribe(&filter("other/#"), SubscribeOptions::default())).is_err());
    assert!(wait(limited.serve(&filter("mine"), ServeOptions::default())).is_err());
    let refused = wait(limited.request(&topic("other"), Payload::default(), DEADLINE));
    assert!(matches!(refused, Err(RequestError::Denied { .. })), "{refused:?}");

    let operations: Vec<String> = (0..4)
        .map(|_| {
            let event: serde_json::Value = serde_json::from_str(&next_text(&mut events)).unwrap();
            assert_eq!(event["peer"], "limited");
            event["operation"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(operations, ["publish", "subscribe", "serve", "request"]);
}

#[test]
fn each_way_of_not_being_let_in_has_its_own_error_within_a_second() {
    let (broker, stranger) = (TestBroker::start(), TestBroker::start());
    let member = Credentials::load(&broker.enrol("member", &["a"], &[], &[], &[])).unwrap();
    let mut foreign = Credentials::load(&stranger.enrol("foreign", &["a"], &[], &[], &[])).unwrap();
    foreign.endpoints = member.endpoints.clone();
    let begun = Instant::now();

    let wrong_server_key =
        try_connect(Credentials { broker: stranger.handle.public_key(), ..member.clone() });
    assert!(matches!(wrong_server_key, Err(ConnectError::WrongServerKey { .. })), "{wrong_server_key:?}");
    let unknown = try_connect(Credentials { broker: broker.handle.public_key(), ..foreign });
    assert!(matches!(unknown, Err(ConnectError::KeyRefused { .. })), "{unknown:?}");
    let nobody =
        try_connect(Credentials { endpoints: vec!["tcp://127.0.0.1:1".parse().unwrap()], ..member.clone() });
    assert!(matches!(nobody, Err(ConnectError::Unreachable { .. })), "{nobody:?}");
    assert!(begun.elapsed() < DEADLINE / 2, "three refusals took {:?}", begun.elapsed());

    let session = try_connect(member.clone()).unwrap();
    broker.store.revoke(&"member".parse().unwrap()).unwrap();
    eventually("the revoked session's end", || {
        session.closed_reason().filter(|reason| reason.contains("revoked"))
    });
    assert!(matches!(try_connect(member), Err(ConnectError::KeyRefused { .. })));
}

#[test]
fn a_large_payload_passes_whole_and_a_larger_one_is_refused_with_its_size() {
    let broker = TestBroker::start();
    for client in both_links(&broker, "client") {
        let mut subscription = wait(client.subscribe(&filter("large"), SubscribeOptions::default())).unwrap();
        let payload: Vec<u8> = (0..8usize << 20).map(|index| (index / 7) as u8).collect();
        wait(client.publish_waiting(
            &topic("large"),
            Payload::bytes(payload.clone()),
            &PublishOptions::default(),
        ))
        .unwrap();
        match subscription.next_blocking(Instant::now() + DEADLINE).unwrap() {
            Event::Message(message) => assert!(message.payload == payload, "the payload changed on its way"),
            Event::Gap { .. } => panic!("it was lost"),
        }
        let too_large = vec![0; interlock_bus::limits::PAYLOAD_BYTES_MAX + 1];
        let refused = client.publish(&topic("large"), Payload::bytes(too_large));
        assert!(matches!(refused, Err(PublishError::TooLarge { .. })));
    }
}

#[test]
fn the_ledger_balances_and_shows_everything_delivered_once_a_subscriber_has_caught_up() {
    let broker = TestBroker::start();
    let [client, local] = both_links(&broker, "client");
    for subscriber in [&client, &local] {
        let name = topic(&format!("counted/{}", subscriber.name()));
        let mut subscription =
            wait(subscriber.subscribe(&TopicFilter::exactly(&name), SubscribeOptions::default())).unwrap();
        for _ in 0..100 {
            client.publish(&name, Payload::text("x")).unwrap();
        }
        for _ in 0..100 {
            next_text(&mut subscription);
        }
        // Waiting for more is what tells the broker that the last ones were consumed.
        assert!(subscription.next_blocking(Instant::now()).is_err());
        eventually("the ledger to show 100 delivered", || {
            let answer =
                wait(client.request(&topic("$sys/broker/ledger"), Payload::default(), DEADLINE)).unwrap();
            let rows: Vec<serde_json::Value> = answer.decode().unwrap();
            assert!(rows.iter().all(|row| row["balances"] == true), "{rows:?}");
            let row = rows.iter().find(|row| row["topic"] == name.as_str())?;
            assert_eq!(row["written"], 0, "a native subscriber credits what it gets");
            (row["published"] == 100 && row["delivered"] == 100 && row["queued"] == 0).then_some(())
        });
    }
}
