//! What the runtime does for the gateway in this process: what has secrets in it, or is no affair of the bus. The command line
//! does the same with the same functions.

mod keys;

use std::{fmt, sync::Arc, time::Duration};

use interlock_actors::gateway::steward::{MadeKey, NewPeer, Refusal, RefusalKind, Steward};
use interlock_bus::PeerName;
use serde_json::Value;

use crate::site::Site;

/// Does it for one installation.
pub(crate) struct SiteSteward {
    site: Arc<Site>,
}

impl fmt::Debug for SiteSteward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SiteSteward")
    }
}

impl SiteSteward {
    pub(crate) fn new(site: &Arc<Site>) -> Self {
        Self { site: Arc::clone(site) }
    }
}

impl Steward for SiteSteward {
    fn keys(&self) -> Result<Vec<Value>, Refusal> {
        keys::list(&self.site.keys)
    }

    fn key(&self, name: &PeerName) -> Result<Value, Refusal> {
        keys::show(&self.site.keys, name)
    }

    fn issue_key(&self, by: &PeerName, wanted: &NewPeer) -> Result<MadeKey, Refusal> {
        keys::issue(&self.site, by, wanted)
    }

    fn revoke_key(&self, by: &PeerName, name: &PeerName) -> Result<(), Refusal> {
        keys::revoke(&self.site, by, name)
    }

    fn rotate_key(
        &self,
        by: &PeerName,
        name: &PeerName,
        overlap: Duration,
        expires_in: Option<Duration>,
    ) -> Result<MadeKey, Refusal> {
        keys::rotate(&self.site, by, name, overlap, expires_in)
    }
}

fn refused(kind: RefusalKind, code: &str, text: impl Into<String>) -> Refusal {
    Refusal { kind, code: code.to_owned(), text: text.into() }
}
