//! Where a key stands in a TOML file, for errors.
//!
//! The reader of TOML keeps no places, so the text is gone through once more: tables, tables in lists with their number, and
//! keys. A key within an inline value is found where that value begins; one that is missing has no line.

use std::collections::BTreeMap;

/// The line, from 1, of a dotted key such as `params.networks` or `case[2].expect`.
pub(super) fn of(text: &str, key: &str) -> Option<usize> {
    if key.is_empty() {
        return None;
    }
    let (mut table, mut lists) = (String::new(), BTreeMap::<String, usize>::new());
    let mut nearest: Option<(usize, usize)> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let found = if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.split("]]").next()) {
            let count = lists.entry(name.to_owned()).or_default();
            table = format!("{name}[{count}]");
            *count += 1;
            table.clone()
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            name.clone_into(&mut table);
            table.clone()
        } else if let Some((name, _)) = line.split_once('=').filter(|(name, _)| is_key(name.trim())) {
            let name = name.trim().trim_matches('"');
            if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
        } else {
            continue;
        };
        let holds = key.strip_prefix(found.as_str());
        let is_it =
            holds.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['));
        if is_it && nearest.is_none_or(|(length, _)| found.len() > length) {
            nearest = Some((found.len(), at + 1));
        }
    }
    let (length, line) = nearest?;
    // Of a key that is missing only its table was found: that is no place.
    let is_whole = length == key.len();
    let is_inline = || !text.lines().nth(line - 1).is_some_and(|line| line.trim_start().starts_with('['));
    (is_whole || is_inline()).then_some(line)
}

/// The line, from 1, of a byte.
pub(super) fn of_byte(text: &str, byte: usize) -> usize {
    text.as_bytes().iter().take(byte).filter(|b| **b == b'\n').count() + 1
}

fn is_key(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '"' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_where_it_stands() {
        let text = "id = \"a\"\n# x = 1\n[params]\n  networks = [\n \"10.0.0.0/8\"]\nttl = { at_most = 1 }\n\
                    [[case]]\nname = \"x\"\n[[case]]\nname = \"y\"\n[rules.open-network]\nlevel = 1\n";
        for (key, line) in [
            ("id", Some(1)),
            ("params.networks", Some(4)),
            ("params.ttl.at_most", Some(6)),
            ("case[0].name", Some(8)),
            ("case[1].name", Some(10)),
            ("case[1]", Some(9)),
            ("rules.open-network.level", Some(12)),
            ("rules.open-network", Some(11)),
            ("params.missing", None),
            ("title", None),
            ("", None),
        ] {
            assert_eq!(of(text, key), line, "{key}");
        }
        assert_eq!(of_byte("a\nb\nc", 2), 2);
    }
}
