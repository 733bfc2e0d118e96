//! `patchwarden verify`: reads the store without the gateway and says whether it tells one story; or a file that proves
//! one change.
//!
//! Each log on a line, with what is wrong first; then what that proves. Ends with 1 when something is wrong.

mod file;

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::out::{Progress, complain, print};
use super::{MISCONFIGURED, UNABLE, WRONG};
use crate::app::Failure;
use crate::audit::checkpoint::{KeyKind, Note, Verifier};
use crate::audit::verify::{self, Asked, Seen, Verified};
use crate::clock::{Clock, Time};
use crate::config::Config;
use crate::store::{self, Error, Reader};
use crate::units::Span;
use crate::view;

/// How it is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One object: logs
    Json,
}

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `prove` or `export` wrote, instead of the store
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The log's public key, or a file of such keys; may be given again
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Vec<String>,
    /// A witness's public key, or a file of such keys; may be given again
    #[arg(long, value_name = "KEY|FILE")]
    witness: Vec<String>,
    /// A signed head that was kept elsewhere: the log has to begin with what it is of; may be given again
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// A witness has to have seen each log no longer ago than this, like 24h
    #[arg(long, value_name = "SPAN", value_parser = Span::parse)]
    require_anchor: Option<Span>,
    /// Also compare what the history is listed from with the entries
    #[arg(long)]
    projection: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Times in UTC instead of local time
    #[arg(long)]
    utc: bool,
}

/// Keys as they are given: each itself, or a file with one a line.
fn keys(flag: &str, kind: KeyKind, given: &[String]) -> Result<Vec<Verifier>, Failure> {
    let wrong =
        |text: &str, why: String| Failure { code: MISCONFIGURED, message: format!("{flag}: {text}: {why}") };
    let mut keys = Vec::new();
    for text in given {
        if let Ok(key) = text.parse() {
            keys.push(key);
            continue;
        }
        let file = std::fs::read_to_string(text).map_err(|error| {
            wrong(text, format!("is neither a public key (NAME+ID+BASE64, the id that of name and key) nor a file: {error}"))
        })?;
        for line in file.lines().filter(|line| !line.trim().is_empty()) {
            keys.push(
                line.parse()
                    .map_err(|why: crate::audit::checkpoint::NoKey| wrong(text, format!("`{line}` {why}")))?,
            );
        }
    }
    if let Some(other) = keys.iter().find(|key: &&Verifier| key.kind() != kind) {
        let whose = if kind == KeyKind::Log { "a witness's" } else { "a log's" };
        return Err(wrong(&other.to_string(), format!("is {whose} key")));
    }
    Ok(keys)
}

/// Heads that were kept elsewhere, as files.
fn heads(files: &[PathBuf]) -> Result<Vec<Note>, Failure> {
    let read = |path: &PathBuf| {
        let wrong = |why: String| Failure {
            code: MISCONFIGURED,
            message: format!("--checkpoint: {}: {why}", path.display()),
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Note::read(&text).map_err(|doubt| wrong(doubt.to_string()))
    };
    files.iter().map(read).collect()
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let mut asked = Asked {
        keys: keys("--public-key", KeyKind::Log, &args.public_key)?,
        witnesses: keys("--witness", KeyKind::Witness, &args.witness)?,
        heads: heads(&args.checkpoint)?,
        kept: Vec::new(),
        anchor: args.require_anchor.map(|span| span.0),
        projection: args.projection,
        now: Some(Clock::System.now()),
    };
    if asked.anchor.is_some() && asked.witnesses.is_empty() {
        let message = "--require-anchor asks for a witness's word: give whose, as --witness KEY";
        return Err(Failure { code: MISCONFIGURED, message: message.to_owned() });
    }
    if let Some(path) = &args.file {
        if asked.projection {
            let message = "--projection compares what is in a store, and a file holds nothing of it";
            return Err(Failure { code: MISCONFIGURED, message: message.to_owned() });
        }
        return file::run(path, args, &asked);
    }
    // The heads that are kept beside the store and on other storage are more that the log has to begin with.
    let kept = [Some(store::head_path(&config.store, &config.data)), config.anchor.file.clone()];
    let kept = kept.into_iter().flatten().filter(|path| path.exists());
    let kept = kept.map(|path| (path.clone(), std::fs::read_to_string(path)));
    for (path, text) in kept {
        match text
            .map_err(|error| error.to_string())
            .and_then(|text| Note::read(&text).map_err(|doubt| doubt.to_string()))
        {
            Ok(note) => asked.kept.push(note),
            Err(why) => {
                complain(&format!("warning: {}: {why}; the log is not compared with it", path.display()));
            }
        }
    }
    let mut progress = Progress::new("entries", total(config, asked.projection).await);
    let found = verify::run(&config.store, &asked, |read| progress.advance(read)).await;
    progress.end();
    let found = found
        .map_err(|error: Error| Failure { code: UNABLE, message: error.named(&config.store).to_string() })?;
    tell(&found, &asked, args)
}

/// How many entries there are to read; the projection is made from all of them once more.
async fn total(config: &Config, twice: bool) -> Option<usize> {
    let reader = Reader::open(&config.store).await.ok()?;
    let logs = reader.logs().await.ok();
    reader.close().await;
    let entries = logs?.iter().map(|log| log.size).sum::<u64>();
    usize::try_from(entries).ok().map(|entries| entries * (1 + usize::from(twice)))
}

/// Prints what was found; the exit code.
fn tell(found: &[Verified], asked: &Asked, args: &Args) -> Result<u8, Failure> {
    print(&match args.format {
        Format::Text => text(found, asked, args.utc),
        Format::Json => format!("{:#}\n", json!({"logs": found.iter().map(shown).collect::<Vec<_>>()})),
    })?;
    Ok(if found.iter().any(|log| log.fault.is_some()) { WRONG } else { 0 })
}

fn text(found: &[Verified], asked: &Asked, utc: bool) -> String {
    let mut text = String::new();
    for log in found {
        text += &match &log.fault {
            None => sound(log, utc),
            Some(fault) => match fault.index {
                Some(index) => format!("WRONG  {}: entry {index}: {}\n", log.origin, fault.what),
                None => format!("WRONG  {}: {}\n", log.origin, fault.what),
            },
        };
    }
    if found.iter().all(|log| log.fault.is_none()) {
        if asked.projection {
            text += "What the history is listed from says the same as the entries.\n";
        }
        text += rests_on(found, asked);
    }
    text
}

fn sound(log: &Verified, utc: bool) -> String {
    let kinds: Vec<_> = log.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let pruned = match log.pruned {
        0 => String::new(),
        count => format!("; retention removed what {count} of them said"),
    };
    let signed = match &log.signed {
        None => "no head of it is signed".to_owned(),
        Some(signed) => {
            let by = if signed.is_trusted { "a key you trust" } else { "the keys the store names" };
            let given = match log.given {
                0 => String::new(),
                count => format!(", {count} of them kept outside the store"),
            };
            let after = match log.unsigned {
                0 => String::new(),
                count => format!("; the {count} after it are signed by nobody yet"),
            };
            format!(
                "{} signed heads fit it{given}, the newest over {} entries, by {by}{after}",
                log.heads, signed.size
            )
        }
    };
    let followed = log.followed.as_ref().map(|followed| {
        let lost = match followed.lost {
            Some(0) => "nothing of it is lost".to_owned(),
            Some(count) => format!("{count} entries after its end are lost"),
            None => "what came after its end is lost".to_owned(),
        };
        format!("       it has ended, and {} goes on: {lost}\n", followed.by)
    });
    let seen = |seen: &Seen| {
        let at = Time(i64::try_from(seen.at).unwrap_or(0).saturating_mul(1_000_000));
        format!(
            "       {} saw it on {}, at {} entries\n",
            seen.name,
            view::moment(&json!(at), utc),
            seen.size
        )
    };
    format!(
        "ok     {}: {} entries, root {}\n       {}{pruned}\n       {signed}\n{}",
        log.origin,
        log.size,
        log.root,
        kinds.join(", "),
        log.seen.iter().map(seen).chain(followed).collect::<String>()
    )
}

/// What was shown, and on whose word.
fn rests_on(found: &[Verified], asked: &Asked) -> &'static str {
    // For one that has ended the one that follows speaks.
    let mut open = found.iter().filter(|log| log.followed.is_none());
    let is_trusted = open.clone().all(|log| log.signed.as_ref().is_some_and(|signed| signed.is_trusted));
    let is_seen = !asked.witnesses.is_empty() && open.all(|log| !log.seen.is_empty());
    match (is_trusted, is_seen) {
        (true, true) => {
            "Nothing up to those heads was changed since the witnesses saw it; what came later rests on the key of the host alone.\n"
        }
        (true, false) if !asked.heads.is_empty() => {
            "Nothing up to the heads you gave was changed since they were kept; what came later rests on the key of the host alone.\n"
        }
        (true, false) => {
            "Nothing up to those heads was changed by anybody who does not have the log's key. Whoever has it could have written all of it anew: a head that was kept elsewhere (--checkpoint) or seen by a witness (--witness) would show that.\n"
        }
        (false, _) => {
            "Each log is consistent in itself. Whose it is rests on the store alone: give the key you were handed as --public-key.\n"
        }
    }
}

fn shown(log: &Verified) -> Value {
    let fault = log.fault.as_ref().map(|fault| json!({"index": fault.index, "what": fault.what}));
    let signed = log.signed.as_ref().map(|signed| json!({"size": signed.size, "trusted": signed.is_trusted}));
    let seen = |seen: &Seen| json!({"name": seen.name, "size": seen.size, "at": seen.at});
    json!({"origin": log.origin, "size": log.size, "root": log.root, "kinds": log.kinds, "pruned": log.pruned,
        "heads": log.heads, "signed": signed, "unsigned": log.unsigned,
        "followed": log.followed.as_ref().map(|followed| json!({"by": followed.by, "lost": followed.lost})), "seen": log.seen.iter().map(seen).collect::<Vec<_>>(), "fault": fault})
}
