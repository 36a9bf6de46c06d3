//! `interlock config show`: every setting and where its value comes from.

use clap::Subcommand;

use super::{CliError, Global, Output};
use crate::{
    config::{Config, DEFAULTS, Sources, show},
    exit::Exit,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Print every setting and where its value comes from; secrets are hidden.
    Show {
        /// Print the commented defaults instead.
        #[arg(long)]
        defaults: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: &Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let Verb::Show { defaults, json } = verb;
    if *defaults && !json {
        output.lines(DEFAULTS)?;
        return Ok(Exit::Done);
    }
    let loaded = if *defaults { Config::load(&Sources::default())? } else { global.load()? };
    if *json {
        output.line(&show::json(&loaded).to_string())?;
    } else {
        output.lines(&show::toml(&loaded))?;
    }
    Ok(Exit::Done)
}
