//! What other threads may ask of the broker's thread.

use std::{fmt, sync::Arc, time::Duration};

use crossbeam_channel::Sender;

use super::{BrokerError, hub::SessionId};
use crate::{crypto::PublicKey, local::RecordSink, peer::PeerName};

/// One request to the broker's thread.
pub(crate) enum Command {
    /// Opens a session in this process.
    Attach { peer: PeerName, sink: Arc<dyn RecordSink>, answer: Sender<Result<SessionId, BrokerError>> },
    /// Ends the sessions of a key that is no longer valid.
    CloseKey(PublicKey),
    /// Ends the sessions of a key whose holder has ended, but takes what that had sent.
    EndKey(PublicKey),
    /// Sends what is queued, for at most this long, says goodbye, and ends the thread.
    Stop { grace: Duration },
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Attach { .. } => "Attach",
            Self::CloseKey(_) => "CloseKey",
            Self::EndKey(_) => "EndKey",
            Self::Stop { .. } => "Stop",
        })
    }
}
