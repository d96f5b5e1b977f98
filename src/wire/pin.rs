//! The hash by which a certificate authority is known to those who have never spoken to it: SHA-256 over its public key, as kubeadm's
//! `--discovery-token-ca-cert-hash`. It trusts nobody by itself.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_rustls::rustls::pki_types::CertificateDer;
use futures_rustls::rustls::pki_types::pem::PemObject;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use x509_parser::prelude::{FromDer, X509Certificate};

const PREFIX: &str = "sha256:";

/// Written `sha256:HEX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; SHA256_OUTPUT_LEN]);

impl Pin {
    /// Of a certificate's SubjectPublicKeyInfo, RFC 5280 section 4.1; None if it is no certificate.
    pub fn of(certificate: &CertificateDer) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        digest(&SHA256, parsed.public_key().raw).as_ref().try_into().ok().map(Self)
    }

    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_pem(pem: &[u8]) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|error| anyhow!("read the authority's certificate: {error}"))?;
        Self::of(&certificate).context("read the authority's certificate")
    }

    /// The certificate of a chain that has this hash, PEM.
    pub fn find(self, chain: &[CertificateDer]) -> Option<String> {
        chain.iter().find(|certificate| Self::of(certificate) == Some(self)).map(|certificate| pem(certificate))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some(hex) = text.strip_prefix(PREFIX) else { bail!("a hash of an authority begins with {PREFIX:?}") };
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        ensure!(hex.is_ascii() && hex.len() == 2 * bytes.len(), "a hash of an authority is {PREFIX:?} and {} hex digits", 2 * bytes.len());
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = &hex[2 * index..2 * index + 2];
            *byte = u8::from_str_radix(digits, 16).with_context(|| format!("{digits:?} in the authority's hash is no hex number"))?;
        }
        Ok(Self(bytes))
    }
}

/// RFC 7468.
fn pem(certificate: &CertificateDer) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let encoded = STANDARD.encode(certificate);
    for (index, digit) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(digit);
    }
    text + "\n-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl ecparam -genkey -name prime256v1`, `openssl req -x509 -subj /CN=ca`, and kubeadm's own recipe for the hash:
    /// `openssl pkey -pubin -outform der | openssl dgst -sha256`.
    const CA: &str = include_str!("pin_test_ca.pem");
    const HASH: &str = "sha256:c511a749ad7151713e5887360cc7857ff222c93159ddfab391ac5296d7debb74";

    #[test]
    fn the_hash_is_the_one_that_openssl_gives() {
        let pin = Pin::of_pem(CA.as_bytes()).unwrap();
        assert_eq!(pin.to_string(), HASH);
        assert_eq!(HASH.parse::<Pin>().unwrap(), pin);
        let certificate = CertificateDer::from_pem_slice(CA.as_bytes()).unwrap();
        assert_eq!(pin.find(&[certificate]).as_deref(), Some(CA));
        assert_eq!(pin.find(&[]), None);
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for text in ["", "sha256:", "sha256:00", &HASH[7..], &HASH.replace('a', "g"), &HASH.replace("sha256", "sha512")] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }
}
