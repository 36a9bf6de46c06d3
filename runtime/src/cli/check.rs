//! `interlock check`: the whole configuration, without starting anything.

use interlock_bus::KeyStore;

use super::{CliError, Global, Output, output};
use crate::{config::show, exit::Exit, peers};

/// What `interlock check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    loaded.config.bus_endpoints(&data_dir.run())?;
    crate::component::model_config(&loaded.config.model)?;
    loaded.config.gateway.tls()?;
    // Without keys nobody was ever enrolled here, and what will be is not known.
    let unknown = match KeyStore::open(&data_dir.keys()) {
        Ok(keys) => {
            keys.tokens()?;
            peers::unknown_consumers(&loaded.config, &keys.registry()?)
        }
        Err(_) => Vec::new(),
    };
    let warnings: Vec<String> = loaded.config.gateway.warning().into_iter().chain(unknown).collect();
    let (changed, programs) = (show::changed(&loaded), loaded.config.programs.len());
    if arguments.json {
        let row = serde_json::json!({
            "valid": true, "file": loaded.file, "changed": changed, "programs": programs, "warnings": warnings,
        });
        output.line(&output::json(&row)?)?;
        return Ok(Exit::Done);
    }
    let file = match &loaded.file {
        Some(path) => format!("`{}`", path.display()),
        None => "no file".to_owned(),
    };
    for text in warnings {
        output.say(&format!("warning: {text}"));
    }
    output.line(&format!(
        "configuration is valid: {file}, {changed} settings differ from their defaults, {programs} programs"
    ))?;
    Ok(Exit::Done)
}
