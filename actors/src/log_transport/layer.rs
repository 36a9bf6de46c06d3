//! The `tracing` layer: captures each event and puts it into the buffer. Never waits, never logs.

use std::sync::Arc;

use tracing::{
    Event, Id, Subscriber,
    span::{Attributes, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use super::{
    buffer::LogBuffer,
    captured::{Captured, RandomBytes, SpanValues},
    levels::LevelSwitch,
    path::{self, Marked},
    sink::Sink,
};
use crate::log_record::{Level, topic_level};

/// Who logs, unless an event or a span says otherwise (fields `component` and `incarnation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The component.
    pub component: String,
    /// Which start of it, counted from one; zero if unknown.
    pub incarnation: u64,
}

/// The layer.
///
/// Fields of an event, or of a span around it, that have a meaning of their own: `message`,
/// `component`, `incarnation`, `conversation`, `trace_id`. The innermost wins.
#[derive(Debug)]
pub struct LogLayer {
    identity: Arc<Identity>,
    buffer: LogBuffer,
    sink: Sink,
    levels: Option<LevelSwitch>,
}

impl LogLayer {
    /// A layer that fills `buffer`. Events of the log path itself go to `sink`.
    ///
    /// Threads that the bus starts from now on belong to the log path, with all that libraries raise on them.
    pub fn new(identity: Identity, buffer: LogBuffer, sink: Sink) -> Self {
        interlock_bus::threads::on_start(path::mark_thread);
        let component = topic_level(&identity.component);
        Self { identity: Arc::new(Identity { component, ..identity }), buffer, sink, levels: None }
    }

    /// The same with rules for components; a filter for modules stands in front of it.
    pub fn with_levels(self, levels: LevelSwitch) -> Self {
        Self { levels: Some(levels), ..self }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        // What a value does while it is formatted is none of the log's business: events raised
        // there go to the sink.
        let _marked = Marked::enter();
        let name = attributes.metadata().name();
        let values = Arc::new(SpanValues::new(name, |visitor| attributes.record(visitor)));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(values);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let _marked = Marked::enter();
        let Some(span) = context.span(id) else { return };
        let Some(before) = span.extensions().get::<Arc<SpanValues>>().cloned() else { return };
        let after = before.with(|visitor| values.record(visitor));
        span.extensions_mut().replace(Arc::new(after));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let own = path::is_marked() || path::is_own_target(metadata.target());
        if own && !self.sink.wants(Level::from(metadata.level())) {
            return;
        }
        let _marked = Marked::enter();
        let spans = context
            .event_scope(event)
            .into_iter()
            .flatten()
            .filter_map(|span| span.extensions().get::<Arc<SpanValues>>().cloned());
        let identity = Arc::clone(&self.identity);
        let captured = Captured::new(identity, metadata, |visitor| event.record(visitor), spans);
        if own {
            self.sink.write(&captured.into_record(&mut RandomBytes::new()));
        } else if self
            .levels
            .as_ref()
            .is_none_or(|levels| levels.keeps(captured.level(), metadata.target(), || captured.component()))
        {
            self.buffer.capture(captured);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use interlock_bus::trace::Trace;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn layer() -> (LogBuffer, Sink, impl Subscriber + Send + Sync) {
        let buffer = LogBuffer::default();
        let sink = Sink::new(Box::new(std::io::sink()), Level::Warn).unwrap();
        let identity = Identity { component: "runtime".to_owned(), incarnation: 1 };
        let layer = LogLayer::new(identity, buffer.clone(), sink.clone());
        (buffer, sink, tracing_subscriber::registry().with(layer))
    }

    // The target of this very module is one of the log path, so events here name another.

    #[test]
    fn an_event_becomes_a_record_with_everything_that_was_said() {
        let (buffer, _sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            let _outer =
                tracing::info_span!("actor", component = "a/b", incarnation = 3, number = 1).entered();
            let turn =
                tracing::info_span!("turn", conversation = "c1", number = 7, late = tracing::field::Empty);
            let _inner = turn.enter();
            turn.record("late", "x");
            tracing::warn!(target: "elsewhere", answer = 42, text = "t", "the {} message", "whole");
        });
        let record = buffer.take_rest().remove(0);
        assert_eq!((record.level, record.target.as_str()), (Level::Warn, "elsewhere"));
        assert_eq!(record.message, "the whole message");
        assert_eq!((record.component.as_str(), record.incarnation), ("a_b", 3));
        assert_eq!(record.conversation.as_deref(), Some("c1"));
        assert_eq!(record.spans, ["actor", "turn"]);
        let fields: Vec<_> = record.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(fields, ["answer=42", "text=t", "late=x", "number=7", "number=1"]);
        assert!(record.file.is_some_and(|file| file.ends_with("layer.rs")) && record.line.is_some());
        assert_eq!(record.process, std::process::id());
    }

    #[test]
    fn a_record_is_of_the_trace_that_its_thread_works_for_unless_it_says_another() {
        let (buffer, _sink, subscriber) = layer();
        let trace = Trace::new();
        let work = Trace::scope(Some(trace), async {
            tracing::info!(target: "test", "of the trace");
            tracing::info!(target: "test", trace_id = "mine", "of another");
        });
        tracing::subscriber::with_default(subscriber, || {
            interlock_bus::blocking::wait(work);
            tracing::info!(target: "test", "of none");
        });
        let traces: Vec<_> = buffer.take_rest().into_iter().map(|record| record.trace_id).collect();
        assert_eq!(traces, [Some(trace.id()), Some("mine".to_owned()), None]);
    }

    #[test]
    fn the_log_path_never_logs_into_itself() {
        let (buffer, sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            for level in 0..2 {
                let say = |target: &str| match (target, level) {
                    ("bus", 0) => tracing::error!(target: "interlock_bus::broker", "own"),
                    ("bus", _) => tracing::debug!(target: "interlock_bus::broker", "own"),
                    ("store", _) => tracing::error!(target: "interlock_actors::store::writer", "own"),
                    ("transport", _) => {
                        tracing::error!(target: "interlock_actors::log_transport::drain", "own")
                    }
                    ("consumer", _) => tracing::error!(target: "interlock_actors::log_consumer", "own"),
                    _ => tracing::error!(target: "interlock_actors::storefront", "not own"),
                };
                ["bus", "store", "transport", "consumer", "other"].iter().for_each(|target| say(target));
            }
            let _marked = Marked::enter();
            tracing::error!(target: "some_library", "raised while the log path is at work");
        });
        let rest = buffer.take_rest();
        assert!(rest.iter().all(|record| record.message == "not own") && rest.len() == 2, "{rest:?}");
        assert_eq!((sink.report().seen, sink.report().written), (9, 8));
    }

    #[test]
    fn a_value_that_logs_while_it_is_formatted_ends() {
        struct Talkative;
        impl fmt::Debug for Talkative {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::error!(target: "test", value = ?Talkative2, "formatting");
                formatter.write_str("talkative")
            }
        }
        struct Talkative2;
        impl fmt::Debug for Talkative2 {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::error!(target: "test", "formatting again");
                formatter.write_str("talkative")
            }
        }
        let (buffer, sink, subscriber) = layer();
        tracing::subscriber::with_default(
            subscriber,
            || tracing::info!(target: "test", value = ?Talkative, "once"),
        );
        assert_eq!(buffer.take_rest().len(), 1);
        assert!(sink.report().seen <= 2, "{:?}", sink.report());
    }

    #[test]
    fn huge_values_and_many_fields_are_cut() {
        let (buffer, _sink, subscriber) = layer();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "test", big = "\u{e9}".repeat(1 << 20), "{}", "x".repeat(1 << 20));
        });
        let record = buffer.take_rest().remove(0);
        assert!(record.memory_bytes() < 256 << 10, "{}", record.memory_bytes());
        assert!(record.message.ends_with("(cut off)"));
    }
}
