//! Bytes of peers to records and stock messages.

use super::*;

/// A frame above this that has not come whole is not moved.
const LARGE_FRAME_BYTES: usize = 128 << 10;
/// Buffers that connections may keep for such frames. Others move them.
const LENT_BUFFERS_MAX: usize = 8;

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
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let own = connection.own_buffer.take();
        self.lent_buffers -= usize::from(own.is_some());
        let mut buffer = own.or_else(|| self.read_buffers.pop()).unwrap_or_else(ReadBuffer::new);
        let mut budget = limits::READ_TURN_BYTES;
        while let Some(Some(connection)) = self.connections.get_mut(slot) {
            let read = match connection.phase {
                Phase::Closing | Phase::Lingering => {
                    self.discard_input(slot, &mut buffer, now);
                    break;
                }
                Phase::Handshaking => self.read_piece(slot, &mut buffer, now),
                Phase::Open { .. } if !buffer.can_hold(connection.frame_bytes(&connection.input)) => {
                    self.read_piece(slot, &mut buffer, now)
                }
                Phase::Open { .. } => self.read_frames(slot, &mut buffer, budget, now),
            };
            match read {
                Some(bytes) if bytes < budget => budget -= bytes,
                _ => break,
            }
        }
        self.put_back(slot, buffer);
    }

    /// Keeps the beginning of a frame that has not come whole, a large one where it lies if there is
    /// memory for that, and gives back the buffer.
    fn put_back(&mut self, slot: usize, mut buffer: ReadBuffer) {
        if let Some(Some(connection)) = self.connections.get_mut(slot)
            && matches!(connection.phase, Phase::Open { .. })
            && !buffer.untaken().is_empty()
        {
            let frame_bytes = connection.frame_bytes(buffer.untaken());
            if frame_bytes > LARGE_FRAME_BYTES && self.lent_buffers < LENT_BUFFERS_MAX {
                connection.own_buffer = Some(buffer);
                self.lent_buffers += 1;
                return;
            }
            connection.input.extend_from_slice(buffer.untaken());
        }
        buffer.begin_with(&[]);
        if self.read_buffers.is_empty() {
            self.read_buffers.push(buffer);
        }
    }

    /// Reads what comes in the handshake, or of a frame that no buffer holds. Gives how much came; `None`
    /// if reading must stop.
    fn read_piece(&mut self, slot: usize, buffer: &mut ReadBuffer, now: Instant) -> Option<usize> {
        let connection = self.connections.get_mut(slot)?.as_mut()?;
        let room = buffer.room();
        // Nothing beyond a large frame, so that it has its memory for itself.
        let wanted = match connection.phase {
            Phase::Open { .. } => connection.engine.missing(&connection.input).min(room.len()),
            _ => room.len(),
        };
        match connection.read(&mut room[..wanted], now) {
            Ok(ReadOutcome::Some(bytes)) => {
                connection.input.extend_from_slice(&room[..bytes]);
                self.take_input(slot, now);
                Some(bytes)
            }
            other => self.on_no_bytes(slot, other, now),
        }
    }

    /// Reads and takes whole frames where they lie in `buffer`, about `budget` bytes of them. Gives how
    /// much came; `None` if reading must stop.
    fn read_frames(
        &mut self,
        slot: usize,
        buffer: &mut ReadBuffer,
        budget: usize,
        now: Instant,
    ) -> Option<usize> {
        let connection = self.connections.get_mut(slot)?.as_mut()?;
        if !connection.input.is_empty() {
            buffer.begin_with(&connection.input);
            connection.input = bytes::BytesMut::new();
        }
        let (mut came, mut took_any) = (0, false);
        let outcome = loop {
            let (taken, goes_on) = self.take_frames(slot, buffer.untaken(), now);
            buffer.take(taken);
            took_any |= taken > 0;
            let connection = self.connections.get_mut(slot)?.as_mut()?;
            if !goes_on {
                break None;
            }
            let frame_bytes = connection.frame_bytes(buffer.untaken());
            if !buffer.can_hold(frame_bytes) {
                connection.input.reserve(frame_bytes);
                connection.input.extend_from_slice(buffer.untaken());
                buffer.begin_with(&[]);
                connection.note_frame(took_any, now);
                return Some(came);
            }
            if came >= budget {
                break None;
            }
            match connection.read(buffer.room(), now) {
                Ok(ReadOutcome::Some(bytes)) => {
                    buffer.came(bytes);
                    came += bytes;
                }
                other => break Some(other),
            }
        };
        let connection = self.connections.get_mut(slot)?.as_mut()?;
        if let Phase::Open { .. } = connection.phase {
            connection.note_frame_of(buffer.untaken(), took_any, now);
            if is_held(&self.hub, connection) {
                // What is left is looked at when it is released, and is no frame that does not come.
                connection.frame_since = None;
                connection.is_readable = true;
                return None;
            }
        }
        match outcome {
            Some(Ok(ReadOutcome::Ended)) => {
                connection.keep(buffer.untaken());
                buffer.begin_with(&[]);
                self.on_no_bytes(slot, Ok(ReadOutcome::Ended), now)
            }
            Some(outcome) => self.on_no_bytes(slot, outcome, now),
            None => None,
        }
    }

    fn on_no_bytes(&mut self, slot: usize, outcome: io::Result<ReadOutcome>, now: Instant) -> Option<usize> {
        match outcome {
            Ok(ReadOutcome::Blocked) => self.connections.get_mut(slot)?.as_mut()?.is_readable = false,
            Ok(_) => self.on_end_of_stream(slot, now),
            Err(error) => self.lose(slot, "lost", &error.to_string(), now),
        }
        None
    }

    /// Takes the whole frames that `input` begins with. Gives their bytes, and whether more may be taken.
    fn take_frames(&mut self, slot: usize, input: &mut [u8], now: Instant) -> (usize, bool) {
        let mut taken = 0;
        loop {
            let Some(Some(connection)) = self.connections.get_mut(slot) else { return (taken, false) };
            if !matches!(connection.phase, Phase::Open { .. }) || is_held(&self.hub, connection) {
                return (taken, false);
            }
            match connection.engine.open_frame(&mut input[taken..]) {
                Ok(Some(OpenedFrame { body, more, command, bytes })) => {
                    taken += bytes;
                    self.on_frame(slot, body, None, FrameFlags { more, command }, now);
                }
                Ok(None) => return (taken, true),
                Err(error) => {
                    self.on_zmtp_error(slot, &error, now);
                    return (taken, false);
                }
            }
        }
    }

    /// What comes after our last words is not looked at.
    fn discard_input(&mut self, slot: usize, buffer: &mut ReadBuffer, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        connection.keep(&[]);
        match connection.read(buffer.room(), now) {
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
                    self.on_frame(slot, &body, Some(&body), FrameFlags { more, command }, now)
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
            (Phase::Open { session, .. }, Some(error)) => {
                let session = *session;
                self.name_broken_session(slot, session, &error);
                self.lose(slot, "lost", &error.to_string(), now);
            }
            (_, Some(error)) => self.lose(slot, "lost", &error.to_string(), now),
            (_, None) => self.lose(slot, "closed", "the peer closed the connection", now),
        }
    }

    fn on_zmtp_error(&mut self, slot: usize, error: &ZmtpError, now: Instant) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if let Phase::Open { session, .. } = &connection.phase {
            let session = *session;
            self.name_broken_session(slot, session, error);
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

    /// Takes the content of a frame. `owner` is the memory it lies in, if that is its own.
    fn on_frame(
        &mut self,
        slot: usize,
        body: &[u8],
        owner: Option<&bytes::Bytes>,
        flags: FrameFlags,
        now: Instant,
    ) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let Phase::Open { session, speech } = &mut connection.phase else { return };
        let session = *session;
        if flags.command {
            return self.on_command(slot, session, body, now);
        }
        let problem = match speech {
            Speech::Native { reader, .. } => {
                self.hub.batch(session, reader, body).err().map(|error| error.to_string())
            }
            Speech::Stock(stock) => {
                let taken = stock.frame(&mut self.hub, session, body, owner, flags.more);
                taken.err().map(|error| error.to_string())
            }
        };
        if let Some(problem) = problem {
            self.close_session(session, "protocol", &problem, now);
        }
    }

    fn on_command(&mut self, slot: usize, session: SessionId, body: &[u8], now: Instant) {
        let command = match zmtp::Command::parse(&bytes::Bytes::copy_from_slice(body)) {
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

/// Whether nothing may be read from it now: stock publishers know no credit. One that is gone is read to its end, so
/// that everybody learns of it: what it left in the socket is bounded, and the queue that holds it has room for that.
fn is_held(hub: &Hub, connection: &Connection) -> bool {
    match &connection.phase {
        Phase::Open { session, speech: Speech::Stock(_) } => {
            !connection.is_closed_by_peer && hub.is_held(*session)
        }
        _ => false,
    }
}
