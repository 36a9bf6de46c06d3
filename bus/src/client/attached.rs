//! The link of a client in the broker's own process.

use std::{
    cell::Cell,
    convert::Infallible,
    sync::{Arc, OnceLock},
    thread,
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    Client,
    core::{Core, SessionEnd},
    link::{Link, LinkError, Place},
};
#[cfg(doc)]
use crate::limits;
use crate::{
    broker::{BrokerError, BrokerHandle},
    local::{Bound, LocalPort, Outbox, RecordSink, Refused},
    native::{BatchReader, PublishParts, Record},
    peer::PeerName,
};

impl BrokerHandle {
    /// A client in this process, for a registered peer: same permissions, same counters, no socket,
    /// no encryption, no copy of a payload above [`limits::LOCAL_COPY_BYTES_MAX`]. It is not bound to any executor.
    ///
    /// # Errors
    /// [`BrokerError::NotAuthorised`], [`BrokerError::Ended`].
    pub fn attach(&self, peer: &PeerName) -> Result<Client, BrokerError> {
        let link = Arc::new(LocalLink::default());
        let core = Core::new(Arc::clone(&link) as Arc<dyn Link>);
        core.set_name(peer.clone());
        core.begin_session();
        let sink = Sink { core: Arc::clone(&core), outbox: Arc::clone(&link.outbox) };
        let port = self.attach_sink(peer, Arc::new(sink))?;
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
struct Sink {
    core: Arc<Core>,
    outbox: Arc<Outbox>,
}

impl Sink {
    /// Has the client take something on the broker's thread.
    fn take(&self, take: impl FnOnce(&Core) -> Result<(), SessionEnd>) {
        ON_BROKER_THREAD.set(true);
        let taken = take(&self.core);
        ON_BROKER_THREAD.set(false);
        if let Err(end) = taken
            && !matches!(end, SessionEnd::Goodbye { .. })
        {
            tracing::error!(?end, "the broker in this process sent what it should not");
            self.core.session_closed(&end.to_string());
            self.core.link().begin_close();
        }
    }
}

impl RecordSink for Sink {
    fn on_records(&self, records: &mut Vec<Record>) {
        self.take(|core| core.on_records(records));
    }

    fn on_batch(&self, batch: Bytes) {
        self.take(|core| {
            let mut reader = BatchReader::default();
            reader.begin(batch);
            core.on_batch(&mut reader, |_| Ok(())).map(|_records| ())
        });
    }

    fn on_closed(&self, code: &str, text: &str) {
        self.outbox.close();
        let separator = if text.is_empty() { "" } else { ": " };
        self.core.session_closed(&format!("{code}{separator}{text}"));
    }
}

impl Drop for Sink {
    /// Also when the broker's thread panics.
    fn drop(&mut self) {
        self.outbox.close();
        self.core.session_closed("the broker has ended");
    }
}

/// An outbox that the broker's thread empties.
#[derive(Debug, Default)]
struct LocalLink {
    port: OnceLock<LocalPort>,
    outbox: Arc<Outbox>,
}

impl LocalLink {
    /// Adds to the outbox, and announces it if need be.
    fn add<E>(&self, add: impl FnOnce(&Outbox) -> Result<bool, E>) -> Result<(), E> {
        if add(&self.outbox)?
            && let Some(port) = self.port.get()
        {
            port.announce(&self.outbox);
        }
        Ok(())
    }

    /// Sends what must not be refused. The broker's thread empties the outbox without waiting for
    /// anybody, so waiting for it ends, except on that thread itself.
    fn send_surely(&self, mut record: Record) {
        while let Err((refused, back)) = self.add(|outbox| outbox.send(record, Bound::Control)) {
            if refused == Refused::Closed {
                return;
            }
            if ON_BROKER_THREAD.get() {
                tracing::error!(
                    "a control record for the broker in this process is lost: its outbox is full"
                );
                return;
            }
            record = back;
            thread::yield_now();
        }
    }
}

impl From<Refused> for LinkError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::Full,
            Refused::Closed => Self::Closed,
            Refused::HeaderTooLarge(bytes) => Self::HeaderTooLarge { bytes },
        }
    }
}

impl Link for LocalLink {
    fn publish(&self, parts: &PublishParts<'_>, numbered: &mut dyn FnMut(u64)) -> Result<(), LinkError> {
        Ok(self.add(|outbox| outbox.publish(parts, numbered))?)
    }

    fn send(&self, record: Record) -> Result<Place, (LinkError, Record)> {
        let sent = self.add(|outbox| outbox.send(record, Bound::Message));
        sent.map(|()| Place::default()).map_err(|(refused, record)| (refused.into(), record))
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
        &self.outbox.space
    }

    fn begin_session(&self) {}

    fn begin_close(&self) {
        let goodbye = Record::Goodbye { code: "closing".to_owned(), text: String::new() };
        let Ok(()) = self.add(|outbox| Ok::<_, Infallible>(outbox.send_last(goodbye)));
    }
}
