//! The certificate a client has shown.
//!
//! The handshake has verified it; here it is only named, for the record: its subject as RFC 4514 writes it, so that no
//! value can pass for two, bounded and without control characters; and its fingerprint, which is what it is really
//! known by. A certificate without a subject, as workloads have them, is named by its alternative names.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::ToDer as _;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer as _, X509Certificate};

use crate::id::Digest;
use crate::upstream::client_address::Certificate;

/// The longest subject that is recorded, in characters.
const MAX_SUBJECT: usize = 256;

/// Names it.
pub(super) fn of(der: &CertificateDer<'_>) -> Arc<Certificate> {
    let name = X509Certificate::from_der(der).map(|(_, read)| name(&read)).unwrap_or_default();
    let subject = name.chars().take(MAX_SUBJECT).collect();
    Arc::new(Certificate { subject, sha256: Digest::sha256(&[der]) })
}

fn name(certificate: &X509Certificate<'_>) -> String {
    let together = |rdn: &x509_parser::x509::RelativeDistinguishedName<'_>| {
        rdn.iter().map(attribute).collect::<Vec<_>>().join("+")
    };
    let mut parts: Vec<_> = certificate.subject().iter_rdn().map(together).collect();
    // The last comes first (RFC 4514, 2.1).
    parts.reverse();
    if parts.is_empty()
        && let Ok(Some(names)) = certificate.subject_alternative_name()
    {
        parts = names.value.general_names.iter().filter_map(alternative).collect();
    }
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let kind = oid2abbrev(kind, oid_registry()).map_or_else(|_| kind.to_id_string(), str::to_owned);
    match attribute.as_str() {
        Ok(text) => format!("{kind}={}", escaped(text)),
        Err(_) => {
            let whole = attribute.attr_value().to_der_vec().unwrap_or_default();
            format!("{kind}=#{}", hex::encode(whole))
        }
    }
}

fn alternative(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(text) => Some(format!("URI={}", escaped(text))),
        GeneralName::DNSName(text) => Some(format!("DNS={}", escaped(text))),
        GeneralName::RFC822Name(text) => Some(format!("email={}", escaped(text))),
        _ => None,
    }
}

/// A value by RFC 4514, 2.4; control characters are left out first, so that they hide nothing that has to be escaped.
fn escaped(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        let special = matches!(c, '"' | '+' | ',' | ';' | '<' | '>' | '=' | '\\');
        if special || (c == '#' && at == 0) || (c == ' ' && (at == 0 || at == last)) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    fn named(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).subject.clone()
    }

    fn common(name: &str) -> String {
        named(|params| params.distinguished_name.push(DnType::CommonName, name))
    }

    #[test]
    fn a_value_cannot_pass_for_two() {
        assert_eq!(common("deployer"), "CN=deployer");
        assert_eq!(common("deployer,O=Admins"), "CN=deployer\\,O\\=Admins");
        assert_eq!(common(" #a+b\\ "), "CN=\\ #a\\+b\\\\\\ ");
        assert_eq!(common("#a"), "CN=\\#a");
        assert_eq!(common("a\u{7}b\nc"), "CN=abc");
        assert_eq!(common("\u{7}#6162"), "CN=\\#6162");
        assert_eq!(common(&"x".repeat(1000)).len(), MAX_SUBJECT);
        let two = named(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Example");
            params.distinguished_name.push(DnType::CommonName, "deployer");
        });
        assert_eq!(two, "CN=deployer,O=Example");
    }

    #[test]
    fn without_a_subject_its_alternative_names_are_told() {
        let told = named(|params| {
            params.subject_alt_names = vec![
                SanType::URI("spiffe://example.org/ci".try_into().unwrap()),
                SanType::DnsName("ci.example.org".try_into().unwrap()),
                SanType::Rfc822Name("ci@example.org".try_into().unwrap()),
            ];
        });
        assert_eq!(told, "URI=spiffe://example.org/ci,DNS=ci.example.org,email=ci@example.org");
        assert_eq!(named(|_| {}), "");
    }
}
