//! Whatever stands in a rule file, loading it ends in rules that judge or in errors that name the file.

use std::fs;

use patchwarden::bundle::{Bundle, Overlays};
use patchwarden::policy::{Mode, Settings};
use serde_json::json;

use super::change::judged;

const FILE: &str = "fuzzed.toml";

/// Any bytes as a rule file.
pub fn policy(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("rules")).expect("a folder");
    fs::write(folder.path().join("rules").join(FILE), bytes).expect("a file");
    let settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };
    match Bundle::load(Some(folder.path()), &Overlays::default(), settings) {
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(error.to_string().contains(FILE), "{error} does not name the file");
            }
        }
        Ok(bundle) => {
            let before = json!({"jwksUrl": "https://idp.example/jwks", "publicKeys": ["k"], "boundClaims": {"c": "v"}});
            let body = json!({
                "configurationType": "static", "publicKeys": ["k", "l"], "boundClaims": {"c": "{a,**}"},
                "boundAudiences": "a, *", "accessTokenTTL": 0, "accessTokenNumUsesLimit": 3,
                "accessTokenTrustedIps": [{"ipAddress": "0.0.0.0/1"}, {"ipAddress": "1.2.3.4/0x8"}]
            });
            for before in [Some(&before), None] {
                // Any verdict will do.
                let judged = judged(&bundle, before, body.to_string().as_bytes());
                assert!(judged.is_some(), "the body fits the schema");
            }
        }
    }
}
