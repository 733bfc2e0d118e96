//! What the audit log costs: how fast it is written, read and checked, and how large it gets.
//!
//! `cargo bench --bench log -- <what> …`; without one of the words below it says how it is used and does nothing. Changes
//! go through the library's own doors, with drafts, permits and outcomes as the pipeline makes them; they are made before
//! the clock runs, so that what is measured is the log. Speeds of the disk and of the log are taken in turns.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot go on should panic")]
#![expect(clippy::print_stdout, reason = "figures go there")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod full;
mod scene;
mod speed;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const USAGE: &str = "cargo bench --bench log -- <what>, where <what> is one of
  writer [folder]             commits by 1, 64 and 256 writers beside the disk's own fdatasync, in a new store
  fill <folder> [changes]     a store with that many changes (1 000 000), through the writer
  size <folder>               what is how large in it
  history <folder>            pages of its history
  commit <folder>             commits to it beside commits to an empty store
  projection <folder>         commits to it without each index of the projection in turn; adds changes to it
  start <folder>              how long the gateway takes to listen on it
  verify <folder>             how fast it is verified, and what that is made of
<folder> is a data folder that `fill` made; nothing else may write to it.";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let word = |place: usize| words.get(place).map(String::as_str);
    let folder = || PathBuf::from(word(1).expect("which folder?"));
    let known = ["writer", "fill", "size", "history", "commit", "projection", "start", "verify"];
    let Some(what) = word(0).filter(|what| known.contains(what)) else {
        println!("{USAGE}");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match what {
            "writer" => match word(1) {
                Some(folder) => speed::writer(Path::new(folder)).await,
                None => speed::writer(tempfile::tempdir().unwrap().path()).await,
            },
            "fill" => full::fill(&folder(), word(2).map_or(1_000_000, |count| count.parse().unwrap())).await,
            "size" => full::size(&folder()).await,
            "history" => full::history(&folder()).await,
            "commit" => speed::commit(&folder()).await,
            "projection" => speed::projection(&folder()).await,
            "start" => full::start(&folder()),
            "verify" => full::verify(&folder()).await,
            other => println!("{other}?"),
        }
    });
}

/// Times of many equal things.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn push(&mut self, began: Instant) {
        self.0.push(began.elapsed());
    }

    /// In milliseconds; the part that takes no longer.
    fn at(&mut self, part: f64) -> f64 {
        self.0.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
        let place = ((self.0.len() as f64 * part) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn say(&mut self, what: &str) {
        let (p50, p99, most) = (self.at(0.5), self.at(0.99), self.at(1.0));
        println!("{what:<52} n {:>6}  p50 {p50:8.3} ms  p99 {p99:8.3} ms  max {most:8.3} ms", self.0.len());
    }
}
