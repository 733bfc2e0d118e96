//! `patchwarden verify FILE`: what `prove` or `export` wrote, checked without a store.
//!
//! A proof of one change is nothing without a key from somebody who is trusted, so one has to be given.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Value, json};

use super::super::out::{Progress, print};
use super::super::{MISCONFIGURED, UNABLE, WRONG};
use super::{Args, Format, tell};
use crate::app::Failure;
use crate::audit::evidence::{Checked, Evidence, Verdict};
use crate::audit::verify::{self, Asked};
use crate::clock::Time;
use crate::view;

/// The longest file that is read.
const MAX_FILE: u64 = 64 << 20;

pub(super) fn run(path: &Path, args: &Args, asked: &Asked) -> Result<u8, Failure> {
    let unreadable = |what: String| Failure { code: UNABLE, message: format!("{}: {what}", path.display()) };
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut file = BufReader::new(file);
    // An export has an object a line, a proof is one object.
    let mut first = [0; 2];
    let is_proof = file.fill_buf().is_ok_and(|begin| {
        first.copy_from_slice(begin.get(..2).unwrap_or(b"{\n"));
        first != *b"{\"" || begin.starts_with(b"{\"form\"") || begin.starts_with(b"{\"change\"")
    });
    if is_proof { proof(path, args, asked) } else { exported(path, file, args, asked) }
}

fn exported(path: &Path, file: impl BufRead, args: &Args, asked: &Asked) -> Result<u8, Failure> {
    if asked.keys.is_empty() != asked.heads.is_empty() {
        let message = "an export holds no signed head, and a head is nothing without a key: give both --checkpoint and --public-key, or neither";
        return Err(Failure { code: MISCONFIGURED, message: message.to_owned() });
    }
    let mut progress = Progress::new("entries", None);
    let found = verify::export(file, asked, |read| progress.advance(read));
    progress.end();
    match found {
        Ok(found) => tell(&found, asked, args),
        Err(what) => {
            Err(Failure { code: WRONG, message: format!("{}: {what}; it is no export", path.display()) })
        }
    }
}

fn proof(path: &Path, args: &Args, asked: &Asked) -> Result<u8, Failure> {
    let Asked { keys: trusted, witnesses, .. } = asked;
    if asked.anchor.is_some() || !asked.heads.is_empty() {
        let message =
            "--checkpoint and --require-anchor are about a log, and this is the proof of one change";
        return Err(Failure { code: MISCONFIGURED, message: message.to_owned() });
    }
    if trusted.is_empty() {
        let message = "a proof is only as good as the key it is checked with: give the log's as --public-key, from somebody you trust; `patchwarden keys show` prints it";
        return Err(Failure { code: MISCONFIGURED, message: message.to_owned() });
    }
    let unreadable = |what: String| Failure { code: UNABLE, message: format!("{}: {what}", path.display()) };
    let length = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if length > MAX_FILE {
        return Err(unreadable(format!("it is {length} bytes, more than any proof of a change")));
    }
    let text = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let verdict = Evidence::read(&text).and_then(|evidence| evidence.verify(trusted, witnesses));
    let code = if verdict.is_ok() { 0 } else { WRONG };
    print(&match (args.format, verdict) {
        (Format::Text, Ok(verdict)) => proved(&verdict, args.utc),
        (Format::Text, Err(what)) => format!("WRONG  {}: {what}\n", path.display()),
        (Format::Json, Ok(verdict)) => format!("{:#}\n", shown(&verdict)),
        (Format::Json, Err(what)) => format!("{:#}\n", json!({"proved": false, "fault": what})),
    })?;
    Ok(code)
}

fn proved(verdict: &Verdict, utc: bool) -> String {
    let mut text = format!("proved {}\n", verdict.change);
    for entry in &verdict.entries {
        let part = |name: &str| entry.envelope[name].as_str().unwrap_or("-").to_owned();
        text += &format!(
            "  {}  {} {}, entry {} of {}\n",
            view::moment(&json!(at(entry)), utc),
            part("kind"),
            part("result"),
            entry.envelope["index"],
            entry.origin
        );
        let gone = if entry.payload.is_null() { "; the file does not hold what it said" } else { "" };
        text += &format!("    in the log of {} entries, which the key signed{gone}\n", entry.size);
        for (witness, seconds) in &entry.witnessed {
            let seen = Time(i64::try_from(*seconds).unwrap_or(0).saturating_mul(1_000_000));
            text += &format!("    seen by {witness} on {}\n", view::moment(&json!(seen), utc));
        }
    }
    let is_intent = verdict.entries.first().is_some_and(|entry| entry.envelope["result"] == "allow");
    if is_intent && verdict.entries.len() == 1 {
        text += "  The file holds no outcome: whether it was applied is not shown.\n";
    }
    if let Some(attempt) = verdict.entries.first() {
        let said = |pointer: &str| attempt.payload.pointer(pointer).and_then(Value::as_str);
        let parts = [
            ("  ", attempt.envelope["operation"].as_str()),
            (" of ", attempt.envelope["target"].as_str()),
            (" by ", said("/caller/id")),
            (", ", attempt.envelope["code"].as_str()),
            (": ", said("/summary")),
        ];
        for (before, part) in parts {
            text += &part.map(|part| format!("{before}{}", view::visible(part))).unwrap_or_default();
        }
        text.push('\n');
    }
    text
}

fn shown(verdict: &Verdict) -> Value {
    let entry = |entry: &Checked| {
        let witness = |(name, seconds): &(String, u64)| json!({"name": name, "at": seconds});
        json!({
            "origin": entry.origin,
            "size": entry.size,
            "envelope": entry.envelope,
            "payload": entry.payload,
            "witnessed": entry.witnessed.iter().map(witness).collect::<Vec<_>>(),
        })
    };
    let entries: Vec<Value> = verdict.entries.iter().map(entry).collect();
    json!({"proved": true, "change": verdict.change, "entries": entries})
}

fn at(entry: &Checked) -> Time {
    Time(entry.envelope["at"].as_i64().unwrap_or(0))
}
