//! What time alone brings: deadlines, pings, edits of the registry.

use super::*;
use crate::broker::last_use::{NOTED_EVERY, WRITTEN_AFTER};

impl Reactor {
    pub(super) fn tick(&mut self, now: Instant) {
        self.last_tick = now;
        self.hub.tick(now_ms());
        for slot in 0..self.connections.len() {
            self.check_clocks(slot, now);
        }
        self.accept_ready = true;
        if let Some(more) = self.refusal_log.next_second(now) {
            tracing::warn!("{more} more connections refused within a second; `bus auth` counts them");
        }
        if let Some(more) = self.accept_log.next_second(now) {
            tracing::error!("{more} more failures to accept connections within a second");
        }
        self.reload_key_store(now);
        if let Some(path) = self.key_store_watch.unfinished() {
            let problem = format!("`{}` is being written; it applies when it is closed", path.display());
            tracing::warn!("{problem}");
            self.hub.set_registry_problem(Some(problem));
        }
        self.end_overlaps(now);
        // A clock that was set back has moved it.
        self.next_end_ms = self.registry.next_end_ms(now_ms()).unwrap_or(u64::MAX).min(self.next_end_ms);
        self.write_uses(now, false);
        for again in self.hub.denied_again() {
            tracing::warn!("{again}");
        }
    }

    fn check_clocks(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let since = |instant: Instant| now.saturating_duration_since(instant);
        let blocked = connection.blocked_since.is_some_and(|at| since(at) > self.timeouts.write);
        let stuck = connection.frame_since.is_some_and(|at| since(at) > self.timeouts.read);
        match &connection.phase {
            Phase::Handshaking if since(connection.since) > self.timeouts.handshake => {
                let stage = connection.engine.stage();
                let text = format!("{stage} was awaited for {:?}", self.timeouts.handshake);
                debug_assert!(stage != Stage::Session, "an open session is not handshaking");
                self.refuse(slot, "handshake_timeout", &text, None, now);
                self.drop_connection(slot);
            }
            Phase::Handshaking => {}
            Phase::Closing | Phase::Lingering if since(connection.since) > limits::LAST_WORDS_TIMEOUT => {
                self.drop_connection(slot)
            }
            Phase::Closing | Phase::Lingering => {}
            Phase::Open { .. } if blocked => self.lose(slot, "write_timeout", "the peer takes no bytes", now),
            Phase::Open { .. } if stuck => {
                self.lose(slot, "read_timeout", "a frame was begun and not finished", now)
            }
            Phase::Open { .. } => self.check_liveness(slot, now),
        }
    }

    /// Pings a silent session, and ends one that stays silent. Stock 3.0 peers know no PING: the kernel
    /// looks for them, see `Stream::keep_alive`.
    fn check_liveness(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if connection.is_readable {
            // Held back by us, not silent.
            return;
        }
        let silent = now.saturating_duration_since(connection.last_read);
        let knows_ping = connection.engine.peer_version().is_some_and(|version| version.minor >= 1);
        if connection.pinged && silent > self.timeouts.ping_interval + self.timeouts.ping {
            return self.lose(slot, "silent", "the peer did not answer a ping", now);
        }
        if !connection.pinged && knows_ping && silent > self.timeouts.ping_interval {
            connection.pinged = true;
            let ping = zmtp::Command::Ping { ttl: Duration::ZERO, context: bytes::Bytes::new() }.encode();
            if connection.engine.send(&[&ping], FrameFlags::COMMAND).is_ok() {
                self.write(slot, now);
            }
        }
    }

    pub(super) fn reload_registry(&mut self) {
        // Revoking says who it is about; a file that names nobody is one that went wrong, and would cut everybody.
        let names_nobody = |edited: &Registry| edited.peers().next().is_none();
        let read = self.key_store_watch.registry().map(|read| match read {
            Ok(edited) if names_nobody(&edited) && !names_nobody(&self.registry) => {
                Err("`authorized.toml` names no peer any more; to shut peers out, revoke them".to_owned())
            }
            read => read.map_err(|error| error.to_string()),
        });
        match read {
            None => {}
            Some(Ok(edited)) => {
                tracing::info!(peers = edited.peers().count(), "authorised peers read again");
                self.hub.set_registry_problem(None);
                self.registry.replace_peers(edited);
                self.hub.set_registry(&self.registry);
                self.judge_sessions();
            }
            Some(Err(error)) => {
                tracing::error!(%error, "authorised peers not read again; the old rules stay");
                self.hub.set_registry_problem(Some(error));
            }
        }
    }

    /// Gives every session the rights it has now, or ends it.
    fn judge_sessions(&mut self) {
        let (registry, now_ms) = (&self.registry, now_ms());
        self.hub.reauthorise(|info| {
            let judged = registry.judge(&info.peer, info.key.as_ref(), now_ms);
            judged.map_err(|refusal| Ending { code: refusal.ending_code(), text: refusal.to_string() })
        });
        self.next_end_ms = registry.next_end_ms(now_ms).unwrap_or(u64::MAX);
    }

    /// Ends the sessions of keys whose time is over, at that instant.
    pub(super) fn end_keys_of_age(&mut self) {
        if now_ms() >= self.next_end_ms {
            self.judge_sessions();
        }
    }

    /// Has the uses of keys written down that were not, if it is time to.
    pub(super) fn write_uses(&mut self, now: Instant, is_last: bool) {
        let Some(keeper) = &mut self.last_use else { return };
        if now.duration_since(keeper.noted) >= NOTED_EVERY {
            keeper.noted = now;
            self.hub.note_all_uses();
        }
        if !is_last && now.duration_since(keeper.written) < WRITTEN_AFTER {
            return;
        }
        let Some(mut uses) = self.hub.take_uses() else { return };
        uses.keep_registered(&self.registry);
        keeper.written = now;
        if is_last {
            return keeper.finish(uses);
        }
        if let Err(uses) = keeper.offer(uses) {
            self.hub.put_uses_back(uses);
        }
    }

    /// Follows an edit of either file.
    pub(super) fn reload_key_store(&mut self, now: Instant) {
        self.reload_registry();
        match self.key_store_watch.broker_keys() {
            None => {}
            Some(Ok(read)) => {
                let read = read.in_force(now_ms());
                if read.pairs() != self.keys.pairs() {
                    self.take_keys(read, now);
                } else {
                    self.keys = read;
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the broker's keys not read again; the old ones stay");
                self.hub
                    .publish_own("$sys/auth/broker_key", &serde_json::json!({ "error": error.to_string() }));
            }
        }
    }

    /// Forgets old keys when their time has come.
    fn end_overlaps(&mut self, now: Instant) {
        let in_force = self.keys.in_force(now_ms());
        if in_force.old.len() < self.keys.old.len() {
            self.take_keys(in_force, now);
        }
    }

    /// Puts other keys into force. Sessions go on; whoever has not finished its handshake begins anew, so
    /// that no key is used after its end.
    fn take_keys(&mut self, keys: BrokerKeys, now: Instant) {
        let current = keys.current.public;
        let is_new = current != self.keys.current.public;
        self.server = Arc::new(ServerConfig::new(keys.pairs()));
        self.keys = keys;
        *self.public_key.lock().unwrap_or_else(PoisonError::into_inner) = current;
        self.hub.set_broker_keys(&self.keys);
        let users = self.hub.users_of_old_keys();
        if is_new {
            let old = self.keys.old.len();
            tracing::warn!(key = %current, old, users = ?users, "the broker has a new key");
            self.hub.announce_broker_key();
        } else {
            tracing::warn!(users = ?users, "the overlap of an old key of the broker has ended");
        }
        for slot in self.half_open.values().copied().collect::<Vec<_>>() {
            self.refuse(slot, "key_rotated", "the broker's keys changed during its handshake", None, now);
            self.drop_connection(slot);
        }
    }
}
