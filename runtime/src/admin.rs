//! The runtime as a peer: answers what it looks like, and takes the wish to stop.
//!
//! | topic | request | reply |
//! |---|---|---|
//! | `interlock/runtime/status/v1` | nothing | [`Status`] as JSON |
//! | `interlock/runtime/stop/v1` | nothing | `{"stopping":true}`, at once |
//! | `interlock/runtime/restart/v1` | the name of a component, as text | `{"restarted":NAME}` |

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
};
use interlock_bus::{Payload, Request, TopicFilter, TopicName};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    lifecycle::{Instance, Shutdown, ShutdownStatus, StopReason},
    supervisor::{SupervisorHandle, TreeSnapshot},
};

const STATUS: &str = "interlock/runtime/status/v1";
const STOP: &str = "interlock/runtime/stop/v1";
const RESTART: &str = "interlock/runtime/restart/v1";

/// Everything that the runtime serves.
pub(crate) const ALL: &str = "interlock/runtime/#";

/// Where status is asked for.
pub fn status_topic() -> TopicName {
    topic(STATUS)
}

/// Where a stop is asked for.
pub fn stop_topic() -> TopicName {
    topic(STOP)
}

/// Where a restart of one component is asked for.
pub fn restart_topic() -> TopicName {
    topic(RESTART)
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
    /// The shutdown, once one has begun.
    #[serde(default)]
    pub shutdown: Option<ShutdownStatus>,
}

/// Serves the topics above.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) instance: Arc<Mutex<Instance>>,
    pub(crate) model: String,
    pub(crate) tree: SupervisorHandle,
    pub(crate) stop: mpsc::Sender<StopReason>,
    pub(crate) shutdown: Shutdown,
}

impl Actor for Admin {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        context.serve(&ALL.parse::<TopicFilter>()?).await?;
        Ok(())
    }

    async fn handle(&mut self, input: Input, _context: &Context) -> Result<(), Failure> {
        let Input::Request(request) = input else { return Ok(()) };
        let answered = match request.message.topic.as_str() {
            STATUS => {
                let instance = self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let tree = TreeSnapshot::clone(&self.tree.snapshot());
                let shutdown = self.shutdown.status(Instant::now());
                let status = Status { instance, model: self.model.clone(), tree, shutdown };
                request.end(Payload::json(&status)?).await
            }
            STOP => {
                let peer = request.message.origin.to_string();
                let answered = request.end(Payload::json(&serde_json::json!({ "stopping": true }))?).await;
                // A full queue means that a stop was asked for already.
                let _ = self.stop.try_send(StopReason::Request(peer));
                answered
            }
            RESTART => self.restart(request).await?,
            other => {
                let text = format!("`{other}` is not served; there are `{STATUS}`, `{STOP}` and `{RESTART}`");
                request.fail("unknown_topic", &text).await
            }
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "nobody waited for the answer");
        }
        Ok(())
    }
}

impl Admin {
    async fn restart(&self, request: Request) -> Result<Result<(), interlock_bus::ReplyError>, Failure> {
        let name = String::from_utf8_lossy(&request.message.payload).trim().to_owned();
        let tree = self.tree.clone();
        let wanted = name.clone();
        // The order is answered by the supervisor's thread, which may be this actor's own supervisor: never wait for it here.
        let ordered = tokio::task::spawn_blocking(move || tree.restart(&wanted)).await?;
        Ok(match ordered {
            Ok(()) => request.end(Payload::json(&serde_json::json!({ "restarted": name }))?).await,
            Err(error) => request.fail("refused", &error.to_string()).await,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_are_valid_and_served() {
        let filter: TopicFilter = ALL.parse().unwrap();
        for topic in [status_topic(), stop_topic(), restart_topic()] {
            assert!(filter.matches(&topic));
        }
    }
}
