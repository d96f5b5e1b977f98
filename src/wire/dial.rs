//! Opens sockets, in this process's network namespace or in another one: a board in the lab has no way out of its own,
//! so its registry connections are made where the host's are. It speaks no protocol.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_lite::FutureExt;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};
use smol::{Async, Timer};

use super::resolve::resolve;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that confirms nothing for so long is gone, tcp(7): without it a connection over a link that was cut is tried ever more seldom,
/// for a quarter of an hour, and not noticed to be dead when the link is back.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(15);

/// What every connection wants, on either side: small messages at once, and an end with a peer that is gone.
pub(super) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    Ok(setsockopt(stream, sockopt::TcpUserTimeout, &(UNCONFIRMED_MAX.as_millis() as u32))?)
}

/// Where sockets are made.
#[derive(Clone, Default)]
pub struct Dialer {
    network_namespace: Option<Arc<OwnedFd>>,
}

impl Dialer {
    /// Makes sockets in the network namespace behind `descriptor`, network_namespaces(7).
    pub fn within(descriptor: OwnedFd) -> Self {
        Self { network_namespace: Some(Arc::new(descriptor)) }
    }

    /// Connects to the first address of a host that answers.
    ///
    /// # Errors
    /// If the host is unknown, or none of its addresses answers within ten seconds.
    pub async fn connect(&self, host: &str, port: u16) -> anyhow::Result<Async<TcpStream>> {
        let mut last = anyhow!("it has no address");
        for address in resolve(host, self).await? {
            match self.connect_address(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last.context(format!("connect to {host}:{port}")))
    }

    /// # Errors
    /// If nobody answers there within ten seconds.
    pub async fn connect_address(&self, address: SocketAddr) -> anyhow::Result<Async<TcpStream>> {
        let descriptor = self.socket(address.ip(), SockType::Stream).await?;
        let timeout = async {
            Timer::after(CONNECT_TIMEOUT).await;
            Err(anyhow!("no answer from {address} within {} s", CONNECT_TIMEOUT.as_secs()))
        };
        let connecting = async {
            let sockaddr = SockaddrStorage::from(address);
            match connect(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &sockaddr) {
                Ok(()) | Err(nix::Error::EINPROGRESS) => (),
                Err(error) => return Err(error.into()),
            }
            let stream = Async::new_nonblocking(TcpStream::from(descriptor))?;
            stream.writable().await?;
            match stream.get_ref().take_error()? {
                Some(error) => Err(error.into()),
                None => Ok(stream),
            }
        };
        let stream = connecting.or(timeout).await?;
        tune(stream.get_ref())?;
        Ok(stream)
    }

    /// A socket that is not connected yet.
    ///
    /// # Errors
    /// If the kernel gives none.
    pub async fn udp(&self, v6: bool) -> anyhow::Result<Async<UdpSocket>> {
        let family = if v6 { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
        Ok(Async::new_nonblocking(UdpSocket::from(self.socket(family, SockType::Datagram).await?))?)
    }

    async fn socket(&self, family: IpAddr, kind: SockType) -> anyhow::Result<OwnedFd> {
        let family = if family.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let open = move || socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None);
        let Some(namespace) = self.network_namespace.clone() else {
            return open().context("open a socket");
        };
        // A thread of its own: it stays in the other namespace, so it may serve nothing else afterwards.
        let opened = smol::unblock(move || {
            let thread = std::thread::spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                open()
            });
            thread.join()
        });
        match opened.await {
            Ok(opened) => opened.context("open a socket in the host's network namespace"),
            Err(_) => Err(anyhow!("open a socket in the host's network namespace: the thread ended early")),
        }
    }
}
