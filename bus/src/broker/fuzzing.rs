//! Fuzz targets of the hub: what sessions with valid keys may say to it. After every step the ledger
//! balances and what waits for a session is bounded.

use std::sync::Arc;

use super::{
    hub::{Hub, SessionId, SessionInfo, SessionKind},
    stock::Stock,
};
use crate::{
    fuzzing::{Input, own},
    keys::Permissions,
    limits,
    native::{BatchReader, Record},
    zmtp::Command,
};

fn hub() -> Hub {
    Hub::new("broker".parse().expect("a legal name"), 1)
}

fn open(hub: &mut Hub, peer: &str, kind: SessionKind) -> SessionId {
    let all: &[&str] = &["#", "$sys/#", "$peers/#"];
    let mut permissions = Permissions::from_lists(all, all, all, all).expect("legal filters");
    permissions.wait = peer == "a";
    permissions.publish.deny.push("secret/#".parse().expect("a legal filter"));
    let permissions = Arc::new(permissions);
    let peer = peer.parse().expect("a legal name");
    let id = hub.open(SessionInfo {
        peer,
        key: None,
        kind,
        address: String::new(),
        server_key: None,
        permissions,
    });
    if matches!(kind, SessionKind::Native | SessionKind::Local) {
        let (program, peer) = (String::new(), String::new());
        hub.record(id, Record::Hello { major: 1, minor: 0, program, peer, epoch: [0; 16] });
    }
    id
}

fn check(hub: &Hub) {
    for (key, counts) in hub.ledger_rows() {
        assert!(counts.balances(), "{key:?} {counts:?}");
    }
    for (_, session) in hub.each_session() {
        assert!(session.is_ending || session.control_bytes <= limits::CONTROL_QUEUE_BYTES + (1 << 20));
        assert!(session.lanes.len() <= limits::SUBSCRIPTIONS_PER_SESSION_MAX);
    }
}

/// Sessions that the hub wants to end are closed, and opened anew.
fn settle(hub: &mut Hub, sessions: &mut [(SessionId, &str, SessionKind)]) {
    for (ended, _) in hub.take_ending() {
        hub.close(ended, "lost", "");
        for (id, peer, kind) in sessions.iter_mut().filter(|(id, ..)| *id == ended) {
            *id = open(hub, peer, *kind);
        }
    }
    hub.take_dirty();
    check(hub);
}

/// Three native sessions send records, read what is for them, and time passes.
pub(crate) fn records(data: &[u8]) {
    let mut data = Input(data);
    let (mut hub, mut now_ms) = (hub(), 1);
    let mut sessions =
        ["a", "b", "c"].map(|peer| (open(&mut hub, peer, SessionKind::Native), peer, SessionKind::Native));
    let mut readers: [BatchReader; 3] = Default::default();
    while !data.is_empty() {
        let choice = data.byte();
        let at = usize::from(choice >> 6).min(2);
        let id = sessions[at].0;
        match choice & 7 {
            0..=4 => {
                let piece = data.piece();
                if piece.is_empty() {
                    continue;
                }
                let mut batch = (piece.len() as u32).to_le_bytes().to_vec();
                batch.extend_from_slice(piece);
                if hub.batch(id, &mut readers[at], &batch).is_err() {
                    readers[at] = BatchReader::default();
                }
            }
            5 => {
                for _ in 0..=(choice >> 3 & 7) {
                    let Some(record) = hub.next_record(id) else { break };
                    let mut written = Vec::new();
                    record.put(&mut written);
                    let read = Record::take(written.into()).expect("what the broker writes can be read");
                    assert_eq!(read, Some(record));
                }
            }
            6 => {
                now_ms += u64::from(data.byte()) << (choice >> 3 & 7);
                hub.tick(now_ms);
            }
            _ => {
                hub.close(id, "lost", "");
                sessions[at].0 = open(&mut hub, sessions[at].1, SessionKind::Native);
                readers[at] = BatchReader::default();
            }
        }
        settle(&mut hub, &mut sessions);
    }
}

/// A stock session of any kind beside a native one that subscribes to everything, serves, and answers.
pub(crate) fn stock(data: &[u8]) {
    let mut data = Input(data);
    let mut hub = hub();
    let choice = data.byte();
    let kind = match choice & 3 {
        0 => SessionKind::StockPublisher,
        1 => SessionKind::StockSubscriber,
        _ => SessionKind::StockRequester,
    };
    let mut sessions = [
        (open(&mut hub, "b", kind), "b", kind),
        (open(&mut hub, "a", SessionKind::Native), "a", SessionKind::Native),
    ];
    let subscribe = |serve| {
        Record::Subscribe(crate::native::SubscribeSpec {
            id: 1 + u32::from(serve),
            serve,
            retained: false,
            probes: true,
            overflow: crate::native::Overflow::DropNewest,
            queue_messages_max: 4,
            queue_bytes_max: 0,
            filter: "#".to_owned(),
            group: String::new(),
        })
    };
    [false, true].into_iter().for_each(|serve| hub.record(sessions[1].0, subscribe(serve)));
    let mut stock = Stock::new(kind, choice & 3 == 3);
    while !data.is_empty() {
        let (choice, id, native) = (data.byte(), sessions[0].0, sessions[1].0);
        match choice & 7 {
            0..=2 => {
                if stock.frame(&mut hub, id, data.piece(), None, choice & 8 != 0).is_err() {
                    return;
                }
            }
            3 => {
                if let Ok(command) = Command::parse(&own(data.piece())) {
                    stock.command(&mut hub, id, command);
                }
            }
            4 => {
                while let Some(record) = hub.next_record(native) {
                    if let (Record::Request { id: request, .. }, true) = (&record, choice & 8 != 0) {
                        let (request, payload) = (*request, own(data.piece()));
                        hub.record(native, Record::Reply { id: request, header: own(b""), payload });
                    }
                }
            }
            5 => {
                let piece = data.piece();
                if let Ok(Some(record)) = Record::take(own(piece)) {
                    hub.record(native, record);
                }
            }
            6 => {
                while hub.next_stock_delivery(id, |block| assert!(!block.topic().is_empty())) {
                    hub.stock_delivered(id, 1);
                }
                while let Some(record) = hub.next_record(id) {
                    assert!(stock.frames_of(record).len() <= limits::STOCK_FRAMES_MAX + 2);
                }
            }
            _ => hub.tick(u64::from(data.byte()) * 1000),
        }
        let before = sessions[0].0;
        settle(&mut hub, &mut sessions);
        if sessions[0].0 != before {
            stock = Stock::new(kind, false);
        }
    }
}
