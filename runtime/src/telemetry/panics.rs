//! Panics of threads that no host watches: into the log, beside what the standard library prints.

use std::{panic, sync::Once};

use interlock_actors::{host, log_transport};

/// Target of a panic's event. What the standard library prints of it is enough on standard error.
pub(super) const TARGET: &str = "interlock::panic";

/// From now on, whichever thread panics. Threads of actors have a host that does the same and prints nothing.
pub(super) fn into_the_log() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A panic of the log path itself is printed and no more.
            if !log_transport::is_marked() {
                let place = info.location().map(ToString::to_string);
                let thread = std::thread::current().name().unwrap_or_default().to_owned();
                let (words, backtrace) = (host::panic_words(info.payload()), host::backtrace());
                tracing::error!(target: TARGET, place, thread, backtrace, "panic: {words}");
            }
            before(info);
        }));
    });
}

#[cfg(test)]
mod tests {
    use interlock_actors::{
        log_record::Level,
        log_transport::{Identity, LogBuffer, LogLayer, Sink},
    };
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_panic_of_any_thread_is_in_the_log_with_place_thread_and_back_trace() {
        into_the_log();
        let buffer = LogBuffer::default();
        let sink = Sink::new(Box::new(std::io::sink()), Level::Warn).unwrap();
        let identity = Identity { component: "runtime".to_owned(), incarnation: 1 };
        let subscriber = tracing_subscriber::registry().with(LogLayer::new(identity, buffer.clone(), sink));
        let work = || tracing::subscriber::with_default(subscriber, || panic!("the wheel came {}", "off"));
        let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(work).unwrap();
        assert!(thread.join().is_err());
        let record = buffer.take_rest().remove(0);
        assert_eq!((record.level, record.message.as_str()), (Level::Error, "panic: the wheel came off"));
        assert_eq!(record.target, TARGET);
        let field = |name: &str| {
            let found = record.fields.iter().find(|(key, _)| key == name);
            found.map_or_else(String::new, |(_, value)| value.clone())
        };
        assert!(field("place").contains("panics.rs:") && field("thread") == "worker", "{record:?}");
        assert!((1..=16 << 10).contains(&field("backtrace").len()), "{record:?}");
    }
}
