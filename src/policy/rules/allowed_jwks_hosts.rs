//! `allowed-jwks-hosts`: keys are fetched from the organisation's hosts only.
//!
//! Looks at the host of `jwksUrl`, in any spelling of case and with or without the final dot. `*.example.com` is every
//! host below `example.com`, not `example.com` itself. Under `static` an empty URL passes.

use serde_json::json;
use url::Url;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation, Wanted};

const URL: &str = "jwksUrl";
const CONCERNS: &[&str] = &[URL];

/// Hosts in lower case.
#[derive(Clone, Debug)]
pub(super) struct AllowedJwksHosts {
    hosts: Vec<String>,
}

impl AllowedJwksHosts {
    pub(super) fn read(params: &mut Params) -> Self {
        let host = |text: &str| {
            let name = text.strip_prefix("*.").unwrap_or(text);
            let is_host = Url::parse(&format!("https://{name}/"))
                .is_ok_and(|url| url.host_str() == Some(name) && url.path() == "/");
            is_host.then(|| text.to_owned())
        };
        Self {
            hosts: params.need("hosts", Vec::new(), |value| {
                texts(value, "a host in lower case, or *. and a host", host)
            }),
        }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let host =
            |host: &String| host.strip_prefix("*.").map_or(host.clone(), |rest| format!("keys.{rest}"));
        self.hosts.iter().map(|one| Wanted::of(URL, format!("https://{}/jwks", host(one)))).collect()
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let found = self.judge(sight).unwrap_or_else(|unjudged| Some(sight.unjudged(unjudged, CONCERNS)));
        found.into_iter().collect()
    }

    fn judge(&self, sight: &Sight<'_>) -> Result<Option<Violation>, Unjudged> {
        let text = sight.text(URL)?;
        let is_unused = text.is_empty() && sight.text("configurationType")? != "jwks";
        let host = Url::parse(text).ok().and_then(|url| url.host_str().map(str::to_ascii_lowercase));
        let is_allowed = host.is_some_and(|host| self.allow(host.trim_end_matches('.')));
        Ok((!is_unused && !is_allowed).then(|| Violation {
            limit: json!(self.hosts),
            message: format!("{URL} would be on a host that is not allowed"),
            help: format!("use a key set on {}{}", self.hosts.join(" or "), sight.terraform(&[URL])),
            ..sight.violation(URL, CONCERNS)
        }))
    }

    fn allow(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(below) => host.len() > below.len() && host.ends_with(below),
            None => host == allowed,
        })
    }
}
