//! Telling a service manager (systemd) how it goes: `sd_notify(3)`, without a library. `runtime/interlock.service` is
//! the unit for it.
//!
//! | sent | when |
//! |---|---|
//! | `READY=1` | the first report has been made: every component is ready or has failed once |
//! | `STATUS=...` | then, and whenever the state of the tree changes |
//! | `WATCHDOG=1` | twice in each `WATCHDOG_USEC`, if the supervisor answers; so one that hangs is noticed |
//! | `STOPPING=1` | a shutdown begins |

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::supervisor::SupervisorHandle;

/// The shortest time between two signs of life: a manager that asks for more is not a manager.
const BEAT_LEAST: Duration = Duration::from_millis(10);

/// The pace of a clock that nobody looks at.
const STATUS_ONLY: Duration = Duration::from_secs(3600);

/// The service manager that started this process, if one did.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    beat: Option<Duration>,
}

/// Why a service manager cannot be told anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceManagerError {
    /// Not a path and not an abstract name.
    #[error("`NOTIFY_SOCKET` is `{}`, which is neither an absolute path nor an abstract name that begins with `@`", .0.display())]
    Address(OsString),
    /// The system does not let us.
    #[error("the service manager's socket `{}` cannot be used: {source}", address.display())]
    Socket {
        /// Its address.
        address: OsString,
        /// The system's reason.
        source: io::Error,
    },
}

impl ServiceManager {
    /// The manager that the environment names, or none.
    ///
    /// # Errors
    /// [`ServiceManagerError`]; then it is better not to run than to be killed for silence.
    pub fn from_environment() -> Result<Self, ServiceManagerError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(value_of: impl Fn(&str) -> Option<OsString>) -> Result<Self, ServiceManagerError> {
        let variable = |name: &str| value_of(name).filter(|value| !value.is_empty());
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let Some(address) = variable("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        // The variables may have been meant for whoever started us.
        let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit =
            number("WATCHDOG_USEC").filter(|limit| is_for_us && *limit > 0).map(Duration::from_micros);
        Self::connect(address, limit)
    }

    /// A manager at `address` that wants a sign of life within each `limit`.
    fn connect(address: OsString, limit: Option<Duration>) -> Result<Self, ServiceManagerError> {
        let to = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(&address),
            _ => return Err(ServiceManagerError::Address(address)),
        };
        let socket = to.and_then(|to| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&to)?;
            // A manager that does not read must not hold us.
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let socket = socket.map_err(|source| ServiceManagerError::Socket { address, source })?;
        Ok(Self { socket: Some(socket), beat: limit.map(|limit| (limit / 2).max(BEAT_LEAST)) })
    }

    /// Gives signs of life as long as the supervisor does, and tells of the tree's state when it changes. Never ends.
    pub async fn beats(&self, tree: &SupervisorHandle) {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        let mut beat = interval(self.beat.unwrap_or(STATUS_ONLY));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut view = tree.watch();
        let mut told = None;
        loop {
            tokio::select! {
                _ = beat.tick(), if self.beat.is_some() => {
                    let tree = tree.clone();
                    // The answer may take its time; meanwhile signals are heard.
                    if tokio::task::spawn_blocking(move || tree.responds()).await.unwrap_or(false) {
                        self.alive();
                    }
                }
                Ok(()) = view.changed() => {
                    let state = view.borrow_and_update().state;
                    if told.replace(state) != Some(state) {
                        self.status(state.as_str());
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// It can be used; `status` says how well.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What it does now.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// It lives.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// A shutdown has begun.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_of_each_step_at_a_path_or_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("interlock-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (address, manager) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ] {
            let told = ServiceManager::connect(address, Some(Duration::from_secs(2))).unwrap();
            assert_eq!(told.beat, Some(Duration::from_secs(1)));
            told.ready("run\nning");
            told.alive();
            told.stopping("SIGTERM");
            let heard = || {
                let mut buffer = [0; 256];
                let bytes = manager.recv(&mut buffer).unwrap();
                String::from_utf8(buffer[..bytes].to_vec()).unwrap()
            };
            assert_eq!(heard(), "READY=1\nSTATUS=run ning");
            assert_eq!(heard(), "WATCHDOG=1");
            assert_eq!(heard(), "STOPPING=1\nSTATUS=SIGTERM");
        }
    }

    #[test]
    fn signs_of_life_are_owed_only_to_a_manager_that_means_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let own = std::process::id();
        let beat = |limit: &str, process: Option<u32>| {
            let told = ServiceManager::from_variables(|name| match name {
                "NOTIFY_SOCKET" => Some(path.clone().into()),
                "WATCHDOG_USEC" => Some(limit.into()),
                "WATCHDOG_PID" => process.map(|process| process.to_string().into()),
                _ => None,
            });
            let told = told.unwrap();
            assert!(told.socket.is_some(), "it is told of the steps all the same");
            told.beat
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!((beat("2000000", None), beat("2000000", Some(own))), (second, second));
        assert_eq!(beat("2000000", Some(own + 1)), None, "whoever started us owes them");
        assert_eq!((beat("0", Some(own)), beat("", None), beat("soon", None)), (None, None, None));
        let nobody = ServiceManager::from_variables(|_| None).unwrap();
        assert!(nobody.socket.is_none() && nobody.beat.is_none());
    }

    #[test]
    fn an_address_that_is_none_is_named_and_a_manager_that_is_not_there_too() {
        let error = ServiceManager::connect("notify".into(), None).unwrap_err();
        assert!(error.to_string().contains("`notify`"), "{error}");
        let error = ServiceManager::connect("/nonexistent/notify".into(), None).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/notify"), "{error}");
    }
}
