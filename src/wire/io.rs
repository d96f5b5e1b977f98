//! What joins smol's streams to hyper's traits, once. Nothing else in the tree names the adapter.

use std::future::Future;

use futures_lite::{AsyncRead, AsyncWrite};
use smol_hyper::rt::FuturesIo;

use crate::base::task;

/// A byte stream both ways: TCP, TLS or a tunnel within.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

pub fn hyper<T>(io: T) -> FuturesIo<T> {
    FuturesIo::new(io)
}

/// Runs hyper's own tasks beside the caller's.
#[derive(Clone, Copy)]
pub struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        task::spawn(async move {
            future.await;
        })
        .detach();
    }
}
