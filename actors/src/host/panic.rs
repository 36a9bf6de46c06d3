//! Panics of hosted code become failures that say where.

use std::{
    any::Any,
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::FutureExt;

use crate::actor::Failure;

thread_local! {
    /// Whether panics of this thread are caught and reported by a host.
    static HOSTED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of this thread was.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Marks the present thread as hosted: its panics are reported as failures and as log lines with a back trace,
/// not printed to standard error. Other threads keep the hook that was installed before.
pub(crate) fn hosted() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !HOSTED.get() {
                return before(info);
            }
            let place = info.location().map(ToString::to_string);
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            tracing::error!(place, thread, backtrace = backtrace(), "panic: {}", words(info.payload()));
            PLACE.set(place);
        }));
    });
    HOSTED.set(true);
}

/// Bytes of a back trace that are logged: its first dozens of frames.
const BACKTRACE_BYTES_MAX: usize = 8 << 10;

/// Panics of a process whose back trace is taken unasked: it costs milliseconds. Of later ones with `RUST_BACKTRACE` only.
const BACKTRACES_MAX: u32 = 32;

/// Where this thread is, bounded.
pub fn backtrace() -> String {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let unasked = TAKEN.fetch_add(1, Ordering::Relaxed) < BACKTRACES_MAX;
    let backtrace = if unasked { Backtrace::force_capture() } else { Backtrace::capture() };
    let mut text = backtrace.to_string();
    text.truncate(text.floor_char_boundary(BACKTRACE_BYTES_MAX));
    text
}

/// Runs a future; a panic in it becomes a failure.
pub(crate) async fn guarded<T>(
    doing: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(doing, &*panic)))
}

/// Runs a function; a panic in it becomes a failure.
pub(crate) fn guarded_call<T>(doing: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(doing, &*panic)))
}

fn panicked(doing: &str, panic: &(dyn Any + Send)) -> Failure {
    let place = PLACE.take().map(|place| format!(" at {place}")).unwrap_or_default();
    Failure::new(format!("panicked in {doing}{place}: {}", words(panic)))
}

/// What a panic said.
pub fn words(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(words), _) => words,
        (_, Some(words)) => words,
        _ => "a value that is not text",
    }
}
