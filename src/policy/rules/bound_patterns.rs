//! `bound-patterns`: what binds a login begins as the organisation's names begin.
//!
//! Looks at the subject, the audiences and single claims, as far as the rule has prefixes for them. What counts is the
//! plain text before the first glob character: `repo:acme/*` begins with `repo:acme/`, `{repo:acme/a,**}` with nothing.
//! Lists are split as they are stored and as the login splits them; every piece must begin so.

use std::collections::BTreeMap;

use serde_json::json;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation, Wanted};
use crate::json::pointer;
use crate::operation::{Field, split_patterns};
use crate::policy::pattern;

const SUBJECT: &str = "boundSubject";
const AUDIENCES: &str = "boundAudiences";
const CLAIMS: &str = "boundClaims";

/// Prefixes by what they are for; empty where the rule does not look.
#[derive(Clone, Debug)]
pub(super) struct BoundPatterns {
    subject: Vec<String>,
    audiences: Vec<String>,
    claims: BTreeMap<String, Vec<String>>,
}

impl BoundPatterns {
    pub(super) fn read(params: &mut Params) -> Self {
        Self {
            subject: params.take("subject", Vec::new(), prefixes),
            audiences: params.take("audiences", Vec::new(), prefixes),
            claims: params.take("claims", BTreeMap::new(), |value| {
                let table = value.as_table().ok_or("must be a table like { team = [\"deploy-\"] }")?;
                table.iter().map(|(claim, value)| Ok((claim.clone(), prefixes(value)?))).collect()
            }),
        }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let text = |beginning: &String| format!("{beginning}x");
        let subjects = self.subject.iter().map(|one| Wanted::of(SUBJECT, text(one)));
        let audiences = self.audiences.iter().map(|one| Wanted::of(AUDIENCES, text(one)));
        let claims = self.claims.iter().flat_map(|(claim, beginnings)| {
            beginnings.iter().map(|one| Wanted { claim: claim.clone(), ..Wanted::of(CLAIMS, text(one)) })
        });
        subjects.chain(audiences).chain(claims).collect()
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let subject = self.one(sight, SUBJECT, &[SUBJECT], &self.subject, |text| vec![text.to_owned()]);
        let audiences = self.one(sight, AUDIENCES, &[AUDIENCES], &self.audiences, pieces);
        subject.into_iter().chain(audiences).chain(self.claims(sight)).collect()
    }

    fn one(
        &self,
        sight: &Sight<'_>,
        name: &'static str,
        concerns: &'static [&'static str],
        prefixes: &[String],
        split: impl Fn(&str) -> Vec<String>,
    ) -> Option<Violation> {
        if prefixes.is_empty() {
            return None;
        }
        match sight.text(name) {
            Err(unjudged) => Some(sight.unjudged(unjudged, concerns)),
            Ok(text) if all_begin(&split(text), prefixes) => None,
            Ok(_) => Some(violation(sight, name, concerns, "", prefixes)),
        }
    }

    fn claims(&self, sight: &Sight<'_>) -> Vec<Violation> {
        const CONCERNS: &[&str] = &[CLAIMS];
        if self.claims.is_empty() {
            return Vec::new();
        }
        let Ok((Field::Claims(bound), _)) = sight.field(CLAIMS) else {
            return vec![sight.unjudged(Unjudged(CLAIMS), CONCERNS)];
        };
        let begins = |claim: &String, prefixes: &[String]| {
            bound.get(claim).is_some_and(|text| all_begin(&pieces(text), prefixes))
        };
        let off = self.claims.iter().filter(|(claim, prefixes)| !begins(claim, prefixes));
        off.map(|(claim, prefixes)| violation(sight, CLAIMS, CONCERNS, claim, prefixes)).collect()
    }
}

fn pieces(list: &str) -> Vec<String> {
    split_patterns(list).into_iter().chain(list.split(", ").map(str::to_owned)).collect()
}

fn all_begin(pieces: &[String], prefixes: &[String]) -> bool {
    let begins = |piece: &String| {
        let plain = pattern::plain_head(piece);
        prefixes.iter().any(|prefix| plain.starts_with(prefix))
    };
    !pieces.is_empty() && pieces.iter().all(begins)
}

fn violation(
    sight: &Sight<'_>,
    name: &'static str,
    concerns: &'static [&'static str],
    claim: &str,
    prefixes: &[String],
) -> Violation {
    let below = if claim.is_empty() { String::new() } else { pointer(&[claim]) };
    let what = if claim.is_empty() { name.to_owned() } else { format!("the claim {claim}") };
    let expected = prefixes.join("` or `");
    Violation {
        below_request: below.clone(),
        below,
        limit: json!(prefixes),
        message: format!("{what} would not begin with `{expected}`"),
        help: format!("write a value that begins with `{expected}`{}", sight.terraform(&[name])),
        ..sight.violation(name, concerns)
    }
}

fn prefixes(value: &toml::Value) -> Result<Vec<String>, String> {
    let plain = |text: &str| (!text.is_empty() && pattern::plain_head(text) == text).then(|| text.to_owned());
    texts(value, "a beginning without glob characters", plain)
}
