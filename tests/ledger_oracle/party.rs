//! A client process of the oracle: it does what it is told on standard input and says on standard
//! output all that happens to it. The process is this test binary again, running the one test [`party`].
//!
//! | told | says |
//! |---|---|
//! | `sub ID FILTER POLICY MESSAGES BYTES GROUP RETAINED` | `sub ID FROM` or `nosub ID REASON`; then `m ID SEQUENCE ORIGIN TOPIC PARTY NUMBER RETAINED`, `gap ID COUNT REASON` |
//! | `stall ID`, `resume ID`, `drain ID` | `stall ID`, `resume ID`, `drain ID` |
//! | `unsub ID` | `unsub ID` |
//! | `pub TOPIC COUNT BYTES MODE` | `ack TOPIC NUMBER`, `unknown TOPIC NUMBER`, `refused TOPIC NUMBER`; at the end `pub TOPIC NUMBERS_SO_FAR WHY_IT_ENDED` |
//! | `serve ID FILTER` | `serving ID` or `noserve ID REASON`; then `took PARTY NUMBER` before each answer, which says the same |
//! | `ask TOPIC COUNT` | `asked NUMBER`, then `done NUMBER PARTY NUMBER` or `failed NUMBER WHY`; at the end `asks` |
//! | `fence` | `fence` once the broker has taken all that was sent before |
//! | `close` | `close`, and the end |

use std::{
    collections::HashMap,
    io::{BufRead, Write},
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, Credentials, NextError, Payload, PublishError, TopicFilter, TopicName,
    blocking::wait,
    client::{
        ConnectOptions, Event, LinkState, PublishOptions, ServeOptions, SubscribeOptions, Subscription,
    },
    native::Overflow,
};

use crate::harness::{DEADLINE, eventually};

pub(super) const CREDENTIALS: &str = "INTERLOCK_TEST_CREDENTIALS";
pub(super) const NUMBER: &str = "INTERLOCK_TEST_PARTY";
const ENDPOINT: &str = "INTERLOCK_TEST_ENDPOINT";

pub(super) const POLICIES: [Overflow; 5] =
    [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly, Overflow::Disconnect, Overflow::Wait];

/// The command that runs a party; `endpoint` chooses among those of its credentials.
pub(super) fn command(
    credentials: &std::path::Path,
    number: usize,
    endpoint: usize,
) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "ledger_oracle::party::party", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CREDENTIALS, credentials)
        .env(NUMBER, number.to_string())
        .env(ENDPOINT, endpoint.to_string());
    command
}

/// Says one line. Whole lines only, whichever thread they come from.
fn say(line: std::fmt::Arguments<'_>) {
    let mut output = std::io::stdout().lock();
    // Whoever does not listen any more has ended this process, or will.
    let _ = output.write_all(format!("#{line}\n").as_bytes()).and_then(|()| output.flush());
}

#[test]
#[ignore = "not a test: the process that the oracle starts"]
fn party() {
    let Some(path) = std::env::var_os(CREDENTIALS) else { return };
    let mut credentials = Credentials::load(path.as_ref()).unwrap();
    let number: usize = std::env::var(NUMBER).unwrap().parse().unwrap();
    let endpoint: usize = std::env::var(ENDPOINT).unwrap().parse().unwrap();
    credentials.endpoints = vec![credentials.endpoints[endpoint % credentials.endpoints.len()].clone()];
    let client = match Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)) {
        Ok(client) => client,
        Err(error) => return say(format_args!("refused {error}")),
    };
    say(format_args!("hello"));
    watch(client.clone());
    let publisher = publisher(client.clone(), number);
    let asker = asker(client.clone(), number);
    let mut lanes: HashMap<String, Sender<Told>> = HashMap::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["sub", id, filter, policy, messages, bytes, group, retained] => {
                let options = SubscribeOptions {
                    overflow: POLICIES[policy.parse::<usize>().unwrap()],
                    queue_messages_max: messages.parse().unwrap(),
                    queue_bytes_max: bytes.parse().unwrap(),
                    group: (group != "-").then(|| group.to_owned()),
                    retained: retained == "1",
                };
                if let Some(lane) = subscribe(&client, id, &filter.parse().unwrap(), options) {
                    lanes.insert(id.to_owned(), lane);
                }
            }
            ["stall" | "resume" | "drain", id] => {
                let told = match words[0] {
                    "stall" => Told::Stall,
                    "resume" => Told::Resume,
                    _ => Told::Drain,
                };
                if lanes.get(id).is_none_or(|lane| lane.send(told).is_err()) {
                    say(format_args!("{} {id}", words[0]));
                }
            }
            ["unsub", id] => drop(lanes.remove(id)),
            ["pub", topic, count, bytes, mode] => {
                let order = Order {
                    topic: topic.parse().unwrap(),
                    count: count.parse().unwrap(),
                    bytes: bytes.parse().unwrap(),
                    mode: mode.to_owned(),
                };
                publisher.send(order).unwrap();
            }
            ["serve", id, filter] => serve(&client, id, &filter.parse().unwrap()),
            ["ask", topic, count] => asker.send((topic.parse().unwrap(), count.parse().unwrap())).unwrap(),
            ["fence"] => {
                // Behind all that was published; a session that was lost comes back.
                eventually("the broker's answer", || {
                    wait(client.request(&"$sys/broker/info".parse().unwrap(), Payload::default(), DEADLINE))
                        .ok()
                });
                say(format_args!("fence"));
            }
            ["close"] => {
                client.close_blocking();
                break;
            }
            _ => panic!("what is `{line}`?"),
        }
    }
    say(format_args!("close"));
    std::process::exit(0);
}

fn watch(client: Client) {
    std::thread::spawn(move || {
        let mut states = client.watch();
        let mut was_lost = false;
        loop {
            match &*states.borrow_and_update() {
                LinkState::Lost { reason } => {
                    was_lost = true;
                    say(format_args!("lost {reason}"));
                }
                LinkState::Closed => {
                    return say(format_args!("ended {}", client.closed_reason().unwrap_or_default()));
                }
                _ if was_lost => say(format_args!("again")),
                _ => {}
            }
            if wait(states.changed()).is_err() {
                return;
            }
        }
    });
}

// ---- publishing ---------------------------------------------------------------------------------

struct Order {
    topic: TopicName,
    count: u64,
    bytes: usize,
    mode: String,
}

/// A message says who sent it and its number on the topic; the rest is filling.
fn payload(party: usize, number: u64, bytes: usize) -> Payload {
    let mut text = format!("{party} {number} ").into_bytes();
    text.resize(text.len().max(bytes), b'.');
    Payload::bytes(text)
}

/// Party and number of a payload.
pub(super) fn parse(payload: &[u8]) -> (usize, u64) {
    let text = std::str::from_utf8(&payload[..payload.len().min(40)]).unwrap();
    let mut words = text.split(' ');
    (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
}

fn publisher(client: Client, party: usize) -> Sender<Order> {
    let (sender, orders) = channel::<Order>();
    std::thread::spawn(move || {
        let mut numbers: HashMap<TopicName, u64> = HashMap::new();
        for order in orders {
            let number = numbers.entry(order.topic.clone()).or_default();
            let ended = publish(&client, party, &order, number);
            say(format_args!("pub {} {number} {ended}", order.topic));
        }
    });
    sender
}

fn publish(client: &Client, party: usize, order: &Order, number: &mut u64) -> String {
    let options = PublishOptions { retain: order.mode == "retain", ..PublishOptions::default() };
    for _ in 0..order.count {
        let next = *number + 1;
        let payload = payload(party, next, order.bytes);
        let outcome = match order.mode.as_str() {
            "ack" => wait(client.publish_acknowledged(&order.topic, payload, options.clone())).map(|_| true),
            "wait" | "retain" => {
                wait(client.publish_waiting(&order.topic, payload, &options)).map(|()| false)
            }
            _ => match client.publish_with(&order.topic, payload, &options) {
                Err(PublishError::Full { payload }) => {
                    wait(client.publish_waiting(&order.topic, payload, &options)).map(|()| false)
                }
                other => other.map(|()| false),
            },
        };
        match outcome {
            Ok(acknowledged) => {
                *number = next;
                if acknowledged {
                    say(format_args!("ack {} {next}", order.topic));
                }
            }
            // By the broker, or at once because the broker has refused the topic before.
            Err(PublishError::Denied { .. }) if order.mode == "ack" => {
                *number = next;
                say(format_args!("refused {} {next}", order.topic));
            }
            Err(PublishError::Unconfirmed { .. }) => {
                *number = next;
                say(format_args!("unknown {} {next}", order.topic));
            }
            // Nothing was sent: the number is free again.
            Err(PublishError::Denied { .. }) => return "denied".to_owned(),
            Err(PublishError::Held { .. }) => return "held".to_owned(),
            Err(PublishError::Full { .. }) => return "full".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
    "done".to_owned()
}

// ---- requests -----------------------------------------------------------------------------------

fn asker(client: Client, party: usize) -> Sender<(TopicName, u64)> {
    let (sender, orders) = channel::<(TopicName, u64)>();
    std::thread::spawn(move || {
        let mut number = 0;
        for (topic, count) in orders {
            for _ in 0..count {
                number += 1;
                say(format_args!("asked {number}"));
                match wait(client.request(&topic, payload(party, number, 10), DEADLINE)) {
                    Ok(answer) => {
                        let (party, echo) = parse(&answer.payload);
                        say(format_args!("done {number} {party} {echo}"));
                    }
                    Err(error) => say(format_args!("failed {number} {error}")),
                }
            }
            say(format_args!("asks"));
        }
    });
    sender
}

/// Answers each request with what it says; some with an error, some not at all.
fn serve(client: &Client, id: &str, filter: &TopicFilter) {
    let mut service = match wait(client.serve(filter, ServeOptions::default())) {
        Ok(service) => service,
        Err(error) => return say(format_args!("noserve {id} {error}")),
    };
    say(format_args!("serving {id}"));
    std::thread::spawn(move || {
        while let Some(request) = wait(service.next()) {
            let (party, number) = parse(&request.message.payload);
            say(format_args!("took {party} {number}"));
            // Who asked may be gone, or its session; that is its own journal's to say.
            let _ = match number % 7 {
                0 => wait(request.fail("odd", "it does not like this number")),
                1 => {
                    drop(request);
                    Ok(())
                }
                _ => wait(request.end(payload(party, number, 10))),
            };
        }
    });
}

// ---- subscribing --------------------------------------------------------------------------------

enum Told {
    Stall,
    Resume,
    Drain,
}

fn subscribe(
    client: &Client,
    id: &str,
    filter: &TopicFilter,
    options: SubscribeOptions,
) -> Option<Sender<Told>> {
    let subscription = match wait(client.subscribe(filter, options)) {
        Ok(subscription) => subscription,
        Err(error) => {
            say(format_args!("nosub {id} {error}"));
            return None;
        }
    };
    say(format_args!("sub {id} {}", subscription.from_sequence()));
    let (sender, told) = channel();
    let id = id.to_owned();
    std::thread::spawn(move || {
        consume(&id, subscription, &told);
        say(format_args!("unsub {id}"));
    });
    Some(sender)
}

/// Until the sender is gone: then the subscription is dropped, which ends it.
fn consume(id: &str, mut subscription: Subscription, told: &Receiver<Told>) {
    loop {
        match told.try_recv() {
            Ok(Told::Stall) => {
                say(format_args!("stall {id}"));
                loop {
                    match told.recv() {
                        Ok(Told::Resume) => break say(format_args!("resume {id}")),
                        Ok(Told::Stall) => say(format_args!("stall {id}")),
                        Ok(Told::Drain) => say(format_args!("drain {id}")),
                        Err(_) => return,
                    }
                }
            }
            Ok(Told::Resume) => say(format_args!("resume {id}")),
            Ok(Told::Drain) => say(format_args!("drain {id}")),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {}
        }
        match subscription.next_blocking(Instant::now() + Duration::from_millis(10)) {
            Ok(Event::Message(message)) => {
                let (party, number) = parse(&message.payload);
                say(format_args!(
                    "m {id} {} {} {} {party} {number} {}",
                    message.sequence,
                    message.origin,
                    message.topic,
                    u8::from(message.retained)
                ));
            }
            Ok(Event::Gap { count, reason }) => match count {
                Some(count) => say(format_args!("gap {id} {count} {reason}")),
                None => say(format_args!("gap {id} ? {reason}")),
            },
            Err(NextError::TimedOut) => {}
            Err(_) => {
                say(format_args!("over {id} {}", subscription.end_reason().unwrap_or_default()));
                // Whoever stalls or drains it is answered all the same.
                while let Ok(told) = told.recv() {
                    let word = match told {
                        Told::Stall => "stall",
                        Told::Resume => "resume",
                        Told::Drain => "drain",
                    };
                    say(format_args!("{word} {id}"));
                }
                return;
            }
        }
    }
}
