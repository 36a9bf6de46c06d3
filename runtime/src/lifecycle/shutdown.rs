//! A shutdown while it runs: why, in which phase, until when; for `interlock status` and whoever else asks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::supervisor::ShutdownPhases;

/// What a shutdown does at present.
///
/// | phase | takes nothing new | works on what is in hand | ends with |
/// |---|---|---|---|
/// | `Drain` | yes | yes | all ended, or `shutdown.drain` |
/// | `Forced` | yes | no: what is left is killed | all ended, or `shutdown.forced` |
/// | `Cleanup` | yes | no: what is left is reported | the process, by the watchdog at the latest |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownPhase {
    /// Work in hand is finished.
    Drain,
    /// What has not ended is killed.
    Forced,
    /// What is still pending is reported.
    Cleanup,
}

impl ShutdownPhase {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Forced => "forced",
            Self::Cleanup => "cleanup",
        }
    }
}

/// A shutdown as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownStatus {
    /// What asked for it.
    pub because: String,
    /// Its phase.
    pub phase: ShutdownPhase,
    /// Milliseconds since it began.
    pub since_ms: u64,
    /// Milliseconds until the phase ends at the latest.
    pub phase_left_ms: u64,
    /// Milliseconds until the process is ended whatever happens.
    pub left_ms: u64,
}

/// The shutdown of this process, `None` in it until one begins. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<Mutex<Option<Begun>>>);

#[derive(Clone, Debug)]
struct Begun {
    because: String,
    at: Instant,
    phases: ShutdownPhases,
    slack: Duration,
}

impl Shutdown {
    /// It begins, or becomes shorter.
    pub fn begin(&self, because: String, at: Instant, phases: ShutdownPhases, slack: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Begun { because, at, phases, slack });
    }

    /// What it does at `now`.
    pub fn status(&self, now: Instant) -> Option<ShutdownStatus> {
        // No code that can panic runs under this lock.
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let since = now.saturating_duration_since(begun.at);
        let ShutdownPhases { drain, forced } = begun.phases;
        let end = forced + begun.slack;
        let (phase, until) = match since {
            _ if since < drain => (ShutdownPhase::Drain, drain),
            _ if since < forced => (ShutdownPhase::Forced, forced),
            _ => (ShutdownPhase::Cleanup, end),
        };
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Some(ShutdownStatus {
            because: begun.because,
            phase,
            since_ms: ms(since),
            phase_left_ms: ms(until.saturating_sub(since)),
            left_ms: ms(end.saturating_sub(since)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_tells_its_phase_and_what_is_left_of_it() {
        let shutdown = Shutdown::default();
        let begin = Instant::now();
        assert_eq!(shutdown.status(begin), None);
        let second = Duration::from_secs(1);
        let phases = ShutdownPhases { drain: second * 60, forced: second * 120 };
        shutdown.begin("SIGTERM".to_owned(), begin, phases, second * 5);
        let at = |seconds: u32| {
            let status = shutdown.status(begin + second * seconds).unwrap();
            (status.phase, status.phase_left_ms / 1000, status.left_ms / 1000)
        };
        assert_eq!(at(10), (ShutdownPhase::Drain, 50, 115));
        assert_eq!(at(60), (ShutdownPhase::Forced, 60, 65));
        assert_eq!(at(121), (ShutdownPhase::Cleanup, 4, 4));
        assert_eq!(at(500), (ShutdownPhase::Cleanup, 0, 0));
    }
}
