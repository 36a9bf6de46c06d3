//! The exit codes: those of `bus`, which the runtime shares.

pub use interlock_bus::exit::Exit;

/// Ends the process at once, without what libraries want to do at its end.
///
/// SQLCipher frees its keys and caches there, whoever may still be working with them: where a thread may be left in the
/// database, a process that ended the usual way would now and then end by a segmentation fault, whatever its exit code was
/// to say. The system frees everything anyway, and SQLCipher's memory is never seen by anybody else.
pub(crate) fn leave(exit: Exit) -> ! {
    #[expect(
        unsafe_code,
        reason = "the standard library has no such call; it takes a number and does not return"
    )]
    unsafe {
        libc::_exit(exit.code().into())
    }
}
