//! Finds the running instance: its data directory and the operator's credentials in it.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::{endpoint::Endpoint, exit::Exit, keys::Credentials};

/// The credentials to use: `creds` if given, else the operator's in the data directory.
pub(super) fn credentials(creds: Option<&Path>, data_dir: Option<&Path>) -> Result<Credentials, Failure> {
    if let Some(path) = creds {
        return Ok(Credentials::load(path)?);
    }
    let directory = data_directory(data_dir)?;
    let path = directory.join("keys").join("operator.toml");
    if !path.exists() {
        return Err(Failure::new(
            Exit::NotReady,
            format!(
                "no instance found: `{}` does not exist; start one with `interlock run`, or name another with --data-dir DIR or --creds FILE",
                path.display()
            ),
        ));
    }
    let mut credentials = Credentials::load(&path)?;
    // The socket of the running instance goes first, whatever the file says about it.
    let socket = Endpoint::Ipc(directory.join("run").join("bus.sock"));
    if let Endpoint::Ipc(path) = &socket
        && path.exists()
        && !credentials.endpoints.contains(&socket)
    {
        credentials.endpoints.insert(0, socket);
    }
    Ok(credentials)
}

/// `--data-dir` or `INTERLOCK_DATA_DIR` (which clap has merged), else the XDG directory.
pub(super) fn data_directory(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return std::path::absolute(path).map_err(|error| {
            Failure::new(Exit::Misuse, format!("data directory `{}`: {error}", path.display()))
        });
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local").join("share")))
        .map(|base| base.join("interlock"))
        .ok_or_else(|| {
            let message =
                "neither XDG_DATA_HOME nor HOME is set; name the data directory with --data-dir DIR";
            Failure::new(Exit::Misuse, message)
        })
}
