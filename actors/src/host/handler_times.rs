//! How long the inputs of one child took, of late: enough for a p50 and a p99, in a bounded place.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Handled inputs are forgotten after one to two of these.
const WINDOW: Duration = Duration::from_secs(300);

/// Classes for each doubling of the time; a quantile is right within an eighth.
const CLASSES_PER_DOUBLING: u32 = 8;

/// Doublings from 1 ns on; the last class takes what is longer (about 73 minutes).
const DOUBLINGS: u32 = 42;

const CLASSES: usize = (CLASSES_PER_DOUBLING * DOUBLINGS) as usize;

/// Times of one child's handler over all its incarnations.
#[derive(Debug)]
pub(crate) struct HandlerTimes(Mutex<Windows>);

/// What is known of them now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Inputs handled since the child was made.
    pub count: u64,
    /// Half of the recent ones took at most this; `None` if there was none of late.
    pub p50: Option<Duration>,
    /// 99 of 100 recent ones took at most this.
    pub p99: Option<Duration>,
}

#[derive(Debug)]
struct Windows {
    count: u64,
    begun: Instant,
    present: Box<[u32; CLASSES]>,
    before: Box<[u32; CLASSES]>,
}

impl HandlerTimes {
    pub(crate) fn new(now: Instant) -> Self {
        let empty = || Box::new([0; CLASSES]);
        Self(Mutex::new(Windows { count: 0, begun: now, present: empty(), before: empty() }))
    }

    /// An input was handled at `now`, which took `took`.
    pub(crate) fn record(&self, took: Duration, now: Instant) {
        let mut windows = self.at(now);
        windows.count += 1;
        let class = &mut windows.present[class_of(took)];
        *class = class.saturating_add(1);
    }

    pub(crate) fn handled(&self, now: Instant) -> Handled {
        let windows = self.at(now);
        Handled { count: windows.count, p50: windows.quantile(50), p99: windows.quantile(99) }
    }

    fn at(&self, now: Instant) -> MutexGuard<'_, Windows> {
        // No code that can panic runs under this lock.
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since(windows.begun);
        if age >= WINDOW {
            let Windows { begun, present, before, .. } = &mut *windows;
            std::mem::swap(present, before);
            present.fill(0);
            if age >= 2 * WINDOW {
                before.fill(0);
            }
            *begun = now;
        }
        windows
    }
}

impl Windows {
    /// What `percent` of the recent times do not exceed.
    fn quantile(&self, percent: u64) -> Option<Duration> {
        let counts =
            || self.present.iter().zip(self.before.iter()).map(|(a, b)| u64::from(*a) + u64::from(*b));
        let all: u64 = counts().sum();
        let rank = (all * percent).div_ceil(100);
        let mut seen = 0;
        let class = counts().position(|count| {
            seen += count;
            count > 0 && seen >= rank
        });
        class.map(upper_bound)
    }
}

/// The class of a time: doublings, each in equal parts.
fn class_of(took: Duration) -> usize {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
    let doubling = nanos.ilog2();
    let part = match doubling.checked_sub(3) {
        Some(shift) => (nanos >> shift) & 7,
        None => (nanos << (3 - doubling)) & 7,
    };
    (doubling as usize * CLASSES_PER_DOUBLING as usize + part as usize).min(CLASSES - 1)
}

/// What no time of a class exceeds.
fn upper_bound(class: usize) -> Duration {
    let (doubling, part) = (class as u32 / CLASSES_PER_DOUBLING, class as u64 % 8);
    let next = (u128::from(8 + part + 1) << doubling) >> 3;
    Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_an_eighth() {
        let now = Instant::now();
        let times = HandlerTimes::new(now);
        for micros in 1..=1000 {
            times.record(Duration::from_micros(micros), now);
        }
        let Handled { count, p50, p99 } = times.handled(now);
        let [p50, p99] = [p50, p99].map(|time| time.unwrap().as_secs_f64() * 1e6);
        assert_eq!(count, 1000);
        assert!((500.0..=563.0).contains(&p50), "{p50}");
        assert!((990.0..=1114.0).contains(&p99), "{p99}");
    }

    #[test]
    fn the_shortest_and_the_longest_times_have_a_place() {
        let now = Instant::now();
        for took in [Duration::ZERO, Duration::from_nanos(7), Duration::from_secs(2)] {
            let times = HandlerTimes::new(now);
            times.record(took, now);
            let p50 = times.handled(now).p50.unwrap();
            assert!(p50 >= took && p50 <= took.mul_f64(1.125) + Duration::from_nanos(2), "{took:?}: {p50:?}");
        }
        HandlerTimes::new(now).record(Duration::MAX, now);
    }

    #[test]
    fn old_times_are_forgotten_and_the_count_is_not() {
        let begin = Instant::now();
        let times = HandlerTimes::new(begin);
        times.record(Duration::from_secs(1), begin);
        times.record(Duration::from_millis(1), begin + WINDOW);
        assert!(times.handled(begin + WINDOW).p99.unwrap() > Duration::from_millis(900));
        let later = times.handled(begin + 2 * WINDOW);
        assert!(later.p99.unwrap() < Duration::from_millis(2), "{later:?}");
        assert_eq!(times.handled(begin + 5 * WINDOW), Handled { count: 2, p50: None, p99: None });
    }
}
