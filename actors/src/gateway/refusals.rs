//! Who was refused at the gateway, for the audit file. Strangers cause these entries, so they are few however many come: what
//! is the same is one entry with a count, and what is too much of a kind is counted together.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use interlock_bus::keys::{
    Audit, KeyError,
    audit::{Act, Outcome},
};

/// How long what is the same is counted before it is written: the first of a kind is written at once.
const WINDOW: Duration = Duration::from_secs(10);

/// Different ones of one window. Each is a line on the disk; further ones are counted together.
const DISTINCT_MAX: usize = 16;

/// One kind of refusal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    code: String,
    bearer: Option<String>,
    address: Option<IpAddr>,
}

/// Those that are not written yet.
#[derive(Debug, Default)]
struct Waiting {
    each: BTreeMap<Kind, u64>,
    others: u64,
    next: Option<Instant>,
}

/// Takes refusals, and says what is to be written.
#[derive(Debug)]
pub(super) struct Refusals {
    audit: Audit,
    waiting: Mutex<Waiting>,
}

impl Refusals {
    /// For this audit file.
    pub(super) fn new(audit: Audit) -> Self {
        Self { audit, waiting: Mutex::default() }
    }

    /// Somebody was refused for this reason.
    pub(super) fn note(&self, code: &str, bearer: Option<&str>, address: Option<IpAddr>) {
        let kind = Kind { code: code.to_owned(), bearer: bearer.map(str::to_owned), address };
        let mut waiting = self.waiting();
        if waiting.each.contains_key(&kind) || waiting.each.len() < DISTINCT_MAX {
            *waiting.each.entry(kind).or_default() += 1;
        } else {
            waiting.others += 1;
        }
    }

    /// What is to be written now; everything there is if `last`.
    fn due(&self, now: Instant, last: bool) -> Vec<(Act, Outcome)> {
        let mut waiting = self.waiting();
        if waiting.each.is_empty() || (!last && waiting.next.is_some_and(|next| now < next)) {
            return Vec::new();
        }
        waiting.next = Some(now + WINDOW);
        let others = std::mem::take(&mut waiting.others);
        let mut due: Vec<(Act, Outcome)> = std::mem::take(&mut waiting.each)
            .into_iter()
            .map(|(Kind { code, bearer, address }, count)| {
                let from = address.map_or("somewhere".to_owned(), |address| address.to_string());
                let of = bearer.map(|bearer| format!(", token `{bearer}`")).unwrap_or_default();
                let act = Act::new("gateway-refusal").with(format!("from {from}{of}, {count} times"));
                (act, Outcome::Failed(code))
            })
            .collect();
        if others > 0 {
            let act = Act::new("gateway-refusal").with(format!("{others} more, of other kinds"));
            due.push((act, Outcome::Failed("various".to_owned())));
        }
        due
    }

    /// Writes what is due. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(super) fn write(&self, last: bool) -> Result<(), KeyError> {
        self.due(Instant::now(), last)
            .into_iter()
            .try_for_each(|(act, outcome)| self.audit.note(act, outcome))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_few_lines_that_count_them_all() {
        let directory = tempfile::tempdir().unwrap();
        let refusals = Refusals::new(Audit::of(directory.path()));
        let start = Instant::now();
        refusals.note("unauthorized", None, Some([10, 0, 0, 1].into()));
        assert_eq!(refusals.due(start, false).len(), 1);
        for round in 0..1000 {
            refusals.note("unauthorized", None, Some([10, 0, 0, (round % 100) as u8].into()));
            refusals.note("forbidden", Some("ada"), Some([10, 0, 0, 1].into()));
        }
        assert!(refusals.due(start + WINDOW / 2, false).is_empty());
        let due = refusals.due(start + WINDOW, false);
        assert_eq!(due.len(), DISTINCT_MAX + 1);
        let count = |act: &Act| -> u64 {
            let detail = act.detail.as_deref().unwrap();
            let number = |text: &str| text.split(' ').next().unwrap().parse().ok();
            number(detail).or_else(|| number(detail.rsplit(", ").next().unwrap())).unwrap()
        };
        assert_eq!(due.iter().map(|(act, _)| count(act)).sum::<u64>(), 2000);
        assert!(
            due.iter()
                .any(|(act, _)| act.detail.as_deref() == Some("from 10.0.0.1, token `ada`, 1000 times"))
        );
        refusals.note("forbidden", None, None);
        assert_eq!(refusals.due(start + WINDOW, true).len(), 1);
        assert!(refusals.due(start + WINDOW * 9, true).is_empty());
    }
}
