//! `token-lifetime`: a login token must end, and soon.
//!
//! Looks at `accessTokenTTL` (how long a token lives) and `accessTokenMaxTTL` (how long it can be renewed). Both are
//! seconds; 0 means no limit upstream and is the longest of all. One violation per field, cured by its limit.

use serde_json::json;

use super::reading::Params;
use super::{Remedy, Sight, Unjudged, Violation, Wanted};
use crate::operation::Field;
use crate::units::{Span, lifetime_text};

const TTL: &str = "accessTokenTTL";
const MAX_TTL: &str = "accessTokenMaxTTL";

/// The longest of each, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenLifetime {
    ttl_secs: u64,
    max_ttl_secs: u64,
}

impl TokenLifetime {
    pub(super) fn read(params: &mut Params) -> Self {
        Self {
            ttl_secs: params.take("access_token_ttl", 86_400, bound),
            max_ttl_secs: params.take("access_token_max_ttl", 604_800, bound),
        }
    }

    pub(super) fn longest(self) -> u64 {
        self.ttl_secs
    }

    pub(super) fn wanted(self) -> Vec<Wanted> {
        vec![Wanted::of(TTL, self.ttl_secs), Wanted::of(MAX_TTL, self.max_ttl_secs)]
    }

    pub(super) fn check(self, sight: &Sight<'_>) -> Vec<Violation> {
        let ttl = check_one(sight, TTL, &[TTL], self.ttl_secs);
        let max_ttl = check_one(sight, MAX_TTL, &[MAX_TTL], self.max_ttl_secs);
        ttl.into_iter().chain(max_ttl).collect()
    }
}

fn check_one(
    sight: &Sight<'_>,
    name: &'static str,
    concerns: &'static [&'static str],
    limit: u64,
) -> Option<Violation> {
    let Ok((Field::Number(seconds), _)) = sight.field(name) else {
        let remedy = Some(Remedy::Send(json!(limit)));
        return Some(Violation { remedy, ..sight.unjudged(Unjudged(name), concerns) });
    };
    let seconds = *seconds;
    if (1..=limit).contains(&seconds) {
        return None;
    }
    let message = if seconds == 0 {
        format!("{name} would be 0, which is no limit; at most {limit} ({}) is allowed", lifetime_text(limit))
    } else {
        format!(
            "{name} would be {seconds} ({}), more than {limit} ({})",
            lifetime_text(seconds),
            lifetime_text(limit)
        )
    };
    Some(Violation {
        limit: json!(limit),
        message,
        help: format!("set {name} to 1 to {limit}{}", sight.terraform(&[name])),
        remedy: Some(Remedy::Send(json!(limit))),
        ..sight.violation(name, concerns)
    })
}

/// `{ at_most = "12h" }`
fn bound(value: &toml::Value) -> Result<u64, String> {
    const SHAPE: &str = "must be a table like { at_most = \"12h\" }";
    let table = value.as_table().ok_or(SHAPE)?;
    if let Some(unknown) = table.keys().find(|key| *key != "at_most") {
        return Err(format!("`{unknown}` is not known; known is: at_most"));
    }
    let text = table.get("at_most").and_then(toml::Value::as_str).ok_or(SHAPE)?;
    let span = Span::parse(text)?.0;
    match (span.as_secs(), span.subsec_nanos()) {
        (seconds @ 1..=315_360_000, 0) => Ok(seconds),
        _ => Err(format!("`{text}` must be whole seconds, at least 1s and at most 3650d")),
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::tests::{Scene, pointers};
    use serde_json::json;

    fn check(ttl: u64, max_ttl: u64, expected: &[&str]) {
        let denied = Scene::new("token-lifetime")
            .attach(&json!({"accessTokenTTL": ttl, "accessTokenMaxTTL": max_ttl}));
        assert_eq!(pointers(&denied), expected, "{ttl} {max_ttl}");
    }

    #[test]
    fn lifetimes_lie_between_one_second_and_the_limit() {
        let (ttl, max_ttl) = ("/accessTokenTTL", "/accessTokenMaxTTL");
        check(86_400, 604_800, &[]);
        check(1, 1, &[]);
        check(86_401, 604_800, &[ttl]);
        check(86_400, 604_801, &[max_ttl]);
        check(0, 604_800, &[ttl]);
        check(3600, 0, &[max_ttl]);
        check(0, 0, &[ttl, max_ttl]);
        check(315_360_000, 315_360_000, &[ttl, max_ttl]);
    }

    #[test]
    fn the_text_says_what_would_pass() {
        let denial = Scene::new("token-lifetime")
            .attach(&json!({"accessTokenTTL": 3600, "accessTokenMaxTTL": 2_592_000}));
        let found = &denial.violations[0];
        assert_eq!(found.message, "accessTokenMaxTTL would be 2592000 (30d), more than 604800 (7d)");
        assert_eq!(found.help, "set accessTokenMaxTTL to 1 to 604800 (Terraform: access_token_max_ttl)");
        assert_eq!((&found.value, &found.limit), (&json!(2_592_000), &json!(604_800)));
        assert_eq!(found.request_pointer.as_deref(), Some("/accessTokenMaxTTL"));
    }

    #[test]
    fn an_overlay_sets_the_limits() {
        let scene = Scene::new("token-lifetime").overlaid(
            "access_token_ttl = { at_most = \"12h\" }\naccess_token_max_ttl = { at_most = \"3d\" }",
        );
        assert_eq!(
            pointers(&scene.attach(&json!({"accessTokenTTL": 43_201, "accessTokenMaxTTL": 259_200}))),
            ["/accessTokenTTL"]
        );
    }
}
