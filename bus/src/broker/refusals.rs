//! Connections that never became sessions, and sessions whose stream was damaged: the last ones, and how
//! many of each kind.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::limits;

/// One refused connection; the payload of `$sys/auth/refused`.
#[derive(Clone, Debug, Serialize)]
pub struct RefusalEvent {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Where it came from.
    pub address: String,
    /// Why, for programs: `wrong_server_key`, `unknown_key`, `revoked_key`, `key_expired`, `key_replaced`, `no_rights`,
    /// `not_curve`, `socket_type`, `version`, `handshake_timeout`, `malformed`, ...; of open sessions
    /// `frame_changed`, `frame_repeated`, `frame_lost`, `frame_cut`, `frame_too_large`, `frame_malformed`.
    pub code: String,
    /// Why, for people.
    pub text: String,
    /// The public key it showed, in Z85, if it came that far.
    pub key: Option<String>,
    /// The peer the key belongs to, if to any.
    pub peer: Option<String>,
}

/// The last [`limits::REFUSALS_KEPT`] refusals, and counters since the start.
#[derive(Debug, Default)]
pub struct Refusals {
    last: VecDeque<RefusalEvent>,
    counts: BTreeMap<String, u64>,
}

impl Refusals {
    /// Remembers and counts one.
    pub fn add(&mut self, event: RefusalEvent) {
        *self.counts.entry(event.code.clone()).or_default() += 1;
        if self.last.len() == limits::REFUSALS_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Those remembered, oldest first.
    pub fn last(&self) -> impl Iterator<Item = &RefusalEvent> {
        self.last.iter()
    }

    /// How many of each kind since the start.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_all_are_counted_by_kind() {
        let mut refusals = Refusals::default();
        let kinds = ["unknown_key", "not_curve"].into_iter().cycle();
        for (at_ms, code) in (0..limits::REFUSALS_KEPT as u64 + 10).zip(kinds) {
            let (address, text) = (String::new(), String::new());
            refusals.add(RefusalEvent { at_ms, address, code: code.to_owned(), text, key: None, peer: None });
        }
        let kept: Vec<u64> = refusals.last().map(|event| event.at_ms).collect();
        assert_eq!(kept, (10..1010).collect::<Vec<_>>());
        assert_eq!(refusals.counts().values().copied().collect::<Vec<_>>(), [505, 505]);
    }
}
