//! `interlock outbox list` and `interlock dlq list`.

use std::time::Duration;

use clap::Args;
use interlock_actors::store::outbox::{DeliveryState, desk::Delivery};

use super::{CliError, Global, Output, Scope, age, desk, filter::Filter, json, now_ms};
use crate::{cli::output::table, config::duration, exit::Exit};

/// Deliveries shown unless told otherwise.
const LINES: u32 = 100;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// In this state, whichever the verb is about: pending, leased, acknowledged, dead or dropped. May be repeated.
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Vec<DeliveryState>,
    /// At most so many, the oldest ones; 100 unless told otherwise.
    #[arg(short = 'n', long = "lines", visible_alias = "limit", value_name = "N", default_value_t = LINES, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// One JSON object per delivery.
    #[arg(long)]
    json: bool,
}

fn state(text: &str) -> Result<DeliveryState, String> {
    DeliveryState::ALL
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| format!("`{text}` is no state; pending, leased, acknowledged, dead or dropped is"))
}

pub(super) fn run(
    arguments: &Arguments,
    scope: Scope,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let Some(desk) = desk(global, &data_dir, output)? else { return Ok(Exit::Failed) };
    let mut question = arguments.filter.question(scope);
    if !arguments.state.is_empty() {
        question.states.clone_from(&arguments.state);
    }
    let lines = usize::try_from(arguments.lines).unwrap_or(usize::MAX);
    // One more, to know that there are more.
    question.limit = Some(lines.saturating_add(1));
    let mut found = desk.list(&question)?;
    let has_more = found.len() > lines;
    found.truncate(lines);
    if found.is_empty() {
        output.say(scope.nothing());
        return Ok(Exit::Failed);
    }
    if arguments.json {
        for delivery in &found {
            output.line(&json(delivery)?)?;
        }
    } else {
        let heading = [
            "NUMBER", "ID", "STATE", "CONSUMER", "TOPIC", "KEY", "BYTES", "ATTEMPTS", "AGE", "NEXT", "REASON",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(found.iter().map(row));
        output.lines(&table(&rows))?;
    }
    if has_more {
        output.say(&format!("there are more than {}; -n shows more, filters fewer", arguments.lines));
    }
    Ok(Exit::Done)
}

fn row(delivery: &Delivery) -> Vec<String> {
    vec![
        delivery.number.to_string(),
        delivery.id.to_string(),
        delivery.state.as_str().to_owned(),
        delivery.consumer.clone(),
        delivery.topic.clone(),
        if delivery.key == delivery.topic { "-".to_owned() } else { delivery.key.clone() },
        delivery.bytes.to_string(),
        delivery.attempts.to_string(),
        age(delivery.accepted_ms),
        next(delivery),
        delivery.reason.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// When it is tried next.
fn next(delivery: &Delivery) -> String {
    match delivery.state {
        DeliveryState::Pending => match delivery.due_ms.saturating_sub(now_ms()) {
            0 => "now".to_owned(),
            wait => format!("in {}", duration::brief(Duration::from_millis(wait))),
        },
        DeliveryState::Leased => "under way".to_owned(),
        DeliveryState::Acknowledged | DeliveryState::Dead | DeliveryState::Dropped => "-".to_owned(),
    }
}
