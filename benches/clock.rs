//! The clock that all processes of one machine share, and places in sorted times.

use std::time::Duration;

use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// Nanoseconds of `CLOCK_MONOTONIC`: comparable between processes of one machine.
///
/// # Panics
/// If the system has no such clock.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    Duration::from(now).as_nanos() as u64
}

/// Sleeps until that clock shows this time; not at all if it does already.
pub fn sleep_until(time_ns: u64) {
    let until = Duration::from_nanos(time_ns).into();
    // A signal ends it early.
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until).is_err() {}
}

/// Lets this thread wake up when it asked to, not up to 50 us later.
///
/// # Panics
/// If the system refuses.
pub fn wake_exactly() {
    nix::sys::prctl::set_timerslack(1).expect("Linux takes any timer slack");
}

/// The value below which this share of the sorted values lies; zero of none.
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at).or(sorted.last()).copied().unwrap_or(0)
}
