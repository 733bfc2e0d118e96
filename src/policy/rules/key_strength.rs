//! `key-strength`: public keys that are written down are strong enough.
//!
//! Looks at `publicKeys` under `static`. Each must be a PEM public key or certificate with an RSA key of enough bits, or
//! a key on one of the curves that are allowed. What is no such PEM is a violation: the upstream takes any text, and uses
//! it as a shared secret.

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::reading::{Params, texts};
use super::{Sight, Unjudged, Violation};
use crate::operation::Field;

const KEYS: &str = "publicKeys";
const CONCERNS: &[&str] = &[KEYS, "configurationType"];

/// Curves by the name that rule files use and their object identifier.
const CURVES: [(&str, &str); 4] = [
    ("P-256", "1.2.840.10045.3.1.7"),
    ("P-384", "1.3.132.0.34"),
    ("P-521", "1.3.132.0.35"),
    ("Ed25519", "1.3.101.112"),
];

/// What is strong enough.
#[derive(Clone, Debug)]
pub(super) struct KeyStrength {
    rsa_bits: u64,
    curves: Vec<String>,
}

impl KeyStrength {
    pub(super) fn read(params: &mut Params) -> Self {
        let known = |text: &str| CURVES.iter().any(|(name, _)| *name == text).then(|| text.to_owned());
        let all = CURVES.map(|(name, _)| name.to_owned()).to_vec();
        Self {
            rsa_bits: params.take("rsa_bits", 2048, |value| {
                let bits = value.as_integer().and_then(|bits| u64::try_from(bits).ok());
                bits.filter(|bits| (1024..=16_384).contains(bits))
                    .ok_or_else(|| format!("{value} must be a number of bits, 1024 to 16384"))
            }),
            curves: params.take("curves", all, |value| texts(value, "P-256, P-384, P-521 or Ed25519", known)),
        }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let unjudged = |unjudged: Unjudged| vec![sight.unjudged(unjudged, CONCERNS)];
        let found = match sight.text("configurationType") {
            Ok("static") => sight.field(KEYS),
            Ok(_) => return Vec::new(),
            Err(error) => return unjudged(error),
        };
        let Ok((Field::Keys(keys), _)) = found else { return unjudged(Unjudged(KEYS)) };
        let weak = keys.iter().enumerate().filter_map(|(at, key)| Some((at, self.weakness(key)?)));
        weak.map(|(at, weakness)| self.violation(sight, at, &weakness)).collect()
    }

    /// What is wrong with a key, if anything.
    fn weakness(&self, pem: &str) -> Option<String> {
        let Some(der) = public_key(pem) else {
            return Some("is no PEM public key or certificate".to_owned());
        };
        let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&der) else {
            return Some("is a public key that cannot be read".to_owned());
        };
        if let Ok(PublicKey::RSA(rsa)) = key.parsed() {
            let bits = rsa.key_size() as u64;
            return (bits < self.rsa_bits).then(|| format!("is an RSA key of {bits} bits"));
        }
        // The curve stands in the parameters, or for Ed25519 in the algorithm itself.
        let parameters = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let oid = parameters.unwrap_or_else(|| key.algorithm.algorithm.clone()).to_id_string();
        let name = CURVES.iter().find(|(_, known)| *known == oid).map(|(name, _)| *name);
        match name {
            Some(name) if self.curves.iter().any(|curve| curve == name) => None,
            Some(name) => Some(format!("is a key on {name}")),
            None => Some("is a key of a kind that is not known".to_owned()),
        }
    }

    fn violation(&self, sight: &Sight<'_>, index: usize, weakness: &str) -> Violation {
        let (bits, curves) = (self.rsa_bits, self.curves.join(", "));
        Violation {
            below: format!("/{index}"),
            below_request: format!("/{index}"),
            limit: json!({"rsa_bits": bits, "curves": self.curves}),
            message: format!("entry {index} of {KEYS} {weakness}"),
            help: format!(
                "use an RSA key of at least {bits} bits, or a key on {curves}{}",
                sight.terraform(&[KEYS])
            ),
            ..sight.violation(KEYS, CONCERNS)
        }
    }
}

/// The DER of the public key in a PEM text.
fn public_key(pem: &str) -> Option<Vec<u8>> {
    if let Ok(key) = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()) {
        return Some(key.to_vec());
    }
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&certificate).ok()?;
    Some(certificate.public_key().raw.to_vec())
}
