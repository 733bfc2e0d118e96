//! The certificate a client has shown.
//!
//! The handshake has verified it; here it is only named, for the record: its subject as text, bounded and without
//! control characters, and its fingerprint, which is what it is really known by.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::id::Digest;
use crate::upstream::client_address::Certificate;

/// The longest subject that is recorded, in characters.
const MAX_SUBJECT: usize = 256;

/// Names it.
pub(super) fn of(der: &CertificateDer<'_>) -> Arc<Certificate> {
    let subject = X509Certificate::from_der(der).map(|(_, read)| read.subject().to_string());
    let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_SUBJECT).collect();
    Arc::new(Certificate { subject: subject.map(plain).unwrap_or_default(), sha256: Digest::sha256(&[der]) })
}
