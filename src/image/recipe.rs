//! How to make a layer's tar again, byte for byte, from its unpacked files: all of the tar but the files' content, compressed.
//! So nothing is kept twice, and an image can still be saved, or given to another node, under the digests that it came with.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use serde::{Deserialize, Serialize};

/// Fast: headers of neighbours are alike and shrink tenfold anyway.
const ZSTD_LEVEL: i32 = 1;
/// Longest run of bytes in one frame.
const RAW_BYTES_MAX: usize = 64 << 10;
const PATH_BYTES_MAX: usize = 1 << 20;

const RAW: u8 = b'R';
const CONTENT: u8 = b'C';

/// Something of a layer that a later entry of the same layer took the place of. The recipe still needs its content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Displaced {
    /// Where it was, from the root of the layer.
    pub path: Vec<u8>,
    /// Its name in the folder `displaced`.
    pub number: u64,
    /// How many content frames came before its end: those after it mean its successor.
    pub frames: u64,
}

/// Writes the frames while a layer is unpacked: `R`, length, bytes; `C`, length of path, path, offset, length of content.
pub struct Writer {
    encoder: zstd::Encoder<'static, BufWriter<File>>,
    raw: Vec<u8>,
    frames: u64,
}

impl Writer {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).with_context(|| format!("make {}", path.display()))?;
        let encoder = zstd::Encoder::new(BufWriter::new(file), ZSTD_LEVEL).context("start the layer's recipe")?;
        Ok(Self { encoder, raw: Vec::new(), frames: 0 })
    }

    /// Notes bytes of the tar that are no content.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(RAW_BYTES_MAX) {
            if self.raw.len() + piece.len() > RAW_BYTES_MAX {
                self.flush_raw()?;
            }
            self.raw.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Notes that `length` bytes of the file `path`, from `offset`, stand here.
    pub fn content(&mut self, path: &[u8], offset: u64, length: u64) -> Result<()> {
        self.flush_raw()?;
        self.frames += 1;
        self.put(&[&[CONTENT], &(path.len() as u32).to_le_bytes(), path, &offset.to_le_bytes(), &length.to_le_bytes()])
    }

    pub fn frames(&self) -> u64 {
        self.frames
    }

    pub fn finish(mut self) -> Result<()> {
        self.flush_raw()?;
        let mut file = self.encoder.finish().context(WRITE)?;
        file.flush().context(WRITE)
    }

    fn flush_raw(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        self.put(&[&[RAW], &(raw.len() as u32).to_le_bytes(), &raw])?;
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    fn put(&mut self, parts: &[&[u8]]) -> Result<()> {
        parts.iter().try_for_each(|part| self.encoder.write_all(part)).context(WRITE)
    }
}

const WRITE: &str = "write the layer's recipe";

/// Writes the tar of the layer in `folder`. That it is the right one is for the caller to see by its digest.
///
/// # Errors
/// When a file of the layer is missing or shorter than it was, or the target takes no more.
pub fn write_tar(folder: &Path, displaced: &[Displaced], target: &mut dyn Write) -> Result<()> {
    let path = folder.join("recipe");
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let mut frames = zstd::Decoder::new(BufReader::new(file)).map(BufReader::new).context(READ)?;
    let open = |name| openat(rustix::fs::CWD, folder.join(name), OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let tree = open("tree").with_context(|| format!("open {}/tree", folder.display()))?;
    let mut index = 0;
    loop {
        let mut kind = [0];
        if frames.read(&mut kind).context(READ)? == 0 {
            return Ok(());
        }
        let length = u32::from_le_bytes(exact(&mut frames)?) as usize;
        if length > PATH_BYTES_MAX {
            bail!("the layer's recipe is damaged");
        }
        let mut bytes = vec![0; length];
        frames.read_exact(&mut bytes).context(READ)?;
        if kind[0] == RAW {
            target.write_all(&bytes).context("write the tar")?;
            continue;
        }
        let offset = u64::from_le_bytes(exact(&mut frames)?);
        let length = u64::from_le_bytes(exact(&mut frames)?);
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let below = |it: &&Displaced| {
            it.frames > index && bytes.strip_prefix(it.path.as_slice()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        let moved = displaced.iter().find(below);
        let moved =
            moved.map(|it| Ok::<_, io::Error>((open("displaced")?, [it.number.to_string().as_bytes(), &bytes[it.path.len()..]].concat())));
        let (root, path) = match moved.transpose().with_context(|| format!("open {}/displaced", folder.display()))? {
            Some((root, path)) => (root, path),
            None => (tree.try_clone().context("duplicate a descriptor")?, bytes),
        };
        let file =
            openat2(&root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS);
        let file = File::from(file.with_context(|| format!("open {shown:?} of the layer"))?);
        copy(&file, offset, length, target).with_context(|| format!("copy {shown:?} of the layer"))?;
        index += 1;
    }
}

const READ: &str = "read the layer's recipe";

fn exact<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).context(READ)?;
    Ok(bytes)
}

fn copy(mut file: &File, offset: u64, length: u64, target: &mut dyn Write) -> Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    let copied = io::copy(&mut file.take(length), target)?;
    if copied != length { bail!("it has {copied} bytes where {length} are expected") } else { Ok(()) }
}
