//! The objects that the runtime answers with, as the document tells them. They are passed on as they come: the types here
//! describe them, and a test holds every answer against them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A failure of a component.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    at: String,
    /// Why, with the chain of causes.
    reason: String,
    /// OTP's word for the situation.
    context: String,
    incarnation: u64,
}

/// What a component used of its restart budget.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    failures: u64,
    unhealthy_failures: u64,
    /// Whether it is down and will not be tried again by itself.
    spent: bool,
}

/// What weighs on a component.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    queued_bytes: u64,
    oldest_ms: Option<u64>,
    handled: u64,
    handler_p50_us: Option<u64>,
    handler_p99_us: Option<u64>,
    /// What it has in hand for long, if something.
    busy: Option<BTreeMap<String, Value>>,
    /// Its process group, if it is a program that runs.
    process: Option<u32>,
    memory_bytes: Option<u64>,
}

/// A condition that stands in the way of a start.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Need {
    name: String,
    condition: String,
    words: String,
    since: String,
}

/// How a component came up the first time, in microseconds from the start of its supervisor.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstStart {
    began_us: u64,
    ready_us: Option<u64>,
    after: Option<String>,
}

/// A component, as `interlock ps --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Component {
    name: String,
    /// A thread of the runtime, a program, or a supervisor.
    kind: Value,
    /// `running`, `starting`, `degraded`, `error`, `stopping` or `stopped`.
    state: String,
    since: String,
    restarts: u64,
    incarnation: u64,
    readiness: Option<String>,
    status: Option<String>,
    impaired: Option<String>,
    supervisor: Option<String>,
    last_failure: Option<Failure>,
    next_try: Option<String>,
    waits_for: Vec<String>,
    unmet: Vec<Need>,
    deadline: Option<String>,
    queued: u64,
    load: Load,
    budget: Budget,
    first_start: Option<FirstStart>,
}

/// The tree.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Components {
    /// Derived from the components.
    state: String,
    /// When this was true.
    at: String,
    components: Vec<Component>,
}

/// One planned try.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlannedTry {
    wait_us: u64,
    bound_ms: u64,
    in_us: u64,
}

/// What will be done with a component that fails.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    name: String,
    /// `if_it_fails_now`, `has_failed`, `given_up` or `never`.
    begins: String,
    fails_after_ms: u64,
    tries: Vec<PlannedTry>,
    gives_up_in_ms: Option<u64>,
    /// `left_failed` or `escalates`.
    then: String,
}

/// A component in words.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Explained {
    text: String,
    /// What that is told from.
    component: Component,
}

/// An order that is carried out meanwhile.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Ordered {
    component: String,
    /// Its incarnation when the order came.
    incarnation: u64,
}

/// A setting that changed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    key: String,
    from: String,
    to: String,
}

/// What reading the configuration again has changed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reloaded {
    changed: Vec<Change>,
    /// Components that are restarted for it.
    restarted: Vec<String>,
    /// What waits for the next start.
    next_start: Vec<String>,
}

/// Which log records are kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    /// Of everything that no rule names.
    all: String,
    components: BTreeMap<String, String>,
    modules: BTreeMap<String, String>,
}

/// A level that was set beside the configuration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Override {
    name: String,
    level: String,
    until: Option<String>,
}

/// Which log records are kept, and what of that was set beside the configuration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Levels {
    rules: Rules,
    overrides: Vec<Override>,
}

/// Everything stops.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Stopping {
    stopping: bool,
}
