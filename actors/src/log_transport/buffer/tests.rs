//! The buffer by itself.

use proptest::prelude::*;

use super::*;

fn record(level: Level, text: &str) -> LogRecord {
    LogRecord::new(level, "test", text)
}

fn texts(window: &[Arc<LogRecord>]) -> Vec<&str> {
    window.iter().map(|record| record.message.as_str()).collect()
}

#[test]
fn records_come_out_in_the_order_in_which_they_went_in_whatever_their_level() {
    let buffer = LogBuffer::default();
    for (text, level) in [("a", Level::Info), ("b", Level::Error), ("c", Level::Trace), ("d", Level::Info)] {
        buffer.add(record(level, text));
    }
    assert_eq!(texts(&buffer.window(3, usize::MAX)), ["a", "b", "c"]);
    assert_eq!(texts(&buffer.window(9, usize::MAX)), ["d"]);
    assert!(buffer.window(9, usize::MAX).is_empty(), "all of it is under way");
    buffer.send_again();
    let first = buffer.window(3, usize::MAX);
    assert_eq!(texts(&first), ["a", "b", "c"]);
    assert_eq!(buffer.settle(&first, &HashSet::from([first[1].id])), 2);
    assert_eq!(buffer.settle(&first, &HashSet::from([first[1].id])), 0, "they are gone");
    buffer.send_again();
    let again = buffer.window(9, usize::MAX);
    assert_eq!(texts(&again), ["b", "d"], "what is missing goes first again");
    buffer.settle(&again, &HashSet::new());
    assert!(buffer.is_empty() && buffer.window(9, 9).is_empty());
}

#[test]
fn overload_drops_the_lowest_levels_first_and_leaves_one_summary() {
    let buffer = LogBuffer::new(3, usize::MAX);
    let add = |text, level| buffer.add(record(level, text));
    add("d1", Level::Debug);
    add("i1", Level::Info);
    add("d2", Level::Debug);
    add("d3", Level::Debug); // the newest of equals goes
    add("w1", Level::Warn); // d1 makes room
    add("e1", Level::Error); // d2 makes room
    add("e2", Level::Error); // i1 makes room
    add("t1", Level::Trace); // nothing is lower
    let window = buffer.window(9, usize::MAX);
    assert_eq!(texts(&window[..3]), ["w1", "e1", "e2"]);
    let summary = &window[3];
    assert!(summary.message.starts_with("5 log records dropped between "), "{}", summary.message);
    let counts: Vec<_> = summary.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(counts, ["dropped_trace=1", "dropped_debug=3", "dropped_info=1"]);
    assert_eq!(buffer.report().dropped_total(), 5);
    buffer.settle(&window, &HashSet::new());
    assert!(buffer.is_empty(), "the summary is made once");
}

#[test]
fn bytes_are_bounded_and_what_is_under_way_is_never_dropped() {
    let one = record(Level::Info, &"x".repeat(1000)).memory_bytes();
    let buffer = LogBuffer::new(usize::MAX, 2 * one);
    buffer.add(record(Level::Info, &"a".repeat(1000)));
    buffer.add(record(Level::Info, &"b".repeat(1000)));
    let under_way = buffer.window(9, usize::MAX);
    buffer.add(record(Level::Error, &"c".repeat(1000)));
    assert_eq!(under_way.len(), 2);
    let next = buffer.window(9, usize::MAX);
    assert!(next.len() == 1 && next[0].message.starts_with("1 log records dropped"), "{next:?}");
    assert_eq!(buffer.report().dropped_total(), 1);
    assert!(buffer.report().bytes <= 3 * one);
}

#[test]
fn a_window_is_bounded_in_bytes_but_holds_at_least_one_record() {
    let buffer = LogBuffer::default();
    (0..3).for_each(|_| buffer.add(record(Level::Info, &"x".repeat(5000))));
    assert_eq!(buffer.window(9, 1).len(), 1);
    assert_eq!(buffer.window(9, 12_000).len(), 2);
    buffer.send_again();
    assert_eq!(buffer.window(9, 12_000).len(), 2);
    assert_eq!(buffer.window(2, 12_000).len(), 1);
    assert_eq!(buffer.take_rest().len(), 3);
}

#[test]
fn a_drain_that_waits_is_woken_by_the_first_record() {
    let buffer = LogBuffer::default();
    let adder = buffer.clone();
    let thread = std::thread::spawn(move || adder.add(record(Level::Info, "x")));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(buffer.readable());
    assert_eq!(buffer.report().waiting, 1);
    thread.join().unwrap();
}

#[test]
fn a_window_that_the_journal_took_is_under_way_no_more_and_settles_nothing() {
    let buffer = LogBuffer::default();
    (0..3).for_each(|_| buffer.add(record(Level::Info, "x")));
    let window = buffer.window(2, usize::MAX);
    assert!(buffer.is_under_way(&window));
    let spilled = buffer.take_to_spill(Level::Trace, usize::MAX);
    assert_eq!(spilled.len(), 2, "what is under way goes first");
    assert!(!buffer.is_under_way(&window));
    assert_eq!(buffer.settle(&window, &HashSet::new()), 0);
    buffer.spill_refused(spilled, true);
    assert_eq!(buffer.window(9, usize::MAX).len(), 3, "and comes again");
}

proptest! {
    #[test]
    fn every_record_is_flushed_waiting_or_dropped(
        steps in prop::collection::vec((0..8usize, 0..200usize), 1..200),
        records_max in 1..20usize,
        bytes_max in 500..20_000usize,
    ) {
        let buffer = LogBuffer::new(records_max, bytes_max);
        let (mut added, mut seen, mut summaries) = (0, Vec::new(), 0u64);
        for (kind, size) in steps {
            match kind {
                0..5 => {
                    buffer.add(record(Level::ALL[kind], &format!("{added:06}{}", "x".repeat(size))));
                    added += 1;
                }
                5..7 => {
                    let window = buffer.window(size % 7 + 1, size * 10);
                    summaries += window.iter().filter(|record| record.component == "log-transport").count() as u64;
                    seen.extend(window.iter().filter(|record| record.component == "test").map(|record| record.message[..6].to_owned()));
                    buffer.settle(&window, &HashSet::new());
                }
                _ => {
                    buffer.window(3, 1000);
                    buffer.send_again();
                }
            }
            let report = buffer.report();
            // Summary records pass through the window only.
            prop_assert!(report.waiting <= records_max + 1);
            let window_summaries = buffer.under_way().iter().filter(|record| record.component == "log-transport").count() as u64;
            prop_assert_eq!(
                report.accepted + summaries + window_summaries,
                report.flushed + report.waiting as u64 + report.dropped_total()
            );
        }
        prop_assert!(seen.is_sorted(), "{:?}", seen);
    }
}
