//! Keys on disk: the key store, the registry of authorised peers, credentials files.
//!
//! A key store is one directory (0700) with one file (0600) per secret:
//! `broker.toml` (the broker's key pair), `authorized.toml` (the registry), `NAME.toml` (credentials of a peer), and with
//! `last-use.json`, which holds no secret (when each key was last used), and `audit.jsonl` (who has changed what).

pub mod archive;
mod attached;
pub mod audit;
pub mod broker_keys;
pub mod credentials;
pub mod last_use;
pub mod moved;
pub mod permissions;
pub mod private_file;
pub mod registry;
pub mod registry_file;
pub mod rotation;
pub mod rule_source;
mod staged;
pub mod store;
pub mod token_file;

pub use audit::Audit;
pub use broker_keys::BrokerKeys;
pub use credentials::Credentials;
pub use last_use::LastUse;
pub use moved::{Moved, Renewed};
pub use permissions::{Decision, Permissions, Right, RightError, Rules};
pub use registry::{KeyState, Registry};
pub use rule_source::RuleSource;
pub use store::{Keep, KeyStore};

use std::path::PathBuf;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use crate::{endpoint::EndpointError, peer::PeerName, topic::TopicError};

/// Why keys could not be read or written. Every message names the file and the way out; none
/// contains a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file or directory cannot be used.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Others can read a secret.
    #[error("`{}` can be read by others (mode {mode:03o}); run `chmod {wanted:03o} {}` and consider its keys known", path.display(), path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The bits it must have at most.
        wanted: u32,
    },
    /// A secret is not a plain file of ours (a link, a device, another user's).
    #[error("`{}` is {found}; a key file must be a plain file that belongs to the user who runs this", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// A directory for secrets is a link: what it names can be exchanged, and its rights are not the link's to give.
    #[error("`{}` is a symbolic link to `{}`; secrets are kept in a directory of their own: remove the link, and move what it names there, or let a new one be made", path.display(), target.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// The text is not what the file must hold.
    #[error("`{}` is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with line and key where known, never with a value of a secret.
        problem: String,
    },
    /// The list of the gateway's tokens cannot be read. What is in it stays in force where it was read before.
    #[error(
        "`{}` is damaged: {problem}; mend it there, or `interlock tokens reset` puts it aside and revokes all tokens; \
         `interlock tokens revoke NAME` ends one meanwhile", path.display()
    )]
    TokensDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with line and column where known.
        problem: String,
    },
    /// Credentials are not written over anything but credentials of the same peer.
    #[error("`{}` is there and holds no credentials of `{name}`; nothing is written over it: choose another file, or remove that one", path.display())]
    OtherFile {
        /// Whose credentials were to be written.
        name: PeerName,
        /// The file that is there.
        path: PathBuf,
    },
    /// A peer of that name is not in the registry.
    #[error("no peer `{name}` in `{}`; `interlock keys list` shows those there are", path.display())]
    UnknownPeer {
        /// The name asked for.
        name: PeerName,
        /// The registry.
        path: PathBuf,
    },
    /// A peer of that name is there already.
    #[error("peer `{name}` is already in `{}`; revoke it first, or choose another name", path.display())]
    PeerExists {
        /// The name asked for.
        name: PeerName,
        /// The registry.
        path: PathBuf,
    },
    /// A peer is enrolled, and the file with its secret key is gone.
    #[error("`{}` is missing although `{name}` is enrolled; put it back, or give `{name}` a new key with `interlock keys revoke {name}` and `interlock keys issue {name}`", path.display())]
    CredentialsMissing {
        /// The peer.
        name: PeerName,
        /// Its credentials file.
        path: PathBuf,
    },
    /// A revoked peer is not given another key by the way.
    #[error("`{name}` is revoked; `interlock keys issue {name}` enrols it again, with rights of your choice")]
    Revoked {
        /// The peer.
        name: PeerName,
    },
    /// A new key would be as void as the old one.
    #[error("the keys of `{name}` have expired at {}; say until when the new one is to work, for example `--expires 30d`", time_text(*.expires_ms))]
    Expired {
        /// The peer.
        name: PeerName,
        /// When that was, Unix milliseconds.
        expires_ms: u64,
    },
    /// What was exported is sealed under another passphrase.
    #[error("the passphrase does not open `{}`", path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// What was exported was written by a later program.
    #[error("`{}` has version {version}, which this program does not know; a later one does", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// A file that would be written over.
    #[error("`{}` is there already; choose another name, or remove it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What is to be imported would take the place of other keys.
    #[error("{names} have other keys here than in `{}`; nothing was changed. `--replace` gives them those of the file, and what used theirs is shut out", path.display())]
    OtherKeys {
        /// Who.
        names: String,
        /// What was to be imported.
        path: PathBuf,
    },
    /// A filter in a permission.
    #[error("permission is not a topic filter: {0}")]
    Filter(#[from] TopicError),
    /// An endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// A time in Unix milliseconds as it stands in files and messages: RFC 3339, UTC.
pub fn time_text(ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX));
    time.unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Keeps the memory of this process, and the keys in it, out of core dumps and away from the debuggers of
/// others of the same user. For programs, at their start: a library does not change its process unasked.
pub fn keep_memory_private() {
    // Without these a dump may be written; nothing else depends on them.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}
