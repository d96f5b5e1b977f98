//! Reads images from an archive, front to back and once, so that it may come from a pipe: docker-archive (`docker save`, `podman save`)
//! or OCI layout, plain or compressed. Layers are unpacked as they pass; which image they belong to is seen at the end.
//! It never makes anything visible before the archive was read to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::archive::{Archive, Kind};
use super::document::{ConfigDocument, Document, Index};
use super::layer::decompressor;
use super::store::{CONFIG_BYTES_MAX, Partial, Store};
use super::{Digest, Image, Platform, Reference, tree};

const BUFFER_BYTES: usize = 128 << 10;
/// All JSON documents of an archive together.
const DOCUMENTS_BYTES_MAX: usize = 32 << 20;

/// A row of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
}

/// What was found in an archive.
#[derive(Default)]
struct Contents {
    documents: BTreeMap<String, Vec<u8>>,
    documents_bytes: usize,
    layers: BTreeMap<Digest, Partial>,
}

/// Loads all images of the archive. Blocks; belongs on a thread of its own.
pub fn load(store: &Store, source: impl Read) -> Result<Vec<Image>> {
    let _kept = store.keep_layers()?;
    let mut contents = read(store, source)?;
    let images = contents.images()?;
    let mut wanted = BTreeSet::new();
    for (config, _) in &images {
        wanted.extend(ConfigDocument::parse(config)?.rootfs.diff_ids);
    }
    for diff_id in &wanted {
        if !contents.layers.contains_key(diff_id) && !store.has_layer(diff_id) {
            bail!("the archive does not hold layer {diff_id} of an image in it, or holds it damaged");
        }
    }
    let layers = std::mem::take(&mut contents.layers);
    store.publish(layers.into_iter().filter(|(diff_id, _)| wanted.contains(diff_id)).collect())?;
    let mut loaded = Vec::new();
    for (config, names) in images {
        let mut image = store.record(&config, names.first(), None)?;
        for name in names.iter().skip(1) {
            image = store.record(&config, Some(name), None)?;
        }
        // What was loaded now goes first: the image may have had other names before.
        let names: Vec<String> = names.iter().map(Reference::to_string).collect();
        image.names.sort_by_key(|name| !names.contains(name));
        loaded.push(image);
    }
    Ok(loaded)
}

fn read(store: &Store, source: impl Read) -> Result<Contents> {
    let source = decompressor(BufReader::with_capacity(BUFFER_BYTES, source))?;
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER_BYTES, source), None);
    let mut contents = Contents::default();
    while let Some(entry) = archive.next()? {
        if entry.kind != Kind::File || entry.size == 0 {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        let mut content = archive.reader();
        let start = content.fill_buf().with_context(|| format!("read {path:?}"))?;
        let is_document = matches!(start.first(), Some(b'{' | b'['));
        let is_compressed = start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if is_document && entry.size as usize <= CONFIG_BYTES_MAX {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).with_context(|| format!("read {path:?}"))?;
            contents.add_document(path, bytes)?;
        } else if !has_layer_named(store, &path) && (is_compressed || path.ends_with(".tar") || path.starts_with("blobs/")) {
            let partial = store.begin_unnamed()?;
            let plain = BufReader::with_capacity(BUFFER_BYTES, decompressor(content)?);
            let diff_id = tree::unpack(plain, partial.path()).with_context(|| format!("layer {path:?}"))?;
            contents.layers.insert(diff_id, partial);
        }
    }
    Ok(contents)
}

/// Whether a layer's name says that it is one that is here already: saved archives name layers by their diffID.
fn has_layer_named(store: &Store, path: &str) -> bool {
    let parts = path.split('/').map(|part| part.trim_end_matches(".tar"));
    parts.filter_map(Digest::from_hex).any(|digest| store.has_layer(&digest))
}

impl Contents {
    fn add_document(&mut self, path: String, bytes: Vec<u8>) -> Result<()> {
        self.documents_bytes += bytes.len();
        if self.documents_bytes > DOCUMENTS_BYTES_MAX {
            bail!("the archive holds more than {DOCUMENTS_BYTES_MAX} bytes of JSON");
        }
        self.documents.insert(path, bytes);
        Ok(())
    }

    /// Configurations and names of all images.
    fn images(&self) -> Result<Vec<(Vec<u8>, Vec<Reference>)>> {
        if let Some(manifest) = self.documents.get("manifest.json") {
            return self.docker_images(manifest);
        }
        let Some(index) = self.documents.get("index.json") else {
            bail!("this is neither a docker-archive nor an OCI layout: it has no manifest.json and no index.json");
        };
        let index: Index = serde_json::from_slice(index).context("read index.json")?;
        let mut images = Vec::new();
        for entry in &index.manifests {
            let mut document = Document::parse(self.blob(&entry.digest)?, &entry.media_type)?;
            if let Document::Index(index) = &document {
                let chosen = index.choose(&Platform::host())?;
                document = Document::parse(self.blob(&chosen.digest)?, &chosen.media_type)?;
            }
            let Document::Manifest(manifest) = document else { bail!("an index within an index within an index") };
            let config = self.blob(&manifest.config.digest)?.to_vec();
            let name =
                ["io.containerd.image.name", "org.opencontainers.image.ref.name"].iter().filter_map(|key| entry.annotations.get(*key));
            // A bare tag is no name.
            let name = name.filter(|name| name.contains([':', '/'])).find_map(|name| Reference::parse(name).ok());
            images.push((config, name.into_iter().collect()));
        }
        Ok(images)
    }

    fn docker_images(&self, manifest: &[u8]) -> Result<Vec<(Vec<u8>, Vec<Reference>)>> {
        let rows: Vec<DockerImage> = serde_json::from_slice(manifest).context("read manifest.json")?;
        let mut images = Vec::new();
        for row in rows {
            let config = self.documents.get(row.config.trim_start_matches("./"));
            let config = config.with_context(|| format!("the archive does not hold the configuration {:?}", row.config))?;
            let names = row.repo_tags.unwrap_or_default().iter().map(|name| Reference::parse(name)).collect::<Result<_>>()?;
            images.push((config.clone(), names));
        }
        Ok(images)
    }

    fn blob(&self, digest: &Digest) -> Result<&[u8]> {
        let bytes = self.documents.get(&format!("blobs/sha256/{}", digest.hex()));
        let bytes = bytes.with_context(|| format!("the archive does not hold {digest}, which it names"))?;
        let found = Digest::of(bytes);
        if found != *digest { bail!("{digest} in the archive has the digest {found}") } else { Ok(bytes) }
    }
}
