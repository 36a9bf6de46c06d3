//! One attempt: a request to the consumer, and what its end means.

use std::time::Duration;

use super::{
    limits,
    schedule::Schedule,
    storage::{Leased, Outcome},
    words,
};
use crate::{client::Client, codec, envelope::DeliveryMark, error::RequestError, topic::TopicError};

/// The code of a request whose server let it go without a word.
pub(crate) const DROPPED: &str = "dropped";

/// How an attempt ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Ended {
    Acknowledged,
    Failed(RequestError),
    /// Its topic has no form with this consumer; it was accepted by somebody who did not look.
    NoTopic(TopicError),
    /// The outbox stops, and the consumer did not answer in time.
    Stopped,
}

/// What an attempt's end comes to.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    /// What it says about the consumer.
    pub(crate) consumer: Said,
}

/// What an attempt says about its consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is there.
    Present,
    /// It is there, and was lost meanwhile.
    Lost,
    /// Nobody serves.
    Absent,
    /// The broker does not let the outbox deliver to it.
    Denied,
    /// Nothing.
    Nothing,
}

/// Sends one message to one consumer, and waits for its end.
pub(crate) async fn attempt(client: Client, leased: Leased, deadline: Duration) -> Ended {
    let Leased { id, attempt, message, topic, origin, accepted_ms, header, payload } = leased;
    let topic = match words::inbox_topic(&id.consumer, &topic) {
        Ok(topic) => topic,
        Err(error) => return Ended::NoTopic(error),
    };
    let mark = DeliveryMark { number: id.number, attempt, accepted_ms, origin };
    let header = codec::delivery_header(&header, message, &mark);
    let answer = async { client.request_as_it_is(&topic, &header, payload, deadline).await?.last().await };
    match answer.await {
        Ok(_) => Ended::Acknowledged,
        Err(error) => Ended::Failed(error),
    }
}

/// | the attempt ended | the delivery | the consumer |
/// |---|---|---|
/// | acknowledged | is finished | is there |
/// | failed, `rejected` | becomes a dead letter at once | is there |
/// | failed with another word, busy, no answer in time | waits; after the last attempt it is a dead letter | is there |
/// | the server was lost, or dropped it | the same; it is due when the consumer says that it serves again | may be gone |
/// | nobody serves | waits; it was no attempt | is absent |
/// | the broker denies it | waits; after the last attempt it is a dead letter | the rights are wrong |
/// | the link to the broker was lost | is due at once; from half of the attempts on by the schedule. Never the last | |
/// | the outbox stopped | is due at the next start. Never the last | |
/// | it cannot be sent as it is | becomes a dead letter | |
///
/// `chance` is evenly distributed.
pub(crate) fn verdict(ended: Ended, attempt: u32, schedule: &Schedule, now_ms: u64, chance: u64) -> Verdict {
    let wait_ms = || u64::try_from(schedule.wait(attempt, chance).as_millis()).unwrap_or(u64::MAX);
    let later = |reason: String| {
        let reason = cut(reason);
        // Zero would be "at once" to whoever reads it.
        Outcome::Retry { due_ms: now_ms.saturating_add(wait_ms()).max(1), reason }
    };
    let retry = |reason: String| match schedule.is_last(attempt) {
        false => later(reason),
        true => Outcome::Dead { reason: cut(format!("{reason} (attempt {attempt}, the last)")) },
    };
    let dead = |reason: String| Outcome::Dead { reason: cut(reason) };
    let (outcome, consumer) = match ended {
        Ended::Acknowledged => (Outcome::Acknowledged, Said::Present),
        Ended::NoTopic(error) => (dead(error.to_string()), Said::Nothing),
        Ended::Stopped => (Outcome::Retry { due_ms: 0, reason: "stopped".to_owned() }, Said::Nothing),
        Ended::Failed(error) => match error {
            RequestError::Failed { code, text } if code == words::REJECTED => {
                (dead(format!("rejected: {text}")), Said::Present)
            }
            RequestError::Failed { code, text } => {
                // What waited in a consumer that ends in good order is dropped by it.
                let said = if code == DROPPED { Said::Lost } else { Said::Present };
                (retry(format!("{code}: {text}")), said)
            }
            RequestError::NoResponders { .. } => (Outcome::Unsent, Said::Absent),
            RequestError::ServerGone => (retry(error.to_string()), Said::Lost),
            RequestError::Denied { .. } => (retry(error.to_string()), Said::Denied),
            RequestError::Disconnected => {
                let reason = error.to_string();
                let outcome = match attempt > schedule.attempts_max / 2 {
                    true => later(reason),
                    // A moment, because the word that the link is lost may come behind this.
                    false => Outcome::Retry { due_ms: now_ms + 100, reason },
                };
                (outcome, Said::Nothing)
            }
            RequestError::TooLarge { .. } => (dead(error.to_string()), Said::Nothing),
            RequestError::TimedOut { .. }
            | RequestError::Busy { .. }
            | RequestError::Cancelled
            | RequestError::Damaged { .. } => (retry(error.to_string()), Said::Present),
        },
    };
    Verdict { outcome, consumer }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(limits::REASON_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000_000;

    fn of(ended: Ended, attempt: u32) -> (Outcome, Said) {
        let Verdict { outcome, consumer } = verdict(ended, attempt, &Schedule::default(), NOW_MS, 1 << 63);
        (outcome, consumer)
    }

    fn failed(code: &str) -> Ended {
        Ended::Failed(RequestError::Failed { code: code.to_owned(), text: "why".to_owned() })
    }

    fn topic() -> crate::TopicName {
        "inbox/c/t".parse().unwrap()
    }

    #[test]
    fn only_an_acknowledgement_finishes_and_only_a_rejection_or_the_last_failure_is_dead() {
        assert_eq!(of(Ended::Acknowledged, 1), (Outcome::Acknowledged, Said::Present));
        let rejected = (Outcome::Dead { reason: "rejected: why".to_owned() }, Said::Present);
        assert_eq!(of(failed("rejected"), 1), rejected);
        let due_ms = NOW_MS + 15_000;
        assert_eq!(
            of(failed("retry"), 1),
            (Outcome::Retry { due_ms, reason: "retry: why".to_owned() }, Said::Present)
        );
        assert_eq!(of(failed(DROPPED), 1).1, Said::Lost);
        let (last, _) = of(failed(DROPPED), 10);
        assert!(matches!(last, Outcome::Dead { reason } if reason == "dropped: why (attempt 10, the last)"));
        let failures = || {
            [
                RequestError::ServerGone,
                RequestError::Cancelled,
                RequestError::TimedOut { topic: topic(), after: Duration::from_secs(60) },
                RequestError::Busy { topic: topic(), code: String::new(), text: String::new() },
                RequestError::Damaged { topic: topic(), problem: String::new() },
                RequestError::Denied { topic: topic(), code: String::new(), text: String::new() },
            ]
        };
        for error in failures() {
            let (outcome, said) = of(Ended::Failed(error.clone()), 9);
            assert!(matches!(outcome, Outcome::Retry { due_ms, .. } if due_ms > NOW_MS), "{error:?}");
            assert_eq!(said == Said::Lost, error == RequestError::ServerGone);
            assert!(matches!(of(Ended::Failed(error.clone()), 10).0, Outcome::Dead { .. }), "{error:?}");
        }
    }

    #[test]
    fn an_absent_consumer_costs_no_attempt_and_a_lost_link_or_a_stop_never_the_last() {
        let absent = || Ended::Failed(RequestError::NoResponders { topic: topic() });
        assert_eq!(of(absent(), 10), (Outcome::Unsent, Said::Absent));
        let due_of = |ended, attempt| match of(ended, attempt).0 {
            Outcome::Retry { due_ms, .. } => due_ms,
            other => panic!("{other:?}"),
        };
        let lost = || Ended::Failed(RequestError::Disconnected);
        assert_eq!([1, 5].map(|attempt| due_of(lost(), attempt)), [NOW_MS + 100; 2]);
        assert_eq!([6, 10, 20].map(|attempt| due_of(lost(), attempt) > NOW_MS + 100), [true; 3]);
        assert_eq!([1, 20].map(|attempt| due_of(Ended::Stopped, attempt)), [0, 0]);
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let text = "\u{e9}".repeat(limits::REASON_BYTES_MAX);
        let (outcome, _) = of(Ended::Failed(RequestError::Failed { code: "x".into(), text }), 1);
        let Outcome::Retry { reason, .. } = outcome else { panic!("{outcome:?}") };
        assert!(reason.len() <= limits::REASON_BYTES_MAX && reason.ends_with('\u{e9}'));
    }
}
