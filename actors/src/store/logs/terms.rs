//! The terms under which a record is indexed, and those a query asks the index for.
//!
//! Words stand for themselves. All else that can be asked for is a term with `_` in it, which no word has: `l_3` is
//! the level, and a letter with 40 bits of a hash stands for the component (`c`), the modules of the target (`t`), the
//! trace (`x`), the conversation (`v`), the process (`p`), the incarnation (`i`), the name of a field (`k`), name and
//! value (`f`). The hash is part of what is stored: another one needs a migration that makes the index anew. Two values
//! with one hash cost a look at a record; what the index finds is always compared with the query.

use std::fmt::Write as _;

use super::{
    filter::{LogQuery, TURN},
    words::{self, Item},
};
use crate::log_record::{Level, LogRecord};

/// Bytes of a word that are indexed; the rest is compared with the record only.
const WORD_BYTES_MAX: usize = 64;
/// Bytes of words of one record that are indexed. A record with more is looked at whenever words are asked for.
pub(super) const RECORD_BYTES_MAX: usize = 64 << 10;
/// Words of a query that the index is asked for; the others are compared with the records only.
const QUERY_WORDS_MAX: usize = 64;
/// Components that the index is asked for, or told to leave out; with more it is not asked for them at all.
const QUERY_COMPONENTS_MAX: usize = 256;
/// Stands at records that are not indexed whole.
const LONG: &str = "z_long";

/// Writes the terms of `record` into `out`, which is emptied.
pub(super) fn write_terms(out: &mut String, record: &LogRecord) {
    out.clear();
    let _ = write!(out, "l_{}", record.level as i64);
    facet(out, 'c', &record.component, "");
    for module in modules(&record.target) {
        facet(out, 't', module, "");
    }
    facet(out, 'p', &record.process.to_string(), "");
    facet(out, 'i', &record.incarnation.to_string(), "");
    if let Some(trace) = &record.trace_id {
        facet(out, 'x', trace, "");
    }
    if let Some(conversation) = &record.conversation {
        facet(out, 'v', conversation, "");
    }
    for (name, value) in &record.fields {
        facet(out, 'k', name, "");
        facet(out, 'f', name, value);
    }
    let texts = record.fields.iter().flat_map(|(name, value)| [name, value]);
    for text in std::iter::once(&record.message).chain(texts) {
        // Words take little more than their text.
        if out.len() + text.len() > RECORD_BYTES_MAX {
            out.push(' ');
            out.push_str(LONG);
            return;
        }
        words::write_words(out, text, WORD_BYTES_MAX);
    }
}

/// A module and those it stands in, the innermost first.
fn modules(target: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(target), |target| target.rsplit_once("::").map(|(outer, _)| outer))
}

/// Writes a space and the term of a value.
fn facet(out: &mut String, kind: char, name: &str, value: &str) {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let _ = write!(out, " {kind}_");
    let mut hash = hash(name, value);
    for _ in 0..8 {
        out.push(char::from(DIGITS[(hash & 31) as usize]));
        hash >>= 5;
    }
}

/// FNV-1a over name, a zero and value, its bits then mixed (the finaliser of MurmurHash3).
fn hash(name: &str, value: &str) -> u64 {
    let bytes = name.bytes().chain([0]).chain(value.bytes());
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// What the index is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It cannot help: every record must be looked at.
    All,
    /// No indexed record can match.
    Nothing,
    /// An expression of FTS5. It finds every record that matches, and may find others.
    Records(String),
}

/// What `query` asks the index for; `components` are those that have records in it.
pub(super) fn ask(query: &LogQuery, components: &[String]) -> Asked {
    let (mut groups, mut excluded): (Vec<String>, Option<String>) = (Vec::new(), None);
    let one = |kind, name: &str, value: &str| {
        let mut term = String::new();
        facet(&mut term, kind, name, value);
        quoted(&term)
    };
    let any = |terms: Vec<String>| format!("({})", terms.join(" OR "));
    if let Some(level) = query.min_level.filter(|level| *level > Level::Trace) {
        groups.push(any(levels(level)));
    }
    if !query.components.is_empty() {
        // Which components have records is known, so what is not wanted need not be gone over to be left out.
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            components.iter().partition(|name| query.wants_component(name));
        let terms = |names: &[&String]| any(names.iter().map(|name| one('c', name, "")).collect());
        match (wanted.len(), unwanted.len()) {
            (0, _) => return Asked::Nothing,
            (_, 0) => {}
            (1..=QUERY_COMPONENTS_MAX, _) => groups.push(terms(&wanted)),
            (_, 1..=QUERY_COMPONENTS_MAX) => excluded = Some(terms(&unwanted)),
            _ => {}
        }
    }
    if !query.targets.is_empty() {
        groups.push(any(query.targets.iter().map(|target| one('t', target, "")).collect()));
    }
    groups.extend(query.trace_id.as_ref().map(|id| any(vec![one('x', id, ""), one('f', TURN, id)])));
    groups.extend(query.conversation.as_ref().map(|id| one('v', id, "")));
    groups.extend(query.process.map(|process| one('p', &process.to_string(), "")));
    groups.extend(query.incarnation.map(|incarnation| one('i', &incarnation.to_string(), "")));
    for (name, values) in query.fields_by_name() {
        let own = match name {
            "trace_id" => Some('x'),
            "conversation" => Some('v'),
            _ => None,
        };
        // Which traces there are is not known, so of `trace_id` with any value every record is looked at.
        if own.is_some() && values.iter().any(|field| field.value.is_none()) {
            continue;
        }
        let terms = values.iter().flat_map(|field| match &field.value {
            Some(value) => {
                own.map(|kind| one(kind, value, "")).into_iter().chain([one('f', name, value)]).collect()
            }
            None => vec![one('k', name, "")],
        });
        groups.push(any(terms.collect()));
    }
    let items = query.text.iter().flat_map(|text| text.items());
    let mut words_left = QUERY_WORDS_MAX;
    for item in items {
        let Item::Words { words, prefix } = item else { continue };
        let count = words.matches(' ').count();
        if count > words_left {
            break;
        }
        words_left -= count;
        let mut cut = String::new();
        words::write_words(&mut cut, words, WORD_BYTES_MAX);
        let star = if *prefix { "*" } else { "" };
        groups.push(format!("({}{star} OR {})", quoted(&cut), quoted(LONG)));
    }
    if groups.is_empty() && excluded.is_none() {
        return Asked::All;
    }
    if groups.is_empty() {
        groups.push(any(levels(Level::Trace)));
    }
    let mut expression = groups.join(" AND ");
    if let Some(excluded) = excluded {
        expression = format!("({expression}) NOT {excluded}");
    }
    Asked::Records(expression)
}

fn levels(least: Level) -> Vec<String> {
    Level::ALL
        .into_iter()
        .filter(|level| *level >= least)
        .map(|level| format!("\"l_{}\"", level as i64))
        .collect()
}

/// As a string of FTS5: several words are then a phrase. No term has a quotation mark in it.
fn quoted(terms: &str) -> String {
    format!("\"{}\"", terms.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terms_of_a_record_are_what_is_stored_and_never_change() {
        let mut record = LogRecord::new(Level::Warn, "gateway", "Disk full");
        (record.process, record.incarnation) = (12, 1);
        record.target = "a::b".into();
        record.trace_id = Some("t".into());
        record.conversation = Some("c".into());
        record.fields = vec![("n".into(), "7".into())];
        let mut terms = String::new();
        write_terms(&mut terms, &record);
        assert_eq!(
            terms,
            "l_4 c_kccjfl63 t_i17747d6 t_5fb0l3g0 p_so25gdnd i_oedlo8ql x_r7spn2bp v_89t9fktq k_65k16dqs f_jvqj4amv \
             disk full n 7"
        );
    }

    #[test]
    fn a_long_record_is_marked_instead_of_indexed_whole() {
        let record = LogRecord::new(Level::Info, "gateway", "word ".repeat(RECORD_BYTES_MAX));
        let mut terms = String::new();
        write_terms(&mut terms, &record);
        assert!(terms.ends_with(" z_long") && terms.len() < RECORD_BYTES_MAX + 64, "{}", terms.len());
    }

    #[test]
    fn a_query_is_asked_in_terms_and_text_cannot_break_the_expression() {
        let ask = |query: &LogQuery| ask(query, &["gateway".to_owned(), "model".to_owned()]);
        assert_eq!(ask(&LogQuery::default()), Asked::All);
        let text = LogQuery { text: Some("say \"a b*\" OR NEAR(x) ' %_".into()), ..LogQuery::default() };
        let long = "OR \"z_long\")";
        assert_eq!(
            ask(&text),
            Asked::Records(format!(
                "(\"say\" {long} AND (\"a b\"* {long} AND (\"or\" {long} AND (\"near x\" {long}"
            ))
        );
        let components = |patterns: &[&str]| LogQuery {
            components: patterns.iter().map(|pattern| (*pattern).into()).collect(),
            ..LogQuery::default()
        };
        assert_eq!(ask(&components(&["nobody*"])), Asked::Nothing);
        assert_eq!(ask(&components(&["*"])), Asked::All);
        let only = ask(&components(&["gateway"]));
        assert_eq!(ask(&components(&["!model", "!nobody"])), only);
        assert_eq!(only, Asked::Records("(\"c_kccjfl63\")".into()));
        let many = LogQuery { text: Some("w ".repeat(1000).as_str().into()), ..LogQuery::default() };
        let Asked::Records(expression) = ask(&many) else { panic!("many words ask for nothing") };
        assert_eq!(expression.matches("\"w\"").count(), QUERY_WORDS_MAX);
    }
}
