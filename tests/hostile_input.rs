use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use interlock_bus::{
    Broker, BrokerConfig, Client, Credentials, Endpoint, Payload, Permissions, Timeouts,
    blocking::{wait, wait_until},
    client::{ConnectOptions, Event, SubscribeOptions, Subscription},
    error::ConnectError,
    limits,
    native::{Block, CreditScope, Overflow, Record, SubscribeSpec},
    zmtp::{Command, FrameFlags, SocketType},
};

use crate::{
    broker_process::{BrokerProcess, raise_limit_on_open_files},
    harness::{
        DEADLINE, TestBroker, TestProcess,
        dice::{Dice, environment, seed},
        eventually,
        ledger::ask,
    },
    raw_peer::{RawPeer, RawStream, engine},
};

/// Connections of the soak. CI runs these few; `INTERLOCK_HOSTILE_CONNECTIONS=10000` is the whole of it.
const CONNECTIONS: u64 = 200;

fn connect(credentials: &Credentials) -> Client {
    Client::connect_blocking(ConnectOptions::new(credentials.clone()).timeout(DEADLINE)).unwrap()
}

fn count(client: &Client, code: &str) -> u64 {
    ask(client, "refusals")["counts"][code].as_u64().unwrap_or(0)
}

/// A greeting of ZMTP 3.1 with this mechanism.
fn greeting(mechanism: &[u8]) -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, 1);
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism);
    greeting
}

/// One connection that means no good. Whatever the broker does with it is right, so results are not looked at.
fn attack(dice: &mut Dice, endpoint: &Endpoint, member: &Credentials) {
    let write = |bytes: &[u8]| {
        let mut stream = RawStream::connect(endpoint);
        let _ = stream.write_all(bytes);
        stream
    };
    let huge = [&[2u8][..], &[0xff; 8]].concat();
    match dice.below(11) {
        0 => drop(write(&dice.bytes(2000))),
        1 => drop(write(&greeting(b"CURVE")[..dice.below(64) as usize])),
        2 => drop(write(&[&greeting(b"CURVE")[..], &huge].concat()).reads_to_the_end()),
        3 => drop(write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").reads_to_the_end()),
        4 => drop(write(&greeting(b"NULL")).reads_to_the_end()),
        5 => {
            drop(write(&[&greeting(b"CURVE")[..], b"\x04\xc8\x05HELLO", &[dice.roll() as u8; 194]].concat()))
        }
        6 => half_a_handshake(dice, endpoint, member),
        7 => with_session(dice, endpoint, member, true, |dice, peer| {
            let _ = peer.send_frame(&dice.bytes(4000), FrameFlags::LAST);
        }),
        8 => with_session(dice, endpoint, member, true, |dice, peer| {
            // A record of a known kind whose body is noise.
            let body = dice.bytes(300);
            let batch = [&(body.len() as u32 + 1).to_le_bytes()[..], &[dice.below(20) as u8], &body].concat();
            let _ = peer.send_frame(&batch, FrameFlags::LAST);
        }),
        9 => with_session(dice, endpoint, member, false, |dice, peer| {
            let flags = [FrameFlags::LAST, FrameFlags::MORE, FrameFlags::COMMAND][dice.below(3) as usize];
            let _ = peer.send_frame(&dice.bytes(300), flags);
        }),
        _ => with_session(dice, endpoint, member, true, |dice, peer| {
            // Behind the engine's back: frames that no box of this session opens, or impossible lengths.
            let noise = dice.bytes(300);
            let frame = if dice.below(2) == 0 { huge.clone() } else { [&[0, 200][..], &noise].concat() };
            let _ = peer.stream.write_all(&frame);
        }),
    }
}

fn half_a_handshake(dice: &mut Dice, endpoint: &Endpoint, member: &Credentials) {
    let mut engine = engine(member, SocketType::Dealer, dice.below(2) == 0);
    let mut stream = RawStream::connect(endpoint);
    // The last step may be one after which the broker owes nothing.
    stream.set_timeout(Duration::from_millis(200));
    let mut input = bytes::BytesMut::new();
    let steps = dice.below(6);
    for _ in 0..steps {
        let mut output = std::mem::take(engine.output());
        if dice.below(4) == 0 && !output.is_empty() {
            let at = dice.below(output.len() as u64) as usize;
            output[at] ^= 1 << dice.below(8);
        }
        let mut buffer = [0; 1024];
        let Ok(()) = stream.write_all(&output) else { return };
        match std::io::Read::read(&mut stream, &mut buffer) {
            Ok(bytes) if bytes > 0 => input.extend_from_slice(&buffer[..bytes]),
            _ => return,
        }
        if engine.poll(&mut input).is_err() {
            return;
        }
    }
}

fn with_session(
    dice: &mut Dice,
    endpoint: &Endpoint,
    member: &Credentials,
    native: bool,
    act: impl Fn(&mut Dice, &mut RawPeer),
) {
    let types = [
        SocketType::Pub,
        SocketType::Sub,
        SocketType::Xpub,
        SocketType::Xsub,
        SocketType::Req,
        SocketType::Dealer,
        SocketType::Router,
    ];
    let socket_type = if native { SocketType::Dealer } else { types[dice.below(7) as usize].clone() };
    let mut peer = match native && dice.below(2) == 0 {
        true => RawPeer::native(endpoint, member),
        false => match RawPeer::connect(endpoint, member, socket_type, native) {
            Ok(peer) => peer,
            Err(_) => return,
        },
    };
    for _ in 0..dice.below(8) {
        act(dice, &mut peer);
    }
}

#[test]
fn garbage_on_every_transport_and_at_every_stage_never_disturbs_a_legitimate_client() {
    raise_limit_on_open_files();
    let connections = environment("INTERLOCK_HOSTILE_CONNECTIONS").unwrap_or(CONNECTIONS);
    let seed = seed("hostile connections");
    let mut broker = BrokerProcess::start();
    let member = broker.enrol("member", &["#"], &["#"], &["#"], &["#"]);
    let honest = connect(&broker.enrol("honest", &["echo"], &["echo"], &[], &["$sys/broker/#"]));
    let before = (broker.descriptors(), broker.resident_bytes());

    let stop = Arc::new(AtomicBool::new(false));
    let slowest = Arc::new(AtomicU64::new(0));
    let legitimate = {
        let (stop, slowest, client) = (Arc::clone(&stop), Arc::clone(&slowest), honest.clone());
        std::thread::spawn(move || {
            let mut subscription =
                wait(client.subscribe(&"echo".parse().unwrap(), SubscribeOptions::default())).unwrap();
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let begun = Instant::now();
                client.publish(&"echo".parse().unwrap(), Payload::text(number.to_string())).unwrap();
                loop {
                    let Event::Message(message) = subscription.next_blocking(begun + DEADLINE).unwrap()
                    else {
                        panic!("a message was lost")
                    };
                    // Hostile members publish at random; what they say is not ours.
                    if message.origin.as_str() == "honest" {
                        assert_eq!(message.text(), Some(number.to_string().as_str()));
                        break;
                    }
                }
                slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
            number
        })
    };
    let attackers: Vec<_> = (0..4)
        .map(|lane| {
            let (endpoints, member) = (broker.endpoints.clone(), member.clone());
            let mut dice = Dice(seed.wrapping_mul(4).wrapping_add(lane));
            std::thread::spawn(move || {
                for number in 0..connections / 4 {
                    attack(&mut dice, &endpoints[(number % 2) as usize], &member);
                }
            })
        })
        .collect();
    for attacker in attackers {
        attacker.join().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let served = legitimate.join().unwrap();

    assert!(broker.is_alive(), "the broker fell");
    let slowest = slowest.load(Ordering::Relaxed);
    assert!(served > 10 && slowest < 2000, "{served} served, the slowest after {slowest} ms");
    for code in ["not_zmtp", "not_curve", "malformed", "closed_in_handshake"] {
        assert!(count(&honest, code) > 0, "{code} is not counted");
    }
    eventually("every descriptor to be closed", || (broker.descriptors() <= before.0).then_some(()));
    let grown = broker.resident_bytes().saturating_sub(before.1);
    assert!(grown < 64 << 20, "resident memory grew by {grown} bytes");
}

#[test]
fn connections_that_are_held_half_open_for_ever_keep_nobody_out() {
    raise_limit_on_open_files();
    let broker = TestBroker::start_with(|config| {
        config.timeouts = Timeouts { handshake: Duration::from_secs(600), ..Timeouts::default() };
    });
    let member = Credentials::load(&broker.enrol("member", &[], &[], &[], &["$sys/broker/#"])).unwrap();
    for endpoint in broker.handle.endpoints().to_vec() {
        let half_open: Vec<_> = (0..limits::HALF_OPEN_MAX + 100)
            .map(|number| {
                let mut stream = RawStream::connect(&endpoint);
                let sent = if number % 2 == 0 { &b""[..] } else { &greeting(b"CURVE")[..20] };
                stream.write_all(sent).unwrap();
                stream
            })
            .collect();
        let client = connect(&Credentials { endpoints: vec![endpoint], ..member.clone() });
        assert!(count(&client, "half_open_evicted") > 0);
        drop(half_open);
    }
}

#[test]
fn thousands_of_sessions_that_come_and_go_leave_no_descriptor_and_no_memory_behind() {
    raise_limit_on_open_files();
    let cycles = environment("INTERLOCK_CYCLES").unwrap_or(400);
    let broker = BrokerProcess::start();
    let member = broker.enrol("member", &["a"], &["a"], &[], &[]);
    let run = |cycles: u64| {
        for number in 0..cycles {
            let endpoint = &broker.endpoints[(number % 2) as usize];
            match number % 3 {
                0 => drop(RawPeer::native(endpoint, &member)),
                1 => drop(RawPeer::connect(endpoint, &member, SocketType::Sub, false).unwrap()),
                _ => drop(RawStream::connect(endpoint)),
            }
        }
    };
    run(100);
    let before = (broker.descriptors(), broker.resident_bytes());
    run(cycles);
    eventually("every descriptor to be closed", || (broker.descriptors() <= before.0).then_some(()));
    let grown = broker.resident_bytes().saturating_sub(before.1);
    assert!(grown < 8 << 20, "resident memory grew by {grown} bytes in {cycles} cycles");
}

#[test]
fn a_peer_that_never_reads_costs_a_bounded_amount_of_memory() {
    let broker = BrokerProcess::start();
    let member = broker.enrol("member", &["a"], &["a"], &[], &["a", "$sys/broker/#"]);
    let publisher = connect(&member);
    // A subscriber that does not read.
    let mut deaf = RawPeer::connect(&broker.endpoints[0], &member, SocketType::Sub, false).unwrap();
    let subscribe = Command::Subscribe(bytes::Bytes::from_static(b"a")).encode();
    deaf.send_frame(&subscribe, FrameFlags::COMMAND).unwrap();
    eventually("the subscription", || {
        ask(&publisher, "subscriptions").to_string().contains("a").then_some(())
    });
    let before = broker.resident_bytes();
    let payload = Payload::bytes(vec![7u8; 60_000]);
    for _ in 0..2000 {
        wait(publisher.publish_waiting(&"a".parse().unwrap(), payload.clone(), &Default::default())).unwrap();
    }
    wait(publisher.ping()).unwrap();
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "120 MB for a deaf subscriber cost {grown} bytes");
    let dropped: u64 = ask(&publisher, "ledger")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["dropped"]["slow_consumer"].as_u64().unwrap_or(0))
        .sum();
    assert!(dropped > 1000, "only {dropped} are counted as dropped");
}

/// Sends what `message` gives until the broker ends the session or it is accepted `most` times.
fn flood(peer: &mut RawPeer, most: u64, mut message: impl FnMut(u64) -> (Vec<u8>, FrameFlags)) -> bool {
    peer.stream.set_timeout(Duration::from_secs(3));
    for number in 0..most {
        let (body, flags) = message(number);
        if peer.send_frame(&body, flags).is_err() {
            return true;
        }
    }
    false
}

#[test]
fn a_peer_that_makes_the_broker_answer_and_never_reads_is_bounded_or_ended() {
    let broker = BrokerProcess::start();
    let member = broker.enrol("member", &["a"], &[], &[], &["a", "$sys/broker/#"]);
    let observer = connect(&member);
    let before = broker.resident_bytes();

    let mut pinging = RawPeer::connect(&broker.endpoints[0], &member, SocketType::Dealer, false).unwrap();
    let ping = Command::Ping { ttl: Duration::ZERO, context: bytes::Bytes::from_static(&[1; 16]) }.encode();
    assert!(flood(&mut pinging, 2_000_000, |_| (ping.clone(), FrameFlags::COMMAND)), "it pings for ever");

    let mut asking = RawPeer::connect(&broker.endpoints[1], &member, SocketType::Dealer, false).unwrap();
    flood(&mut asking, 400_000, |number| match number % 2 {
        0 => (b"$sys/broker/info".to_vec(), FrameFlags::MORE),
        _ => (Vec::new(), FrameFlags::LAST),
    });
    wait(observer.ping()).unwrap();
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 192 << 20, "answers that nobody reads cost {grown} bytes");
}

/// A broker in this process with clocks of its own.
fn broker_with(timeouts: Timeouts) -> TestBroker {
    TestBroker::start_with(|config| config.timeouts = timeouts)
}

#[test]
fn a_handshake_that_drips_is_cut_by_one_deadline() {
    let handshake = Duration::from_millis(400);
    let broker = broker_with(Timeouts { handshake, ..Timeouts::default() });
    let path = broker.enrol("observer", &[], &[], &[], &["$sys/broker/#"]);
    let observer = connect(&Credentials::load(&path).unwrap());
    for endpoint in broker.handle.endpoints() {
        let mut stream = RawStream::connect(endpoint);
        stream.set_timeout(Duration::from_millis(20));
        let begun = Instant::now();
        let bytes = [&greeting(b"CURVE")[..], b"\x04\xc8\x05HELLO\x01\x00", &[0; 100]].concat();
        let mut drops = bytes.chunks(1);
        // Each drop comes well before any deadline between two reads could pass.
        while !stream.reads_to_the_end() {
            if let Some(drop) = drops.next()
                && stream.write_all(drop).is_err()
            {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "it was never cut");
        }
        assert!(begun.elapsed() >= handshake, "it was cut before its deadline");
    }
    eventually("both to be counted", || (count(&observer, "handshake_timeout") == 2).then_some(()));
}

#[test]
fn the_deadline_of_a_frame_cuts_whoever_stops_inside_one_and_not_whoever_is_busy() {
    let read = Duration::from_millis(500);
    let broker = broker_with(Timeouts { read, ..Timeouts::default() });
    let path = broker.enrol("member", &["a"], &[], &[], &[]);
    let member = Credentials::load(&path).unwrap();
    let endpoint = &broker.handle.endpoints()[0];

    // Busy: at every read the broker finds the end of one frame and the beginning of the next.
    let mut busy = RawPeer::native(endpoint, &member);
    let begun = Instant::now();
    let mut rest = Vec::new();
    while begun.elapsed() < 4 * read {
        let block = Block::new(&"a".parse().unwrap(), b"", &[1; 100]);
        let mut batch = Vec::new();
        interlock_bus::native::BatchWriter::default().put(&Record::Publish(block), &mut batch);
        busy.engine.send(&[&batch], FrameFlags::LAST).unwrap();
        rest.append(busy.engine.output());
        let cut = rest.len() - 40;
        busy.stream.write_all(&rest[..cut]).unwrap();
        rest.drain(..cut);
        std::thread::yield_now();
    }
    busy.stream.write_all(&rest).unwrap();
    busy.send_record(&Record::Ping { number: 9, answer: false }).unwrap();
    let pong = busy.record_where(|record| matches!(record, Record::Ping { number: 9, answer: true }));
    assert!(pong.is_ok(), "a busy session was ended: {pong:?}");

    // Stuck: half a frame, and silence.
    let mut stuck = RawPeer::native(endpoint, &member);
    stuck.stream.write_all(&[0, 200, 7]).unwrap();
    assert!(stuck.stream.reads_to_the_end(), "half a frame is waited for for ever");
}

/// The code with which the next session of `peer` ends.
fn next_end(presence: &mut Subscription, peer: &str) -> String {
    loop {
        let Event::Message(message) = presence.next_blocking(Instant::now() + DEADLINE).unwrap() else {
            continue;
        };
        let event: serde_json::Value = message.decode().unwrap();
        if event["peer"] == peer && event["state"] == "disconnected" {
            return event["code"].as_str().unwrap().to_owned();
        }
    }
}

#[test]
fn whoever_answers_no_ping_is_given_up_and_whoever_is_merely_idle_is_not() {
    let (ping_interval, ping) = (Duration::from_millis(300), Duration::from_millis(700));
    let broker = broker_with(Timeouts { ping_interval, ping, ..Timeouts::default() });
    let watcher = broker.enrol("watcher", &[], &["a", "$peers/#"], &[], &["$sys/broker/#"]);
    let watcher = connect(&Credentials::load(&watcher).unwrap());
    let mut presence = wait(watcher.subscribe(&"$peers/#".parse().unwrap(), Default::default())).unwrap();
    let silent = Credentials::load(&broker.enrol("silent", &[], &["a"], &[], &[])).unwrap();
    let endpoints = broker.handle.endpoints();
    let idle = broker.enrol("idle", &[], &["a"], &[], &[]);
    let mut stock = TestProcess::python("stock.py", &["sub", idle.to_str().unwrap(), "a"]);
    assert_eq!(stock.json()["state"], "subscribed");
    eventually("the idle subscriber", || {
        ask(&watcher, "subscriptions").to_string().contains("\"a\\\"").then_some(())
    });
    for (number, endpoint) in endpoints.iter().enumerate() {
        // Its engine would answer, if anybody read what comes.
        let begun = Instant::now();
        let _silent = RawPeer::connect(endpoint, &silent, SocketType::Dealer, number == 0).unwrap();
        assert_eq!(next_end(&mut presence, "silent"), "silent");
        assert!(begun.elapsed() >= ping_interval + ping, "after {:?} only", begun.elapsed());
    }
    assert!(stock.is_alive() && ask(&watcher, "peers").to_string().contains("idle"), "libzmq answers pings");
    wait(watcher.ping()).unwrap();
}

#[test]
fn whoever_takes_no_bytes_is_given_up_and_what_waited_for_it_is_counted() {
    let broker = broker_with(Timeouts { write: Duration::from_millis(400), ..Timeouts::default() });
    let watcher = broker.enrol("watcher", &["a"], &["$peers/#"], &[], &["$sys/broker/#"]);
    let watcher = connect(&Credentials::load(&watcher).unwrap());
    let mut presence = wait(watcher.subscribe(&"$peers/#".parse().unwrap(), Default::default())).unwrap();
    let stuck = broker.enrol("stuck", &[], &["a"], &[], &[]);
    let stock = TestProcess::python("stock.py", &["sub", stuck.to_str().unwrap(), "a"]);
    assert_eq!(stock.json()["state"], "subscribed");
    eventually("the subscriber", || {
        ask(&watcher, "subscriptions").to_string().contains("\"a\\\"").then_some(())
    });
    stock.signal(nix::sys::signal::Signal::SIGSTOP);
    // Far more than any kernel holds for one socket.
    let payload = Payload::bytes(vec![1; 4 << 20]);
    for _ in 0..16 {
        wait(watcher.publish_waiting(&"a".parse().unwrap(), payload.clone(), &Default::default())).unwrap();
    }
    assert_eq!(next_end(&mut presence, "stuck"), "write_timeout");
    let rows = ask(&watcher, "ledger");
    let row = rows.as_array().unwrap().iter().find(|row| row["subscriber"] == "stuck").unwrap();
    let dropped = |reason: &str| row["dropped"][reason].as_u64().unwrap_or(0);
    assert!(dropped("disconnected") > 0 && row["queued"] == 0 && row["balances"] == true, "{row}");
}

#[test]
fn a_broker_that_is_full_takes_the_next_one_when_another_has_gone() {
    const SESSIONS: usize = 16;
    let broker = TestBroker::start_with(|config| config.bounds.sessions_max = SESSIONS);
    let member = Credentials::load(&broker.enrol("member", &[], &[], &[], &["$sys/broker/#"])).unwrap();
    let mut sessions: Vec<Client> = (0..SESSIONS).map(|_| connect(&member)).collect();
    let mut one_more = ConnectOptions::new(member.clone()).timeout(Duration::from_millis(300));
    let waiting = Client::connect_blocking(one_more.clone());
    assert!(matches!(waiting, Err(ConnectError::TimedOut { .. })), "{waiting:?}");
    // It may still stand among those who are waited for, and goes when it is looked at.
    one_more = one_more.timeout(DEADLINE);
    let trying = std::thread::spawn(move || Client::connect_blocking(one_more));
    sessions.pop().unwrap().close_blocking();
    trying.join().unwrap().unwrap();
    wait(sessions[0].ping()).unwrap();
}

#[test]
fn the_last_words_arrive_although_the_peer_was_still_talking() {
    let broker = TestBroker::start();
    for (number, endpoint) in broker.handle.endpoints().iter().enumerate() {
        let name = format!("member-{number}");
        let path = broker.enrol(&name, &["a"], &[], &[], &[]);
        let mut peer = RawPeer::native(endpoint, &Credentials::load(&path).unwrap());
        let mut batch = Vec::new();
        let block = Block::new(&"a".parse().unwrap(), b"", &[1; 50_000]);
        interlock_bus::native::BatchWriter::default().put(&Record::Publish(block), &mut batch);
        broker.store.revoke(&name.parse().unwrap()).unwrap();
        // Talks on beyond the end, so that there is always something unread.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            peer.send_frame(&batch, FrameFlags::LAST).expect("a reset would destroy the last words");
        }
        let goodbye = peer.record_where(|record| matches!(record, Record::Goodbye { .. })).unwrap();
        assert!(matches!(&goodbye, Record::Goodbye { code, .. } if code == "revoked"), "{goodbye:?}");
        assert_eq!(peer.next_event().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof, "a clean end");
    }
}

#[test]
fn a_frame_above_the_limit_ends_the_session_from_its_header_alone() {
    let broker = BrokerProcess::start();
    let member = broker.enrol("member", &["a"], &[], &[], &["$sys/broker/#"]);
    let before = broker.resident_bytes();
    for (native, bytes_max) in
        [(true, limits::NATIVE_FRAME_BYTES_MAX), (false, limits::STOCK_FRAME_BYTES_MAX)]
    {
        let mut peer = RawPeer::connect(&broker.endpoints[0], &member, SocketType::Dealer, native).unwrap();
        let announced = (bytes_max as u64 + 64).to_be_bytes();
        peer.stream.write_all(&[&[2u8][..], &announced].concat()).unwrap();
        assert!(peer.stream.reads_to_the_end(), "a frame of {bytes_max} bytes and more is waited for");
    }
    assert_eq!(ask(&connect(&member), "refusals")["counts"], serde_json::json!({ "frame_too_large": 2 }));
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes were allocated for frames that never came");
}

#[test]
fn a_stopped_subscriber_never_delays_another() {
    let broker = BrokerProcess::start();
    let member = broker.enrol("member", &["a"], &["a"], &[], &["$sys/broker/#"]);
    let mut stopped =
        TestProcess::python("stock.py", &["sub", broker.path_of("member").to_str().unwrap(), "a"]);
    assert_eq!(stopped.json()["state"], "subscribed");
    let client = connect(&member);
    eventually("the subscription", || {
        ask(&client, "subscriptions")
            .to_string()
            .contains("\"a\\\"")
            .then_some(())
            .or_else(|| ask(&client, "subscriptions").as_array().filter(|rows| !rows.is_empty()).map(|_| ()))
    });
    stopped.signal(nix::sys::signal::Signal::SIGSTOP);
    let mut fast = wait(client.subscribe(&"a".parse().unwrap(), SubscribeOptions::default())).unwrap();
    let payload = vec![7u8; 50_000];
    let mut slowest = Duration::ZERO;
    // 100 MB: far beyond what sockets and the stopped subscriber's send queue hold.
    for _ in 0..2000 {
        let begun = Instant::now();
        client.publish(&"a".parse().unwrap(), Payload::bytes(payload.clone())).unwrap();
        let Event::Message(_) = fast.next_blocking(begun + DEADLINE).unwrap() else {
            panic!("the fast subscriber lost a message")
        };
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "a message took {slowest:?}");
    stopped.kill();
}

#[test]
fn a_stock_publisher_is_held_by_not_being_read_and_loses_nothing() {
    let broker = TestBroker::start();
    for endpoint in broker.handle.endpoints() {
        let name =
            format!("subscriber-{}", if matches!(endpoint, Endpoint::Tcp { .. }) { "tcp" } else { "ipc" });
        let rules = Permissions::from_lists(&["a"], &["a"], &[], &[]).unwrap();
        let permissions = Permissions { wait: true, ..rules };
        let member = broker
            .store
            .issue(&name.parse().unwrap(), &permissions, broker.handle.endpoints(), None)
            .unwrap();
        let mut subscriber = RawPeer::native(endpoint, &member);
        let wait_for_me = SubscribeSpec {
            id: 1,
            serve: false,
            retained: false,
            probes: false,
            overflow: Overflow::Wait,
            queue_messages_max: 8,
            queue_bytes_max: 0,
            filter: "a".to_owned(),
            group: String::new(),
        };
        subscriber.send_record(&Record::Subscribe(wait_for_me)).unwrap();
        subscriber.record_where(|record| matches!(record, Record::Subscribed { .. })).unwrap();

        // More than the credit window and every socket buffer; all small ones would fit into one read.
        const MESSAGES: u64 = 4000;
        let mut publisher = RawPeer::connect(endpoint, &member, SocketType::Xpub, false).unwrap();
        let publishing = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                let payload =
                    [&number.to_le_bytes()[..], &vec![0; if number % 10 == 0 { 40_000 } else { 40 }]]
                        .concat();
                publisher.send_frame(b"a", FrameFlags::MORE).unwrap();
                publisher.send_frame(&payload, FrameFlags::LAST).unwrap();
            }
            publisher
        });
        let scope = |messages| CreditScope::Subscription { id: 1, messages };
        for number in 0..MESSAGES {
            let record = subscriber.record_where(|record| {
                assert!(!matches!(record, Record::Gap { .. }), "{record:?}");
                matches!(record, Record::Deliver { .. })
            });
            let Record::Deliver { block, .. } = record.unwrap() else { unreachable!() };
            assert_eq!(block.payload()[..8], number.to_le_bytes());
            subscriber.send_record(&Record::Credit { scope: scope(number + 1) }).unwrap();
        }
        drop(publishing.join().unwrap());
    }
}

#[test]
#[ignore = "measures for half a minute: cargo test -p interlock-tests idle -- --ignored"]
fn a_thousand_idle_sessions_cost_less_than_a_five_hundredth_of_a_core() {
    raise_limit_on_open_files();
    let broker = BrokerProcess::start();
    broker.enrol("member", &[], &["a"], &[], &[]);
    let idle = TestProcess::python("stock.py", &["idle", broker.path_of("member").to_str().unwrap(), "1000"]);
    assert_eq!(idle.json()["state"], "idle");
    // Every session is pinged twice in it.
    let window = 2 * limits::PING_INTERVAL;
    let before = broker.processor_time();
    std::thread::sleep(window);
    let used = broker.processor_time() - before;
    #[allow(clippy::print_stdout, reason = "the measured figure")]
    {
        println!("1000 idle sessions: {used:?} of processor time in {window:?}");
    }
    assert!(used < window / 500, "{used:?} in {window:?}");
}

#[test]
fn a_broker_is_not_started_on_the_socket_of_another_even_if_that_one_hangs() {
    let broker = TestBroker::start();
    let path = broker.directory.path().join("hangs.sock");
    // Nobody accepts, and its queue is full: a blocking connection would wait for ever.
    let hanging = std::os::unix::net::UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&hanging, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
    for endpoint in [broker.handle.endpoints()[1].clone(), Endpoint::Ipc(path)] {
        let config = BrokerConfig::from_key_store(&broker.store, vec![endpoint]).unwrap();
        let error = Broker::start(config).unwrap_err().to_string();
        assert!(error.contains("another process listens there"), "{error}");
    }
}

#[test]
fn the_end_of_a_stock_publisher_that_is_held_is_seen_and_what_it_had_sent_is_delivered() {
    let broker = TestBroker::start();
    let endpoint = &broker.handle.endpoints()[0];
    let issue = |name: &str, lists: [&[&str]; 4], wait| {
        let rules = Permissions::from_lists(lists[0], lists[1], lists[2], lists[3]).unwrap();
        let permissions = Permissions { wait, ..rules };
        broker.store.issue(&name.parse().unwrap(), &permissions, broker.handle.endpoints(), None).unwrap()
    };
    let publisher = issue("publisher", [&["a"], &[], &[], &[]], false);
    let waiter = Client::connect(ConnectOptions::new(issue("waiter", [&[], &["a"], &[], &[]], true)));
    let waiter = wait(waiter).unwrap();
    let observer = issue("observer", [&[], &[], &[], &["$sys/broker/#"]], false);
    let observer = wait(Client::connect(ConnectOptions::new(observer))).unwrap();
    let options = SubscribeOptions::default().overflow(Overflow::Wait).queue(8, 0);
    let mut subscription = wait(waiter.subscribe(&"a".parse().unwrap(), options)).unwrap();
    let topic = "$sys/broker/peers".parse().unwrap();
    let is_there = || {
        let reply = wait(observer.request(&topic, Payload::default(), DEADLINE)).unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
        rows.as_array().unwrap().iter().any(|row| row["peer"] == "publisher")
    };

    // More than the window and the queue, so that it is held, and a little that stays in its socket, with the end behind it.
    const MESSAGES: u64 = 1100;
    let mut stock = RawPeer::connect(endpoint, &publisher, SocketType::Xpub, false).unwrap();
    for number in 0..MESSAGES {
        let payload = [&number.to_le_bytes()[..], &[0; 4000]].concat();
        stock.send_frame(b"a", FrameFlags::MORE).unwrap();
        stock.send_frame(&payload, FrameFlags::LAST).unwrap();
    }
    assert!(MESSAGES * 4000 > limits::CREDIT_WINDOW_BYTES + 8 * 4000 && is_there());
    let RawStream::Tcp(stream) = &stock.stream else { panic!("the first endpoint is TCP") };
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("the end of the publisher's session", || (!is_there()).then_some(()));
    for number in 0..MESSAGES {
        match wait_until(subscription.next(), Instant::now() + DEADLINE) {
            Some(Some(Event::Message(message))) => assert_eq!(message.payload[..8], number.to_le_bytes()),
            other => panic!("{other:?} instead of message {number}"),
        }
    }
}
