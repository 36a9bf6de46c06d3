//! What the children of the tree share: settings, keys, and what one of them makes for the others.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use interlock_actors::{
    actor::{Actor, Failure},
    backup::Installation,
    conversation::{ConversationConfig, ConversationEngine},
    gateway::{
        self, Boundary, Gateway, Numbers, Port, Rates, Tls, TlsError, TlsFiles, Token, tokens::TokenStore,
    },
    host::{ActorHost, Bus, Host, Mailroom},
    intake::Intake,
    log_consumer::LogConsumer,
    log_transport::{
        LogBuffer, LogTransport, Sink,
        journal::{self, JournalPlace},
    },
    model::ModelService,
    outbox::{OutboxActor, OutboxSeat, OutboxSettings},
    store::{Store, StoreActor, StoreError, StoreOptions, StoreSeat, Vault},
};
use interlock_bus::{
    Bounds, BrokerConfig, BrokerError, Endpoint, KeyStore,
    durable::{OutboxOptions, Routes, Schedule},
};

use crate::{
    admin::{self, Admin},
    builder::{Extra, Extras, GroupRules, Role},
    component::{self, ComponentSettings, MODEL},
    config::{self, Config, Placement, live::LiveConfig},
    exit::Exit,
    lifecycle::DataDir,
    peers::{self, OPERATOR, RUNTIME, name_of},
    process::{Credentials, Program, ProgramHost, Readiness},
    steward::SiteSteward,
    supervisor::{ChildKind, ChildSpecification, Children, No, Restart, ShutdownPhases},
    telemetry::Levels,
    tree::{self, BrokerActor, BrokerSeat, BuiltIn, Presence, Tie},
};

/// Of the time to drain, what the outbox keeps for writing down what was cut off.
const OUTBOX_LAST_WORDS: Duration = Duration::from_secs(5);

/// A value that one child makes and others use; empty while that child is down.
pub(crate) struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.lock().is_some() { "Slot(full)" } else { "Slot(empty)" })
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, value: T) {
        *self.lock() = Some(value);
    }
}

impl<T: Clone> Slot<T> {
    pub(crate) fn get(&self) -> Option<T> {
        self.lock().clone()
    }
}

/// One installation, opened for running.
pub(crate) struct Site {
    /// What is in force; children read it when they are made.
    pub(crate) live: LiveConfig,
    pub(crate) data_dir: DataDir,
    pub(crate) keys: KeyStore,
    /// Where the broker is to listen. Once it does, [`BrokerHandle::endpoints`] has the ports.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Where it listened when it was last started, as the runtime's own credentials say.
    pub(crate) endpoints_before: Vec<Endpoint>,
    pub(crate) port: Arc<Port>,
    pub(crate) token: Token,
    /// Certificate and key, if the gateway speaks TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Closed from the moment at which a stop is asked for.
    pub(crate) intake: Intake,
    pub(crate) mailroom: Arc<Mailroom>,
    pub(crate) log_buffer: LogBuffer,
    /// Where the log path's own events go.
    pub(crate) log_sink: Sink,
    /// Which records are kept; processes of ours begin with them.
    pub(crate) log_levels: Levels,
    /// Where the running broker is found.
    pub(crate) seat: BrokerSeat,
    /// Where the data key is found.
    pub(crate) vault: Arc<Vault>,
    /// Where the open store is found.
    pub(crate) store: StoreSeat,
    /// Whether a backup is being made.
    pub(crate) backing_up: Arc<AtomicBool>,
    /// Where the outbox finds its settings.
    pub(crate) outbox: OutboxSeat,
    /// What a refusal of the broker means for the process.
    pub(crate) exit: Slot<Exit>,
    /// Where the broker listened the first time, so that a restarted one keeps ports that the system chose.
    pub(crate) listened: Slot<Vec<Endpoint>>,
}

impl fmt::Debug for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Site").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Site {
    /// The configuration that is in force.
    pub(crate) fn config(&self) -> Config {
        self.live.loaded().config.clone()
    }

    /// What a backup of it has in it.
    pub(crate) fn installation(&self) -> Installation {
        let config = self.live.loaded().sources.file.clone().or_else(Config::user_file);
        Installation { root: self.data_dir.root().to_owned(), config }
    }

    /// The conversation engine on the open store.
    pub(crate) fn conversation(&self) -> Result<ConversationEngine, Failure> {
        let config = self.config();
        let section = &config.conversation;
        let mut settings = ConversationConfig {
            instructions: section.instructions.clone(),
            ..ConversationConfig::default()
        };
        settings.history.messages_max = section.history_messages_max;
        settings.timing.whole = config.gateway.turn_timeout;
        Ok(ConversationEngine::new(settings, self.store.store()?, self.intake.clone()))
    }

    fn store_actor(&self) -> StoreActor {
        StoreActor::new(Arc::clone(&self.vault), self.store_options(), self.store.clone())
    }

    fn store_options(&self) -> StoreOptions {
        StoreOptions { logs: self.config().logs.retention(), ..StoreOptions::default() }
    }

    fn outbox_actor(&self) -> OutboxActor {
        let vault = Arc::clone(&self.vault);
        OutboxActor::new(self.data_dir.outbox(), vault, self.outbox.clone(), self.intake.clone())
    }

    /// The settings of the outbox that are in force.
    pub(crate) fn configure_outbox(&self) {
        let config = self.config();
        self.outbox.configure(config.outbox.settings(config.shutdown.drain));
    }

    /// Says which consumers of the outbox nobody knows.
    pub(crate) fn warn_of_unknown_consumers(&self) {
        let Ok(registry) = self.keys.registry() else { return };
        for text in peers::unknown_consumers(&self.config(), &registry) {
            tracing::warn!("{text}");
        }
    }

    /// Opens the database after the tree has ended.
    pub(crate) fn open_again(&self) -> Result<Store, StoreError> {
        Store::open(self.vault.database(), &self.vault.open()?, self.store_options())
    }

    /// Where log records wait that find no way to the store.
    pub(crate) fn journal_place(&self) -> JournalPlace {
        let vault = Arc::clone(&self.vault);
        let key = move || Ok(vault.open().map_err(|error| error.to_string())?.derive("log journal"));
        JournalPlace {
            directory: self.data_dir.root().join(journal::DIRECTORY),
            bytes_max: journal::BYTES_MAX,
            key: Box::new(key),
        }
    }

    /// The exit code for what kept broker or store from starting.
    pub(crate) fn failure(&self) -> Option<Exit> {
        self.exit.get().or_else(|| self.store.last_error().as_ref().map(store_exit))
    }
}

impl config::Program {
    /// What it may do.
    pub(crate) fn permissions(&self) -> interlock_bus::Permissions {
        use interlock_bus::{Permissions, Rules};
        Permissions {
            publish: Rules::allowing(self.publish.iter().cloned()),
            subscribe: Rules::allowing(self.subscribe.iter().cloned()),
            serve: Rules::allowing(self.serve.iter().cloned()),
            request: Rules::allowing(self.request.iter().cloned()),
            ..Permissions::default()
        }
    }
}

impl config::OutboxSection {
    /// With what the outbox is run, in a runtime that drains for so long.
    fn settings(&self, drain: Duration) -> OutboxSettings {
        let route = |route: &config::TopicRoute| (route.filter.clone(), route.consumers.clone());
        let options = OutboxOptions {
            schedule: Schedule {
                base: self.retry_base,
                cap: self.retry_cap,
                attempts_max: self.attempts_max,
            },
            pauses: self.policy == config::OutboxPolicy::Pause,
            message_bytes_max: self.item_bytes_max,
            sweep_interval: self.sweep,
            attempt_deadline: self.attempt_timeout,
            absent_max: self.absent_max,
            in_flight_messages: self.in_flight,
            // What is cut off is written down before the supervisor loses its patience.
            grace: drain.saturating_sub(OUTBOX_LAST_WORDS).max(drain / 2),
            ..OutboxOptions::default()
        };
        let routes = Routes::new(self.topics.iter().map(route));
        OutboxSettings { routes, limits: self.limits(), keep: self.keep(), options }
    }
}

impl config::ShutdownSection {
    /// How long a stop may take.
    pub(crate) fn phases(&self) -> ShutdownPhases {
        ShutdownPhases { drain: self.drain, forced: self.forced }
    }
}

/// Makes the runtime's own actor.
pub(crate) type MakeAdmin = Arc<dyn Fn() -> Admin + Send + Sync>;

/// All children, in start order: the built-in ones, the actors of the user, the programs of the user.
pub(crate) fn children(
    site: &Arc<Site>,
    extras: Extras,
    make_admin: MakeAdmin,
) -> Result<Vec<ChildSpecification>, Failure> {
    let presence = Presence::open(&site.seat, &name_of(RUNTIME))?;
    let (model, model_kind) = model(site, &presence)?;
    let hosts = BuiltIn {
        broker: host(site, "broker", Bus::none(), |site| site.broker()),
        runtime: host(site, RUNTIME, on_bus(site, RUNTIME), move |_| Ok(make_admin())),
        store: host(site, "store", Bus::none(), |site| Ok(site.store_actor())),
        log_consumer: host(site, "log-consumer", on_bus(site, "log-consumer"), |site| {
            Ok(LogConsumer::new(site.store.store()?))
        }),
        log_transport: host(site, "log-transport", on_bus(site, "log-transport"), |site| {
            Ok(LogTransport::new(site.log_buffer.clone()).with_sink(site.log_sink.clone()))
        }),
        outbox: host(site, "outbox", on_bus(site, "outbox"), |site| Ok(site.outbox_actor())),
        model,
        model_kind,
        conversation: host(site, "conversation", on_bus(site, "conversation"), |site| site.conversation()),
        gateway: host(site, "gateway", on_bus(site, "gateway"), |site| Ok(Gateway::new(site.gateway()))),
    };
    let mut children = tree::built_in(hosts, &site.config().shutdown);
    children.extend(actors(site, extras)?);
    let programs = site.config().programs;
    for settings in &programs {
        children.push(tree::program(settings, &site.seat, &presence, &programs)?);
    }
    Ok(children)
}

/// The actors of the user, in the order in which they were added; a group stands where its first one does.
fn actors(site: &Site, extras: Extras) -> Result<Vec<ChildSpecification>, Failure> {
    let mut children: Vec<ChildSpecification> = Vec::new();
    let mut actors = extras.actors.into_iter().peekable();
    while let Some(extra) = actors.next() {
        let Some(place) = extra.group else {
            children.push(child(site, extra).depends_on([name_of("broker")]));
            continue;
        };
        let mut below = vec![extra];
        while let Some(next) = actors.next_if(|next| next.group == Some(place)) {
            below.push(next);
        }
        children.push(group(site, &extras.groups[place], below)?.depends_on([name_of("broker")]));
    }
    Ok(children)
}

/// A group: it lasts, or ends when its significant actors have.
fn group(site: &Site, rules: &GroupRules, actors: Vec<Extra>) -> Result<ChildSpecification, Failure> {
    let GroupRules { name, strategy, until } = rules;
    let children = match *until {
        None => Children::Lasting(actors.into_iter().map(|extra| child(site, extra)).collect()),
        Some(until) => {
            let significant = |extra: Extra| match extra.role {
                Role::Significant => child(site, extra).restarts(Restart::Transient { significant: true }),
                Role::Helper | Role::Essential => child(site, extra),
            };
            Children::Finite { until, children: actors.into_iter().map(significant).collect() }
        }
    };
    let phases = site.config().shutdown.phases();
    let group = ChildSpecification::supervisor(name.clone(), *strategy, children, phases)?;
    // One that ends has done what it was for.
    let restart = if until.is_some() { Restart::Transient { significant: No } } else { Restart::Permanent };
    Ok(group.restarts(restart))
}

fn child<S>(site: &Site, extra: Extra) -> ChildSpecification<S> {
    let host = (extra.host)(&extra.name, site.seat.attach(extra.name.clone()), &site.mailroom);
    let child = ChildSpecification::actor(extra.name, host);
    if extra.role == Role::Essential { child.escalates() } else { child }
}

fn host<A: Actor>(
    site: &Arc<Site>,
    name: &'static str,
    bus: Bus,
    make: impl Fn(&Arc<Site>) -> Result<A, Failure> + Send + Sync + 'static,
) -> Box<dyn Host> {
    let shared = Arc::clone(site);
    Box::new(ActorHost::new(name_of(name), bus, &site.mailroom, move || make(&shared)))
}

fn on_bus(site: &Site, name: &str) -> Bus {
    site.seat.attach(name_of(name))
}

/// The model service: a process of its own, or an actor.
fn model(site: &Arc<Site>, presence: &Presence) -> Result<(Box<dyn Host>, ChildKind), Failure> {
    // A mistake is said before anything runs.
    let model_config = |site: &Site| {
        component::model_config(&site.config().model).map_err(|error| Failure::new(error.to_string()))
    };
    model_config(site)?;
    let section = site.config().model;
    if section.placement == Placement::Runtime {
        let bus = on_bus(site, MODEL);
        let make = move |site: &Arc<Site>| Ok(ModelService::new(model_config(site)?));
        return Ok((host(site, MODEL, bus, make), ChildKind::Actor));
    }
    let (site, watched) = (Arc::clone(site), presence.of(name_of(MODEL), Tie::Firm));
    let make = move || Program { watched: Some(watched.clone()), ..site.model_program() };
    Ok((Box::new(ProgramHost::remade(name_of(MODEL), make)), ChildKind::Process))
}

impl Site {
    /// This same binary as the model service, with the settings that are in force.
    fn model_program(&self) -> Program {
        let config = self.config();
        let settings = ComponentSettings { log_levels: self.log_levels.rules(), model: config.model };
        let data_dir = self.data_dir.root();
        let settings = serde_json::to_string(&settings)
            .expect("text, numbers and paths that were UTF-8 are always JSON");
        let mut program = Program::new("/proc/self/exe");
        // The directory is there for whoever reads the list of processes.
        program.arguments = vec!["actor".into(), MODEL.into(), "--data-dir".into(), data_dir.into()];
        program.guardian.arguments.extend([MODEL.into(), data_dir.into()]);
        program.environment = vec![(component::SETTINGS_VARIABLE.into(), settings.into())];
        program.credentials =
            Credentials::Descriptor(Arc::new(self.seat.incarnation_credentials(name_of(MODEL))));
        program.readiness = Readiness::Newline;
        program.grace = config.shutdown.drain;
        program
    }
}

impl Site {
    /// The broker, where it listened before.
    fn broker(self: &Arc<Self>) -> Result<BrokerActor, Failure> {
        let endpoints = self.listened.get().unwrap_or_else(|| self.endpoints.clone());
        let mut config = BrokerConfig::from_key_store(&self.keys, endpoints)
            .inspect_err(|error| self.exit.set(Exit::of_key(error)))?;
        let bus = self.config().bus;
        config.bounds = Bounds {
            send_queue_messages: bus.send_queue_messages,
            send_queue_bytes: bus.send_queue_bytes,
            sessions_max: bus.sessions_max,
            retained_bytes_max: bus.retained_bytes_max,
        };
        let exit = self.exit.clone();
        let note = Arc::new(move |error: &BrokerError| exit.set(broker_exit(error)));
        Ok(BrokerActor::new(config, self.seat.clone()).on_refusal(note))
    }

    /// What the gateway is started with.
    fn gateway(self: &Arc<Self>) -> gateway::Options {
        let section = self.config().gateway;
        let (store, seat) = (self.store.clone(), self.seat.clone());
        let (log, outbox) = (self.log_buffer.clone(), self.outbox.clone());
        let (database, vault) = (self.data_dir.outbox(), Arc::clone(&self.vault));
        gateway::Options {
            port: Arc::clone(&self.port),
            workers: section.workers,
            body_bytes_max: section.body_bytes_max,
            streams_max: section.streams_max,
            head_timeout: section.head_timeout,
            body_timeout: section.body_timeout,
            write_timeout: section.write_timeout,
            turn_timeout: section.turn_timeout,
            token: self.token.clone(),
            operator: name_of(OPERATOR),
            steward: Arc::new(SiteSteward::new(self)),
            tokens: TokenStore::new(self.keys.clone()),
            rights: Arc::new(peers::of_bearer),
            attach: Arc::new(move |peer| seat.broker().map_err(|_| BrokerError::Ended)?.attach(peer)),
            rates: Rates {
                token: section.token_rate,
                address: section.address_rate,
                failures: section.failure_rate,
            },
            boundary: Boundary {
                host_names: section.host_names,
                allowed_origins: section.allowed_origins,
                tls: self.tls.is_some(),
            },
            tls: self.tls.clone(),
            load_topic: Some(admin::ps_topic()),
            numbers: Arc::new(move || Numbers {
                log: log.report(),
                journal: log.journal_report(),
                outbox: outbox.stands(),
            }),
            intake: self.intake.clone(),
            status_topic: admin::status_topic(),
            orders: admin::orders(),
            store: Arc::new(move || store.store().ok()),
            outbox: Arc::new(move || Ok((database.clone(), vault.open()?))),
        }
    }
}

impl config::GatewaySection {
    /// Certificate and key, read and judged; `None` if none are named.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, TlsError> {
        if self.tls_certificate.as_os_str().is_empty() {
            return Ok(None);
        }
        let files = TlsFiles { certificate: self.tls_certificate.clone(), key: self.tls_key.clone() };
        Tls::load(files).map(Some)
    }

    /// What there is to say of where it listens.
    pub(crate) fn warning(&self) -> Option<String> {
        let is_open = self.tls_certificate.as_os_str().is_empty() && !self.listen.ip().is_loopback();
        is_open.then(|| {
            format!("the gateway listens on `{}` without TLS: {}", self.listen, gateway::UNPROTECTED)
        })
    }
}

fn broker_exit(error: &BrokerError) -> Exit {
    match error {
        BrokerError::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => Exit::Busy,
        BrokerError::Bind { source, .. } | BrokerError::Thread(source) => Exit::of_io(source),
        _ => Exit::Failed,
    }
}

/// What a failure of the store means for the process.
pub(crate) fn store_exit(error: &StoreError) -> Exit {
    Exit::from_code(error.exit_code()).unwrap_or(Exit::Failed)
}
