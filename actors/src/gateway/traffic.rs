//! What came in at the gateway, counted. Every label has a bounded number of values: routes by their pattern, methods by the list
//! of those there are, and reasons up to a limit.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::exposition::{Exposition, Kind};

/// Upper bounds of the classes of durations, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Different reasons that are counted by themselves. Some come from services behind us.
const REASONS_MAX: usize = 64;

/// What is counted together.
const OTHER: &str = "(other)";

/// The counters of one incarnation.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    counts: Mutex<Counts>,
    in_flight: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(String, &'static str, u16), u64>,
    times: BTreeMap<String, Times>,
    rejected: BTreeMap<String, u64>,
    limited: BTreeMap<&'static str, u64>,
}

/// How long answers took.
#[derive(Debug, Default)]
struct Times {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicU64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// A request has come; it is being answered until what is returned is dropped.
    pub(super) fn begin(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.in_flight))
    }

    /// A request was answered, up to the beginning of the answer's body. `route` is a pattern, not a path.
    pub(super) fn answered(&self, route: Option<String>, method: &str, status: u16, took: Duration) {
        let route = route.unwrap_or_else(|| OTHER.to_owned());
        let mut counts = self.counts();
        let times = counts.times.entry(route.clone()).or_default();
        let class = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        times.counts[class] += 1;
        times.sum += took;
        *counts.requests.entry((route, known_method(method), status)).or_default() += 1;
    }

    /// A request was refused for this reason.
    pub(super) fn rejected(&self, reason: &str) {
        let mut counts = self.counts();
        let is_counted = counts.rejected.contains_key(reason) || counts.rejected.len() < REASONS_MAX;
        let reason = if is_counted { reason } else { OTHER };
        *counts.rejected.entry(reason.to_owned()).or_default() += 1;
    }

    /// An allowance was used up.
    pub(super) fn limited(&self, limit: &'static str) {
        *self.counts().limited.entry(limit).or_default() += 1;
    }

    /// Writes them all.
    pub(super) fn write(&self, to: &mut Exposition) {
        let counts = self.counts();
        let mut family =
            to.family("interlock_gateway_requests", Kind::Counter, "Requests answered, by route and status.");
        for ((route, method, status), count) in &counts.requests {
            family.sample(&[("route", route), ("method", method), ("status", &status.to_string())], count);
        }
        let help = "Time from a request's head to that of its answer.";
        let mut family = to.family("interlock_gateway_request_duration_seconds", Kind::Histogram, help);
        for (route, times) in &counts.times {
            family.histogram(&[("route", route)], &BOUNDS, &times.counts, times.sum.as_secs_f64());
        }
        let mut family =
            to.family("interlock_gateway_rejected", Kind::Counter, "Requests refused, by reason.");
        for (reason, count) in &counts.rejected {
            family.sample(&[("reason", reason)], count);
        }
        let mut family = to.family(
            "interlock_gateway_rate_limited",
            Kind::Counter,
            "Requests refused because an allowance was used up.",
        );
        for limit in ["token", "address", "failures"] {
            family.sample(&[("limit", limit)], counts.limited.get(limit).copied().unwrap_or_default());
        }
        let now = self.in_flight.load(Ordering::Relaxed);
        to.one(
            "interlock_gateway_requests_in_flight",
            Kind::Gauge,
            "Requests whose answer has not begun.",
            now,
        );
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // No code that can panic runs under this lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known_method(method: &str) -> &'static str {
    let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    known.into_iter().find(|known| *known == method).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_make_the_list_long() {
        let traffic = Traffic::default();
        for number in 0..1000 {
            traffic.answered(None, &format!("M{number}"), 405, Duration::from_millis(number));
            traffic.rejected(&format!("reason-{number}"));
        }
        let mut exposition = Exposition::new(false);
        traffic.write(&mut exposition);
        let text = exposition.finish();
        assert!(text.lines().count() < 120, "{text}");
        assert!(text.contains(
            "interlock_gateway_requests_total{route=\"(other)\",method=\"(other)\",status=\"405\"} 1000"
        ));
        assert!(text.contains("interlock_gateway_rejected_total{reason=\"(other)\"} 936"), "{text}");
        assert!(text.contains("interlock_gateway_request_duration_seconds_count{route=\"(other)\"} 1000"));
    }
}
