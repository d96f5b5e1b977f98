//! The body of a request or an answer: nothing, bytes at hand, or a stream. It never buffers a stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use futures_lite::Stream;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, Incoming, SizeHint};

/// An error ends the connection or the stream: the other side sees that the body is not whole.
type Failure = Box<dyn std::error::Error + Send + Sync>;

pub enum Body {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, Failure>>>>),
}

impl Body {
    pub fn empty() -> Self {
        Self::Full(None)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    pub fn stream(stream: impl Stream<Item = Result<Bytes, Failure>> + 'static) -> Self {
        Self::Stream(Box::pin(stream))
    }

    /// Passes an incoming body on as it comes, without keeping it.
    pub fn relay(incoming: Incoming) -> Self {
        Self::stream(futures_lite::stream::unfold(incoming, |mut incoming| async move {
            loop {
                match incoming.frame().await? {
                    Err(error) => return Some((Err(error.into()), incoming)),
                    // Trailers have no place in what Kubernetes sends.
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some((Ok(data), incoming));
                        }
                    }
                }
            }
        }))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.as_mut().poll_next(context).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl From<Infallible> for Body {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Why a body was not read whole.
#[derive(Debug)]
pub enum ReadError {
    TooLarge,
    Broken(anyhow::Error),
}

/// Reads a whole body of at most `limit_bytes`.
///
/// # Errors
/// If it is longer, or ends early.
pub async fn read(body: impl hyper::body::Body<Data = Bytes, Error = hyper::Error>, limit_bytes: usize) -> Result<Bytes, ReadError> {
    match Limited::new(body, limit_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ReadError::TooLarge),
        Err(error) => Err(ReadError::Broken(anyhow::anyhow!("{error}"))),
    }
}

/// As [`read`], for callers to whom every failure is the same.
///
/// # Errors
/// If it is longer, or ends early.
pub async fn read_all(body: Incoming, limit_bytes: usize) -> anyhow::Result<Bytes> {
    match read(body, limit_bytes).await {
        Ok(bytes) => Ok(bytes),
        Err(ReadError::TooLarge) => anyhow::bail!("the body is longer than {limit_bytes} bytes"),
        Err(ReadError::Broken(error)) => Err(error).context("read the body"),
    }
}
