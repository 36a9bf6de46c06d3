//! Topics with what they lack: the other end, or the right name.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use serde_json::{Map, Value, json};

use crate::topic::{TopicFilter, TopicName};

/// Names that are less alike than this, of 1 for the same, are no suggestion.
const ALIKE: f64 = 0.75;

/// Which ends a topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Published, and nobody subscribes or serves.
    Published,
    /// Subscribed or served, and nothing was ever published or asked.
    Subscribed,
    /// Both.
    Both,
}

impl Only {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Subscribed => "subscribed",
            Self::Both => "both",
        }
    }
}

/// A word that names no end of a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is none of published, subscribed, both", word.escape_debug())]
pub struct OnlyError {
    word: String,
}

impl FromStr for Only {
    type Err = OnlyError;

    fn from_str(text: &str) -> Result<Self, OnlyError> {
        let all = [Self::Published, Self::Subscribed, Self::Both];
        let named = all.into_iter().find(|only| only.name() == text);
        named.ok_or_else(|| OnlyError { word: text.chars().take(32).collect() })
    }
}

/// Whether a row is of a topic, or of a filter, that is asked for.
pub(super) fn is_wanted(row: &Value, filter: Option<&TopicFilter>, only: Option<Only>) -> bool {
    let text = row["topic"].as_str().unwrap_or_default();
    let matches = |filter: &TopicFilter| {
        filter.as_str() == text || text.parse().is_ok_and(|topic| filter.matches(&topic))
    };
    filter.is_none_or(matches) && only.is_none_or(|only| row["state"] == only.name())
}

/// The topics with their state, and behind them the filters for which nothing ever came; each side that lacks the other
/// with the name on the other side that is most like it.
pub(super) fn judged(known: Vec<Value>, subscriptions: &[Value]) -> Vec<Value> {
    let is_published = |row: &Value| row["messages"].as_u64() > Some(0) || row["requests"].as_u64() > Some(0);
    let published: Vec<TopicName> = known
        .iter()
        .filter(|row| is_published(row))
        .filter_map(|row| row["topic"].as_str()?.parse().ok())
        .collect();
    let waiting = waiting(subscriptions, &published);
    let mut rows = Vec::new();
    for mut row in known {
        let has_receiver = ["subscribers", "servers"]
            .iter()
            .any(|side| row[side].as_array().is_some_and(|names| !names.is_empty()));
        let state = match (is_published(&row), has_receiver) {
            (true, false) => Some(Only::Published),
            (true, true) => Some(Only::Both),
            (false, true) => Some(Only::Subscribed),
            (false, false) => None,
        };
        if state == Some(Only::Published) {
            let topic = row["topic"].as_str().unwrap_or_default();
            row["did_you_mean"] = json!(most_like(topic, waiting.keys().map(String::as_str)));
        }
        row["state"] = json!(state.map(Only::name));
        rows.push(row);
    }
    let named: BTreeSet<String> =
        rows.iter().filter_map(|row| Some(row["topic"].as_str()?.to_owned())).collect();
    for (filter, peers) in waiting.iter().filter(|(filter, _)| !named.contains(*filter)) {
        let did_you_mean = most_like(filter, published.iter().map(TopicName::as_str));
        let mut row = Map::from_iter([
            ("topic".to_owned(), json!(filter)),
            ("messages".to_owned(), json!(0)),
            ("bytes".to_owned(), json!(0)),
            ("requests".to_owned(), json!(0)),
            ("denied".to_owned(), json!(0)),
            ("state".to_owned(), json!(Only::Subscribed.name())),
            ("did_you_mean".to_owned(), json!(did_you_mean)),
        ]);
        row.extend(
            ["subscribers", "servers"]
                .into_iter()
                .zip(peers)
                .map(|(side, names)| (side.to_owned(), json!(names))),
        );
        rows.push(Value::Object(row));
    }
    rows
}

/// Filters for which nothing was ever published, with who subscribes and who serves.
fn waiting(subscriptions: &[Value], published: &[TopicName]) -> BTreeMap<String, [BTreeSet<String>; 2]> {
    let mut waiting: BTreeMap<String, [BTreeSet<String>; 2]> = BTreeMap::new();
    for row in subscriptions {
        let Some(filter) = row["filter"].as_str().and_then(|filter| filter.parse::<TopicFilter>().ok())
        else {
            continue;
        };
        // The bus's own come when something happens.
        let is_own = filter.as_str().starts_with('$');
        if is_own || published.iter().any(|topic| filter.matches(topic)) {
            continue;
        }
        let side = usize::from(row["serve"] == true);
        let peer = row["peer"].as_str().unwrap_or_default().to_owned();
        waiting.entry(filter.as_str().to_owned()).or_default()[side].insert(peer);
    }
    waiting
}

/// The name that is most like this one, if any is.
pub(super) fn most_like<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = names.map(|other| (strsim::normalized_damerau_levenshtein(name, other), other));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|one, other| one.0.total_cmp(&other.0));
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_lacks_one_end_is_told_with_the_name_that_was_probably_meant() {
        let topic = |name: &str, messages: u64, subscribers: &[&str]| json!({ "topic": name, "messages": messages, "subscribers": subscribers, "servers": [] });
        let known = vec![topic("orders/new", 3, &[]), topic("turns/1", 2, &["ui"]), topic("lonely", 1, &[])];
        let subscription =
            |filter: &str, peer: &str, serve: bool| json!({ "filter": filter, "peer": peer, "serve": serve });
        let subscriptions = [
            subscription("order/new", "books", false),
            subscription("turns/#", "ui", false),
            subscription("ask/#", "worker", true),
            subscription("$sys/#", "ui", false),
        ];
        let rows = judged(known, &subscriptions);
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let told: Vec<_> = rows
            .iter()
            .map(|row| ["topic", "state", "did_you_mean"].map(|field| text(&row[field])).join(" "))
            .collect();
        let expected = [
            "orders/new published order/new",
            "turns/1 both -",
            "lonely published -",
            "ask/# subscribed -",
            "order/new subscribed orders/new",
        ];
        assert_eq!(told, expected);
        assert_eq!((&rows[3]["servers"], &rows[4]["subscribers"]), (&json!(["worker"]), &json!(["books"])));
    }
}
