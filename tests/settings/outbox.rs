//! `outbox`.

use std::time::Instant;

use interlock_bus::{ServeOptions, blocking::wait, durable::ConsumeOptions};

use crate::{
    harness::{DEADLINE, eventually},
    outbox::{configure, deliveries, operator, put, started_with, statistics},
};

#[test]
pub(crate) fn what_is_accepted_is_what_the_settings_say() {
    let topics = "topics = [{ filter = \"orders/#\", consumers = [\"nobody\"] }]\n";
    let runtime = started_with(&format!("{topics}pending_max = 2\nitem_bytes_max = 2000"));
    let refused = |topic: &str, payload: &str, code: i32, words: &str| {
        let (exit, said) = put(&runtime, &[topic, payload]);
        assert!(exit == code && said.contains(words), "{exit} {said}, not {code} {words}");
    };
    let accepted = |topic: &str| {
        let (exit, said) = put(&runtime, &[topic, "x"]);
        assert_eq!(exit, 0, "{said}");
    };
    // Whom nobody knows may come later: a word about it, and no refusal.
    let unknown = "names the consumer `nobody`, and no peer has this name";
    let file = runtime.directory.path().join("interlock.toml");
    let checked = runtime.interlock(&["--config", file.to_str().unwrap(), "check"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert!(String::from_utf8_lossy(&checked.stderr).contains(unknown), "{checked:?}");
    eventually("the log to say so", || {
        let logged = runtime.interlock(&["logs", "--level", "warn"]);
        String::from_utf8_lossy(&logged.stdout).contains(unknown).then_some(())
    });
    refused("other", "x", 2, "nobody is named as a consumer of `other`");
    accepted("orders/new");
    // Routes are replaced while it runs; a message keeps its consumers.
    configure(
        &runtime,
        "topics = [{ filter = \"other\", consumers = [\"nobody\"] }]\npending_max = 2\nitem_bytes_max = 2000",
    );
    refused("orders/new", "x", 2, "nobody is named");
    refused("other", &"x".repeat(2000), 2, "the outbox takes 2000 bytes");
    accepted("other");
    refused("other", "x", 7, "2 of 2 messages are unfinished");
    let other = "topics = [{ filter = \"other\", consumers = [\"nobody\"] }]\nitem_bytes_max = 2000\n";
    configure(&runtime, &format!("{other}bytes_max = 2000"));
    refused("other", &"x".repeat(1900), 7, "bytes are kept");
    configure(&runtime, &format!("{other}disk_floor = 1125899906842624"));
    refused("other", "x", 7, "disk is low");
    configure(&runtime, &format!("{other}pending_max = 2\npolicy = \"oldest_to_dead_letter\""));
    eventually("the policy to be in force", || (put(&runtime, &["other", "x"]).0 == 0).then_some(()));
    let dead = deliveries(&runtime, &["dlq", "list"]);
    assert_eq!((&dead[0]["number"], &dead[0]["state"]), (&1.into(), &"dead".into()), "{dead:?}");
}

#[test]
pub(crate) fn a_delivery_is_tried_as_the_settings_say() {
    // Without any of them this would take minutes; without the cap some forty seconds.
    let runtime = started_with(
        "topics = [{ filter = \"orders/#\", consumers = [\"operator\"] }, { filter = \"lost\", consumers = [\"nobody\"] }]\n\
         attempts_max = 12\nretry_base = \"20ms\"\nretry_cap = \"20ms\"\nsweep = \"100ms\"\nattempt_timeout = \"50ms\"\n\
         in_flight = 1\nabsent_max = \"300ms\"",
    );
    assert_eq!(put(&runtime, &["lost", "x"]).0, 0);
    let dead =
        eventually("an absent consumer to be given up", || deliveries(&runtime, &["dlq", "list"]).pop());
    assert!(dead["reason"].as_str().unwrap().contains("`nobody` did not serve"), "{dead}");

    // It serves, does not say so, and answers nothing.
    let client = operator(&runtime);
    let mut inbox =
        wait(client.serve(&"inbox/operator/#".parse().unwrap(), ServeOptions::default())).unwrap();
    let begun = Instant::now();
    for number in 0..3 {
        assert_eq!(put(&runtime, &[&format!("orders/{number}"), "x"]).0, 0);
    }
    let mut first = None;
    for _ in 0..6 {
        first = wait(inbox.next());
        let under_way = deliveries(&runtime, &["outbox", "list", "--state", "leased"]).len();
        assert!(under_way <= 1, "{under_way} are under way at the same time");
    }
    drop(first);
    let mut held = Vec::new();
    eventually("all to be dead letters", || {
        while let Some(Some(request)) = futures_util::FutureExt::now_or_never(inbox.next()) {
            held.push(request);
        }
        (deliveries(&runtime, &["dlq", "list", "--topic", "orders/#"]).len() == 3).then_some(())
    });
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    for dead in deliveries(&runtime, &["dlq", "list", "--topic", "orders/#"]) {
        assert_eq!(dead["attempts"], 12, "{dead}");
    }
}

#[test]
pub(crate) fn finished_messages_are_remembered_as_long_as_told() {
    let topics = "topics = [{ filter = \"orders/#\", consumers = [\"operator\"] }]\n";
    let runtime = started_with(topics);
    let client = operator(&runtime);
    for _ in 0..3 {
        assert_eq!(put(&runtime, &["orders/new", "x"]).0, 0);
    }
    wait(async {
        let mut consumer =
            client.consume_durable(&"#".parse().unwrap(), ConsumeOptions::default()).await.unwrap();
        for _ in 0..3 {
            consumer.next().await.unwrap().ack().await.unwrap();
        }
    });
    let remembered = |wanted: u64| {
        eventually("so many to be remembered", || (statistics(&runtime)["finished"] == wanted).then_some(()));
    };
    remembered(3);
    configure(&runtime, &format!("{topics}keep_finished_max = 1"));
    remembered(1);
    configure(&runtime, &format!("{topics}keep_finished = \"0s\""));
    remembered(0);
}
