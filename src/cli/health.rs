//! `patchwarden health`: asks the gateway this configuration describes whether it works.
//!
//! One `GET /readyz` on the admin listener, without a token, for container health checks. Ends with 0 when requests pass
//! through, with 1 when `--require audit` was asked and the log cannot be written, with 3 when nothing answers in time or
//! the gateway is starting or stopping. Where the listener speaks TLS, the socket in the data folder is asked instead; from
//! elsewhere exactly the configured certificate is accepted, whatever name is in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Full;
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};

use super::ask::exchange;
use super::{UNABLE, WRONG, out};
use crate::app::Failure;
use crate::config::Config;
use crate::json;

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(4);
/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// What `health` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also fail, with 1, when this part does not work
    #[arg(long, value_name = "PART", value_parser = ["audit"])]
    require: Option<String>,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let address = reachable(config.admin_listen);
    let unable = |why: String| Failure { code: UNABLE, message: format!("{address}: {why}") };
    if address.port() == 0 {
        return Err(unable("the port is picked anew at each start; set admin_listen".to_owned()));
    }
    let path = match &args.require {
        Some(part) => format!("/readyz?require={part}"),
        None => "/readyz".to_owned(),
    };
    let (status, body) = tokio::time::timeout(PATIENCE, ask(config, address, &path))
        .await
        .map_err(|_| unable("no answer in time".to_owned()))?
        .map_err(|error| unable(format!("{error:#}")))?;
    let answer = json::value(&body).unwrap_or_default();
    let said = answer["status"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    for problem in answer["problems"].as_array().into_iter().flatten() {
        let of = |name: &str| problem[name].as_str().unwrap_or_default();
        let (part, since, detail) = (of("part"), of("since"), of("detail"));
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        out::complain(&format!("{part} since {since}{detail}"));
    }
    out::print(&format!("{said}\n"))?;
    Ok(match status {
        StatusCode::OK => 0,
        _ if said == "degraded" => WRONG,
        _ => UNABLE,
    })
}

/// An address that listens everywhere is asked on the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(config: &Config, address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let request = Request::get(path).header(HOST, address.to_string()).body(Full::default())?;
    let Some(file) = &config.admin.cert_file else {
        return exchange(TcpStream::connect(address).await?, request, MAX_ANSWER).await;
    };
    // Where the gateway is at home: no certificate in between, which may just be in the middle of its renewal.
    if let Ok(stream) = UnixStream::connect(config.data.join("admin.sock")).await {
        return exchange(stream, request, MAX_ANSWER).await;
    }
    let stream = TcpStream::connect(address).await?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let own = CertificateDer::from_pem_file(file)
        .map_err(|error| anyhow::anyhow!("admin.cert_file {}: {error}", file.display()))?;
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Exactly { own, provider }))
        .with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    exchange(stream, request, MAX_ANSWER).await
}

/// Accepts one certificate.
#[derive(Debug)]
struct Exactly {
    own: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *shown == self.own {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the certificate is not the one in admin.cert_file".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
