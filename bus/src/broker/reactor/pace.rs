//! Whether to look again or to sleep, when nothing is there to do. Pure.
//!
//! To be woken costs the processor 5 to 50 us, part of it in the process that sends. Where the next event
//! comes sooner than that, looking again is faster and no dearer; where it does not, it only burns. So the
//! thread goes by how long it had to wait lately.

use std::time::Duration;

/// The longest that is looked again, and the longest usual wait at which that is done at all: about
/// the time of two hops with a sleeper in each, so that two peers who ask and answer get there.
pub(super) const LOOK_MAX: Duration = Duration::from_micros(80);
/// A longer wait counts as this one, so that what happens after silence is learnt within a few events.
const WAIT_COUNTED_MAX: Duration = Duration::from_millis(1);

/// How long events let themselves be waited for: an average in which the last one has an eighth.
#[derive(Debug)]
pub(super) struct Pace {
    usual: Duration,
}

impl Default for Pace {
    /// Of a thread that has not seen anything: it sleeps.
    fn default() -> Self {
        Self { usual: WAIT_COUNTED_MAX }
    }
}

impl Pace {
    /// Whether the next event is worth looking for.
    pub(super) fn is_quick(&self) -> bool {
        self.usual < LOOK_MAX
    }

    /// An event came after this wait, or none did.
    pub(super) fn waited(&mut self, wait: Duration) {
        self.usual = (self.usual * 7 + wait.min(WAIT_COUNTED_MAX)) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(waits: impl IntoIterator<Item = u64>) -> Pace {
        let mut pace = Pace::default();
        waits.into_iter().for_each(|wait_us| pace.waited(Duration::from_micros(wait_us)));
        pace
    }

    #[test]
    fn one_sleeps_until_events_come_quickly_and_again_at_the_first_silence() {
        assert!(!after([]).is_quick());
        assert!(!after([30; 8]).is_quick(), "a burst is no habit");
        assert!(after([30; 40]).is_quick());
        let silence = [30; 40].into_iter().chain([500_000]);
        assert!(!after(silence).is_quick());
        assert!(!after([100; 1000]).is_quick(), "ten thousand events a second are slept between");
        let silences = (0..1000).flat_map(|_| [500_000, 10, 10, 10]);
        assert!(!after(silences).is_quick());
    }
}
