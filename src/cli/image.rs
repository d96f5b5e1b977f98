//! `edgectl image …`: the images of this machine, without the API: pull, ls, rm, load, save. It works on the store's folder beside a
//! running agent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Context;
use super::tabwriter::Tabwriter;
use crate::base::time::Timestamp;
use crate::image::{Claim, Credentials, Digest, Image, Images, Platform, Progress, PullOptions, Reference, Registries};

pub const PULL_EXAMPLES: &str = "  # Pull an image for this board
  edgectl image pull nginx:1.27

  # Pull another platform's image into the store of a node of the lab
  edgectl image pull --root /tmp/node1 --platform linux/arm/v7 registry.local:5000/app:v2
";
pub const LS_EXAMPLES: &str = "  # List the images of this machine
  edgectl image ls

  # Only their ids
  edgectl image ls -q
";
pub const RM_EXAMPLES: &str = "  # Remove a name; the image goes with its last name
  edgectl image rm nginx:1.27

  # Remove an image under all its names
  edgectl image rm 3f57d9401f8d

  # Take the name from an image that a container runs from; the image goes when disk space is needed
  edgectl image rm --force nginx:1.27
";
pub const LOAD_EXAMPLES: &str = "  # Load what docker, podman, skopeo or edgectl saved, also compressed
  edgectl image load -i images.tar.gz

  # Load from standard input
  zstdcat images.tar.zst | edgectl image load
";
pub const SAVE_EXAMPLES: &str = "  # Save two images into one archive that edgectl, podman, docker and skopeo load
  edgectl image save -o images.tar nginx:1.27 redis:7
";

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "pull")]
/// pull an image from its registry
pub struct PullFlags {
    /// folder under which /var/lib/edgectl and /etc/edgectl lie
    #[argh(option)]
    root: Option<PathBuf>,
    /// os/architecture[/variant] instead of this machine's
    #[argh(option)]
    platform: Option<String>,
    /// docker's config.json with logins
    #[argh(option)]
    authfile: Option<PathBuf>,
    /// no progress, only the names
    #[argh(switch, short = 'q')]
    quiet: bool,
    #[argh(positional)]
    names: Vec<String>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "ls")]
/// list the images of this machine
pub struct LsFlags {
    /// folder under which /var/lib/edgectl lies
    #[argh(option)]
    root: Option<PathBuf>,
    /// only ids
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// whole ids and registry digests
    #[argh(switch)]
    digests: bool,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "rm")]
/// remove names or images
pub struct RmFlags {
    /// folder under which /var/lib/edgectl lies
    #[argh(option)]
    root: Option<PathBuf>,
    /// of an image that a container uses, remove the name only
    #[argh(switch, short = 'f')]
    force: bool,
    /// names or ids
    #[argh(positional)]
    names: Vec<String>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "load")]
/// load images from an archive
pub struct LoadFlags {
    /// folder under which /var/lib/edgectl lies
    #[argh(option)]
    root: Option<PathBuf>,
    /// the archive; standard input without it or with -
    #[argh(option, short = 'i')]
    input: Option<PathBuf>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "save")]
/// save images into an archive
pub struct SaveFlags {
    /// folder under which /var/lib/edgectl lies
    #[argh(option)]
    root: Option<PathBuf>,
    /// the archive to write; standard output without it or with -
    #[argh(option, short = 'o')]
    output: Option<PathBuf>,
    /// names or ids
    #[argh(positional)]
    names: Vec<String>,
}

pub async fn pull(cx: &Context, flags: PullFlags) -> Result<u8> {
    let names = at_least_one(&flags.names)?.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>>>()?;
    let images = open(flags.root.as_deref())?;
    let bars = Rc::new(Bars::new(flags.quiet));
    let credentials = match &flags.authfile {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            Credentials::from_docker_config_json(&bytes).with_context(|| format!("read {}", path.display()))?
        }
        None => Credentials::default(),
    };
    let options = PullOptions {
        credentials,
        registries: Rc::new(Registries::read(&below(flags.root.as_deref(), "etc/edgectl/registries.yaml"))?),
        platform: flags.platform.as_deref().map_or_else(|| Ok(Platform::host()), Platform::parse)?,
        progress: bars.clone(),
        ..PullOptions::default()
    };
    for name in names {
        bars.say(&format!("pulling {name}"));
        let image = images.pull(&name, &options).await;
        bars.clear();
        let image = image?;
        match flags.quiet {
            true => cx.println(&name.to_string())?,
            false => cx.println(&format!("{name}: {} in {} layers, {}", size(image.size_bytes), image.layers.len(), image.id))?,
        }
    }
    Ok(0)
}

pub async fn ls(cx: &Context, flags: LsFlags) -> Result<u8> {
    let images = open(flags.root.as_deref())?.list()?;
    if flags.quiet {
        for image in &images {
            cx.println(&image.id.to_string())?;
        }
        return Ok(0);
    }
    let mut table = Tabwriter::for_tables();
    table.write(if flags.digests { "REPOSITORY\tTAG\tDIGEST\tIMAGE ID\tAGE\tSIZE\n" } else { "REPOSITORY\tTAG\tIMAGE ID\tAGE\tSIZE\n" });
    let mut rows: Vec<[String; 6]> = images.iter().flat_map(|image| rows(image, flags.digests)).collect();
    rows.sort();
    for row in rows {
        let cells: Vec<&str> = row.iter().enumerate().filter(|(at, _)| flags.digests || *at != 2).map(|(_, cell)| cell.as_str()).collect();
        table.write(&(cells.join("\t") + "\n"));
    }
    cx.print(&table.flush())?;
    Ok(0)
}

pub async fn rm(cx: &Context, flags: RmFlags) -> Result<u8> {
    let images = open(flags.root.as_deref())?;
    for name in at_least_one(&flags.names)? {
        let claims = Claim::all(&below(flags.root.as_deref(), "var/lib/edgectl/pods"))?;
        if let Err(error) = remove(cx, &images, name, &claims, flags.force).await {
            cx.fail(&error);
        }
    }
    Ok(0)
}

async fn remove(cx: &Context, images: &Images, name: &str, claims: &[Claim], force: bool) -> Result<()> {
    let (image, name) = match find(images, name)? {
        Found::ByName(image, reference) => (image, Some(reference)),
        Found::ById(image) => (image, None),
    };
    // With a name left the image stays anyway.
    let is_last = name.as_ref().is_none_or(|name| image.names.iter().all(|other| *other == name.to_string()));
    let claim = claims.iter().find(|claim| claim.image == image.id).filter(|_| is_last);
    match (claim, &name) {
        (Some(claim), _) if !force => {
            let what = name.map_or_else(|| image.id.to_string(), |name| name.to_string());
            bail!("image {what} is used by {}; --force takes only its name", claim.holder);
        }
        (Some(_), _) => {
            images.untag(&image.id, name.as_ref()).await?;
            for name in image.names {
                cx.println(&format!("untagged: {name}"))?;
            }
        }
        (None, Some(name)) => {
            let gone = images.remove_name(&image.id, name).await?;
            cx.println(&format!("untagged: {name}"))?;
            if gone {
                cx.println(&format!("deleted: {}", image.id))?;
            }
        }
        (None, None) => {
            images.remove(&image.id).await?;
            cx.println(&format!("deleted: {}", image.id))?;
        }
    }
    Ok(())
}

pub async fn load(cx: &Context, flags: LoadFlags) -> Result<u8> {
    let source: Box<dyn Read + Send> = match flags.input.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => Box::new(File::open(path).with_context(|| format!("open {}", path.display()))?),
        None if std::io::stdin().is_terminal() => bail!("give an archive with -i FILE or on standard input"),
        None => Box::new(std::io::stdin()),
    };
    for image in open(flags.root.as_deref())?.load(source).await? {
        let name = image.names.first().map_or_else(|| image.id.to_string(), String::clone);
        cx.println(&format!("loaded: {name}"))?;
    }
    Ok(0)
}

pub async fn save(_: &Context, flags: SaveFlags) -> Result<u8> {
    let images = open(flags.root.as_deref())?;
    let mut chosen: Vec<(Image, BTreeSet<Reference>)> = Vec::new();
    for name in at_least_one(&flags.names)? {
        let (image, names) = match find(&images, name)? {
            Found::ByName(image, reference) => (image, BTreeSet::from([reference])),
            Found::ById(image) => {
                let names = image.names.iter().map(|name| Reference::parse(name)).collect::<Result<_>>()?;
                (image, names)
            }
        };
        match chosen.iter_mut().find(|(other, _)| other.id == image.id) {
            Some((_, others)) => others.extend(names),
            None => chosen.push((image, names)),
        }
    }
    let chosen = chosen.into_iter().map(|(image, names)| (image, names.into_iter().collect())).collect();
    match flags.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
            let saved = images.save(chosen, file).await;
            if saved.is_err() {
                // Half an archive is of no use to anybody.
                let _ = std::fs::remove_file(path);
            }
            saved?;
        }
        None if std::io::stdout().is_terminal() => bail!("an archive is not shown on a terminal: give a file with -o FILE"),
        None => images.save(chosen, std::io::stdout()).await?,
    }
    Ok(0)
}

enum Found {
    ByName(Image, Reference),
    ById(Image),
}

/// The image that a user means: by name, by id, or by the beginning of one.
fn find(images: &Images, text: &str) -> Result<Found> {
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let could_be_id = prefix.len() >= 4 && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    if let Ok(reference) = Reference::parse(text)
        && let Some(image) = images.get(&reference)?
    {
        return Ok(Found::ByName(image, reference));
    }
    let mut matching = images.list()?;
    matching.retain(|image| could_be_id && image.id.hex().starts_with(prefix));
    match matching.len() {
        0 => bail!("image {text:?} is not here; 'edgectl image ls' shows those that are"),
        1 => Ok(Found::ById(matching.remove(0))),
        several => bail!("{several} images have an id that begins with {prefix}"),
    }
}

fn rows(image: &Image, digests: bool) -> Vec<[String; 6]> {
    let id = if digests { image.id.to_string() } else { image.id.hex()[..12].to_owned() };
    let age = age(Timestamp::now().since(image.created.unwrap_or(image.pulled)).as_secs());
    let digest_of = |repository: &str| {
        image
            .digests
            .iter()
            .filter_map(|digest| digest.split_once('@'))
            .find(|(name, _)| *name == repository)
            .map(|(_, digest)| digest.to_owned())
    };
    let none = || "<none>".to_owned();
    let row = |repository: String, tag: String| {
        let digest = digest_of(&repository).unwrap_or_else(none);
        [repository, tag, digest, id.clone(), age.clone(), size(image.size_bytes)]
    };
    let mut rows: Vec<_> = image
        .names
        .iter()
        .filter_map(|name| Reference::parse(name).ok())
        .map(|name| row(name.name(), name.tag.unwrap_or_default()))
        .collect();
    if rows.is_empty() {
        let repository = image.digests.first().and_then(|digest| digest.split_once('@')).map_or_else(none, |(name, _)| name.to_owned());
        rows.push(row(repository, none()));
    }
    rows
}

fn at_least_one(names: &[String]) -> Result<&[String]> {
    if names.is_empty() { Err(anyhow!("give the name of an image")) } else { Ok(names) }
}

fn below(root: Option<&Path>, place: &str) -> PathBuf {
    root.unwrap_or(Path::new("/")).join(place)
}

fn open(root: Option<&Path>) -> Result<Images> {
    Images::open(&below(root, "var/lib/edgectl/images"))
}

/// Bytes in the unit that leaves up to three digits before the point: `12.3MB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 { format!("{value:.0}{}", UNITS[unit]) } else { format!("{value:.1}{}", UNITS[unit]) }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// One bar for each layer on a terminal, else a line when it begins and one when it ends.
struct Bars {
    lines: Lines,
    layers: RefCell<BTreeMap<Digest, ProgressBar>>,
    all: MultiProgress,
}

#[derive(PartialEq)]
enum Lines {
    Bars,
    Plain,
    Quiet,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        let lines = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Lines::Quiet,
            (false, true) => Lines::Bars,
            (false, false) => Lines::Plain,
        };
        Self { lines, layers: RefCell::default(), all: MultiProgress::new() }
    }

    fn say(&self, line: &str) {
        if self.lines != Lines::Quiet {
            // A terminal that is gone is no reason to stop the pull.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    fn clear(&self) {
        let _ = self.all.clear();
        self.layers.borrow_mut().clear();
    }
}

impl Progress for Bars {
    fn begin(&self, layer: &Digest, total_bytes: u64, done_bytes: u64) {
        match self.lines {
            Lines::Quiet => {}
            Lines::Plain => self.say(&format!("layer {}: {}", &layer.hex()[..12], size(total_bytes))),
            Lines::Bars => {
                let style = ProgressStyle::with_template("{prefix} [{bar:32}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}");
                let bar = ProgressBar::new(total_bytes).with_position(done_bytes).with_prefix(layer.hex()[..12].to_owned());
                let bar = match style {
                    Ok(style) => bar.with_style(style.progress_chars("=> ")),
                    Err(_) => bar,
                };
                self.layers.borrow_mut().insert(*layer, self.all.add(bar));
            }
        }
    }

    fn advance(&self, layer: &Digest, done_bytes: u64) {
        if let Some(bar) = self.layers.borrow().get(layer) {
            bar.set_position(done_bytes);
        }
    }

    fn end(&self, layer: &Digest) {
        match self.layers.borrow().get(layer) {
            Some(bar) => bar.finish(),
            None if self.lines == Lines::Plain => self.say(&format!("layer {}: done", &layer.hex()[..12])),
            None => {}
        }
    }
}
