//! The `terrane` binary: see [`terrane_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    terrane_server::cli::main()
}
