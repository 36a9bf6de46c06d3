//! What an actor is: a type that is started, handed one input at a time, and stopped.
//!
//! The host ([`crate::host`]) drives it on actix; its author never sees an actix type.

use std::{fmt, future::Future, time::Duration};

use interlock_bus::{Message, Request, TopicFilter, trace::Trace};

use crate::context::Context;

/// A supervised actor.
///
/// - It lives on one thread of its own, so neither it nor its futures need to be [`Send`].
/// - One call at a time: `handle` and `tick` never overlap. What should run beside them is given to
///   [`Context::spawn`].
/// - It fails by returning an error, by panicking, by being stuck, or by not answering the
///   supervisor. Each time a fresh value is built; nothing of the failed one is used again.
/// - Code that blocks the thread is seen as a failure after about 15 seconds; move it to
///   `tokio::task::spawn_blocking`. A thread that does not come back is given up, and with it the session on the bus.
///
/// ```
/// # use interlock_actors::{actor::{Actor, Failure, Input}, context::Context};
/// # use interlock_bus::SubscribeOptions;
/// struct Printer;
///
/// impl Actor for Printer {
///     async fn started(&mut self, context: &Context) -> Result<(), Failure> {
///         context.subscribe(&"greetings/#".parse()?, SubscribeOptions::default()).await?;
///         Ok(())
///     }
///
///     async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
///         if let Input::Message(message) = input {
///             context.status(format!("last greeting came from `{}`", message.origin));
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Actor: 'static {
    /// Runs before the first input. Returning `Ok` declares the actor ready, so return only when
    /// what it needs is proven: subscriptions acknowledged, files open, port bound.
    ///
    /// The deadline is 30 s; [`Context::progress`] moves it.
    fn started(&mut self, context: &Context) -> impl Future<Output = Result<(), Failure>> {
        async {
            let _ = context;
            Ok(())
        }
    }

    /// Handles one input. An error fails the actor; an input that is in hand at two failures in a
    /// row is set aside.
    fn handle(&mut self, input: Input, context: &Context) -> impl Future<Output = Result<(), Failure>>;

    /// How often [`tick`](Actor::tick) runs; `None` (the default) is never. Asked once, after `started`.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// Runs every [`tick_every`](Actor::tick_every), between inputs. Missed ticks are not made up for.
    fn tick(&mut self, context: &Context) -> impl Future<Output = Result<(), Failure>> {
        async {
            let _ = context;
            Ok(())
        }
    }

    /// Runs when the actor is asked to stop: after the input in hand, before spawned work is waited for. Not
    /// called after a failure.
    fn stopping(&mut self, context: &Context) -> impl Future<Output = Result<(), Failure>> {
        async {
            let _ = context;
            Ok(())
        }
    }
}

/// What an actor is handed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A message of a subscription.
    Message(Message),
    /// A request on a served topic. Dropping it unanswered ends it with an error at the requester.
    Request(Request),
    /// Messages of a subscription were lost before they reached this actor.
    Gap {
        /// The subscription they belonged to.
        filter: TopicFilter,
        /// How many; `None` if nobody knows.
        count: Option<u64>,
        /// Why, in the bus's words.
        reason: String,
    },
}

impl Input {
    /// The trace that it belongs to; its handler, and what that spawns, work as part of it.
    pub fn trace(&self) -> Option<Trace> {
        match self {
            Self::Message(message) => Trace::of(&message.header),
            Self::Request(request) => Trace::of(&request.message.header),
            Self::Gap { .. } => None,
        }
    }
}

/// Why an actor failed: one reason, and the chain of causes behind it.
///
/// Every [`std::error::Error`] becomes one through `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    reason: String,
    causes: Vec<String>,
}

impl Failure {
    /// A failure with a reason: lower case, value in backticks, no full stop.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), causes: Vec::new() }
    }

    /// Puts what was being done in front: the present reason becomes the first cause.
    pub fn context(self, doing: impl Into<String>) -> Self {
        let causes = std::iter::once(self.reason).chain(self.causes).collect();
        Self { reason: doing.into(), causes }
    }

    /// The reason alone.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The causes behind it, nearest first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)?;
        self.causes.iter().try_for_each(|cause| write!(formatter, ": {cause}"))
    }
}

// `Failure` itself must not implement `Error`: this blanket conversion would then overlap with `From<T> for T`.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let reason = error.to_string();
        let mut causes: Vec<String> = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors say their source's text themselves.
            if !causes.last().unwrap_or(&reason).ends_with(&text) {
                causes.push(text);
            }
            source = cause.source();
        }
        Self { reason, causes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the table `turns` is missing")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("not saved: {0}")]
    struct Telling(#[source] std::io::Error);

    #[test]
    fn a_cause_that_was_said_already_is_not_said_again() {
        assert_eq!(
            Failure::from(Telling(std::io::Error::other("disk full"))).to_string(),
            "not saved: disk full"
        );
    }

    #[test]
    fn a_failure_keeps_the_whole_chain_of_an_error() {
        let failure =
            Failure::from(Outer(std::io::Error::other("no such file"))).context("history was not read");

        assert_eq!(failure.to_string(), "history was not read: the table `turns` is missing: no such file");
        assert_eq!(failure.reason(), "history was not read");
        assert_eq!(failure.causes().len(), 2);
    }
}
