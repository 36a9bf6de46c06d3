//! `interlock db init`.

use interlock_actors::store;
use interlock_bus::keys::private_file;

use super::{CliError, Form, Global, Output, json};
use crate::{exit::Exit, lifecycle::DataDir};

pub(super) fn run(
    form: &Form,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    data_dir.create()?;
    private_file::private_directory(&data_dir.keys())?;
    let vault = global.vault(data_dir);
    let done = store::initialise(&data_dir.database(), &vault.open_or_create()?)?;
    if form.json {
        let mut line = serde_json::json!({ "path": data_dir.database() });
        if let (Some(line), Ok(serde_json::Value::Object(done))) =
            (line.as_object_mut(), serde_json::to_value(&done))
        {
            line.extend(done);
        }
        output.line(&json(&line)?)?;
        return Ok(Exit::Done);
    }
    let path = data_dir.database();
    let version = done.schema_version;
    output.line(&match (done.made, done.applied.is_empty()) {
        (true, _) => format!("made `{}` with schema version {version}", path.display()),
        (false, false) => format!("brought `{}` up to schema version {version}", path.display()),
        (false, true) => format!("`{}` is at schema version {version} already", path.display()),
    })?;
    Ok(Exit::Done)
}
