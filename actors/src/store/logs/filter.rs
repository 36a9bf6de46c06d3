//! Which log records are asked for. What it says of one record, [`LogQuery::matches`], is the meaning; the index only
//! spares looking at the others.

use std::collections::BTreeMap;

use super::words::{Searched, TextQuery};
use crate::log_record::{Level, LogRecord};

/// The field in which our components name the turn of a conversation that they work at.
pub(super) const TURN: &str = "turn";

/// Which log records to read. The default is the newest 1000 of all. What is said of several things must all hold;
/// of several values for one thing one is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// This level and above.
    pub min_level: Option<Level>,
    /// Raised at or after, in nanoseconds since the Unix epoch.
    pub since_ns: Option<u64>,
    /// Raised before, in nanoseconds since the Unix epoch.
    pub until_ns: Option<u64>,
    /// Of one of these components, if any is named without `!`, and of none that is named with it.
    pub components: Vec<NamePattern>,
    /// Raised in one of these modules or in one below, for example `interlock_actors::gateway`.
    pub targets: Vec<String>,
    /// With these fields. Several values for one name: one of them is enough.
    pub fields: Vec<FieldPattern>,
    /// Of this trace, or of the turn of a conversation with this id (field `turn`): our components name that.
    pub trace_id: Option<String>,
    /// Of this conversation.
    pub conversation: Option<String>,
    /// Raised by the process with this id.
    pub process: Option<u32>,
    /// Raised by this start of its component, counted from one.
    pub incarnation: Option<u64>,
    /// With this text in message or fields.
    pub text: Option<TextQuery>,
    /// And with this in the message or in a field (`name=value`). Looked for in what all else has left.
    pub grep: Option<Grep>,
    /// At most so many; never more than [`limits::QUERY_ROWS_MAX`](crate::store::limits::QUERY_ROWS_MAX).
    pub limit: usize,
    /// `None`: the newest `limit`, in the order of time. `Some(n)`: the first `limit` that arrived
    /// after `n`, in the order of arrival; this is how a reader follows.
    pub after_seq: Option<i64>,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self {
            min_level: None,
            since_ns: None,
            until_ns: None,
            components: Vec::new(),
            targets: Vec::new(),
            fields: Vec::new(),
            trace_id: None,
            conversation: None,
            process: None,
            incarnation: None,
            text: None,
            grep: None,
            limit: 1000,
            after_seq: None,
        }
    }
}

/// Names: `gateway`, `log-*`, or all but such with a `!` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// Whether it names what is not wanted.
    pub exclude: bool,
    /// The name; `*` stands for any characters.
    pub glob: String,
}

/// A field: `name=value`, or a name alone for any value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPattern {
    /// Its name.
    pub name: String,
    /// Its value; `None` for any.
    pub value: Option<String>,
}

/// A regular expression.
#[derive(Clone, Debug)]
pub struct Grep(regex_lite::Regex);

impl NamePattern {
    /// Whether the name is one of those that the pattern names, wanted or not.
    pub(super) fn names(&self, name: &str) -> bool {
        glob(self.glob.as_bytes(), name.as_bytes())
    }
}

/// Shell's `*`, by going back to the last star where the rest does not fit.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, from)) = star {
            (p, t) = (after, from + 1);
            star = Some((after, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|rest| *rest == b'*')
}

impl From<&str> for NamePattern {
    fn from(text: &str) -> Self {
        match text.strip_prefix('!') {
            Some(glob) => Self { exclude: true, glob: glob.to_owned() },
            None => Self { exclude: false, glob: text.to_owned() },
        }
    }
}

impl From<&str> for FieldPattern {
    fn from(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, value)) => Self { name: name.to_owned(), value: Some(value.to_owned()) },
            None => Self { name: text.to_owned(), value: None },
        }
    }
}

impl FieldPattern {
    fn is_in(&self, record: &LogRecord) -> bool {
        let own = match self.name.as_str() {
            "trace_id" => record.trace_id.as_ref(),
            "conversation" => record.conversation.as_ref(),
            _ => None,
        };
        let fields = record.fields.iter().filter(|(name, _)| *name == self.name).map(|(_, value)| value);
        own.into_iter().chain(fields).any(|value| self.value.as_ref().is_none_or(|wanted| wanted == value))
    }
}

impl Grep {
    /// A regular expression, as the crate `regex-lite` reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        regex_lite::Regex::new(pattern).map(Self).map_err(|error| error.to_string())
    }
}

impl PartialEq for Grep {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Grep {}

impl LogQuery {
    /// Fields by name: of each name one value is enough.
    pub(super) fn fields_by_name(&self) -> BTreeMap<&str, Vec<&FieldPattern>> {
        let mut by_name: BTreeMap<&str, Vec<&FieldPattern>> = BTreeMap::new();
        for field in &self.fields {
            by_name.entry(&field.name).or_default().push(field);
        }
        by_name
    }

    /// Whether time alone is right.
    pub(super) fn is_in_time(&self, time_ns: u64) -> bool {
        self.since_ns.is_none_or(|since| time_ns >= since)
            && self.until_ns.is_none_or(|until| time_ns < until)
    }

    /// Whether the record is asked for; place in the order of arrival and limit aside.
    pub fn matches(&self, record: &LogRecord) -> bool {
        self.is_in_time(record.time_ns)
            && self.min_level.is_none_or(|level| record.level >= level)
            && self.wants_component(&record.component)
            && (self.targets.is_empty()
                || self.targets.iter().any(|target| is_in_module(&record.target, target)))
            && self.trace_id.as_ref().is_none_or(|trace| {
                let is_turn = |(name, value): &(String, String)| name == TURN && value == trace;
                record.trace_id.as_ref() == Some(trace) || record.fields.iter().any(is_turn)
            })
            && self.conversation.as_ref().is_none_or(|id| record.conversation.as_ref() == Some(id))
            && self.process.is_none_or(|process| record.process == process)
            && self.incarnation.is_none_or(|incarnation| record.incarnation == incarnation)
            && (self.fields.is_empty()
                || self
                    .fields_by_name()
                    .values()
                    .all(|values| values.iter().any(|field| field.is_in(record))))
            && self.text.as_ref().is_none_or(|text| {
                let searched = Searched::new(&record.message, &record.fields);
                text.items().iter().all(|item| searched.has(item))
            })
            && self.grep.as_ref().is_none_or(|Grep(regex)| {
                let mut fields = record.fields.iter();
                regex.is_match(&record.message)
                    || fields.any(|(name, value)| regex.is_match(&format!("{name}={value}")))
            })
    }

    pub(super) fn wants_component(&self, component: &str) -> bool {
        let (mut asked, mut named) = (false, false);
        for pattern in &self.components {
            match pattern.exclude {
                true if pattern.names(component) => return false,
                true => {}
                false => {
                    asked = true;
                    named |= pattern.names(component);
                }
            }
        }
        named || !asked
    }
}

fn is_in_module(target: &str, module: &str) -> bool {
    target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LogRecord {
        let mut record = LogRecord::new(Level::Warn, "log-consumer", "three records refused");
        record.target = "interlock_actors::log_consumer::batch".into();
        record.fields = vec![("count".into(), "3".into()), ("reason".into(), "too long".into())];
        (record.conversation, record.trace_id) = (Some("c1".into()), Some("t1".into()));
        record
    }

    fn of(change: impl FnOnce(&mut LogQuery)) -> bool {
        let mut query = LogQuery::default();
        change(&mut query);
        query.matches(&record())
    }

    #[test]
    fn components_are_named_by_globs_and_excluded_by_a_mark() {
        let components = |patterns: &[&str]| {
            of(|query| query.components = patterns.iter().map(|text| NamePattern::from(*text)).collect())
        };
        for patterns in
            [&["log-*"][..], &["gateway", "log-consumer"], &["!gateway"], &["*", "!gate*"], &["l*g*-c*r"]]
        {
            assert!(components(patterns), "{patterns:?}");
        }
        for patterns in [&["log"][..], &["gateway"], &["*", "!log-*"], &["!log-consumer"], &["log-*x"]] {
            assert!(!components(patterns), "{patterns:?}");
        }
    }

    #[test]
    fn fields_are_exact_and_several_values_of_one_name_are_alternatives() {
        let fields = |patterns: &[&str]| {
            of(|query| query.fields = patterns.iter().map(|text| FieldPattern::from(*text)).collect())
        };
        for patterns in [
            &["count=3"][..],
            &["count"],
            &["count=4", "count=3"],
            &["count=3", "reason=too long"],
            &["trace_id=t1"],
            &["conversation=c1"],
        ] {
            assert!(fields(patterns), "{patterns:?}");
        }
        for patterns in [&["count=33"][..], &["coun"], &["count="], &["count=3", "reason=too"], &["Count=3"]]
        {
            assert!(!fields(patterns), "{patterns:?}");
        }
    }

    #[test]
    fn a_trace_is_also_the_turn_that_components_name() {
        let trace = |id: &str| of(|query| query.trace_id = Some(id.to_owned()));
        assert!(trace("t1") && !trace("3") && !trace("c1"));
        let query = LogQuery { trace_id: Some("turn 7".into()), ..LogQuery::default() };
        let mut record = record();
        assert!(!query.matches(&record));
        record.fields.push(("turn".into(), "turn 7".into()));
        assert!(query.matches(&record));
    }

    #[test]
    fn a_target_names_its_module_and_those_below() {
        let target = |target: &str| of(|query| query.targets = vec![target.to_owned()]);
        assert!(target("interlock_actors::log_consumer") && target("interlock_actors"));
        assert!(!target("interlock_actors::log") && !target("log_consumer"));
    }

    #[test]
    fn a_regular_expression_looks_at_the_message_and_at_each_field() {
        let grep = |pattern: &str| of(|query| query.grep = Some(Grep::new(pattern).unwrap()));
        assert!(grep("^three .* refused$") && grep("^count=[0-9]$") && !grep("refused.count"));
        assert!(Grep::new("(").is_err());
    }
}
