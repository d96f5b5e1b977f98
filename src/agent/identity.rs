//! The agent's certificate, renewed long before it ends: a request of the node's own for a fresh key, the kubeconfig replaced in one
//! step, and every connection from then on made with it. The time that counts is the master's: a board's own clock may say 1970.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_rustls::rustls::pki_types::CertificateDer;
use futures_rustls::rustls::pki_types::pem::PemObject;
use rcgen::KeyPair;
use serde_json::json;
use smol::Timer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Node;
use crate::api::meta;
use crate::base::file;
use crate::base::time::{self, Timestamp};
use crate::client::{Client, Query, certificate, kubeconfig};

/// It is renewed when no more than this is left of it: a third of the year that the master gives. How long it has been good already it
/// does not say itself, for it holds since 1970.
const RENEW_LEFT: Duration = Duration::from_secs(365 * 24 * 3600 / 3);
/// How often the master is asked what time it is, and how soon again after a failure.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const RETRY: Duration = Duration::from_secs(300);
/// How far a board's clock may be off the master's before the latter is taken for it: what a clock that is set now and then drifts.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Keeps the certificate fresh as long as the process lives.
pub async fn keep(node: Rc<Node>) {
    loop {
        let pause = match step(&node).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                log::warn!("node={} renew the certificate: {error:#}", node.facts.node_name);
                RETRY
            }
        };
        Timer::after(pause).await;
    }
}

async fn step(node: &Node) -> Result<()> {
    let path = node.places.agent_kubeconfig();
    let known = kubeconfig::load(path.to_str())?.target(&kubeconfig::Overrides::default())?;
    let not_after = not_after(known.client_certificate.as_deref().unwrap_or_default())?;
    let now = master_time(&node.client).await?;
    if !is_due(not_after, now) {
        return Ok(());
    }
    let key = KeyPair::generate()?;
    let name = &node.facts.node_name;
    let fresh = certificate::request(&node.client, name, &key).await?;
    let key = key.serialize_pem();
    let authority = known.certificate_authority.unwrap_or_default();
    write(&path, &certificate::kubeconfig(&known.server, &authority, name, fresh.as_bytes(), key.as_bytes())?)?;
    node.client.set_identity(&authority, fresh.as_bytes(), key.as_bytes())?;
    log::info!("node={name} certificate renewed not_after={} -> {}", not_after, self::not_after(fresh.as_bytes())?);
    Ok(())
}

fn write(path: &Path, config: &str) -> Result<()> {
    file::replace(path, config.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))
}

fn is_due(not_after: Timestamp, now: Timestamp) -> bool {
    not_after.since(now) <= RENEW_LEFT
}

/// Until when a certificate is good, PEM.
fn not_after(pem: &[u8]) -> Result<Timestamp> {
    let certificate = CertificateDer::from_pem_slice(pem).map_err(|error| anyhow!("read the certificate: {error}"))?;
    let (_, parsed) = X509Certificate::from_der(&certificate).context("read the certificate")?;
    Ok(Timestamp::from_seconds(parsed.validity().not_after.timestamp()))
}

/// Goes by the master's clock from here on, if the board's own is far off it: what the agent tells then has times that fit those of all
/// others. To be done before any pod is looked at, for pods wait until a time.
pub async fn follow_clock(client: &Client, node: &str) -> Result<()> {
    let (theirs, ours) = (master_time(client).await?, Timestamp::now());
    if theirs.since(ours).max(ours.since(theirs)) > CLOCK_TOLERANCE {
        time::follow(theirs);
        log::warn!("node={node} the clock of this board says {ours}: from here on it goes by the master's");
    }
    Ok(())
}

/// What time it is where certificates are judged.
async fn master_time(client: &Client) -> Result<Timestamp> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", &Query::new(), &review).await?;
    meta::timestamp(&answer, "creationTimestamp").context("the master does not say what time it is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_year() {
        let day = Duration::from_secs(24 * 3600);
        let now = Timestamp::parse("2026-06-01T00:00:00Z").unwrap();
        for (days_left, due) in [(365, false), (123, false), (121, true), (1, true)] {
            assert_eq!(is_due(now.plus(day * days_left), now), due, "{days_left}");
        }
        assert!(is_due(now, now.plus(day)), "one that has ended");
    }
}
