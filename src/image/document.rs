//! The JSON documents of an image: manifest, index, configuration, in OCI's and Docker's media types, with the fields that are acted on.
//! It never fetches anything, and keeps no document: the bytes behind a digest are the caller's.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Digest;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A pointer to content (OCI image specification, "Descriptors").
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes of the content as it is transferred.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

#[derive(Debug, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// What a registry or an archive answers for a name.
#[derive(Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the other side calls it; the document's own word goes first, its shape last.
    ///
    /// # Errors
    /// On documents that are neither, and on Docker's schema 1, which nothing has written since 2017.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).context("read manifest")?;
        if value["schemaVersion"] == 1 {
            bail!("the image has only a manifest of Docker's schema 1, which is not supported: push it again with a current tool");
        }
        let said = value["mediaType"].as_str().unwrap_or(media_type.split(';').next().unwrap_or_default().trim());
        let is_index = match said {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            _ => value.get("manifests").is_some(),
        };
        Ok(if is_index {
            Self::Index(serde_json::from_value(value).context("read image index")?)
        } else {
            Self::Manifest(serde_json::from_value(value).context("read image manifest")?)
        })
    }
}

impl Index {
    /// The manifest to run on `platform`: its exact variant, or the best older one that it also runs; the first of equals.
    ///
    /// # Errors
    /// When there is none: the message lists what there is.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor> {
        let rank = |descriptor: &Descriptor| match &descriptor.platform {
            Some(offered) => platform.rank(offered),
            // An index of one nameless manifest is how some tools write a single-platform image.
            None => (self.manifests.len() == 1).then_some(0),
        };
        let best = self.manifests.iter().rev().filter_map(|it| rank(it).map(|rank| (rank, it))).max_by_key(|(rank, _)| *rank);
        if let Some((_, descriptor)) = best {
            return Ok(descriptor);
        }
        let offered: Vec<String> = self.manifests.iter().filter_map(|it| it.platform.as_ref()).map(Platform::to_string).collect();
        bail!("no image for {platform} in the index, only for {}", if offered.is_empty() { "none".into() } else { offered.join(", ") })
    }
}

impl Platform {
    /// The platform of this very binary. 32-bit ARM is v7: the only 32-bit ARM target that is built.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// Reads `linux/arm/v7`, as `--platform` takes it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next().unwrap_or_default(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.into() })
            }
            _ => bail!("platform {text:?}: os/architecture or os/architecture/variant expected, as in linux/arm/v7"),
        }
    }

    /// How well `offered` suits `self`: `None` not at all, else the higher the better.
    /// arm v7 also runs v6 and v5, and nothing newer; a missing variant means v7 for arm and v8 for arm64 (containerd/platforms).
    fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_str()) {
            ("arm", "") => Some(7),
            ("arm64", "") => Some(8),
            (_, "") => Some(1),
            (_, variant) => variant.strip_prefix('v')?.split('.').next()?.parse::<u32>().ok(),
        };
        match (level(self), level(offered)) {
            (Some(mine), Some(theirs)) => (theirs <= mine).then_some(theirs),
            _ => (self.variant == offered.variant).then_some(1),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// How a container of the image is run, from the image's configuration (OCI image specification, "Image Configuration").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    #[serde(rename = "Entrypoint", default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(rename = "Cmd", default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    #[serde(rename = "Env", default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty means root.
    #[serde(rename = "User", default, deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(rename = "WorkingDir", default, deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// A signal's name or number; empty means SIGTERM.
    #[serde(rename = "StopSignal", default, deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Paths that the image wants to be volumes.
    #[serde(rename = "Volumes", default, deserialize_with = "keys", serialize_with = "as_keys", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// `80/tcp`.
    #[serde(
        rename = "ExposedPorts",
        default,
        deserialize_with = "keys",
        serialize_with = "as_keys",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exposed_ports: Vec<String>,
    #[serde(rename = "Labels", default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The configuration document: its digest is the image's id.
#[derive(Debug, Deserialize)]
pub struct ConfigDocument {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: Config,
    #[serde(default)]
    pub created: Option<String>,
    pub rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub struct RootFs {
    #[serde(deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

impl ConfigDocument {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).context("read image configuration")
    }
}

/// Go writes empty slices, maps and strings as null.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A set is an object with empty objects as values.
fn keys<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<BTreeMap<String, Value>>::deserialize(deserializer)?.unwrap_or_default().into_keys().collect())
}

fn as_keys<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(keys.iter().map(|key| (key, BTreeMap::<(), ()>::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms
            .iter()
            .enumerate()
            .map(|(at, platform)| Descriptor {
                media_type: OCI_MANIFEST.into(),
                digest: Digest::of(&[at as u8]),
                size: at as u64,
                platform: (!platform.is_empty()).then(|| Platform::parse(platform).unwrap()),
                annotations: BTreeMap::new(),
            })
            .collect();
        Index { manifests }
    }

    #[test]
    fn an_index_gives_the_best_variant_that_the_platform_runs() {
        let check = |wanted: &str, offered: &[&str], expected: Option<u64>| {
            let index = index(offered);
            let chosen = index.choose(&Platform::parse(wanted).unwrap()).ok().map(|it| it.size);
            assert_eq!(chosen, expected, "{wanted} of {offered:?}");
        };
        check("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1));
        check("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1));
        check("linux/arm/v7", &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], Some(1));
        check("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6"], Some(1));
        check("linux/arm/v6", &["linux/arm/v7", "linux/arm/v6"], Some(1));
        check("linux/arm/v6", &["linux/arm/v7"], None);
        check("linux/arm/v7", &["linux/arm"], Some(0));
        check("linux/arm64/v8", &["linux/arm64", "linux/arm64/v8"], Some(0));
        check("linux/arm64/v8", &["linux/arm/v7", "linux/arm64/v8"], Some(1));
        check("linux/arm64", &["windows/arm64", "linux/arm64/v8"], Some(1));
        check("linux/riscv64", &["linux/amd64", "unknown/unknown"], None);
        check("linux/amd64", &[""], Some(0));
    }

    #[test]
    fn a_platform_that_is_not_offered_is_an_error_that_lists_what_is() {
        let error = index(&["linux/amd64", "linux/arm/v7"]).choose(&Platform::parse("linux/riscv64").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "no image for linux/riscv64 in the index, only for linux/amd64, linux/arm/v7");
    }

    #[test]
    fn documents_are_known_by_media_type_or_else_by_shape() {
        let digest = Digest::of(b"");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":2}},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes(), OCI_MANIFEST).unwrap(), Document::Manifest(_)));
        assert!(matches!(Document::parse(manifest.as_bytes(), "application/json; charset=utf-8").unwrap(), Document::Manifest(_)));
        let list = r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#;
        assert!(matches!(Document::parse(list.as_bytes(), "").unwrap(), Document::Index(_)));
        assert!(Document::parse(br#"{"schemaVersion":1}"#, "").unwrap_err().to_string().contains("schema 1"));
        assert!(Document::parse(b"<html>", "").is_err());
    }

    #[test]
    fn configurations_are_read_with_gos_nulls_and_written_back_the_same() {
        let text = r#"{"config":{"Entrypoint":null,"Cmd":["sh"],"Env":["A=1"],"ExposedPorts":{"80/tcp":{}},"Volumes":null,"Labels":null,"User":"1"},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let document = ConfigDocument::parse(text.as_bytes()).unwrap();
        let expected = Config {
            cmd: vec!["sh".into()],
            env: vec!["A=1".into()],
            exposed_ports: vec!["80/tcp".into()],
            user: "1".into(),
            ..Config::default()
        };
        assert_eq!(document.config, expected);
        let written = serde_json::to_value(&document.config).unwrap();
        assert_eq!(written, serde_json::json!({"Cmd":["sh"],"Env":["A=1"],"ExposedPorts":{"80/tcp":{}},"User":"1"}));
    }
}
