//! Many changes: rows of a table, lines of CSV.
//!
//! The table is for people: local time, names before ids, one line of what changed. CSV is for spreadsheets, which run
//! what looks like a formula: such a cell gets a `'` in front, and cells are quoted as RFC 4180 says. Both are made
//! line by line, so that a long history never has to be held at once.

use std::borrow::Cow;

use serde_json::Value;

use super::{moment, or_dash, result, said, visible};

/// Headings of the table.
pub const COLUMNS: [&str; 7] = ["NUMBER", "TIME", "OPERATION", "TARGET", "CALLER", "RESULT", "WHAT"];

/// First line of the CSV form, without its line end.
pub const CSV_HEADER: &str = "number,id,received_at,operation,target,caller_kind,caller_id,caller_name,\
                              source_address,decision,would,code,outcome,settlement,upstream_status,summary";

/// What stands in the columns of [`CSV_HEADER`].
const CSV_POINTERS: [&str; 16] = [
    "/log/attempt/index",
    "/id",
    "/received_at",
    "/operation",
    "/target/id",
    "/caller/kind",
    "/caller/id",
    "/caller/name",
    "/source/address",
    "/decision",
    "/would",
    "/code",
    "/outcome",
    "/settlement/result",
    "/upstream_status",
    "/summary",
];

/// Number, time, operation, target, caller, decision or outcome, and what changed.
pub fn row(change: &Value, utc: bool) -> [String; 7] {
    let caller = said(change, "/caller/name")
        .or_else(|| said(change, "/caller/id"))
        .unwrap_or_else(|| or_dash(change, "/caller/kind"));
    let pruned = (change["pruned"] == true).then_some(Cow::Borrowed("pruned by retention"));
    let what =
        said(change, "/summary").or_else(|| said(change, "/code")).or(pruned).unwrap_or(Cow::Borrowed(""));
    [
        or_dash(change, "/log/attempt/index").into_owned(),
        moment(&change["received_at"], utc),
        said(change, "/operation").unwrap_or_else(|| or_dash(change, "/kind")).into_owned(),
        or_dash(change, "/target/id").into_owned(),
        caller.into_owned(),
        result(change),
        what.into_owned(),
    ]
}

/// Headings and rows with columns of one width each; every line ends. The last column is never padded.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let mut text = line(&headings, &widths);
    for row in rows {
        text.push_str(&line(&row.each_ref().map(String::as_str), &widths));
    }
    text
}

fn line(cells: &[&str], widths: &[usize]) -> String {
    let padded: Vec<String> =
        cells.iter().zip(widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
    format!("{}\n", padded.join("  ").trim_end())
}

/// One line of CSV with its CRLF, in the columns of [`CSV_HEADER`].
pub fn csv(change: &Value) -> String {
    let cells: Vec<String> = CSV_POINTERS
        .iter()
        .map(|pointer| match change.pointer(pointer) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => cell(text),
            Some(other) => cell(&other.to_string()),
        })
        .collect();
    format!("{}\r\n", cells.join(","))
}

/// One cell: quoted where it must be, and never a formula for a spreadsheet.
pub fn cell(text: &str) -> String {
    let formula = text.starts_with(|c: char| matches!(c, '=' | '+' | '-' | '@') || c.is_control());
    let shown = visible(text);
    let shown = if formula { format!("'{shown}") } else { shown.into_owned() };
    if shown.contains([',', '"', '\n', '\r']) { format!("\"{}\"", shown.replace('"', "\"\"")) } else { shown }
}
