//! `require-ca-pin`: the key set's host is believed by a named authority only.
//!
//! Under `jwks`, `jwksCaCert` must hold at least one PEM certificate. Without one the upstream trusts whoever its
//! system trusts, or in some versions anybody.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use super::{Sight, Unjudged, Violation, Wanted};

const PIN: &str = "jwksCaCert";
const CONCERNS: &[&str] = &[PIN];

pub(super) fn wanted() -> Vec<Wanted> {
    vec![Wanted::of(PIN, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
}

pub(super) fn check(sight: &Sight<'_>) -> Vec<Violation> {
    let found = judge(sight).unwrap_or_else(|unjudged| Some(sight.unjudged(unjudged, CONCERNS)));
    found.into_iter().collect()
}

fn judge(sight: &Sight<'_>) -> Result<Option<Violation>, Unjudged> {
    let is_needed = sight.text("configurationType")? == "jwks";
    let pem = sight.text(PIN)?;
    let is_pinned = CertificateDer::pem_slice_iter(pem.as_bytes()).any(|found| found.is_ok());
    Ok((is_needed && !is_pinned).then(|| Violation {
        limit: json!("a PEM certificate"),
        message: format!("{PIN} would pin no certificate authority for the key set"),
        help: format!(
            "put the authority's certificate in PEM into {PIN}, also when it is there already{}",
            sight.terraform(&[PIN])
        ),
        ..sight.violation(PIN, CONCERNS)
    }))
}
