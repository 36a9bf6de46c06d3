//! New connections, and the bounds on those that are no session.

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::*;

/// Connections accepted in one turn, so that a flood of them cannot starve sessions.
const ACCEPTS_PER_TURN: usize = 256;

/// How many connections this process has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// All of them.
    pub(super) connections_max: usize,
    /// Those in their handshake.
    pub(super) half_open_max: usize,
}

impl Capacity {
    /// `sessions_max`, lowered to what the limit on open files leaves after
    /// [`limits::DESCRIPTORS_RESERVED`].
    pub(super) fn of_this_process(sessions_max: usize) -> Self {
        let files_max = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _hard)| soft);
        Self::for_files(files_max, sessions_max)
    }

    fn for_files(files_max: u64, sessions_max: usize) -> Self {
        let files_max = usize::try_from(files_max).unwrap_or(usize::MAX);
        // However low the limit is, a few get in.
        let connections_max =
            files_max.saturating_sub(limits::DESCRIPTORS_RESERVED).clamp(16, sessions_max.max(16));
        Self { connections_max, half_open_max: limits::HALF_OPEN_MAX.min(connections_max / 2) }
    }
}

/// Lets this process open as many files as [`limits::SESSIONS_MAX`] connections need, as far as its
/// hard limit allows. Many systems begin with a soft limit of 1,024. For programs, at their start: a
/// library does not change its process unasked.
pub fn raise_open_files_limit() {
    let wanted = (limits::SESSIONS_MAX + limits::DESCRIPTORS_RESERVED) as u64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted.min(hard)
    {
        // If the system refuses, the broker lives with what there is: see `Capacity`.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
}

impl Reactor {
    /// Accepts while there is room. A listener that was not emptied is tried again every turn.
    pub(super) fn accept_if_room(&mut self, now: Instant) {
        if !self.accept_ready || self.stop_at.is_some() {
            return;
        }
        (self.accept_ready, self.accept_blocked) = (false, false);
        for index in 0..self.listeners.len() {
            self.accept_from(index, now);
        }
    }

    fn accept_from(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.has_room() && self.oldest_to_evict(now).is_none() {
                (self.accept_ready, self.accept_blocked) = (true, true);
                return;
            }
            match self.listeners[index].accept() {
                Ok((stream, address)) => {
                    if !self.has_room() {
                        self.evict_oldest(now);
                    }
                    self.add_connection(stream, address, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A connection that died in the queue; the next one may be fine.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    (self.accept_ready, self.accept_blocked) = (true, true);
                    if self.accept_log.admits() {
                        tracing::error!(%error, "cannot accept connections; trying again");
                    }
                    // Out of file descriptors: whoever does not finish its handshake has to give way.
                    self.evict_oldest(now);
                    return;
                }
            }
        }
        self.accept_ready = true;
    }

    fn has_room(&self) -> bool {
        self.half_open.len() < self.capacity.half_open_max && self.occupied() < self.capacity.connections_max
    }

    pub(super) fn occupied(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    /// The connection that has been in its handshake longest, if that is long enough to give way to another.
    fn oldest_to_evict(&self, now: Instant) -> Option<usize> {
        let (_, slot) = self.half_open.first_key_value()?;
        let opened = self.connections.get(*slot)?.as_ref()?.since;
        (now.saturating_duration_since(opened) >= limits::HALF_OPEN_PATIENCE).then_some(*slot)
    }

    fn evict_oldest(&mut self, now: Instant) {
        if let Some(slot) = self.oldest_to_evict(now) {
            let text = "it was slow in its handshake, and others wait for its place";
            self.refuse(slot, "half_open_evicted", text, None, now);
            self.drop_connection(slot);
        }
    }

    fn add_connection(&mut self, stream: Stream, address: String, now: Instant) {
        self.accepted += 1;
        let engine = Engine::server(Arc::clone(&self.server));
        let mut connection = Connection::new(self.accepted, stream, address, engine, now);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(connection.stream.source(), Token(slot), interest) {
            tracing::error!(%error, address = %connection.address, "cannot watch a new connection; it is closed");
            self.free.push(slot);
            return;
        }
        self.half_open.insert(self.accepted, slot);
        self.connections[slot] = Some(connection);
        self.write(slot, now);
    }
}

/// Errors of accept(2) that concern the connection that was to be accepted, not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENOPROTOOPT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_on_open_files_leaves_descriptors_for_the_rest_of_the_process() {
        let capacity = |files_max| {
            let Capacity { connections_max, half_open_max } =
                Capacity::for_files(files_max, limits::SESSIONS_MAX);
            (connections_max, half_open_max)
        };
        assert_eq!(capacity(u64::MAX), (limits::SESSIONS_MAX, limits::HALF_OPEN_MAX));
        assert_eq!(
            capacity(1024),
            (1024 - limits::DESCRIPTORS_RESERVED, (1024 - limits::DESCRIPTORS_RESERVED) / 2)
        );
        assert_eq!(capacity(0), (16, 8));
    }
}
