//! A `[[program]]` of the configuration as a child.

use std::{sync::Arc, time::Duration};

use interlock_bus::PeerName;
use nix::sys::signal::Signal;

use super::{BrokerSeat, Presence, Tie, built_in_name};
use crate::{
    config::{self, ProgramReadiness, ProgramRestart},
    process::{self, Credentials, ProbeError, ProgramHost, Readiness},
    supervisor::{ChildSpecification, Clocks, Condition, No, Restart},
};

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
/// `presence` knows whether it is on the bus. `others` are all programs: some may wait for a line of this one.
///
/// # Errors
/// [`ProgramError`].
pub fn program(
    configured: &config::Program,
    seat: &BrokerSeat,
    presence: &Presence,
    others: &[config::Program],
) -> Result<ChildSpecification, ProgramError> {
    let name = configured.name.clone();
    let stop_signal = configured.stop_signal.parse::<Signal>().map_err(|_| ProgramError::Signal {
        program: name.clone(),
        signal: configured.stop_signal.clone(),
    })?;
    let tie = match configured.readiness {
        ProgramReadiness::Bus => Tie::Readiness,
        _ => Tie::Loose,
    };
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
            ProgramReadiness::Bus => Readiness::Watched,
        },
        heartbeat: Some(configured.heartbeat).filter(|limit| !limit.is_zero()),
        liveness: match configured.liveness.as_str() {
            "" => None,
            url => Some(url.parse().map_err(|error: ProbeError| ProgramError::Liveness {
                program: name.clone(),
                reason: error.to_string(),
            })?),
        },
        watched: Some(presence.of(name.clone(), tie)),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crossbeam_channel::{Receiver, bounded};
    use interlock_actors::host::{HostReport, Reports};
    use interlock_bus::{
        Broker, BrokerConfig, Client, ConnectOptions, Endpoint, KeyStore, Permissions, blocking,
    };

    use super::*;
    use crate::process::{IssuedCredentials, OutsideSignal};

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Stand {
        seat: BrokerSeat,
        name: PeerName,
        presence: Presence,
        keys: KeyStore,
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
            let seat = BrokerSeat::with(broker);
            let presence = Presence::open(&seat, &watcher).unwrap();
            Self { seat, name, presence, keys, directory }
        }

        /// Stops the broker; `between` is done while there is none.
        fn restart_broker(&self, between: impl FnOnce()) {
            let broker = self.seat.broker().unwrap();
            let (endpoints, incarnations) = (broker.endpoints().to_vec(), broker.incarnations());
            broker.stop(Duration::ZERO);
            between();
            let config = BrokerConfig::from_key_store(&self.keys, endpoints).unwrap();
            self.seat.take(Broker::start(config.with_incarnations(&incarnations)).unwrap());
        }

        /// Begins to watch, as the host does when the program has been started.
        fn watch(&self, tie: Tie) -> Receiver<HostReport> {
            let (sink, reports) = bounded(16);
            let sink = Reports::new(move |report| drop(sink.try_send(report)));
            self.presence.of(self.name.clone(), tie)(OutsideSignal::new(sink));
            reports
        }
    }

    fn is_ready(reports: &Receiver<HostReport>) -> bool {
        let is_ready = matches!(reports.recv_timeout(DEADLINE).unwrap(), HostReport::Ready { .. });
        is_ready && reports.recv_timeout(DEADLINE).unwrap() == HostReport::Impaired(None)
    }

    fn impaired(reports: &Receiver<HostReport>) -> Option<String> {
        match reports.recv_timeout(DEADLINE).unwrap() {
            HostReport::Impaired(why) => why,
            other => panic!("{other:?} instead of an impairment"),
        }
    }

    #[test]
    fn a_program_is_ready_when_its_session_is_there_before_or_after_it_was_looked_for() {
        let stand = Stand::new();
        let credentials = stand.seat.incarnation_credentials(stand.name.clone());
        let parse = |text: &str| interlock_bus::Credentials::from_toml(text, Path::new("test")).unwrap();
        let issued = credentials(1).unwrap();
        let first = parse(issued.text());

        let reports = stand.watch(Tie::Readiness);
        let session = Client::connect_blocking(ConnectOptions::new(first.clone())).unwrap();
        assert!(is_ready(&reports));
        assert!(is_ready(&stand.watch(Tie::Readiness)));

        // The next incarnation has a key of its own; that of one that has ended is void.
        drop((session, issued));
        let issued = credentials(2).unwrap();
        let second = parse(issued.text());
        assert_ne!(first.keys.public, second.keys.public);
        assert!(Client::connect_blocking(ConnectOptions::new(first)).is_err());
        Client::connect_blocking(ConnectOptions::new(second)).unwrap();
        drop(stand.directory);
    }

    #[test]
    fn a_program_that_ran_is_impaired_while_a_session_that_it_lost_is_gone_but_not_after_a_goodbye() {
        let stand = Stand::new();
        let credentials = stand.seat.incarnation_credentials(stand.name.clone());
        let parse = |text: &str| interlock_bus::Credentials::from_toml(text, Path::new("test")).unwrap();
        let connect = |issued: &IssuedCredentials| {
            Client::connect_blocking(ConnectOptions::new(parse(issued.text()))).unwrap()
        };
        let first = credentials(1).unwrap();

        let reports = stand.watch(Tie::Loose);
        let session = connect(&first);
        assert_eq!(impaired(&reports), None, "it does not belong on the bus, so that is no readiness");
        blocking::wait(session.close());
        let session = connect(&first);
        assert_eq!(impaired(&reports), None, "a goodbye is no loss");
        // Its key becomes void: the broker ends the session.
        drop(first);
        assert!(impaired(&reports).unwrap().contains("its session on the bus is gone"), "a loss is one");
        drop(session);
        let second = credentials(2).unwrap();
        let _session = connect(&second);
        assert_eq!(impaired(&reports), None, "it is back");

        // One whose readiness is its session is impaired also when it says goodbye.
        let reports = stand.watch(Tie::Readiness);
        assert!(is_ready(&reports));
        blocking::wait(_session.close());
        assert!(impaired(&reports).unwrap().contains("said goodbye"));
    }

    #[test]
    fn a_program_is_impaired_while_there_is_no_broker_and_until_it_is_back_at_the_next() {
        let stand = Stand::new();
        let credentials = stand.seat.incarnation_credentials(stand.name.clone());
        let issued = credentials(1).unwrap();
        let credentials = interlock_bus::Credentials::from_toml(issued.text(), Path::new("test")).unwrap();
        let reports = stand.watch(Tie::Readiness);
        // It connects again by itself.
        let _session = Client::connect_blocking(ConnectOptions::new(credentials)).unwrap();
        assert!(is_ready(&reports));
        stand.restart_broker(|| {
            let why = impaired(&reports).expect("there is no broker");
            assert!(why.contains("the broker has ended") || why.contains("session"), "{why}");
        });
        let again = [(); 2].map(|()| reports.recv_timeout(DEADLINE).unwrap());
        assert!(matches!(again, [HostReport::Ready { .. }, HostReport::Impaired(None)]), "{again:?}");
    }
}
