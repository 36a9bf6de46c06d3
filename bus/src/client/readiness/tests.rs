//! Gate and buffer as values: no thread, no broker, no clock.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::{
    Proof,
    buffer::{Buffer, GateOverflow},
    continuity::{Continuity, Verdict},
    gate::{Fact, Gate, Need, Phase, Step},
    receivers::Change,
    report::NeedState,
};
use crate::envelope::{Header, Message, Payload};

fn change(value: serde_json::Value) -> Fact {
    Fact::Told(serde_json::from_value::<Change>(value).unwrap())
}

fn receiver(peer: &str, session: u32, overflow: &str, probes: bool) -> serde_json::Value {
    json!({
        "peer": peer, "session": session.to_string(), "subscription": 1, "group": null,
        "overflow": overflow, "probes": probes,
    })
}

fn all(receivers: &[serde_json::Value]) -> Fact {
    change(json!({ "subscribers": receivers }))
}

fn gate(needs: &[(&str, Proof)]) -> Gate {
    Gate::new(needs.iter().map(|(peer, proof)| Need { peer: peer.parse().unwrap(), proof: *proof }).collect())
}

fn needs_a_and_b() -> Gate {
    gate(&[("a", Proof::Proven), ("b", Proof::Proven)])
}

fn round(step: Step) -> u64 {
    match step {
        Step::Probe(round) => round.number,
        other => panic!("{other:?} is no round of probes"),
    }
}

fn open(gate: &mut Gate) {
    gate.learn(Fact::LinkReady);
    let round = round(
        gate.learn(all(&[receiver("a", 1, "drop_newest", true), receiver("b", 2, "drop_newest", true)])),
    );
    assert_eq!(gate.learn(Fact::Proven { round, dropped: vec![0, 0] }), Step::Open);
}

#[test]
fn a_gate_opens_only_after_every_step_is_proven_for_each_consumer() {
    let mut gate = needs_a_and_b();
    let early = all(&[receiver("a", 1, "drop_newest", true), receiver("b", 2, "drop_newest", true)]);
    assert_eq!(gate.learn(early), Step::Stay, "without a link nothing is told");
    assert_eq!(gate.learn(Fact::LinkReady), Step::Ask);
    assert_eq!(gate.learn(all(&[])), Step::Hold);
    assert_eq!(gate.learn(change(json!({ "connected": ["a"] }))), Step::Hold);
    let states = |gate: &Gate| gate.needs().into_iter().map(|need| need.state).collect::<Vec<_>>();
    assert_eq!(states(&gate), [NeedState::Connected, NeedState::Absent]);
    gate.learn(change(json!({ "joined": [receiver("a", 1, "drop_newest", true)] })));
    assert_eq!(states(&gate), [NeedState::Subscribed, NeedState::Absent]);
    let joined = change(json!({ "joined": [receiver("b", 2, "drop_newest", true)] }));
    let number = round(gate.learn(joined));
    assert!(!gate.is_open());
    assert_eq!(
        gate.learn(Fact::Proven { round: number - 1, dropped: vec![0, 0] }),
        Step::Stay,
        "a stale round"
    );
    assert_eq!(gate.learn(Fact::Proven { round: number, dropped: vec![0, 0] }), Step::Open);
    assert_eq!(states(&gate), [NeedState::Proven, NeedState::Proven]);
}

#[test]
fn an_open_gate_closes_when_a_consumer_or_the_link_is_lost() {
    let b = receiver("b", 2, "drop_newest", true);
    let b_again = receiver("b", 3, "drop_newest", true);
    let watcher = receiver("watcher", 9, "drop_newest", true);
    let mut gate = needs_a_and_b();
    open(&mut gate);
    assert_eq!(gate.learn(change(json!({ "joined": [watcher] }))), Step::Stay, "others do not matter");
    assert_eq!(gate.learn(change(json!({ "left": [b] }))), Step::Hold);
    assert!(matches!(gate.learn(change(json!({ "joined": [b_again] }))), Step::Probe(_)));
    assert!(!gate.is_open());

    let mut gate = needs_a_and_b();
    open(&mut gate);
    let replaced = change(json!({ "left": [b], "joined": [b_again] }));
    assert!(matches!(gate.learn(replaced), Step::Probe(_)), "another session must be proven anew");

    let mut gate = needs_a_and_b();
    open(&mut gate);
    assert_eq!(gate.learn(Fact::LinkLost), Step::Hold);
    assert_eq!(*gate.phase(), Phase::NoLink);
}

#[test]
fn a_probe_that_is_lost_is_sent_again_only_to_who_is_still_there() {
    let mut gate = needs_a_and_b();
    open(&mut gate);
    let number = gate.probe_again().number;
    let lost = Fact::ProbeLost { round: number, session: "2".to_owned(), gone: false };
    let number = round(gate.learn(lost));
    assert_eq!(
        gate.learn(Fact::ProbeLost { round: number, session: "2".to_owned(), gone: true }),
        Step::Hold
    );
    assert_eq!(*gate.phase(), Phase::Waiting);
}

#[test]
fn messages_dropped_for_a_consumer_are_sent_again_unless_it_chose_to_lose_them() {
    for (overflow, proven_again) in [
        ("drop_newest", true),
        ("disconnect", true),
        ("wait", true),
        ("latest_only", false),
        ("drop_oldest", false),
    ] {
        let mut gate = gate(&[("a", Proof::Proven)]);
        gate.learn(Fact::LinkReady);
        let number = round(gate.learn(all(&[receiver("a", 1, overflow, true)])));
        gate.learn(Fact::Proven { round: number, dropped: vec![7] });
        let number = gate.probe_again().number;
        assert_eq!(gate.learn(Fact::Proven { round: number, dropped: vec![7] }), Step::Confirm);
        let number = gate.probe_again().number;
        let step = gate.learn(Fact::Proven { round: number, dropped: vec![8] });
        assert_eq!(matches!(step, Step::Probe(_)), proven_again, "{overflow}: {step:?}");
    }
}

#[test]
fn a_stock_socket_is_enough_only_for_those_who_say_so() {
    let stock = || all(&[receiver("a", 1, "drop_newest", false)]);
    let mut strict = gate(&[("a", Proof::Proven)]);
    strict.learn(Fact::LinkReady);
    assert_eq!(strict.learn(stock()), Step::Hold);
    assert_eq!(strict.needs()[0].state, NeedState::AnswersNoProbes);
    let mut lenient = gate(&[("a", Proof::Subscribed)]);
    lenient.learn(Fact::LinkReady);
    assert!(matches!(lenient.learn(stock()), Step::Probe(_)));
}

#[test]
fn a_refused_gate_asks_again_when_somebody_publishes() {
    let mut gate = needs_a_and_b();
    open(&mut gate);
    assert_eq!(gate.learn(Fact::AskAgain), Step::Stay);
    assert_eq!(gate.learn(Fact::Refused { reason: "no".to_owned() }), Step::Hold);
    assert_eq!(gate.learn(all(&[])), Step::Stay);
    assert_eq!(gate.learn(Fact::AskAgain), Step::Ask);
}

fn buffer(messages_max: usize, overflow: GateOverflow) -> Buffer {
    Buffer::new(Uuid::nil(), messages_max, 1 << 20, overflow, 1)
}

#[test]
fn a_full_buffer_gives_the_payload_back_or_drops_the_oldest_and_counts() {
    let mut refusing = buffer(2, GateOverflow::Refuse);
    let mut dropping = buffer(2, GateOverflow::DropOldest);
    for text in ["a", "b"] {
        refusing.accept(Header::new(), Payload::text(text)).unwrap();
        dropping.accept(Header::new(), Payload::text(text)).unwrap();
    }
    assert_eq!(refusing.accept(Header::new(), Payload::text("c")), Err(Payload::text("c")));
    assert_eq!(refusing.counts().refused, 1);
    assert_eq!(dropping.accept(Header::new(), Payload::text("c")).unwrap().1, 3);
    assert_eq!((dropping.counts().dropped, dropping.counts().buffered), (1, 2));
    assert_eq!(dropping.next().unwrap().header.stream.unwrap().previous, 0, "1 will not come");
}

proptest! {
    /// A link and a consumer that lose what they like: what is accepted arrives once and in order, and everything
    /// else is counted.
    #[test]
    fn whatever_is_lost_on_the_way_each_message_is_taken_once_and_in_order_or_counted(
        steps in prop::collection::vec((0..6u8, any::<bool>()), 1..200),
        messages_max in 1..8usize,
        drops_oldest in any::<bool>(),
    ) {
        let overflow = if drops_oldest { GateOverflow::DropOldest } else { GateOverflow::Refuse };
        let mut buffer = buffer(messages_max, overflow);
        let mut continuity = Continuity::default();
        let (mut accepted, mut taken, mut missing) = (Vec::new(), Vec::new(), 0);
        // Whether everything sent since the last rewind has arrived.
        let mut is_whole = true;
        let mut deliver = |buffer: &mut Buffer, arrives: bool| {
            let Some(entry) = buffer.next() else { return true };
            buffer.mark_sent(entry.sequence);
            let message = Message {
                topic: "a".parse().unwrap(),
                origin: "p".parse().unwrap(),
                sequence: 0,
                header: entry.header,
                payload: entry.payload.bytes,
                retained: false,
            };
            if arrives && let Verdict::Fresh { missing: gone } = continuity.judge(&message) {
                missing += gone;
                taken.push(entry.sequence);
            }
            arrives
        };
        for (kind, flag) in steps {
            match kind {
                0..3 => {
                    if let Ok((_, sequence)) = buffer.accept(Header::new(), Payload::text("x")) {
                        accepted.push(sequence);
                    }
                }
                3 => is_whole &= deliver(&mut buffer, flag),
                4 if is_whole => {
                    if let Some(through) = buffer.sent_through() {
                        buffer.confirm(through);
                    }
                }
                _ => {
                    buffer.rewind();
                    is_whole = true;
                }
            }
            let counts = buffer.counts();
            prop_assert_eq!(counts.accepted, counts.flushed + counts.dropped + counts.buffered as u64);
        }
        buffer.rewind();
        while !buffer.is_empty() {
            while buffer.next().is_some() {
                deliver(&mut buffer, true);
            }
            let through = buffer.sent_through().unwrap();
            buffer.confirm(through);
        }
        prop_assert!(taken.is_sorted_by(|one, next| one < next), "{:?}", taken);
        let lost = accepted.iter().collect::<BTreeSet<_>>().difference(&taken.iter().collect()).count() as u64;
        prop_assert!(lost <= buffer.counts().dropped);
        // What was lost before the first and behind the last one that was taken leaves no gap between two.
        prop_assert!(missing <= lost);
    }
}
