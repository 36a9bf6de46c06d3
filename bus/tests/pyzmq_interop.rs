//! The engine and the boxes against the real ones: libzmq through pyzmq, libsodium through PyNaCl.
//!
//! Needs `python3` with `pyzmq` and `pynacl`; says so where they are missing.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use interlock_bus::crypto::{BoxKey, KeyPair, PublicKey, random};
use interlock_bus::zmtp::{
    self, ClientConfig, Engine, EngineEvent, FrameFlags, Metadata, Refusal, ServerConfig, SocketType, Stage,
    X_INTERLOCK, ZmtpError,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
const SIZES: [usize; 9] = [0, 1, 222, 223, 255, 256, 65_536, 300_001, 1 << 20];
const INSTALL: &str = "install them: `python3 -m pip install pyzmq pynacl`";

/// A Python process, ended with its owner.
struct Python {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Python {
    fn start(script: &str, argument: &str) -> Self {
        let probe = Command::new("python3").args(["-c", "import zmq, nacl.bindings"]).output();
        match probe {
            Err(error) => panic!("python3 does not start ({error}); {INSTALL}"),
            Ok(output) if !output.status.success() => {
                panic!("pyzmq or PyNaCl is missing: {}; {INSTALL}", String::from_utf8_lossy(&output.stderr))
            }
            Ok(_) => {}
        }
        let script = format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new("python3")
            .args([script.as_str(), argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 started a moment ago");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, lines }
    }

    /// The next line as JSON; fails when the process has ended without one.
    fn says(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("python ended: {:?}", self.child.wait()))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// One connection: an engine and its socket. Every wait ends after [`DEADLINE`].
struct Link {
    engine: Engine,
    stream: TcpStream,
    input: BytesMut,
}

impl Link {
    fn new(engine: Engine, stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { engine, stream, input: BytesMut::new() }
    }

    fn flush(&mut self) {
        self.stream.write_all(self.engine.output()).unwrap();
        self.engine.output().clear();
    }

    fn next(&mut self) -> Result<EngineEvent, ZmtpError> {
        loop {
            let event = self.engine.poll(&mut self.input);
            self.flush();
            if let Some(event) = event? {
                return Ok(event);
            }
            let mut chunk = [0; 50_000];
            let count = self.stream.read(&mut chunk).expect("the peer went on within the deadline");
            if count == 0 {
                return Err(self.engine.end_of_stream(&self.input).unwrap_or(ZmtpError::Closed));
            }
            self.input.extend_from_slice(&chunk[..count]);
        }
    }

    /// One whole message; commands in between are skipped.
    fn message(&mut self) -> Vec<Bytes> {
        let mut parts = Vec::new();
        loop {
            match self.next().unwrap() {
                EngineEvent::Frame { command: true, .. } => {}
                EngineEvent::Frame { body, more, .. } => {
                    parts.push(body);
                    if !more {
                        return parts;
                    }
                }
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    fn command(&mut self) -> zmtp::Command {
        match self.next().unwrap() {
            EngineEvent::Frame { body, command: true, .. } => zmtp::Command::parse(&body).unwrap(),
            other => panic!("expected a command, got {other:?}"),
        }
    }

    fn send(&mut self, parts: &[impl AsRef<[u8]>]) {
        for (at, part) in parts.iter().enumerate() {
            let flags = if at + 1 < parts.len() { FrameFlags::MORE } else { FrameFlags::LAST };
            self.engine.send(&[part.as_ref()], flags).unwrap();
        }
        self.flush();
    }
}

/// Our server, its keys, and those of a client.
struct Server {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    client: KeyPair,
}

impl Server {
    fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            config: Arc::new(ServerConfig::new(vec![KeyPair::generate()])),
            client: KeyPair::generate(),
        }
    }

    /// What a pyzmq client of this server must be told.
    fn order(&self, socket_type: &str, action: &str) -> Value {
        json!({
            "type": socket_type,
            "action": action,
            "endpoint": format!("tcp://{}", self.listener.local_addr().unwrap()),
            "server": self.config.keys[0].public.to_string(),
            "public": self.client.public.to_string(),
            "secret": *self.client.secret.expose_z85(),
        })
    }

    fn take(&self) -> Link {
        let (stream, _) = self.listener.accept().unwrap();
        Link::new(Engine::server(self.config.clone()), stream)
    }

    /// Starts the client, and lets it in with the complement of its type.
    fn connect(&self, order: &Value) -> (Python, Link, Metadata) {
        let python = Python::start("pyzmq_peer.py", &order.to_string());
        let mut link = self.take();
        let EngineEvent::Authenticate { key, metadata, server_key_index: 0, .. } = link.next().unwrap()
        else {
            panic!("expected the client's proof");
        };
        assert_eq!(key, self.client.public);
        let theirs = metadata.socket_type().unwrap();
        assert_eq!(theirs.name(), order["type"]);
        link.engine.accept(&Metadata::new(&theirs.complement()).with("Identity", "").unwrap());
        link.flush();
        assert!(link.engine.is_ready());
        (python, link, metadata)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.trim().chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn with(mut order: Value, key: &str, value: Value) -> Value {
    order[key] = value;
    order
}

#[test]
fn publishers_of_libzmq_are_read_after_one_subscription_to_everything() {
    for (socket_type, action) in
        [("PUB", "send_until_killed"), ("XPUB", "send"), ("PUSH", "send_until_killed")]
    {
        let server = Server::start();
        let frames = json!([hex(b"topic"), hex(b"payload"), ""]);
        let order = with(server.order(socket_type, action), "frames", frames);
        let wait_for = u8::from(socket_type == "XPUB");
        let (mut python, mut link, _) = server.connect(&with(order, "wait_for", json!(wait_for)));
        if socket_type != "PUSH" {
            let subscribe = zmtp::Command::Subscribe(Bytes::new()).encode();
            link.engine.send(&[&subscribe], FrameFlags::COMMAND).unwrap();
            link.flush();
        }
        assert_eq!(link.message(), [&b"topic"[..], b"payload", b""], "{socket_type}");
        if socket_type == "XPUB" {
            assert_eq!(python.says(), json!(["01"]), "it saw the subscription to everything");
        }
    }
}

#[test]
fn subscribers_of_libzmq_send_commands_and_take_messages() {
    let server = Server::start();
    let order = with(server.order("SUB", "receive"), "subscribe", json!(["a/", "b/", "a/"]));
    let (mut python, mut link, _) = server.connect(&with(order, "unsubscribe", json!(["b/"])));
    let prefix = |prefix: &'static str| Bytes::from_static(prefix.as_bytes());
    // A double subscription is announced once or twice by different releases; a set absorbs it.
    let mut wanted = std::collections::BTreeSet::new();
    loop {
        match link.command() {
            zmtp::Command::Subscribe(prefix) => drop(wanted.insert(prefix)),
            zmtp::Command::Cancel(prefix) => {
                wanted.remove(&prefix);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(wanted.into_iter().collect::<Vec<_>>(), [prefix("a/")]);
    for size in SIZES {
        let payload = vec![7; size];
        link.send(&[b"a/topic", &payload[..]]);
        assert_eq!(python.says(), json!([hex(b"a/topic"), hex(&payload)]));
    }

    let server = Server::start();
    let order = with(server.order("XSUB", "send"), "frames", json!([hex(b"\x01x/")]));
    let (mut python, mut link, _) = server.connect(&order);
    assert_eq!(link.message(), [prefix("\x01x/")], "an XSUB of libzmq sends messages, also in ZMTP 3.1");
    link.send(&[&b"x/topic"[..], b"payload"]);
    assert_eq!(python.says(), json!([hex(b"x/topic"), hex(b"payload")]));

    let server = Server::start();
    let (mut python, mut link, _) = server.connect(&server.order("PULL", "receive"));
    link.send(&[b"work"]);
    assert_eq!(python.says(), json!([hex(b"work")]));
}

#[test]
fn requesters_of_libzmq_get_back_what_they_sent_from_nothing_to_a_mebibyte() {
    for socket_type in ["REQ", "DEALER", "PAIR"] {
        let server = Server::start();
        let order = with(server.order(socket_type, "ask"), "sizes", json!(SIZES));
        let (mut python, mut link, _) = server.connect(&order);
        for size in SIZES {
            let message = link.message();
            let expected: &[usize] = if socket_type == "REQ" { &[0, 4, size] } else { &[4, size] };
            assert_eq!(message.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
            link.send(&message);
        }
        assert_eq!(python.says(), "all equal", "{socket_type}");
    }
}

#[test]
fn repliers_of_libzmq_are_asked_and_answer() {
    for socket_type in ["REP", "ROUTER"] {
        let server = Server::start();
        let (_python, mut link, _) = server.connect(&server.order(socket_type, "send_back"));
        for size in SIZES {
            let message = [Bytes::from_static(b"envelope"), Bytes::new(), vec![size as u8; size].into()];
            link.send(&message);
            assert_eq!(link.message(), message, "{socket_type}");
        }
    }
}

#[test]
fn a_pyzmq_dealer_can_say_that_it_is_native() {
    let server = Server::start();
    let order = with(server.order("DEALER", "receive"), "metadata", json!([format!("{X_INTERLOCK}:1")]));
    let (_python, link, metadata) = server.connect(&with(order, "identity", json!("me")));
    assert_eq!(metadata.get(X_INTERLOCK), Some(&b"1"[..]));
    assert_eq!(metadata.identity(), Some(&b"me"[..]));
    assert_eq!(link.engine.peer_version(), Some(zmtp::Version { major: 3, minor: 1 }));
}

#[test]
fn libzmq_answers_our_ping() {
    let server = Server::start();
    let (_python, mut link, _) = server.connect(&server.order("SUB", "receive"));
    let context = Bytes::from_static(b"sixteen bytes ok");
    let ping = zmtp::Command::Ping { ttl: Duration::ZERO, context: context.clone() };
    link.engine.send(&[&ping.encode()], FrameFlags::COMMAND).unwrap();
    link.flush();
    assert_eq!(link.command(), zmtp::Command::Pong { context });
}

#[test]
fn a_wrong_server_key_is_a_500_at_the_monitor_of_libzmq() {
    let server = Server::start();
    let wrong = KeyPair::generate().public.to_string();
    let order = with(server.order("DEALER", "watch"), "server", json!(wrong));
    let mut python = Python::start("pyzmq_peer.py", &order.to_string());
    let mut link = server.take();
    assert_eq!(link.next(), Err(ZmtpError::ServerKeyUnknown { keys_tried: 1 }));
    assert_eq!(python.says(), json!(["HANDSHAKE_FAILED_AUTH", 500]));
}

#[test]
fn a_refused_key_is_a_400_at_the_monitor_of_libzmq() {
    for socket_type in ["PUB", "SUB", "REQ", "DEALER"] {
        let server = Server::start();
        let order = server.order(socket_type, "watch");
        let mut python = Python::start("pyzmq_peer.py", &order.to_string());
        let mut link = server.take();
        assert!(matches!(link.next(), Ok(EngineEvent::Authenticate { .. })));
        link.engine.refuse(Refusal::KeyRefused.reason());
        link.flush();
        assert_eq!(python.says(), json!(["HANDSHAKE_FAILED_AUTH", 400]), "{socket_type}");
    }
}

#[test]
fn a_server_that_cannot_decide_now_says_300() {
    let server = Server::start();
    let order = server.order("DEALER", "watch");
    let mut python = Python::start("pyzmq_peer.py", &order.to_string());
    let mut link = server.take();
    link.engine.send_error_before_ready(Refusal::Temporary.reason()).unwrap();
    assert_eq!(link.next(), Err(ZmtpError::Closed));
    assert_eq!(python.says(), json!(["HANDSHAKE_FAILED_AUTH", 300]));
}

#[test]
fn a_client_without_curve_is_named() {
    let server = Server::start();
    let order = json!({
        "type": "DEALER",
        "action": "watch",
        "endpoint": format!("tcp://{}", server.listener.local_addr().unwrap()),
    });
    let mut python = Python::start("pyzmq_peer.py", &order.to_string());
    let mechanism = "NULL".to_owned();
    assert_eq!(server.take().next(), Err(ZmtpError::MechanismMismatch { mechanism }));
    assert_eq!(python.says()[0], "HANDSHAKE_FAILED_PROTOCOL");
}

/// Starts a pyzmq ROUTER and connects our client to it.
fn connect_to_libzmq(order: Value, expected: PublicKey) -> (Python, Link) {
    let mut python = Python::start("pyzmq_peer.py", &order.to_string());
    let endpoint = python.says();
    let address = endpoint.as_str().unwrap().trim_start_matches("tcp://").to_owned();
    let metadata = Metadata::new(&SocketType::Dealer).with("Identity", "").unwrap();
    let engine = Engine::client(ClientConfig::new(KeyPair::generate(), expected, metadata));
    (python, Link::new(engine, TcpStream::connect(address).unwrap()))
}

fn curve_router(keys: &KeyPair) -> Value {
    json!({
        "type": "ROUTER",
        "action": "serve",
        "public": keys.public.to_string(),
        "secret": *keys.secret.expose_z85(),
    })
}

#[test]
fn our_client_talks_to_a_server_of_libzmq() {
    let keys = KeyPair::generate();
    let (_python, mut link) = connect_to_libzmq(curve_router(&keys), keys.public);
    let EngineEvent::Ready { metadata } = link.next().unwrap() else { panic!("expected READY") };
    assert_eq!(metadata.socket_type(), Some(SocketType::Router));
    for size in SIZES {
        let message = [Bytes::from_static(b"part"), Bytes::new(), vec![size as u8; size].into()];
        link.send(&message);
        assert_eq!(link.message(), message);
    }
}

#[test]
fn our_client_tells_refusal_wrong_server_key_and_clear_text_of_libzmq_apart() {
    let keys = KeyPair::generate();
    let no_keys = tempfile::tempdir().unwrap();
    let refusing = with(curve_router(&keys), "refuse", json!(no_keys.path()));
    let (_python, mut link) = connect_to_libzmq(refusing, keys.public);
    assert_eq!(link.next(), Ok(EngineEvent::PeerError { reason: "400".to_owned() }));

    let (_python, mut link) = connect_to_libzmq(curve_router(&keys), KeyPair::generate().public);
    let stage = Stage::Welcome;
    assert_eq!(link.next(), Err(ZmtpError::ClosedDuringHandshake { stage }));

    let clear_text = json!({ "type": "ROUTER", "action": "serve" });
    let (_python, mut link) = connect_to_libzmq(clear_text, keys.public);
    let mechanism = "NULL".to_owned();
    assert_eq!(link.next(), Err(ZmtpError::MechanismMismatch { mechanism }));
}

#[test]
fn boxes_are_those_of_libsodium_at_random_sizes() {
    let mut python = Python::start("box_peer.py", "");
    let mut stdin = python.child.stdin.take().unwrap();
    let small = (0..200).map(|_| u16::from_be_bytes(random()) as usize % 3000);
    let large = (0..40).map(|_| u16::from_be_bytes(random()) as usize);
    for size in (0..=130).chain(small).chain(large) {
        let seed: [u8; 32] = random();
        let content: Vec<u8> = (0..size).map(|at| seed[at % 32].wrapping_mul(at as u8 | 1)).collect();
        let (key, mut nonce) = (random::<32>(), random::<24>());
        nonce[23] &= 0xfe;
        let (box_key, mut sealed) = (BoxKey::from_bytes(key), Vec::new());
        box_key.seal_onto(&nonce, &[&content], &mut sealed);
        writeln!(stdin, "{} {} {} {}", hex(&key), hex(&nonce), hex(&content), hex(&sealed)).unwrap();

        let mut theirs = String::new();
        python.lines.read_line(&mut theirs).unwrap();
        nonce[23] |= 1;
        let opened = box_key.open(&nonce, &mut unhex(&theirs)).map(|opened| opened.to_vec());
        assert_eq!(opened, Ok(content), "{size} bytes");
    }
}
