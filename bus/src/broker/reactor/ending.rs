//! Ends of sessions and connections.

use super::*;

impl Reactor {
    /// Ends a session on our word: the peer is told why, as far as its protocol can say it.
    pub(super) fn close_session(&mut self, session: SessionId, code: &str, text: &str, now: Instant) {
        let Some(end) = self.ends.remove(&session) else { return };
        let slot = match end {
            End::Sink(sink) => {
                self.hub.close(session, code, text);
                return sink.on_closed(code, text);
            }
            End::Socket(slot) => slot,
        };
        tracing::info!(
            peer = self.hub.info(session).map(|info| info.peer.as_str()),
            code,
            "session ended: {text}"
        );
        self.hub.close(session, code, text);
        if let Some(Some(connection)) = self.connections.get_mut(slot) {
            if let Phase::Open { speech: Speech::Native { writer, .. }, .. } = &mut connection.phase {
                let mut batch = Vec::new();
                let goodbye = Record::Goodbye { code: code.to_owned(), text: text.to_owned() };
                writer.put_control(&goodbye, &mut batch);
                // A session that cannot take it is closed all the same.
                let _ = connection.engine.send(&[&batch], FrameFlags::LAST);
            }
            self.finish(slot, now);
        }
    }

    /// The connection is gone, or breaks its protocol: its session ends without a word to the peer.
    pub(super) fn lose(&mut self, slot: usize, code: &str, text: &str, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match &connection.phase {
            Phase::Open { session, .. } => {
                let session = *session;
                let peer = self.hub.info(session).map(|info| info.peer.clone());
                tracing::debug!(peer = peer.as_ref().map(PeerName::as_str), code, "session ended: {text}");
                self.ends.remove(&session);
                self.hub.close(session, code, text);
            }
            Phase::Handshaking => self.refuse(slot, code, text, None, now),
            Phase::Closing | Phase::Lingering => {}
        }
        self.drop_connection(slot);
    }

    /// Counts and shows a session whose stream is not what its peer sent: a faulty peer, or somebody on the
    /// path.
    pub(super) fn name_broken_session(&mut self, slot: usize, session: SessionId, error: &ZmtpError) {
        let Some(Some(connection)) = self.connections.get(slot) else { return };
        let code = match error {
            ZmtpError::NonceNotIncreasing { .. } => "frame_repeated",
            ZmtpError::NonceSkipped { .. } => "frame_lost",
            ZmtpError::BoxRefused { .. } => "frame_changed",
            ZmtpError::ClosedInsideFrame => "frame_cut",
            ZmtpError::FrameTooLong { .. } => "frame_too_large",
            _ => "frame_malformed",
        };
        let (address, text) = (connection.address.clone(), error.to_string());
        let info = self.hub.info(session);
        let peer = info.map(|info| info.peer.to_string());
        let key = info.and_then(|info| info.key).map(|key| key.to_string());
        if self.refusal_log.admits() {
            tracing::warn!(%address, code, peer, "session broken: {text}");
        }
        self.hub.refused(RefusalEvent { at_ms: now_ms(), address, code: code.to_owned(), text, key, peer });
    }

    /// Lets the last bytes out, then closes the socket.
    pub(super) fn finish(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        self.half_open.remove(&connection.number);
        connection.has_last_words = connection.unwritten() > 0;
        connection.phase = Phase::Closing;
        connection.since = now;
        self.write(slot, now);
    }

    /// Closes our side and waits for the peer to close its own. A socket that is closed with input
    /// unread is reset by the kernel, and a reset destroys the last words on their way.
    pub(super) fn linger(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let may_linger = connection.has_last_words && self.lingering < limits::LINGERING_MAX;
        if !may_linger || connection.stream.shutdown_write().is_err() {
            return self.drop_connection(slot);
        }
        connection.phase = Phase::Lingering;
        connection.since = now;
        self.lingering += 1;
        // What has come meanwhile stands in the kernel, and no event will tell.
        connection.is_readable = true;
        list(&mut self.readable, slot, connection);
    }

    pub(super) fn drop_connection(&mut self, slot: usize) {
        let Some(mut connection) = self.connections[slot].take() else { return };
        self.half_open.remove(&connection.number);
        self.lingering -= usize::from(matches!(connection.phase, Phase::Lingering));
        self.lent_buffers -= usize::from(connection.own_buffer.is_some());
        // Deregistering fails only for a socket that is gone already.
        let _ = self.poll.registry().deregister(connection.stream.source());
        self.free.push(slot);
    }

    /// Drains, says goodbye, and gives the peers a moment to read it.
    pub(super) fn has_ended(&mut self, now: Instant) -> bool {
        if let Some(until) = self.farewell_until {
            return now >= until || self.occupied() == 0;
        }
        if self.stop_at.is_some_and(|stop_at| now >= stop_at || self.is_drained()) {
            self.say_goodbye(now);
            self.farewell_until = Some(now + limits::FAREWELL_TIMEOUT);
        }
        self.farewell_until.is_some() && self.occupied() == 0
    }

    fn is_drained(&mut self) -> bool {
        let sessions: Vec<SessionId> = self.ends.keys().copied().collect();
        let nothing_queued = sessions.iter().all(|session| !self.hub.has_output(*session));
        nothing_queued && self.connections.iter_mut().flatten().all(|connection| connection.unwritten() == 0)
    }

    fn say_goodbye(&mut self, now: Instant) {
        let sessions: Vec<SessionId> = self.ends.keys().copied().collect();
        for session in sessions {
            self.close_session(session, "broker_stopping", "the broker is stopping", now);
        }
        for slot in std::mem::take(&mut self.half_open).into_values() {
            self.drop_connection(slot);
        }
    }
}
