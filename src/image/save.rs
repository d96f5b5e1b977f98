//! Writes images into one archive that is both an OCI layout and a docker-archive, so that edgectl, podman, docker and skopeo load it.
//! Layers stand in it uncompressed, made again from their recipes: the images keep their ids, only the manifests are new.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::digest::Hasher;
use super::document::{Config, Descriptor, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use super::store::Store;
use super::{Digest, Image, Platform, Reference, recipe};

/// Writes the images under the names that stand beside them. Blocks; belongs on a thread of its own.
pub fn save(store: &Store, images: &[(Image, Vec<Reference>)], target: impl Write) -> Result<()> {
    let _kept = store.keep_layers()?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, target));
    put(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut written = BTreeSet::new();
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    for (image, names) in images {
        let mut layers = Vec::new();
        for diff_id in &image.diff_ids {
            let record = store.layer_record(diff_id)?;
            if written.insert(*diff_id) {
                put_layer(&mut tar, store, diff_id, record.tar_bytes).with_context(|| format!("save layer {diff_id}"))?;
            }
            layers.push(descriptor(OCI_LAYER, *diff_id, record.tar_bytes));
        }
        let config = store.config(&image.id)?;
        if written.insert(image.id) {
            put(&mut tar, &blob(&image.id), &config)?;
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, image.id, config.len() as u64),
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).context("write a manifest")?;
        let digest = Digest::of(&manifest);
        if written.insert(digest) {
            put(&mut tar, &blob(&digest), &manifest)?;
        }
        let mut entry = descriptor(OCI_MANIFEST, digest, manifest.len() as u64);
        let facts: Value = serde_json::from_slice(&config).context("read the image configuration")?;
        entry.platform = serde_json::from_value(facts).ok();
        for name in names {
            let mut named = entry.clone();
            named.annotations = BTreeMap::from([
                ("io.containerd.image.name".to_owned(), name.to_string()),
                ("org.opencontainers.image.ref.name".to_owned(), name.tag.clone().unwrap_or_default()),
            ]);
            manifests.push(named);
        }
        if names.is_empty() {
            manifests.push(entry);
        }
        docker.push(json!({
            "Config": blob(&image.id),
            "RepoTags": names.iter().map(Reference::to_string).collect::<Vec<_>>(),
            "Layers": image.diff_ids.iter().map(blob).collect::<Vec<_>>(),
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    put(&mut tar, "index.json", &serde_json::to_vec(&index).context("write the index")?)?;
    put(&mut tar, "manifest.json", &serde_json::to_vec(&docker).context("write the list of images")?)?;
    let mut target = tar.into_inner().context(WRITE)?;
    target.flush().context(WRITE)
}

const WRITE: &str = "write the archive";

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
}

fn header(path: &str, size: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).context(WRITE)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn put<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) -> Result<()> {
    tar.append(&header(path, content.len() as u64)?, content).context(WRITE)
}

/// Its digest is known before its bytes are: it goes straight into the archive, and is found wrong afterwards or never.
fn put_layer<W: Write>(tar: &mut tar::Builder<W>, store: &Store, diff_id: &Digest, tar_bytes: u64) -> Result<()> {
    let target = tar.get_mut();
    target.write_all(header(&blob(diff_id), tar_bytes)?.as_bytes()).context(WRITE)?;
    let mut hashed = HashingWriter { target, hasher: Hasher::new() };
    recipe::write_tar(&store.layer(diff_id), &store.layer_record(diff_id)?.displaced, &mut hashed)?;
    let written = hashed.hasher.bytes();
    let found = hashed.hasher.finish();
    if found != *diff_id {
        bail!("the files of the layer were changed: as a tar they have the digest {found}; pull the image again");
    }
    let padding = written.next_multiple_of(512) - written;
    target.write_all(&[0; 512][..padding as usize]).context(WRITE)
}

struct HashingWriter<'a, W> {
    target: &'a mut W,
    hasher: Hasher,
}

impl<W: Write> Write for HashingWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.target.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

/// A configuration document for one layer.
pub fn config_document(config: &Config, platform: &Platform, created: &str, diff_id: &Digest) -> Result<Vec<u8>> {
    let mut document = json!({
        "created": created,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": created, "created_by": "edgectl" }],
    });
    for (key, value) in [("os", &platform.os), ("architecture", &platform.architecture), ("variant", &platform.variant)] {
        if !value.is_empty() {
            document[key] = json!(value);
        }
    }
    serde_json::to_vec(&document).context("write the image configuration")
}
