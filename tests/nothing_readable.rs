use std::{io::Write as _, time::Duration};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Endpoint, Payload, PublishOptions, SubscribeOptions,
    blocking::wait,
    crypto::KeyPair,
    envelope::Header,
    zmtp::{ClientConfig, Engine, EngineEvent, FrameFlags, Metadata, SocketType},
};

use crate::{
    harness::{DEADLINE, TestBroker, TestProcess, eventually},
    raw_peer::{RawPeer, RawStream},
    wire_proxy::{FIRST_FRAME, Recorded, Way, WireProxy},
};

/// Everything a session says that is nobody else's business.
const TOPIC: &str = "zebra-topic/quokka-level";
const PREFIX: &str = "zebra-topic/";
const ASKED: &str = "walrus-question";
const DENIED: &str = "gazelle-forbidden";
const MEMBER: &str = "ocelot-member";
const STRANGER: &str = "lemur-stranger";
const REVOKED: &str = "numbat-revoked";
const HEADER: (&str, &str) = ("axolotl-header-name", "tapir-header-value");
const PAYLOAD: &str = "capybara-payload-of-some-length";
const GROUP: &str = "pangolin-group";
const IDENTITY: &str = "narwhal-identity-in-metadata";

const WORDS: [&str; 13] = [
    TOPIC,
    PREFIX,
    ASKED,
    DENIED,
    MEMBER,
    STRANGER,
    REVOKED,
    HEADER.0,
    HEADER.1,
    PAYLOAD,
    GROUP,
    IDENTITY,
    // What the records and refusals would say in plain text.
    "interlock-bus ",
];

fn through(proxy: &WireProxy, credentials: &Credentials) -> Credentials {
    Credentials { endpoints: vec![proxy.endpoint.clone()], file: None, ..credentials.clone() }
}

fn connect(credentials: Credentials) -> Client {
    Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
}

/// All that a session can say, native and stock, permitted and refused.
fn speak(broker: &TestBroker, proxy: &WireProxy, at: &Endpoint, keys: &mut Vec<[u8; 32]>) {
    let suffix = if matches!(at, Endpoint::Ipc(_)) { "-ipc" } else { "-tcp" };
    let enrol = |name: &str| {
        let path = broker.enrol(&format!("{name}{suffix}"), &[TOPIC], &[TOPIC], &[ASKED], &[ASKED]);
        Credentials::load(&path).unwrap()
    };
    let (member, revoked) = (enrol(MEMBER), enrol(REVOKED));
    let member = through(proxy, &member);
    let client = connect(member.clone());
    let (topic, asked) = (TOPIC.parse().unwrap(), ASKED.parse().unwrap());
    let options = SubscribeOptions::default().group(GROUP);
    let mut subscription = wait(client.subscribe(&TOPIC.parse().unwrap(), options)).unwrap();
    let header = Header { user: vec![(HEADER.0.into(), HEADER.1.into())], ..Header::new() };
    let with = PublishOptions { header: Some(header), retain: true, ..PublishOptions::default() };
    wait(client.publish_acknowledged(&topic, Payload::text(PAYLOAD), with)).unwrap();
    assert!(wait(subscription.next()).is_some());
    // Refused, with words of the broker that quote ours.
    let denied = DENIED.parse().unwrap();
    wait(client.publish_acknowledged(&denied, Payload::text(PAYLOAD), PublishOptions::default()))
        .unwrap_err();
    wait(client.request(&asked, Payload::text(PAYLOAD), DEADLINE)).unwrap_err();

    // Stock, with metadata that are encrypted from INITIATE on.
    let metadata = Metadata::new(&SocketType::Sub).with("Identity", IDENTITY).unwrap();
    let mut stock = RawStream::connect(&proxy.endpoint);
    let mut engine = Engine::client(ClientConfig::new(member.keys.clone(), member.broker, metadata));
    let mut input = bytes::BytesMut::new();
    loop {
        stock.write_all(&std::mem::take(engine.output())).unwrap();
        if let Some(EngineEvent::Ready { .. }) = engine.poll(&mut input).unwrap() {
            break;
        }
        stock.write_all(&std::mem::take(engine.output())).unwrap();
        let mut buffer = [0; 4096];
        let bytes = std::io::Read::read(&mut stock, &mut buffer).unwrap();
        input.extend_from_slice(&buffer[..bytes]);
    }
    let subscribe = interlock_bus::zmtp::Command::Subscribe(bytes::Bytes::from_static(PREFIX.as_bytes()));
    engine.send(&[&subscribe.encode()], FrameFlags::COMMAND).unwrap();
    stock.write_all(engine.output()).unwrap();
    let mut publisher =
        RawPeer::connect(&proxy.endpoint, &member, SocketType::Pub, false).expect("the member may connect");
    publisher.send_frame(TOPIC.as_bytes(), FrameFlags::MORE).unwrap();
    publisher.send_frame(PAYLOAD.as_bytes(), FrameFlags::LAST).unwrap();
    publisher.send_frame(DENIED.as_bytes(), FrameFlags::MORE).unwrap();
    publisher.send_frame(PAYLOAD.as_bytes(), FrameFlags::LAST).unwrap();
    let mut buffer = [0; 4096];
    assert!(std::io::Read::read(&mut stock, &mut buffer).unwrap() > 0, "the subscriber is sent something");

    // libzmq itself, where it can reach the proxy.
    let file = broker.directory.path().join(format!("member{suffix}.toml"));
    member.save(&file).unwrap();
    let asks = TestProcess::python("stock.py", &["req", file.to_str().unwrap(), ASKED, PAYLOAD]);
    assert_eq!(asks.json()["frames"][0], "no_responders");

    // Refused at the handshake: unknown, and revoked with a name that the broker knows.
    let unknown =
        Credentials { name: STRANGER.parse().unwrap(), keys: KeyPair::generate(), ..member.clone() };
    broker.store.revoke(&revoked.name).unwrap();
    let revoked = through(proxy, &revoked);
    for credentials in [&unknown, &revoked] {
        let options = ConnectOptions::new(credentials.clone()).timeout(Duration::from_secs(5));
        Client::connect_blocking(options).unwrap_err();
    }
    // Ended with a reason.
    broker.store.revoke(&member.name).unwrap();
    eventually("the member's end", || wait(client.ping()).err().map(drop));
    for credentials in [&member, &unknown, &revoked] {
        keys.push(*credentials.keys.public.as_bytes());
    }
    keys.push(*member.broker.as_bytes());
}

#[test]
fn a_capture_of_whole_sessions_holds_no_topic_name_header_or_payload_on_either_transport() {
    let broker = TestBroker::start();
    for endpoint in broker.handle.endpoints() {
        let proxy = WireProxy::start(endpoint);
        let mut keys = Vec::new();
        speak(&broker, &proxy, endpoint, &mut keys);
        let recorded = proxy.recorded();
        let bytes: usize = recorded.iter().flat_map(|way| &way.pieces).map(Vec::len).sum();
        assert!(recorded.len() >= 12 && bytes > 4000, "{} streams, {bytes} bytes", recorded.len());
        let secrets = WORDS.map(str::as_bytes).into_iter().chain(keys.iter().map(|key| &key[..]));
        for secret in secrets {
            for window in secret.windows(8) {
                let found = recorded
                    .iter()
                    .any(|stream| stream.pieces.concat().windows(8).any(|seen| seen == window));
                assert!(!found, "`{}` of `{}` is on the wire", window.escape_ascii(), secret.escape_ascii());
            }
        }
        recorded.iter().for_each(check_what_is_clear);
    }
}

/// What ZMTP and CURVE show to everybody is this, and nothing else: the greeting, the size and kind of each
/// frame, nonces that count, the transient key in HELLO, the cookie, and three digits of a refusal.
fn check_what_is_clear(stream: &Recorded) {
    let mut last = 0;
    for (number, piece) in stream.pieces.iter().enumerate().skip(FIRST_FRAME) {
        let body = if piece[0] & 2 == 0 { &piece[2..] } else { &piece[9..] };
        let name = body.get(1..1 + usize::from(body[0])).unwrap();
        let nonce_at = match (name, number - FIRST_FRAME) {
            (b"HELLO", 0) => Some(6 + 2 + 72 + 32),
            (b"INITIATE", 1) => Some(9 + 96),
            (b"READY", 1) => Some(6),
            (b"MESSAGE", _) => Some(8),
            (b"WELCOME", 0) => None,
            (b"ERROR", _) => {
                assert!([&b"\x05ERROR\x03400"[..], b"\x05ERROR\x03500"].contains(&body));
                None
            }
            (other, number) => panic!("frame {number} {:?} is `{}`", stream.way, other.escape_ascii()),
        };
        // One counter for each way, from the handshake through all messages, without a gap.
        if let Some(at) = nonce_at {
            let nonce = u64::from_be_bytes(*body[at..].first_chunk().unwrap());
            assert_eq!(nonce, last + 1, "frame {number} {:?}", stream.way);
            last = nonce;
        }
    }
    let sent = [Way::ToBroker, Way::ToClient];
    assert!(sent.contains(&stream.way) && stream.pieces.len() >= FIRST_FRAME);
}
