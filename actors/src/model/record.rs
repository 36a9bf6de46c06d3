//! What is known of one model: how it was at last contact, and what it has done. Pure.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::topics::{Bucket, Distribution, ModelFigures, ModelHealth};

/// How a model was at last contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Nobody has asked yet.
    Unknown,
    /// It answered.
    Ok,
    /// It did not, for this reason.
    Failing(String),
}

/// Of one model.
#[derive(Debug)]
pub(super) struct Record {
    health: Health,
    since: SystemTime,
    last_contact: Option<Instant>,
    is_probed: bool,
    /// Whether the last question whether it is there failed, which is more than one request that failed.
    is_absent: bool,
    pub(super) figures: Figures,
}

/// What it has done.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) finished: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) refused: u64,
    pub(super) retries: u64,
    pub(super) passed_on: u64,
    pub(super) stood_in: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) first_token: Spread,
    pub(super) tokens_per_s: Spread,
    pub(super) waited: Spread,
}

impl Record {
    pub(super) fn new() -> Self {
        Self {
            health: Health::Unknown,
            since: SystemTime::now(),
            last_contact: None,
            is_probed: false,
            is_absent: false,
            figures: Figures::default(),
        }
    }

    /// It was asked for something: what it said. Whether that changes how it is.
    pub(super) fn heard(&mut self, said: Result<(), String>, now: Instant) -> bool {
        self.last_contact = Some(now);
        let health = match said {
            Ok(()) => {
                self.is_absent = false;
                Health::Ok
            }
            Err(reason) => Health::Failing(reason),
        };
        let changes = std::mem::discriminant(&health) != std::mem::discriminant(&self.health);
        if changes {
            self.since = SystemTime::now();
        }
        std::mem::replace(&mut self.health, health.clone()) != health
    }

    /// Whether it is to be asked now if it is there. From then on it is being asked, until [`Record::probed`].
    pub(super) fn begin_probe(&mut self, after: Duration, after_failure: Duration, now: Instant) -> bool {
        let after = if matches!(self.health, Health::Failing(_)) { after_failure } else { after };
        let is_due = self.last_contact.is_none_or(|last| now.saturating_duration_since(last) >= after);
        let begins = is_due && !self.is_probed;
        self.is_probed |= begins;
        begins
    }

    /// What came of asking. Whether that changes how it is.
    pub(super) fn probed(&mut self, said: Result<(), String>, now: Instant) -> bool {
        self.is_probed = false;
        let was_absent = std::mem::replace(&mut self.is_absent, said.is_err());
        let changes = self.heard(said, now);
        changes || was_absent != self.is_absent
    }

    pub(super) fn is_absent(&self) -> bool {
        self.is_absent
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match &self.health {
            Health::Failing(reason) => Some(reason),
            Health::Unknown | Health::Ok => None,
        }
    }

    pub(super) fn health(&self) -> ModelHealth {
        let state = match self.health {
            Health::Unknown => "unknown",
            Health::Ok => "ok",
            Health::Failing(_) => "failing",
        };
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        ModelHealth {
            state: state.to_owned(),
            since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            reason: self.reason().map(str::to_owned),
        }
    }

    /// All of it; what a line knows is filled in by whoever has it.
    pub(super) fn figures(&self) -> ModelFigures {
        let figures = &self.figures;
        ModelFigures {
            health: self.health(),
            finished: figures.finished,
            failed: figures.failed,
            cancelled: figures.cancelled,
            refused: figures.refused,
            retries: figures.retries,
            passed_on: figures.passed_on,
            stood_in: figures.stood_in,
            prompt_tokens: figures.prompt_tokens,
            completion_tokens: figures.completion_tokens,
            first_token_s: figures.first_token.told(),
            tokens_per_s: figures.tokens_per_s.told(),
            waited_s: figures.waited.told(),
            ..ModelFigures::default()
        }
    }
}

/// Bounds of the buckets of a [`Spread`]: doublings from a thousandth to about a million.
const BUCKETS: usize = 31;

/// The lowest bound.
const LOWEST: f64 = 0.001;

/// Values in buckets, each twice as wide as the one before.
#[derive(Debug, Default)]
pub(super) struct Spread {
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS],
}

fn bound(bucket: usize) -> f64 {
    LOWEST * (1u64 << bucket) as f64
}

impl Spread {
    /// Takes a value; one that is no number, or negative, is none.
    pub(super) fn add(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        self.count += 1;
        self.sum += value;
        if let Some(bucket) = (0..BUCKETS).find(|bucket| value <= bound(*bucket)) {
            self.buckets[bucket] += 1;
        }
    }

    /// The value that so many of 100 do not exceed, between the bounds of its bucket by its rank.
    fn quantile(&self, percent: u64) -> Option<f64> {
        let rank = (self.count * percent).div_ceil(100);
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            if *count > 0 && below + count >= rank {
                let lower = if bucket == 0 { 0.0 } else { bound(bucket - 1) };
                let share = (rank - below) as f64 / *count as f64;
                return Some(lower + (bound(bucket) - lower) * share);
            }
            below += count;
        }
        // Above the last bound, or none at all.
        (self.count > 0).then(|| bound(BUCKETS - 1))
    }

    fn told(&self) -> Distribution {
        let mut so_far = 0;
        let buckets = self.buckets.iter().enumerate().map(|(bucket, count)| {
            so_far += count;
            Bucket { at_most: bound(bucket), count: so_far }
        });
        Distribution {
            count: self.count,
            sum: self.sum,
            p50: self.quantile(50),
            p99: self.quantile(99),
            buckets: buckets.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_value() {
        let mut spread = Spread::default();
        assert_eq!((spread.told().p50, spread.told().count), (None, 0));
        for thousandth in 1..=1000 {
            spread.add(f64::from(thousandth) / 1000.0);
        }
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            spread.add(bad);
        }
        let told = spread.told();
        let (p50, p99) = (told.p50.unwrap(), told.p99.unwrap());
        assert_eq!(told.count, 1000);
        assert!((0.4..0.6).contains(&p50) && (0.9..1.03).contains(&p99), "{p50} {p99}");
        assert!(told.buckets.is_sorted_by(|a, b| a.count <= b.count && a.at_most < b.at_most));
        spread.add(1e12);
        assert_eq!((spread.told().count, spread.told().buckets[BUCKETS - 1].count), (1001, 1000));
    }

    #[test]
    fn a_model_is_asked_if_it_is_there_when_it_was_idle_and_sooner_after_a_failure() {
        let (now, minute, second) = (Instant::now(), Duration::from_secs(60), Duration::from_secs(1));
        let mut record = Record::new();
        assert!(record.begin_probe(minute, second, now), "never asked");
        assert!(!record.begin_probe(minute, second, now), "it is being asked");
        assert!(record.probed(Ok(()), now));
        assert!(!record.begin_probe(minute, second, now + second * 59));
        assert!(record.begin_probe(minute, second, now + minute));
        assert!(record.probed(Err("gone".to_owned()), now + minute) && record.is_absent());
        assert_eq!(record.health().reason.as_deref(), Some("gone"));
        assert!(record.begin_probe(minute, second, now + minute + second));
        assert!(record.probed(Ok(()), now + minute + second) && !record.is_absent());
    }

    #[test]
    fn a_request_that_failed_is_remembered_and_does_not_make_the_server_absent() {
        let (now, mut record) = (Instant::now(), Record::new());
        assert!(record.heard(Err("out of memory".to_owned()), now));
        assert!(!record.is_absent() && record.reason() == Some("out of memory"));
        assert!(!record.heard(Err("out of memory".to_owned()), now));
        assert!(record.heard(Ok(()), now) && record.reason().is_none());
    }
}
