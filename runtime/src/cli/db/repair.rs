//! `interlock db repair`.

use clap::Args;
use interlock_actors::store::repair::{self, Salvaged};

use super::{CliError, Global, Output, check, initialised, json};
use crate::{exit::Exit, lifecycle::DataDir};

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// Make missing tables again, empty, and missing indexes; what was in the tables is lost.
    #[arg(long)]
    recreate_empty: bool,
    /// Copy what can be read into a new database, row by row; the damaged one is kept beside it.
    #[arg(long, conflicts_with = "recreate_empty")]
    salvage: bool,
    /// What was done, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &Arguments,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    initialised(data_dir)?;
    let (path, key) = (data_dir.database(), global.data_key(data_dir)?);
    if arguments.salvage {
        let salvaged = repair::salvage(&path, &key)?;
        return report(&salvaged, arguments.json, output);
    }
    let repaired = repair::repair(&path, &key, arguments.recreate_empty)?;
    let exit = if repaired.left.is_empty() { Exit::Done } else { Exit::Damaged };
    if arguments.json {
        output.line(&json(&repaired)?)?;
        return Ok(exit);
    }
    for done in &repaired.done {
        output.line(done)?;
    }
    if repaired.done.is_empty() && repaired.left.is_empty() {
        output.line("nothing to repair")?;
    }
    for finding in &repaired.left {
        output.line(&format!("left as it is: {finding}"))?;
    }
    if let Some(text) = check::advice(&repaired.left) {
        output.say(text);
    }
    Ok(exit)
}

fn report(salvaged: &Salvaged, as_json: bool, output: &mut Output) -> Result<Exit, CliError> {
    if as_json {
        output.line(&json(salvaged)?)?;
        return Ok(Exit::Done);
    }
    for (table, rows) in &salvaged.rows {
        let lost = salvaged.unreadable.get(table).copied().unwrap_or(0);
        let mut line = format!("{rows} rows of {table} saved");
        if lost > 0 {
            line.push_str(&format!(", at most {lost} lost"));
        }
        if salvaged.given_up.contains(table) {
            line.push_str(", others could not be reached");
        }
        output.line(&line)?;
    }
    if salvaged.conversations_remade > 0 {
        output.line(&format!(
            "{} conversations made again for their messages, without title",
            salvaged.conversations_remade
        ))?;
    }
    output.line(&format!("the damaged database is kept as `{}`", salvaged.kept.display()))?;
    Ok(Exit::Done)
}
