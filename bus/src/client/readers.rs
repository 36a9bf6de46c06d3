//! Who reads the socket of a session: the client's own thread, or one that waits for its answer.
//!
//! A thread that waits once, gives the reading back when it leaves: two system calls. One that comes and
//! goes thousands of times a second keeps it, and the client's own thread, which is not woken by the socket then,
//! looks every millisecond whether it has stayed away. It ends that when nobody came for one of these.

use std::time::{Duration, Instant};

/// How often the client's own thread looks while waiting threads come and go.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// How long a thread may stay away before the client's own reads in its stead.
const AWAY_MAX: Duration = Duration::from_micros(500);

/// So many returns within two ticks make a thread that comes and goes.
const RETURNS: u32 = 4;

/// The reading thread and how often it came.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Whether one waits on the socket now.
    is_waiting: bool,
    /// When the last one left, if it keeps the reading.
    away_since: Option<Instant>,
    counts_since: Option<Instant>,
    returns: u32,
    ticking: bool,
}

/// What a thread that leaves has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Give the reading back to the client's own thread.
    GiveBack,
    /// Nothing: it keeps the reading.
    Keep,
    /// The same, and wake the client's own thread, which begins to look every [`TICK`].
    KeepAndWake,
}

impl Readers {
    /// A thread comes to wait; `false` if another one waits.
    pub(super) fn enter(&mut self) -> bool {
        if self.is_waiting {
            return false;
        }
        (self.is_waiting, self.away_since) = (true, None);
        true
    }

    /// It leaves.
    pub(super) fn leave(&mut self, now: Instant) -> Leave {
        self.is_waiting = false;
        self.returns += 1;
        if self.ticking {
            self.away_since = Some(now);
            return Leave::Keep;
        }
        if self.counts_since.is_none_or(|since| now - since > 2 * TICK) {
            (self.counts_since, self.returns) = (Some(now), 1);
        }
        if self.returns < RETURNS {
            return Leave::GiveBack;
        }
        (self.ticking, self.away_since) = (true, Some(now));
        Leave::KeepAndWake
    }

    /// Whether the client's own thread looks every [`TICK`].
    pub(super) fn is_ticking(&self) -> bool {
        self.ticking
    }

    /// The client's own thread looks. `true`: nobody reads, so it does.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        if self.counts_since.is_some_and(|since| now - since < TICK) {
            return false;
        }
        let nobody_came = std::mem::take(&mut self.returns) == 0;
        self.counts_since = Some(now);
        if nobody_came {
            self.ticking = false;
        }
        let is_left = self.away_since.is_some_and(|since| nobody_came || now - since > AWAY_MAX);
        if is_left {
            self.away_since = None;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_comes_and_goes_keeps_the_reading_until_it_stays_away() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        let at = |microseconds| start + Duration::from_micros(microseconds);
        for (now, leave) in
            [(0, Leave::GiveBack), (100, Leave::GiveBack), (200, Leave::GiveBack), (300, Leave::KeepAndWake)]
        {
            assert!(readers.enter());
            assert!(!readers.enter(), "one at a time");
            assert_eq!(readers.leave(at(now)), leave);
        }
        assert!(readers.enter());
        assert!(!readers.tick(at(1_100)), "it waits");
        assert_eq!(readers.leave(at(1_200)), Leave::Keep);
        assert!(!readers.tick(at(1_300)), "too soon");
        assert!(readers.tick(at(2_200)), "it stayed away");
        assert!(readers.is_ticking(), "somebody came since the last tick");
        assert!(!readers.tick(at(3_300)));
        assert!(!readers.is_ticking());
    }

    #[test]
    fn a_thread_that_waits_now_and_then_gives_the_reading_back() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        for step in 0..20 {
            assert!(readers.enter());
            assert_eq!(readers.leave(start + step * Duration::from_millis(1)), Leave::GiveBack);
        }
    }
}
