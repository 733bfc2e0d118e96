//! `patchwarden policy eval`: one request judged without sending it.
//!
//! The state before, the state it would lead to, what each rule says, and the fix where one is known to pass.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::super::out::print;
use super::super::{MISCONFIGURED, UNABLE, WRONG, identity};
use super::Format;
use crate::app::Failure;
use crate::audit::query::Reader;
use crate::bundle::{Answer, Bundle, Question, evaluate};
use crate::config::Config;
use crate::keys::Keys;
use crate::operation::{Object, State};
use crate::view;

pub(super) fn run(bundle: &Bundle, question: &Question<'_>, format: Format) -> Result<u8, Failure> {
    // A question that cannot be asked is no denial.
    let wrong = |message| Failure { code: MISCONFIGURED, message };
    let policies = bundle.policies().enforcing();
    let evaluation = evaluate(bundle, &policies, question, &Keys::ephemeral()).map_err(wrong)?;
    let shown = evaluation.shown(&policies);
    print(&match format {
        Format::Json => format!("{shown:#}\n"),
        Format::Text => text(&shown),
    })?;
    Ok(if matches!(evaluation.answer, Answer::Allowed(_)) { 0 } else { WRONG })
}

/// The newest state on record of an identity, in the shape of the API's answer.
pub(super) async fn stored(
    bundle: &Bundle,
    operation: &str,
    id: &str,
    config: &Config,
) -> Result<String, Failure> {
    let wrong = |message: String| Failure { code: WRONG, message };
    let unable = |message: String| Failure { code: UNABLE, message };
    let object = object(bundle, operation)?;
    let target = identity::target(&object, "--stored", id)?;
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let state = reader.last_state(&target.to_string()).await.map_err(unable)?;
    let state = state.filter(|state| !state.is_null()).ok_or_else(|| {
        wrong(format!(
            "--stored {id}: no state of it is on record; read it with --fetch, or give it with --before"
        ))
    })?;
    let state = State::recall(&object, &state).map_err(|field| {
        wrong(format!("--stored {id}: of `{field}` only a digest is recorded; read it with --fetch"))
    })?;
    Ok(state.answer(&target.id()).to_string())
}

/// The state of an identity as the upstream answers it now.
pub(super) async fn fetched(
    bundle: &Bundle,
    operation: &str,
    id: &str,
    token_file: &Path,
    config: &Config,
) -> Result<String, Failure> {
    if config.upstream.url.is_empty() {
        let message = "--fetch needs --upstream, or upstream.url in the configuration".to_owned();
        return Err(Failure { code: MISCONFIGURED, message });
    }
    let object = object(bundle, operation)?;
    let target = identity::target(&object, "--fetch", id)?;
    Ok(identity::answer(config, &object, &target, token_file).await?.to_string())
}

fn object(bundle: &Bundle, operation: &str) -> Result<Arc<Object>, Failure> {
    let found = bundle.operation(operation).map(|found| found.object.clone());
    found.ok_or_else(|| {
        let known: Vec<_> = bundle.operations().keys().map(String::as_str).collect();
        let message = format!("there is no operation `{operation}`; there are: {}", known.join(", "));
        Failure { code: MISCONFIGURED, message }
    })
}

/// As people read it.
pub(super) fn text(shown: &Value) -> String {
    let said = |value: &Value| view::visible(value.as_str().unwrap_or("-")).into_owned();
    let mut text = format!("{}\n", said(&shown["decision"]));
    if let Some(summary) = shown["summary"].as_str() {
        text += &format!("  changes  {}\n", view::visible(summary));
    }
    let rules: Vec<_> = shown["rules"].as_array().into_iter().flatten().collect();
    let names = |verdict: &str| -> Vec<String> {
        let such = rules.iter().filter(|rule| rule["verdict"] == verdict);
        such.map(|rule| said(&rule["id"])).collect()
    };
    for (verdict, title) in [("passed", "passed"), ("not_asked", "not for"), ("off", "off")] {
        let names = names(verdict);
        if !names.is_empty() {
            text += &format!("  {title:8} {}\n", names.join(", "));
        }
    }
    for (kind, title) in [("violations", "denied"), ("warnings", "warned")] {
        for found in shown[kind].as_array().into_iter().flatten() {
            text += &format!("  {title}   {} {}\n", said(&found["rule"]), said(&found["pointer"]));
            text += &format!("           {}; {}\n", said(&found["message"]), said(&found["help"]));
        }
    }
    if !shown["fix"].is_null() {
        text += &format!("  fix      {}\n", view::visible(&shown["fix"].to_string()));
    }
    let (before, proposed) = (&shown["before"], &shown["proposed"]);
    let names: BTreeSet<&String> =
        [before, proposed].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys).collect();
    let value = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        value => view::visible(&value.to_string()).into_owned(),
    };
    let rows: Vec<_> = names
        .into_iter()
        .map(|name| {
            let (old, new) = (&before[name], &proposed[name]);
            let mark = if old == new { " " } else { "*" };
            [format!("{mark} {name}"), value(old), value(new)]
        })
        .collect();
    if !rows.is_empty() {
        text += "\n";
        text += &view::table(["  FIELD", "BEFORE", "PROPOSED"], &rows);
    }
    text
}
