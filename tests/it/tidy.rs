//! The rules of the house that no lint can check.
//!
//! Each test walks the files under the manifest's folder and lists every offence at once, as `file:line: what`.
//! Code is read with its comments and strings blanked out, and without unit tests.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of `src` that may be longer than [`LONGEST`] without their tests, each with the reason.
const LONG: &[(&str, &str)] = &[
    ("src/log.rs", "every event by its name, in one place"),
    ("src/pipeline.rs", "the order of the steps reads as one thought"),
    ("src/audit.rs", "the tickets of the log and the few verbs that make them, in the order of a change"),
    ("src/audit/query.rs", "every question to the history, and the one form it is answered in"),
    ("src/audit/writer.rs", "one writer, one state: a batch, its three results and the way back"),
    ("src/server.rs", "one way from an accepted socket to a served request"),
    ("src/standin.rs", "the stand-in is one file on purpose: nothing of it may leak into the gateway"),
    ("src/store/postgres.rs", "every statement of the dialect in one place"),
    ("src/store/sqlite.rs", "every statement of the dialect in one place"),
    ("src/upstream.rs", "the one client to the guarded API"),
];
const LONGEST: usize = 400;

/// Words that say nothing about what a file holds.
const VAGUE: &[&str] =
    &["util", "utils", "helper", "helpers", "common", "misc", "manager", "service", "data", "info"];

/// What only certain files of `src` may mention: the text in code, then the files (a module's submodules count).
const RESERVED: &[(&str, &[&str])] = &[
    ("serde_json::from_", &["json", "standin"]),
    ("sqlx::", &["store"]),
    ("SystemTime", &["clock"]),
    ("Timestamp::now", &["clock"]),
    ("Uuid::now_v7", &["id"]),
];

/// The first word of each refusal code.
const STEPS: &[&str] =
    &["route", "caller", "body", "schema", "before", "policy", "target", "audit", "upstream", "gateway"];

#[test]
fn a_module_uses_only_modules_declared_above_it() {
    let order = library_modules();
    let mut offences = Offences::default();
    for file in rust_files("src") {
        let Some(own) = file.module() else { continue };
        let Some(place) = order.iter().position(|module| module == own) else { continue };
        if file.path == format!("src/{own}.rs") {
            for (line, text) in numbered(&file.code) {
                if text.starts_with("use super::") || text.starts_with("pub use super::") {
                    offences.add(&file.path, line, "write crate:: instead of super:: in a module of lib.rs");
                }
            }
        }
        for (line, used) in crate_uses(&file.code) {
            match order.iter().position(|module| *module == used) {
                None => offences.add(&file.path, line, &format!("crate::{used} is no module of lib.rs")),
                Some(at) if at > place => {
                    offences.add(&file.path, line, &format!("{own} uses {used}, which is declared below it"));
                }
                Some(_) => {}
            }
        }
    }
    offences.none();
}

#[test]
fn every_source_file_is_declared_and_every_declared_module_has_a_file() {
    let mut offences = Offences::default();
    for root in ["src/lib.rs", "tests/it/main.rs"] {
        let folder = root.rsplit_once('/').unwrap().0;
        let files = rust_files(folder);
        let parents = files.iter().filter(|file| file.path != "src/main.rs");
        let mut declared = BTreeSet::new();
        for parent in parents {
            let inside = if parent.path == root { folder } else { parent.path.trim_end_matches(".rs") };
            for (line, name) in declared_modules(&blank(&parent.text).0) {
                let path = format!("{inside}/{name}.rs");
                if !files.iter().any(|file| file.path == path) {
                    offences.add(&parent.path, line, &format!("mod {name} has no file {path}"));
                }
                declared.insert(path);
            }
        }
        for file in &files {
            if file.path != root && file.path != "src/main.rs" && !declared.contains(&file.path) {
                offences.add(&file.path, 1, "declared nowhere, so it is never compiled");
            }
        }
    }
    offences.none();
}

#[test]
fn every_source_file_opens_with_three_to_twelve_lines_about_itself() {
    let mut offences = Offences::default();
    for file in rust_files("src").into_iter().filter(|file| !is_tests(&file.path)) {
        let lines = file.text.lines().take_while(|line| line.starts_with("//!")).count();
        let most = if file.path == "src/lib.rs" { usize::MAX } else { 12 };
        if lines < 3 || lines > most {
            offences.add(&file.path, 1, &format!("opens with {lines} lines of //!, not 3 to 12"));
        }
    }
    offences.none();
}

#[test]
fn names_of_files_and_modules_say_what_is_inside() {
    let mut offences = Offences::default();
    for file in rust_files("src").into_iter().chain(rust_files("tests")) {
        if file.path.ends_with("/mod.rs") {
            offences.add(&file.path, 1, "foo.rs and foo/, never mod.rs");
        }
        for part in file.path.trim_end_matches(".rs").split('/') {
            if is_vague(part) {
                offences.add(&file.path, 1, &format!("{part:?} says nothing about what is inside"));
            }
        }
        for (line, text) in numbered(&file.code) {
            let Some(inline) = after_mod(text).and_then(|name| name.strip_suffix('{')) else { continue };
            if is_vague(inline.trim()) {
                offences.add(
                    &file.path,
                    line,
                    &format!("mod {} says nothing about what is inside", inline.trim()),
                );
            }
        }
    }
    offences.none();
}

#[test]
fn source_files_are_short_or_say_why_not() {
    let mut offences = Offences::default();
    let files = rust_files("src");
    for file in &files {
        let lines = file.code.lines().count();
        match LONG.iter().find(|(path, _)| *path == file.path) {
            None if lines > LONGEST => {
                offences.add(
                    &file.path,
                    LONGEST,
                    &format!("{lines} lines without tests; split it, or argue in LONG"),
                );
            }
            Some((_, reason)) if lines <= LONGEST => {
                offences.add(&file.path, 1, &format!("no longer long, yet in LONG ({reason})"));
            }
            _ => {}
        }
    }
    for (path, _) in LONG {
        if !files.iter().any(|file| file.path == *path) {
            offences.add(path, 1, "in LONG, but not there");
        }
    }
    offences.none();
}

#[test]
fn every_refusal_code_is_explained_once_and_nothing_else_is() {
    let mut offences = Offences::default();
    let refusal = SourceFile::read(&root(), "src/refusal.rs".into());
    let codes: Vec<(usize, String)> =
        refusal.strings.iter().filter(|(_, text)| is_code(text)).cloned().collect();
    assert!(!codes.is_empty(), "src/refusal.rs names no code such as \"policy.denied\"");

    let page = "src/refusal/codes.md";
    let text = fs::read_to_string(root().join(page)).expect(page);
    let headings: Vec<(usize, &str)> = numbered(&text)
        .filter_map(|(line, text)| Some((line, text.strip_prefix("## `")?.trim_end().strip_suffix('`')?)))
        .collect();

    let mut seen = BTreeSet::new();
    for (line, heading) in &headings {
        if !codes.iter().any(|(_, code)| code == heading) {
            offences.add(page, *line, &format!("explains {heading}, which src/refusal.rs does not know"));
        }
        if !seen.insert(*heading) {
            offences.add(page, *line, &format!("explains {heading} twice"));
        }
    }
    let mut named = BTreeSet::new();
    for (line, code) in &codes {
        if named.insert(code) && !seen.contains(code.as_str()) {
            offences.add(&refusal.path, *line, &format!("{code} has no heading in {page}"));
        }
    }
    offences.none();
}

#[test]
fn nothing_is_left_behind() {
    // In pieces, so that this file does not find itself.
    let anywhere =
        [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("FIX", "ME")];
    let in_code = ["#[ignore", "todo!", "unimplemented!", "dbg!"];
    let mut offences = Offences::default();
    for path in files("") {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (line, text) in numbered(&text) {
            for word in anywhere.iter().filter(|word| text.contains(**word)) {
                offences.add(&path, line, &format!("{word:?}"));
            }
        }
        if !path.ends_with(".rs") {
            continue;
        }
        for (line, text) in numbered(&blank(&text).0) {
            for word in in_code.iter().filter(|word| text.contains(**word)) {
                offences.add(&path, line, &format!("{word:?}"));
            }
        }
    }
    offences.none();
}

#[test]
fn the_code_map_has_every_module_in_order() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mapped: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "))
        .flat_map(|(modules, _)| modules.split(['`', ' ']).filter(|name| !name.is_empty()))
        .collect();
    assert_eq!(mapped, library_modules(), "docs/architecture.md (left) and src/lib.rs (right)");
}

#[test]
fn every_migration_has_its_twin() {
    let names = |dialect: &str| -> BTreeSet<String> {
        let folder = format!("migrations/{dialect}/");
        files(&folder).iter().map(|path| path.trim_start_matches(&folder).to_owned()).collect()
    };
    if !root().join("migrations/postgres").is_dir() {
        return; // one dialect so far
    }
    let (sqlite, postgres) = (names("sqlite"), names("postgres"));
    let mut offences = Offences::default();
    for name in sqlite.symmetric_difference(&postgres) {
        let there = if sqlite.contains(name) { "sqlite" } else { "postgres" };
        offences.add(&format!("migrations/{there}/{name}"), 1, "has no twin in the other dialect");
    }
    offences.none();
}

#[test]
fn only_the_module_that_owns_a_thing_mentions_it() {
    let mut offences = Offences::default();
    for file in rust_files("src") {
        let module = file.module().unwrap_or_default();
        for (text, owners) in RESERVED.iter().filter(|(_, owners)| !owners.contains(&module)) {
            for (line, _) in numbered(&file.code).filter(|(_, code)| code.contains(text)) {
                offences.add(&file.path, line, &format!("{text} belongs to {}", owners.join(", ")));
            }
        }
    }
    offences.none();
}

/// What was found, printed all at once.
#[derive(Default)]
struct Offences(String);

impl Offences {
    fn add(&mut self, path: &str, line: usize, what: &str) {
        writeln!(self.0, "{path}:{line}: {what}").unwrap();
    }

    fn none(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

/// A Rust file: its text, its code up to `mod tests` without comments and strings, and the strings of that code.
pub(crate) struct SourceFile {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) code: String,
    pub(crate) strings: Vec<(usize, String)>,
}

impl SourceFile {
    fn read(root: &Path, path: String) -> Self {
        let text = fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (code, strings) = blank(without_tests(&path, &text));
        Self { path, code, strings, text }
    }

    /// The module of `lib.rs` this file belongs to: `audit` for `src/audit.rs` and all of `src/audit/`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?.trim_end_matches(".rs");
        let module = inside.split('/').next()?;
        (!matches!(module, "lib" | "main")).then_some(module)
    }
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files under a folder, relative to the root with `/`, sorted. Build products, hidden folders other than
/// the project's own, and what running the gateway leaves behind are not looked at.
pub(crate) fn files(folder: &str) -> Vec<String> {
    const OURS: &[&str] = &[".ci", ".cargo", ".config", ".github"];
    const LEFT: &[&str] = &["target", "patchwarden-data"];
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if !LEFT.contains(&name.as_str()) && (!name.starts_with('.') || OURS.contains(&name.as_str()))
                {
                    folders.push(entry.path());
                }
            } else if name != ".git" {
                found.push(entry.path().strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn rust_files(folder: &str) -> Vec<SourceFile> {
    files(folder)
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| SourceFile::read(&root(), path))
        .collect()
}

fn library_modules() -> Vec<String> {
    let library = SourceFile::read(&root(), "src/lib.rs".into());
    declared_modules(&library.code).map(|(_, name)| name.to_owned()).collect()
}

pub(crate) fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// A file without its unit tests: those stand last, or in a `tests.rs` of their own.
fn without_tests<'a>(path: &str, text: &'a str) -> &'a str {
    match text.find("#[cfg(test)]\nmod tests {") {
        _ if is_tests(path) => "",
        Some(at) => &text[..at],
        None => text,
    }
}

fn is_tests(path: &str) -> bool {
    path.starts_with("src/") && path.ends_with("/tests.rs")
}

/// `mod name;` at the start of a line, public or not.
fn declared_modules(code: &str) -> impl Iterator<Item = (usize, &str)> {
    // A module with a path of its own lies elsewhere; it is compiled, or nothing is.
    let mut attributes = String::new();
    numbered(code).filter_map(move |(line, text)| {
        if text.trim_start().starts_with("#[") {
            attributes += text;
            return None;
        }
        let is_elsewhere = std::mem::take(&mut attributes).contains("#[path");
        let name = after_mod(text)?.strip_suffix(';')?;
        (!is_elsewhere).then_some((line, name))
    })
}

/// What follows `mod ` in a line that declares a module.
fn after_mod(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("pub").map_or(line, |rest| match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')').map_or(rest, |(_, rest)| rest.trim_start()),
        None => rest.trim_start(),
    });
    line.strip_prefix("mod ")
}

fn is_vague(name: &str) -> bool {
    name.split('_').any(|word| VAGUE.contains(&word))
}

fn is_code(text: &str) -> bool {
    text.split_once('.').is_some_and(|(step, rest)| {
        STEPS.contains(&step) && !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

/// The first path segment after each `crate::`, braces opened: `crate::{a::B, c}` gives `a` and `c`.
fn crate_uses(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, identifier(rest)));
            continue;
        };
        let (mut depth, mut first) = (0, true);
        for (offset, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                c if first && !c.is_whitespace() => {
                    found.push((line + group[..offset].matches('\n').count(), identifier(&group[offset..])));
                    first = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Rust text with comments and the insides of strings replaced by blanks, lines kept; and the strings with
/// their lines (escapes as written).
fn blank(text: &str) -> (String, Vec<(usize, String)>) {
    let mut code = String::with_capacity(text.len());
    let mut strings = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(c) = rest.chars().next() {
        let word_before = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (taken, string) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (block_comment(rest), None)
        } else if c == '"' {
            let taken = quoted(rest);
            (taken, Some(&rest[1..taken - 1]))
        } else if let Some((taken, inside)) = (!word_before).then(|| raw(rest)).flatten() {
            (taken, Some(inside))
        } else if c == '\'' && character(rest).is_some() {
            (character(rest).unwrap_or(1), None)
        } else {
            code.push(c);
            line += usize::from(c == '\n');
            rest = &rest[c.len_utf8()..];
            continue;
        };
        if let Some(string) = string {
            strings.push((line, string.to_owned()));
        }
        for c in rest[..taken].chars() {
            code.push(if c == '\n' { '\n' } else { ' ' });
            line += usize::from(c == '\n');
        }
        rest = &rest[taken..];
    }
    (code, strings)
}

/// The length of a block comment, comments inside it included.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal with its quotes.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    panic!("a string without an end: {}", &text.chars().take(40).collect::<String>());
}

/// The length and the inside of a raw string literal such as `r#"…"#` or `br"…"`.
fn raw(text: &str) -> Option<(usize, &str)> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].find('"')?;
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    let inside = text[open..].find(&close)?;
    Some((open + inside + close.len(), &text[open..open + inside]))
}

/// The length of a character literal; nothing for a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut inside = text.char_indices().skip(1);
    let (_, first) = inside.next()?;
    if first == '\\' {
        inside.next()?; // what is escaped, a quote perhaps
        return inside.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    inside.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}

#[test]
fn comments_and_strings_are_no_code() {
    fn check(text: &str, code: &str, strings: &[&str]) {
        let (found, literals) = blank(text);
        assert_eq!(found.split_whitespace().collect::<Vec<_>>().join(" "), code, "{text}");
        assert_eq!(literals.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), strings, "{text}");
        assert_eq!(found.lines().count(), text.lines().count(), "{text}");
    }
    check("a // b\nc", "a c", &[]);
    check("a /* b /* c */ d */ e", "a e", &[]);
    check(r#"a("b // \" c", d)"#, "a( , d)", &[r#"b // \" c"#]);
    check("a(r#\"b\"c\"#, br\"d\")", "a( , )", &["b\"c", "d"]);
    check(
        "fn f<'a>(c: &'a str) { c == '\"' || c == '\\'' || c == '\\u{22}' }",
        "fn f<'a>(c: &'a str) { c == || c == || c == }",
        &[],
    );
    check("var\"x\"", "var", &["x"]);
}

#[test]
fn uses_of_the_crate_are_found_in_groups_and_paths() {
    let code = "use crate::a::B;\nuse crate::{b::{C, D}, c,\n d::E};\nmy_crate::e::F; crate::f::g()";
    let found: Vec<(usize, String)> = crate_uses(code);
    let expected = [(1, "a"), (2, "b"), (2, "c"), (3, "d"), (4, "f")];
    assert_eq!(found, expected.map(|(line, name)| (line, name.to_owned())));
}

#[test]
fn declarations_of_modules_are_read() {
    let code = "#[path =  ]\n#[x]\nmod y;\n#[x]\npub mod a;\nmod b;\npub(crate) mod c;\nmod d {\n    mod e;\n}\nlet mode = 1;";
    let names: Vec<&str> = declared_modules(code).map(|(_, name)| name).collect();
    assert_eq!(names, ["a", "b", "c", "e"]);
}
