//! Many threads on one client: nobody's answer may depend on who reads, who writes and who leaves.
//!
//! `INTERLOCK_RACE_ROUNDS` sets how often each runs, `INTERLOCK_RACE_SEED` repeats one that failed.

use std::{
    future::Future,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{Client, ConnectOptions, Event, LinkState, PublishOptions, ServeOptions, SubscribeOptions};
use crate::{
    blocking::{wait, wait_until},
    broker::{Broker, BrokerConfig, BrokerHandle},
    endpoint::Endpoint,
    envelope::Payload,
    error::RequestError,
    keys::{Credentials, KeyStore, Permissions},
    native::Overflow,
    topic::TopicName,
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a thread draws its pauses from.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// Comes at once, a little later, or after others had their turn.
    fn dawdle(&mut self) {
        match self.throw(8) {
            0 => thread::yield_now(),
            1 => (0..self.throw(20_000)).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }
}

/// Runs a test for a few seeds, and names the one that failed.
fn rounds(name: &str, test: impl Fn(u64)) {
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("INTERLOCK_RACE_SEED").unwrap_or_else(|| crate::envelope::now_ns() | 1);
    for round in 0..number("INTERLOCK_RACE_ROUNDS").unwrap_or(2) {
        let seed = first.wrapping_add(round * 2);
        tracing::info!(name, seed, "round");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        assert!(result.is_ok(), "{name} failed with INTERLOCK_RACE_SEED={seed}");
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    store: KeyStore,
    endpoints: Vec<Endpoint>,
    broker: BrokerHandle,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    let all: &[&str] = &["#"];
    let mut permissions = Permissions::from_lists(all, all, all, all).unwrap();
    permissions.wait = true;
    for name in ["alice", "bob"] {
        store.issue(&name.parse().unwrap(), &permissions, &[], None).unwrap();
    }
    let any = vec!["tcp://127.0.0.1:0".parse().unwrap(), Endpoint::Ipc(directory.path().join("bus.sock"))];
    let broker = Broker::start(BrokerConfig::from_key_store(&store, any).unwrap()).unwrap();
    Fixture { endpoints: broker.endpoints().to_vec(), directory, store, broker }
}

impl Fixture {
    /// With a key that outlives the broker, over one of its two endpoints.
    fn connect(&self, name: &str, endpoint: u64) -> Client {
        let path = self.directory.path().join("keys").join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let endpoint = &self.endpoints[endpoint as usize % 2];
        let text = text.replace("endpoints = []", &format!("endpoints = [\"{endpoint}\"]"));
        let credentials = Credentials::from_toml(&text, &path).unwrap();
        Client::connect_blocking(ConnectOptions::new(credentials).timeout(TIMEOUT)).unwrap()
    }

    fn restart(&mut self) {
        self.broker.stop(Duration::ZERO);
        let config = BrokerConfig::from_key_store(&self.store, self.endpoints.clone()).unwrap();
        self.broker = Broker::start(config).unwrap();
    }
}

fn soon<F: Future>(future: F) -> F::Output {
    wait_until(future, Instant::now() + TIMEOUT).expect("nobody waits for ever")
}

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Answers `echo` and keeps `stuck` unanswered until told to stop.
fn serve(client: &Client, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let mut echo = soon(client.serve(&"echo".parse().unwrap(), ServeOptions::default())).unwrap();
    let mut stuck = soon(client.serve(&"stuck".parse().unwrap(), ServeOptions::default())).unwrap();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut kept = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let turn = async {
                tokio::select! {
                    request = echo.next() => (request, true),
                    request = stuck.next() => (request, false),
                }
            };
            match wait_until(turn, Instant::now() + Duration::from_millis(20)) {
                Some((Some(request), true)) => {
                    let payload = Payload::bytes(request.message.payload.clone());
                    let _ = wait(request.end(payload));
                }
                Some((Some(request), false)) => kept.push(request),
                Some((None, _)) => return,
                None => {}
            }
        }
    })
}

#[test]
fn threads_that_share_a_client_all_get_their_answers_and_messages_whoever_reads_and_writes() {
    const REQUESTS: u64 = 300;
    const MESSAGES: u64 = 2_000;
    rounds("threads", |seed| {
        let fixture = fixture();
        let (client, server) = (fixture.connect("alice", seed), fixture.connect("bob", seed >> 1));
        let stop = Arc::new(AtomicBool::new(false));
        let serving = serve(&server, &stop);
        let options = SubscribeOptions::default().overflow(Overflow::Wait);
        let mut subscription = soon(client.subscribe(&"flood".parse().unwrap(), options)).unwrap();
        let mut dice = Dice(seed);
        thread::scope(|scope| {
            for number in 0..6 {
                let mut dice = Dice(dice.throw(u64::MAX) | 1);
                let client = &client;
                scope.spawn(move || {
                    let echo = topic("echo");
                    let echo = &echo;
                    let mut ask = |question: u64| {
                        dice.dawdle();
                        let payload = Payload::text(question.to_string());
                        async move {
                            let answer = client.request(echo, payload, TIMEOUT).await.unwrap();
                            assert_eq!(answer.text(), Some(question.to_string().as_str()));
                        }
                    };
                    match number % 3 {
                        0 => (0..REQUESTS).for_each(|question| soon(ask(question))),
                        1 => soon(async {
                            let mut asked: FuturesUnordered<_> = (0..8).map(&mut ask).collect();
                            for question in 8..REQUESTS {
                                asked.next().await;
                                asked.push(ask(question));
                            }
                            while asked.next().await.is_some() {}
                        }),
                        _ => executor().block_on(async {
                            for question in 0..REQUESTS {
                                tokio::time::timeout(TIMEOUT, ask(question)).await.unwrap();
                            }
                        }),
                    }
                });
            }
            let mut dice = Dice(dice.throw(u64::MAX) | 1);
            let publisher = &client;
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    dice.dawdle();
                    let payload = Payload::text(number.to_string());
                    soon(publisher.publish_waiting(&topic("flood"), payload, &PublishOptions::default()))
                        .unwrap();
                }
            });
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    match subscription.next_blocking(Instant::now() + TIMEOUT).unwrap() {
                        Event::Message(message) => {
                            assert_eq!(message.text(), Some(number.to_string().as_str()))
                        }
                        gap => panic!("{gap:?}"),
                    }
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
        serving.join().unwrap();
        soon(client.close());
    });
}

#[test]
fn a_lost_link_ends_every_wait_whoever_reads_the_socket_and_the_next_session_works() {
    rounds("lost link", |seed| {
        let mut fixture = fixture();
        let (client, server) = (fixture.connect("alice", seed), fixture.connect("bob", seed >> 1));
        let stop = Arc::new(AtomicBool::new(false));
        let serving = serve(&server, &stop);
        let mut dice = Dice(seed);
        for _ in 0..3 {
            let mut states = [client.watch(), server.watch()];
            let begun = Barrier::new(5);
            thread::scope(|scope| {
                for number in 0..4 {
                    let mut dice = Dice(dice.throw(u64::MAX) | 1);
                    let (client, begun) = (&client, &begun);
                    scope.spawn(move || {
                        begun.wait();
                        dice.dawdle();
                        // Until the link is lost: some ask and are answered, others wait.
                        let (stuck, echo) = (topic("stuck"), topic("echo"));
                        let lost = match number % 2 {
                            0 => soon(client.request(&stuck, Payload::default(), TIMEOUT)).unwrap_err(),
                            _ => loop {
                                if let Err(error) = soon(client.request(&echo, Payload::default(), TIMEOUT)) {
                                    break error;
                                }
                            },
                        };
                        let is_told = matches!(
                            lost,
                            RequestError::Disconnected
                                | RequestError::ServerGone
                                | RequestError::NoResponders { .. }
                        );
                        assert!(is_told, "{lost}");
                    });
                }
                begun.wait();
                thread::sleep(Duration::from_micros(dice.throw(20_000)));
                fixture.restart();
            });
            for state in &mut states {
                soon(state.wait_for(|state| matches!(state, LinkState::Ready))).unwrap();
            }
            // The services are renewed once their session answers; until then nobody responds.
            loop {
                match soon(client.request(&topic("echo"), Payload::text("again"), TIMEOUT)) {
                    Ok(answer) => break assert_eq!(answer.text(), Some("again")),
                    Err(
                        RequestError::NoResponders { .. }
                        | RequestError::Disconnected
                        | RequestError::ServerGone,
                    ) => {
                        thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        serving.join().unwrap();
    });
}

#[test]
fn closing_ends_the_waits_of_other_threads_and_sends_what_they_published() {
    rounds("closing", |seed| {
        let fixture = fixture();
        let (client, server) = (fixture.connect("alice", seed), fixture.connect("bob", seed >> 1));
        let stop = Arc::new(AtomicBool::new(false));
        let serving = serve(&server, &stop);
        let mut subscription =
            soon(server.subscribe(&"last".parse().unwrap(), SubscribeOptions::default())).unwrap();
        let mut dice = Dice(seed);
        let begun = Barrier::new(4);
        let sent: u64 = thread::scope(|scope| {
            for _ in 0..2 {
                let (client, begun) = (&client, &begun);
                scope.spawn(move || {
                    begun.wait();
                    let stuck = topic("stuck");
                    let ended = soon(client.request(&stuck, Payload::default(), TIMEOUT)).unwrap_err();
                    assert!(matches!(ended, RequestError::Disconnected), "{ended}");
                });
            }
            let (publisher, begun) = (&client, &begun);
            let publishing = scope.spawn(move || {
                begun.wait();
                // Each one that was taken before the client closed must arrive.
                (0..).take_while(|_| publisher.publish(&topic("last"), Payload::default()).is_ok()).count()
                    as u64
            });
            begun.wait();
            thread::sleep(Duration::from_micros(dice.throw(3_000)));
            soon(client.close());
            publishing.join().unwrap()
        });
        for _ in 0..sent.min(10_000) {
            let event = subscription.next_blocking(Instant::now() + TIMEOUT).unwrap();
            assert!(matches!(event, Event::Message(_)), "{event:?}");
        }
        stop.store(true, Ordering::Relaxed);
        serving.join().unwrap();
    });
}

#[test]
fn a_wait_inside_a_wait_is_answered_and_takes_nothing_from_the_outer_one() {
    let fixture = fixture();
    let (client, server) = (fixture.connect("alice", 0), fixture.connect("bob", 1));
    let stop = Arc::new(AtomicBool::new(false));
    let serving = serve(&server, &stop);
    let mut relay = soon(client.serve(&"relay".parse().unwrap(), ServeOptions::default())).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            soon(async {
                for _ in 0..400 {
                    let request = relay.next().await.unwrap();
                    let payload = Payload::bytes(request.message.payload.clone());
                    let answer = wait(client.request(&topic("echo"), payload, TIMEOUT)).unwrap();
                    // And one whose executor is not ours.
                    let echo = topic("echo");
                    executor().block_on(client.request(&echo, Payload::default(), TIMEOUT)).unwrap();
                    request.end(Payload::bytes(answer.payload)).await.unwrap();
                }
            });
        });
        soon(async {
            let ask = |number: u32| {
                let server = &server;
                async move {
                    let payload = Payload::text(number.to_string());
                    let answer = server.request(&topic("relay"), payload, TIMEOUT).await.unwrap();
                    assert_eq!(answer.text(), Some(number.to_string().as_str()));
                }
            };
            let asked: FuturesUnordered<_> = (0..400).map(ask).collect();
            assert_eq!(asked.count().await, 400);
        });
    });
    stop.store(true, Ordering::Relaxed);
    serving.join().unwrap();
}
