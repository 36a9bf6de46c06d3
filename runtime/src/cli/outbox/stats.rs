//! `interlock outbox stats` and `interlock dlq stats`.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json as object};

use super::{CliError, Global, Output, Scope, age, desk, json};
use crate::{cli::output::table, exit::Exit};

/// Reasons shown to people.
const REASONS: usize = 20;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

type ByState = BTreeMap<&'static str, u64>;

pub(super) fn run(
    arguments: &Arguments,
    scope: Scope,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let Some(desk) = desk(global, &data_dir, output)? else { return Ok(Exit::Failed) };
    let mut statistics = desk.statistics()?;
    let states: Vec<&str> = scope.states().into_iter().map(|state| state.as_str()).collect();
    statistics.reasons.retain(|reason| states.contains(&reason.state.as_str()));
    let mine = |counts: &ByState| -> ByState {
        counts
            .iter()
            .filter(|(state, _)| states.contains(state))
            .map(|(state, count)| (*state, *count))
            .collect()
    };
    let by = |all: &BTreeMap<String, ByState>| -> BTreeMap<String, ByState> {
        let mine = all.iter().map(|(name, counts)| (name.clone(), mine(counts)));
        mine.filter(|(_, counts)| !counts.is_empty()).collect()
    };
    let (consumers, topics) = (by(&statistics.consumers), by(&statistics.topics));
    let oldest = mine(&statistics.oldest_ms);
    if arguments.json {
        let value: Value = object!({
            "open": statistics.open,
            "bytes": statistics.bytes,
            "finished": statistics.finished,
            "deliveries": statistics.deliveries,
            "consumers": consumers,
            "topics": topics,
            "reasons": statistics.reasons,
            "oldest_ms": oldest,
        });
        output.line(&json(&value)?)?;
        return Ok(Exit::Done);
    }
    output.line(&format!(
        "{} messages unfinished, {} bytes with dead letters, {} finished ones remembered",
        statistics.open, statistics.bytes, statistics.finished
    ))?;
    let mut rows = vec![vec!["STATE".to_owned(), "DELIVERIES".to_owned(), "OLDEST".to_owned()]];
    for (state, count) in &statistics.deliveries {
        let oldest = statistics.oldest_ms.get(state).map_or_else(|| "-".to_owned(), |since| age(*since));
        rows.push(vec![(*state).to_owned(), count.to_string(), oldest]);
    }
    output.lines(&table(&rows))?;
    for (heading, counted) in [("CONSUMER", consumers), ("TOPIC", topics)] {
        if counted.is_empty() {
            continue;
        }
        let mut rows =
            vec![[heading].iter().chain(&states).map(|word| word.to_uppercase()).collect::<Vec<_>>()];
        for (name, counts) in counted {
            let counts = states.iter().map(|state| counts.get(state).copied().unwrap_or(0).to_string());
            rows.push(std::iter::once(name).chain(counts).collect());
        }
        output.lines(&table(&rows))?;
    }
    if !statistics.reasons.is_empty() {
        let mut rows = vec![vec!["DELIVERIES".to_owned(), "REASON OF THE LAST FAILED ATTEMPT".to_owned()]];
        let shown = statistics.reasons.iter().take(REASONS);
        rows.extend(shown.map(|reason| vec![reason.deliveries.to_string(), reason.reason.clone()]));
        output.lines(&table(&rows))?;
        if statistics.reasons.len() > REASONS {
            output.say(&format!("and {} more reasons; --json has all", statistics.reasons.len() - REASONS));
        }
    }
    Ok(Exit::Done)
}
