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
