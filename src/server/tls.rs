//! TLS of a port of ours.
//!
//! Reads the certificate chain, the key and, if clients must show one, the roots of their certificates. Everything
//! that could only fail later (a key of another certificate, an empty file) is an error here that names the key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;

/// `[tls]` of the configuration; `[admin]` has the first two as well.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The certificate and its chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Roots of the certificates that clients must show, PEM.
    pub client_ca_file: Option<PathBuf>,
}

impl TlsSettings {
    /// What accepts TLS, or nothing when it is not configured. `section` is where the keys stand: `tls`, `admin`.
    pub fn acceptor(&self, section: &str) -> Result<Option<TlsAcceptor>, String> {
        let (certificate, key) = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) if self.client_ca_file.is_none() => return Ok(None),
            (None, None) => {
                return Err(format!(
                    "{section}.client_ca_file is set without {section}.cert_file and {section}.key_file; set all three"
                ));
            }
            (Some(_), None) => {
                return Err(format!("{section}.cert_file is set without {section}.key_file; set both"));
            }
            (None, Some(_)) => {
                return Err(format!("{section}.key_file is set without {section}.cert_file; set both"));
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates(certificate, &format!("{section}.cert_file"))?;
        let key_name = format!("{section}.key_file {}", key.display());
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| format!("{key_name}: {error}; name a readable PEM file with one private key"))?;
        let own = CertifiedKey::from_der(chain, private, &provider).map_err(|error| {
            format!("{key_name}: {error}; it must be the key of the first certificate in {section}.cert_file")
        })?;
        let broken = |error: &dyn std::fmt::Display| format!("{section}: TLS cannot be set up: {error}");
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(&error))?;
        let builder = match &self.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let name = format!("{section}.client_ca_file");
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, &name)? {
                    roots.add(certificate).map_err(|error| format!("{name} {}: {error}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| broken(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |what: &dyn std::fmt::Display| {
        format!("{key} {}: {what}; name a readable PEM file of certificates", path.display())
    };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(&error))?;
    if found.is_empty() { Err(bad(&"holds no certificate")) } else { Ok(found) }
}
