//! The `bus` program. Everything is in [`interlock_bus::tool`].

fn main() -> std::process::ExitCode {
    interlock_bus::tool::main().into()
}
