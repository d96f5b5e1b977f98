//! Messages in a body: each with its length before it, four bytes in network order. So what comes as messages by WebSocket goes
//! through the tunnel to a node, and back.

use anyhow::{anyhow, ensure};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

const LENGTH_BYTES: usize = 4;

/// A message as it goes into a body.
pub fn frame(message: &[u8]) -> Bytes {
    [&(message.len() as u32).to_be_bytes(), message].concat().into()
}

/// The messages of a body, one after the other.
pub struct Messages {
    body: Incoming,
    waiting: BytesMut,
    bytes_max: usize,
}

impl Messages {
    /// Longer messages than `bytes_max` end the stream.
    pub fn new(body: Incoming, bytes_max: usize) -> Self {
        Self { body, waiting: BytesMut::new(), bytes_max }
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// If the stream breaks, or a message is too long.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                ensure!(self.waiting.is_empty(), "the stream ends within a message");
                return Ok(None);
            };
            if let Ok(data) = frame.map_err(|error| anyhow!("{error}"))?.into_data() {
                self.waiting.extend_from_slice(&data);
            }
        }
    }

    fn take(&mut self) -> anyhow::Result<Option<Bytes>> {
        let Some(length) = self.waiting.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        ensure!(length <= self.bytes_max, "a message of {length} bytes is longer than {}", self.bytes_max);
        if self.waiting.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.waiting.advance(LENGTH_BYTES);
        Ok(Some(self.waiting.split_to(length).freeze()))
    }
}
