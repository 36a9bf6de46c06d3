//! `interlock check`: the whole configuration, without starting anything.

use interlock_bus::KeyStore;

use super::{CliError, Global, Output};
use crate::{config::show, exit::Exit, peers};

pub(super) fn run(global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    loaded.config.bus_endpoints(&data_dir.run())?;
    crate::component::model_config(&loaded.config.model)?;
    let file = match &loaded.file {
        Some(path) => format!("`{}`", path.display()),
        None => "no file".to_owned(),
    };
    // Without keys nobody was ever enrolled here, and what will be is not known.
    if let Ok(registry) = KeyStore::open(&data_dir.keys()).and_then(|keys| keys.registry()) {
        for text in peers::unknown_consumers(&loaded.config, &registry) {
            output.say(&format!("warning: {text}"));
        }
    }
    output.line(&format!(
        "configuration is valid: {file}, {} settings differ from their defaults, {} programs",
        show::changed(&loaded),
        loaded.config.programs.len()
    ))?;
    Ok(Exit::Done)
}
