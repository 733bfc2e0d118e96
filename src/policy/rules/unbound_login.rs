//! `unbound-login`: a login by key set must be bound to somebody.
//!
//! Under `jwks` at least one of subject, claims and audience must bind (see `pattern`). The issuer never counts: it is
//! the same for everybody who uses it. At an issuer shared by many customers the audience does not count either, as
//! whoever asks for a token chooses it; neither does a claim `aud`. A missing issuer is as shared as the key set's host.

use std::collections::BTreeMap;

use serde_json::json;

use super::reading::Params;
use super::{Sight, Unjudged, Violation};
use crate::operation::Field;
use crate::policy::pattern;

const SUBJECT: &str = "boundSubject";
const CLAIMS: &str = "boundClaims";
const AUDIENCES: &str = "boundAudiences";
const CONCERNS: &[&str] = &[SUBJECT, CLAIMS, AUDIENCES];

/// Claims that say nothing about who logs in.
const EMPTY_CLAIMS: [&str; 5] = ["iss", "iat", "exp", "nbf", "jti"];

/// Issuers that many customers share, in lower case without a slash at the end.
#[derive(Clone, Debug)]
pub(super) struct UnboundLogin {
    shared_issuers: Vec<String>,
    /// Their hosts, for a key set that has no issuer.
    shared_hosts: Vec<String>,
}

impl UnboundLogin {
    pub(super) fn read(params: &mut Params) -> Self {
        let shared_issuers = params.take("shared_issuers", Vec::new(), issuers);
        let shared_hosts = shared_issuers.iter().filter_map(|issuer| host(issuer)).collect();
        Self { shared_issuers, shared_hosts }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let found = self.judge(sight).unwrap_or_else(|unjudged| Some(sight.unjudged(unjudged, CONCERNS)));
        found.into_iter().collect()
    }

    fn judge(&self, sight: &Sight<'_>) -> Result<Option<Violation>, Unjudged> {
        if sight.text("configurationType")? != "jwks" {
            return Ok(None);
        }
        let is_shared = self.is_shared(sight.text("boundIssuer")?, sight.text("jwksUrl")?);
        let claims = match sight.field(CLAIMS)? {
            (Field::Claims(claims), _) => claims,
            _ => return Err(Unjudged(CLAIMS)),
        };
        // The login splits audiences and claims at commas, the subject it does not.
        let is_bound = pattern::binds(sight.text(SUBJECT)?)
            || claims_bind(claims, is_shared)
            || (pattern::list_binds(sight.text(AUDIENCES)?) && !is_shared);
        Ok((!is_bound).then(|| violation(sight, is_shared)))
    }

    fn is_shared(&self, issuer: &str, jwks_url: &str) -> bool {
        if issuer.is_empty() {
            return host(jwks_url).is_some_and(|host| self.shared_hosts.contains(&host));
        }
        let issuer = issuer.to_ascii_lowercase();
        self.shared_issuers.iter().any(|shared| {
            issuer.strip_prefix(shared.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn claims_bind(claims: &BTreeMap<String, String>, is_shared: bool) -> bool {
    claims.iter().any(|(claim, list)| {
        let is_empty = EMPTY_CLAIMS.contains(&claim.as_str()) || (is_shared && claim == "aud");
        !is_empty && pattern::list_binds(list)
    })
}

fn violation(sight: &Sight<'_>, is_shared: bool) -> Violation {
    let (message, fields) = if is_shared {
        (
            "neither subject nor claims bind the login, and at a shared issuer anyone can choose the audience",
            &CONCERNS[..2],
        )
    } else {
        (
            "none of subject, claims and audience binds the login, so any token of this issuer would do",
            CONCERNS,
        )
    };
    Violation {
        grade: u8::from(is_shared),
        limit: json!(fields),
        message: message.to_owned(),
        help: format!(
            "set {} to a value, or to a pattern with at least {} literal characters and no !, \\ or ( ){}",
            fields.join(" or "),
            pattern::MIN_LITERALS,
            sight.terraform(fields)
        ),
        ..sight.violation(SUBJECT, CONCERNS)
    }
}

fn host(url: &str) -> Option<String> {
    // `gitlab.com.` is the same host, written as a full name.
    let url = url::Url::parse(url).ok()?;
    Some(url.host_str()?.trim_end_matches('.').to_ascii_lowercase())
}

fn issuers(value: &toml::Value) -> Result<Vec<String>, String> {
    let items = value.as_array().ok_or("must be a list of issuer URLs")?;
    let read = |item: &toml::Value| {
        let text = item.as_str().filter(|text| host(text).is_some());
        let text =
            text.ok_or_else(|| format!("{item} is not an issuer's URL, like \"https://gitlab.com\""))?;
        Ok(text.trim_end_matches('/').to_ascii_lowercase())
    };
    items.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use crate::policy::tests::{Scene, pointers};
    use serde_json::{Value, json};

    const GITHUB: &str = "https://token.actions.githubusercontent.com";

    fn check(fields: &Value, bound: bool) {
        let mut body = json!({"boundIssuer": "https://idp.example", "boundSubject": "", "boundClaims": {}, "boundAudiences": ""});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let denial = Scene::new("unbound-login").attach(&body);
        assert_eq!(pointers(&denial).is_empty(), bound, "{fields}");
    }

    #[test]
    fn one_of_subject_claims_and_audience_must_bind() {
        check(&json!({}), false);
        check(&json!({"boundSubject": "alice"}), true);
        check(&json!({"boundSubject": "repo:org/*"}), true);
        check(&json!({"boundSubject": "a, b"}), true);
        check(&json!({"boundAudiences": "alice, *"}), false);
        check(&json!({"boundAudiences": "https://us.example"}), true);
        check(&json!({"boundClaims": {"team": "core"}}), true);
        check(&json!({"boundClaims": {"team": "core", "role": "**"}}), true);
        check(&json!({"boundClaims": {"team": ""}}), false);
    }

    #[test]
    fn what_only_looks_like_a_bound_does_not_count() {
        for pattern in ["!x", "!", "{*,**}", "!(x)/**", "+(*)/**", "**", "**/*", "*", "{a, **, b}"] {
            check(&json!({"boundSubject": pattern}), false);
            check(&json!({"boundAudiences": pattern}), false);
            check(&json!({"boundClaims": {"team": pattern}}), false);
        }
        for claim in ["iss", "iat", "exp", "nbf", "jti"] {
            check(&json!({"boundClaims": {claim: "https://idp.example"}}), false);
        }
    }

    #[test]
    fn at_a_shared_issuer_the_audience_does_not_count() {
        for (issuer, url, shared) in [
            (GITHUB, "https://token.actions.githubusercontent.com/.well-known/jwks", true),
            ("https://token.actions.githubusercontent.com/", "https://keys.example", true),
            ("https://gitlab.com", "https://gitlab.com/oauth/discovery/keys", true),
            ("", "https://www.googleapis.com/oauth2/v3/certs", true),
            ("", "https://keys.example/jwks", false),
            ("https://gitlab.com.example", "https://keys.example/jwks", false),
        ] {
            let mine = "https://us.example";
            let body = json!({"boundIssuer": issuer, "jwksUrl": url, "boundAudiences": mine, "boundClaims": {"aud": mine}});
            check(&body, !shared);
            check(&json!({"boundIssuer": issuer, "jwksUrl": url, "boundSubject": "repo:org/app:*"}), true);
        }
    }

    #[test]
    fn static_keys_need_no_bound() {
        check(&json!({"configurationType": "static", "publicKeys": ["key"]}), true);
    }

    #[test]
    fn a_stored_gap_that_moves_to_a_shared_issuer_is_worse() {
        let scene = Scene::new("unbound-login")
            .stored(&json!({"boundIssuer": "https://idp.example", "boundSubject": ""}));
        assert!(pointers(&scene.change(&json!({"accessTokenTTL": 60}))).is_empty());
        assert_eq!(pointers(&scene.change(&json!({"boundIssuer": GITHUB}))), ["/boundSubject"]);
        assert_eq!(pointers(&scene.change(&json!({"boundSubject": ""}))), ["/boundSubject"]);
    }
}
