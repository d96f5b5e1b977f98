//! SPDY/3.1, as far as Kubernetes uses it: one connection after an upgrade, many streams both ways, each with a half-close of its
//! own. What a stream is for it does not know, and it counts no windows: the one implementation that clients have (moby/spdystream)
//! neither sends nor heeds WINDOW_UPDATE, so a stream whose reader is slow holds up its connection, and never more than
//! `QUEUE_MAX` frames wait.

mod headers;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;

use anyhow::{Context as _, anyhow, ensure};
use bytes::{Buf, Bytes, BytesMut};
use futures_lite::{AsyncReadExt, AsyncWriteExt, Stream as Flow, StreamExt};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use smol::Task;
use smol::channel::{self, Receiver, Sender};
use smol::lock::Mutex;

use super::body::Body;
use super::websocket::{self, Switched};
use crate::base::task;
use headers::Inflate;

/// The value of the Upgrade header.
pub const PROTOCOL: &str = "SPDY/3.1";
/// Names what is spoken over the streams.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Streams of one connection at once; a further one is refused.
const STREAMS_MAX: usize = 512;
/// Pieces of a stream that wait for their reader; frames of a connection that wait to be sent.
const QUEUE_MAX: usize = 16;
/// Read from the connection at once, so the longest piece of a stream; and the longest DATA frame that is sent.
const PIECE_BYTES: usize = 16 << 10;
/// The longest frame other than DATA.
const CONTROL_BYTES_MAX: usize = 64 << 10;

const CONTROL: u32 = 1 << 31;
const VERSION: u32 = 3;
const HEAD_BYTES: usize = 8;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const HEADERS: u16 = 8;

const FIN: u8 = 1;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Who made the connection; clients number their streams oddly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One end of a connection, which ends when this is dropped.
pub struct Session {
    shared: Rc<Shared>,
    accepted: Receiver<Stream>,
    _tasks: [Task<()>; 2],
}

/// One stream. Dropping it before both sides have finished tells the other side that it is given up.
pub struct Stream {
    id: u32,
    headers: Vec<(String, String)>,
    data: Receiver<Bytes>,
    state: Rc<State>,
    finished: Cell<bool>,
    shared: Rc<Shared>,
}

struct Shared {
    outgoing: Sender<Bytes>,
    live: RefCell<HashMap<u32, Live>>,
    /// Streams that were dropped while there was no room to say so.
    given_up: RefCell<Vec<u32>>,
    /// Frames with headers are one compressed text, so they are made and sent in one order.
    headers: Mutex<HeaderState>,
}

struct HeaderState {
    next_id: u32,
    begun: bool,
}

/// What the connection's reader knows of a stream.
struct Live {
    /// None once the other side has finished.
    data: Option<Sender<Bytes>>,
    /// Hears of the answer to our opening it.
    replied: Option<Sender<()>>,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    /// The other side has said all.
    ended: Cell<bool>,
    /// It gave the stream up, or the connection is gone.
    broken: Cell<bool>,
}

/// Whether a request asks to switch to SPDY.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// The answer that switches, and the first of the client's stream protocols that is one of ours. A client that names none means the
/// oldest, which is the last of ours.
///
/// # Errors
/// An answer that says what is spoken here, and a sentence of why it is none of the client's.
pub fn accept(headers: &HeaderMap, protocols: &[&'static str]) -> Result<(Response<Body>, &'static str), (HeaderMap, String)> {
    let lines = headers.get_all(&STREAM_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty()).collect();
    let chosen = match offered.is_empty() {
        true => protocols.last().copied(),
        false => offered.iter().find_map(|word| protocols.iter().find(|protocol| *protocol == word).copied()),
    };
    let Some(chosen) = chosen else {
        let mut accepted = HeaderMap::new();
        for protocol in protocols {
            accepted.append(&ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
        }
        let (offered, ours) = (offered.join(" "), protocols.join(" "));
        return Err((
            accepted,
            format!("unable to upgrade: unable to negotiate protocol: client supports [{offered}], server accepts [{ours}]"),
        ));
    };
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    Ok((answer, chosen))
}

/// The headers of a request that asks to switch.
pub fn ask(headers: &mut HeaderMap, protocol: &'static str) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
}

/// Speaks over a connection that has switched.
pub fn over(connection: Upgraded, side: Side) -> Session {
    let (reader, mut writer) = futures_lite::io::split(Switched(connection));
    let incoming = futures_lite::stream::try_unfold(reader, |mut reader| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let length = reader.read(&mut piece).await?;
        piece.truncate(length);
        anyhow::Ok((length > 0).then(|| (Bytes::from(piece), reader)))
    });
    Session::new(Box::pin(incoming), side, |outgoing| async move {
        while let Ok(frame) = outgoing.next().await {
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
        writer.close().await?;
        Ok(())
    })
}

/// Speaks over the messages of a WebSocket, of which each holds some bytes of the connection (KEP-4006).
pub fn over_websocket(mut sender: websocket::Sender, receiver: websocket::Receiver, side: Side) -> Session {
    let incoming =
        futures_lite::stream::try_unfold(receiver, |mut receiver| async move { Ok(receiver.next().await?.map(|bytes| (bytes, receiver))) });
    Session::new(Box::pin(incoming), side, |outgoing| async move {
        while let Ok(frame) = outgoing.next().await {
            sender.send(frame).await?;
        }
        sender.close().await;
        Ok(())
    })
}

/// What comes over the connection, cut anyhow.
type Incoming = Pin<Box<dyn Flow<Item = anyhow::Result<Bytes>>>>;

/// The frames to send.
struct Outgoing {
    frames: Receiver<Bytes>,
    shared: Rc<Shared>,
}

impl Outgoing {
    async fn next(&self) -> Result<Bytes, channel::RecvError> {
        let given_up = self.shared.given_up.borrow_mut().pop();
        match given_up {
            Some(id) => Ok(reset(id, CANCEL)),
            None => self.frames.recv().await,
        }
    }
}

impl Session {
    fn new<F>(incoming: Incoming, side: Side, write: impl FnOnce(Outgoing) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        let (outgoing, frames) = channel::bounded(QUEUE_MAX);
        let headers = Mutex::new(HeaderState { next_id: if side == Side::Client { 1 } else { 2 }, begun: false });
        let shared = Rc::new(Shared { outgoing, live: RefCell::default(), given_up: RefCell::default(), headers });
        let writing = write(Outgoing { frames, shared: shared.clone() });
        let (to_accept, accepted) = channel::bounded(QUEUE_MAX);
        let reader = Reader { input: Input { incoming, waiting: BytesMut::new() }, shared: shared.clone(), accepted: to_accept, side };
        let writer = {
            let shared = shared.clone();
            task::spawn(async move {
                if let Err(error) = writing.await {
                    log::debug!("write to a SPDY connection: {error:#}");
                }
                shared.end();
            })
        };
        let reader = task::spawn(async move {
            let shared = reader.shared.clone();
            if let Err(error) = reader.run().await {
                log::debug!("read from a SPDY connection: {error:#}");
            }
            shared.end();
        });
        Self { shared, accepted, _tasks: [writer, reader] }
    }

    /// Opens a stream, and waits until the other side has taken it.
    ///
    /// # Errors
    /// If it refuses, or the connection is gone.
    pub async fn open(&self, headers: &[(&str, &str)]) -> anyhow::Result<Stream> {
        let (replied, answered) = channel::bounded(1);
        let stream = {
            let mut state = self.shared.headers.lock().await;
            let id = state.next_id;
            state.next_id += 2;
            ensure!(self.shared.live.borrow().len() < STREAMS_MAX, "there are {STREAMS_MAX} streams already");
            let mut body = id.to_be_bytes().to_vec();
            // No stream that it belongs to, the highest priority, no credentials.
            body.extend([0; 6]);
            body.extend(headers::deflate(headers, !state.begun));
            let stream = self.shared.stream(id, Vec::new(), Some(replied));
            self.shared.send(control(SYN_STREAM, 0, &body)).await?;
            state.begun = true;
            stream
        };
        // What has become of it since then is for its reader.
        answered.recv().await.map_err(|_| anyhow!("the other side refuses the stream"))?;
        Ok(stream)
    }

    /// The next stream that the other side opens; None when the connection is gone.
    pub async fn accept(&self) -> Option<Stream> {
        self.accepted.recv().await.ok()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    fn stream(self: &Rc<Self>, id: u32, headers: Vec<(String, String)>, replied: Option<Sender<()>>) -> Stream {
        let (sender, data) = channel::bounded(QUEUE_MAX);
        let state = Rc::new(State::default());
        self.live.borrow_mut().insert(id, Live { data: Some(sender), replied, state: state.clone() });
        Stream { id, headers, data, state, finished: Cell::new(false), shared: self.clone() }
    }

    async fn send(&self, frame: Bytes) -> anyhow::Result<()> {
        self.outgoing.send(frame).await.map_err(|_| anyhow!("the connection is gone"))
    }

    /// The other side has nothing more to say on a stream.
    fn finish(&self, id: u32) {
        if let Some(live) = self.live.borrow_mut().get_mut(&id) {
            live.data = None;
            live.state.ended.set(true);
        }
    }

    fn break_off(&self, id: u32) {
        if let Some(live) = self.live.borrow_mut().remove(&id) {
            live.state.broken.set(true);
        }
    }

    /// The connection is gone.
    fn end(&self) {
        self.outgoing.close();
        for (_, live) in self.live.borrow_mut().drain() {
            live.state.broken.set(true);
        }
    }
}

impl Stream {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A header's value; names are in small letters. Empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The next piece; None once the other side has finished.
    ///
    /// # Errors
    /// If the other side has given the stream up, or the connection is gone.
    pub async fn read(&self) -> anyhow::Result<Option<Bytes>> {
        match self.data.recv().await {
            Ok(piece) => Ok(Some(piece)),
            Err(_) if self.state.ended.get() => Ok(None),
            Err(_) => Err(anyhow!("the stream was broken off")),
        }
    }

    /// # Errors
    /// As for `read`.
    pub async fn write(&self, content: &[u8]) -> anyhow::Result<()> {
        for piece in content.chunks(PIECE_BYTES) {
            ensure!(!self.state.broken.get(), "the stream was broken off");
            self.shared.send(data(self.id, 0, piece)).await?;
        }
        Ok(())
    }

    /// Tells the other side that nothing more comes. That nobody hears it is fine.
    pub async fn finish(&self) {
        if !self.finished.replace(true) && !self.state.broken.get() {
            let _ = self.shared.send(data(self.id, FIN, &[])).await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(live) = self.shared.live.borrow_mut().remove(&self.id) else { return };
        if (live.data.is_some() || !self.finished.get()) && self.shared.outgoing.try_send(reset(self.id, CANCEL)).is_err() {
            self.shared.given_up.borrow_mut().push(self.id);
        }
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Bytes {
    let first = CONTROL | VERSION << 16 | u32::from(kind);
    [&first.to_be_bytes()[..], &with_flags(flags, body.len()), body].concat().into()
}

fn data(id: u32, flags: u8, content: &[u8]) -> Bytes {
    [&id.to_be_bytes()[..], &with_flags(flags, content.len()), content].concat().into()
}

fn with_flags(flags: u8, length: usize) -> [u8; 4] {
    (u32::from(flags) << 24 | length as u32).to_be_bytes()
}

fn reset(id: u32, status: u32) -> Bytes {
    control(RST_STREAM, 0, &[id.to_be_bytes(), status.to_be_bytes()].concat())
}

struct Input {
    incoming: Incoming,
    waiting: BytesMut,
}

impl Input {
    /// At least one byte more; false at the end.
    async fn fill(&mut self) -> anyhow::Result<bool> {
        let Some(piece) = self.incoming.next().await.transpose()? else { return Ok(false) };
        self.waiting.extend_from_slice(&piece);
        Ok(true)
    }

    /// So many bytes; None at the end.
    async fn exactly(&mut self, length: usize) -> anyhow::Result<Option<Bytes>> {
        while self.waiting.len() < length {
            if !self.fill().await? {
                ensure!(self.waiting.is_empty(), "the connection ends within a frame");
                return Ok(None);
            }
        }
        Ok(Some(self.waiting.split_to(length).freeze()))
    }
}

struct Reader {
    input: Input,
    shared: Rc<Shared>,
    accepted: Sender<Stream>,
    side: Side,
}

impl Reader {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut inflate = Inflate::new();
        let mut last_id = 0;
        while let Some(mut head) = self.input.exactly(HEAD_BYTES).await? {
            let (first, second) = (head.get_u32(), head.get_u32());
            let (flags, length) = ((second >> 24) as u8, (second & 0xff_ffff) as usize);
            if first & CONTROL == 0 {
                self.data(first, flags, length).await?;
                continue;
            }
            let (version, kind) = (first >> 16 & 0x7fff, first as u16);
            ensure!(version == VERSION, "a frame of version {version}, not {VERSION}");
            ensure!(length <= CONTROL_BYTES_MAX, "a frame of {length} bytes is longer than {CONTROL_BYTES_MAX}");
            let mut body = self.input.exactly(length).await?.context("the connection ends within a frame")?;
            let mut number = || body.try_get_u32().context("a frame is too short");
            match kind {
                SYN_STREAM => {
                    let id = number()?;
                    ensure!(body.len() >= 6, "a frame is too short");
                    let headers = inflate.headers(&body[6..])?;
                    let is_theirs = id % 2 == u32::from(self.side == Side::Server);
                    if id <= last_id || id >= CONTROL || !is_theirs {
                        self.shared.send(reset(id, PROTOCOL_ERROR)).await?;
                        continue;
                    }
                    last_id = id;
                    self.opened(id, flags, headers).await?;
                }
                SYN_REPLY => {
                    let id = number()?;
                    inflate.headers(&body)?;
                    let replied = self.shared.live.borrow_mut().get_mut(&id).and_then(|live| live.replied.take());
                    if let Some(replied) = replied {
                        // There is room for one, and whoever does not wait any more needs none.
                        let _ = replied.try_send(());
                    }
                    if flags & FIN != 0 {
                        self.shared.finish(id);
                    }
                }
                RST_STREAM => self.shared.break_off(number()?),
                HEADERS => {
                    let id = number()?;
                    inflate.headers(&body)?;
                    if flags & FIN != 0 {
                        self.shared.finish(id);
                    }
                }
                PING => {
                    let id = number()?;
                    // One of ours would come back to us; we send none.
                    if id % 2 == u32::from(self.side == Side::Server) {
                        self.shared.send(control(PING, 0, &id.to_be_bytes())).await?;
                    }
                }
                // SETTINGS and WINDOW_UPDATE count nothing here; after GOAWAY the other side closes.
                _ => {}
            }
        }
        Ok(())
    }

    async fn opened(&mut self, id: u32, flags: u8, headers: Vec<(String, String)>) -> anyhow::Result<()> {
        if self.shared.live.borrow().len() >= STREAMS_MAX {
            return self.shared.send(reset(id, REFUSED_STREAM)).await;
        }
        let stream = self.shared.stream(id, headers, None);
        if flags & FIN != 0 {
            self.shared.finish(id);
        }
        {
            let mut state = self.shared.headers.lock().await;
            let body = [&id.to_be_bytes()[..], &headers::deflate(&[], !state.begun)].concat();
            self.shared.send(control(SYN_REPLY, 0, &body)).await?;
            state.begun = true;
        }
        // Nobody accepts any more: the stream is given up by being dropped.
        let _ = self.accepted.send(stream).await;
        Ok(())
    }

    async fn data(&mut self, id: u32, flags: u8, mut length: usize) -> anyhow::Result<()> {
        let sender = self.shared.live.borrow().get(&id).and_then(|live| live.data.clone());
        while length > 0 {
            ensure!(!self.input.waiting.is_empty() || self.input.fill().await?, "the connection ends within a frame");
            let piece = self.input.waiting.split_to(length.min(self.input.waiting.len())).freeze();
            length -= piece.len();
            if let Some(sender) = &sender {
                // A stream that was given up meanwhile has no reader: what still comes for it is dropped.
                let _ = sender.send(piece).await;
            }
        }
        if flags & FIN != 0 {
            self.shared.finish(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
