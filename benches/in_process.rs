//! How many messages a second go from one actor to another through a broker in their own process,
//! each attached and on a thread of its own, with permissions, ledger and statistics on; nothing lost.
//!
//! `cargo bench -p interlock-benches --bench in_process`
//! `[-- --bytes 128 --rounds 3 --warm-up-ms 300 --window-ms 1000 --subscribers 1,4 --record NAME]`

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use interlock_benches::{
    arguments::Arguments,
    report::{Repeats, Report, rate},
};
use interlock_bus::{
    Broker, BrokerConfig, BrokerHandle, Client, Event, KeyStore, Payload, PeerName, Permissions,
    PublishOptions, SubscribeOptions, TopicName, blocking::wait, native::Overflow,
};

const TOPIC: &str = "bench/in-process";

fn main() {
    let arguments = Arguments::read(&["bytes", "rounds", "warm-up-ms", "window-ms", "subscribers"]);
    let mut report = Report::begin("in_process");
    let bytes = arguments.value("bytes", 128usize);
    report.line(&format!("- payload: {bytes} bytes\n"));
    report.line("| subscribers | msg/s to each |\n|---|---|");
    for subscribers in arguments.list("subscribers", &[1, 4]) {
        let mut rates = Repeats::default();
        for _ in 0..arguments.value("rounds", 3) {
            rates.add(window(&arguments, bytes, subscribers));
        }
        report.line(&format!("| {subscribers} | {} |", rates.shown(rate)));
    }
    report.keep(arguments.text("record"));
}

fn attach(store: &KeyStore, broker: &BrokerHandle, name: &str) -> Client {
    let all: &[&str] = &["#"];
    let mut permissions = Permissions::from_lists(all, all, all, all).expect("`#` is a filter");
    permissions.wait = true;
    let name: PeerName = name.parse().expect("benches choose legal names");
    store.issue(&name, &permissions, broker.endpoints(), None).expect("a fresh key store takes a new name");
    loop {
        // The registry is read anew within half a second.
        if let Ok(client) = broker.attach(&name) {
            return client;
        }
        thread::yield_now();
    }
}

/// Messages a second that each subscriber got.
fn window(arguments: &Arguments, bytes: usize, subscribers: usize) -> f64 {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (store, _) =
        KeyStore::open_or_create(&directory.path().join("keys")).expect("a key store can be made");
    let endpoint = "tcp://127.0.0.1:0".parse().expect("an endpoint");
    let config = BrokerConfig::from_key_store(&store, vec![endpoint]).expect("a fresh registry can be read");
    let broker = Broker::start(config).expect("a broker can start on a free port");
    let topic: TopicName = TOPIC.parse().expect("a topic");
    let publisher = attach(&store, &broker, "publisher");
    let readers: Vec<Client> =
        (0..subscribers).map(|number| attach(&store, &broker, &format!("subscriber-{number}"))).collect();
    let (ends, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let times = (
        Duration::from_millis(arguments.value("warm-up-ms", 300)),
        Duration::from_millis(arguments.value("window-ms", 1000)),
    );
    let rate = thread::scope(|scope| {
        for reader in &readers {
            let (ends, received) = (&ends, &received);
            let options = SubscribeOptions::default().overflow(Overflow::Wait);
            let filter = TOPIC.parse().expect("a filter");
            let mut subscription = wait(reader.subscribe(&filter, options)).expect("it is permitted");
            scope.spawn(move || {
                let mut last = None;
                while !ends.load(Ordering::Relaxed) {
                    let deadline = Instant::now() + Duration::from_millis(50);
                    // Told in hundreds, so that the telling costs nothing.
                    let mut count = 0;
                    while count < 100 {
                        match subscription.next_blocking(deadline) {
                            Ok(Event::Message(message)) => {
                                let number = number(&message.payload);
                                assert!(
                                    last.is_none_or(|last: u64| number == last + 1),
                                    "a message was lost"
                                );
                                last = Some(number);
                                count += 1;
                            }
                            Ok(gap) => panic!("a message was awaited, and {gap:?} came"),
                            Err(_) => break,
                        }
                    }
                    received.fetch_add(count, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            // One buffer holds the numbered payloads of many messages.
            let options = PublishOptions::default();
            let mut next = 0u64;
            while !ends.load(Ordering::Relaxed) {
                let mut payloads = vec![0u8; 256 * bytes.max(8)];
                for (step, payload) in payloads.chunks_exact_mut(bytes.max(8)).enumerate() {
                    payload[..8].copy_from_slice(&(next + step as u64).to_le_bytes());
                }
                next += 256;
                let payloads = Bytes::from(payloads);
                wait(async {
                    for step in 0..256 {
                        let payload = payloads.slice(step * bytes.max(8)..(step + 1) * bytes.max(8));
                        let sent = publisher.publish_waiting(&topic, Payload::bytes(payload), &options).await;
                        assert!(sent.is_ok(), "the publisher cannot go on: {sent:?}");
                    }
                });
            }
        });
        thread::sleep(times.0);
        let (begun, before) = (Instant::now(), received.load(Ordering::Relaxed));
        thread::sleep(times.1);
        let messages = received.load(Ordering::Relaxed) - before;
        let rate = messages as f64 / begun.elapsed().as_secs_f64() / subscribers as f64;
        ends.store(true, Ordering::Relaxed);
        rate
    });
    broker.stop(Duration::from_secs(1));
    rate
}

fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
