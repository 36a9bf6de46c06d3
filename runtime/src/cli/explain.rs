//! `interlock explain`: one component in words, and the last it logged if it has failed.

use clap::Args;

use super::{CliError, Global, Output, logs, remote};
use crate::{admin, exit::Exit, supervisor::explain};

/// Log records shown of a component that has failed.
const LOG_TAIL: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Which component, as `interlock ps` names it.
    component: String,
    /// What it is told from, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let tree = remote::status(&data_dir, &instance, &admin::ps_topic())?.tree;
    let name = arguments.component.as_str();
    let (Some(text), Some(child)) = (explain::explain(&tree, name), tree.child(name)) else {
        return Err(remote::unknown(name, &tree));
    };
    if arguments.json {
        output.line(&remote::json(child)?)?;
        return Ok(Exit::Done);
    }
    output.lines(&text)?;
    if let Some(failure) = &child.last_failure {
        // The store may be what has failed: then what was said above must do.
        match logs::tail(global, &data_dir, name, failure.at, LOG_TAIL) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                output.line("last logged before that failure:")?;
                for record in records {
                    logs::print(&record, output)?;
                }
            }
            Err(error) => output.say(&format!("its log cannot be read: {error}")),
        }
    }
    Ok(Exit::Done)
}
