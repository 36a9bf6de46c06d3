//! A `[[program]]` of the configuration as a child.

use std::{sync::Arc, time::Duration};

use interlock_actors::actor::Failure;
use interlock_bus::{Client, Event, Payload, PeerName, SubscribeOptions, blocking};
use nix::sys::signal::Signal;

use super::{BrokerSeat, built_in_name};
use crate::{
    config::{self, ProgramReadiness, ProgramRestart},
    process::{self, Credentials, ProbeError, ProgramHost, Readiness, ReadySignal},
    supervisor::{ChildSpecification, Clocks, Condition, No, Restart},
};

/// How long the broker, which is in this process, may take to say who is connected.
const PEERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest time between two questions whether a program lives.
const ASK_EVERY_LEAST: Duration = Duration::from_millis(100);

/// Why a `[[program]]` cannot be a child.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// No signal of this name.
    #[error(
        "`program.stop_signal` of `{program}` is `{signal}`, which is not a signal; use a name such as `SIGTERM` or `SIGINT`"
    )]
    Signal {
        /// The program.
        program: PeerName,
        /// The name as given.
        signal: String,
    },
    /// Not a regular expression.
    #[error("`program.readiness` holds no regular expression: {0}")]
    Pattern(#[from] regex_lite::Error),
    /// Not a URL that can be asked.
    #[error("`program.liveness` of `{program}`: {reason}")]
    Liveness {
        /// The program.
        program: PeerName,
        /// What is wrong with it.
        reason: String,
    },
}

/// The child for one `[[program]]`. It needs the broker, and waits for nothing else; so a slow program delays nobody.
///
/// `watcher` is a peer of this process that may subscribe to `$peers/#` and request `$sys/broker/peers`; it is used
/// for `readiness = "bus"`. `others` are all programs: some may wait for a line of this one.
///
/// # Errors
/// [`ProgramError`].
pub fn program(
    configured: &config::Program,
    seat: &BrokerSeat,
    watcher: &PeerName,
    others: &[config::Program],
) -> Result<ChildSpecification, ProgramError> {
    let name = configured.name.clone();
    let stop_signal = configured.stop_signal.parse::<Signal>().map_err(|_| ProgramError::Signal {
        program: name.clone(),
        signal: configured.stop_signal.clone(),
    })?;
    let mut program = process::Program {
        arguments: configured.args.iter().map(Into::into).collect(),
        environment: configured.environment.iter().map(|(key, value)| (key.into(), value.into())).collect(),
        directory: Some(configured.directory.clone()).filter(|directory| !directory.as_os_str().is_empty()),
        credentials: Credentials::Descriptor(Arc::new(seat.incarnation_credentials(name.clone()))),
        readiness: match &configured.readiness {
            ProgramReadiness::Started => Readiness::Started,
            ProgramReadiness::Newline => Readiness::Newline,
            ProgramReadiness::Notify => Readiness::SdNotify,
            ProgramReadiness::Line(pattern) => Readiness::Line(regex_lite::Regex::new(pattern)?),
            ProgramReadiness::Http(probe) => Readiness::Http(probe.clone()),
            ProgramReadiness::Bus => on_the_bus(name.clone(), seat, watcher, configured.ready_timeout),
        },
        heartbeat: Some(configured.heartbeat).filter(|limit| !limit.is_zero()),
        liveness: match configured.liveness.as_str() {
            "" => None,
            url => Some(url.parse().map_err(|error: ProbeError| ProgramError::Liveness {
                program: name.clone(),
                reason: error.to_string(),
            })?),
        },
        awaited: lines_awaited_of(&name, others)?,
        stop_signal,
        grace: configured.grace,
        ..process::Program::new(&configured.command)
    };
    // For whoever reads the list of processes.
    program.guardian.arguments.push(name.as_str().into());
    // The guardian kills at the end of the grace; the supervisor a little later, should the guardian not.
    let stop_grace = configured.grace + Duration::from_secs(1);
    // A heartbeat that is missed is noticed within another half of its limit.
    let ask_every = match configured.heartbeat {
        Duration::ZERO => Clocks::PROCESS.ask_every,
        limit => Clocks::PROCESS.ask_every.min(limit / 2).max(ASK_EVERY_LEAST),
    };
    let clocks =
        Clocks { start_deadline: configured.ready_timeout, stop_grace, ask_every, ..Clocks::PROCESS };
    let restart = match configured.restart {
        ProgramRestart::Permanent => Restart::Permanent,
        ProgramRestart::Transient => Restart::Transient { significant: No },
        ProgramRestart::Temporary => Restart::Temporary { significant: No },
    };
    let child = ChildSpecification::process(name.clone(), ProgramHost::new(name, program))
        .restarts(restart)
        .clocks(clocks)
        .depends_on([built_in_name("broker")])
        .out_of_line();
    Ok(configured
        .needs
        .iter()
        .fold(child, |child, need| child.depends_until(need.name.clone(), need.until.clone())))
}

/// The lines of `name` that other programs wait for.
fn lines_awaited_of(
    name: &PeerName,
    others: &[config::Program],
) -> Result<Vec<regex_lite::Regex>, ProgramError> {
    let needs = others.iter().flat_map(|other| &other.needs).filter(|need| need.name == *name);
    let patterns = needs.filter_map(|need| match &need.until {
        Condition::Line(pattern) => Some(pattern),
        _ => None,
    });
    Ok(patterns.map(|pattern| regex_lite::Regex::new(pattern)).collect::<Result<_, _>>()?)
}

/// Ready when the broker has a session of this name.
fn on_the_bus(name: PeerName, seat: &BrokerSeat, watcher: &PeerName, timeout: Duration) -> Readiness {
    let (seat, watcher) = (seat.clone(), watcher.clone());
    Readiness::Watched(Arc::new(move |signal: ReadySignal| {
        let (seat, watcher, name) = (seat.clone(), watcher.clone(), name.clone());
        // Ends when the program is there, with the broker, or when the start deadline has passed.
        let watch = move || {
            let deadline = std::time::Instant::now() + timeout;
            let client = seat.broker().and_then(|broker| Ok(broker.attach(&watcher)?));
            let seen = client.and_then(|client| {
                blocking::wait_until(wait_for_session(&client, &name), deadline).unwrap_or(Ok(None))
            });
            match seen {
                Ok(Some(proof)) => signal.ready(proof),
                Ok(None) => {}
                Err(failure) => {
                    tracing::error!(program = %name, %failure, "it cannot be seen whether the program is on the bus");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("presence".to_owned()).spawn(watch) {
            tracing::error!(%error, "it cannot be seen whether the program is on the bus: no thread could be started");
        }
    }))
}

/// How it is known that `name` has a session; `None` if the broker ended before that.
async fn wait_for_session(client: &Client, name: &PeerName) -> Result<Option<String>, Failure> {
    let topic = format!("$peers/{name}");
    // Subscribed before asking, so that no connection falls between.
    let mut presence = client.subscribe(&topic.parse()?, SubscribeOptions::default()).await?;
    let peers = client.request(&"$sys/broker/peers".parse()?, Payload::default(), PEERS_TIMEOUT).await?;
    let peers: serde_json::Value = serde_json::from_slice(&peers.payload)?;
    let there = |peer: &serde_json::Value| peer["peer"] == name.as_str();
    if peers.as_array().is_some_and(|peers| peers.iter().any(there)) {
        return Ok(Some("its session was in the broker's list of peers".to_owned()));
    }
    while let Some(event) = presence.next().await {
        let Event::Message(message) = event else { continue };
        let event: serde_json::Value = serde_json::from_slice(&message.payload)?;
        if event["state"] == "connected" {
            return Ok(Some(format!("its session was announced on `{topic}`")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crossbeam_channel::{Receiver, bounded};
    use interlock_actors::host::{HostReport, Reports};
    use interlock_bus::{Broker, BrokerConfig, ConnectOptions, Endpoint, KeyStore, Permissions};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Stand {
        seat: BrokerSeat,
        name: PeerName,
        watcher: PeerName,
        directory: tempfile::TempDir,
    }

    impl Stand {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (keys, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
            let [name, watcher] = ["echo", "runtime"].map(|name| name.parse::<PeerName>().unwrap());
            let watching = Permissions::from_lists(&[], &["$peers/#"], &[], &["$sys/broker/peers"]).unwrap();
            let echoing = Permissions::from_lists(&[], &[], &["echo"], &[]).unwrap();
            keys.issue(&watcher, &watching, &[], None).unwrap();
            keys.issue(&name, &echoing, &[], None).unwrap();
            let endpoint = Endpoint::Ipc(directory.path().join("bus.sock"));
            let broker = Broker::start(BrokerConfig::from_key_store(&keys, vec![endpoint]).unwrap()).unwrap();
            Self { seat: BrokerSeat::with(broker), name, watcher, directory }
        }

        /// Begins to watch, as the host does when the program has been started.
        fn watch(&self) -> Receiver<HostReport> {
            let Readiness::Watched(watch) =
                on_the_bus(self.name.clone(), &self.seat, &self.watcher, DEADLINE)
            else {
                panic!("expected a watch")
            };
            let (sink, reports) = bounded(4);
            watch(ReadySignal::new(Reports::new(move |report| sink.send(report).unwrap()), 1));
            reports
        }
    }

    #[test]
    fn a_program_is_ready_when_its_session_is_there_before_or_after_it_was_looked_for() {
        let stand = Stand::new();
        let credentials = stand.seat.incarnation_credentials(stand.name.clone());
        let parse = |text: &str| interlock_bus::Credentials::from_toml(text, Path::new("test")).unwrap();
        let first = parse(&credentials(1).unwrap());

        let reports = stand.watch();
        let session = Client::connect_blocking(ConnectOptions::new(first.clone())).unwrap();
        assert!(matches!(reports.recv_timeout(DEADLINE).unwrap(), HostReport::Ready { .. }));
        assert!(matches!(stand.watch().recv_timeout(DEADLINE).unwrap(), HostReport::Ready { .. }));

        // The next incarnation has a key of its own, and the one before is void.
        let second = parse(&credentials(2).unwrap());
        assert_ne!(first.keys.public, second.keys.public);
        drop(session);
        assert!(Client::connect_blocking(ConnectOptions::new(first)).is_err());
        Client::connect_blocking(ConnectOptions::new(second)).unwrap();
        drop(stand.directory);
    }
}
