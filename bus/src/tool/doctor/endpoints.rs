//! Whether the broker answers where the credentials say: a whole session each, because whoever only looks whether
//! somebody listens is refused as one who has not finished his handshake, and counted.

use std::{
    os::unix::fs::FileTypeExt,
    path::Path,
    time::{Duration, Instant},
};

use super::{Finding, Level, Patient, quoted};
use crate::{
    client::{Client, ConnectOptions},
    endpoint::Endpoint,
    error::ConnectError,
    exit::Exit,
    keys::Credentials,
};

const CHECK: &str = "endpoints.session";

/// The first session that was made, and what there is to say of each endpoint.
pub(super) fn examine(patient: &Patient, timeout: Duration) -> (Option<Client>, Vec<Finding>) {
    let Ok(credentials) = &patient.credentials else { return (None, Vec::new()) };
    let mut first = None;
    let mut findings: Vec<Finding> = Vec::new();
    for endpoint in &credentials.endpoints {
        let begun = Instant::now();
        let only = Credentials { endpoints: vec![endpoint.clone()], ..credentials.clone() };
        match Client::connect_blocking(ConnectOptions::new(only).timeout(timeout)) {
            Ok(client) => {
                let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
                findings.push(Finding::ok(CHECK, format!("`{endpoint}`: a session in {milliseconds:.1} ms")));
                match first {
                    None => first = Some(client),
                    Some(_) => client.close_blocking(),
                }
            }
            Err(error) => findings.push(judged(endpoint, credentials, &error)),
        }
    }
    if first.is_some() {
        // Clients take the next one.
        let failures = findings.iter_mut().filter(|finding| finding.level == Level::Fail);
        failures.for_each(|finding| (finding.level, finding.exit) = (Level::Warn, Exit::Done));
    }
    (first, findings)
}

fn judged(endpoint: &Endpoint, credentials: &Credentials, error: &ConnectError) -> Finding {
    let exit = Exit::from(error);
    let fail = |found: String| Finding::fail(CHECK, exit, found);
    match (error, endpoint) {
        (ConnectError::Unreachable { source, .. }, Endpoint::Ipc(path)) => {
            let found = unreachable_socket(path, source);
            fail(found.0).remedy(found.1)
        }
        (ConnectError::Unreachable { .. }, _) => fail(error.to_string()).remedy("interlock run"),
        _ => fail(error.to_string()).remedy(match exit {
            Exit::Denied => format!("interlock keys show {}", credentials.name),
            Exit::Version => "bus --version; interlock --version".to_owned(),
            _ => "interlock status".to_owned(),
        }),
    }
}

/// What is wrong with a socket that takes nobody, and what to do.
fn unreachable_socket(path: &Path, error: &std::io::Error) -> (String, String) {
    let (shown, start) = (path.display(), || "interlock run".to_owned());
    match std::fs::symlink_metadata(path) {
        Err(_) => (format!("no socket `{shown}`: nobody listens there"), start()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            (format!("`{shown}` is no socket"), format!("rm -i {}", quoted(path)))
        }
        Ok(_) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            let found = format!(
                "`{shown}` is stale: the socket's file is there, and nobody listens; the next start replaces it"
            );
            (found, start())
        }
        Ok(_) => (format!("cannot reach `{shown}`: {error}"), "interlock status".to_owned()),
    }
}
