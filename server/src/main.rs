//! The one binary, `raftlock`: a server, and every command around it.
//!
//! Only `main` ends the process; everything below returns how it went.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
