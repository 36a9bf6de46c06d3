//! The program as a story: configure, listen, build, run, wait for a signal, drain with a deadline, exit code.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use interlock_actors::{
    actor::Failure,
    gateway::{Port, Token, tokens::is_bearer},
    host::Mailroom,
    intake::Intake,
    outbox::OutboxSeat,
    store::{PassphraseSources, StoreSeat, Vault},
};
use interlock_bus::{Endpoint, KeyStore, durable::Left};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    admin::{Admin, BackupDesk},
    audit,
    builder::Extras,
    cli::{self, CliError, Output},
    config::{Loaded, live::LiveConfig},
    exit::Exit,
    lifecycle::{
        DataDir, Instance, InstanceFile, InstanceLock, ServiceManager, Shutdown, StopReason, StopSignals,
        WATCHDOG_SLACK, Watchdog, end_process,
    },
    peers,
    reload::{Reloader, describe},
    site::{self, Site, Slot},
    supervisor::{
        ChildSnapshot, Children, Outcome, ShutdownPhases, State, Strategy, Supervision, Supervisor,
        SupervisorHandle, TreeSnapshot, Why,
        stall_watch::{Health, Patience, Watch},
    },
    telemetry::{self, Levels},
    tree::BrokerSeat,
};

/// How long the first report waits for components that are still starting. They go on after it.
pub(crate) const REPORT_AFTER_MAX: Duration = Duration::from_secs(35);

/// How long the last log lines may take to be printed.
const CONSOLE_GRACE: Duration = Duration::from_millis(500);

/// Name of the supervisor.
const ROOT: &str = "root";

/// Runs until asked to stop.
pub(crate) fn run(
    loaded: Loaded,
    passphrase: PassphraseSources,
    extras: Extras,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let extras = extras.checked(loaded.config.programs.iter().map(|program| &program.name))?;

    // Configure: what can fail without anything having been made fails first.
    let data_dir = cli::data_dir(&loaded.config)?;
    let endpoints = loaded.config.bus_endpoints(&data_dir.run())?;
    crate::component::model_config(&loaded.config.model)?;
    let tls = loaded.config.gateway.tls()?.map(Arc::new);

    interlock_bus::broker::raise_open_files_limit();

    // The lock says that we are alone; from here on a stop can be asked for, and is an orderly one.
    data_dir.create()?;
    let _lock = InstanceLock::take(&data_dir)?;
    cli::sweep(data_dir.root(), output);
    // A person may have to be asked, who can end the process as any other until signals are ours.
    let vault = Vault::new(data_dir.keys(), data_dir.database(), passphrase);
    vault.unlock()?;
    let manager =
        ServiceManager::from_environment().map_err(|error| CliError::new(Exit::Misuse, error.to_string()))?;
    let mut instance = Instance {
        instance: Uuid::new_v4(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Timestamp::now(),
        endpoints: endpoints.clone(),
        gateway: None,
        config: config_path(&loaded),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::new(Exit::of_io(&error), format!("no event loop: {error}")))?;
    let (signals, stale) = runtime
        .block_on(async { StopSignals::listen(&data_dir.run(), instance.instance) })
        .map_err(|error| CliError::new(Exit::of_io(&error), format!("signals cannot be handled: {error}")))?;
    let instance_file = InstanceFile::write(&data_dir, &instance)?;

    // Build: keys, token, and the list of children.
    let (keys, keys_are_new) = KeyStore::open_or_create(&data_dir.keys())?;
    let database_is_new = !data_dir.database().exists();
    let token = Token::load_or_create(&data_dir.gateway_token())?;
    // Listen: the port is ours from here on. It is opened last.
    let port = Port::reserve(loaded.config.gateway.listen).map_err(|error| port_failed(&error))?;
    let kept = telemetry::levels::configured(&loaded.config.logs.level, &loaded.config.logs.levels);
    let logs = telemetry::start("runtime", kept, &loaded.config.logs.console)
        .map_err(|error| CliError::new(Exit::of_io(&error), format!("logging cannot start: {error}")))?;
    let mailroom = Mailroom::open()
        .map_err(|error| CliError::new(Exit::of_io(&error), format!("the mailroom cannot start: {error}")))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    instance.gateway = Some(format!("{scheme}://{}", port.address()));
    if let Some(warning) = loaded.config.gateway.warning() {
        tracing::warn!("{warning}");
    }
    if stale.is_some() {
        tracing::warn!("a shutdown file of an earlier run was ignored and removed");
    }
    let site = Arc::new(Site {
        live: LiveConfig::new(loaded),
        data_dir,
        endpoints_before: keys.endpoints_of(&peers::name_of(peers::RUNTIME)),
        keys,
        endpoints,
        port: Arc::new(port),
        token,
        tls,
        intake: Intake::default(),
        mailroom,
        log_buffer: logs.buffer,
        log_sink: logs.sink,
        log_levels: logs.levels.clone(),
        seat: BrokerSeat::default(),
        vault: Arc::new(vault),
        store: StoreSeat::default(),
        backing_up: Arc::default(),
        outbox: OutboxSeat::default(),
        exit: Slot::default(),
        listened: Slot::default(),
    });
    site.configure_outbox();
    if let Err(error) = site.log_buffer.attach_journal(site.journal_place()) {
        tracing::error!(%error, "without a thread there is no journal: log records that find no way to the store stay in memory");
    }
    peers::enrol(&site, &extras.actors)?;
    site.warn_of_unknown_consumers();
    if keys_are_new || database_is_new {
        let _ = print_made(&site, keys_are_new, database_is_new, output);
    }

    // Run, until something asks for a stop; drain; exit code.
    let (watchdog, told) = (Slot::default(), Slot::default());
    let (levels, console) = (logs.levels, logs.console);
    let life = Life {
        site: &site,
        signals,
        manager,
        levels,
        instance_file,
        watchdog: &watchdog,
        told: &told,
        output,
    };
    let exit = runtime.block_on(live(life, extras, instance));
    let code = exit.as_ref().map_or_else(CliError::exit, |exit| *exit);
    // What still hangs in it is not waited for.
    runtime.shutdown_background();
    telemetry::rest::save(&site, told.get().as_deref());
    console.finish(CONSOLE_GRACE);
    note_end(&site.data_dir, code);
    // Under the watchdog's eyes: a store that nobody has closed ends with it.
    drop(site);
    drop(watchdog);
    exit
}

/// The configuration file as others find it.
fn config_path(loaded: &Loaded) -> Option<PathBuf> {
    let path = std::path::absolute(loaded.file.as_ref()?).ok()?;
    path.to_str().is_some().then_some(path)
}

/// What one run has from start to end.
struct Life<'a> {
    site: &'a Arc<Site>,
    signals: StopSignals,
    manager: ServiceManager,
    levels: Levels,
    instance_file: InstanceFile,
    /// Armed by the stop; it watches what comes after it as well.
    watchdog: &'a Slot<Watchdog>,
    /// Why it did not start, once it was said.
    told: &'a Slot<String>,
    output: &'a mut Output,
}

async fn live(mut life: Life<'_>, extras: Extras, instance: Instance) -> Result<Exit, CliError> {
    let site = life.site;
    let shared = Arc::new(Mutex::new(instance));
    life.instance_file.update(&lock(&shared))?;

    let supervisor = Supervisor::new(ROOT).within(site.config().shutdown.phases());
    let handle = supervisor.handle();
    let (stop, tree, shutdown) = (life.signals.requester(), handle.clone(), Shutdown::default());
    let mut reloader = Reloader::new(site, handle.clone(), life.levels.clone());
    let (instance, reload) = (Arc::clone(&shared), reloader.handle());
    let (begun, because) = (shutdown.clone(), shutdown);
    let levels = life.levels.clone();
    let health = Health::default();
    let known = health.clone();
    let backups = BackupDesk::new(site);
    let make_admin = Arc::new(move || Admin {
        instance: Arc::clone(&instance),
        tree: tree.clone(),
        health: known.clone(),
        stop: stop.clone(),
        shutdown: because.clone(),
        reload: reload.clone(),
        levels: levels.clone(),
        backups: backups.clone(),
    });
    let children = site::children(site, extras, make_admin).map_err(|failure| misbuilt(&failure))?;
    let supervision = supervisor
        .start(Strategy::OneForOne, Children::Lasting(children))
        .map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;

    let place = site.data_dir.clone();
    let end = move |why: String| {
        end_process(Exit::Failed, move || {
            note_end(&place, Exit::Failed);
            Output::quick(&why);
        });
    };
    // To the end of this function, and so of the tree.
    let _watch = Watch::start(&handle, health, Patience::default(), end)
        .inspect_err(|error| tracing::error!(%error, "the supervisor is not watched"));

    // What goes on beside the tree: edits of the configuration, changes of keys.
    let mut reading = Box::pin(async { tokio::join!(reloader.run(), audit::follow(site)) });
    let first = tokio::select! {
        tree = begin(site, &handle, &life.instance_file, &shared) => Ok(tree),
        () = life.manager.beats(&handle) => unreachable!("it never ends"),
        _ = &mut reading => unreachable!("it never ends"),
        reason = life.signals.next() => Err(reason),
    };
    let reason = match first {
        Ok(tree) => {
            // A start that has failed is told at its end.
            if !is_over(&tree) && tree.state != State::Stopping {
                // Not worth a stop: it runs, whether or not somebody reads that.
                let _ = print_started(site, &lock(&shared), &tree, life.output);
                life.manager.ready(tree.state.as_str());
            }
            tokio::select! {
                reason = life.signals.next() => Some(reason),
                () = life.manager.beats(&handle) => unreachable!("it never ends"),
                _ = &mut reading => unreachable!("it never ends"),
                () = ended(&handle) => None,
            }
        }
        Err(reason) => Some(reason),
    };
    // Nothing is read any more; whoever asks is told so.
    drop(reading);
    drop(reloader);
    stop_all(&mut life, supervision, reason, &begun).await
}

/// Waits until every component is ready or has failed once, but not for ever; brings `instance` and the operator's
/// credentials up to date.
async fn begin(
    site: &Site,
    handle: &SupervisorHandle,
    file: &InstanceFile,
    instance: &Mutex<Instance>,
) -> Arc<TreeSnapshot> {
    let listens =
        |tree: &TreeSnapshot| tree.child("broker").is_some_and(|broker| broker.state == State::Running);
    let deadline = Instant::now() + REPORT_AFTER_MAX;
    let _ = handle.wait_until(|tree| is_over(tree) || listens(tree), REPORT_AFTER_MAX).await;
    tell_endpoints(site, file, instance);
    let settled = |tree: &TreeSnapshot| {
        let nobody_starts = tree.children.iter().all(|child| child.state != State::Starting);
        is_over(tree) || (!tree.children.is_empty() && nobody_starts)
    };
    match handle.wait_until(settled, deadline.saturating_duration_since(Instant::now())).await {
        Ok(tree) | Err(tree) => tree,
    }
}

/// The broker's ports are known once it listens; from then on others can find us.
fn tell_endpoints(site: &Site, file: &InstanceFile, instance: &Mutex<Instance>) {
    if let Ok(broker) = site.seat.broker() {
        let endpoints = broker.endpoints().to_vec();
        site.listened.set(endpoints.clone());
        lock_mut(instance).endpoints.clone_from(&endpoints);
        for (name, permissions) in peers::permissions() {
            let name = peers::name_of(name);
            if let Err(error) = site.keys.ensure(&name, &permissions, &endpoints) {
                tracing::warn!(%error, "credentials do not name the present endpoints");
            }
        }
        move_credentials(site, &endpoints);
    }
    // Not worth a stop either.
    if let Err(error) = file.update(&lock(instance)) {
        tracing::error!(%error, "others cannot find this instance");
    }
}

/// Files that were issued for another place, before a restore or another setting, name this one from here on.
fn move_credentials(site: &Site, endpoints: &[Endpoint]) {
    match site.keys.move_credentials(&site.endpoints_before, endpoints) {
        Ok(moved) => {
            for path in &moved.changed {
                Output::quick(&format!("`{}` names the present endpoints now", path.display()));
                tracing::info!(path = %path.display(), "credentials name the present endpoints now");
            }
            for problem in &moved.failed {
                tracing::warn!("credentials do not name the present endpoints: {problem}");
            }
            if !site.endpoints_before.is_empty() && site.endpoints_before != endpoints {
                for peer in moved.elsewhere.iter().filter(|peer| !is_bearer(peer)) {
                    tracing::warn!(%peer, "the broker listens elsewhere than at the last start, and the credentials of this peer are \
                                           not in the key store; `interlock keys renew FILE` brings them up to date");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "credentials may name former endpoints"),
    }
}

/// Whether the tree has ended. Before it is started it has no children.
fn is_over(tree: &TreeSnapshot) -> bool {
    tree.state == State::Stopped && !tree.children.is_empty()
}

/// Ends when the tree has.
async fn ended(handle: &SupervisorHandle) {
    let mut view = handle.watch();
    // An error means that the supervisor is gone, which is an end too.
    let _ = view.wait_for(|tree| is_over(tree)).await;
}

/// Stops the tree in order and waits for it, with a watchdog behind; a second signal means now.
async fn stop_all(
    life: &mut Life<'_>,
    supervision: Supervision,
    reason: Option<StopReason>,
    shutdown: &Shutdown,
) -> Result<Exit, CliError> {
    // First of all: however long the rest takes, nobody's work is taken to be lost.
    life.site.intake.close();
    let phases = life.site.config().shutdown.phases();
    let begin = Instant::now();
    let handle = supervision.handle().clone();
    arm_watchdog(life, begin + phases.forced + WATCHDOG_SLACK);
    if let Some(reason) = &reason {
        tracing::info!(%reason, "stopping");
        shutdown.begin(reason.to_string(), begin, phases, WATCHDOG_SLACK);
        life.manager.stopping(&format!("stopping, because of {reason}"));
        life.output.say(&format!("stopping, because of {reason}; once more means now"));
        // Fails only if the tree has ended by itself meanwhile.
        let _ = handle.shutdown(phases);
    }
    let joined = tokio::task::spawn_blocking(move || supervision.join());
    tokio::pin!(joined);
    let outcome = tokio::select! {
        outcome = &mut joined => outcome,
        () = life.manager.beats(&handle) => unreachable!("it never ends"),
        signal = life.signals.next_signal() => {
            life.output.say(&format!("{signal} again: stopping now"));
            arm_watchdog(life, Instant::now() + FORCED_AT_ONCE * 2 + LAST_RECORDS);
            let now = ShutdownPhases { drain: Duration::ZERO, forced: FORCED_AT_ONCE };
            let _ = handle.shutdown(now);
            let outcome = tokio::time::timeout(FORCED_AT_ONCE * 2, joined).await;
            if let Ok(Ok(outcome)) = &outcome {
                report_outcome(outcome, life.output);
            }
            return Ok(Exit::Forced);
        }
    };
    let outcome =
        outcome.map_err(|error| CliError::new(Exit::Failed, format!("the supervisor failed: {error}")))?;
    report_outcome(&outcome, life.output);
    if let Why::StartFailed { reason, .. } = &outcome.why {
        life.told.set(reason.to_string());
    }
    let left = life.site.outbox.left();
    if let Some(left) = &left {
        report_left(left, life.output);
    }
    Ok(match (exit_of(&outcome, life.site.failure()), left) {
        (Exit::Done, Some(left)) if !left.is_certain() => Exit::Io,
        (Exit::Done, Some(left)) if !left.cut_off.is_empty() => Exit::Pending,
        (exit, _) => exit,
    })
}

/// In the place of the one there was.
fn arm_watchdog(life: &Life<'_>, deadline: Instant) {
    let place = life.site.data_dir.clone();
    let watchdog = Watchdog::arm(deadline, move || {
        note_end(&place, Exit::Forced);
        Output::quick("the stop has taken too long; ended by the watchdog");
    });
    match watchdog {
        Ok(watchdog) => life.watchdog.set(watchdog),
        Err(error) => tracing::error!(%error, "no watchdog: a stop that hangs will hang"),
    }
}

fn report_left(left: &Left, output: &mut Output) {
    if !left.cut_off.is_empty() {
        let count: u64 = left.cut_off.values().sum();
        let each: Vec<_> = left.cut_off.iter().map(|(name, count)| format!("{name} {count}")).collect();
        output.say(&format!(
            "{count} durable deliveries were under way ({}); they are sent again at the next start",
            each.join(", ")
        ));
    }
    if !left.is_certain() {
        output.say(
            "the outbox's storage failed at the end: what became of the last deliveries may not be saved, and some may be sent again",
        );
    }
}

/// How long a second signal leaves for children to be killed and buried.
const FORCED_AT_ONCE: Duration = Duration::from_secs(2);

/// How long it leaves for the last log records to be saved. A disk that hangs does not keep the process.
const LAST_RECORDS: Duration = Duration::from_secs(3);

fn report_outcome(outcome: &Outcome, output: &mut Output) {
    match &outcome.why {
        Why::Asked | Why::AutoShutdown => {}
        Why::StartFailed { child, reason } => output.say(&format!("`{child}` did not start: {reason}")),
        Why::Escalated { child, reason } => {
            output.say(&format!("stopped, because `{child}` failed again and again: {reason}"))
        }
    }
    let list = |names: &[interlock_bus::PeerName]| {
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if !outcome.forced.is_empty() {
        output.say(&format!("had to be killed: {}", list(&outcome.forced)));
    }
    if !outcome.pending.is_empty() {
        output.say(&format!("had not ended: {}", list(&outcome.pending)));
    }
}

/// | why | nothing left | something was killed | something did not end |
/// |---|---|---|---|
/// | asked | done | stopped with work pending | forced stop |
/// | failed | the failure's own code, or failed | the same | the same |
///
/// What the outbox had to cut off is work pending, too; if its storage failed at the end, that is the code.
fn exit_of(outcome: &Outcome, failure: Option<Exit>) -> Exit {
    match outcome.why {
        Why::Asked | Why::AutoShutdown if !outcome.pending.is_empty() => Exit::Forced,
        Why::Asked | Why::AutoShutdown if !outcome.forced.is_empty() => Exit::Pending,
        Why::Asked | Why::AutoShutdown => Exit::Done,
        _ => failure.unwrap_or(Exit::Failed),
    }
}

/// For `interlock stop`, which cannot see the code of a process that is not its child.
fn note_end(data_dir: &DataDir, exit: Exit) {
    if let Err(error) = InstanceLock::note_end(data_dir, exit) {
        Output::quick(&error.to_string());
    }
}

/// What the first run makes. The database follows when the store opens it.
fn print_made(site: &Site, keys: bool, database: bool, output: &mut Output) -> Result<(), CliError> {
    let root = site.data_dir.root().display();
    output.line(&format!("interlock {}: first run on `{root}`", env!("CARGO_PKG_VERSION")))?;
    if keys {
        output.line(&format!("  new keys        {}", site.data_dir.keys().display()))?;
    }
    if database {
        output.line(&format!("  new database    {} (encrypted)", site.data_dir.database().display()))?;
    }
    Ok(())
}

/// Where it listens, the state of each component, the way in.
fn print_started(
    site: &Site,
    instance: &Instance,
    tree: &TreeSnapshot,
    output: &mut Output,
) -> Result<(), CliError> {
    output.line(&format!(
        "interlock {} is {}, process {}",
        instance.version,
        tree.state.as_str(),
        instance.pid
    ))?;
    for endpoint in &instance.endpoints {
        output.line(&format!("  bus           {endpoint}"))?;
    }
    for child in &tree.children {
        output.line(&format!("  {:<13} {}", child.name, state_line(child)))?;
    }
    output.line(&format!("  answers       {}", describe(&site.config().model)))?;
    let is_open = |child: &ChildSnapshot| child.name.as_str() == "gateway" && child.state == State::Running;
    if !tree.children.iter().any(is_open) {
        return output.line("  open          not yet: the gateway is not running");
    }
    let url = instance.gateway.as_deref().unwrap_or("-");
    let token = site.data_dir.gateway_token();
    match fs::read_to_string(&token) {
        Ok(text) if output.is_terminal() => {
            output.line(&format!("  open          {url}/#token={}", text.trim()))
        }
        _ => output.line(&format!("  open          {url}/ (the token is in `{}`)", token.display())),
    }
}

fn state_line(child: &ChildSnapshot) -> String {
    match (&child.last_failure, child.state) {
        (Some(failure), state) if state != State::Running => {
            format!("{}: {}", state.as_str(), failure.reason)
        }
        (_, state) => state.as_str().to_owned(),
    }
}

fn port_failed(error: &interlock_actors::gateway::PortError) -> CliError {
    let exit = match error.source.kind() {
        std::io::ErrorKind::AddrInUse => Exit::Busy,
        _ => Exit::of_io(&error.source),
    };
    CliError::new(exit, error.to_string())
}

fn misbuilt(failure: &Failure) -> CliError {
    CliError::new(Exit::Misuse, failure.to_string())
}

fn lock(instance: &Mutex<Instance>) -> Instance {
    lock_mut(instance).clone()
}

fn lock_mut(instance: &Mutex<Instance>) -> std::sync::MutexGuard<'_, Instance> {
    // No code that can panic runs under this lock.
    instance.lock().unwrap_or_else(PoisonError::into_inner)
}
