//! WebSocket (RFC 6455): the switch to it on either side, and messages over a connection that has switched. What is in a
//! message it does not know.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, ensure};
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Bytes, Error, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_lite::{AsyncRead, AsyncWrite, StreamExt};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::rt::{Read, ReadBuf, Write};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::body::Body;
use crate::base::id;

/// What a key is hashed with, RFC 6455 section 1.3.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of the Upgrade header.
pub const PROTOCOL: &str = "websocket";

/// Sends messages; one end of a connection.
pub struct Sender(WebSocketSender<Switched>);
/// Receives messages; the other end.
pub struct Receiver(WebSocketReceiver<Switched>);

/// Whether a request asks to switch to WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// The answer that switches, and the one of our `protocols` that was chosen; they are in the order of our liking.
///
/// # Errors
/// A sentence that says what the request lacks.
pub fn accept(headers: &HeaderMap, protocols: &[&'static str]) -> Result<(Response<Body>, &'static str), String> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("the request has no Sec-WebSocket-Key")?;
    let offered: Vec<&str> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok()).collect();
    let is_offered = |protocol: &str| offered.iter().flat_map(|line| line.split(',')).any(|word| word.trim() == protocol);
    let chosen = protocols.iter().copied().find(|protocol| is_offered(protocol));
    let chosen = chosen
        .ok_or_else(|| format!("unable to upgrade: none of [{}] is supported, only [{}]", offered.join(", "), protocols.join(", ")))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted(key.as_bytes()));
    Ok((answer, chosen))
}

fn accepted(key: &[u8]) -> HeaderValue {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, KEY_SUFFIX.as_bytes()].concat());
    HeaderValue::from_str(&STANDARD.encode(hash)).expect("base64 is visible ASCII")
}

/// The headers of a request that asks to switch; the key among them is checked by `is_accepted`.
///
/// # Errors
/// If a protocol's name is no header value.
pub fn ask(headers: &mut HeaderMap, protocols: &[&str]) -> anyhow::Result<()> {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(&protocols.join(", "))?);
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&STANDARD.encode(id::random::<16>()))?);
    Ok(())
}

/// # Errors
/// If the answer is not to what was asked.
pub fn check(asked: &HeaderMap, answer: &HeaderMap) -> anyhow::Result<()> {
    let key = asked.get(SEC_WEBSOCKET_KEY).context("the request had a key")?;
    ensure!(answer.get(SEC_WEBSOCKET_ACCEPT) == Some(&accepted(key.as_bytes())), "the server's Sec-WebSocket-Accept is wrong");
    Ok(())
}

/// The server's end of a connection that has switched.
pub async fn server(connection: Upgraded, message_bytes_max: usize) -> (Sender, Receiver) {
    over(connection, Role::Server, message_bytes_max).await
}

/// The client's end.
pub async fn client(connection: Upgraded, message_bytes_max: usize) -> (Sender, Receiver) {
    over(connection, Role::Client, message_bytes_max).await
}

async fn over(connection: Upgraded, role: Role, message_bytes_max: usize) -> (Sender, Receiver) {
    let config = WebSocketConfig::default().max_message_size(Some(message_bytes_max)).max_frame_size(Some(message_bytes_max));
    let (sender, receiver) = WebSocketStream::from_raw_socket(Switched(connection), role, Some(config)).await.split();
    (Sender(sender), Receiver(receiver))
}

impl Sender {
    /// # Errors
    /// If the connection is gone.
    pub async fn send(&mut self, message: impl Into<Bytes>) -> anyhow::Result<()> {
        Ok(self.0.send(Message::Binary(message.into())).await?)
    }

    /// Says good-bye, in a word that clients take for a good end. That nobody hears it is fine.
    pub async fn close(&mut self) {
        let _ = self.0.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).await;
    }
}

impl Receiver {
    /// The next message; `None` when the other side has closed. Pings are answered on the way.
    ///
    /// # Errors
    /// If the connection breaks, or what comes is no WebSocket.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            match self.0.next().await {
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }
}

/// A connection that has switched, with the traits of futures.
pub(super) struct Switched(pub(super) Upgraded);

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(bytes);
        ready!(Pin::new(&mut self.0).poll_read(context, buffer.unfilled()))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_agreed_on_with_the_best_common_protocol() {
        let mut asked = HeaderMap::new();
        ask(&mut asked, &["v4.x", "v5.x"]).unwrap();
        assert!(is_asked(&asked));
        let (answer, chosen) = accept(&asked, &["v5.x", "v4.x"]).unwrap();
        assert_eq!((answer.status(), chosen), (StatusCode::SWITCHING_PROTOCOLS, "v5.x"));
        check(&asked, answer.headers()).unwrap();
        assert!(accept(&asked, &["v3.x"]).is_err());
        asked.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("other"));
        assert!(check(&asked, answer.headers()).is_err());
    }

    #[test]
    fn the_key_is_hashed_as_the_standard_shows() {
        // RFC 6455 section 1.3.
        assert_eq!(accepted(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
