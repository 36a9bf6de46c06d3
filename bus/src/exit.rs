//! The exit codes of both binaries, and which error is which.

use crate::{
    client::WaitError,
    durable::{DurableError, storage::StorageFailure},
    error::{ConnectError, PublishError, RequestError, SubscribeError},
    keys::KeyError,
};

/// How a command ended.
///
/// | code | meaning |
/// |---|---|
/// | 0 | done |
/// | 1 | failed, or no data |
/// | 2 | misuse or configuration |
/// | 3 | not ready, or timed out |
/// | 4 | denied, or wrong key |
/// | 5 | busy, or already running |
/// | 6 | disk or I/O |
/// | 7 | full |
/// | 8 | damaged data |
/// | 9 | version not supported |
/// | 10 | stopped with work pending |
/// | 11 | forced stop |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or no data.
    Failed = 1,
    /// Misuse or configuration.
    Misuse = 2,
    /// Not ready, or timed out.
    NotReady = 3,
    /// Denied, or wrong key.
    Denied = 4,
    /// Busy, or already running.
    Busy = 5,
    /// Disk or I/O.
    Io = 6,
    /// Full.
    Full = 7,
    /// Damaged data.
    Damaged = 8,
    /// Version not supported.
    Version = 9,
    /// Stopped with work pending.
    Pending = 10,
    /// Forced stop.
    Forced = 11,
}

impl Exit {
    /// The number the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// All of them, by their number.
    pub const ALL: [Self; 12] = [
        Self::Done,
        Self::Failed,
        Self::Misuse,
        Self::NotReady,
        Self::Denied,
        Self::Busy,
        Self::Io,
        Self::Full,
        Self::Damaged,
        Self::Version,
        Self::Pending,
        Self::Forced,
    ];

    /// The meaning of a number, if it has one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }

    /// What it means, in a word or two.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed, or no data",
            Self::Misuse => "misuse or configuration",
            Self::NotReady => "not ready, or timed out",
            Self::Denied => "denied, or wrong key",
            Self::Busy => "busy, or already running",
            Self::Io => "disk or I/O",
            Self::Full => "full",
            Self::Damaged => "damaged data",
            Self::Version => "version not supported",
            Self::Pending => "stopped with work pending",
            Self::Forced => "forced stop",
        }
    }

    /// The table of all codes, as it stands at the end of each program's help.
    pub fn help() -> String {
        let lines = Self::ALL.map(|exit| format!("  {:>2}  {}", exit.code(), exit.meaning()));
        format!("Exit codes:\n{}", lines.join("\n"))
    }

    /// What an I/O error is.
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io,
        }
    }

    /// What a key error is.
    pub fn of_key(error: &KeyError) -> Self {
        match error {
            KeyError::Io { source, .. } => Self::of_io(source),
            KeyError::Exposed { .. }
            | KeyError::NotOurs { .. }
            | KeyError::OtherFile { .. }
            | KeyError::Link { .. }
            | KeyError::Filter(_)
            | KeyError::Endpoint(_) => Self::Misuse,
            KeyError::CredentialsMissing { .. } => Self::Io,
            KeyError::Damaged { .. } | KeyError::TokensDamaged { .. } => Self::Damaged,
            KeyError::Expired { .. } | KeyError::Exists { .. } | KeyError::OtherKeys { .. } => Self::Misuse,
            KeyError::WrongPassphrase { .. } => Self::Denied,
            KeyError::Version { .. } => Self::Version,
            _ => Self::Failed,
        }
    }
}

/// Which end a failed bus operation is.
impl From<&ConnectError> for Exit {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Broken { .. } => Self::NotReady,
            ConnectError::WrongServerKey { .. }
            | ConnectError::KeyRefused { .. }
            | ConnectError::Refused { .. } => Self::Denied,
            ConnectError::ProtocolMismatch { .. } | ConnectError::NotInterlock { .. } => Self::Version,
            ConnectError::BadCredentials { .. } => Self::Misuse,
            ConnectError::Will { source, .. } => Self::from(&**source),
            ConnectError::Thread(_) | ConnectError::ThreadLost | ConnectError::Crypto(_) => Self::Failed,
        }
    }
}

impl From<&PublishError> for Exit {
    fn from(error: &PublishError) -> Self {
        match error {
            PublishError::TooLarge { .. } => Self::Misuse,
            PublishError::Full { .. } => Self::Full,
            PublishError::NotConnected { .. } | PublishError::Unconfirmed { .. } => Self::NotReady,
            PublishError::Held { .. } => Self::Busy,
            PublishError::Denied { .. } => Self::Denied,
            PublishError::NotOffered { .. } => Self::Version,
        }
    }
}

impl From<&SubscribeError> for Exit {
    fn from(error: &SubscribeError) -> Self {
        match error {
            SubscribeError::Denied { .. } => Self::Denied,
            SubscribeError::NotConnected { .. } => Self::NotReady,
            SubscribeError::Option { .. } => Self::Misuse,
        }
    }
}

impl From<&RequestError> for Exit {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::NoResponders { .. }
            | RequestError::TimedOut { .. }
            | RequestError::Disconnected => Self::NotReady,
            RequestError::Denied { .. } => Self::Denied,
            RequestError::Busy { .. } => Self::Busy,
            RequestError::TooLarge { .. } => Self::Misuse,
            RequestError::Damaged { .. } => Self::Damaged,
            RequestError::ServerGone | RequestError::Failed { .. } | RequestError::Cancelled => Self::Failed,
        }
    }
}

impl From<&WaitError> for Exit {
    fn from(error: &WaitError) -> Self {
        match error {
            WaitError::TimedOut { .. }
            | WaitError::Absent { .. }
            | WaitError::Unproven { .. }
            | WaitError::NotConnected { .. } => Self::NotReady,
            WaitError::Denied { .. } => Self::Denied,
            WaitError::NotOffered { .. } => Self::Version,
        }
    }
}

impl From<&DurableError> for Exit {
    fn from(error: &DurableError) -> Self {
        match error {
            DurableError::Full { .. } | DurableError::BytesFull { .. } | DurableError::DiskLow { .. } => {
                Self::Full
            }
            DurableError::TooLarge { .. }
            | DurableError::NoConsumers { .. }
            | DurableError::OtherContent { .. }
            | DurableError::Invalid { .. } => Self::Misuse,
            DurableError::ShuttingDown | DurableError::Restarting | DurableError::Busy { .. } => Self::Busy,
            DurableError::Storage { kind, .. } => match kind {
                StorageFailure::Busy => Self::Busy,
                StorageFailure::Disk => Self::Io,
                StorageFailure::Damaged => Self::Damaged,
                _ => Self::Failed,
            },
            DurableError::Denied { .. } => Self::Denied,
            DurableError::NoOutbox { .. } | DurableError::Unconfirmed { .. } => Self::NotReady,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_table() {
        assert!(Exit::ALL.iter().enumerate().all(|(index, exit)| usize::from(exit.code()) == index));
    }

    #[test]
    fn a_full_disk_is_not_any_disk_error() {
        let of = |kind: std::io::ErrorKind| Exit::of_io(&kind.into());
        assert_eq!(of(std::io::ErrorKind::StorageFull), Exit::Full);
        assert_eq!(of(std::io::ErrorKind::PermissionDenied), Exit::Io);
    }
}
