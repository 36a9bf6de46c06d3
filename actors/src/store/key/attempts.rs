//! Wrong passphrases: each is in the audit file, and after the third within five minutes the next one has to wait. Whoever
//! has the key file can guess elsewhere without end; this is about guessing here, and about knowing of it. A delay is all
//! there is: nobody can lock the owner out.

use std::{path::Path, time::Duration};

use interlock_bus::{
    envelope::now_ns,
    keys::{
        Audit,
        audit::{Act, Entry, Outcome},
    },
};

/// What the entries say was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// The data key was asked for.
    DataKey,
    /// A backup was.
    Backup,
}

impl Guess {
    fn action(self) -> &'static str {
        match self {
            Self::DataKey => "unlock",
            Self::Backup => "unlock-backup",
        }
    }
}

/// How long a wrong one counts.
const WINDOW_MS: u64 = 5 * 60 * 1000;
/// How many are free.
const FREE: u32 = 3;
/// What the fourth waits; each further one twice as long, at most [`DELAY_MAX`].
const DELAY: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// The wrong passphrases of the last minutes in one key store, of all processes.
#[derive(Clone, Debug)]
pub struct Attempts {
    audit: Audit,
    guess: Guess,
    wrong: u32,
}

impl Attempts {
    /// Those of the key store in the directory `keys`; none if there is no such directory.
    pub fn of(keys: &Path, guess: Guess) -> Self {
        Self::at(keys, guess, now_ns() / 1_000_000)
    }

    fn at(keys: &Path, guess: Guess, now_ms: u64) -> Self {
        let audit = Audit::of(keys);
        // Without a file that can be read there is nothing to count.
        let wrong = audit.last().map_or(0, |entries| count(&entries, guess, now_ms));
        Self { audit, guess, wrong }
    }

    /// How long the next one waits.
    pub fn delay(&self) -> Duration {
        match self.wrong.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(more) => DELAY.saturating_mul(1 << more.min(16)).min(DELAY_MAX),
        }
    }

    /// Notes a wrong one.
    pub fn failed(&self) {
        let waits = Self { wrong: self.wrong + 1, ..self.clone() }.delay();
        let why = format!("wrong passphrase; the next one waits {} s", waits.as_secs());
        self.note(Outcome::Failed(why));
    }

    /// Notes the right one, if there were wrong ones: they count no more.
    pub fn succeeded(&self) {
        if self.wrong > 0 {
            self.note(Outcome::Done);
        }
    }

    fn note(&self, outcome: Outcome) {
        if let Err(error) = self.audit.note(Act::new(self.guess.action()), outcome) {
            tracing::warn!(%error, "a passphrase is not in the audit file");
        }
    }
}

/// Those since the last right one that are young enough. A clock that was set back forgets them.
fn count(entries: &[Entry], guess: Guess, now_ms: u64) -> u32 {
    let unlocks = entries.iter().rev().filter(|entry| entry.act.action == guess.action());
    let wrong = unlocks.take_while(|entry| matches!(entry.outcome, Outcome::Failed(_)));
    let young = wrong.filter(|entry| (now_ms.saturating_sub(WINDOW_MS)..=now_ms).contains(&entry.at_ms));
    u32::try_from(young.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_ms() -> u64 {
        now_ns() / 1_000_000
    }

    #[test]
    fn the_fourth_wrong_passphrase_waits_and_each_further_one_longer_but_never_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let mut delays = Vec::new();
        for _ in 0..10 {
            let attempts = Attempts::at(directory.path(), Guess::DataKey, now_ms());
            delays.push(attempts.delay().as_secs());
            attempts.failed();
        }
        assert_eq!(delays, [0, 0, 0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(Attempts::of(directory.path(), Guess::Backup).delay(), Duration::ZERO);
        // Five minutes later, with a clock that was set back, or after the right one they count no more.
        assert_eq!(
            Attempts::at(directory.path(), Guess::DataKey, now_ms() + WINDOW_MS + 1000).delay(),
            Duration::ZERO
        );
        assert_eq!(Attempts::at(directory.path(), Guess::DataKey, now_ms() - 60_000).delay(), Duration::ZERO);
        Attempts::at(directory.path(), Guess::DataKey, now_ms()).succeeded();
        assert_eq!(Attempts::at(directory.path(), Guess::DataKey, now_ms()).delay(), Duration::ZERO);
    }
}
