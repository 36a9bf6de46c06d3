//! What a peer may do on which topics: deny beats allow beats the default, which is deny.

use serde::{Deserialize, Serialize};

use crate::topic::{TopicFilter, TopicName};

/// The four things a peer may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Publish messages.
    Publish,
    /// Receive messages.
    Subscribe,
    /// Answer requests.
    Serve,
    /// Send requests.
    Request,
}

/// What decides whether a topic is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// This filter of `deny`.
    Deny(&'a TopicFilter),
    /// This filter of `allow`.
    Allow(&'a TopicFilter),
    /// No filter: it is not permitted.
    Default,
}

impl Right {
    /// The right's name in `authorized.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Serve => "serve",
            Self::Request => "request",
        }
    }
}

/// A word that names no right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is none of publish, subscribe, serve, request", word.escape_debug())]
pub struct RightError {
    word: String,
}

impl std::str::FromStr for Right {
    type Err = RightError;

    fn from_str(text: &str) -> Result<Self, RightError> {
        let all = [Self::Publish, Self::Subscribe, Self::Serve, Self::Request];
        let named = all.into_iter().find(|right| right.as_str() == text);
        named.ok_or_else(|| RightError { word: text.chars().take(32).collect() })
    }
}

/// Filters for one right.
///
/// | matched by `deny` | matched by `allow` | permitted |
/// |---|---|---|
/// | yes | either | no |
/// | no | yes | yes |
/// | no | no | no |
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Topics that are permitted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<TopicFilter>,
    /// Topics that are not, whatever `allow` says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<TopicFilter>,
}

impl Rules {
    /// Rules that allow `filters` and deny nothing.
    pub fn allowing(filters: impl IntoIterator<Item = TopicFilter>) -> Self {
        Self { allow: filters.into_iter().collect(), deny: Vec::new() }
    }

    /// Whether this topic is permitted.
    pub fn permit(&self, topic: &TopicName) -> bool {
        matches!(self.decide(topic), Decision::Allow(_))
    }

    /// What decides whether this topic is permitted.
    pub fn decide(&self, topic: &TopicName) -> Decision<'_> {
        let first = |filters: &'_ [TopicFilter]| filters.iter().position(|filter| filter.matches(topic));
        match (first(&self.deny), first(&self.allow)) {
            (Some(at), _) => Decision::Deny(&self.deny[at]),
            (None, Some(at)) => Decision::Allow(&self.allow[at]),
            (None, None) => Decision::Default,
        }
    }

    /// Whether nothing at all is permitted.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    /// These rules with the filters that `after` has more than `before`, and without those it has less.
    fn changed_as(&self, before: &Self, after: &Self) -> Self {
        let change = |own: &[TopicFilter], before: &[TopicFilter], after: &[TopicFilter]| {
            let stays = |filter: &&TopicFilter| !before.contains(filter) || after.contains(filter);
            let is_new = |filter: &&TopicFilter| !before.contains(filter) && !own.contains(filter);
            own.iter().filter(stays).chain(after.iter().filter(is_new)).cloned().collect()
        };
        Self {
            allow: change(&self.allow, &before.allow, &after.allow),
            deny: change(&self.deny, &before.deny, &after.deny),
        }
    }
}

/// All rights of one peer. The default permits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Permissions {
    /// What it may publish.
    #[serde(skip_serializing_if = "Rules::is_blank")]
    pub publish: Rules,
    /// What it may receive.
    #[serde(skip_serializing_if = "Rules::is_blank")]
    pub subscribe: Rules,
    /// What it may answer.
    #[serde(skip_serializing_if = "Rules::is_blank")]
    pub serve: Rules,
    /// What it may ask.
    #[serde(skip_serializing_if = "Rules::is_blank")]
    pub request: Rules,
    /// Whether it may subscribe with the overflow policy `wait`, which holds publishers up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
}

impl Rules {
    fn is_blank(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

impl Permissions {
    /// The rules for one right.
    pub fn rules(&self, right: Right) -> &Rules {
        match right {
            Right::Publish => &self.publish,
            Right::Subscribe => &self.subscribe,
            Right::Serve => &self.serve,
            Right::Request => &self.request,
        }
    }

    /// Whether the peer may do this on this topic.
    pub fn permit(&self, right: Right, topic: &TopicName) -> bool {
        self.rules(right).permit(topic)
    }

    /// Whether nothing at all is permitted: such a peer is refused at the handshake.
    pub fn is_empty(&self) -> bool {
        [Right::Publish, Right::Subscribe, Right::Serve, Right::Request]
            .into_iter()
            .all(|right| self.rules(right).is_empty())
    }

    /// These permissions, changed as others were between two versions of a program.
    #[must_use]
    pub fn changed_as(&self, before: &Self, after: &Self) -> Self {
        Self {
            publish: self.publish.changed_as(&before.publish, &after.publish),
            subscribe: self.subscribe.changed_as(&before.subscribe, &after.subscribe),
            serve: self.serve.changed_as(&before.serve, &after.serve),
            request: self.request.changed_as(&before.request, &after.request),
            wait: if before.wait == after.wait { self.wait } else { after.wait },
        }
    }

    /// Permissions from lists of filters; a shorthand for tables in code.
    ///
    /// # Errors
    /// The first text that is no filter.
    pub fn from_lists(
        publish: &[&str],
        subscribe: &[&str],
        serve: &[&str],
        request: &[&str],
    ) -> Result<Self, crate::topic::TopicError> {
        let rules = |texts: &[&str]| -> Result<Rules, crate::topic::TopicError> {
            Ok(Rules::allowing(texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?))
        };
        Ok(Self {
            publish: rules(publish)?,
            subscribe: rules(subscribe)?,
            serve: rules(serve)?,
            request: rules(request)?,
            wait: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_beats_allow_beats_the_default() {
        let rules = Rules {
            allow: vec!["a/#".parse().unwrap(), "b".parse().unwrap()],
            deny: vec!["a/secret/#".parse().unwrap()],
        };
        for (topic, permitted) in
            [("a/x", true), ("a/secret", false), ("a/secret/y", false), ("b", true), ("c", false)]
        {
            assert_eq!(rules.permit(&topic.parse().unwrap()), permitted, "{topic}");
        }
        assert!(!Rules::default().permit(&"a".parse().unwrap()));
    }

    #[test]
    fn a_wildcard_never_permits_the_topics_of_the_bus_itself() {
        let rules = Rules::allowing(["#".parse().unwrap()]);
        assert!(!rules.permit(&"$sys/broker/info".parse().unwrap()));
    }

    #[test]
    fn a_peer_with_denials_only_has_no_rights() {
        let denials = Rules { allow: vec![], deny: vec!["a".parse().unwrap()] };
        assert!(Permissions { publish: denials, ..Permissions::default() }.is_empty());
    }
}
