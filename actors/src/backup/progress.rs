//! How far a backup or a restore is. Percent come from bytes, never fall, and are 100 only when all is durable.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{error::BackupError, limits};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Looking at what there is, deriving the key.
    Init,
    /// The databases are copied, encrypted, as they are at this moment; then checked.
    Snapshot,
    /// Everything is sealed into the new file.
    Encrypting,
    /// The file is read and opened, whole.
    Verifying,
    /// What was in it is checked and brought under the data key.
    Preparing,
    /// It takes its place.
    Finalizing,
    /// It is there, and durable.
    Done,
    /// It failed.
    Error,
}

impl Phase {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Snapshot => "snapshot",
            Self::Encrypting => "encrypting",
            Self::Verifying => "verifying",
            Self::Preparing => "preparing",
            Self::Finalizing => "finalizing",
            Self::Done => "done",
            Self::Error => "error",
        }
    }
}

/// One word about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of this phase that are done.
    pub bytes: u64,
    /// Bytes of this phase in all, as far as known.
    pub bytes_total: u64,
    /// Of everything.
    pub percent: u8,
}

/// Which percent each phase begins with; each ends where the next one begins.
type Shares = &'static [(Phase, u8)];

pub(super) const OF_CREATE: Shares = &[
    (Phase::Init, 0),
    (Phase::Snapshot, 1),
    (Phase::Encrypting, 60),
    (Phase::Verifying, 80),
    (Phase::Finalizing, 98),
];
pub(super) const OF_VERIFY: Shares = &[(Phase::Init, 0), (Phase::Verifying, 1), (Phase::Finalizing, 99)];
pub(super) const OF_RESTORE: Shares =
    &[(Phase::Init, 0), (Phase::Verifying, 1), (Phase::Preparing, 30), (Phase::Finalizing, 97)];

/// Who is told, and who may stop it.
pub struct Watcher<'a> {
    /// Told of each word.
    pub tell: &'a mut dyn FnMut(Progress),
    /// Set by whoever wants it to stop; it ends as a failure would, and leaves nothing behind.
    pub cancel: &'a AtomicBool,
}

impl std::fmt::Debug for Watcher<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Watcher")
    }
}

/// Keeps what is told honest.
pub(super) struct Teller<'a, 'b> {
    watcher: &'a mut Watcher<'b>,
    shares: Shares,
    last: Progress,
    told: Option<Instant>,
}

impl<'a, 'b> Teller<'a, 'b> {
    pub(super) fn new(watcher: &'a mut Watcher<'b>, shares: Shares) -> Self {
        let last = Progress { phase: Phase::Init, bytes: 0, bytes_total: 0, percent: 0 };
        let mut teller = Self { watcher, shares, last, told: None };
        teller.say(last);
        teller
    }

    /// Says that `bytes` of `bytes_total` of this phase are done, at a bearable rate.
    pub(super) fn at(&mut self, phase: Phase, bytes: u64, bytes_total: u64) -> Result<(), BackupError> {
        self.check()?;
        let place = self.shares.iter().position(|(known, _)| *known == phase);
        let begin = place.map_or(self.last.percent, |place| self.shares[place].1);
        let end = place.and_then(|place| self.shares.get(place + 1)).map_or(99, |(_, begin)| *begin);
        let share = u64::from(end.saturating_sub(begin));
        let inside = (share * bytes.min(bytes_total)).checked_div(bytes_total).unwrap_or(0) as u8;
        let percent = (begin + inside).max(self.last.percent).min(99);
        let now = Progress { phase, bytes, bytes_total, percent };
        let is_due = self.told.is_none_or(|told| told.elapsed() >= limits::TELL_EVERY);
        if is_due || phase != self.last.phase || (bytes == bytes_total && now != self.last) {
            self.say(now);
        }
        Ok(())
    }

    /// Whether it is to stop.
    pub(super) fn check(&self) -> Result<(), BackupError> {
        if self.watcher.cancel.load(Ordering::Relaxed) { Err(BackupError::Cancelled) } else { Ok(()) }
    }

    /// The end, good or bad.
    pub(super) fn end<T>(mut self, outcome: Result<T, BackupError>) -> Result<T, BackupError> {
        let last = self.last;
        self.say(match outcome {
            Ok(_) => Progress { phase: Phase::Done, percent: 100, ..last },
            Err(_) => Progress { phase: Phase::Error, ..last },
        });
        outcome
    }

    fn say(&mut self, now: Progress) {
        (self.last, self.told) = (now, Some(Instant::now()));
        (self.watcher.tell)(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_never_fall_and_are_a_hundred_only_at_the_end() {
        let mut told = Vec::new();
        let cancel = AtomicBool::new(false);
        let mut tell = |progress| told.push(progress);
        let mut watcher = Watcher { tell: &mut tell, cancel: &cancel };
        let mut teller = Teller::new(&mut watcher, OF_CREATE);
        for (phase, _) in OF_CREATE {
            // What was estimated can be less than what comes.
            for bytes in [0, 50, 100, 400, 100] {
                teller.at(*phase, bytes, 100).unwrap();
            }
            teller.at(*phase, 0, 0).unwrap();
        }
        teller.end(Ok(())).unwrap();
        assert!(told.windows(2).all(|pair| pair[0].percent <= pair[1].percent), "{told:?}");
        assert!(told.windows(2).all(|pair| pair[0].phase <= pair[1].phase), "{told:?}");
        assert_eq!(told.iter().filter(|progress| progress.percent == 100).count(), 1);
        assert_eq!(told.last().map(|last| last.phase), Some(Phase::Done));
    }

    #[test]
    fn one_that_is_cancelled_ends_as_an_error_below_a_hundred() {
        let mut told = Vec::new();
        let cancel = AtomicBool::new(true);
        let mut tell = |progress| told.push(progress);
        let mut watcher = Watcher { tell: &mut tell, cancel: &cancel };
        let mut teller = Teller::new(&mut watcher, OF_VERIFY);
        let outcome = teller.at(Phase::Verifying, 1, 2);
        assert!(matches!(teller.end(outcome), Err(BackupError::Cancelled)));
        assert!(matches!(told.last(), Some(Progress { phase: Phase::Error, percent: 0, .. })));
    }
}
