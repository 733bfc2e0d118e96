//! A scan on paper: a table for people, JSON with everything, CSV, and one HTML page.
//!
//! One line for each violation, with what each `existing` makes of it for the next change; then what is not as the last
//! change on record left it.

use serde_json::{Value, json};

use super::Found;
use crate::id::ChangeId;
use crate::view;

/// What stands in each line.
const COLUMNS: [&str; 8] = ["IDENTITY", "NAME", "RULE", "FIELD", "WHAT", "STORED", "TOLERATE", "DENY"];

fn lines(one: &Found) -> Vec<[String; 8]> {
    let shown = |text: &str| view::visible(text).into_owned();
    let line = |found: &crate::bundle::Standing| {
        [
            one.identity.id.clone(),
            shown(&one.identity.name),
            found.finding.rule.clone(),
            found.finding.pointer.clone(),
            shown(&found.finding.message),
            found.stored.as_str().to_owned(),
            found.tolerate.as_str().to_owned(),
            found.deny.as_str().to_owned(),
        ]
    };
    one.violations.iter().flatten().map(line).collect()
}

/// Identities that are not as the last change on record left them, with the fields.
fn drifted(found: &[Found]) -> Vec<[String; 3]> {
    let drifted = found.iter().filter(|one| !one.drift.is_empty());
    let fields = |one: &Found| {
        let paths = one.drift.iter().filter_map(|entry| entry["path"].as_str());
        paths.map(|path| path.trim_start_matches('/')).collect::<Vec<_>>().join(", ")
    };
    drifted
        .map(|one| [one.identity.id.clone(), view::visible(&one.identity.name).into_owned(), fields(one)])
        .collect()
}

/// Changes whose end was not seen, with what is proved of them.
fn settled(found: &[Found]) -> Vec<[String; 4]> {
    let line = |one: &Found| {
        let (change, result) = one.settled.as_ref()?;
        let name = view::visible(&one.identity.name).into_owned();
        Some([one.identity.id.clone(), name, change.to_string(), result.clone()])
    };
    found.iter().filter_map(line).collect()
}

fn total(found: &[Found], unread: &[String]) -> String {
    let attached = found.iter().filter_map(|one| one.violations.as_ref());
    let violating = attached.clone().filter(|found| !found.is_empty()).count();
    format!(
        "{} identities, {} with JWT auth, {violating} violate a rule, {} could not be read",
        found.len() + unread.len(),
        attached.count(),
        unread.len()
    )
}

pub(super) fn table(found: &[Found], unread: &[String]) -> String {
    let rows: Vec<_> = found.iter().flat_map(lines).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text += &view::table(COLUMNS, &rows);
        text += "\nSTORED, TOLERATE, DENY: what the next change of the identity gets under each `existing` of the rule.\n\n";
    }
    let drifted = drifted(found);
    if !drifted.is_empty() {
        text += &view::table(["IDENTITY", "NAME", "CHANGED SINCE THE LAST CHANGE ON RECORD"], &drifted);
        text += "\n";
    }
    let settled = settled(found);
    if !settled.is_empty() {
        text += &view::table(["IDENTITY", "NAME", "CHANGE WHOSE END WAS NOT SEEN", "SETTLED"], &settled);
        text += "\n";
    }
    text + &total(found, unread) + "\n"
}

pub(super) fn csv(found: &[Found]) -> String {
    let line = |cells: [String; 8]| cells.map(|cell| view::cell(&cell)).join(",") + "\r\n";
    let header = COLUMNS.join(",").to_lowercase() + "\r\n";
    header + &found.iter().flat_map(lines).map(line).collect::<String>()
}

pub(super) fn json(found: &[Found], unread: &[String]) -> Value {
    let settled =
        |(change, result): &(ChangeId, String)| json!({"change": change.to_string(), "result": result});
    let one = |one: &Found| {
        json!({"settled": one.settled.as_ref().map(settled), "id": one.identity.id, "name": one.identity.name, "attached": one.violations.is_some(),
            "violations": one.violations.as_deref().unwrap_or_default(), "fix": one.fix, "drift": one.drift})
    };
    json!({"identities": found.iter().map(one).collect::<Vec<_>>(), "unread": unread})
}

pub(super) fn html(found: &[Found], unread: &[String], digest: &str, upstream: &str) -> String {
    let rows: Vec<_> = found.iter().flat_map(lines).collect();
    let mut sections = vec![("Violations", COLUMNS.to_vec(), rows.into_iter().map(Vec::from).collect())];
    let drifted: Vec<_> = drifted(found).into_iter().map(Vec::from).collect();
    if !drifted.is_empty() {
        sections.push((
            "Changed since the last change on record",
            vec!["IDENTITY", "NAME", "FIELDS"],
            drifted,
        ));
    }
    let settled: Vec<_> = settled(found).into_iter().map(Vec::from).collect();
    if !settled.is_empty() {
        let columns = vec!["IDENTITY", "NAME", "CHANGE", "SETTLED"];
        sections.push(("Changes whose end was not seen", columns, settled));
    }
    if !unread.is_empty() {
        let unread: Vec<_> = unread.iter().map(|why| vec![view::visible(why).into_owned()]).collect();
        sections.push(("Could not be read", vec!["WHAT"], unread));
    }
    let about = [total(found, unread), format!("upstream {upstream}"), format!("policies {digest}")];
    view::html("Patchwarden scan", &about, &sections)
}
