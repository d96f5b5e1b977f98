//! Brings an image from its registry: where to ask, in what order, how often, and what to keep when it fails half way.
//! It never makes a part of an image visible: layers are published whole, the image last.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use smol::Timer;

use super::document::{ConfigDocument, Descriptor, Document, Manifest};
use super::layer::Download;
use super::registry::{Failure, Served, Session, within_time};
use super::store::{CONFIG_BYTES_MAX, Partial, Store};
use super::{Digest, Image, PullOptions, Reference};

/// Layers that arrive at the same time.
const PARALLEL_MAX: usize = 3;
/// How often in a row a source may fail before it is given up; any progress starts the count anew.
const ATTEMPTS_MAX: u32 = 5;
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(8);
/// How long a download that was cut off waits for the next pull, and how many may.
const PARKED_TIME_MAX: Duration = Duration::from_secs(600);
const PARKED_MAX: usize = 6;
/// How long to wait for another process that is at the same layer, before fetching it too.
const OTHER_TIME_MAX: Duration = Duration::from_secs(30);
const OTHER_POLL: Duration = Duration::from_millis(100);
const LAYERS_MAX: usize = 500;

/// Downloads that were cut off and wait to go on, by the digest of the blob: what they have unpacked need not come again.
#[derive(Default)]
pub struct Downloads(RefCell<HashMap<Digest, (Instant, Download)>>);

impl Downloads {
    fn take(&self, digest: &Digest) -> Option<Download> {
        self.0.borrow_mut().remove(digest).map(|(_, download)| download)
    }

    fn park(self: &Rc<Self>, digest: Digest, download: Download) {
        let mut parked = self.0.borrow_mut();
        let oldest = parked.iter().min_by_key(|(_, (since, _))| *since).map(|(digest, _)| *digest);
        if let Some(oldest) = oldest.filter(|_| parked.len() >= PARKED_MAX) {
            parked.remove(&oldest);
        }
        parked.insert(digest, (Instant::now(), download));
        let weak = Rc::downgrade(self);
        crate::base::task::spawn(async move {
            Timer::after(PARKED_TIME_MAX).await;
            if let Some(downloads) = weak.upgrade() {
                downloads.0.borrow_mut().retain(|_, (since, _)| since.elapsed() < PARKED_TIME_MAX);
            }
        })
        .detach();
    }
}

/// See [`super::Images::pull`].
pub async fn pull(store: &Store, downloads: &Rc<Downloads>, reference: &Reference, options: &PullOptions) -> Result<Image> {
    let holder = store.clone();
    let _kept = smol::unblock(move || holder.keep_layers()).await?;
    let mut refusals = Vec::new();
    let sources = options.registries.sources(reference).with_context(|| format!("pull {reference}"))?;
    for source in sources {
        let logins = match &source.mirror_of {
            // The image's credentials are for its registry; a mirror has its own.
            Some(_) => Vec::new(),
            None => options.credentials.matching(reference).into_iter().cloned().collect(),
        };
        let logins = logins.into_iter().chain(options.registries.login(&source.origin)).collect();
        let session = Session::new(source, logins, options.registries.clone(), options.dialer.clone());
        let place = session.source.origin.to_string();
        match (Pull { store, downloads, reference, options, session: &session, failed: Cell::new(false) }).run().await {
            Ok(image) => return Ok(image),
            Err(error) => refusals.push((place, error)),
        }
    }
    // The registry itself was asked last: its answer is the error, those of the mirrors go before it.
    let (place, error) = refusals.pop().with_context(|| format!("pull {reference}: the registries file leaves no place to ask"))?;
    let mirrors: Vec<String> = refusals.iter().map(|(place, error)| format!("mirror {place}: {error:#}; ")).collect();
    Err(error.context(format!("pull {reference}: {}{place}", mirrors.concat())))
}

struct Pull<'a> {
    store: &'a Store,
    downloads: &'a Rc<Downloads>,
    reference: &'a Reference,
    options: &'a PullOptions,
    session: &'a Session,
    /// Set when one layer has failed: the others stop and wait for the next try.
    failed: Cell<bool>,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Image> {
        let (manifest, digest) = self.manifest().await?;
        let config = self.config(&manifest.config).await?;
        let diff_ids = ConfigDocument::parse(&config)?.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            bail!("the manifest has {} layers, the configuration {}", manifest.layers.len(), diff_ids.len());
        }
        if diff_ids.len() > LAYERS_MAX {
            bail!("the image has {} layers, at most {LAYERS_MAX} are taken", diff_ids.len());
        }
        self.layers(manifest.layers.iter().zip(diff_ids)).await?;
        let (store, name) = (self.store.clone(), self.reference.clone());
        smol::unblock(move || store.record(&config, Some(&name), Some(name.with_digest(&digest)))).await
    }

    /// The manifest for the wanted platform, and the digest that stands for the name.
    async fn manifest(&self) -> Result<(Manifest, Digest)> {
        let version = self.reference.version();
        let served = self.retry(|| self.session.manifest(&version)).await.map_err(|failure| self.explain(failure, "the manifest"))?;
        let digest = Digest::of(&served.bytes);
        if let Some(expected) = self.reference.digest.filter(|expected| *expected != digest) {
            bail!("the manifest has the digest {digest}: what came is not {expected}");
        }
        let index = match parse(&served)? {
            Document::Manifest(manifest) => return Ok((manifest, digest)),
            Document::Index(index) => index,
        };
        let chosen = index.choose(&self.options.platform)?;
        let version = chosen.digest.to_string();
        let served =
            self.retry(|| self.session.manifest(&version)).await.map_err(|failure| self.explain(failure, "the platform's manifest"))?;
        let found = Digest::of(&served.bytes);
        if found != chosen.digest {
            bail!("the manifest for {} has the digest {found}: what came is not {}", self.options.platform, chosen.digest);
        }
        match parse(&served)? {
            Document::Manifest(manifest) => Ok((manifest, digest)),
            Document::Index(_) => bail!("the index names another index for {}", self.options.platform),
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if let Ok(config) = self.store.config(&descriptor.digest) {
            return Ok(config);
        }
        let digest = descriptor.digest;
        let fetched = self.retry(|| self.session.small_blob(&digest, CONFIG_BYTES_MAX)).await;
        let bytes = fetched.map_err(|failure| self.explain(failure, "the configuration"))?;
        let found = Digest::of(&bytes);
        if found != digest {
            bail!("the configuration has the digest {found}: what came is not {digest}");
        }
        Ok(bytes.into())
    }

    /// Fetches the layers that are not here. Those that arrived whole are published even if others fail.
    async fn layers(&self, layers: impl Iterator<Item = (&Descriptor, Digest)>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let wanted: Vec<_> = layers.filter(|(_, diff_id)| seen.insert(*diff_id)).collect();
        let mut arriving =
            futures_util::stream::iter(wanted).map(|(descriptor, diff_id)| self.layer(descriptor, diff_id)).buffer_unordered(PARALLEL_MAX);
        let mut finished = Vec::new();
        let mut first_error = None;
        while let Some(result) = arriving.next().await {
            match result {
                Ok(layer) => finished.extend(layer),
                Err(error) => {
                    self.failed.set(true);
                    first_error.get_or_insert(error);
                }
            }
        }
        let store = self.store.clone();
        let published = smol::unblock(move || store.publish(finished)).await;
        match first_error {
            Some(error) => Err(error),
            None => published,
        }
    }

    async fn layer(&self, descriptor: &Descriptor, diff_id: Digest) -> Result<Option<(Digest, Partial)>> {
        let progress = &self.options.progress;
        if self.failed.get() {
            bail!("another layer failed");
        }
        let download = match self.downloads.take(&descriptor.digest) {
            Some(download) => Some(download),
            None => self.claim(descriptor, diff_id).await?,
        };
        let Some(mut download) = download else {
            progress.end(&descriptor.digest);
            return Ok(None);
        };
        progress.begin(&descriptor.digest, descriptor.size, download.received());
        match self.receive(descriptor, &mut download).await {
            Ok(()) => {}
            Err(failure) => {
                if matches!(failure, Failure::Temporary(..)) {
                    self.downloads.park(descriptor.digest, download);
                }
                return Err(self.explain(failure, &format!("layer {}", descriptor.digest)));
            }
        }
        let partial = download.finish().await.with_context(|| format!("layer {}", descriptor.digest))?;
        progress.end(&descriptor.digest);
        Ok(Some((diff_id, partial)))
    }

    /// Makes this task the one that unpacks a layer; `None` once the layer is here.
    async fn claim(&self, descriptor: &Descriptor, diff_id: Digest) -> Result<Option<Download>> {
        let since = Instant::now();
        loop {
            if self.store.has_layer(&diff_id) {
                return Ok(None);
            }
            let partial = match self.store.begin(&diff_id.hex())? {
                None if since.elapsed() > OTHER_TIME_MAX => Some(self.store.begin_unnamed()?),
                other => other,
            };
            match partial {
                Some(partial) if !self.store.has_layer(&diff_id) => return Ok(Some(Download::start(descriptor, diff_id, partial))),
                Some(_) => return Ok(None),
                None => drop(Timer::after(OTHER_POLL).await),
            }
        }
    }

    /// Brings the rest of a layer's bytes, as often as it takes: each request asks for what is still missing.
    async fn receive(&self, descriptor: &Descriptor, download: &mut Download) -> Result<(), Failure> {
        let mut attempts = 0;
        while download.received() < descriptor.size {
            let before = download.received();
            let failure = match self.stream(descriptor, download).await {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            let Failure::Temporary(error, after) = failure else { return Err(failure) };
            attempts = if download.received() > before { 1 } else { attempts + 1 };
            if attempts >= ATTEMPTS_MAX || self.failed.get() {
                let came = format!("{} of {} bytes came", download.received(), descriptor.size);
                return Err(Failure::Temporary(error.context(came), None));
            }
            log::debug!("layer={} received_bytes={} interrupted: {error:#}", descriptor.digest, download.received());
            pause(attempts, after).await;
        }
        Ok(())
    }

    /// One request for the rest of a layer.
    async fn stream(&self, descriptor: &Descriptor, download: &mut Download) -> Result<(), Failure> {
        let (response, mut at) = self.session.blob(&descriptor.digest, download.received()).await?;
        let mut body = response.into_body();
        while let Some(frame) = within_time(body.frame()).await? {
            if self.failed.get() {
                return Err(Failure::Temporary(anyhow!("another layer failed"), None));
            }
            let frame = frame.map_err(|error| Failure::Temporary(anyhow!(error).context("the connection broke"), None))?;
            let Ok(mut bytes) = frame.into_data() else { continue };
            // A server without ranges begins at the front again.
            let known = download.received().saturating_sub(at).min(bytes.len() as u64);
            at += bytes.len() as u64;
            let bytes = bytes.split_off(known as usize);
            if download.received() + bytes.len() as u64 > descriptor.size {
                return Err(Failure::Lasting(anyhow!("it is longer than the {} bytes that the manifest says", descriptor.size)));
            }
            if !bytes.is_empty() {
                download.push(bytes).await;
                self.options.progress.advance(&descriptor.digest, download.received());
            }
        }
        if download.received() < descriptor.size {
            // The registry believes that this was all; a proxy that cut it short may know better the next time.
            return Err(Failure::Temporary(anyhow!("it ended early"), None));
        }
        Ok(())
    }

    async fn retry<T, F: Future<Output = Result<T, Failure>>>(&self, ask: impl Fn() -> F) -> Result<T, Failure> {
        let mut attempts = 0;
        loop {
            let (error, after) = match ask().await {
                Err(Failure::Temporary(error, after)) => (error, after),
                other => return other,
            };
            attempts += 1;
            // Where there are others to ask, do not insist.
            if attempts >= if self.session.source.mirror_of.is_some() { 2 } else { ATTEMPTS_MAX } {
                return Err(Failure::Temporary(error, after));
            }
            pause(attempts, after).await;
        }
    }

    /// What went wrong, in the words of whoever wrote the image's name.
    fn explain(&self, failure: Failure, what: &str) -> anyhow::Error {
        let repository = &self.session.source.repository;
        match failure {
            Failure::NotFound if what == "the manifest" => {
                anyhow!("not found: there is no {:?} of {repository:?} (or a login is needed to see it)", self.reference.version())
            }
            Failure::NotFound => anyhow!("not found: {what} of {repository:?} is missing in the registry"),
            Failure::Denied(error) => error
                .context(format!("unauthorized: {what} of {repository:?} (give a login by imagePullSecrets or in the registries file)")),
            Failure::Temporary(error, _) | Failure::Lasting(error) => error.context(what.to_owned()),
        }
    }
}

fn parse(served: &Served) -> Result<Document> {
    Document::parse(&served.bytes, &served.media_type)
}

/// Doubles with every attempt; up to half of it is chance, so that nodes that failed together do not come back together.
async fn pause(attempts: u32, after: Option<Duration>) {
    let delay = (BACK_OFF_MIN * 2u32.pow(attempts.min(10))).min(BACK_OFF_MAX);
    let chance = crate::base::id::random::<1>()[0];
    Timer::after(after.unwrap_or(delay / 2 + delay / 2 * u32::from(chance) / 255)).await;
}

#[cfg(test)]
mod tests;
