//! One watch: lines of JSON off a long answer, each a change. It resumes nothing; `cache` does.

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::{Refusal, Unreachable};

/// A server may keep an object of a few megabytes; one line longer than this is no event.
const LINE_BYTES_MAX: usize = 32 << 20;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
    /// Nothing happened up to the object's resourceVersion.
    Bookmark,
}

/// An open watch.
pub struct Watch {
    body: Incoming,
    authority: String,
    buffer: Lines,
}

impl Watch {
    pub(super) fn new(body: Incoming, authority: String) -> Self {
        Self { body, authority, buffer: Lines::default() }
    }

    /// The next change; none when the server ended the watch in good order. It may be dropped and called again.
    ///
    /// # Errors
    /// If the connection broke, or the server ended the watch with a [`Refusal`] (410 Expired is the usual one).
    pub async fn next(&mut self) -> Result<Option<(Change, Value)>> {
        loop {
            if let Some(line) = self.buffer.next_line() {
                return read(&line).map(Some);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.push(data)?;
                    }
                }
                Some(Err(error)) => {
                    let why = anyhow!(error).context("the watch broke off");
                    return Err(anyhow!(Unreachable { server: self.authority.clone(), why }));
                }
            }
        }
    }
}

fn read(line: &[u8]) -> Result<(Change, Value)> {
    let mut event: Value = serde_json::from_slice(line).context("a watch event is no JSON")?;
    let object = event["object"].take();
    let change = match event["type"].as_str() {
        Some("ADDED") => Change::Added,
        Some("MODIFIED") => Change::Modified,
        Some("DELETED") => Change::Deleted,
        Some("BOOKMARK") => Change::Bookmark,
        Some("ERROR") => return Err(anyhow!(Refusal::from_status(&object, 500))),
        other => bail!("a watch event of the unknown type {other:?}"),
    };
    Ok((change, object))
}

/// Bytes as they come, cut into lines.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// How far no line end was found yet.
    searched: usize,
}

impl Lines {
    pub fn push(&mut self, data: &[u8]) -> Result<()> {
        if self.bytes.len() + data.len() > LINE_BYTES_MAX {
            bail!("a watch event is longer than {LINE_BYTES_MAX} bytes");
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// The next whole line that is not empty.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return None;
            };
            let rest = self.bytes.split_off(self.searched + end + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.searched = 0;
            line.pop();
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_bytes_come_apart() {
        let mut lines = Lines::default();
        let mut seen = vec![];
        for part in ["{\"a\"", ":1}\n{\"b\":2}\n\n", "{\"c", "\":3}", "\n"] {
            lines.push(part.as_bytes()).unwrap();
            while let Some(line) = lines.next_line() {
                seen.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(seen, ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
    }

    #[test]
    fn an_error_event_is_the_refusal_it_carries() {
        let line = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        let error = read(line).unwrap_err();
        assert_eq!(super::super::refusal(&error).map(|refusal| refusal.code), Some(410));
        assert_eq!(read(br#"{"type":"ADDED","object":{"a":1}}"#).unwrap().0, Change::Added);
    }
}
