//! `interlock backup list`.

use std::path::PathBuf;

use clap::Args;
use interlock_actors::backup;

use super::{CliError, Global, Output, installation, json, size, sweep, time};
use crate::{cli::output::table, exit::Exit};

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The directory; by default `backups` in the data directory.
    directory: Option<PathBuf>,
    /// One JSON object a backup.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    // One that is named must be there; ours is made by the first backup.
    let (directory, is_made_later) = match &arguments.directory {
        Some(directory) => (directory.clone(), false),
        None => {
            let installation = installation(global)?;
            sweep(&installation.root, output);
            (installation.backups(), true)
        }
    };
    let listed = match is_made_later && !directory.exists() {
        true => Vec::new(),
        false => backup::list(&directory)?,
    };
    if arguments.json {
        listed.iter().try_for_each(|backup| output.line(&json(backup)?))?;
        return Ok(Exit::Done);
    }
    if listed.is_empty() {
        output.say(&format!("no backups in `{}`", directory.display()));
        return Ok(Exit::Done);
    }
    let mut rows = vec![["MADE", "SIZE", "OF", "FILE", "PROBLEM"].map(str::to_owned).to_vec()];
    rows.extend(listed.iter().map(|backup| {
        let of = backup.database_id.as_deref().unwrap_or("?");
        vec![
            backup.created_ns.map_or_else(|| "?".to_owned(), time),
            size(backup.bytes),
            of.get(..8).unwrap_or(of).to_owned(),
            backup.path.display().to_string(),
            backup.problem.clone().unwrap_or_default(),
        ]
    }));
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}
