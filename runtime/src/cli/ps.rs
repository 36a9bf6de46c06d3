//! `interlock ps`: every component and what weighs on it, one line each.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::{CliError, Global, Output, output::table, remote};
use crate::{
    admin,
    config::duration::brief,
    exit::Exit,
    supervisor::{ChildKind, ChildSnapshot},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One JSON object per component.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let tree = remote::status(&data_dir, &instance, &admin::ps_topic())?.tree;
    if arguments.json {
        for child in &tree.children {
            output.line(&remote::json(child)?)?;
        }
        return Ok(Exit::Done);
    }
    let heading = [
        "NAME", "KIND", "STATE", "SINCE", "RESTARTS", "MAILBOX", "OLDEST", "HANDLED", "P50", "P99", "MEMORY",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(tree.children.iter().map(|child| row(child, tree.at)));
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

fn row(child: &ChildSnapshot, at: Timestamp) -> Vec<String> {
    let load = &child.load;
    // A program has its queue in the broker: `bus info` shows it. A supervisor has none.
    let own = |text: String| if child.kind == ChildKind::Actor { text } else { "-".to_owned() };
    let time = |us: Option<u64>| us.map_or("-".to_owned(), |us| brief(Duration::from_micros(us)));
    vec![
        match child.supervisor {
            Some(_) => format!("  {}", child.name),
            None => child.name.clone(),
        },
        child.kind.as_str().to_owned(),
        child.state.as_str().to_owned(),
        brief(Duration::try_from(at.duration_since(child.since)).unwrap_or_default()),
        child.restarts.to_string(),
        own(child.queued.to_string()),
        time(load.oldest_ms.map(|ms| ms * 1000)),
        own(load.handled.to_string()),
        time(load.handler_p50_us),
        time(load.handler_p99_us),
        load.memory_bytes.map_or("-".to_owned(), |bytes| format!("{} MiB", bytes.div_ceil(1 << 20))),
    ]
}
