//! What may be written down of a value, and what only as a keyed digest.
//!
//! Secrets reach a configuration by mistake: a private key or an HMAC secret where a public key belongs, a password in
//! a URL. Each function takes a value in normal form and returns what records, diffs, warnings and errors may hold.
//! A sealed value is `{"secret": "hmac-sha256:…"}`: equal secrets stay recognisable, nothing else does.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::SectionKind;
use serde_json::{Value, json};

use crate::keys::Keys;

/// The keyed digest in place of the value.
pub(super) fn sealed(text: &str, keys: &Keys) -> Value {
    json!({ "secret": keys.fingerprint("secret", text.as_bytes()) })
}

/// Text is open, unless it holds a private key.
pub(super) fn text(text: &str, keys: &Keys) -> Value {
    if text.contains("PRIVATE KEY") { sealed(text, keys) } else { json!(text) }
}

/// A key is open only if it is nothing but PEM public keys or certificates.
pub(super) fn public_key(key: &str, keys: &Keys) -> Value {
    if is_public_pem(key) { json!(key) } else { sealed(key, keys) }
}

/// Userinfo, query values and the fragment of a URL become short keyed digests. Text that is no URL is sealed.
pub(super) fn url(text: &str, keys: &Keys) -> Value {
    if text.is_empty() {
        return json!("");
    }
    let Ok(mut url) = url::Url::parse(text) else { return sealed(text, keys) };
    let has_userinfo = !url.username().is_empty() || url.password().is_some();
    if !has_userinfo && url.query().is_none() && url.fragment().is_none() {
        return if url.has_host() { json!(text) } else { sealed(text, keys) };
    }
    let short = |value: &str| {
        let digest = keys.fingerprint("url", value.as_bytes());
        digest.as_str().chars().skip("hmac-sha256:".len()).take(12).collect::<String>()
    };
    if has_userinfo {
        let hidden = short(&format!("{}:{}", url.username(), url.password().unwrap_or_default()));
        if url.set_username(&format!("hmac.{hidden}")).is_err() || url.set_password(None).is_err() {
            return sealed(text, keys);
        }
    }
    if let Some(query) = url.query() {
        let hidden: Vec<_> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((name, value)) => format!("{name}=hmac.{}", short(value)),
                None => format!("hmac.{}", short(pair)),
            })
            .collect();
        url.set_query(Some(&hidden.join("&")));
    }
    if let Some(fragment) = url.fragment() {
        let hidden = format!("hmac.{}", short(fragment));
        url.set_fragment(Some(&hidden));
    }
    json!(url.as_str())
}

/// Whether a recorded URL is the one that was sent: nothing of it was hidden.
pub(super) fn is_whole_url(recorded: &str) -> bool {
    recorded.is_empty()
        || url::Url::parse(recorded).is_ok_and(|url| {
            url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        })
}

/// One or more PEM sections, each a certificate or a public key whose DER is whole, and nothing around them.
fn is_public_pem(text: &str) -> bool {
    let outside = text.split("-----BEGIN ").enumerate().all(|(index, part)| {
        if index == 0 {
            return part.trim().is_empty();
        }
        part.split_once("-----END ")
            .and_then(|(_, end)| end.split_once("-----"))
            .is_some_and(|(_, rest)| rest.trim().is_empty())
    });
    let mut sections = 0;
    let mut rest = text.as_bytes();
    while let Ok(Some((kind, der))) = next_section(&mut rest) {
        sections += 1;
        let whole = match kind {
            SectionKind::Certificate => is_certificate(der),
            SectionKind::PublicKey => is_public_key(&der),
            _ => false,
        };
        if !whole {
            return false;
        }
    }
    outside && sections > 0 && sections == text.matches("-----BEGIN ").count()
}

fn next_section(rest: &mut &[u8]) -> Result<Option<(SectionKind, Vec<u8>)>, rustls_pki_types::pem::Error> {
    rustls_pki_types::pem::from_buf(rest)
}

fn is_certificate(der: Vec<u8>) -> bool {
    rustls::RootCertStore::empty().add(CertificateDer::from(der)).is_ok()
}

/// `SEQUENCE { SEQUENCE { OID … } BIT STRING }`, each length exact (RFC 5280 section 4.1.2.7).
fn is_public_key(der: &[u8]) -> bool {
    let whole = element(der, 0x30).filter(|(_, after)| after.is_empty());
    let Some((algorithm, key)) = whole.and_then(|(inner, _)| element(inner, 0x30)) else { return false };
    element(algorithm, 0x06).is_some() && element(key, 0x03).is_some_and(|(_, after)| after.is_empty())
}

/// Contents of the DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) =
            rest.split_at_checked(usize::from(first & 0x7f)).filter(|(bytes, _)| bytes.len() <= 4)?;
        (bytes.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----\n";

    #[test]
    fn only_public_keys_and_certificates_are_open() {
        let keys = Keys::ephemeral();
        let certificate = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
        let both = format!("{PUBLIC}{certificate}");
        for open in [PUBLIC, &certificate, &both] {
            assert_eq!(public_key(open, &keys), json!(open));
        }
        let hidden_before = format!("hunter2\n{PUBLIC}");
        let hidden_after = format!("{PUBLIC}hunter2");
        let mixed = format!("{PUBLIC}{PRIVATE}");
        let fake = "-----BEGIN PUBLIC KEY-----\naHVudGVyMg==\n-----END PUBLIC KEY-----\n";
        for secret in ["hunter2", "", PRIVATE, &hidden_before, &hidden_after, &mixed, fake] {
            assert!(public_key(secret, &keys).get("secret").is_some(), "{secret}");
        }
    }

    #[test]
    fn urls_lose_what_may_be_secret() {
        let keys = Keys::ephemeral();
        assert_eq!(url("https://keys.example/jwks", &keys), json!("https://keys.example/jwks"));
        for text in [
            "https://user:hunter2@keys.example/jwks",
            "https://keys.example/jwks?token=hunter2",
            "https://keys.example/jwks?hunter2",
            "https://keys.example/jwks#hunter2",
            "https:user:hunter2@keys.example",
            "hunter2",
            "data:hunter2",
            "javascript:hunter2",
        ] {
            let shown = url(text, &keys).to_string();
            assert!(!shown.contains("hunter2"), "{text} -> {shown}");
        }
    }

    #[test]
    fn a_private_key_in_any_text_is_sealed() {
        assert!(text(PRIVATE, &Keys::ephemeral()).get("secret").is_some());
    }
}
