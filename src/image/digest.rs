//! SHA-256 digests as OCI writes them, and the streams that are hashed while they pass.
//! It never compares text: a digest is its 32 bytes.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ring::digest::{Context as Sha256, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A content digest. Only `sha256` is served by registries in practice and only it is accepted (OCI image specification, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(content);
        hasher.finish()
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm: names of files.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn from_hex(hex: &str) -> Option<Self> {
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != 64 || !hex.bytes().all(lower) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digit = |b: u8| if b.is_ascii_digit() { b - b'0' } else { b - b'a' + 10 };
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Some(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, hex) = text.split_once(':').with_context(|| format!("digest {text:?} has no algorithm"))?;
        if algorithm != "sha256" {
            bail!("digest {text:?}: algorithm {algorithm:?} is not supported, only sha256 is");
        }
        Self::from_hex(hex).with_context(|| format!("digest {text:?}: 64 lower-case hexadecimal digits expected"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|error| de::Error::custom(format!("{error:#}")))
    }
}

/// Hashes and counts what it is shown.
#[derive(Clone)]
pub struct Hasher {
    sha256: Sha256,
    bytes: u64,
}

impl Hasher {
    pub fn new() -> Self {
        Self { sha256: Sha256::new(&SHA256), bytes: 0 }
    }

    pub fn update(&mut self, content: &[u8]) {
        self.sha256.update(content);
        self.bytes += content.len() as u64;
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn finish(self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.sha256.finish().as_ref());
        Digest(bytes)
    }
}

/// A reader that hashes what passes. The digest is that of the whole stream only once the end was read.
pub struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    /// How much of the buffer that `inner` shows now is in the hash already.
    hashed: usize,
}

impl<R: BufRead> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::new(), hashed: 0 }
    }

    pub fn finish(self) -> (Digest, u64) {
        let bytes = self.hasher.bytes();
        (self.hasher.finish(), bytes)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let buffer = self.inner.fill_buf()?;
        if self.hashed == 0 {
            // Whole buffers at once: many small updates would cost more than the hash.
            self.hasher.update(buffer);
            self.hashed = buffer.len();
        }
        Ok(buffer)
    }

    fn consume(&mut self, amount: usize) {
        self.hashed -= amount;
        self.inner.consume(amount);
    }
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(target.len());
        target[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_read_back_what_they_write() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn digests_refuse_what_is_no_digest() {
        for text in ["", "sha256", "sha256:", "sha256:abc", "sha512:00", &EMPTY.to_uppercase(), &EMPTY.replace('e', "E")] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hashing_reader_gives_the_digest_of_the_whole_stream_however_it_is_read() {
        let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        for step in [1, 7, 4096, 100_000] {
            let mut reader = Hashing::new(io::BufReader::with_capacity(1000, content.as_slice()));
            let mut buffer = vec![0; step];
            while reader.read(&mut buffer).unwrap() > 0 {}
            assert_eq!(reader.finish(), (Digest::of(&content), 100_000));
        }
    }
}
