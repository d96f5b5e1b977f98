//! Who may pull what: logins from docker's configuration files, as imagePullSecrets carry them, matched as the kubelet matches them.
//! It never shows a password, not in errors and not in `Debug`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::Reference;

/// A user of one or more registries.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: String,
    /// Given instead of a password by registries that have OAuth 2.
    pub identity_token: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Login({:?})", self.username)
    }
}

/// Logins and the images they are for.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// By pattern: host, optional port, optional path.
    logins: Vec<(Pattern, Login)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    host: String,
    port: String,
    path: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "lowercase")]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl Credentials {
    /// Reads `.dockerconfigjson` of a Secret of type `kubernetes.io/dockerconfigjson`: `{"auths": {"HOST": {"auth": "…"}}}`.
    ///
    /// # Errors
    /// If it is no such JSON; the message holds nothing of it.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Self> {
        let config: DockerConfig = serde_json::from_slice(bytes).map_err(|_| anyhow::anyhow!("no JSON object with \"auths\""))?;
        Self::from_auths(config.auths)
    }

    /// Reads `.dockercfg` of a Secret of type `kubernetes.io/dockercfg`: `{"HOST": {"auth": "…"}}`.
    ///
    /// # Errors
    /// If it is no such JSON; the message holds nothing of it.
    pub fn from_docker_cfg(bytes: &[u8]) -> Result<Self> {
        Self::from_auths(serde_json::from_slice(bytes).map_err(|_| anyhow::anyhow!("no JSON object of registries"))?)
    }

    fn from_auths(auths: BTreeMap<String, DockerAuth>) -> Result<Self> {
        let mut logins = Vec::new();
        for (location, auth) in auths {
            let mut login = Login { username: auth.username, password: auth.password, identity_token: auth.identitytoken };
            if !auth.auth.is_empty() {
                let decoded = decode(&auth.auth).with_context(|| format!("\"auth\" of {location:?} is no base64 of user:password"))?;
                (login.username, login.password) = decoded;
            }
            logins.push((Pattern::parse(&location), login));
        }
        Ok(Self { logins })
    }

    /// Adds the logins of another Secret behind these.
    pub fn extend(&mut self, other: Self) {
        self.logins.extend(other.logins);
    }

    /// The logins for an image, the most specific first (kubernetes, pkg/credentialprovider, `Lookup`).
    pub(super) fn matching(&self, reference: &Reference) -> Vec<&Login> {
        let name = Pattern::parse(&reference.name());
        let mut found: Vec<_> = self.logins.iter().filter(|(pattern, _)| pattern.matches(&name)).collect();
        // What docker login writes for Docker's own registry.
        if found.is_empty() && reference.registry == "docker.io" {
            found = self.logins.iter().filter(|(pattern, _)| pattern.host == "index.docker.io").collect();
        }
        found.sort_by(|(one, _), (other, _)| other.cmp(one));
        found.into_iter().map(|(_, login)| login).collect()
    }
}

impl Pattern {
    /// Reads a key of docker's file: scheme and API version do not count.
    fn parse(location: &str) -> Self {
        let rest = location.strip_prefix("https://").or(location.strip_prefix("http://")).unwrap_or(location);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.strip_prefix("v1/").or(path.strip_prefix("v2/")).unwrap_or(path);
        let (host, port) = match authority.rfind(':') {
            Some(at) if !authority.ends_with(']') => (&authority[..at], &authority[at + 1..]),
            _ => (authority, ""),
        };
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        Self { host: host.to_lowercase(), port: port.to_owned(), path: path.trim_end_matches('/').to_owned() }
    }

    /// Same port, as many parts of the host of which each may hold wildcards, and a path that the image's begins with.
    fn matches(&self, name: &Self) -> bool {
        let (globs, parts) = (self.host.split('.'), name.host.split('.'));
        self.port == name.port
            && globs.clone().count() == parts.clone().count()
            && name.path.starts_with(&self.path)
            && globs.zip(parts).all(|(glob, part)| matches_glob(glob.as_bytes(), part.as_bytes()))
    }
}

/// `*` any run of characters, `?` any one.
fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| matches_glob(rest, &text[skipped..])),
        Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| matches_glob(rest, text)),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && matches_glob(rest, text)),
    }
}

/// Docker's `auth`: base64 of `user:password`, with or without padding.
pub(super) fn decode(auth: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(auth.trim()).or_else(|_| STANDARD_NO_PAD.decode(auth.trim())).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let credentials = Credentials::from_docker_config_json(json.as_bytes()).unwrap();
        credentials.matching(&Reference::parse(image).unwrap()).into_iter().map(|login| login.username.clone()).collect()
    }

    #[test]
    fn logins_are_matched_by_host_port_and_path_the_most_specific_first() {
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"username":"hub","password":"p"},
            "quay.io":{"username":"quay","password":"p"},
            "quay.io/team":{"username":"team","password":"p"},
            "*.example.com:5000":{"username":"wild","password":"p"},
            "http://localhost:5000/v2/":{"username":"local","password":"p"}}}"#;
        let check = |image: &str, expected: &[&str]| assert_eq!(users(json, image), expected, "{image}");
        check("nginx", &["hub"]);
        check("quay.io/other/app", &["quay"]);
        check("quay.io/team/app", &["team", "quay"]);
        check("a.example.com:5000/app", &["wild"]);
        check("a.b.example.com:5000/app", &[]);
        check("a.example.com/app", &[]);
        check("localhost:5000/app", &["local"]);
        check("localhost:5001/app", &[]);
        check("elsewhere.io/app", &[]);
    }

    #[test]
    fn both_forms_of_secrets_are_read_with_encoded_or_plain_logins() {
        let expected = Login { username: "user".into(), password: "pa:ss".into(), identity_token: String::new() };
        let reference = Reference::parse("r.io/app").unwrap();
        for auth in [r#"{"auth":"dXNlcjpwYTpzcw=="}"#, r#"{"auth":"dXNlcjpwYTpzcw"}"#, r#"{"username":"user","password":"pa:ss"}"#] {
            let json = format!(r#"{{"auths":{{"r.io":{auth}}}}}"#);
            assert_eq!(Credentials::from_docker_config_json(json.as_bytes()).unwrap().matching(&reference), [&expected]);
            let cfg = format!(r#"{{"r.io":{auth}}}"#);
            assert_eq!(Credentials::from_docker_cfg(cfg.as_bytes()).unwrap().matching(&reference), [&expected]);
        }
    }

    #[test]
    fn errors_and_debug_output_hold_no_secret() {
        let error = Credentials::from_docker_config_json(br#"{"auths":{"r.io":{"auth":"c2VjcmV0"}}}"#).unwrap_err();
        assert!(!format!("{error:#?}").contains("c2VjcmV0"));
        let login = Login { username: "u".into(), password: "secret".into(), identity_token: "secret".into() };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
