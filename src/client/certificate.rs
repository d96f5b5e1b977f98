//! A node's own certificate, from the request to the kubeconfig that holds it; `edgectl join` asks with a token, the agent that renews
//! its certificate with the one it has. It keeps no key and writes no file.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use super::cache::{Event, Feed};
use super::{Client, Query};
use crate::api::meta;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// User and group of a node. <https://kubernetes.io/docs/reference/access-authn-authz/node/>
pub const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// How long the master may take to sign; a good one takes milliseconds.
const SIGN_DEADLINE: Duration = Duration::from_secs(30);

/// Asks the master for the certificate of node `name`, PEM, and waits for it.
///
/// # Errors
/// The server's refusal as it is, if it does not even take the request; what it says against it; or if it does not decide.
pub async fn request(client: &Client, name: &str, key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, GROUP);
    params.distinguished_name.push(DnType::CommonName, format!("{USER_PREFIX}{name}"));
    let pem = params.serialize_request(key)?.pem()?;
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"generateName": "node-csr-"},
        "spec": {"signerName": SIGNER, "usages": ["digital signature", "client auth"], "request": BASE64.encode(pem)},
    });
    let made = client.create(REQUESTS, &Query::new(), &request).await?;
    let request = meta::name(&made);
    let feed = Feed::start(client.clone(), REQUESTS.to_owned(), Query::new().with("fieldSelector", format!("metadata.name={request}")));
    let signed = async {
        loop {
            let requests = match feed.next().await {
                Event::Relisted(requests) => requests,
                Event::Added(request) | Event::Modified(request) => vec![request],
                Event::Deleted(_) => bail!("the master has removed the request {request}"),
            };
            for request in requests {
                if let Some(certificate) = answer(&request)? {
                    return Ok(certificate);
                }
            }
        }
    };
    let expired = async {
        smol::Timer::after(SIGN_DEADLINE).await;
        bail!("the master has not signed the request {request} within {} s", SIGN_DEADLINE.as_secs())
    };
    futures_lite::future::or(signed, expired).await
}

/// The certificate of a request, PEM; None while nobody has decided.
///
/// # Errors
/// What the master says against it.
fn answer(request: &Value) -> Result<Option<String>> {
    for condition in request["status"]["conditions"].as_array().into_iter().flatten() {
        if condition["type"] == "Denied" || condition["type"] == "Failed" {
            bail!("the master refuses: {}", condition["message"].as_str().unwrap_or("it says no reason"));
        }
    }
    let Some(certificate) = request["status"]["certificate"].as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    let pem = BASE64.decode(certificate).context("read the certificate")?;
    Ok(Some(String::from_utf8(pem).context("read the certificate")?))
}

/// The kubeconfig of a node's agent, with all it needs inside; certificates and key are PEM.
pub fn kubeconfig(server: &str, authority: &[u8], name: &str, certificate: &[u8], key: &[u8]) -> Result<String> {
    let user = format!("{USER_PREFIX}{name}");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "edgectl",
        "clusters": [{"name": "edgectl", "cluster": {"server": server, "certificate-authority-data": BASE64.encode(authority)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": BASE64.encode(certificate), "client-key-data": BASE64.encode(key),
        }}],
        "contexts": [{"name": "edgectl", "context": {"cluster": "edgectl", "user": user}}],
    });
    Ok(serde_yaml::to_string(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_certificate_or_a_reason() {
        assert_eq!(answer(&json!({"status": {}})).unwrap(), None);
        let signed = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": BASE64.encode("PEM")}});
        assert_eq!(answer(&signed).unwrap().as_deref(), Some("PEM"));
        let denied = json!({"status": {"conditions": [{"type": "Denied", "message": "the name is taken"}]}});
        assert_eq!(answer(&denied).unwrap_err().to_string(), "the master refuses: the name is taken");
    }
}
