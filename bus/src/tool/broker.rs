//! `bus broker`

use std::{path::Path, thread, time::Duration};

use nix::sys::signal::{SigSet, Signal, kill};

use super::{Failure, Output, locate};
use crate::{
    blocking,
    broker::{Bounds, Broker, BrokerConfig, BrokerError, BrokerHandle},
    endpoint::Endpoint,
    exit::Exit,
    keys::{KeyStore, Permissions, Rules, private_file},
    peer::PeerName,
};

/// How long sessions may take to get what is queued for them after a signal.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What `bus broker` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus broker --data-dir ./bus-data\n  bus broker --listen tcp://0.0.0.0:5555 --sessions-max 1000"
)]
pub(super) struct Arguments {
    /// Where to listen; by default tcp://127.0.0.1:5555 and the socket in the data directory
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<Endpoint>,
    /// Messages queued towards one subscription at most
    #[arg(long, value_name = "COUNT", default_value_t = Bounds::default().send_queue_messages, value_parser = clap::value_parser!(u32).range(1..))]
    send_queue_messages: u32,
    /// The same in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Bounds::default().send_queue_bytes, value_parser = clap::value_parser!(u32).range(65_536..))]
    send_queue_bytes: u32,
    /// Sessions at the same time
    #[arg(long, value_name = "COUNT", default_value_t = Bounds::default().sessions_max)]
    sessions_max: usize,
    /// Bytes of all retained values
    #[arg(long, value_name = "BYTES", default_value_t = Bounds::default().retained_bytes_max)]
    retained_bytes_max: usize,
}

pub(super) fn run(
    arguments: &Arguments,
    data_dir: Option<&Path>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let directory = locate::data_directory(data_dir)?;
    private_file::private_directory_behind(&directory)?;
    let run_directory = directory.join("run");
    private_file::private_directory(&run_directory)?;
    let (store, is_new) = KeyStore::open_or_create(&directory.join("keys"))?;
    if is_new {
        output.note(&format!("made a key store in `{}`", directory.join("keys").display()));
    }
    let endpoints = match &arguments.listen[..] {
        [] => vec![
            Endpoint::Ipc(run_directory.join("bus.sock")),
            Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 5555 },
        ],
        chosen => chosen.to_vec(),
    };
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| signals.add(signal));
    let of_system =
        |what: &'static str| move |error: nix::Error| Failure::new(Exit::Io, format!("{what}: {error}"));
    // Before any thread is started, so that all of them inherit it.
    signals.thread_block().map_err(of_system("cannot block signals"))?;

    crate::broker::raise_open_files_limit();
    let bounds = Bounds {
        send_queue_messages: arguments.send_queue_messages,
        send_queue_bytes: arguments.send_queue_bytes,
        sessions_max: arguments.sessions_max,
        retained_bytes_max: arguments.retained_bytes_max,
    };
    let config = BrokerConfig { bounds, ..BrokerConfig::from_key_store(&store, endpoints)? };
    let broker = Broker::start(config).map_err(failure)?;
    let operator: PeerName = "operator".parse().map_err(|error| Failure::new(Exit::Misuse, error))?;
    store.ensure(&operator, &everything()?, broker.endpoints())?;
    for endpoint in broker.endpoints() {
        output.line(&format!("listening on {endpoint}"))?;
    }
    watch(&broker)?;
    let signal = signals.wait().map_err(of_system("cannot wait for signals"))?;
    if let Some(reason) = broker.ended().borrow().clone() {
        return Err(Failure::new(Exit::Failed, format!("the broker has ended: {reason}")));
    }
    output.note(&format!("{signal}: stopping"));
    broker.stop(STOP_GRACE);
    Ok(Exit::Done)
}

/// The operator may do everything, also on the bus's own topics.
pub(super) fn everything() -> Result<Permissions, Failure> {
    let all = || -> Result<Rules, Failure> {
        Ok(Rules::allowing(["#".parse()?, "$sys/#".parse()?, "$peers/#".parse()?]))
    };
    Ok(Permissions { publish: all()?, subscribe: all()?, serve: all()?, request: all()?, wait: true })
}

/// Ends the wait for a signal if the broker ends by itself.
fn watch(broker: &BrokerHandle) -> Result<(), Failure> {
    let mut ended = broker.ended();
    let watching = move || {
        // The sender ends with the broker's thread, which is what is waited for.
        let _ = blocking::wait(ended.wait_for(Option::is_some));
        let _ = kill(nix::unistd::getpid(), Signal::SIGTERM);
    };
    thread::Builder::new()
        .name("bus-watch".to_owned())
        .spawn(watching)
        .map(drop)
        .map_err(|error| Failure::new(Exit::Io, format!("cannot start a thread: {error}")))
}

pub(super) fn failure(error: BrokerError) -> Failure {
    let exit = match &error {
        BrokerError::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => Exit::Busy,
        BrokerError::Bind { .. } | BrokerError::Thread(_) => Exit::Io,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
