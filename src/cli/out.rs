//! Standard output and standard error of a command.
//!
//! [`print`] is for data: a pipe that its reader has closed ends the command quietly, with exit code 0. [`complain`] is
//! for everything else; it is never an error that nobody hears it.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

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

/// How far a long command is, on a terminal only: one line on standard error that is written over and gone at the end.
pub(crate) struct Progress {
    what: &'static str,
    total: Option<usize>,
    done: usize,
    shown: Option<Instant>,
    on: bool,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total: Option<usize>) -> Self {
        Self { what, total, done: 0, shown: None, on: io::stderr().is_terminal() }
    }

    pub(crate) fn advance(&mut self, by: usize) {
        self.done += by;
        let is_due = self.shown.is_none_or(|at| at.elapsed() >= Duration::from_millis(100));
        if !self.on || !is_due {
            return;
        }
        self.shown = Some(Instant::now());
        let (done, what) = (self.done, self.what);
        let line = match self.total.filter(|total| *total > 0) {
            Some(total) => {
                let filled = (done * 30 / total).min(30);
                format!("[{}{}] {done} of {total} {what}", "#".repeat(filled), " ".repeat(30 - filled))
            }
            None => format!("{done} {what}"),
        };
        let _ = write!(io::stderr().lock(), "\r{line}");
    }

    /// Takes the line away.
    pub(crate) fn end(self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr().lock(), "\r\u{1b}[K");
        }
    }
}
