//! Which consumers a topic has.

use crate::{
    peer::PeerName,
    topic::{TopicFilter, TopicName},
};

/// Who is to acknowledge what: filters and the consumers of the topics that match. A topic that several filters match has
/// the consumers of them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(Vec<(TopicFilter, Vec<PeerName>)>);

impl Routes {
    /// These routes.
    pub fn new(routes: impl IntoIterator<Item = (TopicFilter, Vec<PeerName>)>) -> Self {
        Self(routes.into_iter().collect())
    }

    /// The consumers of a topic, each once, in order.
    pub fn consumers(&self, topic: &TopicName) -> Vec<PeerName> {
        let matching = self.0.iter().filter(|(filter, _)| filter.matches(topic));
        let mut consumers: Vec<_> = matching.flat_map(|(_, consumers)| consumers.iter().cloned()).collect();
        consumers.sort();
        consumers.dedup();
        consumers
    }

    /// Everybody who is named.
    pub fn names(&self) -> impl Iterator<Item = &PeerName> {
        self.0.iter().flat_map(|(_, consumers)| consumers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_the_consumers_of_every_filter_that_matches_each_once() {
        let route = |filter: &str, names: &[&str]| {
            (filter.parse().unwrap(), names.iter().map(|name| name.parse().unwrap()).collect())
        };
        let routes = Routes::new([route("orders/#", &["books", "audit"]), route("#", &["audit"])]);
        let of = |topic: &str| {
            let consumers = routes.consumers(&topic.parse().unwrap());
            consumers.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("orders/new"), ["audit", "books"]);
        assert_eq!(of("other"), ["audit"]);
        assert!(Routes::default().consumers(&"other".parse().unwrap()).is_empty());
    }
}
