//! `runtime`, `bus`, `logs`.

use std::{
    io::Read,
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Event, Payload, SubscribeOptions, blocking::wait,
    client::PublishOptions,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    DEADLINE, TestProcess,
    clock::Clock,
    eventually,
    runtime::{CONFIG, TestRuntime, tool},
};

#[test]
pub(crate) fn it_lives_and_listens_where_it_is_told() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("elsewhere");
    let file = place.path().join("interlock.toml");
    let settings = format!(
        "[runtime]\ndata_dir = \"{}\"\n[bus]\nendpoints = [\"tcp://127.0.0.1:0\"]\n[gateway]\nlisten = \"127.0.0.2:0\"\n",
        data.display()
    );
    std::fs::write(&file, settings).unwrap();
    let mut command = tool("interlock");
    command.arg("run").arg("--config").arg(&file).env("TMPDIR", place.path());
    let mut process = TestProcess::spawn(command);
    let address = |text: &str| text.rsplit_once("//").unwrap().1.trim_end_matches('/').to_owned();
    let (gateway, bus) = eventually("it to say where it listens", || {
        let instance = std::fs::read(data.join("run/instance.json")).ok()?;
        let instance: Value = serde_json::from_slice(&instance).ok()?;
        let endpoints = instance["endpoints"].as_array()?;
        assert_eq!(endpoints.len(), 1, "{instance}");
        let bus = address(endpoints[0].as_str()?);
        (!bus.ends_with(":0")).then(|| (address(instance["gateway"].as_str().unwrap()), bus))
    });
    assert!(gateway.starts_with("127.0.0.2:"), "{gateway}");
    for address in [gateway, bus] {
        eventually(&address, || TcpStream::connect(&address).ok());
    }
    assert!(!data.join("run/bus.sock").exists());
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit_code(), Some(0));
}

fn operator(runtime: &TestRuntime, timeout: Duration) -> Option<Client> {
    let credentials = Credentials::load(&runtime.data().join("keys/operator.toml")).unwrap();
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(timeout)).ok()
}

const PAYLOAD_BYTES: usize = 100_000;

/// How many of 120 large messages a subscriber loses that asks for no bound and does not read.
fn lost(runtime: &TestRuntime) -> u64 {
    let [publisher, subscriber] = [0; 2].map(|_| operator(runtime, DEADLINE).unwrap());
    let subscription =
        wait(subscriber.subscribe(&"flood".parse().unwrap(), SubscribeOptions::default())).unwrap();
    let topic = "flood".parse().unwrap();
    let publish = |_| {
        let payload = Payload::bytes(vec![b'x'; PAYLOAD_BYTES]);
        u64::from(wait(publisher.publish_acknowledged(&topic, payload, Default::default())).unwrap().dropped)
    };
    let lost = (0..120).map(publish).sum();
    drop(subscription);
    lost
}

#[test]
pub(crate) fn the_bus_keeps_to_its_bounds() {
    let with = |settings: &str| {
        let bus = CONFIG.replace("[gateway]", &format!("{settings}\n[gateway]"));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("interlock.toml"), bus).unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let runtime = TestRuntime::on(directory);
        runtime.wait_until_ready();
        runtime
    };
    assert!(lost(&with("send_queue_messages = 4")) > 0);
    assert!(lost(&with("send_queue_bytes = 200000")) > 0);

    let runtime = with("sessions_max = 16\nretained_bytes_max = 20000");
    assert_eq!(lost(&runtime), 0, "the default bounds take it all");

    // What fits is retained, what does not is delivered only.
    let client = operator(&runtime, DEADLINE).unwrap();
    let keep = |topic: &str, bytes: usize| {
        let options = PublishOptions { retain: true, ..PublishOptions::default() };
        let payload = Payload::bytes(vec![b'x'; bytes]);
        wait(client.publish_acknowledged(&topic.parse().unwrap(), payload, options)).unwrap();
    };
    keep("kept/small", 100);
    keep("kept/large", 20000);
    let filter = "kept/#".parse().unwrap();
    let mut kept = wait(client.subscribe(&filter, SubscribeOptions::default().retained())).unwrap();
    keep("kept/last", 1);
    let mut topics = Vec::new();
    while topics.last().is_none_or(|topic| topic != "kept/last") {
        if let Event::Message(message) = kept.next_blocking(Instant::now() + DEADLINE).unwrap() {
            topics.push(message.topic.to_string());
        }
    }
    assert_eq!(topics, ["kept/small", "kept/last"]);

    // The next one waits until another ends.
    let mut clients = vec![client];
    let full = (0..20).find(|_| match operator(&runtime, Duration::from_secs(1)) {
        Some(client) => {
            clients.push(client);
            false
        }
        None => true,
    });
    assert!(full.is_some() && (8..=16).contains(&clients.len()), "{} sessions", clients.len());
    clients.clear();
    eventually("a session to find room", || operator(&runtime, Duration::from_secs(1)));
}

#[test]
pub(crate) fn records_are_kept_and_shown_as_told() {
    let run = |settings: &str| {
        let mut runtime = TestRuntime::begin_with(settings, |command| {
            command.stderr(Stdio::piped());
        });
        let mut stderr = runtime.process.stderr().unwrap();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            said
        });
        runtime.wait_until_ready();
        runtime.turn("logs", "Hello");
        runtime.signal(Signal::SIGTERM);
        assert_eq!(runtime.process.exit_code(), Some(0));
        let logs = runtime.interlock(&["logs", "--level", "trace", "--json"]);
        (said.join().unwrap(), String::from_utf8(logs.stdout).unwrap())
    };
    let is_debug = |text: &str| text.contains("\"level\":\"debug\"");
    let (said, kept) = run("");
    assert!(
        !said.contains("model is ready to be asked") && kept.contains("model is ready to be asked"),
        "{said}"
    );
    assert!(!is_debug(&kept));
    let (said, kept) = run("[logs]\nlevel = \"debug\"\nconsole = \"debug\"\n");
    assert!(is_debug(&kept) && said.to_lowercase().contains("debug "), "{said}");
    let (_, kept) = run("[logs]\nlevel = \"error\"\n");
    assert!(!kept.contains("model is ready to be asked"), "{kept}");
}

#[test]
pub(crate) fn records_are_kept_as_long_as_told() {
    let clock = Clock::new();
    clock.jump(-2 * 86_400);
    let mut runtime = TestRuntime::begin_with("", |command| {
        command.envs(clock.environment());
    });
    // The same clock for whoever asks: a machine has one.
    runtime.environment = clock.environment().into();
    runtime.wait_until_ready();
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    runtime.environment.clear();
    let old = |runtime: &TestRuntime| {
        let logs = runtime.interlock(&["logs", "--json"]);
        let day_ago = (SystemTime::now() - Duration::from_secs(86_400)).duration_since(UNIX_EPOCH).unwrap();
        let times = String::from_utf8(logs.stdout).unwrap();
        let times = times
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["time_ns"].as_u64().unwrap());
        times.filter(|time| u128::from(*time) < day_ago.as_nanos()).count()
    };
    runtime.restart();
    assert!(old(&runtime) > 0, "two days are within the default");
    let file = runtime.directory.path().join("interlock.toml");
    std::fs::write(file, format!("{CONFIG}[logs]\nretention = \"1d\"\n")).unwrap();
    runtime.process.kill();
    runtime.restart();
    eventually("the old records to go", || (old(&runtime) == 0).then_some(()));
}
