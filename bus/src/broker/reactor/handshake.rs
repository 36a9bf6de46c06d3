//! The handshake's decision: who gets a session, and of which kind.

use super::*;

impl Reactor {
    pub(super) fn authenticate(
        &mut self,
        slot: usize,
        (key, server_key): (PublicKey, PublicKey),
        metadata: &Metadata,
        now: Instant,
    ) {
        // A key that was enrolled a moment ago must not be refused: stock clients do not come back.
        self.reload_registry();
        let shown = Some((key, self.registry.peer_of(&key)));
        if !self.keys.accept(&server_key, now_ms()) {
            self.with_engine(slot, |engine| engine.refuse(Refusal::ServerKeyWrong.reason()));
            let text = "the client uses an old key of the broker whose overlap has ended";
            return self.refuse(slot, "wrong_server_key", text, shown, now);
        }
        let (peer, permissions) = match self.registry.authenticate(&key, now_ms()) {
            Ok(found) => found,
            Err(refusal) => {
                self.with_engine(slot, |engine| engine.refuse(Refusal::KeyRefused.reason()));
                return self.refuse(slot, refusal.code(), &refusal.to_string(), shown, now);
            }
        };
        let (kind, single_reply) = match session_kind(metadata) {
            Ok(kind) => kind,
            Err(text) => {
                self.with_engine(slot, |engine| engine.refuse(Refusal::KeyRefused.reason()));
                return self.refuse(slot, "socket_type", &text, shown, now);
            }
        };
        let socket_type =
            metadata.socket_type().map_or(SocketType::Router, |socket_type| socket_type.complement());
        let mut ours = Metadata::new(&socket_type);
        if kind == SessionKind::Native
            && let Ok(marked) = ours.clone().with(X_INTERLOCK, native::VERSION_MAJOR.to_string())
        {
            ours = marked;
        }
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        connection.engine.accept(&ours);
        self.half_open.remove(&connection.number);
        let address = connection.address.clone();
        let (key, server_key) = (Some(key), Some(server_key));
        let session = self.hub.open(SessionInfo { peer, key, kind, address, server_key, permissions });
        self.ends.insert(session, End::Socket(slot));
        let speech = if kind == SessionKind::Native {
            connection.engine.set_frame_bytes_max(limits::NATIVE_FRAME_BYTES_MAX);
            Speech::Native { reader: Box::default(), writer: BatchWriter::default() }
        } else {
            Speech::Stock(Stock::new(kind, single_reply))
        };
        if kind == SessionKind::StockPublisher {
            let subscribed = subscribe_to_everything(&mut connection.engine);
            debug_assert!(subscribed.is_ok(), "an accepted session takes a SUBSCRIBE");
        }
        let knows_ping = connection.engine.peer_version().is_some_and(|version| version.minor >= 1);
        if !knows_ping
            && let Err(error) = connection.stream.keep_alive(self.timeouts.ping_interval, self.timeouts.ping)
        {
            tracing::warn!(%error, address = %connection.address, "a peer of ZMTP 3.0 that vanishes will not be noticed");
        }
        connection.phase = Phase::Open { session, speech };
        self.write(slot, now);
    }

    fn with_engine(&mut self, slot: usize, act: impl FnOnce(&mut Engine)) {
        if let Some(Some(connection)) = self.connections.get_mut(slot) {
            act(&mut connection.engine);
        }
    }

    /// Ends a connection that never became a session, and says so.
    pub(super) fn refuse(
        &mut self,
        slot: usize,
        code: &str,
        text: &str,
        shown: Option<(PublicKey, Option<PeerName>)>,
        now: Instant,
    ) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let (key, peer) = shown.map_or((None, None), |(key, peer)| (Some(key.to_string()), peer));
        let address = connection.address.clone();
        if self.refusal_log.admits() {
            tracing::warn!(%address, code, peer = peer.as_ref().map(PeerName::as_str), "connection refused: {text}");
        }
        let (code, text, peer) = (code.to_owned(), text.to_owned(), peer.map(|peer| peer.to_string()));
        self.hub.refused(RefusalEvent { at_ms: now_ms(), address, code, text, key, peer });
        self.finish(slot, now);
    }
}

/// What the metadata ask for, and whether it is a REQ.
fn session_kind(metadata: &Metadata) -> Result<(SessionKind, bool), String> {
    let socket_type = metadata.socket_type().ok_or("the handshake names no socket type")?;
    if metadata.get(X_INTERLOCK).is_some() {
        return match socket_type {
            SocketType::Dealer => Ok((SessionKind::Native, false)),
            other => Err(format!("a native session needs a DEALER socket, not {other}")),
        };
    }
    match socket_type {
        SocketType::Pub | SocketType::Xpub => Ok((SessionKind::StockPublisher, false)),
        SocketType::Sub | SocketType::Xsub => Ok((SessionKind::StockSubscriber, false)),
        SocketType::Req => Ok((SessionKind::StockRequester, true)),
        SocketType::Dealer => Ok((SessionKind::StockRequester, false)),
        other => Err(format!("a {other} socket has no place here; use PUB, SUB, REQ or DEALER")),
    }
}

/// libzmq's PUB drops whatever nobody has subscribed to, so the broker subscribes at once.
fn subscribe_to_everything(engine: &mut Engine) -> Result<(), ZmtpError> {
    if engine.peer_version().is_some_and(|version| version.minor >= 1) {
        let subscribe = zmtp::Command::Subscribe(bytes::Bytes::new()).encode();
        engine.send(&[&subscribe], FrameFlags::COMMAND)
    } else {
        engine.send(&[&[1]], FrameFlags::LAST)
    }
}
