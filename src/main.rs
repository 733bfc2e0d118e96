//! The program `patchwarden`: makes the runtime and runs the command line.
//!
//! Everything is in the library; here arguments come in and an exit code goes out. `cli` says what the codes mean.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => ExitCode::from(runtime.block_on(patchwarden::cli::run(std::env::args_os()))),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: the runtime cannot be started: {error}");
            ExitCode::from(3)
        }
    }
}
