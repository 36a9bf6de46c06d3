//! The journal on a real disk, and its place on the way to the store.

use std::path::{Path, PathBuf};

use interlock_bus::{Payload, blocking::wait, crypto::KEY_BYTES};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::*;
use crate::{
    log_record::{Probe, ProbeAnswer},
    log_transport::{
        LogBuffer,
        gate::Phase,
        tests::{Site, consumer, drain, log, random, rounds, run, some_turns},
    },
    store::LogQuery,
    topics,
};

const KEY: [u8; KEY_BYTES] = [9; KEY_BYTES];

fn place(directory: &Path) -> JournalPlace {
    sized(directory, BYTES_MAX)
}

fn sized(directory: &Path, bytes_max: u64) -> JournalPlace {
    JournalPlace { directory: directory.to_owned(), bytes_max, key: Box::new(|| Ok(Zeroizing::new(KEY))) }
}

/// A buffer for so many records, a quarter of which stay in memory.
fn buffer(records_max: usize, directory: &Path) -> LogBuffer {
    let buffer = LogBuffer::new(records_max, 64 << 20);
    buffer.attach_journal(place(directory)).unwrap();
    buffer
}

fn spill_all(buffer: &LogBuffer) -> usize {
    wait(buffer.journal().unwrap().spill_all())
}

/// Lets the journal look whether it can be used again, and waits until it has.
fn look(buffer: &LogBuffer) {
    buffer.look_at_journal();
    // Orders are taken in turn: this one is behind the look, and there is nothing to hand out.
    wait(buffer.journal().unwrap().next(None));
}

fn journal(buffer: &LogBuffer) -> JournalReport {
    buffer.journal_report().unwrap()
}

/// Files of the journal, those in quarantine included, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let of = |directory: PathBuf| {
        let numbers = numbers(&directory).unwrap();
        numbers.into_iter().map(move |number| path(&directory, number))
    };
    of(directory.to_owned()).chain(of(directory.join(QUARANTINE))).collect()
}

fn records(texts: impl IntoIterator<Item = usize>) -> Vec<Arc<LogRecord>> {
    let record = |number: usize| Arc::new(LogRecord::new(Level::Info, "test", number.to_string()));
    texts.into_iter().map(record).collect()
}

#[test]
fn what_a_full_memory_spills_is_stored_before_what_came_after_once_and_in_order() {
    run(async {
        let site = Site::with_broker();
        let directory = site.directory.path().join("journal");
        let buffer = buffer(400, &directory);
        let mut drain = drain(site.attach("log-transport"), &buffer);
        drain.until(|report| report.phase == Phase::Waiting).await;
        for from in (0..5000).step_by(50) {
            log(&buffer, from..from + 50);
            // A reader of the disk that is slower than memory fills would drop; what is tested is the order.
            let spilled = buffer.journal().unwrap().spill_all().await;
            assert!(spilled <= 400);
        }
        log(&buffer, 5000..5050);
        assert!(journal(&buffer).records > 4500, "{:?}", journal(&buffer));
        for killed in [true, false] {
            let consumer = consumer(site.attach("log-consumer"), &site.store).await;
            if killed {
                consumer.until(|report| report.stored > 500).await;
                consumer.kill().await;
                drain.kill().await;
                drain = super::super::tests::drain(site.attach("log-transport"), &buffer);
                continue;
            }
            drain.until(|report| report.buffer.waiting == 0 && report.journal.unwrap().records == 0).await;
            drain.stop().await;
            consumer.stop().await;
            break;
        }
        site.assert_stored(5050);
        assert_eq!(files(&directory), Vec::<PathBuf>::new());
        assert_eq!(buffer.report().dropped_total(), 0);
    });
}

#[test]
fn what_a_process_left_is_stored_first_by_the_next_and_stands_nowhere_in_clear_text() {
    run(async {
        let site = Site::with_broker();
        let directory = site.directory.path().join("journal");
        let mut total = 0;
        for _ in 0..rounds(5) {
            let buffer = buffer(10_000, &directory);
            let count = random(200) as usize;
            buffer.add(LogRecord::new(Level::Info, "secret", "MARKER-that-must-not-be-seen"));
            log(&buffer, total..total + count);
            total += count;
            assert_eq!(spill_all(&buffer), count + 1);
        }
        for file in files(&directory) {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"MARKER" || window == b"secret"));
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        let buffer = buffer(10_000, &directory);
        log(&buffer, total..total + 10);
        let drain = drain(site.attach("log-transport"), &buffer);
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        some_turns().await;
        log(&buffer, total + 10..total + 20);
        drain.until(|report| report.buffer.waiting == 0 && report.journal.unwrap().drained > 0).await;
        drain.stop().await;
        consumer.stop().await;
        site.assert_stored(total + 20);
    });
}

#[test]
fn damage_is_told_counted_and_kept_aside_and_what_is_whole_is_stored() {
    run(async {
        let site = Site::with_broker();
        let directory = site.directory.path().join("journal");
        let old = buffer(10_000, &directory);
        log(&old, 0..30);
        spill_all(&old);
        let file = files(&directory).remove(0);
        let mut bytes = std::fs::read(&file).unwrap();
        let frame = (bytes.len() - segment_header()) / 30;
        // One frame in the middle is damaged, the last is torn.
        bytes[segment_header() + frame * 12 + 100] ^= 0xff;
        bytes.truncate(bytes.len() - 7);
        std::fs::write(&file, &bytes).unwrap();
        drop(old);

        let buffer = buffer(10_000, &directory);
        let drain = drain(site.attach("log-transport"), &buffer);
        let consumer = consumer(site.attach("log-consumer"), &site.store).await;
        let report =
            drain.until(|report| report.journal.unwrap().drained == 28 && report.buffer.flushed >= 2).await;
        assert!(report.to_string().contains("1 damaged in quarantine"), "{report}");
        drain.stop().await;
        consumer.stop().await;
        let found = site.store.read(|reader| reader.logs(&LogQuery::default())).await.unwrap();
        let stored = found.iter().filter(|log| log.record.component == "test").count();
        let mut told: Vec<_> = found
            .iter()
            .filter(|log| log.record.message.contains("is not whole"))
            .map(|log| &log.record)
            .collect();
        told.sort_by_key(|record| record.number);
        assert_eq!((stored, told.len()), (28, 2), "{told:?}");
        assert!(
            told[0].message.contains(": damaged at byte ")
                && told[1].message.contains(": torn at its end at byte ")
        );
        assert!(told.iter().all(|record| record.message.contains(file.to_str().unwrap())));
        let kept = files(&directory);
        assert_eq!(std::fs::read(&kept[0]).unwrap(), bytes, "the damaged file is not kept as it was");
        assert_eq!(kept.len(), 1);
    });
}

fn segment_header() -> usize {
    super::segment::HEADER_BYTES
}

#[test]
fn quarantine_keeps_the_newest_files_only() {
    let place = tempfile::tempdir().unwrap();
    for _ in 0..QUARANTINE_FILES_MAX + 3 {
        let mut journal = Journal::open(place.path(), Zeroizing::new(KEY), BYTES_MAX).unwrap();
        journal.append(&records(0..2)).unwrap();
        let number = journal.last_number;
        let file = journal.path(number);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let content = journal.next().unwrap().unwrap();
        assert_eq!((content.segment, content.records.len(), content.bad.len()), (number, 1, 1));
        journal.finish(number).unwrap();
    }
    let kept = numbers(&place.path().join(QUARANTINE)).unwrap();
    assert_eq!(kept, (4..=QUARANTINE_FILES_MAX as u64 + 3).collect::<Vec<_>>());
}

#[test]
fn a_full_journal_takes_what_matters_and_memory_counts_what_it_drops() {
    let place = tempfile::tempdir().unwrap();
    let buffer = LogBuffer::new(1000, 64 << 20);
    buffer.attach_journal(sized(place.path(), 200 << 10)).unwrap();
    let add = |level, number: usize| buffer.add(LogRecord::new(level, "test", number.to_string()));
    for number in 0..3000 {
        add(Level::Info, number);
        if number % 100 == 0 {
            spill_all(&buffer);
        }
    }
    let full = journal(&buffer);
    assert_eq!(full.trouble, Some(Trouble::Full), "{full:?}");
    assert!(full.bytes >= 160 << 10 && full.bytes < 200 << 10, "{full:?}");
    (0..50).for_each(|number| add(Level::Error, number));
    let spilled = spill_all(&buffer);
    assert!((50..60).contains(&spilled), "errors and a summary find room, not {spilled}");
    let report = buffer.report();
    let summaries = report.dropped_total() + report.waiting as u64 + report.spilled - report.accepted;
    assert!((1..40).contains(&summaries), "{report:?}");
    assert!(report.dropped_total() > 0 && report.dropped[4] == 0, "{report:?}");
}

#[test]
fn a_journal_that_cannot_be_written_has_a_name_and_is_used_again_when_it_can() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("journal");
    std::fs::write(&directory, "in the way").unwrap();
    let buffer = buffer(1000, &directory);
    log(&buffer, 0..10);
    assert_eq!(spill_all(&buffer), 0);
    assert!(matches!(journal(&buffer).trouble, Some(Trouble::Io(_))), "{:?}", journal(&buffer));
    assert!(journal(&buffer).to_string().contains("cannot be used: "));
    assert_eq!((buffer.report().waiting, buffer.window(100, usize::MAX).len()), (10, 10));
    std::fs::remove_file(&directory).unwrap();
    log(&buffer, 10..20);
    assert_eq!(spill_all(&buffer), 20);
    assert_eq!((journal(&buffer).trouble, journal(&buffer).records), (None, 20));
    // In the order in which they came, although the first ten had been on their way.
    let mut journal = Journal::open(&directory, Zeroizing::new(KEY), BYTES_MAX).unwrap();
    let content = journal.next().unwrap().unwrap();
    let texts: Vec<_> = content.records.iter().map(|record| record.message.clone()).collect();
    assert_eq!(texts, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn without_a_key_records_stay_in_memory_until_there_is_one() {
    let place = tempfile::tempdir().unwrap();
    let key_file = place.path().join("key");
    let asked = key_file.clone();
    let key = move || match asked.exists() {
        true => Ok(Zeroizing::new(KEY)),
        false => Err("there is no key yet".to_owned()),
    };
    let buffer = LogBuffer::new(1000, 1 << 20);
    let directory = place.path().join("journal");
    buffer
        .attach_journal(JournalPlace {
            directory: directory.clone(),
            bytes_max: BYTES_MAX,
            key: Box::new(key),
        })
        .unwrap();
    log(&buffer, 0..5);
    assert_eq!((spill_all(&buffer), journal(&buffer).trouble), (0, Some(Trouble::NoKey)));
    assert!(!directory.exists());
    std::fs::write(&key_file, "").unwrap();
    assert_eq!((spill_all(&buffer), journal(&buffer).trouble), (5, None));
}

#[test]
fn a_journal_whose_trouble_is_over_says_so_without_anything_to_spill() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("journal");
    std::fs::write(&directory, "in the way").unwrap();
    let buffer = buffer(1000, &directory);
    log(&buffer, 0..1);
    assert_eq!(spill_all(&buffer), 0);
    buffer.take_rest();
    look(&buffer);
    assert!(matches!(journal(&buffer).trouble, Some(Trouble::Io(_))), "{:?}", journal(&buffer));
    std::fs::remove_file(&directory).unwrap();
    look(&buffer);
    assert_eq!(journal(&buffer).trouble, None);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "the probe was left");
}

#[test]
fn a_journal_that_was_full_is_well_when_it_has_been_emptied() {
    let place = tempfile::tempdir().unwrap();
    let buffer = LogBuffer::new(10_000, 64 << 20);
    buffer.attach_journal(sized(place.path(), 200 << 10)).unwrap();
    log(&buffer, 0..3000);
    spill_all(&buffer);
    assert_eq!(journal(&buffer).trouble, Some(Trouble::Full));
    buffer.take_rest();
    let mut finished = None;
    while let Some(batch) = wait(buffer.journal().unwrap().next(finished)) {
        finished = Some((batch.segment, batch.records.len() as u64));
        buffer.look_at_journal();
    }
    look(&buffer);
    assert_eq!(journal(&buffer).trouble, None);
}

#[test]
fn a_segment_that_cannot_be_read_keeps_no_other_from_being_sent() {
    let place = tempfile::tempdir().unwrap();
    for number in 0..2 {
        let mut journal = Journal::open(place.path(), Zeroizing::new(KEY), BYTES_MAX).unwrap();
        journal.append(&records(number..number + 1)).unwrap();
    }
    let [first, second] = files(place.path()).try_into().unwrap();
    std::fs::rename(&first, place.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&first).unwrap();
    let mut journal = Journal::open(place.path(), Zeroizing::new(KEY), BYTES_MAX).unwrap();
    let content = journal.next().unwrap().unwrap();
    assert_eq!((content.records.len(), journal.path(content.segment)), (1, second));
    assert_eq!(content.records[0].message, "1");
    journal.finish(content.segment).unwrap();
    assert!(journal.next().is_none() && first.exists());
}

#[test]
fn a_stop_leaves_to_the_next_start_what_is_in_the_journal() {
    run(async {
        let site = Site::with_broker();
        let directory = site.directory.path().join("journal");
        // A consumer of our own, which takes records and never says that they are stored.
        let client = site.attach("log-consumer");
        let mut probes =
            client.serve(&topics::filter(topics::LOG_CONSUMER_PROBE), Default::default()).await.unwrap();
        let mut confirms =
            client.serve(&topics::filter(topics::LOG_CONSUMER_CONFIRM), Default::default()).await.unwrap();
        let buffer = buffer(10_000, &directory);
        log(&buffer, 0..100);
        assert!(spill_all(&buffer) >= 100);
        let drain = drain(site.attach("log-transport"), &buffer);
        let request = probes.next().await.unwrap();
        let probe = request.message.decode::<Probe>().unwrap().probe;
        request.end(Payload::json(&ProbeAnswer { probe, consumer: Uuid::nil() }).unwrap()).await.unwrap();
        let _asked = confirms.next().await.unwrap();
        drain.stop().await;
        assert!(buffer.is_journaled() && journal(&buffer).records >= 100, "{:?}", journal(&buffer));
    });
}
