//! The `interlock` program: the library's command line, without actors of its own.

fn main() -> std::process::ExitCode {
    interlock::Runtime::builder().run()
}
