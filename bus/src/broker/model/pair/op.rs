//! Random operations: sessions, ids and topics are small numbers so that they meet.

use proptest::prelude::*;

use super::*;

/// One random operation.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Subscribe {
        at: usize,
        id: u32,
        filter: usize,
        serve: bool,
        overflow: usize,
        max: u32,
        group: bool,
        retained: bool,
        probes: bool,
    },
    Unsubscribe {
        at: usize,
        id: u32,
    },
    Publish {
        at: usize,
        topic: usize,
        deadline: Option<u64>,
        retain: Option<bool>,
    },
    Tick {
        ms: u64,
    },
    PublishBatch {
        at: usize,
        topics: Vec<usize>,
    },
    Request {
        at: usize,
        id: u64,
        topic: usize,
        deadline: Option<u64>,
    },
    Cancel {
        at: usize,
        id: u64,
    },
    Reply {
        at: usize,
        last: bool,
    },
    Take {
        at: usize,
        count: usize,
    },
    TakeBatch {
        at: usize,
    },
    Credit {
        at: usize,
        id: u32,
        total: u64,
    },
    Reopen {
        at: usize,
        farewell: bool,
    },
    Edit {
        at: usize,
        rights: usize,
    },
    Will {
        at: usize,
        topic: usize,
        clear: bool,
    },
    Watch {
        at: usize,
        id: u64,
        topic: usize,
        at_least: Option<usize>,
        peers: Vec<usize>,
        deadline: Option<u64>,
    },
    Probe {
        at: usize,
        id: u64,
        topic: usize,
        peer: Option<usize>,
        deadline: Option<u64>,
    },
    Grant {
        at: usize,
        id: u64,
        parts: u64,
    },
}

pub(super) const SESSIONS: usize = 4;
pub(super) const TOPICS: [&str; 4] = ["a", "a/b", "c", "secret"];
pub(super) const FILTERS: [&str; 6] = ["a", "a/#", "+", "#", "c", "secret"];
pub(super) const OVERFLOWS: [Overflow; 5] =
    [Overflow::DropNewest, Overflow::DropOldest, Overflow::LatestOnly, Overflow::Disconnect, Overflow::Wait];

pub(super) fn op() -> impl Strategy<Value = Op> {
    let (at, id) = (0..SESSIONS, 1..4u32);
    prop_oneof![
        3 => (at.clone(), id.clone(), 0..FILTERS.len(), 0..OVERFLOWS.len(), 1..4u32, prop::bool::weighted(0.3), any::<[bool; 2]>())
            .prop_map(|(at, id, filter, overflow, max, group, [retained, probes])| {
                Op::Subscribe { at, id, filter, serve: false, overflow, max, group, retained, probes }
            }),
        // Only session 0 serves, see `Model::request`; with one lane, whose order of choice is plain.
        1 => (2..4u32, 0..FILTERS.len(), 0..OVERFLOWS.len(), 1..4u32)
            .prop_map(|(id, filter, overflow, max)| {
                let (group, retained, probes) = (false, false, false);
                Op::Subscribe { at: 0, id, filter, serve: true, overflow, max, group, retained, probes }
            }),
        1 => (at.clone(), id.clone()).prop_map(|(at, id)| Op::Unsubscribe { at, id }),
        5 => (at.clone(), 0..TOPICS.len(), deadline(), prop::option::weighted(0.3, prop::bool::weighted(0.8)))
            .prop_map(|(at, topic, deadline, retain)| Op::Publish { at, topic, deadline, retain }),
        2 => (1..4u64).prop_map(|ms| Op::Tick { ms }),
        4 => (at.clone(), prop::collection::vec(0..TOPICS.len(), 1..6))
            .prop_map(|(at, topics)| Op::PublishBatch { at, topics }),
        4 => (at.clone(), 1..4u64, 0..TOPICS.len(), deadline())
            .prop_map(|(at, id, topic, deadline)| Op::Request { at, id, topic, deadline }),
        1 => (at.clone(), 1..4u64).prop_map(|(at, id)| Op::Cancel { at, id }),
        3 => (at.clone(), any::<bool>()).prop_map(|(at, last)| Op::Reply { at, last }),
        3 => (at.clone(), 1..6usize).prop_map(|(at, count)| Op::Take { at, count }),
        3 => at.clone().prop_map(|at| Op::TakeBatch { at }),
        2 => (at.clone(), id, 0..8u64).prop_map(|(at, id, total)| Op::Credit { at, id, total }),
        1 => (at.clone(), any::<bool>()).prop_map(|(at, farewell)| Op::Reopen { at, farewell }),
        2 => (at.clone(), 0..TOPICS.len(), prop::bool::weighted(0.2))
            .prop_map(|(at, topic, clear)| Op::Will { at, topic, clear }),
        2 => (at.clone(), 1..4u64, 0..TOPICS.len(), prop::option::weighted(0.3, 0..4usize), prop::collection::vec(0..SESSIONS, 0..3), deadline())
            .prop_map(|(at, id, topic, at_least, peers, deadline)| Op::Watch { at, id, topic, at_least, peers, deadline }),
        2 => (at.clone(), 1..4u64, 0..TOPICS.len(), prop::option::weighted(0.7, 0..SESSIONS), deadline())
            .prop_map(|(at, id, topic, peer, deadline)| Op::Probe { at, id, topic, peer, deadline }),
        1 => (at.clone(), 1..4u64, 0..8u64).prop_map(|(at, id, parts)| Op::Grant { at, id, parts }),
        1 => (at, 0..SESSIONS).prop_map(|(at, rights)| Op::Edit { at, rights }),
    ]
}

/// From now on; zero is late already.
fn deadline() -> impl Strategy<Value = Option<u64>> {
    prop::option::weighted(0.3, 0..4u64)
}
