//! `interlock critical-path`: what made the start slow.

use clap::Args;

use super::{CliError, Global, Output, remote};
use crate::{admin, exit::Exit, supervisor::critical_path};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One JSON object per component on the path.
    #[arg(long)]
    json: bool,
}

/// Done, or [`Exit::Failed`] (no data) if nothing has been ready yet.
pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let instance = remote::instance(&data_dir)?;
    let tree = remote::status(&data_dir, &instance, &admin::status_topic())?.tree;
    let path = critical_path::critical_path(&tree);
    if arguments.json {
        for stretch in &path {
            output.line(&remote::json(stretch)?)?;
        }
    } else {
        output.lines(&critical_path::text(&tree))?;
    }
    Ok(if path.is_empty() { Exit::Failed } else { Exit::Done })
}
