//! Bootstrap tokens: what a board that is no node yet shows, `ID.SECRET`. Each is a Secret of kube-system, as kubeadm makes them, and
//! says itself until when it is good and for what. <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::{AUTHENTICATED, User};
use crate::api::schema;
use crate::base::time::Timestamp;
use crate::master::store::Objects;

/// Everyone with such a token.
pub const GROUP: &str = "system:bootstrappers";
const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;

/// The two halves of a text that looks like such a token.
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_part = |part: &str, bytes: usize| part.len() == bytes && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (is_part(id, ID_BYTES) && is_part(secret, SECRET_BYTES)).then_some((id, secret))
}

/// Whose token it is.
///
/// # Errors
/// Why it is refused, for the log.
pub fn authenticate(objects: &Objects, id: &str, secret: &str, now: Timestamp) -> Result<User, String> {
    let secrets = schema::resource("", "v1", "secrets").ok_or("no such resource")?;
    let object = objects.get(secrets, NAMESPACE, &format!("bootstrap-token-{id}")).map_err(|status| status.message)?;
    judge(&object.value(), id, secret, now)
}

fn judge(object: &Value, id: &str, secret: &str, now: Timestamp) -> Result<User, String> {
    let refuse = |why: &str| Err(format!("bootstrap token {id}: {why}"));
    let field = |name: &str| -> Option<String> {
        let bytes = STANDARD.decode(object["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if object["type"] != TYPE || !object["metadata"]["deletionTimestamp"].is_null() {
        return refuse("its secret is none of a token, or on its way out");
    }
    // Digests are compared: how long that takes says nothing of the secret.
    let is_same = |known: &str| digest(&SHA256, known.as_bytes()).as_ref() == digest(&SHA256, secret.as_bytes()).as_ref();
    if field("token-id").as_deref() != Some(id) || !field("token-secret").is_some_and(|known| is_same(&known)) {
        return refuse("the secret is another one");
    }
    if let Some(expiration) = field("expiration") {
        match Timestamp::parse(&expiration) {
            Some(expiration) if now < expiration => (),
            Some(_) => return refuse("it has expired"),
            None => return refuse("its expiration is no instant"),
        }
    }
    if field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return refuse("it is not for authentication");
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in field("auth-extra-groups").iter().flat_map(|groups| groups.split(',')).filter(|group| !group.is_empty()) {
        let of_bootstrappers = group.strip_prefix("system:bootstrappers:").is_some_and(|rest| !rest.is_empty());
        if !of_bootstrappers {
            return refuse("one of its groups does not begin with system:bootstrappers:");
        }
        groups.push(group.to_owned());
    }
    groups.push(AUTHENTICATED.to_owned());
    Ok(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_has_two_halves_of_fixed_length() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["", "abcdef", "abcdef.", "abcde.0123456789abcdef", "abcdeF.0123456789abcdef", "a.b.c", "abcdef.0123456789abcdef.x"] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_for_what_it_is_for() {
        let encode = |text: &str| STANDARD.encode(text);
        let secret = |change: &[(&str, &str)]| {
            let mut secret = json!({"type": TYPE, "metadata": {}, "data": {
                "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"), "expiration": encode("2026-01-02T00:00:00Z"),
                "usage-bootstrap-authentication": encode("true"),
                "auth-extra-groups": encode("system:bootstrappers:kubeadm:default-node-token"),
            }});
            for (field, value) in change {
                secret["data"][field] = encode(value).into();
            }
            secret
        };
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let ask = |object: &Value, now| judge(object, "abcdef", "0123456789abcdef", now);
        let user = ask(&secret(&[]), now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, [GROUP, "system:bootstrappers:kubeadm:default-node-token", AUTHENTICATED]);
        assert!(ask(&secret(&[]), Timestamp::parse("2026-01-02T00:00:00Z").unwrap()).unwrap_err().contains("expired"));
        for (wrong, why) in [
            (("token-secret", "0123456789abcdee"), "another one"),
            (("token-id", "abcdee"), "another one"),
            (("expiration", "soon"), "no instant"),
            (("usage-bootstrap-authentication", "false"), "not for authentication"),
            (("auth-extra-groups", "system:masters"), "does not begin"),
        ] {
            let error = ask(&secret(&[wrong]), now).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
        let mut opaque = secret(&[]);
        opaque["type"] = "Opaque".into();
        assert!(ask(&opaque, now).is_err());
    }
}
