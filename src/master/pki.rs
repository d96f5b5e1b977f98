//! The cluster's own certificate authority and what it signs: the API server, the administrator, the nodes; and the key
//! that signs service account tokens. Only the authority and that key are kept on disk; the server's certificate is made
//! anew at each start. It decides nothing about who may do what.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use serde_json::json;

use crate::api::validation::is_subdomain;
use crate::base::file;
use crate::base::time::Timestamp;

/// The last year that a certificate can name, RFC 5280 4.1.2.5.
const FOREVER_YEAR: i32 = 9999;
/// Years that what the authority signs for a client is valid, and the authority itself.
const LEAF_YEARS: i32 = 2;
const AUTHORITY_YEARS: i32 = 20;

/// User and group of a node. <https://kubernetes.io/docs/reference/access-authn-authz/node/>
pub const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// No certificate is signed as if it were earlier than this, 2026-01-01: the clock of a board without a battery may say 1970.
const SECONDS_MIN: u64 = 1_767_225_600;

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

/// What a board asks for that wants to be a node: a certificate for its own key.
#[derive(Debug)]
pub struct NodeRequest {
    /// Of the node.
    pub name: String,
    request: CertificateSigningRequestParams,
}

impl NodeRequest {
    /// Reads a PKCS #10 request, PEM. That whoever made it holds the key is checked.
    ///
    /// # Errors
    /// If it is none, or asks for another thing than a node's certificate.
    pub fn read(pem: &str) -> anyhow::Result<Self> {
        let request = CertificateSigningRequestParams::from_pem(pem).context("read the certificate request")?;
        let subject = &request.params.distinguished_name;
        let text = |kind: DnType| match subject.get(&kind) {
            Some(DnValue::Utf8String(text)) => text.clone(),
            Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
            _ => String::new(),
        };
        ensure!(text(DnType::OrganizationName) == NODES, "the organization of a node's certificate is {NODES}");
        let common_name = text(DnType::CommonName);
        let name = common_name.strip_prefix(NODE_PREFIX).with_context(|| format!("the common name of a node begins with {NODE_PREFIX}"))?;
        ensure!(request.params.subject_alt_names.is_empty(), "a node's certificate is for a client and has no alternative names");
        ensure!(is_subdomain(name), "{name:?} is no name for a node");
        Ok(Self { name: name.to_owned(), request })
    }

    /// DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.request.public_key.subject_public_key_info()
    }
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

    /// A server's certificate for these names and addresses, and the authority's behind it: whoever joins knows that one by its hash alone.
    ///
    /// # Errors
    /// If a name is not one that a certificate can hold.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        // It is judged by the clocks of boards, which may say any year, and made anew at each start.
        let mut identity = self.sign(params, "kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth, FOREVER_YEAR)?;
        identity.certificate += &self.authority_pem;
        Ok(identity)
    }

    /// A client's certificate: the user name is the common name, groups are organisations, as upstream's x509 authenticator reads them.
    /// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates>
    ///
    /// # Errors
    /// If a name is not one that a certificate can hold.
    pub fn client(&self, user: &str, groups: &[&str]) -> anyhow::Result<Identity> {
        self.sign(CertificateParams::new(Vec::new())?, user, groups, ExtendedKeyUsagePurpose::ClientAuth, year_after(LEAF_YEARS))
    }

    /// A node's certificate, PEM: for the key of the request, and whatever else that says is left out.
    ///
    /// # Errors
    /// If the key cannot be signed.
    pub fn sign_node(&self, asked: NodeRequest, life: Duration) -> anyhow::Result<String> {
        let NodeRequest { name, mut request } = asked;
        let mut params = CertificateParams::new(Vec::new())?;
        set_subject(&mut params, &format!("{NODE_PREFIX}{name}"), &[NODES]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = u64::try_from(Timestamp::now().seconds()).unwrap_or_default().max(SECONDS_MIN);
        params.not_before = date_time_ymd(1970, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + (Duration::from_secs(now) + life);
        request.params = params;
        let certificate = request.signed_by(&self.issuer).with_context(|| format!("sign the certificate of node {name}"))?;
        Ok(certificate.pem())
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

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
        last_year: i32,
    ) -> anyhow::Result<Identity> {
        set_subject(&mut params, name, groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        set_validity(&mut params, last_year);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("sign the certificate of {name}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn set_subject(params: &mut CertificateParams, name: &str, groups: &[&str]) {
    params.distinguished_name = DistinguishedName::new();
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
}

fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "edgectl-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, year_after(AUTHORITY_YEARS));
    Ok(params)
}

/// From 1970 on: a board without a clock battery starts there, and must trust its cluster all the same.
fn set_validity(params: &mut CertificateParams, last_year: i32) {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(last_year, 12, 31);
}

fn year_after(years: i32) -> i32 {
    let this_year: i32 = Timestamp::now().to_string()[..4].parse().unwrap_or(1970);
    this_year.max(2026) + years
}

fn open_key(path: &PathBuf) -> anyhow::Result<KeyPair> {
    if !path.exists() {
        let key = KeyPair::generate()?;
        file::replace(path, key.serialize_pem().as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))?;
    }
    let pem = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn request(name: &str, group: &str, alternative: &[String]) -> String {
        let mut params = CertificateParams::new(alternative.to_vec()).unwrap();
        set_subject(&mut params, name, &[group]);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_node_gets_a_certificate_for_a_year_that_holds_since_1970() {
        let folder = std::env::temp_dir().join(format!("pki-{}", crate::base::id::uid()));
        let pki = Pki::open(&folder).unwrap();
        let asked = NodeRequest::read(&request("system:node:web-1", NODES, &[])).unwrap();
        let (key, year) = (asked.public_key(), Duration::from_secs(365 * 24 * 3600));
        let (_, pem) = x509_parser::pem::parse_x509_pem(pki.sign_node(asked, year).unwrap().as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(certificate.public_key().raw, key);
        assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:web-1");
        assert_eq!(certificate.validity().not_before.timestamp(), 0);
        let left = certificate.validity().not_after.timestamp() - Timestamp::now().seconds();
        assert!((year.as_secs() as i64 - 60..=year.as_secs() as i64).contains(&left), "{left}");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_request_of_a_node_is_refused() {
        let name = |host: &str| vec![host.to_owned()];
        for (pem, why) in [
            ("nonsense".to_owned(), "read the certificate request"),
            (request("system:node:web", "system:masters", &[]), "organization"),
            (request("kubernetes-admin", NODES, &[]), "common name"),
            (request("system:node:", NODES, &[]), "no name for a node"),
            (request("system:node:Web_1", NODES, &[]), "no name for a node"),
            (request("system:node:web", NODES, &name("kubernetes")), "alternative names"),
        ] {
            let error = format!("{:#}", NodeRequest::read(&pem).unwrap_err());
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
