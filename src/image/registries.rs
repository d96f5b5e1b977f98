//! The node's registries file in the format of k3s' `registries.yaml`: which mirrors stand in for a registry, and the certificates and
//! logins of each host. It decides where an image is asked for, and asks nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use regex_lite::Regex;
use serde::Deserialize;

use super::Reference;
use super::credentials::{self, Login};
use crate::wire::tls::{self, ClientConfig, Identity, Trust};

/// Registries without an entry of their own.
const ANY: &str = "*";

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Host>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    #[serde(rename = "endpoint", alias = "endpoints")]
    endpoints: Vec<String>,
    /// Regular expression and replacement for the repository, for the mirrors only.
    rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Host {
    auth: Auth,
    tls: Option<Tls>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identity_token: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Auth({:?})", self.username)
    }
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub origin: Origin,
    /// Path before the repository: `/v2`.
    pub prefix: String,
    pub repository: String,
    /// The registry that it stands in for, when it is a mirror.
    pub mirror_of: Option<String>,
}

/// Scheme, host and port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub secure: bool,
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// Reads `host`, `host:port`, `[address]:port`.
    pub fn parse(authority: &str, secure: bool) -> Result<Self> {
        let (host, port) = match authority.rfind(':') {
            Some(at) if !authority.ends_with(']') => (&authority[..at], authority[at + 1..].parse().ok()),
            _ => (authority, Some(if secure { 443 } else { 80 })),
        };
        let host = host.trim_matches(['[', ']']);
        match port {
            Some(port) if !host.is_empty() => Ok(Self { secure, host: host.to_owned(), port }),
            _ => bail!("{authority:?} is no host with an optional port"),
        }
    }

    /// As the key of `configs` has it: the port only if it is not the usual one.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.secure { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority())
    }
}

impl Registries {
    /// Reads the file; that there is none means that there are no mirrors.
    ///
    /// # Errors
    /// If it is not in the format: names the line.
    pub fn read(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub fn parse(yaml: &[u8]) -> Result<Self> {
        let registries: Option<Self> = serde_yaml::from_slice(yaml)?;
        let registries = registries.unwrap_or_default();
        for (name, mirror) in &registries.mirrors {
            for endpoint in &mirror.endpoints {
                registries.endpoint(endpoint).with_context(|| format!("mirror of {name}"))?;
            }
            for pattern in mirror.rewrite.keys() {
                Regex::new(pattern).with_context(|| format!("mirror of {name}: rewrite {pattern:?}"))?;
            }
        }
        Ok(registries)
    }

    /// Where to ask for an image, in order: the mirrors of its registry, then the registry itself.
    pub fn sources(&self, reference: &Reference) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        if let Some(mirror) = self.mirrors.get(&reference.registry).or_else(|| self.mirrors.get(ANY)) {
            for endpoint in &mirror.endpoints {
                let (origin, prefix) = self.endpoint(endpoint)?;
                let repository = mirror.rewritten(&reference.repository)?;
                sources.push(Source { origin, prefix, repository, mirror_of: Some(reference.registry.clone()) });
            }
        }
        // The name of Docker's registry is not the host that serves it.
        let host = if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
        let origin = self.origin(host)?;
        let own = Source { origin, prefix: "/v2".to_owned(), repository: reference.repository.clone(), mirror_of: None };
        // A registry may be listed as its own mirror, to say that it speaks plain HTTP.
        if !sources.iter().any(|source| (&source.origin.host, source.origin.port) == (&own.origin.host, own.origin.port)) {
            sources.push(own);
        }
        Ok(sources)
    }

    /// The login that the file gives for a host.
    pub fn login(&self, origin: &Origin) -> Option<Login> {
        let auth = &self.host(origin)?.auth;
        let (username, password) = match credentials::decode(&auth.auth) {
            Some(pair) if !auth.auth.is_empty() => pair,
            _ => (auth.username.clone(), auth.password.clone()),
        };
        let login = Login { username, password, identity_token: auth.identity_token.clone() };
        (login != Login::default()).then_some(login)
    }

    /// How to speak TLS with a host; `None` for plain HTTP.
    ///
    /// # Errors
    /// If a file that is named cannot be used.
    pub fn tls(&self, origin: &Origin) -> Result<Option<Arc<ClientConfig>>> {
        if !origin.secure {
            return Ok(None);
        }
        let none = Tls::default();
        let tls = self.host(origin).and_then(|host| host.tls.as_ref()).unwrap_or(&none);
        let read = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| std::fs::read(path).with_context(|| format!("read {}", path.display()))).transpose()
        };
        let authority = read(&tls.ca_file)?;
        let trust = match &authority {
            _ if tls.insecure_skip_verify => Trust::Anyone,
            Some(pem) => Trust::Authority(pem),
            None => Trust::System,
        };
        let (certificate, key) = (read(&tls.cert_file)?, read(&tls.key_file)?);
        let identity = certificate.as_ref().zip(key.as_ref()).map(|(certificate, key)| Identity { certificate, key });
        tls::client(trust, identity, false).map(Some)
    }

    fn host(&self, origin: &Origin) -> Option<&Host> {
        let authority = origin.authority();
        let with_port = format!("{}:{}", authority.strip_suffix(&format!(":{}", origin.port)).unwrap_or(&authority), origin.port);
        let docker = if authority == "registry-1.docker.io" { "docker.io" } else { ANY };
        [&with_port, &authority, docker, ANY].into_iter().find_map(|key| self.configs.get(key))
    }

    /// A host without a scheme: TLS, unless it is this very machine and no certificates are configured for it.
    fn origin(&self, authority: &str) -> Result<Origin> {
        let origin = Origin::parse(authority, true)?;
        let configured = self.host(&origin).is_some_and(|host| host.tls.is_some());
        if origin.is_loopback() && !configured { Origin::parse(authority, false) } else { Ok(origin) }
    }

    /// An endpoint and the path before the repository, `/v2` unless it has one of its own.
    fn endpoint(&self, endpoint: &str) -> Result<(Origin, String)> {
        let (scheme, rest) = match endpoint.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, endpoint),
        };
        let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path.trim_end_matches('/')));
        let origin = match scheme {
            Some("https") => Origin::parse(authority, true),
            Some("http") => Origin::parse(authority, false),
            None => self.origin(authority),
            Some(other) => bail!("endpoint {endpoint:?}: {other:?} is neither http nor https"),
        };
        let prefix = if path.is_empty() { "/v2".to_owned() } else { format!("/{path}") };
        Ok((origin.with_context(|| format!("endpoint {endpoint:?}"))?, prefix))
    }
}

impl Mirror {
    /// The first expression that matches is applied.
    fn rewritten(&self, repository: &str) -> Result<String> {
        for (pattern, replacement) in &self.rewrite {
            let pattern = Regex::new(pattern)?;
            if pattern.is_match(repository) {
                return Ok(pattern.replace_all(repository, replacement.as_str()).into_owned());
            }
        }
        Ok(repository.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(yaml: &str, image: &str) -> Vec<String> {
        let registries = Registries::parse(yaml.as_bytes()).unwrap();
        let sources = registries.sources(&Reference::parse(image).unwrap()).unwrap();
        sources.iter().map(|it| format!("{}{}/{}", it.origin, it.prefix, it.repository)).collect()
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        let check = |image: &str, expected: &str| assert_eq!(sources("", image), [expected]);
        check("nginx", "https://registry-1.docker.io/v2/library/nginx");
        check("quay.io/a/b", "https://quay.io/v2/a/b");
        check("localhost:5000/a", "http://localhost:5000/v2/a");
        check("127.0.0.1/a", "http://127.0.0.1/v2/a");
        check("[::1]:5000/a", "http://[::1]:5000/v2/a");
        check("10.0.0.1:5000/a", "https://10.0.0.1:5000/v2/a");
    }

    #[test]
    fn mirrors_come_first_with_their_paths_and_rewritten_names() {
        let yaml = r#"
mirrors:
  docker.io:
    endpoint: ["http://127.0.0.1:5000", "https://mirror.example/prefix/v2/", "localhost:5001"]
    rewrite:
      "^library/(.*)": "hub/$1"
  "*":
    endpoint: [https://any.example]
  plain.example:5000:
    endpoint: ["http://plain.example:5000"]
"#;
        let expected = [
            "http://127.0.0.1:5000/v2/hub/nginx",
            "https://mirror.example/prefix/v2/hub/nginx",
            "http://localhost:5001/v2/hub/nginx",
            "https://registry-1.docker.io/v2/library/nginx",
        ];
        assert_eq!(sources(yaml, "nginx"), expected);
        assert_eq!(sources(yaml, "quay.io/a"), ["https://any.example/v2/a", "https://quay.io/v2/a"]);
        assert_eq!(sources(yaml, "plain.example:5000/a"), ["http://plain.example:5000/v2/a"]);
    }

    #[test]
    fn hosts_have_logins_and_certificates_of_their_own() {
        let yaml = r#"
configs:
  "r.example:5000": {auth: {username: u, password: p}}
  r.example: {auth: {auth: "dXNlcjpwYXNz"}}
  docker.io: {auth: {username: hub, password: p}}
  "localhost:5000": {tls: {insecure_skip_verify: true}}
"#;
        let registries = Registries::parse(yaml.as_bytes()).unwrap();
        let user = |authority: &str| registries.login(&Origin::parse(authority, true).unwrap()).map(|login| login.username);
        assert_eq!(user("r.example:5000").as_deref(), Some("u"));
        assert_eq!(user("r.example").as_deref(), Some("user"));
        assert_eq!(user("registry-1.docker.io").as_deref(), Some("hub"));
        assert_eq!(user("else.example"), None);
        assert_eq!(sources(yaml, "localhost:5000/a"), ["https://localhost:5000/v2/a"]);
    }

    #[test]
    fn mistakes_in_the_file_are_told() {
        let check = |yaml: &str, expected: &str| {
            let error = format!("{:#}", Registries::parse(yaml.as_bytes()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("mirror: {}", "unknown field `mirror`");
        check("mirrors: {a.io: {endpoint: ['ftp://x']}}", "neither http nor https");
        check("mirrors: {a.io: {rewrite: {'(': x}}}", "rewrite \"(\"");
        check("configs: {a.io: {tls: {ca: x}}}", "unknown field `ca`");
    }
}
