//! Headers of SPDY's streams: a count, then names and values with their lengths, all of a connection one zlib stream that begins with
//! SPDY's own dictionary. What is sent is stored, not compressed: it is short, and readers take a stream without the dictionary.

use anyhow::{Context, bail, ensure};
use bytes::Buf;
use flate2::{Decompress, FlushDecompress, Status};

/// Of one frame, inflated.
const HEADERS_BYTES_MAX: usize = 64 << 10;

/// The words of the dictionary that have their length before them (SPDY/3, section 2.6.10.1).
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
    authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
    content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
    last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows them.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative \
    Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 \
    Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, \
    GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::new();
    for word in WORDS.split_ascii_whitespace() {
        text(&mut dictionary, &word.replace('_', " "));
    }
    dictionary.extend_from_slice(REST.as_bytes());
    dictionary
}

fn text(block: &mut Vec<u8>, text: &str) {
    block.extend((text.len() as u32).to_be_bytes());
    block.extend(text.as_bytes());
}

/// The headers of one frame that is sent; `first` begins the connection's stream.
pub fn deflate(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let mut block = (headers.len() as u32).to_be_bytes().to_vec();
    for (name, value) in headers {
        text(&mut block, &name.to_ascii_lowercase());
        text(&mut block, value);
    }
    // zlib's head (RFC 1950): deflate with the largest window, no dictionary.
    let mut deflated = if first { vec![0x78, 0x01] } else { Vec::new() };
    for part in block.chunks(usize::from(u16::MAX)) {
        stored(&mut deflated, part);
    }
    // An empty block flushes: the reader goes no further before it has given out what came.
    stored(&mut deflated, &[]);
    deflated
}

/// A stored block, RFC 1951 section 3.2.4.
fn stored(deflated: &mut Vec<u8>, content: &[u8]) {
    let length = content.len() as u16;
    deflated.push(0);
    deflated.extend(length.to_le_bytes());
    deflated.extend((!length).to_le_bytes());
    deflated.extend(content);
}

/// Reads the headers of one connection, frame by frame.
pub struct Inflate(Decompress);

impl Inflate {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// # Errors
    /// If they are none, or too long.
    pub fn headers(&mut self, deflated: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
        let inflated = self.inflate(deflated)?;
        let mut block = &inflated[..];
        let count = block.try_get_u32().context("no headers")?;
        let mut headers = Vec::new();
        for _ in 0..count {
            headers.push((take(&mut block)?, take(&mut block)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut deflated: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut inflated = Vec::with_capacity(HEADERS_BYTES_MAX.min(1 << 10));
        while !deflated.is_empty() {
            let before = self.0.total_in();
            let status = self.0.decompress_vec(deflated, &mut inflated, FlushDecompress::Sync);
            deflated = &deflated[(self.0.total_in() - before) as usize..];
            match status {
                Ok(Status::StreamEnd) => bail!("the headers of the connection end"),
                Ok(_) if inflated.len() < inflated.capacity() => break,
                Ok(_) => {
                    ensure!(inflated.len() < HEADERS_BYTES_MAX, "headers are longer than {HEADERS_BYTES_MAX} bytes");
                    inflated.reserve(inflated.len());
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).context("headers want another dictionary")?;
                }
                Err(error) => return Err(error).context("inflate headers"),
            }
        }
        Ok(inflated)
    }
}

fn take(block: &mut &[u8]) -> anyhow::Result<String> {
    let length = block.try_get_u32().context("headers end early")? as usize;
    let (text, rest) = block.split_at_checked(length).context("headers end early")?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let sum = dictionary().iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((dictionary().len(), sum.1 << 16 | sum.0), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn headers_read_back_frame_by_frame() {
        let mut inflate = Inflate::new();
        let many: Vec<(&str, &str)> = vec![("port", "8080"); 4000];
        for (number, headers) in [&[("streamtype", "error"), ("port", "80")][..], &[], &[("a", "")], &many].into_iter().enumerate() {
            assert_eq!(inflate.headers(&deflate(headers, number == 0)).unwrap(), pairs(headers));
        }
        let more: Vec<(&str, &str)> = vec![("port", "8080"); 6000];
        assert!(inflate.headers(&deflate(&more, false)).is_err(), "too many");
    }

    #[test]
    fn headers_with_the_dictionary_are_read() {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&dictionary()).unwrap();
        let mut inflate = Inflate::new();
        for headers in [&[("streamtype", "stdin"), ("content-type", "text/plain")][..], &[("streamtype", "stdout")]] {
            let mut block = (headers.len() as u32).to_be_bytes().to_vec();
            for (name, value) in headers {
                text(&mut block, name);
                text(&mut block, value);
            }
            let mut deflated = Vec::with_capacity(1 << 10);
            compress.compress_vec(&block, &mut deflated, FlushCompress::Sync).unwrap();
            assert_eq!(inflate.headers(&deflated).unwrap(), pairs(headers));
        }
    }

    #[test]
    fn what_are_no_headers_is_refused() {
        for bytes in [&b"junk"[..], &[0x78, 0x01, 0, 8, 0, 0xf7, 0xff, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Inflate::new().headers(bytes).is_err(), "{bytes:?}");
        }
    }
}
