use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use interlock_bus::{Client, ConnectOptions, Credentials, Event, KeyStore, Payload, blocking::wait};
use serde_json::{Value, json};

use crate::{
    broker_process::BrokerProcess,
    harness::{
        DEADLINE, TestBroker, TestProcess, eventually,
        runtime::{TestRuntime, tool},
    },
};

fn connect(credentials: Credentials) -> Client {
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

fn ask(client: &Client, topic: &str) -> Value {
    let topic = format!("$sys/broker/{topic}").parse().unwrap();
    let reply = wait(client.request(&topic, Payload::default(), DEADLINE)).unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

/// `interlock keys` on the key store below this directory; its standard output.
fn keys(directory: &Path, arguments: &[&str]) -> String {
    let mut command = tool("interlock");
    command.arg("--data-dir").arg(directory).arg("keys").args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What libzmq's monitor says of a stock SUB with these credentials.
fn stock(path: &Path) -> Value {
    TestProcess::python("stock.py", &["refused", path.to_str().unwrap(), "SUB"]).json()
}

fn moved_out(path: PathBuf, to: PathBuf) -> PathBuf {
    std::fs::copy(&path, &to).unwrap();
    std::fs::remove_file(path).unwrap();
    to
}

#[test]
fn an_old_key_of_the_broker_works_through_its_overlap_and_is_refused_after_it() {
    let broker = BrokerProcess::start();
    let issue = |name: &str| {
        broker.enrol(name, &["a"], &["a", "$sys/auth/#"], &[], &["$sys/broker/#"]);
        // Outside the key store, as on another machine: nobody rewrites it from here.
        moved_out(broker.path_of(name), broker.directory().join(format!("{name}-elsewhere.toml")))
    };
    let (native, stock_file, in_memory) = (issue("native"), issue("stock"), issue("in-memory"));
    let client = connect(Credentials::load(&native).unwrap());
    let memory = connect(Credentials { file: None, ..Credentials::load(&in_memory).unwrap() });
    let filter = "$sys/auth/broker_key".parse().unwrap();
    let mut events = wait(client.subscribe(&filter, Default::default())).unwrap();
    let old = Credentials::load(&native).unwrap().broker;

    let new = keys(broker.directory(), &["rotate", "--broker", "--overlap", "1h"]);
    let Some(Event::Message(event)) = wait(events.next()) else { panic!("the rotation is an event") };
    assert_eq!(event.decode::<Value>().unwrap()["key"], json!(new));
    eventually("the native client to keep the new key in its file", || {
        (Credentials::load(&native).unwrap().broker.to_string() == new).then_some(())
    });
    // A stock client with the old key gets in, and is named.
    assert_eq!(stock(&stock_file)["event"], "HANDSHAKE_SUCCEEDED");
    let listener = TestProcess::python("stock.py", &["sub", stock_file.to_str().unwrap(), "a"]);
    listener.line();
    eventually("everybody who began with the old key to be named", || {
        let peers = ask(&client, "peers");
        let rows = peers.as_array().unwrap();
        let old = |name: &str| rows.iter().any(|row| row["peer"] == name && row["broker_key"] == "old");
        (old("stock") && old("native") && old("in-memory")).then_some(())
    });
    let info = ask(&client, "info");
    assert_eq!((&info["broker_key"], &info["old_broker_keys"][0]["key"]), (&json!(new), &json!(old)));
    assert_eq!(info["old_broker_keys"][0]["sessions"], 3);

    // Rotated once more, with an overlap that ends while we watch: both old keys are gone after `--now`.
    let newer = keys(broker.directory(), &["rotate", "--broker", "--now"]);
    eventually("the overlap to end", || {
        let info = ask(&client, "info");
        (info["broker_key"] == newer && info["old_broker_keys"] == json!([])).then_some(())
    });
    assert_eq!(stock(&stock_file), json!({"event": "HANDSHAKE_FAILED_AUTH", "value": 500}));
    // Sessions that were there go on.
    assert!(
        wait(client.publish_acknowledged(&"a".parse().unwrap(), Payload::text("end"), Default::default()))
            .is_ok()
    );
    assert!(listener.line().contains("end"), "an open session must survive a rotation");
    drop(client);
    assert_eq!(Credentials::load(&native).unwrap().broker.to_string(), newer);
    connect(Credentials::load(&native).unwrap());
    // The one without a file knows the new key as well.
    assert_ne!(Credentials::load(&in_memory).unwrap().broker.to_string(), newer);
    wait(memory.ping()).unwrap();
    // And the stock client's file can be renewed by hand.
    keys(broker.directory(), &["renew", stock_file.to_str().unwrap()]);
    assert_eq!(stock(&stock_file)["event"], "HANDSHAKE_SUCCEEDED");
}

#[test]
fn an_overlap_ends_by_itself_and_a_client_in_memory_comes_back_with_the_new_key() {
    let mut broker = TestBroker::start();
    let path = broker.enrol("member", &["a"], &[], &[], &["$sys/broker/#"]);
    let member = Credentials::load(&path).unwrap();
    let old = member.broker;
    let client = connect(Credentials { file: None, ..member.clone() });
    broker.store.rotate_broker_keys(Duration::from_millis(400)).unwrap();
    eventually("the rotation", || (broker.handle.public_key() != old).then_some(()));
    eventually("the overlap to end", || (ask(&client, "info")["old_broker_keys"] == json!([])).then_some(()));
    let refused = Client::connect_blocking(ConnectOptions::new(Credentials { file: None, ..member.clone() }));
    assert!(matches!(refused, Err(interlock_bus::ConnectError::WrongServerKey { .. })), "{refused:?}");

    // The broker is started again: the client returns, though its credentials name the old key.
    let endpoints = broker.handle.endpoints().to_vec();
    broker.handle.stop(Duration::ZERO);
    let config = interlock_bus::BrokerConfig::from_key_store(&broker.store, endpoints).unwrap();
    broker.handle = interlock_bus::Broker::start(config).unwrap();
    let topic = "a".parse().unwrap();
    eventually("the client to return", || {
        wait(client.publish_acknowledged(&topic, Payload::default(), Default::default())).ok().map(drop)
    });
}

#[test]
fn a_rotation_killed_at_any_point_leaves_keys_that_work() {
    let broker = BrokerProcess::start();
    let store = KeyStore::open(&broker.directory().join("keys")).unwrap();
    for name in ["one", "two", "three", "four"] {
        broker.enrol(name, &["a"], &[], &[], &["$sys/broker/#"]);
    }
    let rounds: u32 = std::env::var("INTERLOCK_ROTATION_KILLS").map_or(6, |text| text.parse().unwrap());
    let mut before = store.broker_keys().unwrap().current.public;
    let (mut changed, mut unchanged) = (0, 0);
    for round in 0..rounds {
        let mut command: Command = tool("interlock");
        command.arg("--data-dir").arg(broker.directory()).args(["keys", "rotate", "--broker"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Killed at another moment of its few milliseconds each time.
        let delay = Duration::from_micros(u64::from(round) * 60_000 / u64::from(rounds));
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        let keys = store.broker_keys().unwrap();
        if keys.current.public == before {
            unchanged += 1
        } else {
            changed += 1
        }
        before = keys.current.public;
        for name in ["one", "two", "three", "four"] {
            let credentials = Credentials::load(&broker.path_of(name)).unwrap();
            assert!(keys.accept(&credentials.broker, 0), "round {round}: `{name}` names a key that is gone");
            connect(Credentials { file: None, ..credentials });
        }
    }
    #[allow(clippy::print_stderr, reason = "says how far the kills reached")]
    {
        eprintln!("{changed} of {rounds} killed rotations had written the keys, {unchanged} had not");
    }
    // The next one finishes what was left.
    store.rotate_broker_keys(Duration::ZERO).unwrap();
    let current = store.broker_keys().unwrap().current.public;
    assert_eq!(Credentials::load(&broker.path_of("one")).unwrap().broker, current);
}

#[test]
fn the_runtime_and_its_processes_outlive_a_rotation_and_a_restart_of_the_broker() {
    let runtime = TestRuntime::start();
    let session_keys = || {
        let mut command = tool("bus");
        command.arg("--data-dir").arg(runtime.data()).args(["peers", "--json"]);
        let output = command.output().unwrap();
        // Nothing, while the broker is down.
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    keys(&runtime.data(), &["rotate", "--broker", "--now"]);
    eventually("the model service's session to be that of an old key", || {
        session_keys().iter().any(|row| row["peer"] == "model" && row["broker_key"] == "old").then_some(())
    });
    let mut command = tool("interlock");
    command.arg("--data-dir").arg(runtime.data()).args(["restart", "broker"]);
    // Its answer travels through the broker that it ends, and may be lost with it.
    command.output().unwrap();
    eventually("the model service to return with the new key", || {
        let rows = session_keys();
        rows.iter().any(|row| row["peer"] == "model" && row["broker_key"] == "current").then_some(())
    });
}
