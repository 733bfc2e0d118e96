//! Standard output and standard error of a command.
//!
//! [`print`] is for data: a pipe that its reader has closed ends the command quietly, with exit code 0. [`complain`] is
//! for everything else; it is never an error that nobody hears it.

use std::io::{self, ErrorKind, Write as _};

use super::UNABLE;
use crate::app::Failure;

/// Writes data.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure { code: 0, message: String::new() },
        _ => Failure { code: UNABLE, message: format!("standard output cannot be written: {error}") },
    })
}

/// Writes one line for people. Control characters are shown, not sent to the terminal.
pub(crate) fn complain(line: &str) {
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    let _ = writeln!(io::stderr().lock(), "{shown}");
}

#[expect(clippy::disallowed_methods, reason = "a convention among programs, no setting of the gateway")]
pub(crate) fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
