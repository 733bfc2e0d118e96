//! `insecure-jwks`: keys must not be fetched over a wire that anyone can write on.
//!
//! Looks at `jwksUrl`: under `jwks` it must be an https URL with a host, under `static` it may also be empty. Plain
//! http is cured by https, unless the URL holds something that would have to be hidden.

use serde_json::json;

use super::{Remedy, Sight, Unjudged, Violation};
use crate::operation::Field;

const URL: &str = "jwksUrl";
const CONCERNS: &[&str] = &[URL];

pub(super) fn check(sight: &Sight<'_>) -> Vec<Violation> {
    let found = judge(sight).unwrap_or_else(|unjudged| Some(sight.unjudged(unjudged, CONCERNS)));
    found.into_iter().collect()
}

fn judge(sight: &Sight<'_>) -> Result<Option<Violation>, Unjudged> {
    let text = sight.text(URL)?;
    let is_unused = text.is_empty() && sight.text("configurationType")? != "jwks";
    let is_https = url::Url::parse(text).is_ok_and(|url| url.scheme() == "https" && url.has_host());
    if is_unused || is_https {
        return Ok(None);
    }
    Ok(Some(Violation {
        limit: json!("https"),
        message: format!("{URL} would not be an https URL, so whoever is on the wire could choose the keys"),
        help: format!("use an https URL{}", sight.terraform(&[URL])),
        remedy: secured(sight, text),
        ..sight.violation(URL, CONCERNS)
    }))
}

fn secured(sight: &Sight<'_>, text: &str) -> Option<Remedy> {
    let (scheme, rest) = text.split_once("://")?;
    let spec = sight.object.fields.get(URL)?;
    let https = Field::Text(format!("https://{rest}"));
    if scheme.eq_ignore_ascii_case("http") { sight.sendable(&https, spec) } else { None }
}

#[cfg(test)]
mod tests {
    use crate::policy::tests::{Scene, pointers};
    use serde_json::json;

    fn check(url: &str, expected: &[&str]) {
        assert_eq!(
            pointers(&Scene::new("insecure-jwks").attach(&json!({"jwksUrl": url}))),
            expected,
            "{url}"
        );
    }

    #[test]
    fn only_https_with_a_host_passes() {
        check("https://keys.example/jwks", &[]);
        check("HTTPS://keys.example/jwks", &[]);
        for url in
            ["http://keys.example/jwks", "ftp://keys.example", "javascript:alert(1)", "keys.example", ""]
        {
            check(url, &["/jwksUrl"]);
        }
    }

    #[test]
    fn static_keys_need_no_url() {
        let scene = Scene::new("insecure-jwks");
        let request = |url: &str| json!({"configurationType": "static", "publicKeys": ["k"], "jwksUrl": url});
        assert!(pointers(&scene.attach(&request(""))).is_empty());
        assert_eq!(pointers(&scene.attach(&request("http://keys.example"))), ["/jwksUrl"]);
    }

    #[test]
    fn the_fix_is_https_unless_the_url_holds_a_secret() {
        let fix = |url: &str| Scene::new("insecure-jwks").attach(&json!({"jwksUrl": url})).fix;
        let expected = json!([{"op": "replace", "path": "/jwksUrl", "value": "https://keys.example/jwks"}]);
        assert_eq!(fix("http://keys.example/jwks"), Some(expected));
        assert_eq!(fix("http://keys.example/jwks?token=hunter2"), None);
        let denial =
            Scene::new("insecure-jwks").attach(&json!({"jwksUrl": "http://u:hunter2@keys.example/jwks"}));
        assert!(!format!("{denial:?}").contains("hunter2"));
    }
}
