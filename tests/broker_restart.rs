//! A broker that is killed under load and started again: who comes back, what is reported, what is lost.
//!
//! `INTERLOCK_RESTARTS=500 cargo test -p interlock-tests broker_restart` is the soak; CI runs [`ROUNDS`].

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, mpsc::channel},
    time::Duration,
};

use interlock_bus::{
    Client, Credentials, Payload, PublishError, RequestError, TopicName,
    blocking::wait,
    client::{ConnectOptions, Event, ServeOptions, SubscribeOptions},
};

use crate::{
    broker_process::BrokerProcess,
    harness::{
        DEADLINE,
        dice::{Dice, environment, seed},
        eventually,
        ledger::{ask, assert_balances},
    },
};

/// Kills in CI: one per cent of the soak.
const ROUNDS: u64 = 5;

/// What came to a subscriber, in order: a publisher's number, or a gap.
type Came = Arc<Mutex<Vec<Option<u64>>>>;

fn topic() -> TopicName {
    "load".parse().unwrap()
}

fn connect(credentials: &Credentials, endpoint: usize) -> Client {
    let endpoints = vec![credentials.endpoints[endpoint % 2].clone()];
    let credentials = Credentials { endpoints, ..credentials.clone() };
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

/// Writes down what comes until the client is closed.
fn listen(client: &Client) -> Came {
    let mut subscription =
        wait(client.subscribe(&"load".parse().unwrap(), SubscribeOptions::default())).unwrap();
    let came = Came::default();
    let shared = Arc::clone(&came);
    std::thread::spawn(move || {
        while let Some(event) = wait(subscription.next()) {
            shared.lock().unwrap().push(match event {
                Event::Message(message) => Some(message.text().unwrap().parse().unwrap()),
                Event::Gap { count, reason } => {
                    assert_eq!((count, reason.as_str()), (None, "disconnected"));
                    None
                }
            });
        }
    });
    came
}

#[test]
fn a_broker_killed_under_load_loses_no_acknowledged_message_in_silence_and_everybody_comes_back() {
    let rounds = environment("INTERLOCK_RESTARTS").unwrap_or(ROUNDS);
    let mut dice = Dice(seed("broker restarts"));
    let mut broker = BrokerProcess::start();
    let member =
        |name: &str| broker.enrol(name, &["load"], &["load"], &["asked"], &["asked", "$sys/broker/#"]);
    let (publisher, subscribers) = (member("publisher"), ["one", "two"].map(member));
    let (server, requester) = (member("server"), member("requester"));
    let publisher = connect(&publisher, 0);
    let subscribers = [connect(&subscribers[0], 0), connect(&subscribers[1], 1)];
    let came = [listen(&subscribers[0]), listen(&subscribers[1])];
    let (server, requester) = (connect(&server, 1), connect(&requester, 0));
    // Requests are taken in hand and never answered: only the loss of the session ends them.
    let mut service = wait(server.serve(&"asked".parse().unwrap(), ServeOptions::default())).unwrap();
    let (in_hand, taken) = channel();
    std::thread::spawn(move || {
        while let Some(request) = wait(service.next()) {
            if in_hand.send(request).is_err() {
                return;
            }
        }
    });

    let (mut number, mut acknowledged) = (0, HashSet::new());
    let mut epochs = HashSet::new();
    for round in 0..rounds {
        assert!(epochs.insert(ask(&publisher, "info")["epoch"].to_string()), "an epoch came twice");
        let mut stream =
            wait(requester.request_stream(&"asked".parse().unwrap(), Payload::default(), DEADLINE * 10))
                .unwrap();
        let request = taken.recv_timeout(DEADLINE).unwrap();

        // Under load: the kill falls between any two steps of some message.
        let messages = dice.below(300);
        let killed_after = Duration::from_micros(dice.below(40_000));
        let (go, gone) = channel();
        let killer = std::thread::scope(|scope| {
            let broker = &mut broker;
            let killer = scope.spawn(move || {
                gone.recv().unwrap();
                std::thread::sleep(killed_after);
                broker.kill();
            });
            for step in 0.. {
                if step == messages {
                    go.send(()).unwrap();
                }
                number += 1;
                let payload = Payload::text(number.to_string());
                match wait(publisher.publish_acknowledged(&topic(), payload, Default::default())) {
                    Ok(ack) => {
                        assert_eq!((ack.subscribers, ack.dropped), (2, 0), "round {round}, number {number}");
                        acknowledged.insert(number);
                    }
                    // The publisher is told that nobody knows, or that nothing was sent.
                    Err(PublishError::Unconfirmed { .. } | PublishError::NotConnected { .. }) => break,
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
            killer.join()
        });
        killer.unwrap();
        let ended = wait(stream.next()).unwrap().unwrap_err();
        assert!(matches!(ended, RequestError::Disconnected), "round {round}: {ended}");
        drop(request);

        broker.restart();
        // Everybody is back with what it had when a message reaches both, and the service is found again.
        let marker = eventually("both subscribers to be back", || {
            number += 1;
            let payload = Payload::text(number.to_string());
            match wait(publisher.publish_acknowledged(&topic(), payload, Default::default())) {
                Ok(ack) if ack.subscribers == 2 => Some(number),
                Ok(_) => None,
                Err(PublishError::Unconfirmed { .. } | PublishError::NotConnected { .. }) => None,
                Err(error) => panic!("round {round}: {error}"),
            }
        });
        eventually("the service to be back", || {
            let peers = ask(broker.auditor(), "subscriptions");
            peers.as_array().unwrap().iter().any(|row| row["peer"] == "server").then_some(())
        });
        eventually("the requester to be back", || wait(requester.ping()).ok());
        for came in &came {
            eventually("the marker to come", || came.lock().unwrap().contains(&Some(marker)).then_some(()));
            let came = came.lock().unwrap();
            let gaps = came.iter().filter(|event| event.is_none()).count() as u64;
            assert_eq!(gaps, round + 1, "each loss of the session is one gap");
            let numbers: Vec<u64> = came.iter().flatten().copied().collect();
            assert!(
                numbers.windows(2).all(|pair| pair[0] < pair[1]),
                "out of order or twice in round {round}"
            );
        }
        eventually("the new ledger to show all as delivered", || {
            let rows = assert_balances(broker.auditor());
            rows.iter().all(|row| row.queued == 0).then_some(())
        });
    }
    for came in &came {
        let came = came.lock().unwrap();
        // What was acknowledged and did not come stands right in front of a gap.
        let mut before = 0;
        let mut lost_without_gap = Vec::new();
        let mut gap = false;
        for event in came.iter() {
            let Some(number) = event else {
                gap = true;
                continue;
            };
            let missing = (before + 1..*number).filter(|number| acknowledged.contains(number));
            if !gap {
                lost_without_gap.extend(missing);
            }
            (before, gap) = (*number, false);
        }
        assert!(lost_without_gap.is_empty(), "acknowledged and lost in silence: {lost_without_gap:?}");
    }
}
