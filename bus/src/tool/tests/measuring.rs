//! `bus request` with its times, `bus bw` and `bus delay`.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::envelope::Header;

fn rows(data: &str) -> Vec<Value> {
    data.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Answers `requests` requests on `topic` with three parts each, one of them with a header; its thread, to be joined.
fn serving(client: &Client, on: &str, requests: usize) -> std::thread::JoinHandle<()> {
    let mut service = blocking::wait(client.serve(&on.parse().unwrap(), ServeOptions::default())).unwrap();
    std::thread::spawn(move || {
        for _ in 0..requests {
            let Some(request) = blocking::wait(service.next()) else { return };
            for part in ["one", "two"] {
                // Who takes one part only is gone by the second.
                let _ = blocking::wait(request.reply(Payload::text(part)));
            }
            let _ = blocking::wait(request.end(Payload::text("three")));
        }
    })
}

#[test]
fn request_says_when_each_part_came_and_who_was_asked() {
    let fixture = fixture();
    let thread = serving(&fixture.client, "q", 3);
    let (exit, data, messages) = fixture.bus(&["request", "q", "?", "--timing"]);
    assert_eq!(exit, Exit::Done, "{messages}");
    let lines: Vec<&str> = data.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with('+') && lines[0].ends_with(" ms  one"), "{data}");
    for part in ["bus: first part: ", "bus: whole answer: ", "bus: given to: alice 1"] {
        assert!(messages.contains(part), "{messages}");
    }
    let (_, data, _) = fixture.bus(&["request", "q", "?", "--timing", "--json"]);
    let rows = rows(&data);
    let after = |row: &Value| row["after_ms"].as_f64().unwrap();
    assert!(rows.len() == 4 && after(&rows[0]) <= after(&rows[2]) && rows[2]["part"] == 3, "{data}");
    let total = &rows[3];
    assert_eq!(
        (&total["answered"], &total["parts"], &total["servers"]),
        (&json!(1), &json!(3), &json!({ "alice": 1 }))
    );
    assert!(total["first"]["max_ms"].as_f64() <= total["whole"]["max_ms"].as_f64(), "{total}");
    // One part is enough.
    assert_eq!(
        fixture.bus(&["request", "q", "?", "--replies", "1"]),
        (Exit::Done, "one\n".into(), String::new())
    );
    thread.join().unwrap();
}

#[test]
fn many_requests_end_with_percentiles_and_the_code_of_the_first_that_failed() {
    let fixture = fixture();
    let thread = serving(&fixture.client, "q", 20);
    let began = Instant::now();
    let (exit, data, messages) = fixture.bus(&["request", "q", "?", "--count", "20", "--rate", "200"]);
    assert_eq!((exit, data.lines().count()), (Exit::Done, 60), "{messages}");
    assert!(began.elapsed() >= Duration::from_millis(95), "twenty at 200 a second take 95 ms");
    for part in ["20 of 20 requests answered", "p50 ", "p99.9 ", "given to: alice 20"] {
        assert!(messages.contains(part), "{messages}");
    }
    thread.join().unwrap();
    let (exit, data, _) = fixture.bus(&["request", "q", "?", "--count", "2", "--json"]);
    let total = &rows(&data)[0];
    assert_eq!((exit, &total["answered"], &total["failed"]), (Exit::NotReady, &json!(0), &json!(2)));
}

#[test]
fn request_sends_and_shows_headers() {
    let fixture = fixture();
    let mut service =
        blocking::wait(fixture.client.serve(&"q".parse().unwrap(), ServeOptions::default())).unwrap();
    let thread = std::thread::spawn(move || {
        let request = blocking::wait(service.next()).unwrap();
        let header = request.message.header.user.clone();
        blocking::wait(request.end(Payload::text("x"))).unwrap();
        header
    });
    let (exit, data, _) = fixture.bus(&["request", "q", "?", "-H", "colour: blue", "-i"]);
    assert_eq!((exit, data.as_str()), (Exit::Done, "[1 bytes  text/plain; charset=utf-8]\nx\n"));
    assert_eq!(thread.join().unwrap(), [("colour".to_owned(), "blue".to_owned())]);
}

#[test]
fn bw_knows_the_past_and_the_sizes_of_messages() {
    let fixture = fixture();
    for size in [100, 100, 1000] {
        fixture.client.publish(&topic("a/b"), Payload::bytes(vec![0; size])).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    // The second in which they came must be over.
    let row = loop {
        let (exit, data, _) = fixture.bus(&["bw", "a/+", "a/#", "--json"]);
        if exit == Exit::Done && data.contains("\"messages\":3,") {
            break rows(&data).remove(0);
        }
        assert!(Instant::now() < deadline, "{exit:?} {data}");
    };
    let shown = (&row["topic"], &row["bytes"], &row["mean_size"], &row["smallest_class"], &row["largest"]);
    assert_eq!(shown, (&json!("a/b"), &json!(1200), &json!(400.0), &json!([64, 127]), &json!(1000)));
    let (_, data, _) = fixture.bus(&["bw", "a/#"]);
    assert!(data.starts_with("TOPIC") && data.contains("1.2kB") && data.contains("64B-127B"), "{data}");
    assert_eq!(fixture.bus(&["bw", "nothing"]).0, Exit::Failed);
}

#[test]
fn delay_end_to_end_measures_from_the_header_of_each_message_and_says_how() {
    let fixture = fixture();
    let publisher = fixture.client.clone();
    let publishing = std::thread::spawn(move || {
        blocking::wait(publisher.wait_for_subscribers(&topic("a/b"), 1, Duration::from_secs(20))).unwrap();
        let late = Header { published_at_ns: crate::envelope::now_ns() - 3_000_000_000, ..Header::new() };
        let ahead = Header { published_at_ns: u64::MAX / 4, ..Header::new() };
        for header in [late.clone(), late, ahead] {
            let options = PublishOptions { header: Some(header), ..PublishOptions::default() };
            blocking::wait(publisher.publish_acknowledged(&topic("a/b"), Payload::text("x"), options))
                .unwrap();
        }
    });
    let (exit, data, messages) =
        fixture.bus(&["delay", "a/#", "--end-to-end", "--count", "3", "--duration", "20s", "--json"]);
    publishing.join().unwrap();
    assert_eq!(exit, Exit::Done, "{messages}");
    let row = &rows(&data)[0];
    assert_eq!((&row["topic"], &row["messages"], &row["ahead"]), (&json!("a/b"), &json!(3), &json!(1)));
    assert_eq!(row["measured_by"], "subscription");
    let mean = row["mean_ms"].as_f64().unwrap();
    assert!((3000.0..23_000.0).contains(&mean), "{row}");
    assert!(messages.contains("1 messages were published later than they came"), "{messages}");
    let (exit, _, messages) = fixture.bus(&["delay", "nothing", "--end-to-end", "--duration", "1ms"]);
    assert_eq!((exit, messages.as_str()), (Exit::Failed, "bus: nothing came within 1ms\n"));
}

#[test]
fn delay_is_known_to_the_broker_also_of_the_past_and_without_a_subscription() {
    let fixture = fixture();
    let now_ns = crate::envelope::now_ns();
    let publish = |to: &str, published_at_ns| {
        let header = Header { published_at_ns, ..Header::new() };
        let options = PublishOptions { header: Some(header), ..PublishOptions::default() };
        let to = topic(to);
        let sent = fixture.client.publish_acknowledged(&to, Payload::text("x"), options);
        blocking::wait(sent).unwrap();
    };
    publish("a/late", now_ns - 3_000_000_000);
    publish("a/ahead", u64::MAX / 4);
    publish("a/unsaid", 0);
    fixture.client.publish(&topic("a/plain"), Payload::text("x")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The second in which they came must be over.
    let (rows, messages) = loop {
        let (exit, data, messages) = fixture.bus(&["delay", "a/#", "--json"]);
        if exit == Exit::Done && data.lines().count() == 4 {
            break (rows(&data), messages);
        }
        assert!(Instant::now() < deadline, "{exit:?} {data}");
    };
    assert!(messages.contains("2 of 4 rows have no delay"), "{messages}");
    let [ahead, late, plain, unsaid] = &rows[..] else { panic!("{rows:?}") };
    assert!(ahead["mean_ms"].is_null() && unsaid["max_ms"].is_null(), "{rows:?}");
    assert_eq!(
        (&late["topic"], &late["measured_by"], &late["messages"]),
        (&json!("a/late"), &json!("broker"), &json!(1))
    );
    assert!(plain["mean_ms"].as_f64().is_some_and(|mean| mean < 20_000.0), "{plain}");
    let mean = late["mean_ms"].as_f64().unwrap();
    assert!((2995.0..23_000.0).contains(&mean), "{late}");
    assert_eq!((&late["mean_ms"], &late["mean_ms"]), (&late["max_ms"], &late["slowest_second_ms"]));
    let (_, data, _) = fixture.bus(&["delay", "a/late", "--series", "--json"]);
    let series = self::rows(&data);
    assert_eq!((series.len(), &series[0]["mean_ms"]), (1, &late["mean_ms"]));
    let (exit, _, messages) = fixture.bus(&["delay", "nothing", "--since", "5s"]);
    assert!(
        exit == Exit::Failed && messages.contains("nothing flowed on `nothing` within 5 s"),
        "{messages}"
    );
    assert_eq!(fixture.bus(&["delay", "--count", "3"]).0, Exit::Misuse);
}
