//! Why a verb has failed: what is printed, and the exit code.

use std::{fmt, io};

use super::output::Output;
use crate::{
    client::WaitError,
    codec::CodecError,
    durable::DurableError,
    error::{ConnectError, PublishError, RequestError, SubscribeError},
    exit::Exit,
    inspect::InspectError,
    keys::KeyError,
    topic::TopicError,
};

/// The end of a verb.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    /// `None` if whoever reads our output has gone; that is no failure, and nothing is said.
    message: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: Some(message.to_string()) }
    }

    /// The code it ends with.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the message and gives the exit code.
    pub(super) fn tell(self, output: &mut Output) -> Exit {
        if let Some(message) = self.message {
            output.note(&message);
        }
        self.exit
    }

    /// What a failed write to standard output is.
    pub(super) fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { exit: Exit::Done, message: None },
            _ => Self::new(Exit::of_io(error), format!("cannot write the output: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.message.as_deref().unwrap_or("nobody reads the output"))
    }
}

macro_rules! from_operation {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(Exit::from(&error), error)
            }
        }
    )+};
}
from_operation!(ConnectError, DurableError, PublishError, SubscribeError, RequestError, WaitError);

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::new(Exit::of_key(&error), error)
    }
}

impl From<TopicError> for Failure {
    fn from(error: TopicError) -> Self {
        Self::new(Exit::Misuse, error)
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Topic(error) => error.into(),
            InspectError::Request(error) => error.into(),
            InspectError::Answer(_) => Self::new(Exit::Version, error),
        }
    }
}

impl From<CodecError> for Failure {
    fn from(error: CodecError) -> Self {
        Self::new(Exit::Failed, error)
    }
}
