//! Durable delivery on the real binary: what was accepted reaches its consumers once, whoever is killed, and people can see
//! and mend what does not.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Payload,
    blocking::wait,
    durable::{ConsumeOptions, Delivery, DurableError, DurableOptions},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    DEADLINE, eventually,
    runtime::{CONFIG, TestRuntime},
};

const TO_OPERATOR: &str = "topics = [{ filter = \"orders/#\", consumers = [\"operator\"] }]\n";

/// A runtime with these settings of the outbox, and no regard for a small disk.
pub(crate) fn started_with(settings: &str) -> TestRuntime {
    TestRuntime::start_with(&section(settings))
}

fn section(settings: &str) -> String {
    let floor = if settings.contains("disk_floor") { "" } else { "disk_floor = 0\n" };
    format!("[outbox]\n{floor}{settings}\n")
}

/// Other settings of the outbox, while it runs.
pub(crate) fn configure(runtime: &TestRuntime, settings: &str) {
    let file = runtime.directory.path().join("interlock.toml");
    std::fs::write(file, format!("{CONFIG}{}", section(settings))).unwrap();
    let output = runtime.interlock(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// `interlock outbox put`: the exit code, and what was said.
pub(crate) fn put(runtime: &TestRuntime, words: &[&str]) -> (i32, String) {
    let output = runtime.interlock(&[&["outbox", "put"], words].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// What a verb lists, as JSON.
pub(crate) fn deliveries(runtime: &TestRuntime, words: &[&str]) -> Vec<Value> {
    let output = runtime.interlock(&[words, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn statistics(runtime: &TestRuntime) -> Value {
    deliveries(runtime, &["outbox", "stats"]).pop().unwrap_or_default()
}

pub(crate) fn operator(runtime: &TestRuntime) -> Client {
    let credentials = Credentials::load(&runtime.data().join("keys/operator.toml")).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

fn size(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|size| size.parse().ok()).unwrap_or(otherwise)
}

/// Puts until it is known that the message was accepted.
fn put_surely(client: &Client, key: &str, number: u64) -> Uuid {
    let (id, topic) = (Uuid::now_v7(), "orders/new".parse().unwrap());
    let options = DurableOptions { id: Some(id), key: Some(key.to_owned()), ..DurableOptions::default() };
    let begun = Instant::now();
    loop {
        let payload = Payload::json(&number).unwrap();
        match wait(client.publish_durable(&topic, payload, &options, Duration::from_secs(2))) {
            Ok(accepted) => return accepted.id,
            Err(error) => {
                let code = error.code().to_owned();
                assert!(
                    matches!(code.as_str(), "unconfirmed" | "no_outbox" | "busy" | "closed"),
                    "{code}: {error}"
                );
                assert!(begun.elapsed() < DEADLINE * 3, "never accepted: {error}");
            }
        }
    }
}

/// What a consumer has done: by message id, with the key and its number, in order.
#[derive(Debug, Default)]
struct Effects {
    order: Vec<(Uuid, String, u64)>,
    seen: HashMap<Uuid, u64>,
}

impl Effects {
    /// The effect and the id that says that it was had: one step, as in a database.
    fn have(&mut self, delivery: &Delivery) {
        let header = &delivery.message.header;
        let times = self.seen.entry(header.id).or_default();
        *times += 1;
        if *times == 1 {
            let key = header.key().unwrap_or_default().to_owned();
            self.order.push((header.id, key, delivery.message.decode().unwrap()));
        }
    }
}

/// `INTERLOCK_OUTBOX_RUNTIME_KILLS=100` is the soak size.
#[test]
fn what_was_accepted_has_its_effect_once_and_in_order_although_runtime_and_consumer_are_killed_again_and_again()
 {
    let mut runtime = started_with(&format!(
        "{TO_OPERATOR}retry_base = \"20ms\"\nretry_cap = \"100ms\"\nsweep = \"200ms\"\nattempts_max = 1000"
    ));
    let effects = Arc::new(Mutex::new(Effects::default()));
    let enough = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (client, enough) = (operator(&runtime), Arc::clone(&enough));
        // There is always something on its way, until it is enough.
        std::thread::spawn(move || {
            let mut accepted = Vec::new();
            for number in 0.. {
                let key = format!("key {}", number % 3);
                accepted.push((put_surely(&client, &key, number), key, number));
                if enough.load(Ordering::Relaxed) {
                    break;
                }
            }
            accepted
        })
    };
    let consume = |runtime: &TestRuntime| {
        let (client, effects) = (operator(runtime), Arc::clone(&effects));
        let killed = client.clone();
        let consuming = std::thread::spawn(move || {
            let options = ConsumeOptions { concurrency: 4, ..ConsumeOptions::default() };
            let consumer = wait(client.consume_durable(&"#".parse().unwrap(), options));
            // It was killed before it had begun.
            let Ok(mut consumer) = consumer else { return };
            while let Some(delivery) = wait(consumer.next()) {
                effects.lock().unwrap().have(&delivery);
                // Killed here, the outbox never hears of it.
                let _ = wait(delivery.ack());
            }
        });
        (killed, consuming)
    };
    let mut consumer = consume(&runtime);
    for kill in 0..size("INTERLOCK_OUTBOX_RUNTIME_KILLS", 3) {
        let before = effects.lock().unwrap().order.len();
        eventually("something to be delivered", || {
            (effects.lock().unwrap().order.len() > before + 3).then_some(())
        });
        if kill % 3 == 2 {
            // As a process that is killed: what it had in hand is never acknowledged.
            end(consumer);
            consumer = consume(&runtime);
        } else {
            runtime.process.kill();
            runtime.restart();
        }
    }
    enough.store(true, Ordering::Relaxed);
    let accepted = publishing.join().unwrap();
    eventually("all to be delivered", || {
        (effects.lock().unwrap().order.len() >= accepted.len()).then_some(())
    });
    eventually("all to be finished", || (statistics(&runtime)["open"] == 0).then_some(()));
    end(consumer);
    let effects = effects.lock().unwrap();
    let mut by_key: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    effects.order.iter().for_each(|(_, key, number)| by_key.entry(key).or_default().push(*number));
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    for (id, key, number) in &accepted {
        assert!(effects.order.contains(&(*id, key.clone(), *number)), "{id} was accepted and had no effect");
    }
    assert_eq!(effects.order.len(), accepted.len());
    assert_eq!(statistics(&runtime)["deliveries"]["dead"], Value::Null);
}

/// Ends the session under a consumer.
fn end((client, consuming): (Client, std::thread::JoinHandle<()>)) {
    wait(client.close());
    consuming.join().unwrap();
}

#[test]
fn without_topics_nothing_is_opened_and_the_first_route_of_a_reload_opens_it() {
    let runtime = started_with("");
    assert!(!runtime.data().join("outbox.db").exists());
    let (exit, said) = put(&runtime, &["orders/new", "x"]);
    assert!(exit == 2 && said.contains("nobody is named as a consumer of `orders/new`"), "{exit} {said}");
    assert_eq!(runtime.interlock(&["outbox", "list"]).status.code(), Some(1));
    configure(&runtime, TO_OPERATOR);
    eventually("it to be opened", || (put(&runtime, &["orders/new", "x"]).0 == 0).then_some(()));
    assert!(runtime.data().join("outbox.db").exists());
}

#[test]
fn a_stop_refuses_what_is_new_and_what_it_cuts_off_is_sent_again_by_the_next_start() {
    let settings = format!("{}[shutdown]\ndrain = \"3s\"\nforced = \"60s\"\n", section(TO_OPERATOR));
    let mut runtime = TestRuntime::start_with(&settings);
    let client = operator(&runtime);
    assert_eq!(put(&runtime, &["orders/new", "first"]).0, 0);
    let mut consumer =
        wait(client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default())).unwrap();
    let held = wait(consumer.next()).unwrap();
    assert_eq!(held.attempt, 1);
    runtime.signal(Signal::SIGTERM);
    let publish = async || {
        let topic = "orders/new".parse().unwrap();
        client.publish_durable(&topic, Payload::default(), &DurableOptions::default(), DEADLINE).await
    };
    eventually("new messages to be refused", || match wait(publish()) {
        Ok(_) => None,
        Err(DurableError::ShuttingDown) => Some(()),
        Err(error) => panic!("{error}"),
    });
    assert_eq!(runtime.process.exit_code(), Some(10));
    drop((held, consumer, client));

    // Beside no runtime people see it all the same.
    let waiting = deliveries(&runtime, &["outbox", "list"]);
    let first = waiting.iter().find(|one| one["number"] == 1).unwrap();
    assert_eq!((&first["state"], &first["attempts"]), (&"pending".into(), &1.into()), "{waiting:?}");
    runtime.restart();
    eventually("the log to say who was cut off", || {
        let logged = runtime.interlock(&["logs", "--component", "outbox", "--level", "warn"]);
        let text = String::from_utf8_lossy(&logged.stdout).into_owned();
        text.contains("deliveries to `operator` were under way at the stop").then_some(())
    });
    let client = operator(&runtime);
    let mut consumer =
        wait(client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default())).unwrap();
    let again = wait(consumer.next()).unwrap();
    assert_eq!((again.number, again.attempt), (1, 2));
    wait(again.ack()).unwrap();
    // What was put before the stop was heard of has been accepted, and comes, too.
    for _ in 1..waiting.len() {
        wait(wait(consumer.next()).unwrap().ack()).unwrap();
    }
    eventually("all to be finished", || (statistics(&runtime)["open"] == 0).then_some(()));
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
}

#[test]
fn a_dead_letter_is_listed_shown_retried_and_dropped_with_and_without_a_runtime_and_the_log_says_by_whom() {
    let mut runtime = started_with(TO_OPERATOR);
    let client = operator(&runtime);
    for (number, payload) in ["{\"total\":7}", "plain text", "x"].into_iter().enumerate() {
        assert_eq!(put(&runtime, &[&format!("orders/{number}"), payload]).0, 0);
    }
    let mut consumer =
        wait(client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default())).unwrap();
    for _ in 0..3 {
        wait(wait(consumer.next()).unwrap().reject("no such customer")).unwrap();
    }
    eventually("three dead letters", || (deliveries(&runtime, &["dlq", "list"]).len() == 3).then_some(()));
    eventually("the log to say so", || {
        let logged = runtime.interlock(&["logs", "--component", "outbox", "--level", "warn"]);
        String::from_utf8_lossy(&logged.stdout).contains("became dead letters").then_some(())
    });
    let of_topic = deliveries(&runtime, &["dlq", "list", "--topic", "orders/1", "--reason", "customer"]);
    assert_eq!((of_topic.len(), &of_topic[0]["number"]), (1, &2.into()));
    for none in [["--topic", "other/#"], ["--consumer", "billing"], ["--reason", "disk"], ["--key", "k"]] {
        let output = runtime.interlock(&[&["dlq", "list"], none.as_slice()].concat());
        assert_eq!(output.status.code(), Some(1), "{none:?}");
    }
    let shown = deliveries(&runtime, &["dlq", "show", "1"]).pop().unwrap();
    assert_eq!(shown["payload"]["json"]["total"], 7, "{shown}");
    assert!(shown["attempts"][0]["reason"].as_str().unwrap().contains("no such customer"), "{shown}");
    let id = shown["id"].as_str().unwrap().to_owned();
    let text = runtime.interlock(&["dlq", "show", &id]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("attempt 1: ") && text.contains("no such customer"), "{text}");
    let reasons = &deliveries(&runtime, &["dlq", "stats"])[0]["reasons"][0];
    assert_eq!(reasons["deliveries"], 3, "{reasons}");

    // With the same id, and at once: the running outbox is told.
    let begun = Instant::now();
    assert_eq!(runtime.interlock(&["dlq", "retry", &id]).status.code(), Some(0));
    let again = wait(consumer.next()).unwrap();
    assert_eq!((again.message.header.id.to_string(), again.attempt), (id, 1));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    wait(again.ack()).unwrap();

    // Nobody who is not asked drops anything.
    for words in [&["dlq", "drop", "--all"][..], &["dlq", "drop"], &["dlq", "retry"]] {
        assert_eq!(runtime.interlock(words).status.code(), Some(2), "{words:?}");
    }
    drop((consumer, client));
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    // Said twice it is one.
    let dropped = runtime.interlock(&["dlq", "drop", "3", "3", "--topic", "orders/2", "--yes"]);
    assert_eq!(dropped.status.code(), Some(0), "{dropped:?}");
    assert_eq!(String::from_utf8_lossy(&dropped.stdout), "dropped 1 of 1\n");
    for words in [["outbox", "list", "-n", "0"], ["dlq", "list", "-n", "0"]] {
        assert_eq!(runtime.interlock(&words).status.code(), Some(2), "{words:?}");
    }
    assert_eq!(runtime.interlock(&["logs", "-n", "0"]).status.code(), Some(2));
    let retried = runtime.interlock(&["dlq", "retry", "--all", "--rate", "50"]);
    assert_eq!(retried.status.code(), Some(0), "{retried:?}");
    assert!(deliveries(&runtime, &["dlq", "list"]).is_empty());
    let states: Vec<Value> = deliveries(
        &runtime,
        &["outbox", "list", "--state", "dropped", "--state", "pending", "--state", "acknowledged"],
    );
    let states: Vec<&str> = states.iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["acknowledged", "pending", "dropped"]);
    let logs = runtime.interlock(&["logs", "-c", "outbox"]);
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(
        logs.contains("1 of 1 deliveries were dropped by `interlock dlq`") && logs.contains("uid"),
        "{logs}"
    );
}
