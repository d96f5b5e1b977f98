//! One layer on its way from the wire to the disk: two threads, one hashes and decompresses, one hashes again and writes.
//! It never holds more than a few buffers, and makes nothing visible: that is the store's.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use smol::Task;
use smol::channel::{self, Sender};

use super::digest::{Digest, Hasher};
use super::document::Descriptor;
use super::store::Partial;
use super::tree;

/// Pieces as they come from the network that may wait for the decompressor. One may have hundreds of KiB.
const PIECES_MAX: usize = 4;
/// Decompressed pieces that may wait for the disk.
const BUFFERS_MAX: usize = 4;
const BUFFER_BYTES: usize = 128 << 10;

/// A layer that is being unpacked while its bytes arrive. Dropped, it leaves nothing behind.
pub struct Download {
    sender: Sender<Piece>,
    received: u64,
    expected: Digest,
    diff_id: Digest,
    /// Digest of all that came, if all came, and how decompressing went.
    decompressing: Task<(Option<Digest>, Result<()>)>,
    unpacking: Task<Result<(Digest, Partial)>>,
}

enum Piece {
    Bytes(Bytes),
    /// Without it, the end of the channel means that the download was given up.
    End,
}

impl Download {
    /// Begins to unpack into `partial` what [`Download::push`] will bring. The result must have both digests.
    pub fn start(descriptor: &Descriptor, diff_id: Digest, partial: Partial) -> Self {
        let (sender, receiver) = channel::bounded(PIECES_MAX);
        let (buffers, decompressed) = sync_channel(BUFFERS_MAX);
        let decompressing = smol::unblock(move || {
            let mut pieces = Pieces { receiver, piece: Bytes::new(), hasher: Hasher::new(), ended: false };
            let result = decompress(&mut pieces, &buffers);
            drop(buffers);
            // Whatever went wrong, a wrong digest is the better explanation.
            (pieces.digest(), result)
        });
        let unpacking = smol::unblock(move || {
            let found = tree::unpack(Buffers { receiver: decompressed, buffer: Vec::new(), at: 0, ended: false }, partial.path())?;
            Ok((found, partial))
        });
        Self { sender, received: 0, expected: descriptor.digest, diff_id, decompressing, unpacking }
    }

    /// Bytes of the compressed layer that were pushed.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Hands over the next bytes; waits while the disk is slower than the network.
    pub async fn push(&mut self, bytes: Bytes) {
        self.received += bytes.len() as u64;
        // A closed channel means that unpacking has failed, which `finish` tells.
        let _ = self.sender.send(Piece::Bytes(bytes)).await;
    }

    /// No more bytes come: waits for the last file.
    ///
    /// # Errors
    /// When a digest is wrong, the layer is damaged, leads out of its folder or does not fit on the disk.
    pub async fn finish(self) -> Result<Partial> {
        let _ = self.sender.send(Piece::End).await;
        let (digest, decompressed) = self.decompressing.await;
        let unpacked = self.unpacking.await;
        if let Some(digest) = digest.filter(|digest| *digest != self.expected) {
            bail!("its digest is {digest}: what came is not what the manifest names");
        }
        match decompressed {
            Err(error) if !error.is::<Stopped>() => return Err(error),
            _ => {}
        }
        let (found, partial) = unpacked?;
        if found != self.diff_id {
            bail!("uncompressed it has the digest {}, the image's configuration names {}", found, self.diff_id);
        }
        Ok(partial)
    }
}

/// The other thread gave up first; its error is the one to tell.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("unpacking stopped")
    }
}

impl std::error::Error for Stopped {}

fn decompress(pieces: &mut Pieces, buffers: &SyncSender<Vec<u8>>) -> Result<()> {
    let mut reader = decompressor(pieces)?;
    loop {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..]).context("decompress")? {
                0 => break,
                amount => filled += amount,
            }
        }
        buffer.truncate(filled);
        // An empty one says that this was all.
        buffers.send(buffer).map_err(|_| anyhow!(Stopped))?;
        if filled == 0 {
            return Ok(());
        }
    }
}

/// Decompresses what begins like gzip or zstd, passes all else on as it is: the content knows better than its media type.
pub fn decompressor<'a>(mut source: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
    let start = source.fill_buf().context("read")?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(source))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(start) {
        Box::new(zstd::Decoder::with_buffer(source).context("start to decompress")?)
    } else {
        Box::new(source)
    })
}

/// Some writers of zstd begin with a frame of their own (RFC 8878, section 3.1.2).
fn is_skippable_frame(start: &[u8]) -> bool {
    start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]
}

/// The pieces from the network as one stream, hashed.
struct Pieces {
    receiver: channel::Receiver<Piece>,
    piece: Bytes,
    hasher: Hasher,
    ended: bool,
}

impl Pieces {
    /// The digest of all that came, once all has come: what is left is read for it.
    fn digest(mut self) -> Option<Digest> {
        loop {
            let length = self.fill_buf().ok()?.len();
            if length == 0 {
                return Some(self.hasher.finish());
            }
            self.consume(length);
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.recv_blocking() {
                Ok(Piece::Bytes(bytes)) => {
                    self.hasher.update(&bytes);
                    self.piece = bytes;
                }
                Ok(Piece::End) => self.ended = true,
                Err(_) => return Err(io::Error::other("the download was given up")),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.piece.split_to(amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, target)
    }
}

/// The decompressed buffers as one stream. An empty buffer is the end; a closed channel without one is an error.
struct Buffers {
    receiver: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    ended: bool,
}

impl BufRead for Buffers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() && !self.ended {
            self.buffer = self.receiver.recv().map_err(|_| io::Error::other("the layer was cut off"))?;
            self.at = 0;
            self.ended = self.buffer.is_empty();
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Buffers {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, target)
    }
}

fn read_buffered(source: &mut impl BufRead, target: &mut [u8]) -> io::Result<usize> {
    let available = source.fill_buf()?;
    let amount = available.len().min(target.len());
    target[..amount].copy_from_slice(&available[..amount]);
    source.consume(amount);
    Ok(amount)
}
