//! The runtime as a peer: answers what it looks like, and takes orders.
//!
//! | topic | request | reply |
//! |---|---|---|
//! | `interlock/runtime/status/v1` | nothing | [`Status`] as JSON, from memory |
//! | `interlock/runtime/ps/v1` | nothing | [`Status`] with the present load and memory of each component |
//! | `interlock/runtime/plan/v1` | [`PlanRequest`] | [`Plan`](crate::supervisor::Plan) |
//! | `interlock/runtime/explain/v1` | a name, as text | [`Explained`] |
//! | `interlock/runtime/start-component/v1` | a name, as text | [`Ordered`] |
//! | `interlock/runtime/stop-component/v1` | a name, as text | [`Ordered`] |
//! | `interlock/runtime/restart-component/v1` | a name, as text | [`Ordered`] |
//! | `interlock/runtime/reload/v1` | nothing | `{"Ok":` a [`ReloadReport`](crate::config::live::ReloadReport)`}`, or `{"Err":` all mistakes`}` |
//! | `interlock/runtime/log-levels/v1` | [`LevelOrder`] | [`LevelStatus`] as JSON |
//! | `interlock/runtime/backup/v1` | [`BackupOrder`] as JSON, or nothing | a part for each step ([`Progress`](interlock_actors::backup::Progress)), at the end the result |
//! | `interlock/runtime/stop/v1` | nothing | `{"stopping":true}`, at once |

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    gateway::Orders,
    log_transport::Threshold,
};
use interlock_bus::{Client, Payload, Request, RequestError, TopicFilter, TopicName};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    component,
    lifecycle::{Instance, Shutdown, ShutdownStatus, StopReason},
    peers::RUNTIME,
    process::memory,
    reload::{ConfigStatus, ReloadHandle},
    supervisor::{
        ChildSnapshot, OrderError, State, SupervisorHandle, TreeSnapshot, explain,
        stall_watch::{Health, HealthSnapshot},
    },
    telemetry::{Levels, levels},
};

mod backup;

pub use backup::BackupOrder;
pub(crate) use backup::{BackupDesk, make as make_backup};

pub use crate::telemetry::levels::{LevelStatus, Override};

const STATUS: &str = "interlock/runtime/status/v1";
const PS: &str = "interlock/runtime/ps/v1";
const PLAN: &str = "interlock/runtime/plan/v1";
const EXPLAIN: &str = "interlock/runtime/explain/v1";
const START: &str = "interlock/runtime/start-component/v1";
const STOP_ONE: &str = "interlock/runtime/stop-component/v1";
const RESTART: &str = "interlock/runtime/restart-component/v1";
const RELOAD: &str = "interlock/runtime/reload/v1";
const LOG_LEVELS: &str = "interlock/runtime/log-levels/v1";
const BACKUP: &str = "interlock/runtime/backup/v1";
const STOP: &str = "interlock/runtime/stop/v1";

/// Everything that the runtime serves.
pub(crate) const ALL: &str = "interlock/runtime/#";

/// The code of a refusal because no component has the name.
pub const UNKNOWN_COMPONENT: &str = "unknown_component";

/// The code of a refusal because the order would cut off who gave it.
pub const NOT_BY_ITSELF: &str = "not_by_itself";

/// The code of a refusal because the supervisor of the component is down.
pub const SUPERVISOR_DOWN: &str = "supervisor_down";

/// The code of a refusal because the runtime is stopping.
pub const STOPPING: &str = "stopping";

/// Components without which no order reaches the runtime.
const NEEDED_TO_GIVE_ORDERS: [&str; 2] = ["broker", RUNTIME];

/// Where status is asked for.
pub fn status_topic() -> TopicName {
    topic(STATUS)
}

/// Where status is asked for with the present load of each component.
pub fn ps_topic() -> TopicName {
    topic(PS)
}

/// Where a plan of restarts is asked for.
pub fn plan_topic() -> TopicName {
    topic(PLAN)
}

/// Where it is asked to read its configuration again.
pub fn reload_topic() -> TopicName {
    topic(RELOAD)
}

/// Where it is asked and told which log records are kept.
pub fn log_levels_topic() -> TopicName {
    topic(LOG_LEVELS)
}

/// Where a backup is asked for.
pub fn backup_topic() -> TopicName {
    topic(BACKUP)
}

/// Where a stop of everything is asked for.
pub fn stop_topic() -> TopicName {
    topic(STOP)
}

/// Where the gateway gives what orders.
pub fn orders() -> Orders {
    Orders {
        ps: ps_topic(),
        plan: plan_topic(),
        explain: topic(EXPLAIN),
        start: ComponentOrder::Start.topic(),
        stop_component: ComponentOrder::Stop.topic(),
        restart: ComponentOrder::Restart.topic(),
        reload: reload_topic(),
        log_levels: log_levels_topic(),
        stop: stop_topic(),
    }
}

fn topic(text: &'static str) -> TopicName {
    text.parse().expect("the topics of this file are valid; a test parses each")
}

/// What the runtime says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who runs and where it listens.
    pub instance: Instance,
    /// What answers, and whether that is a language model.
    pub model: String,
    /// All components.
    pub tree: TreeSnapshot,
    /// The supervisor itself. While it stands still the tree is in `error`, and else as it was then.
    #[serde(default)]
    pub supervisor: HealthSnapshot,
    /// The shutdown, once one has begun.
    #[serde(default)]
    pub shutdown: Option<ShutdownStatus>,
    /// What is to be said of its configuration.
    #[serde(default)]
    pub config: ConfigStatus,
    /// Log levels that somebody has set beside the configuration.
    #[serde(default)]
    pub log_levels: Vec<Override>,
}

/// An order about which log records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelOrder {
    /// Say it.
    Show,
    /// Another level, beside the configuration.
    Set {
        /// A component, or a module.
        name: String,
        /// What is kept of it.
        level: Threshold,
        /// For how long; `None` until it is taken back.
        for_ms: Option<u64>,
    },
    /// What the configuration says.
    Reset {
        /// Of this one; `None` of all.
        name: Option<String>,
    },
}

/// An order about one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentOrder {
    /// Start it if it is down, now if it waits; a whole budget.
    Start,
    /// Stop it and keep it down.
    Stop,
    /// Stop it if it runs, and start it; a whole budget.
    Restart,
}

impl ComponentOrder {
    /// Where it is given.
    pub fn topic(self) -> TopicName {
        topic(match self {
            Self::Start => START,
            Self::Stop => STOP_ONE,
            Self::Restart => RESTART,
        })
    }
}

/// An order was accepted; it is carried out meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The component.
    pub component: String,
    /// Its incarnation when the order came.
    pub incarnation: u64,
}

/// Asks what will be done with a component that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRequest {
    /// Which component.
    pub component: String,
    /// How long each start is supposed to take until it fails.
    pub fails_after_ms: u64,
}

/// One component in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What it waits for, why it is down, when it is tried next: what `interlock explain` prints.
    pub text: String,
    /// What that is told from.
    pub component: ChildSnapshot,
}

/// Serves the topics above.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) instance: Arc<Mutex<Instance>>,
    pub(crate) tree: SupervisorHandle,
    pub(crate) health: Health,
    pub(crate) stop: mpsc::Sender<StopReason>,
    pub(crate) shutdown: Shutdown,
    pub(crate) reload: ReloadHandle,
    pub(crate) levels: Levels,
    pub(crate) backups: BackupDesk,
}

/// Why a request is not answered with what it asked for.
struct Refusal {
    code: &'static str,
    text: String,
}

/// Levels set at the same time; more are refused.
const OVERRIDES_MAX: usize = 256;
/// Bytes of a name whose level is set.
const LEVEL_NAME_BYTES_MAX: usize = 256;
/// How long a process of ours may take to hear of another level. It is told of the next one all the same.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes back in time what was set for a while, and tells processes of ours of each change.
async fn keep_levels(levels: Levels, client: Client) -> Result<(), Failure> {
    let mut changed = levels.watch();
    loop {
        let end = levels.next_end().map(|end| end.duration_since(Timestamp::now()).unsigned_abs());
        tokio::select! {
            is_open = changed.changed() => {
                is_open?;
                let rules = Payload::json(&*changed.borrow_and_update())?;
                match client.request(&component::log_levels_topic(), rules, TELL_TIMEOUT).await {
                    // Nobody is there where the model service is in this process, or down: it begins with them.
                    Ok(_) | Err(RequestError::NoResponders { .. }) => {}
                    Err(error) => tracing::warn!(%error, "a process of ours was not told of the changed log levels"),
                }
            }
            () = tokio::time::sleep(end.unwrap_or(Duration::MAX)), if end.is_some() => {
                for over in levels.expire(Timestamp::now()) {
                    tracing::info!(of = %over.name, level = %over.level, "the time of a log level is over");
                }
            }
        }
    }
}

impl Actor for Admin {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        context.serve(&ALL.parse::<TopicFilter>()?).await?;
        context.spawn_background(keep_levels(self.levels.clone(), context.client().clone()));
        let (mut config, own) = (self.reload.watch_status(), context.clone());
        context.spawn_background(async move {
            loop {
                let is_refused = config.borrow_and_update().refused.is_some();
                own.impaired(is_refused.then(|| "its changed configuration is refused".to_owned()));
                if config.changed().await.is_err() {
                    return Ok(());
                }
            }
        });
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Input::Request(request) = input else { return Ok(()) };
        let answer = match request.message.topic.as_str() {
            STATUS => Ok(Payload::json(&self.status(TreeSnapshot::clone(&self.tree.snapshot())))?),
            PS => {
                let (tree, health) = (self.tree.clone(), self.health.clone());
                let tree = tokio::task::spawn_blocking(move || with_memory(&tree, &health)).await?;
                Ok(Payload::json(&self.status(tree))?)
            }
            PLAN => self.plan(&request).await?,
            EXPLAIN => {
                let (tree, health) = (self.tree.clone(), self.health.clone());
                let tree = tokio::task::spawn_blocking(move || with_memory(&tree, &health)).await?;
                match explained(&tree, &named(&request)) {
                    Ok(explained) => Ok(Payload::json(&explained)?),
                    Err(refusal) => Err(refusal),
                }
            }
            START => self.order(ComponentOrder::Start, &request).await?,
            STOP_ONE => self.order(ComponentOrder::Stop, &request).await?,
            RESTART if NEEDED_TO_GIVE_ORDERS.contains(&named(&request).as_str()) => {
                // Answered first: while it restarts nothing reaches whoever gave the order.
                let (tree, component) = (self.tree.clone(), named(&request));
                let incarnation = tree.snapshot().child(&component).map_or(0, |child| child.incarnation);
                let ordered = Payload::json(&Ordered { component: component.clone(), incarnation })?;
                let answered = request.end(ordered).await;
                tokio::task::spawn_blocking(move || tree.restart(&component)).await??;
                return Ok(answered?);
            }
            RESTART => self.order(ComponentOrder::Restart, &request).await?,
            RELOAD => Ok(Payload::json(&self.reload.ask().await)?),
            LOG_LEVELS => self.log_levels(&request)?,
            BACKUP => {
                // Beside everything else: it takes as long as the databases are large.
                context.spawn_background(self.backups.clone().make(request));
                return Ok(());
            }
            STOP => {
                let peer = request.message.origin.to_string();
                // A full queue means that a stop was asked for already.
                let _ = self.stop.try_send(StopReason::Request(peer));
                Ok(Payload::json(&serde_json::json!({ "stopping": true }))?)
            }
            other => Err(Refusal {
                code: "unknown_topic",
                text: format!("`{other}` is not served; `bus peers` shows what is"),
            }),
        };
        let answered = match answer {
            Ok(payload) => request.end(payload).await,
            Err(Refusal { code, text }) => request.fail(code, &text).await,
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "nobody waited for the answer");
        }
        Ok(())
    }
}

impl Admin {
    fn status(&self, mut tree: TreeSnapshot) -> Status {
        let supervisor = self.health.snapshot();
        if supervisor.stalled_ms.is_some() {
            tree.state = State::Error;
        }
        let instance = self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shutdown = self.shutdown.status(Instant::now());
        Status {
            instance,
            model: self.reload.model(),
            tree,
            supervisor,
            shutdown,
            config: self.reload.status(),
            log_levels: self.levels.status().overrides,
        }
    }

    /// Each change is in the log, with who ordered it.
    fn log_levels(&self, request: &Request) -> Result<Result<Payload, Refusal>, Failure> {
        let order = match request.message.decode::<LevelOrder>() {
            Ok(order) => order,
            Err(error) => return Ok(Err(Refusal { code: "bad_request", text: error.to_string() })),
        };
        let by = &request.message.origin;
        let snapshot = self.tree.snapshot();
        match order {
            LevelOrder::Show => {}
            LevelOrder::Set { name, .. } if name.is_empty() || name.len() > LEVEL_NAME_BYTES_MAX => {
                let text = format!("a name has 1 to {LEVEL_NAME_BYTES_MAX} bytes, not {}", name.len());
                return Ok(Err(Refusal { code: "bad_request", text }));
            }
            LevelOrder::Set { .. } if self.levels.status().overrides.len() >= OVERRIDES_MAX => {
                let text = format!("{OVERRIDES_MAX} levels are set already; take some back with `reset`");
                return Ok(Err(Refusal { code: "full", text }));
            }
            LevelOrder::Set { name, .. } if !levels::is_module(&name) && snapshot.child(&name).is_none() => {
                let names = || snapshot.children.iter().map(|child| child.name.as_str());
                return Ok(Err(OrderError::unknown(&name, names).into()));
            }
            LevelOrder::Set { name, level, for_ms } => {
                let span =
                    for_ms.map(|ms| SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX)));
                let until = span.map(|span| Timestamp::now().saturating_add(span).unwrap_or(Timestamp::MAX));
                let end = until.map_or_else(|| "it is taken back".to_owned(), |until| until.to_string());
                tracing::info!(%by, of = %name, %level, until = %end, "log level set");
                self.levels.set(Override { name, level, until });
            }
            LevelOrder::Reset { name } => {
                for gone in self.levels.reset(name.as_deref()) {
                    tracing::info!(%by, of = %gone.name, level = %gone.level, "log level taken back");
                }
            }
        }
        Ok(Ok(Payload::json(&self.levels.status())?))
    }

    async fn plan(&self, request: &Request) -> Result<Result<Payload, Refusal>, Failure> {
        let wanted: PlanRequest = match serde_json::from_slice(&request.message.payload) {
            Ok(wanted) => wanted,
            Err(error) => {
                let text = format!("a plan is asked for with `component` and `fails_after_ms`: {error}");
                return Ok(Err(Refusal { code: "misuse", text }));
            }
        };
        let tree = self.tree.clone();
        let fails_after = Duration::from_millis(wanted.fails_after_ms);
        let plan = tokio::task::spawn_blocking(move || tree.plan(&wanted.component, fails_after)).await?;
        Ok(match plan {
            Ok(plan) => Ok(Payload::json(&plan)?),
            Err(error) => Err(error.into()),
        })
    }

    async fn order(
        &self,
        order: ComponentOrder,
        request: &Request,
    ) -> Result<Result<Payload, Refusal>, Failure> {
        let name = named(request);
        if order == ComponentOrder::Stop && NEEDED_TO_GIVE_ORDERS.contains(&name.as_str()) {
            let text = format!(
                "without `{name}` no order would reach the runtime to start it again; `interlock restart {name}` restarts it, `interlock stop` stops everything"
            );
            return Ok(Err(Refusal { code: NOT_BY_ITSELF, text }));
        }
        let tree = self.tree.clone();
        let wanted = name.clone();
        let incarnation = tree.snapshot().child(&name).map_or(0, |child| child.incarnation);
        // The order is answered by the supervisor's thread, which may be this actor's own supervisor: never wait for it here.
        let ordered = tokio::task::spawn_blocking(move || match order {
            ComponentOrder::Start => tree.start(&wanted),
            ComponentOrder::Stop => tree.stop(&wanted),
            ComponentOrder::Restart => tree.restart(&wanted),
        });
        Ok(match ordered.await? {
            Ok(()) => Ok(Payload::json(&Ordered { component: name, incarnation })?),
            Err(error) => Err(error.into()),
        })
    }
}

/// What there is to say of one component.
fn explained(tree: &TreeSnapshot, name: &str) -> Result<Explained, Refusal> {
    match (explain::explain(tree, name), tree.child(name)) {
        (Some(text), Some(component)) => Ok(Explained { text, component: component.clone() }),
        _ => {
            let names = || tree.children.iter().map(|child| child.name.as_str());
            Err(OrderError::unknown(name, names).into())
        }
    }
}

/// The component that a request names.
fn named(request: &Request) -> String {
    String::from_utf8_lossy(&request.message.payload).trim().to_owned()
}

impl From<OrderError> for Refusal {
    fn from(error: OrderError) -> Self {
        let code = match error {
            OrderError::UnknownChild { .. } => UNKNOWN_COMPONENT,
            OrderError::SupervisorDown { .. } => SUPERVISOR_DOWN,
            OrderError::Stopping { .. } | OrderError::NotRunning => STOPPING,
        };
        Self { code, text: error.to_string() }
    }
}

/// The tree with its present load. Waits for the supervisor, unless that stands still, and for `/proc`.
fn with_memory(tree: &SupervisorHandle, health: &Health) -> TreeSnapshot {
    let stands_still = health.snapshot().stalled_ms.is_some();
    let look = if stands_still { None } else { tree.look().ok() };
    let mut tree = TreeSnapshot::clone(&look.unwrap_or_else(|| tree.snapshot()));
    let groups: Vec<u32> = tree.children.iter().filter_map(|child| child.load.process).collect();
    if !groups.is_empty() {
        let resident = memory::resident(&groups);
        for child in &mut tree.children {
            child.load.memory_bytes = child.load.process.and_then(|group| resident.get(&group).copied());
        }
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_are_valid_and_served() {
        let filter: TopicFilter = ALL.parse().unwrap();
        let orders = [ComponentOrder::Start, ComponentOrder::Stop, ComponentOrder::Restart];
        let topics = [
            status_topic(),
            ps_topic(),
            super::orders().explain,
            plan_topic(),
            reload_topic(),
            backup_topic(),
            stop_topic(),
        ];
        for topic in topics.into_iter().chain(orders.map(ComponentOrder::topic)) {
            assert!(filter.matches(&topic));
        }
    }
}
