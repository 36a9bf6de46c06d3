//! The link of a client in the broker's own process.

use std::{
    cell::Cell,
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use tokio::sync::Notify;

use super::{
    Client,
    core::{Core, SessionEnd},
    lane::lock,
    link::{Link, LinkError, Place},
};
use crate::{
    broker::{BrokerError, BrokerHandle},
    limits,
    local::{LocalPort, RecordSink},
    native::{PublishParts, Record},
    peer::PeerName,
};

impl BrokerHandle {
    /// A client in this process, for a registered peer: same permissions, same counters, no socket,
    /// no encryption, no copy of the payload. It is not bound to any executor.
    ///
    /// # Errors
    /// [`BrokerError::NotAuthorised`], [`BrokerError::Ended`].
    pub fn attach(&self, peer: &PeerName) -> Result<Client, BrokerError> {
        let link = Arc::new(LocalLink::default());
        let core = Core::new(Arc::clone(&link) as Arc<dyn Link>);
        core.set_name(peer.clone());
        core.begin_session();
        let port = self.attach_sink(peer, Arc::new(Sink(Arc::clone(&core))))?;
        // The broker sends nothing before our `hello`, which is the first record it gets.
        let _ = link.port.set(port);
        link.send_control(Core::hello());
        Ok(Client::from_core(core, None))
    }
}

thread_local! {
    /// Whether this thread is the broker's, in the middle of handing us records. It must not wait
    /// for its own queue.
    static ON_BROKER_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// What the broker holds of the client.
struct Sink(Arc<Core>);

impl RecordSink for Sink {
    fn on_records(&self, records: &mut Vec<Record>) {
        ON_BROKER_THREAD.set(true);
        let taken = self.0.on_records(records);
        ON_BROKER_THREAD.set(false);
        if let Err(end) = taken
            && !matches!(end, SessionEnd::Goodbye { .. })
        {
            tracing::error!(?end, "the broker in this process sent what it should not");
            self.0.session_closed(&end.to_string());
            self.0.link().begin_close();
        }
    }

    fn on_closed(&self, code: &str, text: &str) {
        let separator = if text.is_empty() { "" } else { ": " };
        self.0.session_closed(&format!("{code}{separator}{text}"));
    }
}

impl Drop for Sink {
    /// Also when the broker's thread panics.
    fn drop(&mut self) {
        self.0.session_closed("the broker has ended");
    }
}

/// A queue into the broker's thread. Its bound is that of the broker: [`limits::LOCAL_COMMANDS_MAX`].
#[derive(Debug, Default)]
struct LocalLink {
    port: OnceLock<LocalPort>,
    /// The lock also keeps numbers and records in the same order.
    sequence: Mutex<u64>,
    /// Control records that found the queue full on the broker's own thread. They go first next time.
    backlog: Mutex<VecDeque<Record>>,
    space: Notify,
}

impl LocalLink {
    fn try_send(&self, record: Record) -> Result<(), (LinkError, Record)> {
        let Some(port) = self.port.get() else { return Err((LinkError::Closed, record)) };
        let error =
            |(record, full): (Record, bool)| (if full { LinkError::Full } else { LinkError::Closed }, record);
        {
            let mut backlog = lock(&self.backlog);
            while let Some(first) = backlog.pop_front() {
                if let Err((first, full)) = port.send(first) {
                    backlog.push_front(first);
                    return Err(error((record, full)));
                }
            }
        }
        let sent = port.send(record).map_err(error);
        if let Err((LinkError::Full, _)) = &sent {
            // The broker does not say when it has room again: whoever waits yields and tries again.
            self.space.notify_waiters();
        }
        sent
    }

    /// Sends what must not be refused. The broker's thread empties its queue without waiting for
    /// anybody, so waiting for it ends, except on that thread itself.
    fn send_surely(&self, mut record: Record) {
        while let Err((error, back)) = self.try_send(record) {
            if error == LinkError::Closed {
                return;
            }
            if ON_BROKER_THREAD.get() {
                let mut backlog = lock(&self.backlog);
                if backlog.len() < limits::LOCAL_COMMANDS_MAX {
                    backlog.push_back(back);
                } else {
                    tracing::error!("control records for the broker in this process are lost");
                }
                return;
            }
            record = back;
            thread::yield_now();
        }
    }
}

impl Link for LocalLink {
    fn publish(&self, parts: &PublishParts<'_>, numbered: &mut dyn FnMut(u64)) -> Result<(), LinkError> {
        let mut last = lock(&self.sequence);
        let sequence = *last + 1;
        let block = parts.block(sequence).map_err(|bytes| LinkError::HeaderTooLarge { bytes })?;
        numbered(sequence);
        self.try_send(Record::Publish(block)).map_err(|(error, _)| error)?;
        *last = sequence;
        Ok(())
    }

    fn send(&self, record: Record) -> Result<Place, (LinkError, Record)> {
        self.try_send(record).map(|()| Place::default())
    }

    fn send_last(&self, record: Record) {
        self.send_surely(record);
    }

    fn send_control(&self, record: Record) {
        self.send_surely(record);
    }

    fn send_cancel(&self, id: u64, _place: Place) {
        self.send_surely(Record::Cancel { id });
    }

    fn space(&self) -> &Notify {
        &self.space
    }

    fn begin_session(&self) {}

    fn begin_close(&self) {
        self.send_surely(Record::Goodbye { code: "closing".to_owned(), text: String::new() });
        if let Some(port) = self.port.get() {
            port.close();
        }
    }
}
