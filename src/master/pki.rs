//! The cluster's own certificate authority and what it signs: the API server, the administrator, the nodes; and the key
//! that signs service account tokens. Only the authority and that key are kept on disk; the server's certificate is made
//! anew at each start. It decides nothing about who may do what.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use serde_json::json;

use crate::base::file;
use crate::base::time::Timestamp;

/// Years that what the authority signs is valid, and the authority itself.
const LEAF_YEARS: i32 = 2;
const AUTHORITY_YEARS: i32 = 20;

pub struct Pki {
    authority_pem: String,
    issuer: Issuer<'static, KeyPair>,
    service_account_key: KeyPair,
}

/// PEM of a certificate and its private key.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Pki {
    /// Opens the authority in `folder`, or makes it there.
    ///
    /// # Errors
    /// If the folder cannot be written, or what is in it cannot be read.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let key = open_key(&folder.join("ca.key"))?;
        let path = folder.join("ca.crt");
        if !path.exists() {
            let certificate = authority_params()?.self_signed(&key)?;
            file::replace(&path, certificate.pem().as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))?;
        }
        let authority_pem = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&authority_pem, key).with_context(|| format!("read {}", path.display()))?;
        let service_account_key = open_key(&folder.join("service-account.key"))?;
        Ok(Self { authority_pem, issuer, service_account_key })
    }

    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// The ECDSA P-256 key that signs service account tokens (ES256, RFC 7518).
    pub fn service_account_key(&self) -> &KeyPair {
        &self.service_account_key
    }

    /// A server's certificate for these names and addresses.
    ///
    /// # Errors
    /// If a name is not one that a certificate can hold.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(params, "kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate: the user name is the common name, groups are organisations, as upstream's x509 authenticator reads them.
    /// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates>
    ///
    /// # Errors
    /// If a name is not one that a certificate can hold.
    pub fn client(&self, user: &str, groups: &[&str]) -> anyhow::Result<Identity> {
        self.sign(CertificateParams::new(Vec::new())?, user, groups, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A kubeconfig for a client of the API at `server` (`https://HOST:PORT`), with all it needs inside.
    ///
    /// # Errors
    /// As [`Pki::client`].
    pub fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> anyhow::Result<String> {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let identity = self.client(user, groups)?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "edgectl",
            "clusters": [{"name": "edgectl", "cluster": {"server": server, "certificate-authority-data": encode(&self.authority_pem)}}],
            "users": [{"name": user, "user": {
                "client-certificate-data": encode(&identity.certificate), "client-key-data": encode(&identity.key),
            }}],
            "contexts": [{"name": "edgectl", "context": {"cluster": "edgectl", "user": user}}],
        });
        Ok(serde_yaml::to_string(&config)?)
    }

    fn sign(&self, params: CertificateParams, name: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> anyhow::Result<Identity> {
        let mut params = params;
        params.distinguished_name = DistinguishedName::new();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        set_validity(&mut params, LEAF_YEARS);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("sign the certificate of {name}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "edgectl-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, AUTHORITY_YEARS);
    Ok(params)
}

/// From 1970 on: a board without a clock battery starts there, and must trust its cluster all the same.
fn set_validity(params: &mut CertificateParams, years: i32) {
    let this_year: i32 = Timestamp::now().to_string()[..4].parse().unwrap_or(1970);
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(this_year.max(2026) + years, 12, 31);
}

fn open_key(path: &PathBuf) -> anyhow::Result<KeyPair> {
    if !path.exists() {
        let key = KeyPair::generate()?;
        file::replace(path, key.serialize_pem().as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))?;
    }
    let pem = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("read {}", path.display()))
}
