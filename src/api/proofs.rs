//! Proofs over HTTP, as C2SP `tlog-tiles` lays them out and by question.
//!
//! The prefix of the log is `/v1/log`: its signed head, its tiles and its entries stand at the paths that clients of
//! transparency logs know. The gateway's own log is meant unless `origin` names another one of the store.

use axum::extract::{self, Path, Query};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::changes::{json_answer, reader};
use super::problem::Problem;
use crate::audit::proofs::Log;
use crate::audit::tree::{Hash, TILE, TileId};
use crate::store::Error;

/// Most entries in one answer.
const MAX_ENTRIES: u32 = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    origin: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    origin: Option<String>,
    start: u64,
    end: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Included {
    origin: Option<String>,
    index: u64,
    size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consistent {
    origin: Option<String>,
    from: u64,
    to: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    origin: Option<String>,
}

type Asked<T> = Result<Query<T>, extract::rejection::QueryRejection>;

/// `GET /v1/changes/{id}/proof`: what `patchwarden prove` writes.
pub(super) async fn change(
    extract::State(state): extract::State<State>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    match reader(&state)?.proof(&id).await.map_err(|cause| Problem::store(&cause))? {
        Some(Some(evidence)) => Ok(json_answer(&json!(evidence))),
        Some(None) => {
            Err(Problem::unavailable("No signed head is over this change yet; ask again in a second."))
        }
        None => Err(Problem::not_found(
            "There is no such change here; give a change's id, its number in the log, or `last`.",
        )),
    }
}

/// `GET /v1/log/checkpoint`: the newest signed head, or the one of `size`.
pub(super) async fn checkpoint(
    extract::State(state): extract::State<State>,
    asked: Asked<Which>,
) -> Result<Response, Problem> {
    let asked = asked_for(asked, "`size` and `origin`")?;
    let (log, _) = log(&state, asked.origin).await?;
    let head = log.checkpoint(asked.size).await.map_err(|error| store(&error))?;
    let head =
        head.ok_or_else(|| Problem::not_found("No head of that size was signed, or it is no longer kept."))?;
    Ok(text(head.note()))
}

/// `GET /v1/log/entries`: from `start` to before `end`, at most 256.
pub(super) async fn entries(
    extract::State(state): extract::State<State>,
    asked: Asked<Part>,
) -> Result<Response, Problem> {
    let asked = asked_for(asked, "`start`, `end` and `origin`")?;
    let (log, size) = log(&state, asked.origin).await?;
    if asked.start >= asked.end || asked.end > size {
        return Err(Problem::bad(format!(
            "`start` is below `end`, and `end` at most {size}, the size of the log."
        )));
    }
    let limit = u32::try_from(asked.end - asked.start).unwrap_or(MAX_ENTRIES).min(MAX_ENTRIES);
    let found = log.entries(asked.start, limit).await.map_err(|error| store(&error))?;
    let shown: Vec<Value> = found
        .iter()
        .map(|entry| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (payload, salt) = (entry.body.as_deref().map(text), entry.salt.as_ref().map(hex::encode));
            json!({"index": entry.index, "envelope": text(&entry.envelope), "payload": payload, "salt": salt})
        })
        .collect();
    Ok(json_answer(&json!({"origin": log.origin(), "size": size, "entries": shown})))
}

/// `GET /v1/log/proof/inclusion`: that entry `index` is in the log of `size` entries.
pub(super) async fn inclusion(
    extract::State(state): extract::State<State>,
    asked: Asked<Included>,
) -> Result<Response, Problem> {
    let asked = asked_for(asked, "`index`, `size` and `origin`")?;
    let (log, now) = log(&state, asked.origin).await?;
    let size = asked.size.unwrap_or(now);
    if asked.index >= size || size > now {
        return Err(Problem::bad(format!("`index` is below `size`, and `size` at most {now}.")));
    }
    let hashes = log.tree(size).inclusion(asked.index).await.map_err(|error| store(&error))?;
    let proof =
        json!({"origin": log.origin(), "index": asked.index, "size": size, "hashes": encoded(&hashes)});
    Ok(json_answer(&proof))
}

/// `GET /v1/log/proof/consistency`: that the log of `to` entries begins with what it was at `from`.
pub(super) async fn consistency(
    extract::State(state): extract::State<State>,
    asked: Asked<Consistent>,
) -> Result<Response, Problem> {
    let asked = asked_for(asked, "`from`, `to` and `origin`")?;
    let (log, now) = log(&state, asked.origin).await?;
    let to = asked.to.unwrap_or(now);
    if asked.from > to || to > now {
        return Err(Problem::bad(format!("`from` is at most `to`, and `to` at most {now}.")));
    }
    let hashes = log.tree(to).consistency(asked.from).await.map_err(|error| store(&error))?;
    let proof = json!({"origin": log.origin(), "from": asked.from, "to": to, "hashes": encoded(&hashes)});
    Ok(json_answer(&proof))
}

/// `GET /v1/log/tile/<L>/<N>[.p/<W>]`.
pub(super) async fn tile(
    extract::State(state): extract::State<State>,
    Path(path): Path<String>,
    asked: Asked<Whose>,
) -> Result<Response, Problem> {
    let (level, rest) = path.split_once('/').ok_or_else(no_tile)?;
    let level = plain(level).and_then(|level| u8::try_from(level).ok()).filter(|level| *level < 64);
    let id = |number| level.map(|level| TileId { level, number });
    let wanted = Wanted::parse(rest).ok_or_else(no_tile)?;
    let id = id(wanted.number).ok_or_else(no_tile)?;
    let (log, size) = part(&state, asked, id, &wanted).await?;
    let hashes = log.tree(size).tile(id).await.map_err(|error| store(&error))?;
    let width = usize::try_from(wanted.width).unwrap_or(0);
    Ok(bytes(hashes.into_iter().take(width).flatten().collect()))
}

/// `GET /v1/log/tile/entries/<N>[.p/<W>]`.
pub(super) async fn bundle(
    extract::State(state): extract::State<State>,
    Path(path): Path<String>,
    asked: Asked<Whose>,
) -> Result<Response, Problem> {
    let wanted = Wanted::parse(&path).ok_or_else(no_tile)?;
    let id = TileId { level: 0, number: wanted.number };
    let (log, size) = part(&state, asked, id, &wanted).await?;
    let first = wanted.number * TILE;
    let envelopes = log.tree(size).envelopes(first..first + wanted.width).await;
    Ok(bytes(bundled(&envelopes.map_err(|error| store(&error))?)))
}

/// The log that is wide enough for what is wanted of it.
async fn part(
    state: &State,
    asked: Asked<Whose>,
    id: TileId,
    wanted: &Wanted,
) -> Result<(Log, u64), Problem> {
    let asked = asked_for(asked, "`origin`")?;
    let (log, size) = log(state, asked.origin).await?;
    let width = id.width(size);
    if width < wanted.width {
        return Err(Problem::not_found(format!("The log has {size} entries; that tile is {width} wide.")));
    }
    Ok((log, size))
}

fn no_tile() -> Problem {
    Problem::bad(
        "A tile is at `<level>/<number>` or `entries/<number>`, the number in groups of three digits like `x001/234`, with `.p/<width>` when it is not full.",
    )
}

fn bytes(bytes: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

/// Entries, each with its length before it.
fn bundled(envelopes: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for envelope in envelopes {
        bytes.extend(u16::try_from(envelope.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(envelope);
    }
    bytes
}

/// Which tile of a level.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    number: u64,
    width: u64,
}

impl Wanted {
    fn parse(path: &str) -> Option<Self> {
        let (number, width) = match path.split_once(".p/") {
            Some((number, width)) => (number, plain(width).filter(|width| (1..TILE).contains(width))?),
            None => (path, TILE),
        };
        let (above, last) =
            number.rsplit_once('/').map_or((None, number), |(above, last)| (Some(above), last));
        let group = |text: &str| {
            let is_three = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
            is_three.then(|| text.parse::<u64>().ok()).flatten()
        };
        let mut number: u64 = 0;
        for part in above.into_iter().flat_map(|above| above.split('/')) {
            number = number.checked_mul(1000)?.checked_add(group(part.strip_prefix('x')?)?)?;
        }
        number = number.checked_mul(1000)?.checked_add(group(last)?)?;
        // One spelling a tile: no group of zeroes in front.
        let is_plain = above.is_none_or(|above| !above.starts_with("x000"));
        number.checked_mul(TILE).and_then(|first| first.checked_add(TILE))?;
        is_plain.then_some(Self { number, width })
    }
}

fn plain(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

fn asked_for<T>(asked: Asked<T>, what: &str) -> Result<T, Problem> {
    let known = |error: extract::rejection::QueryRejection| {
        Problem::bad(format!("The query knows {what}: {}.", error.body_text().trim_end_matches('.')))
    };
    asked.map(|Query(asked)| asked).map_err(known)
}

async fn log(state: &State, origin: Option<String>) -> Result<(Log, u64), Problem> {
    let origin = origin.or_else(|| state.audit.origin());
    let origin = origin.ok_or_else(|| Problem::unavailable("The log is not open yet."))?;
    let log = reader(state)?.log(&origin);
    let size = log.size().await.map_err(|error| store(&error))?;
    let size = size.ok_or_else(|| Problem::not_found("The store has no log of that name."))?;
    Ok((log, size))
}

fn store(error: &Error) -> Problem {
    Problem::store(&error.to_string())
}

fn encoded(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(|hash| STANDARD.encode(hash)).collect()
}

fn text(text: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_one_path() {
        let wanted = |number, width| Some(Wanted { number, width });
        assert_eq!(Wanted::parse("000"), wanted(0, 256));
        assert_eq!(Wanted::parse("x001/x234/067"), wanted(1_234_067, 256));
        assert_eq!(Wanted::parse("x001/234.p/17"), wanted(1234, 17));
        assert_eq!(Wanted::parse("007.p/255"), wanted(7, 255));
        for wrong in [
            "",
            "0",
            "00",
            "0000",
            "001/234",
            "x000/001",
            "x01/234",
            "000.p/0",
            "000.p/256",
            "000.p/01",
            "000.p",
            "000.p/",
            "x001/x002",
            "x001/",
            "x999/x999/x999/x999/x999/x999/x999/999",
            "-01",
            "+01",
            "x1/+01",
            " 01",
        ] {
            assert_eq!(Wanted::parse(wrong), None, "{wrong}");
        }
    }
}
