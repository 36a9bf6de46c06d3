//! Verbs as a user runs them, in this process, against a broker of the test.

mod doctor;
mod measuring;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::*;
use crate::{
    broker::{Bounds, Broker, BrokerConfig, BrokerHandle},
    client::{PublishOptions, ServeOptions, SubscribeOptions},
    endpoint::Endpoint,
    envelope::{ContentType, Payload},
    keys::{KeyStore, Permissions, Rules},
    schema::Schema,
    topic::TopicName,
};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

pub(super) struct Fixture {
    directory: tempfile::TempDir,
    pub(super) broker: BrokerHandle,
    pub(super) client: Client,
}

pub(super) fn fixture() -> Fixture {
    fixture_with(Bounds::default())
}

pub(super) fn fixture_with(bounds: Bounds) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
    let all = || Rules::allowing(["#", "$sys/#"].map(|filter| filter.parse().unwrap()));
    let everything =
        Permissions { publish: all(), subscribe: all(), serve: all(), request: all(), wait: true };
    let endpoints = vec![Endpoint::Ipc(directory.path().join("run/bus.sock"))];
    std::fs::create_dir(directory.path().join("run")).unwrap();
    for name in ["operator", "alice"] {
        store.issue(&name.parse().unwrap(), &everything, &endpoints, None).unwrap();
    }
    let mut config = BrokerConfig::from_key_store(&store, endpoints).unwrap();
    config.bounds = bounds;
    let broker = Broker::start(config).unwrap();
    let client = broker.attach(&"alice".parse().unwrap()).unwrap();
    Fixture { directory, broker, client }
}

impl Fixture {
    /// Exit, standard output, standard error.
    pub(super) fn bus(&self, arguments: &[&str]) -> (Exit, String, String) {
        bus_in(self.directory.path(), arguments)
    }
}

fn bus_in(data_dir: &std::path::Path, arguments: &[&str]) -> (Exit, String, String) {
    let (data, messages) = (Captured::default(), Captured::default());
    let output = Output::new(Box::new(data.clone()), Box::new(messages.clone()));
    let fixed = ["bus".into(), "--data-dir".into(), data_dir.as_os_str().to_owned()];
    let exit = run(fixed.into_iter().chain(arguments.iter().map(OsString::from)), output);
    (exit, data.text(), messages.text())
}

pub(super) fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

#[test]
fn pub_says_how_many_subscribers_got_it() {
    let fixture = fixture();
    let nobody = fixture.bus(&["pub", "a/b", "hello"]);
    assert_eq!(nobody, (Exit::Done, "0 subscribers\n".into(), String::new()));
    let options = SubscribeOptions::default();
    let mut subscription =
        blocking::wait(fixture.client.subscribe(&"a/#".parse().unwrap(), options)).unwrap();
    let one = fixture.bus(&["pub", "a/b", r#"{"turn":7}"#, "--json-payload", "--json"]);
    let line = "{\"dropped\":0,\"messages\":1,\"subscribers\":1,\"topic\":\"a/b\"}\n";
    assert_eq!(one, (Exit::Done, line.into(), String::new()));
    match blocking::wait(subscription.next()) {
        Some(crate::Event::Message(message)) => {
            assert_eq!(message.header.content_type, ContentType::Json);
            assert_eq!(message.origin.as_str(), "operator");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pub_fails_when_there_is_no_room_for_the_value_it_was_to_retain() {
    let fixture = fixture_with(Bounds { retained_bytes_max: 8000, ..Bounds::default() });
    let large = "x".repeat(8000);
    let (exit, data, messages) = fixture.bus(&["pub", "a/b", &large, "--retain"]);
    assert_eq!((exit, data.as_str()), (Exit::Full, "0 subscribers\n"));
    for part in ["`a/b`", "not retained", "8000 bytes", "`retained_bytes_max`"] {
        assert!(messages.contains(part), "{messages}");
    }
    let (exit, data, _) = fixture.bus(&["pub", "a/b", &large, "--retain", "--json"]);
    assert!(exit == Exit::Full && data.contains(r#""retained":false"#), "{data}");
    let (exit, data, messages) = fixture.bus(&["pub", "a/b", "small", "--retain", "--json"]);
    assert!(
        exit == Exit::Done && data.contains(r#""retained":true"#) && messages.is_empty(),
        "{data}{messages}"
    );
    assert_eq!(fixture.bus(&["pub", "a/b", &large]).0, Exit::Done, "it was not to be retained");
    // Small values have their bound, too.
    let full = (0..8000 / crate::limits::RETAINED_VALUE_BYTES)
        .map(|number| fixture.bus(&["pub", &format!("a/c/{number}"), "x", "--retain"]).0)
        .find(|exit| *exit != Exit::Done);
    assert_eq!(full, Some(Exit::Full));
}

#[test]
fn sub_asks_for_the_policy_and_the_bounds_it_is_told() {
    let fixture = fixture();
    for policy in crate::native::Overflow::ALL {
        let asked = fixture.client.clone();
        let watch = std::thread::spawn(move || {
            blocking::wait(asked.wait_for_subscribers(&topic("a/b"), 1, Duration::from_secs(20))).unwrap();
            let rows = ask_broker(&asked, "subscriptions").unwrap();
            let options = PublishOptions::default();
            blocking::wait(asked.publish_acknowledged(&topic("a/b"), Payload::text("x"), options)).unwrap();
            rows
        });
        let name = policy.as_str();
        let bounds = ["--max-count", "7", "--max-bytes", "70000"];
        let (exit, _, messages) =
            fixture.bus(&[&["sub", "a/b", "--count", "1", "--overflow", name][..], &bounds].concat());
        assert_eq!((exit, messages.as_str()), (Exit::Done, ""), "{policy:?}");
        let rows = watch.join().unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["filter"] == "a/b").unwrap();
        let seen = (&row["overflow"], &row["queue_messages_max"], &row["queue_bytes_max"]);
        assert_eq!(seen, (&name.into(), &7.into(), &70_000.into()));
    }
    let (exit, _, messages) = fixture.bus(&["sub", "a/b", "--overflow", "sometimes"]);
    assert_eq!(exit, Exit::Misuse);
    for policy in crate::native::Overflow::ALL {
        assert!(messages.contains(policy.as_str()), "{messages}");
    }
    assert_eq!(fixture.bus(&["sub", "a/b", "--max-count", "0"]).0, Exit::Misuse);
}

#[test]
fn auth_lists_denied_operations_with_their_number() {
    let fixture = fixture();
    let (exit, data, messages) = fixture.bus(&["auth"]);
    assert_eq!((exit, data.as_str()), (Exit::Done, ""));
    assert_eq!(messages, "bus: no connection was refused since the broker started\n");
    for _ in 0..2 {
        // Topics of the broker are nobody's to publish.
        assert_eq!(fixture.bus(&["pub", "$sys/x", "1"]).0, Exit::Denied);
    }
    let (_, data, _) = fixture.bus(&["auth", "--json"]);
    let row: serde_json::Value = serde_json::from_str(data.trim()).unwrap();
    let seen = (&row["peer"], &row["operation"], &row["topic"], &row["code"], &row["count"]);
    assert_eq!(
        seen,
        (&"operator".into(), &"publish".into(), &"$sys/x".into(), &"not_permitted".into(), &2.into())
    );
    let (_, data, _) = fixture.bus(&["auth"]);
    assert!(data.contains("OPERATION") && data.contains("$sys/x"), "{data}");
}

#[test]
fn sub_shows_text_json_schemas_and_bytes_on_a_line_each() {
    let fixture = fixture();
    let schema = Schema::parse("Delta", r#"{"struct":[["text","string"],["index","u64"]]}"#).unwrap();
    let fingerprint = fixture.client.register_schema(&schema);
    let encoded = Payload::encode(&("so", 3u64)).unwrap();
    let payloads = [
        Payload::text("plain\u{e4}\x1b"),
        Payload::json(&serde_json::json!({ "turn": 7 })).unwrap(),
        Payload { schema: Some(fingerprint), ..encoded.clone() },
        encoded,
        Payload::bytes(&b"\x00\xff"[..]),
        Payload::bytes(&b"from a stock client"[..]),
    ];
    for (number, payload) in payloads.into_iter().enumerate() {
        let options = PublishOptions { retain: true, ..PublishOptions::default() };
        let name = topic(&format!("a/{number}"));
        blocking::wait(fixture.client.publish_acknowledged(&name, payload, options)).unwrap();
    }
    let (exit, data, messages) = fixture.bus(&["sub", "a/#", "a/+", "--retained", "--count", "6"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let expected = [
        "a/0  plain\\u{e4}\\u{1b}",
        "a/1  {\"turn\":7}",
        "a/2  {\"index\":3,\"text\":\"so\"}",
        "a/3  0x0200000000000000736f0300000000000000",
        "a/4  0x00ff",
        "a/5  from a stock client",
    ];
    assert_eq!(data.lines().collect::<Vec<_>>(), expected);

    let (_, data, _) = fixture.bus(&["sub", "a/2", "--retained", "--count", "1", "--json"]);
    let row: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!(row["payload"], serde_json::json!({ "index": 3, "text": "so" }));
    assert_eq!((&row["topic"], &row["origin"]), (&"a/2".into(), &"alice".into()));
    let (_, data, _) = fixture.bus(&["sub", "a/0", "--retained", "--count", "1", "--raw"]);
    assert_eq!(data, "plain\u{e4}\x1b\n");
}

#[test]
fn sub_ends_after_silence_and_says_so() {
    let fixture = fixture();
    let (exit, data, messages) = fixture.bus(&["sub", "a", "--wait", "1ms"]);
    assert_eq!((exit, data.as_str(), messages.as_str()), (Exit::Failed, "", "bus: nothing came for 1ms\n"));
    let (exit, _, messages) = fixture.bus(&["sub", "a", "--wait", "1ms", "--count", "2"]);
    assert_eq!(
        (exit, messages.as_str()),
        (Exit::NotReady, "bus: 0 of 2 messages came; then nothing for 1ms\n")
    );
}

#[test]
fn request_prints_the_parts_and_ends_with_the_servers_reason() {
    let fixture = fixture();
    let (exit, _, messages) = fixture.bus(&["request", "q", "?"]);
    assert_eq!(exit, Exit::NotReady);
    assert!(messages.starts_with("bus: nobody serves `q`"), "{messages}");

    let filter = "q".parse().unwrap();
    let mut service = blocking::wait(fixture.client.serve(&filter, ServeOptions::default())).unwrap();
    let thread = std::thread::spawn(move || {
        let request = blocking::wait(service.next()).unwrap();
        blocking::wait(request.reply(Payload::text("one"))).unwrap();
        blocking::wait(request.end(Payload::text("two"))).unwrap();
        let request = blocking::wait(service.next()).unwrap();
        blocking::wait(request.fail("no_model", "there is no model")).unwrap();
    });
    assert_eq!(fixture.bus(&["request", "q", "?"]), (Exit::Done, "one\ntwo\n".into(), String::new()));
    let (exit, data, messages) = fixture.bus(&["request", "q", "?"]);
    assert_eq!((exit, data.as_str()), (Exit::Failed, ""));
    assert_eq!(messages, "bus: the server failed (no_model): there is no model\n");
    thread.join().unwrap();
}

#[test]
fn topics_peers_auth_audit_and_ping_print_what_the_broker_knows() {
    let fixture = fixture();
    let options = SubscribeOptions::default();
    let _subscription = blocking::wait(fixture.client.subscribe(&"a/#".parse().unwrap(), options)).unwrap();
    fixture.bus(&["pub", "a/b", "hello"]);
    let (exit, data, _) = fixture.bus(&["topics"]);
    let row = data.lines().find(|line| line.starts_with("a/b ")).unwrap();
    assert_eq!(exit, Exit::Done);
    assert!(row.contains("operator") && row.contains("alice"), "{data}");
    let (_, data, _) = fixture.bus(&["peers"]);
    assert!(data.lines().any(|line| line.starts_with("alice ") && line.contains("local")), "{data}");
    let (exit, _, messages) = fixture.bus(&["auth"]);
    assert_eq!(
        (exit, messages.as_str()),
        (Exit::Done, "bus: no connection was refused since the broker started\n")
    );
    let (exit, data, messages) = fixture.bus(&["audit", "--all"]);
    assert_eq!(exit, Exit::Done);
    assert!(messages.ends_with("rows balance\n") && data.contains("a/b"), "{data}{messages}");
    let (exit, data, _) = fixture.bus(&["ping", "--count", "2"]);
    assert_eq!((exit, data.lines().count()), (Exit::Done, 2));

    // A stranger is refused, and the refusal is listed.
    let mut stranger = fixture.broker.issue_incarnation(&"alice".parse().unwrap());
    stranger.keys = crate::crypto::KeyPair::generate();
    let path = fixture.directory.path().join("stranger.toml");
    stranger.save(&path).unwrap();
    let (exit, _, messages) = fixture.bus(&["--creds", path.to_str().unwrap(), "topics"]);
    assert_eq!(exit, Exit::Denied);
    assert!(messages.contains("refuses the key of `alice`"), "{messages}");
    let (_, data, _) = fixture.bus(&["auth"]);
    assert!(data.contains("unknown_key"), "{data}");
}

/// Short, and slow enough for any machine.
const BENCH: [&str; 9] =
    ["bench", "--duration", "50ms", "--subscribers", "3", "--rate", "500", "--in-flight", "4"];

#[test]
fn bench_counts_what_came_and_loses_nothing() {
    let fixture = fixture();
    let (exit, data, messages) = fixture.bus(&[&BENCH[..], &["--json"]].concat());
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let rows: Vec<serde_json::Value> = data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = rows.iter().map(|row| row["measurement"].as_str().unwrap()).collect();
    assert_eq!(names, ["throughput", "fan-out", "latency", "request", "request"]);
    for row in &rows {
        let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field} in {row}"));
        assert_eq!(number("received"), number("published") * number("subscribers"), "{row}");
        assert!(
            number("lost") == 0.0 && number("published") > 1.0 && number("messages_per_second") > 0.0,
            "{row}"
        );
    }
    for row in &rows[2..] {
        let times =
            ["p50_us", "p90_us", "p99_us", "p999_us", "longest_us"].map(|field| row[field].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{row}");
    }
    assert_eq!((&rows[2]["published"], &rows[4]["in_flight"]), (&26.into(), &4.into()));

    let file = fixture.directory.path().join("run.csv");
    let words = ["--csv", file.to_str().unwrap(), "--size", "70000", "fan-out", "latency", "request"];
    let (exit, data, _) = fixture.bus(&[&BENCH[..], &words].concat());
    assert_eq!((exit, data.lines().count()), (Exit::Done, 5));
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert!(
        lines[0][..4] == ["#RunID", "Phase", "ClientID", "MsgCount"]
            && lines.iter().all(|line| line.len() == 16),
        "{text}"
    );
    let parties: Vec<String> = lines[1..].iter().map(|line| format!("{} {}", line[1], line[2])).collect();
    let fan_out = ["publisher", "subscriber-1", "subscriber-2", "subscriber-3"]
        .map(|client| format!("fan-out {client}"));
    let others = [
        "latency publisher",
        "latency subscriber",
        "request-1 requester",
        "request-1 server",
        "request-4 requester",
        "request-4 server",
    ];
    assert_eq!(parties, [&fan_out[..], &others.map(str::to_owned)].concat());
    assert!(
        lines[1..5].iter().all(|line| line[3] == lines[1][3] && line[8].is_empty()),
        "each got all: {text}"
    );
    assert!(lines[7][3] == lines[8][3] && lines[9][3] == lines[10][3], "what was asked was answered: {text}");
    let times: Vec<f64> = [8, 11, 12, 13, 14, 10].map(|at: usize| lines[6][at].parse().unwrap()).to_vec();
    assert!(times[0] > 0.0 && times.is_sorted(), "{text}");
    let nowhere = fixture.bus(&[&BENCH[..], &["--csv", "/proc/nowhere/run.csv", "throughput"]].concat());
    assert!(nowhere.0 == Exit::Io && nowhere.2.contains("`/proc/nowhere/run.csv`"), "{nowhere:?}");
}

#[test]
fn bench_needs_no_instance_with_a_private_broker() {
    let directory = tempfile::tempdir().unwrap();
    let words = [&BENCH[..], &["--private", "throughput", "latency"]].concat();
    let (exit, data, messages) = bus_in(directory.path(), &words);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    assert!(data.starts_with("MEASUREMENT") && data.lines().count() == 3, "{data}");
    assert_eq!(bus_in(directory.path(), &BENCH).0, Exit::NotReady);
    for misuse in [["--size", "7"], ["--topic", "a//b"], ["--duration", "soon"]] {
        assert_eq!(bus_in(directory.path(), &[&["bench"], &misuse[..]].concat()).0, Exit::Misuse);
    }
}

#[test]
fn bench_may_do_what_its_peer_may_and_no_more() {
    let fixture = fixture();
    let store = KeyStore::open(&fixture.directory.path().join("keys")).unwrap();
    let bench: &[&str] = &["bench/#"];
    let bus_as = |name: &str, publish: &[&str]| {
        let permissions = Permissions::from_lists(publish, bench, bench, bench).unwrap();
        let name = name.parse().unwrap();
        let socket = Endpoint::Ipc(fixture.directory.path().join("run/bus.sock"));
        store.issue(&name, &permissions, &[socket], None).unwrap();
        let path = crate::keys::Credentials::path_in(&fixture.directory.path().join("keys"), &name);
        fixture.bus(&[&["--creds", path.to_str().unwrap()], &BENCH[..], &["throughput", "--json"]].concat())
    };
    let (exit, data, messages) = bus_as("reader", &[]);
    assert_eq!((exit, data.as_str()), (Exit::Denied, ""));
    assert!(messages.contains("may not publish `bench/throughput/"), "{messages}");
    // Without the right to hold publishers it may lose messages, and says how many.
    let (exit, data, _) = bus_as("both", bench);
    let row: serde_json::Value = serde_json::from_str(&data).unwrap();
    let number = |field: &str| row[field].as_u64().unwrap();
    assert_eq!(number("published"), number("received") + number("lost"));
    assert_eq!(exit, if number("lost") == 0 { Exit::Done } else { Exit::Full });
}

#[test]
fn misuse_and_absence_have_their_own_codes_and_name_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let (exit, _, messages) = bus_in(directory.path(), &["topics"]);
    assert_eq!(exit, Exit::NotReady);
    assert!(messages.contains("interlock run"), "{messages}");
    let (exit, _, messages) = bus_in(directory.path(), &["frobnicate"]);
    assert_eq!(exit, Exit::Misuse);
    assert!(messages.starts_with("bus: unrecognized subcommand"), "{messages}");
    let (exit, data, messages) = bus_in(directory.path(), &["--help"]);
    assert!(exit == Exit::Done && data.contains("Usage") && messages.is_empty());

    let fixture = fixture();
    let (exit, _, messages) = fixture.bus(&["pub", "conversation//turn", "hello"]);
    assert_eq!(exit, Exit::Misuse);
    assert_eq!(
        messages,
        "bus: topic `conversation//turn` has an empty level at byte 13; remove the extra `/`\n"
    );
    fixture.broker.stop(Duration::from_secs(5));
    let (exit, _, messages) = fixture.bus(&["topics"]);
    assert_eq!(exit, Exit::NotReady);
    assert!(messages.contains("cannot reach the broker"), "{messages}");
}

#[test]
fn a_topic_that_is_none_is_misuse_also_where_no_instance_runs() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &["pub", "a//b", "x"][..],
        &["pub", "a", "{", "--json-payload"],
        &["sub", "a//b"],
        &["request", "a//b"],
    ] {
        let (exit, _, messages) = bus_in(directory.path(), arguments);
        assert_eq!(exit, Exit::Misuse, "{arguments:?}: {messages}");
    }
}

#[test]
fn pub_waits_for_subscribers_and_names_who_is_there_if_they_do_not_come() {
    let fixture = fixture();
    let (exit, _, messages) = fixture.bus(&["--timeout", "100ms", "pub", "a/b", "hello", "--wait", "1"]);
    assert_eq!(exit, Exit::NotReady);
    assert!(messages.starts_with("bus: `a/b` has 0 of 1 subscribers after 100ms: nobody"), "{messages}");
    let mut rises = blocking::wait(fixture.client.receivers(&topic("a/b"), &[])).unwrap();
    assert!(blocking::wait(rises.next()).unwrap().is_empty());
    let client = fixture.client.clone();
    let subscribing = std::thread::spawn(move || {
        let options = SubscribeOptions::default();
        let mut subscription = blocking::wait(client.subscribe(&"a/#".parse().unwrap(), options)).unwrap();
        blocking::wait(subscription.next())
    });
    let waited = fixture.bus(&["pub", "a/b", "hello", "--wait", "1"]);
    assert_eq!(waited, (Exit::Done, "1 subscriber\n".into(), String::new()));
    assert!(matches!(subscribing.join().unwrap(), Some(crate::Event::Message(_))));
    assert_eq!(blocking::wait(rises.next()).unwrap()[0].peer.as_str(), "alice");
}

#[test]
fn gates_shows_for_whom_a_publisher_waits_and_what_it_holds() {
    let fixture = fixture();
    let (exit, _, messages) = fixture.bus(&["gates"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, "bus: no gated publisher is connected\n"));
    let options = crate::GateOptions::default().needs("operator".parse().unwrap());
    let publisher = fixture.client.gated_publisher(&topic("a/b"), options).unwrap();
    for _ in 0..3 {
        publisher.publish(Payload::text("held")).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // The broker paces the reports; each look asks it again.
    let row = loop {
        let (_, data, _) = fixture.bus(&["gates", "--json"]);
        let row = data.lines().next().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        if let Some(row) = row.filter(|row| row["buffered"] == 3 && row["state"] == "waiting") {
            break row;
        }
        assert!(std::time::Instant::now() < deadline, "the gate was not told of: {data}");
    };
    assert_eq!((&row["peer"], &row["topic"]), (&"alice".into(), &"a/b".into()));
    assert_eq!(row["needs"][0]["peer"], "operator");
    let (_, data, _) = fixture.bus(&["gates"]);
    assert!(data.contains("waiting") && data.contains("operator"), "{data}");
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let fixture = fixture();
    let messages = Captured::default();
    let arguments = ["bus", "--data-dir", fixture.directory.path().to_str().unwrap(), "peers"];
    let exit = run(arguments.map(OsString::from), Output::new(Box::new(Gone), Box::new(messages.clone())));
    assert_eq!((exit, messages.text().as_str()), (Exit::Done, ""));
}

#[test]
fn times_are_numbers_with_a_unit() {
    assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
    assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
    for bad in ["", "s", "-1s", "1x", "99999999999999999999s", "1.5s"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn hz_knows_the_past_without_having_been_there() {
    let fixture = fixture();
    for _ in 0..30 {
        fixture.client.publish(&topic("a/b"), Payload::bytes(vec![0; 100])).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // The second in which they came must be over.
    let row = loop {
        let (exit, data, _) = fixture.bus(&["hz", "a/+", "--json"]);
        if exit == Exit::Done && data.contains("\"messages\":30") {
            break serde_json::from_str::<serde_json::Value>(data.trim()).unwrap();
        }
        assert!(std::time::Instant::now() < deadline, "{exit:?} {data}");
    };
    assert_eq!(
        (&row["topic"], &row["bytes"], &row["mean_size"]),
        (&"a/b".into(), &3000.into(), &100.0.into())
    );
    let (_, series, _) = fixture.bus(&["hz", "a/#", "--series"]);
    assert!(series.contains("SECOND") && series.lines().count() >= 2, "{series}");
    let (exit, _, said) = fixture.bus(&["hz", "nothing/#"]);
    assert_eq!((exit, said.contains("nothing flowed on `nothing/#`")), (Exit::Failed, true), "{said}");
}

#[test]
fn events_name_a_slow_subscriber_with_what_it_lost_and_the_topic_that_is_held() {
    let fixture = fixture();
    let all = "a/#".parse().unwrap();
    // Credit is given when messages are taken, so these queues fill beyond the window.
    let slow = SubscribeOptions { queue_messages_max: 1, ..SubscribeOptions::default() };
    let mut slow = blocking::wait(fixture.client.subscribe(&all, slow)).unwrap();
    let publish = |name: &str, count: usize| {
        let publisher = fixture.broker.attach(&name.parse().unwrap()).unwrap();
        let (payload, target) = (Payload::bytes(vec![0; 1 << 20]), topic("a/b"));
        let acks = (0..count).map(|_| {
            let published =
                publisher.publish_acknowledged(&target, payload.clone(), PublishOptions::default());
            blocking::wait(published)
        });
        acks.map_while(Result::ok).map(|ack| u64::from(ack.dropped)).sum::<u64>()
    };
    let lost = publish("operator", 10);
    assert!(lost > 1, "{lost}");
    while let Ok(event) = slow.next_blocking(std::time::Instant::now() + Duration::from_millis(300)) {
        drop(event);
    }
    let rows = |kind: &str| -> Vec<serde_json::Value> {
        let (exit, data, _) = fixture.bus(&["events", "--json", kind]);
        assert_eq!(exit, Exit::Done);
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let events = loop {
        let events = rows("$sys/slow");
        if events.last().is_some_and(|row| row["event"]["state"] == "recovered") {
            break events;
        }
        assert!(std::time::Instant::now() < deadline, "{events:?}");
    };
    let first = &events[0]["event"];
    assert_eq!(
        (&first["state"], &first["peer"], &first["filter"]),
        (&"slow".into(), &"alice".into(), &"a/#".into())
    );
    let said: u64 = events[..events.len() - 1].iter().map(|row| row["event"]["lost"].as_u64().unwrap()).sum();
    assert_eq!((said, &events.last().unwrap()["event"]["lost"]), (lost, &lost.into()), "{events:?}");
    drop(slow);

    let waiting = SubscribeOptions {
        queue_messages_max: 1,
        overflow: crate::native::Overflow::Wait,
        ..Default::default()
    };
    let waiting = blocking::wait(fixture.client.subscribe(&all, waiting)).unwrap();
    publish("operator", 10);
    drop(waiting);
    blocking::wait(fixture.client.ping()).unwrap();
    let states = loop {
        let states: Vec<_> = rows("$sys/held").iter().map(|row| row["event"]["state"].clone()).collect();
        if states.len() > 1 || std::time::Instant::now() > deadline {
            break states;
        }
    };
    assert_eq!(states, ["held", "released"]);
    let (_, data, _) = fixture.bus(&["events", "$peers/#", "--last", "3"]);
    assert!(data.lines().count() == 3 && data.contains("code=closing"), "{data}");
}

/// A peer with these rights, connected over the socket.
fn peer(fixture: &Fixture, name: &str, rights: Permissions) -> Client {
    let store = KeyStore::open(&fixture.directory.path().join("keys")).unwrap();
    let endpoints = fixture.broker.endpoints();
    let credentials = store.issue(&name.parse().unwrap(), &rights, endpoints, None).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials)).unwrap()
}

/// `reader` gets everything below `a` but `a/secret/#`; `writer` may publish below `a`.
fn readers_and_writers(fixture: &Fixture) -> (Client, Client) {
    let mut reads = Permissions::from_lists(&[], &["a/#"], &[], &[]).unwrap();
    reads.subscribe.deny.push("a/secret/#".parse().unwrap());
    let reader = peer(fixture, "reader", reads);
    let writer = peer(fixture, "writer", Permissions::from_lists(&["a/#"], &[], &[], &["q"]).unwrap());
    (reader, writer)
}

#[test]
fn info_shows_who_gets_a_topic_and_what_a_deny_leaves_out_of_a_filter() {
    let fixture = fixture();
    let (reader, writer) = readers_and_writers(&fixture);
    let _all =
        blocking::wait(reader.subscribe(&"a/#".parse().unwrap(), SubscribeOptions::default())).unwrap();
    for name in ["a/open", "a/secret/x"] {
        let options = PublishOptions::default();
        blocking::wait(writer.publish_acknowledged(&topic(name), Payload::text("hello"), options)).unwrap();
    }
    let rows = |name: &str| -> Vec<serde_json::Value> {
        let (exit, data, messages) = fixture.bus(&["info", name, "--json"]);
        assert_eq!(exit, Exit::Done, "{messages}");
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let open = rows("a/open");
    assert_eq!(
        (&open[0]["statistics"]["messages"], &open[0]["statistics"]["sizes"][0]),
        (&1.into(), &serde_json::json!([7, 1]))
    );
    let of = |rows: &[serde_json::Value], role: &str| {
        rows.iter().find(|row| row["role"] == role).cloned().unwrap()
    };
    let (publisher, subscriber) = (of(&open, "publisher"), of(&open, "subscriber"));
    assert_eq!((&publisher["peer"], &publisher["permitted"]), (&"writer".into(), &true.into()));
    assert_eq!((&subscriber["peer"], &subscriber["permitted"]), (&"reader".into(), &true.into()));
    assert_eq!(subscriber["leaves_out"], serde_json::json!(["a/secret/#"]));
    let secret = of(&rows("a/secret/x"), "subscriber");
    assert_eq!((&secret["permitted"], &secret["of_topic"]["denied"]), (&false.into(), &1.into()));
    assert_eq!(
        (&secret["rule"]["decision"], &secret["rule"]["filter"]),
        (&"deny".into(), &"a/secret/#".into())
    );
    let registry = std::fs::read_to_string(secret["rule"]["file"].as_str().unwrap()).unwrap();
    let line = registry.lines().nth(secret["rule"]["line"].as_u64().unwrap() as usize - 1).unwrap();
    assert!(line.contains("a/secret/#"), "{line}");
    let (_, table, _) = fixture.bus(&["info", "a/secret/x"]);
    assert!(table.contains("deny a/secret/# (authorized.toml:"), "{table}");
    let (exit, _, messages) = fixture.bus(&["info", "nothing/here"]);
    assert_eq!((exit, messages.contains("nobody has to do with `nothing/here`")), (Exit::Failed, true));
}

#[test]
fn why_walks_from_the_key_to_the_queue_and_its_exit_code_is_the_verdict() {
    let fixture = fixture();
    let (reader, writer) = readers_and_writers(&fixture);
    let why = |peer: &str, operation: &str, name: &str| {
        let (exit, data, messages) = fixture.bus(&["why", peer, operation, name]);
        (exit, data + &messages)
    };
    let (exit, text) = why("writer", "publish", "a/open");
    assert!(exit == Exit::NotReady && text.contains("nobody receives `a/open`"), "{exit:?} {text}");
    let filter = "a/#".parse().unwrap();
    let _all = blocking::wait(reader.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let (exit, text) = why("writer", "publish", "a/open");
    assert!(exit == Exit::Done && text.contains("received by reader"), "{exit:?} {text}");
    assert!(text.contains("`publish.allow` has `a/#`") && text.contains("authorized.toml, line "), "{text}");
    assert!(text.ends_with("`writer` can publish `a/open`\n"), "{text}");
    let (exit, text) = why("reader", "subscribe", "a/secret/x");
    assert!(exit == Exit::Denied && text.contains("`subscribe.deny` has `a/secret/#`"), "{exit:?} {text}");
    let (exit, text) = why("reader", "subscribe", "a/open");
    assert!(exit == Exit::Done && text.contains("it subscribes to a/#"), "{exit:?} {text}");
    let (exit, text) = why("writer", "request", "q");
    assert!(exit == Exit::NotReady && text.contains("nobody serves `q`"), "{exit:?} {text}");
    let refused = blocking::wait(writer.publish_acknowledged(
        &topic("b"),
        Payload::default(),
        PublishOptions::default(),
    ));
    assert!(refused.is_err());
    let (exit, text) = why("writer", "publish", "b");
    assert!(exit == Exit::Denied && text.contains("denied by default"), "{exit:?} {text}");
    assert!(text.contains("was denied 1 times"), "{text}");
    assert_eq!(why("writer", "publish", "$sys/denied").0, Exit::Denied);
    let (exit, text) = why("nobody", "publish", "a");
    assert!(exit == Exit::Denied && text.contains("interlock keys issue nobody"), "{exit:?} {text}");
    reader.close_blocking();
    let (exit, text) = why("reader", "subscribe", "a/open");
    assert!(exit == Exit::NotReady && text.contains("it has no session"), "{exit:?} {text}");
    // What it may not do it may not do, whether it is there or not.
    let (exit, text) = why("reader", "publish", "a/open");
    assert!(exit == Exit::Denied && text.ends_with("`reader` may not publish `a/open`\n"), "{exit:?} {text}");
    assert_eq!(why("writer", "shout", "a").0, Exit::Misuse);
    let (exit, data, _) = fixture.bus(&["why", "writer", "publish", "b", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(data.trim()).unwrap();
    assert_eq!((exit, &answer["verdict"]), (Exit::Denied, &"denied".into()));
}

/// Records what `publish` sends, `count` messages on `filter`.
fn recorded(fixture: &Fixture, filter: &str, topics: &[&str], publish: impl FnOnce(&Client)) -> String {
    let file = fixture.directory.path().join("recording.mcap");
    let path = file.to_str().unwrap().to_owned();
    let client = fixture.client.clone();
    let count = topics.len().to_string();
    std::thread::scope(|scope| {
        let recording =
            scope.spawn(|| fixture.bus(&["record", filter, "--output", &path, "--count", &count]));
        let first = topic(topics[0]);
        blocking::wait(client.wait_for_subscribers(&first, 1, Duration::from_secs(20))).unwrap();
        publish(&client);
        let (exit, data, messages) = recording.join().unwrap();
        assert_eq!(exit, Exit::Done, "{messages}");
        assert!(data.starts_with(&format!("{count} messages (")), "{data}");
    });
    path
}

#[test]
fn what_was_recorded_is_listed_and_replayed_elsewhere_as_it_was() {
    let fixture = fixture();
    let topics = ["a/b", "a/c", "a/b"];
    let path = recorded(&fixture, "a/#", &topics, |client| {
        for (at, name) in topics.iter().enumerate() {
            let mut header = crate::Header::for_payload(&Payload::text(""));
            header.user = vec![("place".to_owned(), at.to_string())];
            let options = PublishOptions { header: Some(header), ..PublishOptions::default() };
            let payload = Payload::text(format!("message {at}"));
            blocking::wait(client.publish_waiting(&topic(name), payload, &options)).unwrap();
        }
    });
    let (exit, data, messages) = fixture.bus(&["replay", &path, "--list", "--json"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let rows: Vec<serde_json::Value> = data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (&rows[0]["topic"], &rows[0]["messages"], &rows[0]["origin"]),
        (&"a/b".into(), &2.into(), &"alice".into())
    );

    let options = SubscribeOptions::default();
    let mut seen = blocking::wait(fixture.client.subscribe(&"again/#".parse().unwrap(), options)).unwrap();
    let replay = ["replay", &path, "--prefix", "again", "--rate", "max", "--wait", "1"];
    let (exit, data, messages) = fixture.bus(&replay);
    assert_eq!((exit, data.as_str(), messages.as_str()), (Exit::Done, "3 messages (27B) published\n", ""));
    for (at, name) in topics.iter().enumerate() {
        let Some(crate::Event::Message(message)) = blocking::wait(seen.next()) else { panic!() };
        assert_eq!(message.topic, topic(&format!("again/{name}")));
        assert_eq!(
            (message.text(), &message.header.content_type),
            (Some(&*format!("message {at}")), &ContentType::Text)
        );
        assert_eq!(message.header.user, [("place".to_owned(), at.to_string())]);
    }
    let (exit, data, _) = fixture.bus(&["replay", &path, "a/c", "--rate", "max", "--json"]);
    assert!(exit == Exit::Done && data.contains(r#""published":1,"#), "{data}");
    assert_eq!(fixture.bus(&["replay", &path, "nothing/#", "--rate", "max"]).0, Exit::Failed);
    let (exit, _, messages) = fixture.bus(&["record", "a/#", "--output", &path]);
    assert!(exit == Exit::Misuse && messages.contains("exists"), "{messages}");
}

#[test]
fn what_may_not_be_published_is_named_when_it_is_replayed() {
    let fixture = fixture();
    let path = recorded(&fixture, "a/#", &["a/b"], |client| {
        client.publish(&topic("a/b"), Payload::text("x")).unwrap();
    });
    let rights = Permissions::from_lists(&["other/#"], &[], &[], &[]).unwrap();
    let bob = peer(&fixture, "bob", rights);
    drop(bob);
    let creds = fixture.directory.path().join("keys/bob.toml");
    let (exit, _, messages) =
        fixture.bus(&["replay", &path, "--rate", "max", "--creds", creds.to_str().unwrap()]);
    assert!(exit == Exit::Denied && messages.contains("1 messages on `a/b` were denied"), "{messages}");
    let file = fixture.directory.path().join("no.mcap");
    std::fs::write(&file, b"this is no recording").unwrap();
    let (exit, _, messages) = fixture.bus(&["replay", file.to_str().unwrap(), "--list"]);
    assert!(exit == Exit::Damaged && messages.contains("no.mcap"), "{messages}");
    let (exit, _, messages) = fixture.bus(&["replay", &path, "--rate", "0"]);
    assert!(exit == Exit::Misuse && messages.contains("`0` is no rate"), "{messages}");
}

#[test]
fn a_replay_keeps_the_distances_in_time_and_takes_the_part_that_is_asked_for() {
    let fixture = fixture();
    let file = fixture.directory.path().join("slow.mcap");
    let mut recorder = crate::recording::Recorder::create(&file, &[]).unwrap();
    for second in 0..100u64 {
        let payload = Payload::text(second.to_string());
        let message = crate::Message {
            topic: topic("a/b"),
            origin: "ada".parse().unwrap(),
            sequence: second,
            retained: false,
            header: crate::Header::for_payload(&payload),
            payload: payload.bytes,
        };
        recorder.message(1_000_000_000_000 + second * 1_000_000_000, &message, None).unwrap();
    }
    recorder.finish().unwrap();
    let options = SubscribeOptions::default();
    let mut seen = blocking::wait(fixture.client.subscribe(&"a/b".parse().unwrap(), options)).unwrap();
    let began = std::time::Instant::now();
    let path = file.to_str().unwrap();
    let (exit, data, _) = fixture.bus(&["replay", path, "--from", "10s", "--until", "60s", "--rate", "100"]);
    assert!(exit == Exit::Done && data.starts_with("51 messages"), "{data}");
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let Some(crate::Event::Message(first)) = blocking::wait(seen.next()) else { panic!() };
    assert_eq!(first.text(), Some("10"));
}

/// Asks on each topic while `bus serve` answers; what it printed, and the answers.
fn asked(
    fixture: &Fixture,
    serve: &[&str],
    questions: &[(&str, &str)],
) -> (Exit, String, Vec<Result<Vec<String>, String>>) {
    let count = questions.len().to_string();
    let arguments = [&["serve", "ask/#"], serve, &["--count", &count]].concat();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| fixture.bus(&arguments));
        let first = topic(questions[0].0);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let answers = questions.iter().map(|(name, question)| {
            loop {
                let (name, question) = (topic(name), Payload::text(*question));
                let stream = fixture.client.request_stream(&name, question, Duration::from_secs(20));
                let mut stream = blocking::wait(stream).unwrap();
                let mut parts = Vec::new();
                let mut end = Ok(());
                while let Some(part) = blocking::wait(stream.next()) {
                    match part {
                        Ok(part) => parts.push(part.text().unwrap_or("no text").to_owned()),
                        Err(error) => end = Err(error),
                    }
                }
                match end {
                    Err(crate::RequestError::NoResponders { .. }) if name == first => {
                        assert!(std::time::Instant::now() < deadline, "nobody serves");
                    }
                    end => break end.map(|()| parts).map_err(|error| error.to_string()),
                }
            }
        });
        let answers = answers.collect();
        let (exit, data, messages) = serving.join().unwrap();
        assert!(messages.contains("serving `ask/#`"), "{messages}");
        (exit, data, answers)
    })
}

#[test]
fn serve_answers_each_request_with_what_a_command_prints() {
    let fixture = fixture();
    let command =
        r#"printf '%s from %s: ' "$INTERLOCK_REQUEST_TOPIC" "$INTERLOCK_REQUEST_ORIGIN"; tr a-z A-Z"#;
    let (exit, data, answers) =
        asked(&fixture, &["--command", command], &[("ask/a", "hello"), ("ask/b", "you")]);
    assert_eq!(exit, Exit::Done);
    let expected = ["ask/a from alice: HELLO", "ask/b from alice: YOU"].map(|text| Ok(vec![text.to_owned()]));
    assert_eq!(answers, expected);
    assert_eq!(data.lines().count(), 2);
    let lines = ["--command", "printf 'one\\ntwo\\nthree'", "--lines"];
    let (_, _, answers) = asked(&fixture, &lines, &[("ask/a", "")]);
    assert_eq!(answers[0].as_deref(), Ok(["one", "two", "three"].map(str::to_owned).as_slice()));
    let (_, _, answers) = asked(&fixture, &["--echo"], &[("ask/a", "the same")]);
    assert_eq!(answers[0].as_deref(), Ok(["the same".to_owned()].as_slice()));
}

#[test]
fn serve_says_to_both_sides_why_there_is_no_answer() {
    let fixture = fixture();
    let (exit, data, answers) = asked(&fixture, &["--command", "exit 3", "--json"], &[("ask/a", "")]);
    let error = answers[0].as_ref().unwrap_err();
    assert!(
        exit == Exit::Failed && error.contains("it ended with exit code 3") && !error.contains("`exit"),
        "{error}"
    );
    assert!(data.contains(r#""code":"command_failed""#), "{data}");
    let (exit, _, messages) = fixture.bus(&["serve", "ask/#"]);
    assert!(exit == Exit::Misuse && messages.contains("--command"), "{messages}");
}

#[test]
fn keygen_enrols_a_peer_that_can_connect_at_once_and_overwrites_nothing() {
    let fixture = fixture();
    let (exit, data, messages) =
        fixture.bus(&["keygen", "carol", "--publish", "a/#", "--endpoint", "tcp://127.0.0.1:1"]);
    assert_eq!((exit, messages.as_str()), (Exit::Done, ""));
    let credentials = crate::Credentials::load(std::path::Path::new(data.trim())).unwrap();
    assert_eq!((credentials.name.as_str(), credentials.endpoints.len()), ("carol", 1));
    // Without endpoints those of the operator.
    let (exit, data, messages) = fixture.bus(&["keygen", "dave", "--publish", "a/#"]);
    assert_eq!(exit, Exit::Done, "{messages}");
    let (exit, sent, messages) = fixture.bus(&["pub", "a/b", "hello", "--creds", data.trim()]);
    assert_eq!((exit, sent.as_str()), (Exit::Done, "0 subscribers\n"), "{messages}");
    assert_ne!(fixture.bus(&["keygen", "dave"]).0, Exit::Done, "it has a key already");

    let (exit, data, _) = fixture.bus(&["keygen"]);
    let keys: Vec<&str> = data.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(exit == Exit::Done && keys.len() == 2 && keys.iter().all(|key| key.len() == 40), "{data}");
    let file = fixture.directory.path().join("pair.toml");
    let path = file.to_str().unwrap();
    let (exit, data, _) = fixture.bus(&["keygen", "--output", path, "--json"]);
    assert!(exit == Exit::Done && !data.contains("secret"), "{data}");
    let written = std::fs::read(&file).unwrap();
    assert_eq!(fixture.bus(&["keygen", "--output", path]).0, Exit::Misuse);
    assert_eq!(std::fs::read(&file).unwrap(), written);
}

#[test]
fn pub_fills_in_templates_with_headers_at_a_rate_and_sub_shows_the_fields_that_are_asked_for() {
    let fixture = fixture();
    let options = SubscribeOptions::default();
    let mut seen = blocking::wait(fixture.client.subscribe(&"a/b".parse().unwrap(), options)).unwrap();
    let began = std::time::Instant::now();
    let template = r#"{"turn":{{count}},"text":"hello {{count}}"}"#;
    let publish = [
        "pub",
        "a/b",
        template,
        "--template",
        "--json-payload",
        "--count",
        "5",
        "--rate",
        "50",
        "-H",
        "tone: calm",
    ];
    let (exit, data, messages) = fixture.bus(&publish);
    assert_eq!((exit, data.as_str()), (Exit::Done, "1 subscriber\n"), "{messages}");
    assert!(began.elapsed() >= Duration::from_millis(80), "{:?}", began.elapsed());
    for turn in 1..=5 {
        let Some(crate::Event::Message(message)) = blocking::wait(seen.next()) else { panic!() };
        assert_eq!(message.text(), Some(format!(r#"{{"turn":{turn},"text":"hello {turn}"}}"#).as_str()));
        assert_eq!(message.header.user, [("tone".to_owned(), "calm".to_owned())]);
        assert_eq!(message.header.content_type, ContentType::Json);
    }
    let arguments = ["sub", "a/b", "--where", "turn>=4", "--field", "text", "--count", "2"];
    std::thread::scope(|scope| {
        let subscribing = scope.spawn(|| fixture.bus(&arguments));
        blocking::wait(fixture.client.wait_for_subscribers(&topic("a/b"), 2, Duration::from_secs(20)))
            .unwrap();
        assert_eq!(fixture.bus(&publish).0, Exit::Done);
        let (exit, data, _) = subscribing.join().unwrap();
        assert_eq!((exit, data.as_str()), (Exit::Done, "a/b  hello 4\na/b  hello 5\n"));
    });
    for (bad, word) in [
        (&["pub", "a/b", "{{cuont}}", "--template"][..], "{{count}}"),
        (&["pub", "a/b", "x", "-H", "none"], "NAME:VALUE"),
        (&["pub", "a/b", "--file", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["sub", "a/b", "--where", "nothing"], "no condition"),
    ] {
        let (exit, _, messages) = fixture.bus(bad);
        assert!(matches!(exit, Exit::Misuse | Exit::Io) && messages.contains(word), "{messages}");
    }
}
