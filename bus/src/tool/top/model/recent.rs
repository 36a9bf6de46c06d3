//! What was lost and refused within the last minute: the difference of totals.

use std::collections::{BTreeMap, VecDeque};

use super::super::picture::Picture;

/// The window, in milliseconds of the broker's clock.
const WINDOW_MS: u64 = 60_000;
/// Looks remembered. More, at short intervals, would say nothing more: every other one is left out.
const LOOKS_MAX: usize = 128;

/// Totals of the last minute's looks.
#[derive(Debug, Default)]
pub(in crate::tool::top) struct Recent {
    epoch: String,
    looks: VecDeque<(u64, BTreeMap<String, u64>, u64)>,
    refused: u64,
    /// Kinds of denials of the last minute: all that is known of what was before the first look.
    denials: u64,
}

impl Recent {
    pub(super) fn add(&mut self, picture: &Picture) {
        let broker = &picture.broker;
        if self.epoch != broker.epoch {
            *self = Self { epoch: broker.epoch.clone(), ..Self::default() };
        }
        // The one before the window is where the window's differences begin.
        while self.looks.len() > 1 && self.looks[1].0 + WINDOW_MS <= broker.now_ms {
            self.looks.pop_front();
        }
        if self.looks.len() >= LOOKS_MAX {
            let mut at = 0;
            self.looks.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        self.looks.push_back((broker.now_ms, broker.lost.clone(), broker.denied));
        self.refused = broker.refused_recently;
        let is_recent = |at_ms: u64| at_ms + WINDOW_MS > broker.now_ms;
        let denials =
            picture.refusals.iter().filter(|refusal| refusal.operation.is_some() && is_recent(refusal.at_ms));
        self.denials = denials.count() as u64;
    }

    /// Messages by the reason for which they were lost.
    pub(in crate::tool::top) fn lost(&self) -> BTreeMap<String, u64> {
        let (Some((_, first, _)), Some((_, last, _))) = (self.looks.front(), self.looks.back()) else {
            return BTreeMap::new();
        };
        let since = |(reason, count): (&String, &u64)| {
            let more = count.saturating_sub(first.get(reason).copied().unwrap_or_default());
            (more > 0).then(|| (reason.clone(), more))
        };
        last.iter().filter_map(since).collect()
    }

    /// Operations that were refused to peers.
    pub(in crate::tool::top) fn denied(&self) -> u64 {
        let counted = match (self.looks.front(), self.looks.back()) {
            (Some((.., first)), Some((.., last))) => last.saturating_sub(*first),
            _ => 0,
        };
        counted.max(self.denials)
    }

    /// Connections that were refused.
    pub(in crate::tool::top) fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::picture::{Broker, Refusal},
        *,
    };

    fn picture(now_ms: u64, lost: u64, denied: u64) -> Picture {
        let lost = BTreeMap::from([("slow_consumer".to_owned(), lost)]);
        let broker = Broker { epoch: "e".to_owned(), now_ms, lost, denied, ..Broker::default() };
        Picture { broker, ..Picture::default() }
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten_however_often_it_was_looked() {
        let mut recent = Recent::default();
        recent.add(&picture(1_000, 5, 1));
        assert!(recent.lost().is_empty() && recent.denied() == 0, "what was before is not of this minute");
        recent.add(&picture(2_000, 7, 4));
        assert_eq!((recent.lost().get("slow_consumer"), recent.denied()), (Some(&2), 3));
        for step in 0..1000 {
            recent.add(&picture(2_000 + 200 * step, 7, 4));
            assert!(recent.looks.len() <= LOOKS_MAX);
        }
        assert!(recent.lost().is_empty() && recent.denied() == 0);
        let mut other = picture(1, 100, 100);
        other.broker.epoch = "f".to_owned();
        recent.add(&other);
        assert_eq!(recent.denied(), 0, "another broker counts from zero");
        let operation = Some(("publish".to_owned(), "a".to_owned()));
        other.refusals = vec![Refusal { at_ms: 1, operation, ..Refusal::default() }];
        recent.add(&other);
        assert_eq!(recent.denied(), 1, "one of a moment before the first look is known by its time");
    }
}
