//! The broker's events in the log: refusals, denials, slow subscribers, losses, edits of the registry.
//!
//! What the bus logs itself never enters the log path, which runs over the bus: a warning about the log path would
//! make another record on it. So the events are logged here, under a target of the runtime, and those that are about
//! the log path are left out: they are on standard error and in `bus events`. However many events come, lines are
//! bounded for each second.

use std::time::{Duration, Instant};

use interlock_actors::actor::Failure;
use interlock_bus::{
    Client,
    client::{Event, SubscribeOptions},
};
use serde_json::Value;
use tracing::Level;

use crate::telemetry::TOLD_OTHERWISE;

/// Lines a second at most. What is beyond is counted, in one line.
const LINES_PER_SECOND: u32 = 20;
/// Peers of the log path.
const LOG_PATH: [&str; 2] = ["log-transport", "log-consumer"];

/// Logs events until the broker ends.
pub(super) async fn log(client: Client) -> Result<(), Failure> {
    let mut events = client.subscribe(&"$sys/#".parse()?, SubscribeOptions::default()).await?;
    let mut throttle = Throttle::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Message(message) => {
                let payload: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let Some((level, text)) = line(message.topic.as_str(), &payload) else { continue };
                let (admitted, left_out) = throttle.admit(Instant::now());
                if left_out > 0 {
                    tracing::warn!(
                        component = "broker",
                        "{left_out} more events of the broker; see `bus events`"
                    );
                }
                if admitted {
                    say(level, &text, is_printed_by_broker(message.topic.as_str(), &payload));
                }
            }
            Event::Gap { count, .. } => {
                tracing::warn!(
                    component = "broker",
                    count,
                    "events of the broker were lost on their way to the log"
                );
            }
        }
    }
    Ok(())
}

/// Whether the broker says it on standard error itself, at once and also where the log path has ended.
fn is_printed_by_broker(topic: &str, event: &Value) -> bool {
    match topic {
        "$sys/auth/refused" | "$sys/auth/registry" | "$sys/auth/broker_key" | "$sys/denied" => true,
        "$sys/slow" => event["state"] == "slow",
        _ => false,
    }
}

fn say(level: Level, text: &str, is_printed: bool) {
    match level {
        Level::ERROR if is_printed => tracing::error!(target: TOLD_OTHERWISE, component = "broker", "{text}"),
        Level::WARN if is_printed => tracing::warn!(target: TOLD_OTHERWISE, component = "broker", "{text}"),
        _ if is_printed => tracing::info!(target: TOLD_OTHERWISE, component = "broker", "{text}"),
        Level::ERROR => tracing::error!(component = "broker", "{text}"),
        Level::WARN => tracing::warn!(component = "broker", "{text}"),
        _ => tracing::info!(component = "broker", "{text}"),
    }
}

/// How serious an event is, and what it says; `None` if it is not for the log.
fn line(topic: &str, event: &Value) -> Option<(Level, String)> {
    if is_about_logs(event) {
        return None;
    }
    let text = |field: &str| match &event[field] {
        Value::String(text) => text.clone(),
        Value::Null => "nobody".to_owned(),
        other => other.to_string(),
    };
    Some(match topic {
        "$sys/auth/refused" => {
            let who = event["peer"].as_str().map(|peer| format!(" of `{peer}`")).unwrap_or_default();
            let line = format!(
                "connection{who} from {} refused ({}): {}",
                text("address"),
                text("code"),
                text("text")
            );
            (Level::WARN, line)
        }
        "$sys/auth/registry" => match event["error"].as_str() {
            Some(error) => {
                (Level::ERROR, format!("authorised peers not read again; the old rules stay: {error}"))
            }
            None => (Level::INFO, "authorised peers read again".to_owned()),
        },
        "$sys/auth/broker_key" => match event["error"].as_str() {
            Some(error) => {
                (Level::ERROR, format!("the broker's keys not read again; the old ones stay: {error}"))
            }
            None => (Level::INFO, format!("the broker's key is {}", text("key"))),
        },
        "$sys/denied" => {
            let line = format!(
                "`{}` was denied {} on `{}` ({}), {} times so far: {}",
                text("peer"),
                text("operation"),
                text("topic"),
                text("code"),
                text("count"),
                text("text")
            );
            (Level::WARN, line)
        }
        "$sys/slow" if event["state"] == "slow" => (
            Level::WARN,
            format!("`{}` is slow on `{}` and lost {} messages", text("peer"), text("filter"), text("lost")),
        ),
        "$sys/slow" => {
            let line = format!(
                "`{}` has caught up on `{}`, having lost {}",
                text("peer"),
                text("filter"),
                text("lost")
            );
            (Level::INFO, line)
        }
        "$sys/dropped" => {
            let line = format!(
                "{} messages of `{}` on `{}` for `{}` were lost ({})",
                text("count"),
                text("publisher"),
                text("topic"),
                text("subscriber"),
                text("reason")
            );
            (Level::WARN, line)
        }
        "$sys/retained_full" => (
            Level::WARN,
            format!(
                "no room to retain the last value of `{}`: {} of {} bytes",
                text("topic"),
                text("retained_bytes"),
                text("limit")
            ),
        ),
        "$sys/held" => (
            Level::INFO,
            format!(
                "publishers of `{}` are {}; they wait for `{}`",
                text("topic"),
                text("state"),
                text("waits_for")
            ),
        ),
        _ => return None,
    })
}

/// Whether an event is about the log path: a record of it there would cause the next.
fn is_about_logs(event: &Value) -> bool {
    let is_log_topic = |field: &str| {
        let level = event[field].as_str().and_then(|topic| topic.split('/').next());
        level.is_some_and(|level| level == "logs" || level == "log-consumer")
    };
    let is_log_peer = |field: &str| event[field].as_str().is_some_and(|peer| LOG_PATH.contains(&peer));
    ["topic", "filter"].into_iter().any(is_log_topic)
        || ["peer", "publisher", "subscriber"].into_iter().any(is_log_peer)
}

/// Admits so many lines a second.
#[derive(Debug, Default)]
struct Throttle {
    second: Option<Instant>,
    admitted: u32,
    left_out: u64,
}

impl Throttle {
    /// Whether a line may be written, and how many could not be in a second that is over.
    fn admit(&mut self, now: Instant) -> (bool, u64) {
        let is_over =
            self.second.is_none_or(|second| now.saturating_duration_since(second) >= Duration::from_secs(1));
        let left_out = if is_over { std::mem::take(&mut self.left_out) } else { 0 };
        if is_over {
            (self.second, self.admitted) = (Some(now), 0);
        }
        let may = self.admitted < LINES_PER_SECOND;
        self.admitted += u32::from(may);
        self.left_out += u64::from(!may);
        (may, left_out)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_about_the_log_path_is_never_logged_over_the_log_path() {
        for event in [
            json!({ "publisher": "gateway", "topic": "logs/gateway/info", "subscriber": "x", "reason": "slow_consumer" }),
            json!({ "publisher": "log-transport", "topic": "a", "subscriber": "x" }),
            json!({ "state": "slow", "peer": "log-consumer", "filter": "x" }),
            json!({ "state": "slow", "peer": "x", "filter": "logs/#" }),
            json!({ "peer": "x", "topic": "log-consumer/confirm/v1" }),
        ] {
            for topic in ["$sys/dropped", "$sys/slow", "$sys/denied"] {
                assert_eq!(line(topic, &event), None, "{topic} {event}");
            }
        }
        let other = json!({ "publisher": "a", "topic": "logsheet/x", "subscriber": "b", "reason": "expired", "count": 2 });
        let (level, text) = line("$sys/dropped", &other).unwrap();
        assert_eq!(
            (level, text.as_str()),
            (Level::WARN, "2 messages of `a` on `logsheet/x` for `b` were lost (expired)")
        );
    }

    #[test]
    fn a_flood_of_events_is_a_bounded_number_of_lines_and_the_rest_is_counted() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let admitted = (0..1000).filter(|_| throttle.admit(start).0).count();
        assert_eq!(admitted, LINES_PER_SECOND as usize);
        assert_eq!(
            throttle.admit(start + Duration::from_secs(1)),
            (true, 1000 - u64::from(LINES_PER_SECOND))
        );
        assert_eq!(throttle.admit(start + Duration::from_secs(2)), (true, 0));
    }
}
