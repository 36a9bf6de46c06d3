//! `interlock check`: the whole configuration, without starting anything.

use super::{CliError, Global, Output};
use crate::{config::show, exit::Exit};

pub(super) fn run(global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    loaded.config.bus_endpoints(&data_dir.run())?;
    crate::component::model_config(&loaded.config.model)?;
    let file = match &loaded.file {
        Some(path) => format!("`{}`", path.display()),
        None => "no file".to_owned(),
    };
    output.line(&format!(
        "configuration is valid: {file}, {} settings differ from their defaults, {} programs",
        show::changed(&loaded),
        loaded.config.programs.len()
    ))?;
    Ok(Exit::Done)
}
