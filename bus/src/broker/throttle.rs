//! Keeps a flood of the same event out of the log, and says how many it kept out. Pure.

use std::time::{Duration, Instant};

/// Lets so many events a second through.
#[derive(Debug)]
pub(super) struct Throttle {
    per_second: u32,
    since: Instant,
    seen: u32,
}

impl Throttle {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, since: now, seen: 0 }
    }

    /// Counts one event; `true` if it may be logged.
    pub(super) fn admits(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        self.seen <= self.per_second
    }

    /// Begins the next second when it is time, and says how many events of the last one were kept out.
    pub(super) fn next_second(&mut self, now: Instant) -> Option<u32> {
        if now.saturating_duration_since(self.since) < Duration::from_secs(1) {
            return None;
        }
        self.since = now;
        let kept_out = std::mem::take(&mut self.seen).saturating_sub(self.per_second);
        (kept_out > 0).then_some(kept_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted_and_the_next_second_begins_anew() {
        let start = Instant::now();
        let mut throttle = Throttle::new(2, start);
        assert_eq!([0; 5].map(|_| throttle.admits()), [true, true, false, false, false]);
        assert_eq!(throttle.next_second(start + Duration::from_millis(999)), None);
        assert_eq!(throttle.next_second(start + Duration::from_secs(1)), Some(3));
        assert!(throttle.admits());
        assert_eq!(throttle.next_second(start + Duration::from_secs(2)), None);
    }
}
