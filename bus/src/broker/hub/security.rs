//! What the hub knows of keys and rules, and tells those who ask or are concerned.

use super::*;
use crate::keys::{BrokerKeys, LastUse, Registry, RuleSource, registry::Peer};

/// The broker's own keys and the state of the registry, as the tool shows them.
#[derive(Debug, Default)]
pub(in crate::broker) struct Security {
    /// The broker's current public key.
    pub(in crate::broker) broker_key: Option<PublicKey>,
    /// Those before it and the end of their overlap, Unix milliseconds.
    pub(in crate::broker) old_keys: Vec<(PublicKey, u64)>,
    /// Why the last edit of the registry was refused, and when; `None` if it was not.
    pub(in crate::broker) registry_problem: Option<(String, u64)>,
    /// Who is registered, for those who ask why.
    pub(in crate::broker) roster: Roster,
    /// Uses of keys that nobody has taken yet; empty if there was none.
    last_use: LastUse,
}

/// The peers of the registry that is in force, and where their rules stand.
#[derive(Debug, Default)]
pub(in crate::broker) struct Roster {
    pub(in crate::broker) peers: std::collections::BTreeMap<PeerName, Peer>,
    pub(in crate::broker) source: Option<Arc<RuleSource>>,
}

impl Hub {
    /// Notes which keys a session may begin with.
    pub fn set_broker_keys(&mut self, keys: &BrokerKeys) {
        self.security.broker_key = Some(keys.current.public);
        self.security.old_keys = keys.old.iter().map(|old| (old.keys.public, old.until_ms)).collect();
        let event = serde_json::json!({ "key": keys.current.public, "old": self.old_keys() });
        self.publish_own("$sys/auth/broker_key", &event);
    }

    /// Notes who is registered now.
    pub fn set_registry(&mut self, registry: &Registry) {
        let peers = registry.peers().map(|(name, peer)| (name.clone(), peer.clone())).collect();
        self.security.roster = Roster { peers, source: registry.source().cloned() };
    }

    /// Notes that a session is open.
    pub(super) fn note_use(&mut self, info: &SessionInfo) {
        self.security.last_use.note(&info.peer, info.key.as_ref(), self.now_ms);
    }

    /// Notes every open session.
    pub fn note_all_uses(&mut self) {
        let infos: Vec<SessionInfo> = self.each_session().map(|(_, session)| session.info.clone()).collect();
        infos.iter().for_each(|info| self.note_use(info));
    }

    /// The uses since this was last called; `None` without one.
    pub fn take_uses(&mut self) -> Option<LastUse> {
        let uses = std::mem::take(&mut self.security.last_use);
        (uses != LastUse::default()).then_some(uses)
    }

    /// Takes back uses that could not be written down yet.
    pub fn put_uses_back(&mut self, uses: LastUse) {
        self.security.last_use.merge(uses);
    }

    /// Notes that an edit of the registry was refused, or that one was not.
    pub fn set_registry_problem(&mut self, problem: Option<String>) {
        let event = serde_json::json!({ "error": problem });
        self.security.registry_problem = problem.map(|problem| (problem, self.now_ms));
        self.publish_own("$sys/auth/registry", &event);
    }

    /// Tells every native session whose key of the broker is an old one.
    pub fn announce_broker_key(&mut self) {
        let ids: Vec<SessionId> = self.each_session().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.tell_broker_key(id));
    }

    /// Tells one session, if it speaks records, has said hello and used an old key.
    pub(super) fn tell_broker_key(&mut self, id: SessionId) {
        let (Some(current), Some(session)) = (self.security.broker_key, self.session(id)) else { return };
        let is_native = session.info.kind == SessionKind::Native && session.greeted;
        let Some(used) = session.info.server_key.filter(|used| is_native && *used != current) else { return };
        let until = self.security.old_keys.iter().find(|(key, _)| *key == used);
        let old_until_ms = until.map_or(0, |(_, until_ms)| *until_ms);
        self.send_control(id, Record::BrokerKey { key: *current.as_bytes(), old_until_ms });
    }

    /// The names of peers whose session began with an old key, each once.
    pub fn users_of_old_keys(&self) -> Vec<String> {
        let old = self.each_session().filter(|(_, session)| self.uses_old_key(&session.info));
        let names: BTreeSet<String> = old.map(|(_, session)| session.info.peer.to_string()).collect();
        names.into_iter().collect()
    }

    /// Whether this session began with a key that is not the broker's any more.
    pub(in crate::broker) fn uses_old_key(&self, info: &SessionInfo) -> bool {
        info.server_key.is_some() && info.server_key != self.security.broker_key
    }

    /// Old keys as the tool shows them.
    pub(in crate::broker) fn old_keys(&self) -> serde_json::Value {
        let rows = self.security.old_keys.iter().map(|(key, until_ms)| {
            let used = |session: &Session| session.info.server_key == Some(*key);
            let sessions = self.each_session().filter(|(_, session)| used(session)).count();
            serde_json::json!({ "key": key, "until_ms": until_ms, "sessions": sessions })
        });
        rows.collect()
    }

    /// One line for each refusal that was repeated, at most once a minute.
    pub fn denied_again(&mut self) -> Vec<String> {
        self.denials.take_repeated(self.now_ms)
    }
}
