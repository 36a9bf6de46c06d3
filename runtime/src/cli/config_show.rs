//! `interlock config`: every setting and where its value comes from, what is not the default, and a schema for editors.

use clap::Subcommand;

use super::{CliError, Global, Output};
use crate::{
    config::{Config, DEFAULTS, Sources, json_schema::json_schema, show},
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
    /// Print the settings that are not the default, with the default and where each comes from.
    Diff {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a JSON Schema of the configuration file, for editors.
    Schema,
}

pub(super) fn run(verb: &Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    match verb {
        Verb::Show { defaults: true, json: false } => output.lines(DEFAULTS)?,
        Verb::Show { defaults, json } => {
            let loaded = if *defaults { Config::load(&Sources::default())? } else { global.load()? };
            match json {
                true => output.line(&show::json(&loaded).to_string())?,
                false => output.lines(&show::toml(&loaded))?,
            }
        }
        Verb::Diff { json: true } => output.line(&show::difference_json(&global.load()?).to_string())?,
        Verb::Diff { json: false } => output.lines(&show::difference(&global.load()?))?,
        Verb::Schema => output.lines(&format!("{:#}", json_schema()))?,
    }
    Ok(Exit::Done)
}
