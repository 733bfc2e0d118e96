//! The laws of `fuzz/src/laws.rs`, on every saved input and on generated ones.
//!
//! A saved input is a seed in `fuzz/seeds/<law>/` or what once broke a law, in `fuzz/regressions/<law>/`.

use std::fs;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::tidy::{files, root};

#[path = "../../fuzz/src/laws.rs"]
#[expect(unreachable_pub, reason = "public for the fuzz targets")]
mod law;

/// Runs a law on all its saved inputs.
fn saved(name: &str, holds: fn(&[u8])) {
    let seeds = files(&format!("fuzz/seeds/{name}"));
    assert!(!seeds.is_empty(), "there are no seeds for {name}");
    for file in seeds.into_iter().chain(files(&format!("fuzz/regressions/{name}"))) {
        let input = fs::read(root().join(&file)).unwrap();
        let held = std::panic::catch_unwind(|| holds(&input));
        assert!(held.is_ok(), "{file} breaks the law; the reason stands above");
    }
}

#[test]
fn there_is_no_way_around_for_any_saved_target() {
    saved("path", law::path);
}

#[test]
fn every_reader_agrees_on_any_saved_body() {
    saved("json", law::json);
}

#[test]
fn saved_ranges_are_what_the_upstream_stores() {
    saved("ranges", law::ranges);
}

#[test]
fn nothing_of_any_saved_token_is_recorded() {
    saved("claims", law::claims);
}

#[test]
fn any_saved_rule_file_loads_or_says_why_not() {
    saved("policy", law::policy);
    for file in files("policies/rules") {
        law::policy(&fs::read(root().join(file)).unwrap());
    }
}

#[test]
fn no_saved_text_proves_what_it_should_not() {
    saved("proof", law::proof);
}

#[test]
fn any_saved_change_leads_to_what_was_foretold() {
    saved("change", law::change);
}

/// Spellings of governed and watched paths: each part in one of many, sometimes another part beside or instead of it.
fn targets() -> impl Strategy<Value = String> {
    let id = law::IDENTITY;
    let ids = vec![
        id.to_owned(),
        id.to_uppercase(),
        id.replace('-', ""),
        format!("%7B{id}%7D"),
        format!("%20{id}%C2%A0"),
        format!("{id}%2F"),
    ];
    let paths = vec![
        "api/v1/auth/jwt-auth/identities",
        "api/v1/identities",
        "api/v1/projects/p1/identities",
        "api/v1/auth/aws-auth/identities",
    ];
    let strays = ". .. %2e %2E%2e x %2F %3B %5C a%2Fb a;b login tokens api".split(' ').chain([""]);
    let strays = select(strays.map(str::to_owned).collect::<Vec<_>>());
    let spelling =
        prop_oneof![20 => Just("plain"), 2 => Just("encoded"), 1 => Just("twice"), 1 => Just("capitals")];
    let before = prop_oneof![6 => Just(""), 1 => select(vec!["http://h", "https://u@h:1", "http://h?x", "http://h#x", "/"])];
    let after = prop_oneof![4 => Just(""), 3 => select(vec!["/", "//", ";x", ";/x", "?a=b", "#x", "?x/api", "%zz", "/.", "\\"])];
    let edits = prop::collection::vec((select(vec![3, 3, 3, 0, 1, 2, 4, 5]), strays, any::<bool>()), 0..2);
    let spellings = prop::collection::vec((spelling, any::<prop::sample::Index>()), 8);
    (before, select(paths), select(ids), spellings, edits, after).prop_map(
        |(before, path, id, spellings, edits, after)| {
            let parts = path.split('/').map(str::to_owned).chain([id]);
            let mut parts: Vec<_> =
                parts.zip(spellings).map(|(part, (how, at))| spelled(&part, how, at)).collect();
            for (at, stray, is_more) in edits {
                let at = at.min(parts.len() - 1);
                if is_more { parts.insert(at, stray) } else { parts[at] = stray }
            }
            format!("{before}/{}{after}", parts.join("/"))
        },
    )
}

/// As it is, with one character encoded once or twice, or in capitals.
fn spelled(part: &str, how: &str, at: prop::sample::Index) -> String {
    let at = at.index(part.len());
    let (percent, byte) = (if how == "twice" { "%25" } else { "%" }, part.as_bytes()[at]);
    match how {
        "plain" => part.to_owned(),
        "capitals" => part.to_uppercase(),
        _ if byte == b'%' => part.to_owned(),
        _ => format!("{}{percent}{byte:02x}{}", &part[..at], &part[at + 1..]),
    }
}

/// JSON as people and libraries write it, keys sometimes twice.
fn texts() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<f64>().prop_map(|number| format!("{number:e}")),
        any::<i64>().prop_map(|number| number.to_string()),
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?",
    ];
    let string = prop_oneof![
        any::<String>().prop_map(|text| json!(text).to_string()),
        "\"([a-zé€😀 ]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][0-9a-fA-F]|\\\\ud83d\\\\ude0[0-9]){0,8}\"",
    ];
    let key =
        prop_oneof![string.clone(), select(vec!["\"a\"", "\"b\"", "\"\\u0061\""]).prop_map(str::to_owned)];
    let leaf = prop_oneof![
        number,
        string,
        select(vec!["null", "true", " false\n", "[]", "{ }"]).prop_map(str::to_owned),
    ];
    let value = leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" ,"))),
            object(key.clone(), inner),
        ]
    });
    object("\"[a-d]\"", value)
}

fn object(
    key: impl Strategy<Value = String>,
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    prop::collection::vec((key, value), 0..4).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}:\t{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

/// Some members of a JWT auth configuration, those that it needs included.
pub(crate) fn members() -> impl Strategy<Value = Map<String, Value>> {
    let text = || prop_oneof![any::<String>(), "[ a,{}\\\\*\u{feff}\u{85}]{0,8}"].prop_map(Value::from);
    let number = || select(vec![0u64, 1, 60, 3600, 7200, 2_592_000, 315_360_000]).prop_map(Value::from);
    let url =
        select(vec!["https://idp.example/jwks", " ftp://x ", "http://10.0.0.1/", "https://u:p@h/", "no url"]);
    let url = prop_oneof![4 => Just("https://idp.example/jwks"), 1 => url].prop_map(Value::from);
    let address = prop_oneof![
        (any::<std::net::IpAddr>(), 0..=128u8).prop_map(|(address, prefix)| format!("{address}/{prefix}")),
        any::<std::net::IpAddr>().prop_map(|address| format!(" {address}\u{a0}")),
        select(vec!["10.0.0.0/0x8", "::%0/0", "0.0.0.0/ 0", "x"]).prop_map(str::to_owned),
    ];
    let ranges = prop::collection::vec(address.prop_map(|text| json!({"ipAddress": text})), 1..4);
    let keys = prop::collection::vec("[ak,]{1,4}", 1..4).prop_map(Value::from);
    let claims = prop::collection::btree_map("[a-c/~]{0,2}", text(), 0..3);
    let claims = claims.prop_map(|claims| Value::Object(claims.into_iter().collect()));
    let optional: Vec<(&str, BoxedStrategy<Value>)> = vec![
        ("jwksCaCert", text().boxed()),
        ("boundIssuer", text().boxed()),
        ("boundAudiences", text().boxed()),
        ("boundSubject", text().boxed()),
        ("accessTokenTTL", number().boxed()),
        ("accessTokenMaxTTL", number().boxed()),
        ("accessTokenNumUsesLimit", number().boxed()),
        ("accessTokenTrustedIps", ranges.prop_map(Value::from).boxed()),
    ];
    let optional: Vec<_> = optional
        .into_iter()
        .map(|(name, value)| prop::option::of(value.prop_map(move |value| (name.to_owned(), value))))
        .collect();
    let needed = (select(vec!["jwks", "static"]), url, keys, claims);
    (needed, optional).prop_map(|((kind, url, keys, claims), optional)| {
        let needed = json!({
            "configurationType": kind, "jwksUrl": url, "publicKeys": keys, "boundClaims": claims
        });
        needed.as_object().unwrap().clone().into_iter().chain(optional.into_iter().flatten()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_path_is_governed_is_the_one_canonical_spelling(target in targets()) {
        law::path(target.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_judged_document_is_what_every_reader_reads(text in texts()) {
        law::json(text.as_bytes());
    }

    #[test]
    fn a_range_is_what_the_upstream_stores(
        address: std::net::IpAddr,
        rest in "(/(0|[1-9][0-9]{0,2}|0x8|08| 8|8abc|-0)){0,2}",
    ) {
        law::range(&format!("{address}{rest}"));
    }

    #[test]
    fn a_union_agrees_with_the_bits_and_with_an_aggregate(
        nets in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 0..8),
    ) {
        let nets: Vec<_> = nets.into_iter().map(|(place, last, prefix)| law::Net::near(place, last, prefix)).collect();
        law::union(&nets);
    }

    #[test]
    fn no_token_is_recorded(claims in texts(), token in "[!-~]{0,60}") {
        law::claims(claims.as_bytes());
        law::claims(token.as_bytes());
    }

    #[test]
    fn the_effect_foretold_is_what_is_read_afterwards(
        before in prop::option::weighted(0.8, members()),
        change in members(),
        left_out in prop::sample::subsequence(vec!["jwksUrl", "publicKeys", "boundClaims"], 0..=2),
    ) {
        let mut change = change;
        change.retain(|name, _| !left_out.contains(&name.as_str()));
        law::effect(before.map(Value::Object).as_ref(), Value::Object(change).to_string().as_bytes());
    }
}
