//! One end of a message's path: a subscription or a service, and what became of the message there. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::path::{Path, Receiver};

/// What became of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was sent: it would get it.
    WouldGo,
    /// It may not have it.
    Denied,
    /// Another subscription of the same session has the copy.
    Shared,
    /// Another member of its group was chosen, or it came too late.
    NotChosen,
    /// Taken by its application, as far as a native session says; written to the socket of a stock one.
    Delivered,
    /// In its queue, or on its way and not yet taken, with so many others of this publisher at most before it.
    Queued(u64),
    Dropped(String),
    /// Other messages of the same publisher were lost meanwhile: it was delivered, or it is one of these.
    Unclear(BTreeMap<String, u64>),
}

/// One end.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    pub(super) peer: String,
    pub(super) filter: String,
    pub(super) group: Option<String>,
    pub(super) overflow: String,
    pub(super) kind: String,
    pub(super) queued: u64,
    pub(super) rule: Value,
    pub(super) outcome: Outcome,
    /// When that was known, since the publish: it was so by then.
    pub(super) at: Option<Duration>,
    session: String,
    subscription: u64,
    pub(super) is_server: bool,
}

impl Hop {
    fn new(receiver: &Receiver, outcome: Outcome) -> Self {
        Self {
            peer: receiver.peer.clone(),
            filter: receiver.filter.clone(),
            group: receiver.group.clone(),
            overflow: receiver.overflow.clone(),
            kind: receiver.kind.clone(),
            queued: receiver.queued,
            rule: receiver.rule.clone(),
            outcome,
            at: None,
            session: receiver.session.clone(),
            subscription: receiver.subscription,
            is_server: receiver.is_server,
        }
    }

    /// What would become of a message.
    pub(super) fn would_go(receiver: &Receiver) -> Self {
        let outcome = match receiver {
            Receiver { permitted: false, .. } => Outcome::Denied,
            Receiver { has_queue: false, .. } => Outcome::Shared,
            _ => Outcome::WouldGo,
        };
        Self::new(receiver, outcome)
    }

    /// What has become of the message with everybody who was there at either look: who took it may have left since.
    pub(super) fn judge_all(before: &Path, after: &Path, is_request: bool) -> Vec<Self> {
        let is_still_there = |receiver: &&Receiver| {
            let key = |receiver: &Receiver| (receiver.session.clone(), receiver.subscription);
            after.receivers(is_request).any(|other| key(other) == key(receiver))
        };
        let gone = before.receivers(is_request).filter(|receiver| !is_still_there(receiver));
        after.receivers(is_request).chain(gone).map(|receiver| Self::judge(receiver, before, after)).collect()
    }

    /// What has become of the message between two looks. Rows of the ledger are by peer: of several subscriptions of one,
    /// each says what became of all its copies.
    pub(super) fn judge(receiver: &Receiver, before: &Path, after: &Path) -> Self {
        let (before, after) = (before.row(&receiver.peer), after.row(&receiver.peer));
        let since = after.since(&before);
        let outcome = match receiver {
            Receiver { permitted: false, .. } => Outcome::Denied,
            Receiver { has_queue: false, .. } => Outcome::Shared,
            _ if since.published == 0 => Outcome::NotChosen,
            // The copy of another session of this peer waits, not this one's.
            _ if receiver.queued == 0 && since.queued > 0 && since.dropped.is_empty() => Outcome::Delivered,
            _ if since.queued > 0 => Outcome::Queued(since.queued - 1),
            _ if since.dropped.is_empty() => Outcome::Delivered,
            // Everything that came was lost, and nothing that was there before.
            _ if since.delivered == 0 && before.queued == 0 && since.dropped.len() == 1 => {
                Outcome::Dropped(since.dropped.keys().next().cloned().unwrap_or_default())
            }
            _ => Outcome::Unclear(since.dropped),
        };
        Self::new(receiver, outcome)
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.outcome, Outcome::Queued(_))
    }

    /// The hops of a look, with the time at which each was settled first.
    pub(super) fn keep_times(fresh: Vec<Self>, known: &[Self], at: Duration) -> Vec<Self> {
        let timed = fresh.into_iter().map(|mut hop| {
            let is_same = |known: &&Self| {
                (&known.session, known.subscription, &known.outcome)
                    == (&hop.session, hop.subscription, &hop.outcome)
            };
            let is_timed =
                matches!(hop.outcome, Outcome::Delivered | Outcome::Dropped(_) | Outcome::Unclear(_));
            let known_at = known.iter().find(is_same).and_then(|known| known.at);
            hop.at = is_timed.then(|| known_at.unwrap_or(at));
            hop
        });
        timed.collect()
    }

    /// Whether the message is lost here, or was not permitted.
    pub(super) fn is_bad(&self) -> bool {
        matches!(self.outcome, Outcome::Denied | Outcome::Dropped(_) | Outcome::Unclear(_))
    }

    /// A word for programs, and a sentence for people.
    pub(super) fn words(&self) -> (&'static str, String) {
        match &self.outcome {
            Outcome::WouldGo if self.is_server => ("would_go", "may be asked".to_owned()),
            Outcome::WouldGo => ("would_go", format!("would get it; {} queued before it", self.queued)),
            Outcome::Denied => ("denied", "DENIED: it may not have it".to_owned()),
            Outcome::Shared => {
                ("shared", "shares the copy of another subscription of its session".to_owned())
            }
            Outcome::NotChosen if self.group.is_some() => {
                ("not_chosen", "another member of its group got it".to_owned())
            }
            Outcome::NotChosen if self.is_server => ("not_chosen", "another server was asked".to_owned()),
            Outcome::NotChosen => ("not_reached", "it came after the message".to_owned()),
            Outcome::Delivered if self.kind.starts_with("stock") => {
                ("delivered", "written to its socket; a stock client does not say more".to_owned())
            }
            Outcome::Delivered if self.is_server => ("delivered", "was asked".to_owned()),
            Outcome::Delivered => ("delivered", "delivered".to_owned()),
            Outcome::Queued(0) => ("queued", "QUEUED: it has not taken it yet".to_owned()),
            Outcome::Queued(before) => {
                ("queued", format!("QUEUED behind up to {before} others of this publisher"))
            }
            Outcome::Dropped(reason) => ("dropped", format!("DROPPED ({reason})")),
            Outcome::Unclear(dropped) => {
                let dropped: Vec<String> =
                    dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
                let text = format!(
                    "delivered, or among others of this publisher that were lost: {}",
                    dropped.join(", ")
                );
                ("unclear", text)
            }
        }
    }

    pub(super) fn as_json(&self) -> Value {
        let (outcome, text) = self.words();
        json!({
            "hop": if self.is_server { "server" } else { "subscriber" }, "peer": self.peer, "filter": self.filter,
            "group": self.group, "overflow": self.overflow, "session_kind": self.kind, "outcome": outcome, "text": text,
            "at_us": self.at.map(|at| at.as_micros() as u64), "queued": self.queued, "rule": self.rule,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(delivered: u64, queued: u64, dropped: u64) -> Path {
        Path::read(&json!({
            "ledger": [{
                "subscriber": "ui", "published": delivered + queued + dropped, "delivered": delivered, "queued": queued,
                "dropped": if dropped > 0 { json!({ "slow_consumer": dropped }) } else { json!({}) },
            }],
        }))
    }

    fn outcome_of(queued: u64, before: &Path, after: &Path) -> Outcome {
        let peer = "ui".to_owned();
        let receiver = Receiver { peer, permitted: true, has_queue: true, queued, ..Receiver::default() };
        Hop::judge(&receiver, before, after).outcome
    }

    fn outcome(before: &Path, after: &Path) -> Outcome {
        outcome_of(9, before, after)
    }

    #[test]
    fn what_the_ledger_proves_is_said_and_what_it_does_not_is_not() {
        let dropped = || BTreeMap::from([("slow_consumer".to_owned(), 1)]);
        assert_eq!(outcome(&path(5, 0, 2), &path(6, 0, 2)), Outcome::Delivered);
        assert_eq!(outcome(&path(5, 0, 2), &path(5, 0, 3)), Outcome::Dropped("slow_consumer".to_owned()));
        assert_eq!(outcome(&path(5, 3, 0), &path(5, 4, 0)), Outcome::Queued(3));
        assert_eq!(outcome(&path(5, 3, 0), &path(9, 0, 0)), Outcome::Delivered);
        assert_eq!(
            outcome_of(0, &path(5, 0, 0), &path(6, 1, 0)),
            Outcome::Delivered,
            "the other session's waits"
        );
        assert_eq!(outcome(&path(5, 3, 0), &path(8, 0, 1)), Outcome::Unclear(dropped()));
        assert_eq!(
            outcome(&path(5, 0, 0), &path(6, 0, 1)),
            Outcome::Unclear(dropped()),
            "somebody else as this peer"
        );
        assert_eq!(outcome(&path(5, 0, 0), &path(5, 0, 0)), Outcome::NotChosen);
        assert_eq!(outcome(&Path::default(), &path(7, 0, 0)), Outcome::Delivered, "all of them were");
    }

    #[test]
    fn who_took_it_and_left_is_shown() {
        let there = json!([{ "peer": "ui", "session": "1.0", "subscription": 1, "permitted": true, "has_queue": true }]);
        let ledger = json!([{ "subscriber": "ui", "published": 1, "delivered": 1 }]);
        let (before, after) = (json!({ "subscribers": there }), json!({ "ledger": ledger }));
        let hops = Hop::judge_all(&Path::read(&before), &Path::read(&after), false);
        let both = json!({ "subscribers": there, "ledger": ledger });
        assert_eq!((hops.len(), &hops[0].outcome), (1, &Outcome::Delivered));
        assert_eq!(Hop::judge_all(&Path::read(&before), &Path::read(&both), false).len(), 1, "once");
    }

    #[test]
    fn the_time_is_that_of_the_first_look_at_which_it_was_so() {
        let receiver = Receiver {
            peer: "ui".to_owned(),
            permitted: true,
            has_queue: true,
            queued: 1,
            ..Receiver::default()
        };
        let look = |after: &Path, known: &[Hop], ms| {
            let hop = Hop::judge(&receiver, &path(0, 0, 0), after);
            Hop::keep_times(vec![hop], known, Duration::from_millis(ms))
        };
        let queued = look(&path(0, 1, 0), &[], 1);
        assert_eq!(queued[0].at, None);
        let delivered = look(&path(1, 0, 0), &queued, 2);
        let later = look(&path(1, 0, 0), &delivered, 9);
        assert_eq!(later[0].at, Some(Duration::from_millis(2)));
    }
}
