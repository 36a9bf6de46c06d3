use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use interlock_bus::{
    Client, ConnectOptions, Credentials, Event, Payload, SubscribeOptions, Timeouts,
    blocking::wait,
    native::{Block, Overflow, Record, SubscribeSpec},
    zmtp::SocketType,
};
use serde_json::Value;

use crate::{
    harness::{DEADLINE, TestBroker, eventually},
    raw_peer::RawPeer,
    wire_proxy::{FIRST_FRAME, Passed, Tamper, Way, WireProxy},
};

/// Messages that a session publishes to itself.
const MESSAGES: u64 = 4;

/// A broker, a peer that reaches it through the man in the middle, and one that does not.
struct Stage {
    broker: TestBroker,
    proxy: WireProxy,
    victim: Credentials,
    observer: Client,
    refusals: interlock_bus::Subscription,
    heard: interlock_bus::Subscription,
}

impl Stage {
    fn new() -> Self {
        let broker = TestBroker::start_with(|config| {
            let (handshake, ping_interval) = (Duration::from_millis(2000), Duration::from_millis(300));
            config.timeouts = Timeouts { handshake, ping_interval, ..Timeouts::default() };
        });
        let proxy = WireProxy::start(&broker.handle.endpoints()[0]);
        let victim = Credentials::load(&broker.enrol("victim", &["a"], &["a"], &[], &[])).unwrap();
        let path =
            broker.enrol("observer", &["a/mark"], &["a/#", "$sys/auth/refused"], &[], &["$sys/broker/#"]);
        let options = ConnectOptions::new(Credentials::load(&path).unwrap()).timeout(DEADLINE);
        let observer = Client::connect_blocking(options).unwrap();
        let subscribe = |filter: &str| {
            wait(observer.subscribe(&filter.parse().unwrap(), SubscribeOptions::default())).unwrap()
        };
        let (refusals, heard) = (subscribe("$sys/auth/refused"), subscribe("a/#"));
        Self { broker, proxy, victim, observer, refusals, heard }
    }

    /// One session of the victim through the proxy: it publishes, and receives what it published. What
    /// came, and what ended it.
    fn session(&self) -> (Vec<u64>, Result<(), String>) {
        let mut received = Vec::new();
        let outcome = self.try_session(&mut received);
        (received, outcome)
    }

    fn try_session(&self, received: &mut Vec<u64>) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut peer = RawPeer::connect(&self.proxy.endpoint, &self.victim, SocketType::Dealer, true)?;
        peer.stream.set_timeout(Duration::from_millis(1500));
        let (program, name) = ("victim".to_owned(), String::new());
        let hello = Record::Hello { major: 1, minor: 0, program, peer: name, epoch: [0; 16] };
        let spec = SubscribeSpec {
            id: 1,
            serve: false,
            retained: false,
            probes: false,
            overflow: Overflow::DropNewest,
            queue_messages_max: 0,
            queue_bytes_max: 0,
            filter: "a".to_owned(),
            group: String::new(),
        };
        for record in [hello, Record::Subscribe(spec)] {
            peer.send_record(&record).map_err(text)?;
        }
        for number in 0..MESSAGES {
            let block = Block::new(&"a".parse().unwrap(), b"", &payload(number));
            peer.send_record(&Record::Publish(block)).map_err(text)?;
        }
        peer.send_record(&Record::Ping { number: 7, answer: false }).map_err(text)?;
        let mut answered = false;
        while !answered || received.len() < MESSAGES as usize {
            match peer.record().map_err(text)? {
                Record::Deliver { block, .. } => received.push(number(&block.payload())),
                // Once more, so that whatever came with all that is looked at.
                Record::Ping { number: 7, answer: true } => {
                    peer.send_record(&Record::Ping { number: 8, answer: false }).map_err(text)?;
                }
                Record::Ping { number: 8, answer: true } => answered = true,
                Record::Goodbye { code, .. } => return Err(format!("goodbye {code}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// What of the victim's messages the observer has been delivered since the last call.
    fn delivered(&mut self) -> Vec<u64> {
        let topic = "$sys/broker/peers".parse().unwrap();
        eventually("all sessions of the victim to be gone", || {
            let reply = wait(self.observer.request(&topic, Payload::default(), DEADLINE)).unwrap();
            let rows: Value = serde_json::from_slice(&reply.payload).unwrap();
            rows.as_array().unwrap().iter().all(|row| row["peer"] != "victim").then_some(())
        });
        // In the same lane, so behind everything that was routed before it.
        let mark = "a/mark".parse().unwrap();
        wait(self.observer.publish_acknowledged(&mark, Payload::default(), Default::default())).unwrap();
        let mut delivered = Vec::new();
        loop {
            match wait(self.heard.next()) {
                Some(Event::Message(message)) if message.topic == mark => return delivered,
                Some(Event::Message(message)) => delivered.push(number(&message.payload)),
                other => panic!("{other:?} came to the observer"),
            }
        }
    }

    /// The next refusal or broken session that the broker names.
    fn refusal(&mut self) -> (String, String) {
        let Some(Event::Message(message)) = wait(self.refusals.next()) else { panic!("the events ended") };
        let event: Value = message.decode().unwrap();
        (event["code"].as_str().unwrap().to_owned(), event["text"].as_str().unwrap().to_owned())
    }
}

/// Long enough that no changed one can be taken for another.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = vec![0xa5; 400];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

/// The number in a payload, which must be as it was published.
fn number(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(*bytes.first_chunk().expect("a payload has its number"));
    assert_eq!(bytes, payload(number), "a changed payload was delivered");
    number
}

/// What is done to one piece.
#[derive(Clone, Copy, Debug)]
enum Act {
    Flip {
        at: usize,
    },
    Cut {
        bytes: usize,
    },
    CutAndClose {
        bytes: usize,
    },
    Drop,
    Repeat,
    Swap,
    Inject(&'static [u8]),
    Reflect,
    /// Takes the same piece of an earlier session.
    Splice,
    Replace(&'static [u8]),
}

/// A man in the middle who does one thing once.
fn tamper(way: Way, at: usize, act: Act, earlier: Vec<Vec<u8>>) -> Box<Tamper> {
    let mut held: Option<Vec<u8>> = None;
    Box::new(move |this_way, number, mut piece| {
        if this_way != way {
            return Passed::Pieces(vec![piece]);
        }
        if let Some(held) = held.take() {
            return Passed::Pieces(vec![piece, held]);
        }
        if number != at {
            return Passed::Pieces(vec![piece]);
        }
        let bytes = piece.len();
        match act {
            Act::Flip { at } => piece[at % bytes] ^= 1 << (at % 8),
            Act::Cut { bytes: cut } => piece.truncate(bytes.saturating_sub(1 + cut % bytes)),
            Act::CutAndClose { bytes: cut } => {
                piece.truncate(bytes.saturating_sub(1 + cut % bytes));
                return Passed::LastPieces(vec![piece]);
            }
            Act::Drop => return Passed::Pieces(vec![]),
            Act::Repeat => return Passed::Pieces(vec![piece.clone(), piece]),
            Act::Swap => {
                held = Some(piece);
                return Passed::Pieces(vec![]);
            }
            Act::Inject(forged) => return Passed::Pieces(vec![forged.to_vec(), piece]),
            Act::Reflect => return Passed::Back(piece),
            Act::Splice => piece = earlier.get(at).cloned().unwrap_or_default(),
            Act::Replace(forged) => piece = forged.to_vec(),
        }
        Passed::Pieces(vec![piece])
    })
}

const NULL_MECHANISM: &[u8] =
    b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const OLD_VERSION: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x01";
/// Announces 2^63 bytes.
const LYING_LENGTH: &[u8] = &[2, 0x80, 0, 0, 0, 0, 0, 0, 0];
const FORGED_MESSAGE: &[u8] = b"\0\x22\x07MESSAGE\0\0\0\0\0\0\0\x03abcdefghijklmnopqr";
const FORGED_ERROR: &[u8] = b"\x04\x0a\x05ERROR\x03400";

#[test]
fn every_manipulation_is_refused_by_its_name_on_both_sides_and_nothing_manipulated_is_delivered() {
    use Act::*;
    use Way::*;
    let mut stage = Stage::new();
    assert_eq!(stage.session(), (vec![0, 1, 2, 3], Ok(())));
    assert_eq!(stage.delivered(), [0, 1, 2, 3]);
    let recorded = stage.proxy.recorded();
    let earlier = |way| recorded.iter().find(|recorded| recorded.way == way).unwrap().pieces.clone();
    let (hello, initiate, message) = (FIRST_FRAME, FIRST_FRAME + 1, FIRST_FRAME + 4);
    let (welcome, ready, answer) = (FIRST_FRAME, FIRST_FRAME + 1, FIRST_FRAME + 2);

    // Where, what; the broker's code and words; the client's words. `-`: the broker has nothing to see.
    let table: [(Way, usize, Act, &str, &str, &str); 36] = [
        // The greeting.
        (ToBroker, 1, Replace(NULL_MECHANISM), "not_curve", "NULL", "closed"),
        (ToClient, 1, Replace(NULL_MECHANISM), "closed_in_handshake", "HELLO", "NULL"),
        (ToBroker, 0, Replace(OLD_VERSION), "version", "1.0", "closed"),
        (ToClient, 0, Replace(OLD_VERSION), "closed_in_handshake", "", "1.0"),
        (ToBroker, 0, Flip { at: 0 }, "not_zmtp", "does not speak ZMTP", "closed"),
        // The handshake: changed.
        (ToBroker, hello, Flip { at: 100 }, "wrong_server_key", "wrong server key", "500"),
        (ToBroker, hello, Flip { at: 180 }, "wrong_server_key", "wrong server key", "500"),
        (ToBroker, hello, Flip { at: 3 }, "malformed", "", "closed"),
        (ToClient, welcome, Flip { at: 60 }, "closed_in_handshake", "INITIATE", "WELCOME does not open"),
        (ToBroker, initiate, Flip { at: 60 }, "malformed", "cookie", "closed"),
        (ToBroker, initiate, Flip { at: 240 }, "malformed", "INITIATE does not open", "closed"),
        (ToClient, ready, Flip { at: 40 }, "-", "", "READY does not open"),
        // Repeated, left out, taken from another session, answered by somebody else.
        (ToBroker, hello, Repeat, "malformed", "HELLO", "closed"),
        (ToBroker, initiate, Repeat, "frame_malformed", "INITIAT", "closed"),
        (ToClient, welcome, Repeat, "-", "", "WELCOME"),
        (ToBroker, hello, Drop, "handshake_timeout", "HELLO", "closed"),
        (ToBroker, initiate, Drop, "handshake_timeout", "INITIATE", "closed"),
        (ToBroker, hello, Splice, "closed_in_handshake", "INITIATE", "WELCOME does not open"),
        (ToBroker, initiate, Splice, "malformed", "cookie", "closed"),
        (ToClient, welcome, Splice, "closed_in_handshake", "INITIATE", "WELCOME does not open"),
        (ToClient, ready, Splice, "-", "", "READY does not open"),
        (ToClient, welcome, Inject(FORGED_ERROR), "closed_in_handshake", "INITIATE", "400"),
        (ToBroker, hello, Inject(LYING_LENGTH), "malformed", "the limit is 200 bytes", "closed"),
        (ToClient, welcome, Inject(LYING_LENGTH), "closed_in_handshake", "INITIATE", "the limit is"),
        // Open sessions.
        (ToBroker, message, Flip { at: 120 }, "frame_changed", "does not open", "closed"),
        (ToBroker, message, Repeat, "frame_repeated", "repeated or reordered", "closed"),
        (ToBroker, message, Drop, "frame_lost", "lost on the way", "closed"),
        (ToBroker, message, Swap, "frame_lost", "lost on the way", "closed"),
        (ToBroker, message, Splice, "frame_changed", "does not open", "closed"),
        (ToBroker, message, Inject(FORGED_MESSAGE), "frame_", "", "closed"),
        (ToBroker, message, Inject(LYING_LENGTH), "frame_too_large", "the limit is", "closed"),
        (ToBroker, message, CutAndClose { bytes: 50 }, "frame_cut", "middle of a frame", "closed"),
        (ToClient, answer, Flip { at: 30 }, "-", "", "MESSAGE does not open"),
        (ToClient, answer, Repeat, "-", "", "repeated or reordered"),
        (ToClient, answer, Splice, "-", "", "MESSAGE does not open"),
        (ToClient, answer, Reflect, "frame_", "", "closed"),
    ];
    for (way, at, act, code, words, ours) in table {
        let case = format!("{act:?} of piece {at} {way:?}");
        let earlier = earlier(way);
        stage.proxy.tamper_with(move || tamper(way, at, act, earlier.clone()));
        let (received, outcome) = stage.session();
        let error = outcome.expect_err(&case);
        let closed =
            ["closed", "end of file", "reset", "Broken pipe"].iter().any(|word| error.contains(word));
        assert!(error.contains(ours) || (ours == "closed" && closed), "{case}: the client says `{error}`");
        assert!(received.iter().copied().eq(0..received.len() as u64), "{case}: {received:?}");
        if code != "-" {
            let (seen, text) = stage.refusal();
            assert!(
                seen.starts_with(code) && text.contains(words),
                "{case}: the broker says `{seen}`, `{text}`"
            );
        }
        let delivered = stage.delivered();
        assert!(delivered.iter().copied().eq(0..delivered.len() as u64), "{case}: {delivered:?}");
    }
    // Honest again: the path heals, and the broker has kept no trace.
    stage.proxy.tamper_with(|| Box::new(|_, _, piece| Passed::Pieces(vec![piece])));
    assert_eq!(stage.session(), (vec![0, 1, 2, 3], Ok(())));
    assert_eq!(stage.delivered(), [0, 1, 2, 3]);
}

#[test]
fn a_recorded_client_replayed_by_somebody_without_keys_gets_no_further_than_the_cookie() {
    let mut stage = Stage::new();
    stage.session().1.unwrap();
    stage.delivered();
    let recorded = stage.proxy.recorded();
    let client = recorded.iter().find(|recorded| recorded.way == Way::ToBroker).unwrap();
    let mut stream = crate::raw_peer::RawStream::connect(&stage.broker.handle.endpoints()[0]);
    for piece in &client.pieces {
        use std::io::Write;
        // The broker closes in the middle of it.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    assert!(stream.reads_to_the_end());
    let (code, text) = stage.refusal();
    assert!(code == "malformed" && text.contains("cookie"), "{code}: {text}");
    assert_eq!(stage.delivered(), [0u64; 0]);
}

#[test]
fn random_manipulations_never_deliver_anything_but_what_was_sent_in_order() {
    let seed = std::env::var("INTERLOCK_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    let rounds: u32 = std::env::var("INTERLOCK_MANIPULATIONS").map_or(40, |text| text.parse().unwrap());
    #[allow(clippy::print_stderr, reason = "the seed repeats a failure")]
    {
        eprintln!("INTERLOCK_SEED={seed}");
    }
    let mut state = seed | 1;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let mut stage = Stage::new();
    stage.session().1.unwrap();
    stage.delivered();
    let recorded = stage.proxy.recorded();
    let plan: Arc<Mutex<VecDeque<Box<Tamper>>>> = Arc::default();
    let next = Arc::clone(&plan);
    stage.proxy.tamper_with(move || next.lock().unwrap().pop_front().unwrap());
    for round in 0..rounds {
        let way = [Way::ToBroker, Way::ToClient][below(2)];
        let (at, offset) = (below(9), below(600));
        let act = match below(9) {
            0 | 1 => Act::Flip { at: offset },
            2 => Act::Cut { bytes: offset },
            3 => Act::CutAndClose { bytes: offset },
            4 => Act::Drop,
            5 => Act::Repeat,
            6 => Act::Swap,
            7 => Act::Inject([FORGED_MESSAGE, FORGED_ERROR, LYING_LENGTH][below(3)]),
            _ => Act::Splice,
        };
        let case = format!("round {round}: {act:?} of piece {at} {way:?}");
        let earlier = recorded.iter().find(|recorded| recorded.way == way).unwrap().pieces.clone();
        plan.lock().unwrap().push_back(tamper(way, at, act, earlier));
        let (received, outcome) = stage.session();
        assert!(received.iter().copied().eq(0..received.len() as u64), "{case}: {received:?}");
        let delivered = stage.delivered();
        assert!(delivered.iter().copied().eq(0..delivered.len() as u64), "{case}: {delivered:?}");
        // A session that its owner takes for whole was whole: the greeting has bytes that mean nothing.
        if outcome.is_ok() {
            assert_eq!((received.len(), delivered.len()), (MESSAGES as usize, MESSAGES as usize), "{case}");
        }
    }
}
