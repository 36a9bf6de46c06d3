//! Sequences that went wrong once.

use super::*;

#[test]
fn losses_behind_a_request_that_was_withdrawn_are_told_at_once() {
    let mut pair = Pair::new();
    pair.apply(&Op::Subscribe {
        at: 0,
        id: 2,
        filter: 0,
        serve: true,
        overflow: 0,
        max: 1,
        group: false,
        retained: false,
        probes: false,
    });
    pair.apply(&Op::Request { at: 2, id: 2, topic: 0, deadline: None });
    pair.apply(&Op::Request { at: 0, id: 1, topic: 0, deadline: None });
    pair.apply(&Op::Cancel { at: 2, id: 2 });
    pair.apply(&Op::Edit { at: 0, rights: 0 });
    let told: Vec<Sent> = std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent).collect();
    assert!(told.contains(&Sent::Gap { subscription: 2, count: 1 }), "{told:?}");
}

#[test]
fn a_gap_stands_where_the_messages_are_missing_in_a_batch_and_alone() {
    let subscribe = |id, filter| {
        let (serve, overflow, group, retained, probes) = (false, 0, false, false, false);
        Op::Subscribe { at: 0, id, filter, serve, overflow, max: 2, group, retained, probes }
    };
    let publish = || Op::PublishBatch { at: 1, topics: vec![0] };
    let numbers = |sent: Vec<Sent>| -> String {
        let word = |sent| match sent {
            Sent::Deliver { number, .. } => Some(number.to_string()),
            Sent::Gap { subscription, count } => Some(format!("gap {count} of {subscription}")),
            _ => None,
        };
        sent.into_iter().filter_map(word).collect::<Vec<_>>().join(", ")
    };
    for in_batches in [false, true] {
        let mut pair = Pair::new();
        [subscribe(1, 0), subscribe(2, 1)].iter().for_each(|op| pair.apply(op));
        pair.apply(&Op::Take { at: 0, count: 9 });
        (0..4).for_each(|_| pair.apply(&publish()));
        let first = pair.hub.next_record(pair.ids[0]).and_then(sent);
        let first = first.into_iter().chain(pair.hub.next_record(pair.ids[0]).and_then(sent)).collect();
        assert_eq!(numbers(first), "1");
        (0..2).for_each(|_| pair.apply(&publish()));
        let mut rest = Vec::new();
        if in_batches {
            let (mut reader, mut batch) = (BatchReader::default(), Vec::new());
            while pair.hub.put_next(pair.ids[0], &mut BatchWriter::default(), &mut batch) {}
            reader.begin(batch.into());
            rest.extend(std::iter::from_fn(|| reader.next_record().unwrap()).filter_map(sent));
        } else {
            rest.extend(std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent));
        }
        assert_eq!(numbers(rest), "2, gap 2 of 2, gap 2 of 1, 5, gap 1 of 2, gap 1 of 1");
    }
}

/// `Pair::apply` sees to it that the session is written to.
#[test]
fn a_loss_behind_a_closed_window_is_told_when_what_stood_in_front_of_it_goes() {
    let subscribe = |id, filter, serve| {
        let (overflow, group, retained, probes) = (0, false, false, false);
        Op::Subscribe { at: 0, id, filter, serve, overflow, max: 1, group, retained, probes }
    };
    let publish = || Op::PublishBatch { at: 3, topics: vec![0] };
    let request = |id| Op::Request { at: 2, id, topic: 0, deadline: None };
    let take = || Op::Take { at: 0, count: 9 };
    let window = WINDOW_BYTES.div_ceil(bytes_of(TOPICS[0]));
    let close_window = || (0..window).flat_map(|_| [publish(), take()]);
    // A request is withdrawn, a right is taken away, and a subscription ends whose loss was another's, too.
    let withdrawn = [subscribe(2, 0, true), take()].into_iter();
    let withdrawn = withdrawn.chain((0..window).flat_map(|id| [request(100 + id), take()]));
    let withdrawn = withdrawn.chain([request(4), request(5), Op::Cancel { at: 2, id: 4 }]);
    let withheld = [subscribe(2, 0, false), take()].into_iter().chain(close_window());
    let withheld = withheld.chain([publish(), publish(), Op::Edit { at: 0, rights: 1 }]);
    let inherited = [subscribe(1, 0, false), take()].into_iter().chain(close_window());
    let inherited = inherited.chain([
        publish(),
        subscribe(2, 1, false),
        take(),
        publish(),
        Op::Unsubscribe { at: 0, id: 1 },
    ]);
    let cases: [Vec<Op>; 3] = [withdrawn.collect(), withheld.collect(), inherited.collect()];
    for ops in cases {
        let mut pair = Pair::new();
        ops.iter().for_each(|op| pair.apply(op));
        let told: Vec<Sent> =
            std::iter::from_fn(|| pair.hub.next_record(pair.ids[0])).filter_map(sent).collect();
        assert_eq!(told.last(), Some(&Sent::Gap { subscription: 2, count: 1 }), "{told:?} after {ops:?}");
    }
}

/// A subscription of session 3 to everything, with one place, that answers probes.
fn probed(overflow: usize) -> Op {
    let (at, id, filter, serve, max, group, retained) = (3, 1, 3, false, 1, false, false);
    Op::Subscribe { at, id, filter, serve, overflow, max, group, retained, probes: true }
}

fn probe(id: u64) -> Op {
    Op::Probe { at: 0, id, topic: 0, peer: Some(3), deadline: None }
}

fn publish(topic: usize) -> Op {
    Op::Publish { at: 0, topic, deadline: None, retain: None }
}

/// What waits for a session, and was not taken by an operation.
fn told(pair: &mut Pair, at: usize) -> Vec<Sent> {
    std::iter::from_fn(|| pair.hub.next_record(pair.ids[at])).filter_map(sent).collect()
}

#[test]
fn a_probe_that_waits_for_room_goes_on_when_what_stood_in_front_of_it_is_withdrawn() {
    let mut pair = Pair::new();
    [probed(0), probe(1), probe(2), Op::Cancel { at: 0, id: 1 }].iter().for_each(|op| pair.apply(op));
    let probes = told(&mut pair, 3).into_iter().filter(|sent| matches!(sent, Sent::Request { .. }));
    assert_eq!(probes.count(), 1, "the second probe waits for room that is there");
}

#[test]
fn a_probe_that_is_withdrawn_releases_whom_its_place_held() {
    let mut pair = Pair::new();
    // The message behind the probe may not be received any more; then the probe goes, and nothing waits.
    let wait = OVERFLOWS.iter().position(|overflow| *overflow == Overflow::Wait).unwrap();
    let ops =
        [probed(wait), probe(1), publish(3), Op::Edit { at: 3, rights: 0 }, Op::Cancel { at: 0, id: 1 }];
    ops.iter().for_each(|op| pair.apply(op));
    assert!(!pair.hub.is_held(pair.ids[0]), "nothing waits, and its publisher is held");
}

#[test]
fn a_probe_that_is_lost_is_no_gap_among_the_messages() {
    let mut pair = Pair::new();
    let oldest = OVERFLOWS.iter().position(|overflow| *overflow == Overflow::DropOldest).unwrap();
    [probed(oldest), probe(1), publish(0)].iter().for_each(|op| pair.apply(op));
    let told = told(&mut pair, 3);
    assert!(!told.iter().any(|sent| matches!(sent, Sent::Gap { .. })), "{told:?}");
}

#[test]
fn a_probe_holds_nobody() {
    let mut pair = Pair::new();
    let wait = OVERFLOWS.iter().position(|overflow| *overflow == Overflow::Wait).unwrap();
    [probed(wait), probe(1)].iter().for_each(|op| pair.apply(op));
    assert!(!pair.hub.is_held(pair.ids[0]));
}

#[test]
fn a_probe_stays_where_it_is_when_rights_are_edited_that_it_does_not_need() {
    let mut pair = Pair::new();
    [probed(0), probe(1), Op::Edit { at: 3, rights: 0 }].iter().for_each(|op| pair.apply(op));
    let told = told(&mut pair, 3);
    assert!(told.iter().any(|sent| matches!(sent, Sent::Request { .. })), "{told:?}");
}
