//! TLS of a port of ours.
//!
//! Reads the certificate chain, the key and, if clients must show one, the roots of their certificates. Everything
//! that could only fail later (a key of another certificate, an empty file) is an error that names the key. When the
//! files change they are read again, and taken if they are right; open connections go on with what they began with.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;

use crate::id::sha256;
use crate::units::Span;

/// `[tls]` of the configuration; `[admin]` has the first two as well.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The certificate and its chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Roots of the certificates that clients must show, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// How often the files are looked at.
    pub reload: Span,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { cert_file: None, key_file: None, client_ca_file: None, reload: Span::secs(10) }
    }
}

/// What accepts TLS on one port.
#[derive(Debug)]
pub struct Tls {
    section: &'static str,
    files: Files,
    current: RwLock<Arc<ServerConfig>>,
    /// Digest of the content that was last tried, right or wrong.
    tried: Mutex<[u8; 32]>,
}

#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What the files held at one moment.
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// From the settings, or nothing when it is not configured. `section` is where the keys stand: `tls`, `admin`.
    pub fn new(settings: &TlsSettings, section: &'static str) -> Result<Option<Arc<Self>>, String> {
        let alone = |key: &str, other: &str| {
            Err(format!("{section}.{key} is set without {section}.{other}; set both"))
        };
        let (certificate, key) = match (&settings.cert_file, &settings.key_file) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) if settings.client_ca_file.is_none() => return Ok(None),
            (None, None) => {
                return Err(format!(
                    "{section}.client_ca_file is set without {section}.cert_file and {section}.key_file; set all three"
                ));
            }
            (Some(_), None) => return alone("cert_file", "key_file"),
            (None, Some(_)) => return alone("key_file", "cert_file"),
        };
        let files = Files { certificate, key, client_ca: settings.client_ca_file.clone() };
        let content = files.read(section)?;
        let current = RwLock::new(Arc::new(files.config(section, &content)?));
        Ok(Some(Arc::new(Self { section, files, current, tried: Mutex::new(content.digest()) })))
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Where its keys stand in the configuration.
    pub fn section(&self) -> &'static str {
        self.section
    }

    /// Reads the files again; whether something new was taken. The same content is tried once.
    pub fn reload(&self) -> Result<bool, String> {
        let content = self.files.read(self.section);
        let digest = content.as_ref().map_or([0; 32], Content::digest);
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if *tried == digest {
            return Ok(false);
        }
        *tried = digest;
        let config = self.files.config(self.section, &content?)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(true)
    }
}

impl Files {
    fn read(&self, section: &str) -> Result<Content, String> {
        let one = |key: &str, path: &Path| {
            std::fs::read(path).map_err(|error| {
                format!("{section}.{key} {}: {error}; name a readable PEM file", path.display())
            })
        };
        Ok(Content {
            certificate: one("cert_file", &self.certificate)?,
            key: one("key_file", &self.key)?,
            client_ca: self.client_ca.as_deref().map(|path| one("client_ca_file", path)).transpose()?,
        })
    }

    fn config(&self, section: &str, content: &Content) -> Result<ServerConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = certificates(&content.certificate, &format!("{section}.cert_file"), &self.certificate)?;
        let key_name = format!("{section}.key_file {}", self.key.display());
        let private = PrivateKeyDer::from_pem_slice(&content.key)
            .map_err(|error| format!("{key_name}: {error}; name a readable PEM file with one private key"))?;
        let own = CertifiedKey::from_der(chain, private, &provider).map_err(|error| {
            format!("{key_name}: {error}; it must be the key of the first certificate in {section}.cert_file")
        })?;
        let broken = |error: &dyn Display| format!("{section}: TLS cannot be set up: {error}");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(&error))?;
        let builder = match (&self.client_ca, &content.client_ca) {
            (Some(path), Some(pem)) => {
                let name = format!("{section}.client_ca_file");
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem, &name, path)? {
                    roots.add(certificate).map_err(|error| format!("{name} {}: {error}", path.display()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| broken(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Content {
    fn digest(&self) -> [u8; 32] {
        let client_ca = self.client_ca.as_deref().unwrap_or_default();
        // Each by its own digest, so that no byte can move from one file to the next unseen.
        sha256(&[&sha256(&[&self.certificate]), &sha256(&[&self.key]), &sha256(&[client_ca])])
    }
}

fn certificates(pem: &[u8], key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |what: &dyn Display| {
        format!("{key} {}: {what}; name a readable PEM file of certificates", path.display())
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error: rustls_pki_types::pem::Error| bad(&error))?;
    if found.is_empty() { Err(bad(&"holds no certificate")) } else { Ok(found) }
}
