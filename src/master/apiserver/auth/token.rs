//! Service account tokens: JSON Web Tokens (RFC 7519) signed with ES256, as TokenRequest makes them.
//! A token is good while the account, and the pod or node it is bound to, exist with the same uid. It keeps no list of tokens.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use futures_rustls::rustls::pki_types::pem::PemObject;
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::User;
use crate::api::schema;
use crate::api::status::{Cause, Status};
use crate::base::id;
use crate::base::time::Timestamp;
use crate::master::store::Objects;

/// The issuer, and the audience of the API itself: upstream's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shortest and longest life that may be asked for, and the one that is given unasked.
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;
const SECONDS_DEFAULT: i64 = 3600;
/// A board's clock may lag behind the one that signed.
const CLOCK_SKEW_SECONDS: i64 = 60;
/// No token that we make is longer.
const TOKEN_BYTES_MAX: usize = 8 << 10;

pub struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl Tokens {
    /// # Errors
    /// If the PEM holds no PKCS #8 key on P-256.
    pub fn new(key_pem: &[u8]) -> anyhow::Result<Self> {
        let key =
            PrivatePkcs8KeyDer::from_pem_slice(key_pem).map_err(|error| anyhow!("{error}")).context("read the service account key")?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random);
        let key = pair.map_err(|error| anyhow!("the service account key is not on P-256: {error}"))?;
        let key_id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, key.public_key().as_ref()));
        Ok(Self { key, key_id, random })
    }

    fn sign(&self, claims: &Value) -> Result<String, Status> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let unsigned = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.key.sign(&self.random, unsigned.as_bytes()).map_err(Status::internal)?;
        Ok(format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token with our signature that is not too early nor too late.
    fn verify(&self, token: &str, now: Timestamp) -> Result<Value, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err("the token is too long".into());
        }
        let (unsigned, signature) = token.rsplit_once('.').ok_or("the token has no signature")?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "the token is not base64".to_owned());
        let public = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, self.key.public_key());
        public.verify(unsigned.as_bytes(), &decode(signature)?).map_err(|_| "the signature is not ours")?;
        let (_, claims) = unsigned.split_once('.').ok_or("the token has no claims")?;
        let claims: Value = serde_json::from_slice(&decode(claims)?).map_err(|error| error.to_string())?;
        let seconds = |name: &str| claims[name].as_i64().ok_or(format!("the token has no {name}"));
        if now.seconds() >= seconds("exp")? {
            return Err("the token has expired".into());
        }
        if now.seconds() + CLOCK_SKEW_SECONDS < seconds("nbf")? {
            return Err("the token is not valid yet".into());
        }
        Ok(claims)
    }

    /// Whose token it is, and those of `audiences` it is for. No audiences: it must be for the API.
    ///
    /// # Errors
    /// Why it is refused, for the log.
    pub fn authenticate(&self, objects: &Objects, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
        let now = Timestamp::now();
        let claims = self.verify(token, now)?;
        let wanted = if audiences.is_empty() { &[ISSUER.to_owned()][..] } else { audiences };
        let for_whom = claims["aud"].as_array().map_or(&[][..], Vec::as_slice);
        let matching: Vec<String> =
            wanted.iter().filter(|audience| for_whom.iter().any(|each| each == audience.as_str())).cloned().collect();
        if matching.is_empty() {
            return Err("the token is for another audience".into());
        }
        let bound = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&bound["namespace"]);
        let (name, uid) = (text(&bound["serviceaccount"]["name"]), text(&bound["serviceaccount"]["uid"]));
        let alive = |plural: &str, namespace: &str, reference: &Value| {
            let resource = schema::resource("", "v1", plural).ok_or("no such resource")?;
            let (name, uid) = (text(&reference["name"]), text(&reference["uid"]));
            let object = objects.get(resource, namespace, &name).map_err(|status| status.message)?;
            if object.uid != uid {
                return Err(format!("{plural} {name:?} is another one by now"));
            }
            let ended = crate::api::meta::timestamp(&object.value(), "deletionTimestamp");
            match ended {
                Some(ended) if now.seconds() > ended.seconds() + CLOCK_SKEW_SECONDS => Err(format!("{plural} {name:?} is deleted")),
                _ => Ok(()),
            }
        };
        alive("serviceaccounts", &namespace, &bound["serviceaccount"])?;
        let mut user = User::service_account(&namespace, &name, &uid);
        let mut extra =
            BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", text(&claims["jti"]))])]);
        for (field, plural, namespace) in [("pod", "pods", &*namespace), ("secret", "secrets", &*namespace), ("node", "nodes", "")] {
            let reference = &bound[field];
            if !reference.is_object() {
                continue;
            }
            // A pod's token also names its node, for information; only a token bound to nothing but a node depends on it.
            if field != "node" || !bound["pod"].is_object() {
                alive(plural, namespace, reference)?;
            }
            if field != "secret" {
                extra.insert(format!("authentication.kubernetes.io/{field}-name"), vec![text(&reference["name"])]);
                extra.insert(format!("authentication.kubernetes.io/{field}-uid"), vec![text(&reference["uid"])]);
            }
        }
        user.extra = extra;
        Ok((user, matching))
    }

    /// Answers a TokenRequest for a service account.
    ///
    /// # Errors
    /// 422 for what cannot be asked for; 404 if the account, or what the token is to be bound to, does not exist; 409 if it is another one.
    pub fn request(&self, objects: &Objects, namespace: &str, name: &str, mut request: Value, dry_run: bool) -> Result<Value, Status> {
        let find = |plural: &str, namespace: &str, name: &str| {
            let resource = schema::resource("", "v1", plural).ok_or_else(Status::no_such_resource)?;
            objects.get(resource, namespace, name)
        };
        let account = find("serviceaccounts", namespace, name)?;
        let invalid = |field: &str, message: String| {
            let cause = Cause { reason: "FieldValueInvalid".into(), message, field: field.into() };
            Status::invalid("authentication.k8s.io", "TokenRequest", name, vec![cause])
        };
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
        if seconds < SECONDS_MIN {
            return Err(invalid(
                "spec.expirationSeconds",
                format!("Invalid value: {seconds}: may not specify a duration less than 10 minutes"),
            ));
        }
        if seconds > SECONDS_MAX {
            return Err(invalid(
                "spec.expirationSeconds",
                format!("Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds"),
            ));
        }
        let mut audiences: Vec<Value> = request["spec"]["audiences"].as_array().cloned().unwrap_or_default();
        if audiences.is_empty() {
            audiences.push(ISSUER.into());
        }
        let now = Timestamp::now().seconds();
        let mut bound = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": account.uid}});
        let reference = &request["spec"]["boundObjectRef"];
        if reference.is_object() {
            let text = |field: &str| reference[field].as_str().unwrap_or_default();
            let (field, plural, of) = match (text("apiVersion"), text("kind")) {
                ("v1", "Pod") => ("pod", "pods", namespace),
                ("v1", "Secret") => ("secret", "secrets", namespace),
                ("v1", "Node") => ("node", "nodes", ""),
                (version, kind) => {
                    return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
                }
            };
            let object = find(plural, of, text("name"))?;
            if !text("uid").is_empty() && text("uid") != object.uid {
                let why = format!("the UID in the bound object reference ({}) does not match the UID in record", text("uid"));
                return Err(Status::conflict("", plural, text("name"), why));
            }
            bound[field] = json!({"name": text("name"), "uid": object.uid});
            if field == "pod" {
                let pod = object.value();
                if pod["spec"]["serviceAccountName"] != name {
                    let account = &pod["spec"]["serviceAccountName"];
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name {account}"
                    )));
                }
                if let Some(node) = pod["spec"]["nodeName"].as_str().and_then(|node| find("nodes", "", node).ok()) {
                    bound["node"] = json!({"name": node.key.name, "uid": node.uid});
                }
            }
        }
        let claims = json!({
            "iss": ISSUER, "sub": User::service_account(namespace, name, "").name, "aud": audiences,
            "iat": now, "nbf": now, "exp": now + seconds, "jti": id::uid(), "kubernetes.io": bound,
        });
        let token = if dry_run { String::new() } else { self.sign(&claims)? };
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"]["name"] = name.into();
        request["metadata"]["namespace"] = namespace.into();
        request["metadata"]["creationTimestamp"] = Timestamp::from_seconds(now).to_string().into();
        request["spec"]["audiences"] = audiences.into();
        request["spec"]["expirationSeconds"] = seconds.into();
        request["status"] = json!({"token": token, "expirationTimestamp": Timestamp::from_seconds(now + seconds).to_string()});
        Ok(request)
    }

    /// `/.well-known/openid-configuration`, for those who check tokens themselves.
    pub fn issuer_configuration() -> Value {
        json!({
            "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`, RFC 7517: the public half of the key.
    pub fn issuer_keys(&self) -> Value {
        // An uncompressed point: 0x04, then both coordinates of 32 bytes.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Tokens::new(key.serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_only_with_our_signature() {
        let (ours, theirs) = (tokens(), tokens());
        let now = Timestamp::now();
        let claims = json!({"nbf": now.seconds(), "exp": now.seconds() + 600, "sub": "x"});
        let token = ours.sign(&claims).unwrap();
        assert_eq!(ours.verify(&token, now).unwrap()["sub"], "x");
        assert!(theirs.verify(&token, now).is_err());
        assert!(ours.verify(&token, Timestamp::from_seconds(now.seconds() + 601)).unwrap_err().contains("expired"));
        assert!(ours.verify(&token, Timestamp::from_seconds(now.seconds() - 120)).is_err());
        let forged = token.replacen('.', ".e30", 1);
        assert!(ours.verify(&forged, now).is_err());
        for garbage in ["", ".", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
            assert!(ours.verify(garbage, now).is_err(), "{garbage}");
        }
    }

    #[test]
    fn the_public_key_is_published_with_its_identifier() {
        let tokens = tokens();
        let keys = tokens.issuer_keys();
        assert_eq!(keys["keys"][0]["kid"], tokens.key_id.as_str());
        assert_eq!(URL_SAFE_NO_PAD.decode(keys["keys"][0]["x"].as_str().unwrap()).unwrap().len(), 32);
    }
}
