//! Fuzz targets of the connection: what a peer may send at each stage. The target holds valid keys
//! and does the cryptography itself, so that the fuzzer reaches what stands behind it.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::curve::server::Secrets;
use super::curve::{long_nonce, short_nonce};
use super::message_box::Side;
use super::{
    ClientConfig, Command, Engine, EngineEvent, Metadata, ServerConfig, SocketType, Stage, X_INTERLOCK,
    ZmtpError,
};
use crate::crypto::{BoxKey, KeyPair, SecretKey};
use crate::fuzzing::Input;

const FRAME_BYTES_MAX: usize = 4096;
const METADATA_BYTES_MAX: usize = 512;

/// Everything the targets share that is costly to compute.
struct Keys {
    server: KeyPair,
    old_server: KeyPair,
    client: KeyPair,
    client_transient: KeyPair,
    server_transient: KeyPair,
    hello: [BoxKey; 2],
    session: BoxKey,
    vouch: BoxKey,
    config: Arc<ServerConfig>,
}

const COOKIE_KEY: [u8; 32] = [6; 32];

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let pair = |seed| KeyPair::from_secret(SecretKey::from_bytes([seed; 32]));
        let (server, old_server, client) = (pair(1), pair(2), pair(3));
        let (client_transient, server_transient) = (pair(4), pair(5));
        let shared = |one: &KeyPair, other: &KeyPair| {
            BoxKey::shared(&one.public, &other.secret).expect("these keys are not weak")
        };
        Keys {
            hello: [shared(&server, &client_transient), shared(&old_server, &client_transient)],
            session: shared(&server_transient, &client_transient),
            vouch: shared(&server_transient, &client),
            config: Arc::new(ServerConfig {
                keys: vec![server.clone(), old_server.clone()],
                frame_bytes_max: FRAME_BYTES_MAX,
                metadata_bytes_max: METADATA_BYTES_MAX,
            }),
            server,
            old_server,
            client,
            client_transient,
            server_transient,
        }
    })
}

fn server() -> Engine {
    let secrets =
        Secrets { transient: keys().server_transient.clone(), cookie_key: BoxKey::from_bytes(COOKIE_KEY) };
    Engine::server_replaying(Arc::clone(&keys().config), secrets)
}

fn client() -> Engine {
    let metadata = Metadata::new(&SocketType::Dealer).with(X_INTERLOCK, "1").expect("legal metadata");
    Engine::client(ClientConfig {
        frame_bytes_max: FRAME_BYTES_MAX,
        metadata_bytes_max: METADATA_BYTES_MAX,
        ..ClientConfig::new(keys().client.clone(), keys().server.public, metadata)
    })
}

/// Feeds `bytes` and polls until nothing more comes. An engine must be closed after an error, and must
/// never hold more than one unfinished frame.
fn feed(engine: &mut Engine, input: &mut BytesMut, bytes: &[u8]) -> Result<Vec<EngineEvent>, ZmtpError> {
    input.extend_from_slice(bytes);
    let mut events = Vec::new();
    loop {
        match engine.poll(input) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => break,
            Err(error) => {
                assert_eq!(engine.stage(), Stage::Closed, "after {error}");
                assert_eq!(engine.poll(input), Err(ZmtpError::Closed));
                let _ = error.to_string();
                return Err(error);
            }
        }
    }
    let missing = engine.missing(input);
    assert!(missing <= FRAME_BYTES_MAX + METADATA_BYTES_MAX + 512, "{missing} bytes are awaited");
    let _ = engine.end_of_stream(input);
    Ok(events)
}

/// The first byte: which role, whether a valid greeting comes first, and into how large pieces the rest
/// is cut. However the stream is cut, the outcome is the same.
pub(crate) fn greeting(data: &[u8]) {
    let mut data = Input(data);
    let choice = data.byte();
    let mut stream = Vec::new();
    if choice & 2 != 0 {
        stream.extend_from_slice(&super::greeting::encode(false));
    }
    stream.extend_from_slice(data.0);
    let run = |piece_bytes: usize| {
        let (mut engine, mut input) = (if choice & 1 == 0 { server() } else { client() }, BytesMut::new());
        let mut events = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            match feed(&mut engine, &mut input, piece) {
                Ok(more) => events.extend(more),
                // What is quoted of the input depends on how much of it is there.
                Err(error) => return (events, Some(std::mem::discriminant(&error)), engine.output().len()),
            }
        }
        (events, None, engine.output().len())
    };
    let whole = run(stream.len().max(1));
    assert_eq!(whole, run(usize::from(choice >> 2) + 1));
}

/// An open session: frames as they come from the wire, and boxes sealed with the right key around
/// whatever the fuzzer likes. What is delivered was sealed, in order, with a greater nonce.
pub(crate) fn frames(data: &[u8]) {
    let mut data = Input(data);
    let key = BoxKey::from_bytes([9; 32]);
    let mut engine = Engine::in_session(key.clone(), Side::Server, FRAME_BYTES_MAX);
    let (mut input, mut last) = (BytesMut::new(), 0u64);
    while !data.is_empty() {
        let choice = data.byte();
        if choice & 1 != 0 {
            // Bytes as they are. No box among them can open.
            let events = feed(&mut engine, &mut input, data.piece());
            assert!(matches!(events.as_deref(), Ok([]) | Err(_)), "{events:?}");
            if events.is_err() || !input.is_empty() {
                return;
            }
            continue;
        }
        let counter = if choice & 2 == 0 { last + 1 } else { data.u64() };
        let flags = if choice & 4 == 0 { choice >> 6 } else { data.byte() };
        let body = data.piece();
        let frame = message(&key, b"CurveZMQMESSAGEC", counter, flags, body);
        let events = feed(&mut engine, &mut input, &frame);
        if counter <= last {
            return assert_eq!(events, Err(ZmtpError::NonceNotIncreasing { nonce: counter, last }));
        }
        if counter != last + 1 {
            return assert_eq!(events, Err(ZmtpError::NonceSkipped { nonce: counter, last }));
        }
        last = counter;
        let (more, command) = (flags & 1 != 0, flags & 2 != 0);
        if flags & !3 != 0 || (more && command) {
            return assert_eq!(events, Err(ZmtpError::MessageFlags { flags }));
        }
        let body = Bytes::copy_from_slice(body);
        assert_eq!(events.as_deref(), Ok(&[EngineEvent::Frame { body: body.clone(), more, command }][..]));
        if let (true, Ok(read)) = (command, Command::parse(&body)) {
            let written = Bytes::from(read.encode());
            if !matches!(read, Command::Unknown { .. }) {
                assert_eq!(Command::parse(&written), Ok(read));
            }
        }
    }
}

/// A whole MESSAGE frame.
fn message(key: &BoxKey, text: &[u8; 16], counter: u64, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut content = b"\x07MESSAGE".to_vec();
    content.extend_from_slice(&counter.to_be_bytes());
    key.seal_onto(&short_nonce(text, counter), &[&[flags], body], &mut content);
    frame(0, &content)
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags | 2];
    frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

fn command(name: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![name.len() as u8];
    body.extend_from_slice(name);
    parts.iter().for_each(|part| body.extend_from_slice(part));
    frame(4, &body)
}

/// What of an honest handshake the fuzzer replaces: one bit of the choice for each part.
fn or_fuzzed<'a>(choice: u8, bit: u8, honest: Vec<u8>, data: &mut Input<'a>) -> (Vec<u8>, bool) {
    if choice & (1 << bit) == 0 {
        return (honest, true);
    }
    // An edit of a few bytes reaches deeper than another length: both are offered.
    let kind = data.byte();
    let mut edited = honest.clone();
    if kind & 1 == 0 && !edited.is_empty() {
        let at = usize::from(kind >> 1) * edited.len() / 128;
        data.piece().iter().enumerate().for_each(|(step, byte)| {
            let place = (at + step) % honest.len();
            edited[place] ^= byte;
        });
    } else {
        edited = data.piece().to_vec();
    }
    let same = edited == honest;
    (edited, same)
}

/// A client that holds every key it needs, against our server. It gets in exactly if all that it
/// proves is true and its metadata are readable.
pub(crate) fn handshake_of_a_server(data: &[u8]) {
    let mut data = Input(data);
    let (choice, parts) = (data.byte(), data.byte());
    let (mut engine, mut input) = (server(), BytesMut::new());
    let keys = keys();
    let honest_greeting = super::greeting::encode(false);
    assert_eq!(feed(&mut engine, &mut input, &honest_greeting), Ok(vec![]));
    if choice & 1 != 0 {
        let events = feed(&mut engine, &mut input, data.0);
        return assert!(matches!(events.as_deref(), Ok([] | [EngineEvent::PeerError { .. }]) | Err(_)));
    }

    let index = usize::from(choice >> 1 & 1);
    let counter = if choice & 4 == 0 { 1 } else { data.u64() };
    let (head, head_is_honest) = or_fuzzed(parts, 0, [&[1u8, 0][..], &[0; 72]].concat(), &mut data);
    let mut sealed = Vec::new();
    keys.hello[index].seal_onto(&short_nonce(b"CurveZMQHELLO---", counter), &[&[0; 64]], &mut sealed);
    let (sealed, sealed_is_honest) = or_fuzzed(parts, 1, sealed, &mut data);
    let transient = keys.client_transient.public.as_bytes();
    engine.output().clear();
    let hello = command(b"HELLO", &[&head, transient, &counter.to_be_bytes(), &sealed]);
    let outcome = feed(&mut engine, &mut input, &hello);
    if outcome.is_err() || engine.stage() != Stage::Initiate {
        assert!(!(head_is_honest && sealed_is_honest && counter > 0), "an honest HELLO: {outcome:?}");
        return;
    }
    assert!(sealed_is_honest && counter > 0);

    let cookie = cookie(&mut engine, index);
    let (cookie, cookie_is_honest) = or_fuzzed(parts, 2, cookie, &mut data);
    let next = if choice & 8 == 0 { counter.wrapping_add(1) } else { data.u64() };
    let server = [keys.server.public, keys.old_server.public][index];
    let (vouched, vouched_is_honest) =
        or_fuzzed(parts, 3, [&transient[..], server.as_bytes()].concat(), &mut data);
    let mut vouch = vec![7; 16];
    keys.vouch.seal_onto(&long_nonce(b"VOUCH---", &[7; 16]), &[&vouched], &mut vouch);
    let proof = [&keys.client.public.as_bytes()[..], &vouch].concat();
    let (proof, proof_is_honest) = or_fuzzed(parts, 4, proof, &mut data);
    let mut honest_metadata = Vec::new();
    Metadata::new(&SocketType::Dealer).encode_onto(&mut honest_metadata);
    let (metadata, _) = or_fuzzed(parts, 5, honest_metadata, &mut data);
    let mut sealed = Vec::new();
    keys.session.seal_onto(&short_nonce(b"CurveZMQINITIATE", next), &[&proof, &metadata], &mut sealed);
    let (sealed, sealed_is_honest) = or_fuzzed(parts, 6, sealed, &mut data);
    let initiate = command(b"INITIATE", &[&cookie, &next.to_be_bytes(), &sealed]);
    let outcome = feed(&mut engine, &mut input, &initiate);
    let is_proven =
        cookie_is_honest && next > counter && vouched_is_honest && proof_is_honest && sealed_is_honest;
    match outcome.as_deref() {
        Ok([EngineEvent::Authenticate { key, metadata: read, server_key_index, server_key }]) => {
            assert_eq!(*server_key, server);
            assert!(is_proven && (*key, *server_key_index) == (keys.client.public, index));
            assert_eq!(Metadata::parse(&metadata, METADATA_BYTES_MAX).as_ref(), Ok(read));
        }
        Ok([]) => return,
        Ok(other) => panic!("{other:?}"),
        Err(_) => {
            let readable = Metadata::parse(&metadata, METADATA_BYTES_MAX).is_ok();
            assert!(!(is_proven && readable), "an honest INITIATE: {outcome:?}");
            return;
        }
    }
    if choice & 16 != 0 {
        engine.refuse("400");
        return assert_eq!(engine.stage(), Stage::Closed);
    }
    engine.accept(&Metadata::new(&SocketType::Router));
    let Some(after) = next.checked_add(1) else { return };
    let frame = message(&keys.session, b"CurveZMQMESSAGEC", after, 0, data.0);
    let delivered = feed(&mut engine, &mut input, &frame);
    if data.0.len() <= FRAME_BYTES_MAX {
        let body = Bytes::copy_from_slice(data.0);
        let expected = EngineEvent::Frame { body, more: false, command: false };
        assert_eq!(delivered.as_deref(), Ok(&[expected][..]));
    }
}

/// Opens the WELCOME in the output as the client does.
fn cookie(engine: &mut Engine, index: usize) -> Vec<u8> {
    let output = std::mem::take(engine.output());
    let data = &output[output.len() - 160..];
    let (random, sealed) = data.split_first_chunk::<16>().expect("WELCOME has 160 bytes of data");
    let mut sealed = sealed.to_vec();
    let opened = keys().hello[index]
        .open(&long_nonce(b"WELCOME-", random), &mut sealed)
        .expect("the server's WELCOME opens");
    assert_eq!(opened[..32], keys().server_transient.public.as_bytes()[..]);
    opened[32..].to_vec()
}

/// A server that holds every key it needs, against our client.
pub(crate) fn handshake_of_a_client(data: &[u8]) {
    let mut data = Input(data);
    let (choice, parts) = (data.byte(), data.byte());
    let (mut engine, mut input) = (client(), BytesMut::new());
    let keys = keys();
    assert_eq!(feed(&mut engine, &mut input, &super::greeting::encode(true)), Ok(vec![]));
    if choice & 1 != 0 {
        let events = feed(&mut engine, &mut input, data.0);
        return assert!(matches!(events.as_deref(), Ok([] | [EngineEvent::PeerError { .. }]) | Err(_)));
    }
    // Greeting, frame header, name, version and padding stand in front of the key.
    let output = std::mem::take(engine.output());
    let hello = &output[output.len() - 200..];
    let key = hello[6 + 74..].first_chunk::<32>().expect("HELLO holds a key");
    let transient = crate::crypto::PublicKey::from_bytes(*key);
    let hello_key = BoxKey::shared(&transient, &keys.server.secret).expect("the client's key is not weak");

    let honest = [&keys.server_transient.public.as_bytes()[..], &[8; 96]].concat();
    let (content, content_is_honest) = or_fuzzed(parts, 0, honest, &mut data);
    let mut sealed = Vec::new();
    hello_key.seal_onto(&long_nonce(b"WELCOME-", &[7; 16]), &[&content], &mut sealed);
    let (sealed, sealed_is_honest) = or_fuzzed(parts, 1, sealed, &mut data);
    let outcome = feed(&mut engine, &mut input, &command(b"WELCOME", &[&[7; 16], &sealed]));
    if outcome.is_err() || engine.stage() != Stage::Ready {
        return assert!(!(content_is_honest && sealed_is_honest), "an honest WELCOME: {outcome:?}");
    }
    let server_transient = content[..32] == keys.server_transient.public.as_bytes()[..];
    let session_key =
        BoxKey::shared(&transient, &keys.server_transient.secret).expect("the client's key is not weak");

    let counter = if choice & 2 == 0 { 1 } else { data.u64() };
    if choice & 4 != 0 {
        let outcome = feed(&mut engine, &mut input, &command(b"ERROR", &[data.0]));
        return assert!(matches!(outcome.as_deref(), Ok([EngineEvent::PeerError { .. }] | []) | Err(_)));
    }
    let mut honest_metadata = Vec::new();
    Metadata::new(&SocketType::Router).encode_onto(&mut honest_metadata);
    let (metadata, _) = or_fuzzed(parts, 2, honest_metadata, &mut data);
    let mut sealed = Vec::new();
    session_key.seal_onto(&short_nonce(b"CurveZMQREADY---", counter), &[&metadata], &mut sealed);
    let (sealed, sealed_is_honest) = or_fuzzed(parts, 3, sealed, &mut data);
    let outcome = feed(&mut engine, &mut input, &command(b"READY", &[&counter.to_be_bytes(), &sealed]));
    let is_honest = server_transient && counter > 0 && sealed_is_honest;
    match outcome.as_deref() {
        Ok([EngineEvent::Ready { metadata: read }]) => {
            assert!(is_honest && engine.is_ready());
            assert_eq!(Metadata::parse(&metadata, METADATA_BYTES_MAX).as_ref(), Ok(read));
        }
        Ok([]) => return,
        Ok(other) => panic!("{other:?}"),
        Err(_) => {
            let readable = Metadata::parse(&metadata, METADATA_BYTES_MAX).is_ok();
            return assert!(!(is_honest && readable), "an honest READY: {outcome:?}");
        }
    }
    let Some(next) = counter.checked_add(1) else { return };
    let delivered = feed(&mut engine, &mut input, &message(&session_key, b"CurveZMQMESSAGES", next, 0, b"x"));
    assert!(matches!(delivered.as_deref(), Ok([EngineEvent::Frame { .. }])));
    let repeated =
        feed(&mut engine, &mut input, &message(&session_key, b"CurveZMQMESSAGES", counter, 0, b"x"));
    assert_eq!(repeated, Err(ZmtpError::NonceNotIncreasing { nonce: counter, last: next }));
}
