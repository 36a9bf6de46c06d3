//! Golden handshakes: what real libzmq clients sent, byte for byte, and what the engine made of it.
//!
//! A file in `bus/tests/golden/` holds the client's bytes in hex, a line `---`, and one line for each
//! event. The server's keys of the recording are fixed below, so that the boxes open again for ever.
//! `cargo test -p interlock-bus --lib record_golden -- --ignored` records them anew with the
//! installed pyzmq.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::curve::server::Secrets;
use super::{Command, Engine, EngineEvent, FrameFlags, Metadata, ServerConfig, SocketType};
use crate::crypto::{KeyPair, SecretKey};

/// The test keys that libzmq's own documentation uses; the server's is that of RFC 32.
const CLIENT_PUBLIC: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
const CLIENT_SECRET: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
const SERVER_SECRET: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
const TRANSIENT: [u8; 32] = [0x5a; 32];
const COOKIE_KEY: [u8; 32] = [0xa5; 32];

const GOLDEN: [(&str, &str); 6] = [
    ("PUB", include_str!("../../tests/golden/pub.txt")),
    ("SUB", include_str!("../../tests/golden/sub.txt")),
    ("XPUB", include_str!("../../tests/golden/xpub.txt")),
    ("XSUB", include_str!("../../tests/golden/xsub.txt")),
    ("REQ", include_str!("../../tests/golden/req.txt")),
    ("DEALER", include_str!("../../tests/golden/dealer.txt")),
];

fn server_keys() -> KeyPair {
    KeyPair::from_secret(SecretKey::from_z85(SERVER_SECRET).unwrap())
}

fn server() -> Engine {
    let secrets = Secrets::recorded(SecretKey::from_bytes(TRANSIENT), COOKIE_KEY);
    Engine::server_replaying(Arc::new(ServerConfig::new(vec![server_keys()])), secrets)
}

/// Polls once, lets the client in, subscribes to everything at a publisher, and describes the event.
fn step(engine: &mut Engine, input: &mut BytesMut) -> Option<String> {
    let event = engine.poll(input).unwrap()?;
    Some(match event {
        EngineEvent::Authenticate { key, metadata, server_key_index, .. } => {
            let theirs = metadata.socket_type().unwrap();
            engine.accept(&Metadata::new(&theirs.complement()));
            if matches!(theirs, SocketType::Pub | SocketType::Xpub) {
                let subscribe = Command::Subscribe(Bytes::new()).encode();
                engine.send(&[&subscribe], FrameFlags::COMMAND).unwrap();
            }
            let mut line = format!("authenticate key={key} server_key={server_key_index}");
            for (name, value) in metadata.iter() {
                write!(line, " {name}={}", value.escape_ascii()).unwrap();
            }
            line
        }
        EngineEvent::Frame { body, more, command } => {
            let kind = if command { "command" } else { "message" };
            let more = if more { " more" } else { "" };
            format!("{kind}{more} \"{}\"", body.escape_ascii())
        }
        other => panic!("unexpected event {other:?}"),
    })
}

fn parse(golden: &str) -> (Vec<u8>, Vec<&str>) {
    let (client, events) = golden.split_once("---\n").unwrap();
    let digits: Vec<u8> = client
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8))
        .collect();
    let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (bytes, events.lines().collect())
}

#[test]
fn recorded_clients_of_libzmq_are_understood_as_on_the_day_they_were_recorded() {
    for (socket_type, golden) in GOLDEN {
        let (bytes, expected) = parse(golden);
        assert!(expected.len() >= 2, "{socket_type} sent something after its handshake");
        for chunk_bytes in [1, 7, bytes.len()] {
            let (mut engine, mut input, mut events) = (server(), BytesMut::new(), Vec::new());
            for chunk in bytes.chunks(chunk_bytes) {
                input.extend_from_slice(chunk);
                while let Some(event) = step(&mut engine, &mut input) {
                    events.push(event);
                }
            }
            assert_eq!(events, expected, "{socket_type} in chunks of {chunk_bytes}");
            assert!(input.is_empty());
        }
    }
}

#[test]
#[ignore = "writes bus/tests/golden/, needs pyzmq"]
fn record_golden() {
    let frames =
        |frames: &[&str]| json!(frames.iter().map(|frame| hex(frame.as_bytes())).collect::<Vec<_>>());
    let pair = frames(&["topic", "payload"]);
    for (socket_type, events_count, order) in [
        ("PUB", 3, json!({ "action": "send_until_killed", "frames": pair })),
        ("SUB", 5, json!({ "action": "receive", "subscribe": ["a/", "b/", "a/"], "unsubscribe": ["b/"] })),
        ("XPUB", 3, json!({ "action": "send", "wait_for": 1, "frames": pair })),
        ("XSUB", 2, json!({ "action": "send", "frames": frames(&["\u{1}x/"]) })),
        ("REQ", 4, json!({ "action": "send", "frames": pair })),
        (
            "DEALER",
            4,
            json!({
                "action": "send", "frames": frames(&["", "topic", "payload"]),
                "identity": "me", "metadata": ["X-Interlock:1"],
            }),
        ),
    ] {
        let (bytes, events) = record(socket_type, events_count, order);
        let mut golden = format!("# A {socket_type} socket of pyzmq; see src/zmtp/golden.rs\n");
        for line in bytes.chunks(48) {
            writeln!(golden, "{}", hex(line)).unwrap();
        }
        writeln!(golden, "---\n{}", events.join("\n")).unwrap();
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        std::fs::write(format!("{directory}/{}.txt", socket_type.to_lowercase()), golden).unwrap();
    }
}

fn record(socket_type: &str, events_count: usize, mut order: Value) -> (Vec<u8>, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    order["type"] = json!(socket_type);
    order["endpoint"] = json!(format!("tcp://{}", listener.local_addr().unwrap()));
    order["server"] = json!(server_keys().public.to_string());
    order["public"] = json!(CLIENT_PUBLIC);
    order["secret"] = json!(CLIENT_SECRET);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pyzmq_peer.py");
    let python = Process::new("python3")
        .args([script, &order.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("python3 starts; install it, and `python3 -m pip install pyzmq`");
    let _python = Ended(python);
    read_events(listener.accept().unwrap().0, events_count)
}

fn read_events(mut stream: TcpStream, events_count: usize) -> (Vec<u8>, Vec<String>) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut engine, mut input) = (server(), BytesMut::new());
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    loop {
        let event = step(&mut engine, &mut input);
        stream.write_all(engine.output()).unwrap();
        engine.output().clear();
        events.extend(event.clone());
        if events.len() == events_count {
            bytes.truncate(bytes.len() - input.len());
            return (bytes, events);
        }
        if event.is_none() {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the client closed after {events:?}");
            bytes.extend_from_slice(&chunk[..count]);
            input.extend_from_slice(&chunk[..count]);
        }
    }
}

/// A process that ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _already_ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
