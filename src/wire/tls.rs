//! TLS 1.2 and 1.3 by rustls, ring underneath. Everything that speaks over a network goes through here.
//! It keeps no key: callers read their files and hand over PEM.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use futures_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use futures_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use futures_rustls::rustls::server::WebPkiClientVerifier;
use futures_rustls::rustls::{self, DigitallySignedStruct, RootCertStore, SignatureScheme};

pub use futures_rustls::rustls::{ClientConfig, ServerConfig};

/// HTTP/2 first; HTTP/1.1 is what upgrades need.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whom a client trusts.
pub enum Trust<'a> {
    /// Certificates below this authority, PEM.
    Authority(&'a [u8]),
    /// The authorities of the machine: the first bundle found of those that distributions ship.
    System,
    /// Anyone. Only for what a user has marked as such.
    Anyone,
}

/// Certificate chain and private key, both PEM.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    pub certificate: &'a [u8],
    pub key: &'a [u8],
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Settings of a server. With `clients`, a client may show a certificate below that authority; without one it is still
/// let in, and whom it is then is for the layer above to judge.
///
/// # Errors
/// If a PEM text cannot be read, or key and certificate do not fit.
pub fn server(identity: Identity, clients: Option<&[u8]>) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider());
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let (chain, key) = read_identity(identity)?;
    let mut config = builder.with_single_cert(chain, key).context("certificate and key")?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
    // A session cache would hold memory for every client that ever came.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Settings of a client. With `upgradable` only HTTP/1.1 is offered.
///
/// # Errors
/// If a PEM text cannot be read, key and certificate do not fit, or the machine has no bundle of authorities.
pub fn client(trust: Trust, identity: Option<Identity>, upgradable: bool) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Authority(authority) => builder.with_root_certificates(roots(authority)?),
        Trust::System => builder.with_root_certificates(roots(&system_bundle()?)?),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerifier(provider()))),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = read_identity(identity)?;
            builder.with_client_auth_cert(chain, key).context("client certificate and key")?
        }
    };
    config.alpn_protocols = ALPN[usize::from(upgradable)..].iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let (added, _) = roots.add_parsable_certificates(certificates.map_err(|error| anyhow!("read the authority's certificate: {error}"))?);
    ensure!(added > 0, "the authority's PEM holds no usable certificate");
    Ok(roots)
}

fn read_identity(identity: Identity) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(identity.key).map_err(|error| anyhow!("read the private key: {error}"))?;
    Ok((chain.map_err(|error| anyhow!("read the certificate: {error}"))?, key))
}

fn system_bundle() -> anyhow::Result<Vec<u8>> {
    // Debian and Alpine, Fedora, OpenSUSE, Buildroot.
    const BUNDLES: [&str; 4] =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];
    let found = BUNDLES.iter().find_map(|path| std::fs::read(path).ok());
    found.context("this machine has no certificate authorities: install the package ca-certificates")
}

/// Trusts whoever answers, but still checks that it holds the key of the certificate it shows.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
