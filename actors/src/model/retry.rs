//! When a server is asked once more: only before it has begun to answer, a bounded number of times, and not all at once.
//! Pure but for the dice.

use std::time::Duration;

use interlock_bus::crypto;

use super::{error::BackEndError, limits};

/// How long to wait before a server that failed with `error` is asked again, after `retries` such times; `None` if it is
/// not asked again.
pub(super) fn pause(error: &BackEndError, retries: u32, retries_max: u32) -> Option<Duration> {
    let wanted = error.may_be_retried()?.map(Duration::from_secs);
    if retries >= retries_max || wanted.is_some_and(|wanted| wanted > limits::RETRY_PAUSE_MAX) {
        return None;
    }
    let longest = limits::RETRY_PAUSE.saturating_mul(1 << retries.min(16)).min(limits::RETRY_PAUSE_MAX);
    // A random half is left out, so that many who failed together do not come back together.
    let share = f64::from(u16::from_le_bytes(crypto::random::<2>())) / f64::from(u16::MAX);
    let pause = longest.mul_f64(0.5 + share / 2.0);
    Some(wanted.map_or(pause, |wanted| wanted + pause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> BackEndError {
        BackEndError::Unreachable { url: "u".to_owned(), problem: "p".to_owned() }
    }

    fn busy(retry_after_s: Option<u64>) -> BackEndError {
        BackEndError::Busy { url: "u".to_owned(), retry_after_s, says: "s".to_owned() }
    }

    #[test]
    fn pauses_double_are_bounded_and_differ() {
        let pauses: Vec<Duration> =
            (0..9).map(|retries| pause(&unreachable(), retries, 9).unwrap()).collect();
        for (retries, pause) in pauses.iter().enumerate() {
            let longest = limits::RETRY_PAUSE.saturating_mul(1 << retries).min(limits::RETRY_PAUSE_MAX);
            assert!((longest / 2..=longest).contains(pause), "{retries}: {pause:?}");
        }
        assert_eq!(pause(&unreachable(), 9, 9), None);
        let many: std::collections::HashSet<_> = (0..50).map(|_| pause(&unreachable(), 0, 1)).collect();
        assert!(many.len() > 10, "{many:?}");
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_wants_or_not_asked_again() {
        let waited = pause(&busy(Some(2)), 0, 2).unwrap();
        assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
        assert!(pause(&busy(None), 0, 2).is_some());
        assert_eq!(pause(&busy(Some(7)), 0, 2), None);
    }

    #[test]
    fn what_may_have_been_worked_on_is_not_asked_for_again() {
        let url = || "u".to_owned();
        for error in [
            BackEndError::Cut { url: url(), problem: url() },
            BackEndError::Failed { url: url(), status: Some(500), says: url() },
            BackEndError::TimedOut { url: url(), limit: Duration::ZERO },
            BackEndError::NothingToAnswer,
        ] {
            assert_eq!(pause(&error, 0, 9), None, "{error}");
        }
    }
}
