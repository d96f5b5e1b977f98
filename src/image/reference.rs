//! Names of images: `registry/repository:tag@digest`, completed as containerd and Docker do (`docker.io/library/…:latest`).
//! It never asks a registry.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::Digest;

const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A complete image reference. Displayed in full: `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and, if given, port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub registry: String,
    /// Path below the registry: `library/nginx`.
    pub repository: String,
    /// `None` only beside a digest.
    pub tag: Option<String>,
    /// Wins over the tag when both are given, as the kubelet has it.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as users write it.
    ///
    /// # Errors
    /// Says what part of the name is wrong and how it would be right; nothing else can fail.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            bail!("image name is empty");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => match digest.parse::<Digest>() {
                Ok(digest) => (rest, Some(digest)),
                Err(error) => bail!("image name {text:?}: {error}"),
            },
            None => (text, None),
        };
        // A colon after the last slash parts the tag; one before it parts the port of the registry.
        let (name, tag) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains('/') && !rest.ends_with(']') => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        if name.len() > NAME_MAX {
            bail!("image name {text:?}: longer than {NAME_MAX} characters");
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if is_registry(host) => (host, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        check_registry(text, registry)?;
        check_repository(text, repository)?;
        let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        if is_official && Digest::from_hex(repository).is_some() {
            bail!("image name {text:?}: 64 hexadecimal digits are an image id, not a name");
        }
        let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository without tag and digest: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a registry is asked for: the digest or else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// `docker.io/library/nginx@sha256:…`, as Kubernetes shows it in `status.containerStatuses[].imageID`.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the part before the first slash names a registry rather than a folder on docker.io
/// (distribution/reference, `splitDockerDomain`).
fn is_registry(host: &str) -> bool {
    host.contains(['.', ':', '[']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(text: &str, registry: &str) -> Result<()> {
    let (host, port) = match registry.rfind(':') {
        Some(at) if !registry.ends_with(']') => (&registry[..at], Some(&registry[at + 1..])),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        bail!("image name {text:?}: {registry:?} has no valid port");
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            bail!("image name {text:?}: {host:?} is no IPv6 address");
        }
        return Ok(());
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !host.split('.').all(label) {
        bail!("image name {text:?}: {host:?} is no host name");
    }
    Ok(())
}

fn check_repository(text: &str, repository: &str) -> Result<()> {
    for component in repository.split('/') {
        if component.is_empty() {
            bail!("image name {text:?}: an empty path component");
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            bail!("image name {text:?}: repository {repository:?} must be lower case");
        }
        if !is_component(component) {
            bail!(
                "image name {text:?}: {component:?} is not valid: lower-case letters and digits, parted by one period, \
                 one or two underscores, or hyphens"
            );
        }
    }
    Ok(())
}

/// `[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*`, distribution/reference.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    let mut words = 0;
    for (at, byte) in component.bytes().enumerate() {
        if alphanumeric(byte) {
            let starts = at == 0;
            let parted = matches!(separator.as_str(), "." | "_" | "__") || (!separator.is_empty() && separator.bytes().all(|b| b == b'-'));
            if starts || parted {
                words += 1;
            } else if !separator.is_empty() {
                return false;
            }
            separator.clear();
        } else if matches!(byte, b'.' | b'_' | b'-') && words > 0 {
            separator.push(byte as char);
        } else {
            return false;
        }
    }
    words > 0 && separator.is_empty()
}

fn check_tag(text: &str, tag: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') && tag.len() <= TAG_MAX;
    if !valid {
        bail!(
            "image name {text:?}: tag {tag:?} is not valid: up to {TAG_MAX} letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed_as_containerd_does() {
        let check = |text: &str, expected: &str| assert_eq!(Reference::parse(text).unwrap().to_string(), expected, "{text}");
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("bitnami/redis", "docker.io/bitnami/redis:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check("127.0.0.1:5000/a/b/c:v1.0_x-2", "127.0.0.1:5000/a/b/c:v1.0_x-2");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9");
        check("x/a.b_c__d---e", "docker.io/x/a.b_c__d---e:latest");
        check(&format!("nginx@sha256:{HEX}"), &format!("docker.io/library/nginx@sha256:{HEX}"));
        check(&format!("nginx:1@sha256:{HEX}"), &format!("docker.io/library/nginx:1@sha256:{HEX}"));
    }

    #[test]
    fn complete_names_read_back_as_themselves() {
        for text in ["docker.io/library/nginx:latest", "localhost:5000/app:1", "Upper.example/app:1"] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_digest_is_what_a_registry_is_asked_for_when_there_is_one() {
        let reference = Reference::parse(&format!("nginx:1@sha256:{HEX}")).unwrap();
        assert_eq!(reference.version(), format!("sha256:{HEX}"));
        assert_eq!(Reference::parse("nginx:1").unwrap().version(), "1");
    }

    #[test]
    fn wrong_names_are_refused_with_the_part_that_is_wrong() {
        let check = |text: &str, expected: &str| {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "empty");
        check("Nginx", "must be lower case");
        check("nginx:", "tag \"\"");
        check("nginx:-a", "tag \"-a\"");
        check(&format!("nginx:{}", "a".repeat(129)), "up to 128");
        check("nginx@sha256:abc", "64 lower-case");
        check("nginx@md5:abc", "not supported");
        check("a//b", "empty path component");
        check("a/b/", "empty path component");
        check("/a", "empty path component");
        check("a..b/c", "");
        check("x/a..b", "\"a..b\" is not valid");
        check("x/a___b", "\"a___b\" is not valid");
        check("x/-a", "\"-a\" is not valid");
        check("x/a-", "\"a-\" is not valid");
        check("x/../b", "\"..\" is not valid");
        check("localhost:99999/a", "no valid port");
        check("ex..ample/a", "no host name");
        check("[::z]:5/a", "no IPv6 address");
        check("nginx latest", "is not valid");
        check(HEX, "image id");
        check(&"a".repeat(256), "longer than 255");
    }
}
