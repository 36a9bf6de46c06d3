use std::path::Path;

use super::*;
use crate::{
    envelope::{Header, Payload, now_ns},
    schema::Schema,
};

fn message(topic: &str, origin: &str, sequence: u64, payload: Payload) -> Message {
    let mut header = Header::for_payload(&payload);
    header.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    header.user = vec![("tone".to_owned(), "calm".to_owned()), ("tone".to_owned(), "again".to_owned())];
    Message {
        topic: topic.parse().unwrap(),
        origin: origin.parse().unwrap(),
        sequence,
        retained: sequence == 0,
        header,
        payload: payload.bytes,
    }
}

fn record(path: &Path, messages: &[Message]) -> Recorder {
    let mut recorder = Recorder::create(path, &[("filters", "#".to_owned())]).unwrap();
    for message in messages {
        recorder.message(now_ns(), message, None).unwrap();
    }
    recorder
}

fn entries(path: &Path) -> (Vec<Entry>, bool) {
    let mut recording = Recording::open(path).unwrap();
    let entries = recording.by_ref().map(Result::unwrap).collect();
    (entries, recording.is_whole())
}

#[test]
fn a_message_comes_back_as_it_was_with_its_header_and_gaps_in_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.mcap");
    let schema = Schema::parse("Turn", r#"{"struct":[["text","string"]]}"#).unwrap();
    let mut decoded = Payload::bytes(vec![2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i']);
    (decoded.content_type, decoded.schema) = (crate::ContentType::Bincode, Some(schema.fingerprint()));
    let sent = [
        message("a/b", "ada", 0, Payload::text("hello")),
        message("a/b", "bob", 1 << 40, Payload::bytes(vec![0, 255])),
        message("a/c", "ada", 7, decoded),
    ];
    let mut recorder = record(&path, &sent[..2]);
    recorder.gap("a/#", Some(3), "slow_consumer").unwrap();
    recorder.message(5, &sent[2], Some(&schema)).unwrap();
    assert!(recorder.knows_schema(schema.fingerprint()));
    let summary = recorder.finish().unwrap();
    assert_eq!((summary.messages, summary.payload_bytes, summary.gaps, summary.missing), (3, 17, 1, 3));
    let (found, is_whole) = entries(&path);
    assert!(is_whole);
    let messages: Vec<_> = found.iter().filter(|entry| matches!(entry, Entry::Message { .. })).collect();
    for (entry, sent) in messages.into_iter().zip(&sent) {
        let Entry::Message { topic, origin, retained, header, payload, .. } = entry else { panic!() };
        assert_eq!((&**topic, origin.as_deref()), (sent.topic.as_str(), Some(sent.origin.as_str())));
        assert_eq!((&**header, &payload.bytes), (&sent.header, &sent.payload));
        assert_eq!(*retained, sent.retained);
    }
    let gap = Entry::Gap { filter: "a/#".to_owned(), count: Some(3), reason: "slow_consumer".to_owned() };
    assert_eq!(found[2], gap);
    assert_eq!(found[3], Entry::Schema(schema));
    assert_eq!(found.len(), 5);
}

#[test]
fn after_each_sync_the_file_is_whole_for_every_reader_and_says_that_it_was_not_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.mcap");
    let sent: Vec<_> =
        (0..500).map(|n| message("a/b", "ada", n, Payload::text("x".repeat(n as usize)))).collect();
    let mut recorder = record(&path, &[]);
    for (at, message) in sent.iter().enumerate() {
        recorder.message(now_ns(), message, None).unwrap();
        if at % 50 == 49 {
            recorder.sync().unwrap();
            // As the reader of the format's own crate sees it, which wants a whole file.
            let bytes = std::fs::read(&path).unwrap();
            let seen = mcap::MessageStream::new(&bytes).unwrap().map(Result::unwrap).count();
            assert_eq!(seen, at + 1);
            let (found, is_whole) = entries(&path);
            assert!(found.len() == at + 1 && !is_whole);
        }
    }
    let before = std::fs::read(&path).unwrap();
    drop(recorder);
    assert_eq!(std::fs::read(&path).unwrap(), before, "what was not synced leaves no trace");
}

#[test]
fn a_file_that_is_cut_anywhere_gives_whole_messages_and_one_that_is_changed_no_false_ones() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.mcap");
    let sent: Vec<_> =
        (0..20).map(|n| message("a/b", "ada", n, Payload::text(format!("message {n}")))).collect();
    let mut recorder = record(&path, &[]);
    for message in &sent {
        recorder.message(now_ns(), message, None).unwrap();
        recorder.sync().unwrap();
    }
    recorder.finish().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        let path = directory.path().join("b.mcap");
        std::fs::write(&path, bytes).unwrap();
        let mut recording = Recording::open(&path).unwrap();
        let (mut messages, mut expected) = (0, sent.iter());
        loop {
            match recording.next() {
                Some(Ok(Entry::Message { payload, header, .. })) => {
                    // A damaged record may be left out, until the end says that something was changed.
                    let is_it = |sent: &&Message| {
                        (&payload.bytes, &header.user) == (&sent.payload, &sent.header.user)
                    };
                    assert!(expected.any(|sent| is_it(&sent)), "{payload:?}");
                    messages += 1;
                }
                Some(Ok(_)) => {}
                None => return (messages, Some(recording.is_whole())),
                Some(Err(RecordingError::Damaged { .. })) => return (messages, None),
                Some(Err(error)) => panic!("{error}"),
            }
        }
    };
    assert_eq!(read(&whole), (20, Some(true)));
    let mut seen = 0;
    for length in (0..whole.len()).step_by(7) {
        let (messages, _) = read(&whole[..length]);
        assert!(messages >= seen, "{length}");
        seen = messages;
    }
    for at in (8..whole.len()).step_by(11) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        let (messages, end) = read(&changed);
        // The index behind the data is not read.
        assert!(messages == 20 || end != Some(true), "{at}: {messages}");
    }
}

#[test]
fn nothing_is_overwritten_and_only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.mcap");
    record(&path, &[]).finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Recorder::create(&path, &[]), Err(RecordingError::Exists(_))));
    assert_eq!(entries(&path), (Vec::new(), true));
    let empty = directory.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(Recording::open(&empty).unwrap().next(), Some(Err(RecordingError::Damaged { .. }))));
}
