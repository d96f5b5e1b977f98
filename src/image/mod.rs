//! Images of containers: names, registries, layers on disk, archives. What an image is run with comes out as its `Config`, what it is
//! made of as folders for an overlay. It knows no pod and starts nothing.

mod archive;
mod build;
mod challenge;
mod claim;
mod credentials;
mod digest;
mod document;
mod layer;
mod load;

mod pull;
mod recipe;
mod reference;
mod registries;
mod registry;

mod save;
mod store;
mod tree;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;

pub use build::Build;
pub use claim::Claim;
pub use credentials::Credentials;
pub use digest::Digest;
pub use document::{Config, Platform};
pub use reference::Reference;
pub use registries::Registries;

use crate::base::time::Timestamp;
use crate::wire::dial::Dialer;
use store::Store;

/// An image that is here, with all its layers unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration document.
    pub id: Digest,
    /// Complete names with tags: `docker.io/library/nginx:latest`.
    pub names: Vec<String>,
    /// Complete names with the digest that a registry gave: `docker.io/library/nginx@sha256:…`. Empty for images that came by an archive.
    pub digests: Vec<String>,
    /// Bytes of all files in all layers. Layers that images share count for each.
    pub size_bytes: u64,
    pub config: Config,
    pub created: Option<Timestamp>,
    pub pulled: Timestamp,
    /// Folders with the unpacked layers, lowest first, ready to be lower layers of an overlay. Not to be written to.
    pub layers: Vec<PathBuf>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl Image {
    /// What Kubernetes shows as a container's `imageID`: the name with a registry's digest, or else the id.
    pub fn image_id(&self, reference: &Reference) -> String {
        let prefix = format!("{}@", reference.name());
        let named = self.digests.iter().find(|digest| digest.starts_with(&prefix));
        named.or(self.digests.first()).cloned().unwrap_or_else(|| self.id.to_string())
    }
}

/// Hears how a pull goes on. Called on the thread that pulls.
pub trait Progress {
    /// A layer begins to arrive; of `total_bytes`, `done_bytes` came before.
    fn begin(&self, layer: &Digest, total_bytes: u64, done_bytes: u64);
    /// So many bytes have arrived.
    fn advance(&self, layer: &Digest, done_bytes: u64);
    /// The layer is unpacked, or was here before.
    fn end(&self, layer: &Digest);
}

/// Nobody listens.
impl Progress for () {
    fn begin(&self, _: &Digest, _: u64, _: u64) {}
    fn advance(&self, _: &Digest, _: u64) {}
    fn end(&self, _: &Digest) {}
}

/// How to pull.
#[derive(Clone)]
pub struct PullOptions {
    /// Of the pod or of the user; tried in their order, then those of the registries file.
    pub credentials: Credentials,
    /// Mirrors, certificates and credentials of the node.
    pub registries: Rc<Registries>,
    pub platform: Platform,
    pub progress: Rc<dyn Progress>,
    pub dialer: Dialer,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            registries: Rc::default(),
            platform: Platform::host(),
            progress: Rc::new(()),
            dialer: Dialer::default(),
        }
    }
}

/// The images of one node. Clones share what they know of downloads that were cut off.
#[derive(Clone)]
pub struct Images {
    store: Store,
    downloads: Rc<pull::Downloads>,
}

impl Images {
    /// Opens the store in a folder of its own, makes it if it is not there, and sweeps what a crash left unfinished.
    /// Other processes may have it open at the same time.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self { store: Store::open(folder)?, downloads: Rc::default() })
    }

    /// The image of this name if it is here; asks no registry.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn get(&self, reference: &Reference) -> Result<Option<Image>> {
        self.store.find(reference)
    }

    /// All images, in the order of their ids.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.store.images()
    }

    /// Brings an image from its registry, or from a mirror of it. Layers that are here are not fetched again; with all of them here this
    /// still asks the registry what the name means now.
    ///
    /// # Errors
    /// Names image and registry and says what can be done. Nothing of the image is visible then; layers that were whole are kept
    /// for the next try, and a download that was cut off goes on where it stopped.
    pub async fn pull(&self, reference: &Reference, options: &PullOptions) -> Result<Image> {
        pull::pull(&self.store, &self.downloads, reference, options).await
    }

    /// Loads all images of an archive, docker-archive or OCI layout, plain or compressed, without seeking in it.
    ///
    /// # Errors
    /// If it is no such archive, is damaged, or lacks a layer; nothing of it is visible then.
    pub async fn load(&self, source: impl Read + Send + 'static) -> Result<Vec<Image>> {
        let store = self.store.clone();
        smol::unblock(move || load::load(&store, source)).await
    }

    /// Writes images, each under the names beside it, into one archive that is OCI layout and docker-archive in one.
    /// Image ids stay the same.
    ///
    /// # Errors
    /// If a layer was changed on disk, or the target takes no more.
    pub async fn save(&self, images: Vec<(Image, Vec<Reference>)>, target: impl Write + Send + 'static) -> Result<()> {
        let store = self.store.clone();
        smol::unblock(move || save::save(&store, &images, target)).await
    }

    /// Makes an image of one layer out of files of this machine.
    ///
    /// # Errors
    /// If a file cannot be read, or the store not written.
    pub async fn build(&self, build: Build) -> Result<Image> {
        let store = self.store.clone();
        smol::unblock(move || build::build(&store, &build)).await
    }

    /// Takes a name from an image; with its last name the image goes, and the layers that no other image has.
    /// Returns whether it was the last name. That no container runs from it is for the caller to see.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn remove_name(&self, image: &Digest, name: &Reference) -> Result<bool> {
        let (store, image, name) = (self.store.clone(), *image, name.clone());
        smol::unblock(move || store.forget(&image, Some(&name))).await
    }

    /// Takes a name from an image, or all of them; the image stays, also without a name.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn untag(&self, image: &Digest, name: Option<&Reference>) -> Result<()> {
        let (store, image, name) = (self.store.clone(), *image, name.cloned());
        smol::unblock(move || store.untag(&image, name.as_ref())).await
    }

    /// Removes an image under all its names, and the layers that no other image has.
    /// That no container runs from it is for the caller to see.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn remove(&self, image: &Digest) -> Result<()> {
        let (store, image) = (self.store.clone(), *image);
        smol::unblock(move || store.forget(&image, None)).await.map(drop)
    }
}
