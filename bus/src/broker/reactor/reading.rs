//! Bytes of peers to records and stock messages.

use super::*;

impl Reactor {
    /// Reads from every readable connection once around, each for at most [`limits::READ_TURN_BYTES`].
    pub(super) fn read_turn(&mut self, now: Instant) {
        for _ in 0..self.readable.len() {
            let Some(slot) = self.readable.pop_front() else { return };
            let Some(Some(connection)) = self.connections.get_mut(slot) else { continue };
            connection.is_listed = false;
            self.read_connection(slot, now);
            let Some(Some(connection)) = self.connections.get_mut(slot) else { continue };
            if !connection.is_readable {
                continue;
            }
            if is_held(&self.hub, connection) {
                self.held_back.insert(slot);
            } else {
                list(&mut self.readable, slot, connection);
            }
        }
    }

    /// Lists those publishers that were held back and are held no more.
    pub(super) fn release_held_back(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let mut held_back = std::mem::take(&mut self.held_back);
        held_back.retain(|slot| {
            let Some(Some(connection)) = self.connections.get_mut(*slot) else { return false };
            let held = is_held(&self.hub, connection);
            if !held {
                list(&mut self.readable, *slot, connection);
            }
            // One that is listed is put here again by its turn, if need be.
            held && !connection.is_listed
        });
        self.held_back = held_back;
    }

    fn read_connection(&mut self, slot: usize, now: Instant) {
        // What a publisher had sent when it was held.
        if matches!(self.connections.get(slot), Some(Some(connection)) if !connection.input.is_empty()) {
            self.take_input(slot, now);
        }
        let mut budget = limits::READ_TURN_BYTES as isize;
        while budget > 0 {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            if matches!(connection.phase, Phase::Closing | Phase::Lingering) {
                return self.discard_input(slot);
            }
            if is_held(&self.hub, connection) {
                return;
            }
            match connection.read(&mut self.read_buffer, now) {
                Ok(ReadOutcome::Some(bytes)) => {
                    budget -= bytes as isize;
                    self.take_input(slot, now);
                }
                Ok(ReadOutcome::Blocked) => {
                    connection.is_readable = false;
                    return;
                }
                Ok(ReadOutcome::Ended) => return self.on_end_of_stream(slot, now),
                Err(error) => return self.lose(slot, "lost", &error.to_string(), now),
            }
        }
    }

    /// What comes after our last words is not looked at.
    fn discard_input(&mut self, slot: usize) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match connection.discard(&mut self.read_buffer) {
            Ok(ReadOutcome::Some(_)) => {}
            Ok(ReadOutcome::Blocked) => connection.is_readable = false,
            Ok(ReadOutcome::Ended) if matches!(connection.phase, Phase::Closing) => {
                connection.is_readable = false;
            }
            Ok(ReadOutcome::Ended) | Err(_) => self.drop_connection(slot),
        }
    }

    fn take_input(&mut self, slot: usize, now: Instant) {
        let mut took_any = false;
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
            if matches!(connection.phase, Phase::Closing | Phase::Lingering) {
                return;
            }
            if is_held(&self.hub, connection) {
                // The rest is looked at when it is released.
                connection.is_readable = true;
                connection.frame_since = None;
                return;
            }
            let polled = connection.engine.poll(&mut connection.input);
            took_any |= matches!(polled, Ok(Some(_)));
            match polled {
                Ok(Some(EngineEvent::Authenticate { key, metadata, server_key, .. })) => {
                    self.authenticate(slot, (key, server_key), &metadata, now)
                }
                Ok(Some(EngineEvent::Frame { body, more, command })) => {
                    self.on_frame(slot, body, more, command, now)
                }
                Ok(Some(EngineEvent::PeerError { reason })) => {
                    return self.refuse(
                        slot,
                        "peer_error",
                        &format!("the peer gave up: `{reason}`"),
                        None,
                        now,
                    );
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    connection.note_frame(took_any, now);
                    if connection.unwritten() > 0 {
                        self.write(slot, now);
                    }
                    return;
                }
                Err(error) => return self.on_zmtp_error(slot, &error, now),
            }
        }
    }

    fn on_end_of_stream(&mut self, slot: usize, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let input = std::mem::take(&mut connection.input);
        let problem = connection.engine.end_of_stream(&input);
        match (&connection.phase, problem) {
            (Phase::Handshaking, Some(error)) => {
                self.refuse(slot, "closed_in_handshake", &error.to_string(), None, now);
                self.drop_connection(slot);
            }
            (_, Some(error)) => self.lose(slot, "lost", &error.to_string(), now),
            (_, None) => self.lose(slot, "closed", "the peer closed the connection", now),
        }
    }

    fn on_zmtp_error(&mut self, slot: usize, error: &ZmtpError, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if matches!(connection.phase, Phase::Open { .. }) {
            return self.lose(slot, "protocol", &error.to_string(), now);
        }
        let code = match error {
            ZmtpError::NotZmtp { .. } => "not_zmtp",
            ZmtpError::VersionTooOld { .. } => "version",
            ZmtpError::MechanismMismatch { .. } => "not_curve",
            ZmtpError::ServerKeyUnknown { .. } => "wrong_server_key",
            ZmtpError::VouchRefused { .. } => "bad_vouch",
            _ => "malformed",
        };
        self.refuse(slot, code, &error.to_string(), None, now);
    }

    fn on_frame(&mut self, slot: usize, body: bytes::Bytes, more: bool, command: bool, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let Phase::Open { session, speech } = &mut connection.phase else { return };
        let session = *session;
        if command {
            return self.on_command(slot, session, &body, now);
        }
        let problem = match speech {
            Speech::Native { reader, .. } => take_batch(&mut self.hub, session, reader, body).err(),
            Speech::Stock(stock) => {
                stock.frame(&mut self.hub, session, body, more).err().map(|error| error.to_string())
            }
        };
        if let Some(problem) = problem {
            self.close_session(session, "protocol", &problem, now);
        }
    }

    fn on_command(&mut self, slot: usize, session: SessionId, body: &bytes::Bytes, now: Instant) {
        let command = match zmtp::Command::parse(body) {
            Ok(command) => command,
            Err(error) => return self.lose(slot, "protocol", &error.to_string(), now),
        };
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match command {
            zmtp::Command::Ping { context, .. } => {
                connection.unwritten_pongs += 1;
                if connection.unwritten_pongs > limits::PONGS_UNREAD_MAX {
                    return self.lose(
                        slot,
                        "control_queue_full",
                        "it pings and does not read the answers",
                        now,
                    );
                }
                let pong = zmtp::Command::Pong { context }.encode();
                if connection.engine.send(&[&pong], FrameFlags::COMMAND).is_ok() {
                    self.write(slot, now);
                }
            }
            zmtp::Command::Error { reason } => self.lose(slot, "peer_error", &reason, now),
            other => {
                if let Phase::Open { speech: Speech::Stock(stock), .. } = &mut connection.phase {
                    stock.command(&mut self.hub, session, other);
                }
            }
        }
    }
}

/// Whether nothing may be read from it now: stock publishers know no credit.
fn is_held(hub: &Hub, connection: &Connection) -> bool {
    match &connection.phase {
        Phase::Open { session, speech: Speech::Stock(_) } => hub.is_held(*session),
        _ => false,
    }
}

fn take_batch(
    hub: &mut Hub,
    session: SessionId,
    reader: &mut BatchReader,
    body: bytes::Bytes,
) -> Result<(), String> {
    reader.begin(body);
    while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
        hub.record(session, record);
    }
    Ok(())
}
