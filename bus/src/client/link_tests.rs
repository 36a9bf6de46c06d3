//! Clients and a broker in one process: over sockets and attached.

use std::{
    future::Future,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{Client, ConnectOptions, Event, LinkState, PublishOptions, ServeOptions, SubscribeOptions};
use crate::{
    blocking::{wait, wait_until},
    broker::{Broker, BrokerConfig, BrokerHandle},
    crypto::KeyPair,
    endpoint::Endpoint,
    envelope::Payload,
    error::{ConnectError, PublishError, RequestError},
    keys::{Credentials, KeyStore, Permissions, Rules},
    limits,
    native::Overflow,
    topic::TopicName,
};

const TIMEOUT: Duration = Duration::from_secs(10);

struct Fixture {
    directory: tempfile::TempDir,
    store: KeyStore,
    broker: BrokerHandle,
}

fn everything() -> Permissions {
    let all = || Rules::allowing(["#", "$sys/#", "$peers/#"].map(|filter| filter.parse().unwrap()));
    Permissions { publish: all(), subscribe: all(), serve: all(), request: all(), wait: true }
}

fn start(store: &KeyStore, endpoints: Vec<Endpoint>) -> BrokerHandle {
    Broker::start(BrokerConfig::from_key_store(store, endpoints).unwrap()).unwrap()
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    for name in ["alice", "bob"] {
        store.issue(&name.parse().unwrap(), &everything(), &[], None).unwrap();
    }
    let endpoints =
        vec![Endpoint::Ipc(directory.path().join("bus.sock")), "tcp://127.0.0.1:0".parse().unwrap()];
    let broker = start(&store, endpoints);
    Fixture { directory, store, broker }
}

impl Fixture {
    fn credentials(&self, name: &str) -> Credentials {
        let credentials = self.broker.issue_incarnation(&name.parse().unwrap());
        assert_eq!(credentials.endpoints.len(), 2);
        credentials
    }

    fn connect(&self, name: &str) -> Client {
        connect(self.credentials(name)).unwrap()
    }

    /// One client for each kind of link.
    fn clients(&self, name: &str) -> [(&'static str, Client); 3] {
        let over = |endpoint: usize| {
            let mut credentials = self.credentials(name);
            credentials.endpoints = vec![credentials.endpoints[endpoint].clone()];
            connect(credentials).unwrap()
        };
        let attached = self.broker.attach(&name.parse().unwrap()).unwrap();
        [("ipc", over(0)), ("tcp", over(1)), ("attached", attached)]
    }
}

fn connect(credentials: Credentials) -> Result<Client, ConnectError> {
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(TIMEOUT))
}

fn soon<F: Future>(future: F) -> F::Output {
    wait_until(future, Instant::now() + TIMEOUT).expect("the future ends in time")
}

fn subscribe(client: &Client, filter: &str) -> super::Subscription {
    soon(client.subscribe(&filter.parse().unwrap(), SubscribeOptions::default())).unwrap()
}

fn next_text(subscription: &mut super::Subscription) -> String {
    match subscription.next_blocking(Instant::now() + TIMEOUT).unwrap() {
        Event::Message(message) => message.text().unwrap().to_owned(),
        Event::Gap { count, reason } => format!("gap {count:?} {reason}"),
    }
}

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn ask_broker(client: &Client, what: &str) -> serde_json::Value {
    let topic = topic(&format!("$sys/broker/{what}"));
    soon(client.request(&topic, Payload::default(), TIMEOUT)).unwrap().decode().unwrap()
}

#[test]
fn what_is_published_right_after_subscribe_returns_arrives_over_every_link() {
    let fixture = fixture();
    let publisher = fixture.connect("alice");
    for (link, subscriber) in fixture.clients("bob") {
        assert_eq!(subscriber.name().as_str(), "bob");
        let mut subscription = subscribe(&subscriber, "a/#");
        publisher.publish(&topic("a/b"), Payload::text(link)).unwrap();
        match subscription.next_blocking(Instant::now() + TIMEOUT).unwrap() {
            Event::Message(message) => {
                assert_eq!((message.text(), message.origin.as_str()), (Some(link), "alice"));
                assert_eq!(message.topic, topic("a/b"));
            }
            gap => panic!("{link}: {gap:?}"),
        }
        soon(subscriber.close());
    }
}

#[test]
fn a_flood_arrives_whole_and_in_order_and_the_ledger_balances_over_every_link() {
    const MESSAGES: u32 = 20_000;
    let fixture = fixture();
    for (link, publisher) in fixture.clients("alice") {
        for (other, subscriber) in fixture.clients("bob") {
            let name = topic(&format!("flood/{link}/{other}"));
            let filter = crate::topic::TopicFilter::exactly(&name);
            let options = SubscribeOptions::default();
            let mut subscription = soon(subscriber.subscribe(&filter, options)).unwrap();
            let flooding = std::thread::spawn({
                let (publisher, name) = (publisher.clone(), name.clone());
                move || {
                    for number in 0..MESSAGES {
                        let payload = Payload::text(number.to_string());
                        soon(publisher.publish_waiting(&name, payload, &PublishOptions::default())).unwrap();
                    }
                }
            });
            for number in 0..MESSAGES {
                assert_eq!(next_text(&mut subscription), number.to_string(), "{link} to {other}");
            }
            flooding.join().unwrap();
            assert!(subscription.try_next().is_none(), "and this sends the last credit");
            soon(subscriber.ping()).unwrap();
            let rows = ask_broker(&subscriber, "ledger");
            let row = rows.as_array().unwrap().iter().find(|row| row["topic"] == name.as_str()).unwrap();
            assert_eq!(row["published"], MESSAGES, "{row}");
            assert_eq!(row["delivered"], MESSAGES, "{row}");
        }
    }
}

#[test]
fn close_sends_what_was_published_before() {
    const MESSAGES: u32 = 5_000;
    let fixture = fixture();
    let subscriber = fixture.connect("bob");
    let mut subscription = subscribe(&subscriber, "a");
    for (link, publisher) in fixture.clients("alice") {
        for number in 0..MESSAGES {
            publisher.publish(&topic("a"), Payload::text(number.to_string())).unwrap();
        }
        soon(publisher.close());
        assert_eq!(*publisher.watch().borrow(), LinkState::Closed);
        for number in 0..MESSAGES {
            assert_eq!(next_text(&mut subscription), number.to_string(), "{link}");
        }
    }
}

#[test]
fn a_message_of_several_fragments_arrives_whole_and_control_records_overtake_it() {
    let fixture = fixture();
    let publisher = fixture.connect("alice");
    let subscriber = fixture.connect("bob");
    let mut subscription = subscribe(&subscriber, "a");
    let payload: Vec<u8> = (0..5 << 20u32).map(|number| (number % 251) as u8).collect();
    publisher.publish(&topic("a"), Payload::bytes(payload.clone())).unwrap();
    soon(publisher.ping()).unwrap();
    match subscription.next_blocking(Instant::now() + TIMEOUT).unwrap() {
        Event::Message(message) => assert!(message.payload == payload),
        gap => panic!("{gap:?}"),
    }
}

#[test]
fn an_acknowledged_publish_counts_its_subscribers() {
    let fixture = fixture();
    let subscriber = fixture.connect("bob");
    let _subscription = subscribe(&subscriber, "a");
    for (link, publisher) in fixture.clients("alice") {
        let publish = |name| {
            let options = PublishOptions::default();
            soon(publisher.publish_acknowledged(&topic(name), Payload::text("x"), options)).unwrap()
        };
        assert_eq!(publish("a").subscribers, 1, "{link}");
        assert_eq!(publish("nobody").subscribers, 0, "{link}");
    }
}

#[test]
fn a_request_is_answered_in_parts_over_every_link() {
    let fixture = fixture();
    let parts = 3 * u64::from(limits::REPLY_WINDOW);
    for (link, server) in fixture.clients("bob") {
        let filter = format!("count/{link}").parse().unwrap();
        let mut service = soon(server.serve(&filter, ServeOptions::default())).unwrap();
        let serving = std::thread::spawn(move || {
            while let Some(request) = wait(service.next()) {
                for part in 0..parts {
                    soon(request.reply(Payload::text(part.to_string()))).unwrap();
                }
                soon(request.end(Payload::text("end"))).unwrap();
            }
        });
        for (other, requester) in fixture.clients("alice") {
            let name = topic(&format!("count/{link}"));
            let mut stream = soon(requester.request_stream(&name, Payload::text("go"), TIMEOUT)).unwrap();
            for part in 0..parts {
                let message = soon(stream.next()).unwrap().unwrap();
                assert_eq!(message.text(), Some(&*part.to_string()), "{other} asks {link}");
            }
            assert_eq!(soon(stream.next()).unwrap().unwrap().text(), Some("end"));
            assert_eq!(soon(stream.next()), None);
            let single = soon(requester.request(&name, Payload::text("go"), TIMEOUT)).unwrap();
            assert_eq!(single.text(), Some("end"));
        }
        soon(server.close());
        serving.join().unwrap();
    }
}

#[test]
fn a_request_that_cannot_be_answered_ends_at_once_with_its_reason() {
    let fixture = fixture();
    let (requester, server) = (fixture.connect("alice"), fixture.connect("bob"));
    let ask = |text, deadline| soon(requester.request(&topic("q"), Payload::text(text), deadline));
    let stream = |text| soon(requester.request_stream(&topic("q"), Payload::text(text), TIMEOUT)).unwrap();
    assert_eq!(ask("nobody", TIMEOUT), Err(RequestError::NoResponders { topic: topic("q") }));

    let mut service = soon(server.serve(&"q".parse().unwrap(), ServeOptions::default())).unwrap();
    // The server may be given an earlier request while its cancel is on the way.
    let mut take = |text| loop {
        let request = soon(service.next()).unwrap();
        if request.message.text() == Some(text) {
            break request;
        }
        soon(request.cancelled().wait());
    };
    let soon_enough = Duration::from_millis(50);
    assert_eq!(
        ask("late", soon_enough),
        Err(RequestError::TimedOut { topic: topic("q"), after: soon_enough })
    );

    let unwanted = stream("unwanted");
    let request = take("unwanted");
    drop(unwanted);
    soon(request.cancelled().wait());

    let mut dropped = stream("dropped");
    drop(take("dropped"));
    assert!(
        matches!(soon(dropped.next()), Some(Err(RequestError::Failed { code, .. })) if code == "dropped")
    );

    let mut left_alone = stream("left alone");
    let _in_hand = take("left alone");
    soon(server.close());
    assert_eq!(soon(left_alone.next()), Some(Err(RequestError::ServerGone)));
}

#[test]
fn a_service_dropped_right_after_its_answer_does_not_lose_it() {
    let fixture = fixture();
    let (requester, server) = (fixture.connect("alice"), fixture.connect("bob"));
    for _ in 0..50 {
        let mut service = soon(server.serve(&"q".parse().unwrap(), ServeOptions::default())).unwrap();
        let mut stream = soon(requester.request_stream(&topic("q"), Payload::text("?"), TIMEOUT)).unwrap();
        let request = soon(service.next()).unwrap();
        soon(request.end(Payload::text("!"))).unwrap();
        drop(service);
        assert_eq!(soon(stream.next()).unwrap().unwrap().text(), Some("!"));
    }
}

#[test]
fn each_way_of_not_getting_in_is_its_own_error_and_names_the_way_out() {
    let fixture = fixture();
    let good = fixture.credentials("alice");
    let error = |credentials| connect(credentials).unwrap_err();

    for endpoint in &good.endpoints {
        let endpoints = vec![endpoint.clone()];
        let wrong_server =
            Credentials { broker: KeyPair::generate().public, endpoints: endpoints.clone(), ..good.clone() };
        let wrong = error(wrong_server);
        assert!(matches!(wrong, ConnectError::WrongServerKey { .. }), "{wrong}");
        assert!(wrong.to_string().contains(&endpoint.to_string()), "{wrong}");
        let unknown = error(Credentials { keys: KeyPair::generate(), endpoints, ..good.clone() });
        assert!(matches!(unknown, ConnectError::KeyRefused { .. }), "{unknown}");
        assert!(unknown.to_string().contains("interlock keys issue alice"), "{unknown}");
    }

    let nowhere = Endpoint::Ipc(fixture.directory.path().join("nobody.sock"));
    let unreachable = error(Credentials { endpoints: vec![nowhere], ..good.clone() });
    assert!(matches!(unreachable, ConnectError::Unreachable { .. }), "{unreachable}");
}

#[test]
fn whoever_waits_for_the_broker_outlives_one_that_dies_in_the_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    let path = directory.path().join("bus.sock");
    let endpoints = vec![Endpoint::Ipc(path.clone())];
    let credentials = store.issue(&"alice".parse().unwrap(), &everything(), &endpoints, None).unwrap();
    let dies_once = |listener: std::os::unix::net::UnixListener| {
        std::thread::spawn(move || drop((listener.accept().unwrap(), listener)))
    };

    let dying = dies_once(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let broken = connect(credentials.clone()).unwrap_err();
    assert!(matches!(broken, ConnectError::Broken { .. }), "{broken}");
    dying.join().unwrap();
    std::fs::remove_file(&path).unwrap();

    let dying = dies_once(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let patient = ConnectOptions::new(credentials.clone()).timeout(TIMEOUT).waits_for_broker(true);
    let client = std::thread::spawn(move || Client::connect_blocking(patient));
    dying.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    let _broker = start(&store, endpoints);
    client.join().unwrap().unwrap();

    // What waiting cannot cure is said at once.
    let stranger = Credentials { keys: KeyPair::generate(), ..credentials };
    let stranger = ConnectOptions::new(stranger).timeout(TIMEOUT * 10).waits_for_broker(true);
    let refused = Client::connect_blocking(stranger).unwrap_err();
    assert!(matches!(refused, ConnectError::KeyRefused { .. }), "{refused}");
}

/// A listener that sends `greeting` to the first who comes and then stays silent.
fn impostor(greeting: &'static [u8]) -> (Endpoint, std::thread::JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let accepting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(greeting).unwrap();
        stream
    });
    (endpoint, accepting)
}

#[test]
fn what_is_no_broker_is_named_and_silence_ends_at_the_timeout() {
    let fixture = fixture();
    let good = fixture.credentials("alice");
    let (web_server, accepting) =
        impostor(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n----------------------");
    let error = connect(Credentials { endpoints: vec![web_server], ..good.clone() }).unwrap_err();
    assert!(matches!(error, ConnectError::NotInterlock { .. }), "{error}");
    drop(accepting.join().unwrap());

    let (silent, accepting) = impostor(b"");
    let options = ConnectOptions::new(Credentials { endpoints: vec![silent], ..good.clone() });
    let error = Client::connect_blocking(options.timeout(Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    drop(accepting.join().unwrap());

    // The first endpoint is a stranger, the second the broker: the client gets in.
    let (web_server, accepting) =
        impostor(b"SSH-2.0-OpenSSH_9.2\r\n--------------------------------------------");
    let endpoints = vec![web_server, good.endpoints[1].clone()];
    connect(Credentials { endpoints, ..good }).unwrap();
    drop(accepting.join().unwrap());
}

#[test]
fn a_revoked_key_closes_the_client_for_good_with_the_reason() {
    let fixture = fixture();
    let credentials = fixture.credentials("bob");
    let client = connect(credentials.clone()).unwrap();
    let mut subscription = subscribe(&client, "a");
    fixture.broker.revoke_incarnation(&credentials.keys.public);
    assert!(soon(subscription.next()).is_none());
    assert!(client.closed_reason().unwrap().contains("revoked"), "{:?}", client.closed_reason());
    assert!(matches!(connect(credentials).unwrap_err(), ConnectError::KeyRefused { .. }));
}

#[test]
fn whoever_else_has_the_key_of_an_incarnation_is_ended_with_it_and_gets_no_session_again() {
    let fixture = fixture();
    for endpoint in 0..2 {
        let mut credentials = fixture.credentials("bob");
        credentials.endpoints = vec![credentials.endpoints[endpoint].clone()];
        let (own, stolen) = (connect(credentials.clone()).unwrap(), connect(credentials.clone()).unwrap());
        let mut of_the_thief = subscribe(&stolen, "b");
        own.close_blocking();
        fixture.broker.end_incarnation(&credentials.keys.public);
        assert!(soon(of_the_thief.next()).is_none());
        assert!(matches!(connect(credentials).unwrap_err(), ConnectError::KeyRefused { .. }));
    }
}

/// The way of one client to the broker, which ends like a process that is killed: first nothing is read any more, then
/// both sockets close although the broker has sent something that was not read.
struct Mortal {
    endpoint: Endpoint,
    stop_reading: mpsc::SyncSender<()>,
    has_stopped: mpsc::Receiver<()>,
    life: std::thread::JoinHandle<()>,
}

impl Mortal {
    fn before(broker: &Endpoint) -> Self {
        let Endpoint::Tcp { host, port } = broker else { panic!("{broker}") };
        let upstream = TcpStream::connect((host.as_str(), *port)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (stop_reading, stop) = mpsc::sync_channel(1);
        let (stopped, has_stopped) = mpsc::sync_channel(1);
        let life = std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| std::io::copy(&mut &client, &mut &upstream));
                upstream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                while stop.try_recv().is_err() {
                    let mut bytes = [0; 4096];
                    if let Ok(read) = (&upstream).read(&mut bytes) {
                        (&client).write_all(&bytes[..read]).unwrap();
                    }
                }
                upstream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stopped.send(()).unwrap();
                assert_eq!(upstream.peek(&mut [0]).unwrap(), 1, "the broker has sent something");
                // Ends the thread above, so that this is the last holder of both.
                client.shutdown(Shutdown::Both).unwrap();
            });
        });
        Self { endpoint, stop_reading, has_stopped, life }
    }
}

#[test]
fn the_key_of_an_incarnation_that_died_with_bytes_unread_is_void_and_no_session_with_it_stays() {
    let fixture = fixture();
    let watcher = fixture.connect("alice");
    for _ in 0..10 {
        let credentials = fixture.credentials("bob");
        let mut presence = subscribe(&watcher, "$peers/bob");
        let mortal = Mortal::before(&credentials.endpoints[1]);
        let own = connect(Credentials { endpoints: vec![mortal.endpoint], ..credentials.clone() }).unwrap();
        let _unread = subscribe(&own, "a");
        let stolen = connect(credentials.clone()).unwrap();
        let mut of_the_thief = subscribe(&stolen, "b");

        mortal.stop_reading.send(()).unwrap();
        mortal.has_stopped.recv_timeout(TIMEOUT).unwrap();
        watcher.publish(&topic("a"), Payload::text("never read")).unwrap();
        mortal.life.join().unwrap();
        fixture.broker.end_incarnation(&credentials.keys.public);
        assert!(soon(of_the_thief.next()).is_none());
        assert!(matches!(connect(credentials).unwrap_err(), ConnectError::KeyRefused { .. }));
        loop {
            let Some(Event::Message(message)) = soon(presence.next()) else { panic!("nothing more came") };
            let event: serde_json::Value = message.decode().unwrap();
            if event["sessions"] == 0 {
                break;
            }
        }
    }
}

#[test]
fn a_client_that_is_refused_in_clear_text_tries_again_slowly() {
    let fixture = fixture();
    let mut credentials = fixture.credentials("bob");
    credentials.endpoints.truncate(1);
    let _client = connect(credentials).unwrap();
    let endpoints = fixture.broker.endpoints()[..1].to_vec();
    fixture.broker.stop(TIMEOUT);
    // Another broker in its place: it says in clear text that the server key is wrong.
    let (store, _) = KeyStore::open_or_create(&fixture.directory.path().join("others")).unwrap();
    store.issue(&"operator".parse().unwrap(), &everything(), &[], None).unwrap();
    let other = start(&store, endpoints);
    let operator = other.attach(&"operator".parse().unwrap()).unwrap();
    let mut refusals = subscribe(&operator, "$sys/auth/refused");
    let at_ms = loop {
        assert!(matches!(soon(refusals.next()), Some(Event::Message(_))));
        let refusals = topic("$sys/broker/refusals");
        let answer = soon(operator.request(&refusals, Payload::text(""), TIMEOUT)).unwrap();
        let answer: serde_json::Value = answer.decode().unwrap();
        let rows = answer["last"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["code"] == "wrong_server_key"), "{answer}");
        if let [first, second, ..] = &rows[..] {
            break [first, second].map(|row| row["at_ms"].as_u64().unwrap());
        }
    };
    // Five seconds, with jitter down to half; clocks are read at the other end.
    assert!(at_ms[1] - at_ms[0] >= 2400, "again after {} ms", at_ms[1] - at_ms[0]);
}

#[test]
fn a_restarted_broker_is_found_again_and_subscriptions_and_services_are_renewed() {
    let fixture = fixture();
    let endpoints = fixture.broker.endpoints().to_vec();
    let load = |name: &str| {
        let path = fixture.directory.path().join("keys").join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("endpoints = []", &format!("endpoints = [\"{}\"]", endpoints[0]));
        Credentials::from_toml(&text, &path).unwrap()
    };
    let (subscriber, publisher) = (connect(load("bob")).unwrap(), connect(load("alice")).unwrap());
    let mut subscription = subscribe(&subscriber, "a");
    let mut service = soon(subscriber.serve(&"q".parse().unwrap(), ServeOptions::default())).unwrap();
    publisher.publish(&topic("a"), Payload::text("before")).unwrap();
    assert_eq!(next_text(&mut subscription), "before");

    let mut states = publisher.watch();
    fixture.broker.stop(TIMEOUT);
    soon(states.wait_for(|state| matches!(state, LinkState::Lost { .. }))).unwrap();
    let broker = start(&fixture.store, endpoints.clone());
    soon(states.wait_for(|state| *state == LinkState::Ready)).unwrap();
    assert_eq!(next_text(&mut subscription), "gap None disconnected");
    // The renewed subscription is in place once its session answers a later question.
    soon(subscriber.watch().wait_for(|state| *state == LinkState::Ready)).unwrap();
    soon(subscriber.ping()).unwrap();
    publisher.publish(&topic("a"), Payload::text("after")).unwrap();
    assert_eq!(next_text(&mut subscription), "after");
    let mut stream = soon(publisher.request_stream(&topic("q"), Payload::text("?"), TIMEOUT)).unwrap();
    soon(soon(service.next()).unwrap().end(Payload::text("!"))).unwrap();
    assert_eq!(soon(stream.next()).unwrap().unwrap().text(), Some("!"));
    broker.stop(TIMEOUT);
}

#[test]
fn attached_clients_learn_that_the_broker_has_ended() {
    let fixture = fixture();
    let client = fixture.broker.attach(&"bob".parse().unwrap()).unwrap();
    let mut subscription = subscribe(&client, "a");
    fixture.broker.stop(TIMEOUT);
    assert!(soon(subscription.next()).is_none());
    assert!(client.publish(&topic("a"), Payload::text("x")).is_err());
    soon(client.close());
    assert!(fixture.broker.attach(&"bob".parse().unwrap()).is_err());
}

#[test]
fn a_revoked_peer_loses_every_link_and_gets_none_again() {
    let fixture = fixture();
    let clients = fixture.clients("bob");
    let mut subscriptions = clients.each_ref().map(|(_, client)| subscribe(client, "a"));
    fixture.store.revoke(&"bob".parse().unwrap()).unwrap();
    for (subscription, (link, client)) in subscriptions.iter_mut().zip(&clients) {
        assert!(soon(subscription.next()).is_none(), "{link}");
        let reason = client.closed_reason().unwrap_or_default();
        assert!(reason.contains("revoked"), "{link}: {reason}");
    }
    let refused = fixture.broker.attach(&"bob".parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("was revoked"), "{refused}");
}

/// Publishes until the broker holds the topic; gives the number of messages.
fn publish_until_held(publisher: &Client) -> usize {
    let give_up = Instant::now() + TIMEOUT;
    let mut published = 0;
    loop {
        match publisher.publish(&topic("held"), Payload::bytes(vec![0; 500])) {
            Err(PublishError::Held { .. }) => return published,
            Err(PublishError::Full { .. }) => std::thread::yield_now(),
            other => other.map(|()| published += 1).unwrap(),
        }
        assert!(Instant::now() < give_up, "nothing holds the publisher");
    }
}

#[test]
fn a_publisher_that_a_subscriber_holds_goes_on_when_that_one_leaves_and_can_leave_itself() {
    let fixture = fixture();
    for ((link, publisher), (_, subscriber)) in
        fixture.clients("alice").into_iter().zip(fixture.clients("bob"))
    {
        let subscribe = || {
            let options = SubscribeOptions::default().overflow(Overflow::Wait).queue(8, 0);
            soon(subscriber.subscribe(&"held".parse().unwrap(), options)).unwrap()
        };
        let held_by = subscribe();
        publish_until_held(&publisher);
        std::thread::scope(|scope| {
            let next =
                || soon(publisher.publish_waiting(&topic("held"), Payload::text("x"), &Default::default()));
            let waits = scope.spawn(next);
            drop(held_by);
            assert!(waits.join().unwrap().is_ok(), "{link}");
        });
        let mut held_by = subscribe();
        let published = publish_until_held(&publisher);
        soon(publisher.close());
        for number in 0..published {
            let event = held_by.next_blocking(Instant::now() + TIMEOUT);
            assert!(matches!(event, Ok(Event::Message(_))), "{link}: {event:?} instead of message {number}");
        }
    }
}

#[test]
fn messages_of_every_size_keep_their_order_between_all_links() {
    let fixture = fixture();
    let sizes = [0, 1000, limits::LOCAL_COPY_BYTES_MAX, limits::LOCAL_COPY_BYTES_MAX + 1, 40_000, 300_000, 3];
    for (to, subscriber) in fixture.clients("bob") {
        for (from, publisher) in fixture.clients("alice") {
            let mut subscription = subscribe(&subscriber, "order");
            for number in 0..200usize {
                let payload = vec![number as u8; sizes[number % sizes.len()]];
                let payload = Payload::bytes([&(number as u64).to_le_bytes()[..], &payload].concat());
                soon(publisher.publish_waiting(&topic("order"), payload, &Default::default())).unwrap();
            }
            for number in 0..200usize {
                let event = subscription.next_blocking(Instant::now() + TIMEOUT).unwrap();
                let Event::Message(message) = event else { panic!("{from} to {to}: {event:?}") };
                assert_eq!(message.payload[..8], (number as u64).to_le_bytes(), "{from} to {to}");
                assert_eq!(message.payload[8..], vec![number as u8; sizes[number % sizes.len()]]);
            }
        }
    }
}
