//! Endpoints in credentials files. An installation that was restored or moved elsewhere, or listens elsewhere by its
//! configuration, leaves files behind that name a bus which is dead, or another one's. They follow it here.

use std::{ffi::OsStr, path::PathBuf};

use super::{Credentials, KeyError, KeyState, KeyStore};
use crate::{endpoint::Endpoint, peer::PeerName};

/// Where an installation has its socket, below its data directory. Of any other path nobody can say whose it is.
const SOCKET: [&str; 2] = ["run", "bus.sock"];

/// What became of credentials that name former endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Files in the key store that name the present endpoints now.
    pub changed: Vec<PathBuf>,
    /// Peers whose credentials lie somewhere else, if at all.
    pub elsewhere: Vec<PeerName>,
    /// Files that could not be brought up to date, and why. The next start tries again.
    pub failed: Vec<String>,
}

/// What was changed in a credentials file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// The broker's key.
    pub broker: bool,
    /// The endpoints; those that it named before.
    pub endpoints_before: Option<Vec<Endpoint>>,
    /// Those that it names now.
    pub endpoints: Vec<Endpoint>,
}

impl Renewed {
    /// Whether anything was.
    pub fn is_changed(&self) -> bool {
        self.broker || self.endpoints_before.is_some()
    }
}

impl KeyStore {
    /// Brings the credentials in the key store to `now`, where they name `former`, the endpoints of the last start, or the socket
    /// of another data directory. What people have written there otherwise stays.
    ///
    /// # Errors
    /// [`KeyError`] of the registry; what is wrong with a file is in [`Moved::failed`].
    pub fn move_credentials(&self, former: &[Endpoint], now: &[Endpoint]) -> Result<Moved, KeyError> {
        let _lock = self.lock()?;
        let mut moved = Moved::default();
        for (name, peer) in self.registry()?.peers() {
            let path = Credentials::path_in(self.directory(), name);
            if !path.exists() {
                if peer.state != KeyState::Revoked {
                    moved.elsewhere.push(name.clone());
                }
                continue;
            }
            let follow = Credentials::load(&path).and_then(|mut credentials| {
                let Some(endpoints) = followed(&credentials.endpoints, former, now) else { return Ok(false) };
                credentials.endpoints = endpoints;
                credentials.save(&path).map(|()| true)
            });
            match follow {
                Ok(true) => moved.changed.push(path),
                Ok(false) => {}
                Err(error) => moved.failed.push(error.to_string()),
            }
        }
        Ok(moved)
    }

    /// The endpoints that the credentials of `name` in the key store have; none if there are none.
    pub fn endpoints_of(&self, name: &PeerName) -> Vec<Endpoint> {
        let path = Credentials::path_in(self.directory(), name);
        Credentials::load(&path).map(|credentials| credentials.endpoints).unwrap_or_default()
    }
}

/// What a file that names `named` is to name instead, if it has come from another data directory; `None` for any other.
pub fn moved_here(named: &[Endpoint], now: &[Endpoint]) -> Option<Vec<Endpoint>> {
    followed(named, &[], now)
}

/// Whether one of these is the socket of another data directory than that of `now`.
pub fn names_another_place(endpoints: &[Endpoint], now: &[Endpoint]) -> bool {
    endpoints.iter().any(|endpoint| is_another_place(endpoint, now))
}

fn is_another_place(endpoint: &Endpoint, now: &[Endpoint]) -> bool {
    let Endpoint::Ipc(path) = endpoint else { return false };
    let mut names = path.iter().rev();
    let is_ours = SOCKET.iter().rev().all(|name| names.next() == Some(OsStr::new(name)));
    is_ours && !now.contains(endpoint)
}

/// What a file is to name that names `named`; `None` if that is right, or somebody's choice.
///
/// | the file names | becomes |
/// |---|---|
/// | exactly the endpoints of the last start | the present ones |
/// | the socket of another data directory, and more | ours in its place, and the rest as it is |
/// | anything else | stays |
fn followed(named: &[Endpoint], former: &[Endpoint], now: &[Endpoint]) -> Option<Vec<Endpoint>> {
    if named == now || now.is_empty() {
        return None;
    }
    if named == former {
        return Some(now.to_vec());
    }
    if !names_another_place(named, now) {
        return None;
    }
    let sockets = || now.iter().filter(|endpoint| matches!(endpoint, Endpoint::Ipc(_)));
    let mut followed: Vec<Endpoint> = Vec::new();
    for endpoint in named {
        let instead: Vec<&Endpoint> = match is_another_place(endpoint, now) {
            true => sockets().collect(),
            false => vec![endpoint],
        };
        for endpoint in instead {
            if !followed.contains(endpoint) {
                followed.push(endpoint.clone());
            }
        }
    }
    Some(if followed.is_empty() { now.to_vec() } else { followed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Permissions;

    fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn credentials_follow_their_installation_and_what_people_chose_stays() {
        let (old, new) = ("ipc:///old/run/bus.sock", "ipc:///new/run/bus.sock");
        let (former, now) = (endpoints(&[old, "tcp://127.0.0.1:1"]), endpoints(&[new, "tcp://127.0.0.1:2"]));
        for (named, wanted) in [
            (&[old, "tcp://127.0.0.1:1"][..], Some(&[new, "tcp://127.0.0.1:2"][..])),
            (&[old], Some(&[new])),
            (&[old, "tcp://bus.example:1"], Some(&[new, "tcp://bus.example:1"])),
            (&["ipc:///older/run/bus.sock", old], Some(&[new])),
            (&[new, "tcp://127.0.0.1:2"], None),
            (&[new], None),
            (&["tcp://bus.example:1"], None),
            (&["ipc:///tmp/forwarded.sock"], None),
        ] {
            let wanted = wanted.map(endpoints);
            assert_eq!(followed(&endpoints(named), &former, &now), wanted, "{named:?}");
        }
        // Without a socket there are the others, and before it is known where the broker listens nothing changes.
        let no_socket = endpoints(&["tcp://127.0.0.1:2"]);
        assert_eq!(followed(&endpoints(&[old]), &[], &no_socket), Some(no_socket));
        assert_eq!(followed(&former, &former, &[]), None);
    }

    #[test]
    fn files_of_the_key_store_are_changed_and_those_that_lie_elsewhere_named() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let rights = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let former = endpoints(&["ipc:///old/run/bus.sock"]);
        let names: [PeerName; 3] = ["here", "there", "revoked"].map(|name| name.parse().unwrap());
        let outside = directory.path().join("outside.toml");
        store.issue(&names[0], &rights, &former, None).unwrap();
        store.issue(&names[1], &rights, &former, Some(&outside)).unwrap();
        store.issue(&names[2], &rights, &former, Some(&directory.path().join("gone"))).unwrap();
        store.revoke(&names[2]).unwrap();
        let now = endpoints(&["ipc:///new/run/bus.sock"]);
        let path = Credentials::path_in(store.directory(), &names[0]);
        let wanted = Moved { changed: vec![path], elsewhere: vec![names[1].clone()], failed: Vec::new() };
        assert_eq!(store.move_credentials(&former, &now).unwrap(), wanted);
        assert_eq!(store.endpoints_of(&names[0]), now);
        assert!(store.move_credentials(&former, &now).unwrap().changed.is_empty());
        // What lies elsewhere follows when it is named.
        let renewed = store.renew(&outside, |named| moved_here(named, &now)).unwrap();
        assert_eq!(
            renewed,
            Renewed { broker: false, endpoints_before: Some(former), endpoints: now.clone() }
        );
        assert!(!store.renew(&outside, |named| moved_here(named, &now)).unwrap().is_changed());
        assert_eq!(Credentials::load(&outside).unwrap().endpoints, now);
        let chosen = endpoints(&["tcp://bus.example:1"]);
        assert!(store.renew(&outside, |_| Some(chosen.clone())).unwrap().is_changed());
        assert!(!store.renew(&outside, |named| moved_here(named, &now)).unwrap().is_changed());
    }
}
