//! Engine against engine in memory: every split of the stream, every kind of damage.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::curve::{INITIATE_BYTES, server::Secrets};
use super::*;
use crate::crypto::{KeyPair, PublicKey, SecretKey};

/// A xorshift generator: seeded, so that a failure can be repeated.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn key_pair(seed: u8) -> KeyPair {
    KeyPair::from_secret(SecretKey::from_bytes([seed; 32]))
}

fn server_config() -> ServerConfig {
    ServerConfig { keys: vec![key_pair(1), key_pair(2)], frame_bytes_max: 1 << 20, metadata_bytes_max: 512 }
}

fn client_config() -> ClientConfig {
    let metadata = Metadata::new(&SocketType::Dealer).with(X_INTERLOCK, "1").unwrap();
    ClientConfig { frame_bytes_max: 1 << 20, ..ClientConfig::new(key_pair(3), key_pair(1).public, metadata) }
}

/// Two engines and the bytes on their way between them.
struct Wire {
    client: Engine,
    server: Engine,
    to_client: BytesMut,
    to_server: BytesMut,
}

impl Wire {
    fn new(client: ClientConfig, server: ServerConfig) -> Self {
        Self::of(Engine::client(client), Engine::server(Arc::new(server)))
    }

    fn of(client: Engine, server: Engine) -> Self {
        Self { client, server, to_client: BytesMut::new(), to_server: BytesMut::new() }
    }

    /// Carries all output over, in chunks of the size that `chunk` gives, and collects the events.
    /// Lets every authenticated client in.
    fn run(&mut self, mut chunk: impl FnMut(usize) -> usize) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let to_server = std::mem::take(self.client.output());
            let to_client = std::mem::take(self.server.output());
            if to_server.is_empty() && to_client.is_empty() {
                return outcome;
            }
            for piece in pieces(&to_server, &mut chunk) {
                self.to_server.extend_from_slice(piece);
                drain(&mut self.server, &mut self.to_server, &mut outcome.server);
            }
            for piece in pieces(&to_client, &mut chunk) {
                self.to_client.extend_from_slice(piece);
                drain(&mut self.client, &mut self.to_client, &mut outcome.client);
            }
        }
    }

    fn ready() -> Self {
        let mut wire = Self::new(client_config(), server_config());
        wire.run(|rest| rest);
        assert!(wire.client.is_ready() && wire.server.is_ready());
        wire
    }
}

#[derive(Default)]
struct Outcome {
    client: Vec<Result<EngineEvent, ZmtpError>>,
    server: Vec<Result<EngineEvent, ZmtpError>>,
}

fn pieces<'a>(bytes: &'a [u8], chunk: &mut impl FnMut(usize) -> usize) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(chunk(rest.len()).clamp(1, rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn drain(engine: &mut Engine, input: &mut BytesMut, events: &mut Vec<Result<EngineEvent, ZmtpError>>) {
    if events.last().is_some_and(Result::is_err) {
        return;
    }
    loop {
        match engine.poll(input) {
            Ok(None) => return,
            Ok(Some(event)) => {
                if matches!(event, EngineEvent::Authenticate { .. }) {
                    engine.accept(&Metadata::new(&SocketType::Router));
                }
                let ended = matches!(event, EngineEvent::PeerError { .. });
                events.push(Ok(event));
                if ended {
                    return;
                }
            }
            Err(error) => return events.push(Err(error)),
        }
    }
}

fn frame(body: &'static [u8], more: bool, command: bool) -> Result<EngineEvent, ZmtpError> {
    Ok(EngineEvent::Frame { body: Bytes::from_static(body), more, command })
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    // Both announce as much as is allowed and send one byte of it.
    let mut server = Wire::new(client_config(), server_config()).server;
    let mut input = BytesMut::from(&super::greeting::encode(false)[..]);
    input.extend_from_slice(&[4, 200, 5]);
    assert_eq!(server.poll(&mut input), Ok(None));
    assert!(input.capacity() < 1024 && server.output().capacity() < 1024, "{}", input.capacity());
    let mut wire = Wire::ready();
    let announced = (wire.server.frame_limit() as u64).to_be_bytes();
    let mut input = BytesMut::from(&[&[2][..], &announced, &[7]].concat()[..]);
    let before = input.capacity();
    assert_eq!(wire.server.poll(&mut input), Ok(None));
    assert_eq!(input.capacity(), before);
    assert!(wire.server.missing(&input) > 1 << 20);
}

fn authenticated(server_key_index: usize) -> Result<EngineEvent, ZmtpError> {
    let ClientConfig { keys, metadata, .. } = client_config();
    let server_key = server_config().keys[server_key_index].public;
    Ok(EngineEvent::Authenticate { key: keys.public, metadata, server_key_index, server_key })
}

/// Handshake, then two frames from the client and one command from the server, cut up by `chunk`.
fn conversation(mut chunk: impl FnMut(usize) -> usize) {
    let mut wire = Wire::new(client_config(), server_config());
    let outcome = wire.run(&mut chunk);
    let metadata = Metadata::new(&SocketType::Router);
    assert_eq!(outcome.server, [authenticated(0)]);
    assert_eq!(outcome.client, [Ok(EngineEvent::Ready { metadata })]);

    wire.client.send(&[b"to", b"pic"], FrameFlags::MORE).unwrap();
    wire.client.send(&[], FrameFlags::LAST).unwrap();
    wire.server.send(&[b"\x04PING\0\0"], FrameFlags::COMMAND).unwrap();
    let outcome = wire.run(&mut chunk);
    assert_eq!(outcome.server, [frame(b"topic", true, false), frame(b"", false, false)]);
    assert_eq!(outcome.client, [frame(b"\x04PING\0\0", false, true)]);
    assert!(wire.to_server.is_empty() && wire.to_client.is_empty());
}

#[test]
fn a_conversation_is_the_same_one_byte_at_a_time() {
    conversation(|_| 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_conversation_is_the_same_however_the_stream_is_cut(seed in 1u64.., longest in 1usize..500) {
        let mut seeded = Seeded(seed);
        conversation(|_| 1 + seeded.below(longest));
    }
}

#[test]
fn frames_of_every_size_arrive_whole_up_to_the_limit_and_no_longer_one_is_sent() {
    let mut wire = Wire::ready();
    let body: Vec<u8> = (0..1 << 20).map(|at: u32| at as u8).collect();
    for body_bytes in [0, 1, 221, 222, 223, 255, 256, 65_535, 1 << 20] {
        let (left, right) = body[..body_bytes].split_at(body_bytes / 3);
        wire.client.send(&[left, right], FrameFlags::LAST).unwrap();
        wire.server.send(&[left, right], FrameFlags::LAST).unwrap();
        let outcome = wire.run(|_| 10_000);
        for events in [outcome.client, outcome.server] {
            let body = Bytes::copy_from_slice(&body[..body_bytes]);
            assert_eq!(events, [Ok(EngineEvent::Frame { body, more: false, command: false })]);
        }
    }
    let (bytes, limit) = ((1 << 20) + 1, 1 << 20);
    let refused = wire.client.send(&[&body, b"!"], FrameFlags::LAST);
    assert_eq!(refused, Err(ZmtpError::SendTooLong { bytes, limit }));
    assert!(wire.client.output().is_empty() && wire.client.is_ready());
}

#[test]
fn a_client_that_still_uses_the_previous_server_key_is_let_in_and_told_apart() {
    let config = ClientConfig { server: key_pair(2).public, ..client_config() };
    let outcome = Wire::new(config, server_config()).run(|rest| rest);
    assert_eq!(outcome.server, [authenticated(1)]);
    assert!(matches!(outcome.client[..], [Ok(EngineEvent::Ready { .. })]));
}

#[test]
fn a_wrong_server_key_is_named_on_both_sides() {
    let config = ClientConfig { server: key_pair(9).public, ..client_config() };
    let outcome = Wire::new(config, server_config()).run(|rest| rest);
    assert_eq!(outcome.server, [Err(ZmtpError::ServerKeyUnknown { keys_tried: 2 })]);
    let reason = "500".to_owned();
    assert_eq!(outcome.client, [Ok(EngineEvent::PeerError { reason: reason.clone() })]);
    assert_eq!(Refusal::from_reason(&reason), Refusal::ServerKeyWrong);
}

#[test]
fn a_refused_client_gets_the_reason_in_clear_before_ready_and_both_engines_are_closed() {
    let mut wire = Wire::new(client_config(), server_config());
    let mut refused = false;
    while !refused {
        let to_server = std::mem::take(wire.client.output());
        wire.to_server.extend_from_slice(&to_server);
        if let Some(event) = wire.server.poll(&mut wire.to_server).unwrap() {
            assert!(matches!(event, EngineEvent::Authenticate { .. }));
            wire.server.refuse(Refusal::KeyRefused.reason());
            assert!(wire.server.output().ends_with(b"\x04\x0a\x05ERROR\x03400"));
            refused = true;
        }
        let to_client = std::mem::take(wire.server.output());
        wire.to_client.extend_from_slice(&to_client);
        let event = wire.client.poll(&mut wire.to_client).unwrap();
        let reason = "400".to_owned();
        assert_eq!(event, refused.then_some(EngineEvent::PeerError { reason }));
    }
    assert_eq!(wire.server.poll(&mut wire.to_server), Err(ZmtpError::Closed));
    assert_eq!(wire.client.poll(&mut wire.to_client), Err(ZmtpError::Closed));
    assert_eq!(wire.server.send_error_before_ready("300"), Err(ZmtpError::Closed));
    assert_eq!(wire.client.send(&[], FrameFlags::LAST), Err(ZmtpError::Closed));
}

#[test]
fn a_server_may_turn_a_client_away_at_any_stage_but_not_out_of_a_session() {
    let mut wire = Wire::new(client_config(), server_config());
    wire.server.send_error_before_ready("300").unwrap();
    let outcome = wire.run(|_| 1);
    assert_eq!(outcome.client, [Ok(EngineEvent::PeerError { reason: "300".to_owned() })]);
    assert_eq!(outcome.server, [Err(ZmtpError::Closed)], "it answered HELLO and ended");

    let mut wire = Wire::ready();
    assert_eq!(wire.server.send_error_before_ready("300"), Err(ZmtpError::AlreadyReady));
    assert!(wire.server.is_ready());
}

#[test]
fn nothing_is_taken_from_the_input_while_a_decision_is_awaited() {
    let mut wire = Wire::new(client_config(), server_config());
    let mut event = None;
    while event.is_none() {
        let to_server = std::mem::take(wire.client.output());
        wire.to_server.extend_from_slice(&to_server);
        event = wire.server.poll(&mut wire.to_server).unwrap();
        let to_client = std::mem::take(wire.server.output());
        wire.to_client.extend_from_slice(&to_client);
        wire.client.poll(&mut wire.to_client).unwrap();
    }
    wire.to_server.extend_from_slice(b"early");
    assert_eq!(wire.server.poll(&mut wire.to_server), Ok(None));
    assert_eq!((&wire.to_server[..], wire.server.stage()), (&b"early"[..], Stage::Decision));
    let stage = Stage::Decision;
    assert_eq!(wire.server.send(&[], FrameFlags::LAST), Err(ZmtpError::NotReady { stage }));
}

#[test]
fn metadata_beyond_the_limit_are_refused_by_their_frame_header_alone() {
    let metadata = Metadata::new(&SocketType::Dealer).with("X-Long", vec![b'x'; 600]).unwrap();
    let bytes = (INITIATE_BYTES + 22 + 611) as u64;
    let outcome = Wire::new(ClientConfig { metadata, ..client_config() }, server_config()).run(|rest| rest);
    let Err(ZmtpError::FrameTooLong { bytes: found, limit, stage }) = outcome.server[0] else {
        panic!("{:?}", outcome.server);
    };
    assert_eq!((found, limit, stage), (bytes, INITIATE_BYTES + 512, Stage::Initiate));
}

/// The bytes of one whole connection from the client, with the secrets that make them valid again.
struct Recording {
    bytes: Vec<u8>,
}

impl Recording {
    const TRANSIENT: [u8; 32] = [11; 32];
    const COOKIE_KEY: [u8; 32] = [12; 32];

    fn server() -> Engine {
        let secrets = Secrets::recorded(SecretKey::from_bytes(Self::TRANSIENT), Self::COOKIE_KEY);
        Engine::server_replaying(Arc::new(server_config()), secrets)
    }

    fn new() -> Self {
        let mut wire = Wire::of(Engine::client(client_config()), Self::server());
        let mut bytes = Vec::new();
        let mut outcome = Outcome::default();
        let mut frames_sent = false;
        loop {
            let to_server = std::mem::take(wire.client.output());
            bytes.extend_from_slice(&to_server);
            wire.to_server.extend_from_slice(&to_server);
            drain(&mut wire.server, &mut wire.to_server, &mut outcome.server);
            let to_client = std::mem::take(wire.server.output());
            wire.to_client.extend_from_slice(&to_client);
            drain(&mut wire.client, &mut wire.to_client, &mut outcome.client);
            if wire.client.is_ready() {
                if frames_sent {
                    break;
                }
                for body in [&b"first"[..], &[7; 300]] {
                    wire.client.send(&[body], FrameFlags::LAST).unwrap();
                }
                frames_sent = true;
            }
        }
        Self { bytes }
    }
}

fn events_of(bytes: &[u8]) -> Vec<Result<EngineEvent, ZmtpError>> {
    let (mut server, mut input, mut events) = (Recording::server(), BytesMut::from(bytes), Vec::new());
    drain(&mut server, &mut input, &mut events);
    assert!(server.output().len() < 400, "a server answers with a few hundred bytes at most");
    events
}

#[test]
fn a_recorded_connection_replays_and_cut_short_it_only_waits() {
    let recording = Recording::new();
    let whole = events_of(&recording.bytes);
    let long = EngineEvent::Frame { body: Bytes::from(vec![7; 300]), more: false, command: false };
    assert_eq!(whole, [authenticated(0), frame(b"first", false, false), Ok(long)]);
    for end in 0..recording.bytes.len() {
        let (mut server, mut events) = (Recording::server(), Vec::new());
        let mut input = BytesMut::from(&recording.bytes[..end]);
        drain(&mut server, &mut input, &mut events);
        assert!(events.len() < 3 && events[..] == whole[..events.len()], "cut at {end}");
        let missing = server.missing(&input);
        let expected = match server.stage() {
            Stage::Session if input.is_empty() => None,
            Stage::Session => Some(ZmtpError::ClosedInsideFrame),
            stage => Some(ZmtpError::ClosedDuringHandshake { stage }),
        };
        assert_eq!(server.end_of_stream(&input), expected);
        assert!((missing == 0) == input.is_empty() && missing <= recording.bytes.len() - end);
    }
}

/// 10,000 seeded mutations: flipped, replaced, removed, inserted, repeated and swapped bytes.
#[test]
fn no_mutation_of_a_handshake_panics_or_forges_anything() {
    let recording = Recording::new();
    let whole = events_of(&recording.bytes);
    let mut seeded = Seeded(0x9e37_79b9_7f4a_7c15);
    for round in 0..10_000 {
        let mut bytes = recording.bytes.clone();
        for _ in 0..=seeded.below(3) {
            mutate(&mut bytes, &mut seeded);
        }
        let events = events_of(&bytes);
        let honest = events.iter().take_while(|event| event.is_ok()).count();
        assert_eq!(events[..honest], whole[..honest], "round {round}");
        assert!(events.len() <= honest + 1, "round {round}");
    }
}

fn mutate(bytes: &mut Vec<u8>, seeded: &mut Seeded) {
    let at = seeded.below(bytes.len());
    let count = 1 + seeded.below((bytes.len() - at).min(64));
    match seeded.below(6) {
        0 => bytes[at] ^= 1 << seeded.below(8),
        1 => bytes[at..at + count].iter_mut().for_each(|byte| *byte = seeded.next() as u8),
        2 => drop(bytes.drain(at..at + count)),
        3 => drop(bytes.splice(at..at, (0..count).map(|_| 0xff))),
        4 => {
            let repeated = bytes[at..at + count].to_vec();
            bytes.splice(at..at, repeated);
        }
        _ => bytes.swap(at, count),
    }
}

#[test]
fn garbage_at_every_stage_is_an_error_and_never_a_panic() {
    let recording = Recording::new();
    let ends = [0, 64, 64 + 202, 64 + 202 + INITIATE_BYTES, recording.bytes.len()];
    let mut seeded = Seeded(7);
    for end in ends {
        for _ in 0..200 {
            let mut bytes = recording.bytes[..end.min(recording.bytes.len())].to_vec();
            let honest = events_of(&bytes).len();
            bytes.extend((0..1000).map(|_| seeded.next() as u8));
            let events = events_of(&bytes);
            // An announced long frame may still be awaited; nothing else may come out.
            assert!(events[honest..].iter().all(Result::is_err), "after {end} bytes: {events:?}");
        }
    }
}

#[test]
fn a_replayed_frame_of_the_same_connection_is_refused() {
    let mut wire = Wire::ready();
    wire.client.send(&[b"once"], FrameFlags::LAST).unwrap();
    let sent = wire.client.output().clone();
    wire.client.output().extend_from_slice(&sent);
    let outcome = wire.run(|rest| rest);
    let refused = Err(ZmtpError::NonceNotIncreasing { nonce: 3, last: 3 });
    assert_eq!(outcome.server, [frame(b"once", false, false), refused]);
}

#[test]
fn a_connection_replayed_to_a_server_with_other_secrets_gets_no_further_than_its_cookie() {
    let recording = Recording::new();
    let mut server = Engine::server(Arc::new(server_config()));
    let mut input = BytesMut::from(&recording.bytes[..]);
    assert_eq!(server.poll(&mut input), Err(ZmtpError::CookieRefused));
}

#[test]
fn the_cookie_of_another_client_is_refused_even_under_the_same_cookie_key() {
    let (mine, theirs) = (Recording::new(), Recording::new());
    let hello_end = 64 + 2 + 200;
    let spliced = [&mine.bytes[..hello_end], &theirs.bytes[hello_end..]].concat();
    assert_eq!(events_of(&spliced), [Err(ZmtpError::CookieRefused)]);
}

/// A client that vouches for another server key than it said HELLO to: what a man in the middle
/// who is himself a legitimate server could pass on.
#[test]
fn a_vouch_for_another_server_key_is_refused_with_400() {
    let keys = server_config().keys;
    let mut client = Engine::client(client_config());
    client.vouch_for(key_pair(2).public);
    let outcome = Wire::of(client, Engine::server(Arc::new(server_config()))).run(|rest| rest);
    assert_eq!(keys.len(), 2, "both keys are the server's own, and still the vouch must match");
    assert_eq!(outcome.server, [Err(ZmtpError::VouchRefused { key: key_pair(3).public })]);
    assert_eq!(outcome.client, [Ok(EngineEvent::PeerError { reason: "400".to_owned() })]);
}

/// A client that claims a public key without its secret key.
#[test]
fn a_stolen_public_key_does_not_authenticate() {
    let stolen = key_pair(8).public;
    let keys = KeyPair { public: stolen, ..key_pair(3) };
    let outcome = Wire::new(ClientConfig { keys, ..client_config() }, server_config()).run(|rest| rest);
    assert_eq!(outcome.server, [Err(ZmtpError::VouchRefused { key: stolen })]);
}

#[test]
fn a_client_talking_to_another_client_or_a_weak_key_is_told() {
    let clients = [Engine::client(client_config()), Engine::client(client_config())];
    let [client, other] = clients;
    let outcome = Wire::of(client, other).run(|rest| rest);
    let unexpected = ZmtpError::Unexpected { name: "HELLO".to_owned(), stage: Stage::Welcome };
    assert_eq!(outcome.server, [Err(unexpected.clone())]);
    assert_eq!(outcome.client, [Err(unexpected)]);

    let server = PublicKey::from_bytes([0; 32]);
    let outcome = Wire::new(ClientConfig { server, ..client_config() }, server_config()).run(|rest| rest);
    assert!(matches!(outcome.client[..], [Err(ZmtpError::Key(_))]));
}

#[test]
fn limits_hold_before_the_body_arrives_and_memory_does_not_grow() {
    let mut wire = Wire::ready();
    let mut input = BytesMut::from(&[&[2][..], &u64::MAX.to_be_bytes()].concat()[..]);
    let capacity = input.capacity();
    let limit = (1 << 20) + 33;
    let error = ZmtpError::FrameTooLong { bytes: u64::MAX, limit, stage: Stage::Session };
    assert_eq!(wire.server.poll(&mut input), Err(error));
    assert_eq!(input.capacity(), capacity);

    let mut wire = Wire::ready();
    let mut input = BytesMut::from(&[&[2][..], &(limit as u64).to_be_bytes()].concat()[..]);
    assert_eq!(wire.server.poll(&mut input), Ok(None));
    assert_eq!((wire.server.missing(&input), input.capacity()), (limit, capacity));
}

#[test]
fn debug_shows_the_stage_and_no_secret() {
    let wire = Wire::ready();
    let text = format!("{:?} {:?}", wire.server, server_config());
    assert!(text.contains("Session") && text.contains("redacted"));
    assert!(!text.contains(key_pair(1).secret.expose_z85().as_str()));
}
