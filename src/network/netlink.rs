//! Links, addresses and routes as the kernel has them, over rtnetlink: one short connection for each piece of work, in the
//! network namespace that is asked for. It decides nothing; errors name the link and the kernel's own words.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use anyhow::{Context, Result, bail};
use futures_lite::future;
use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{SmolSocket, Socket, SocketAddr};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec};

/// Enough for entering a namespace and opening a socket in it.
const THREAD_STACK_BYTES: usize = 64 * 1024;

/// Runs `work` with a connection to the network namespace `namespace`, or to the caller's own.
pub async fn with<T>(namespace: Option<BorrowedFd<'_>>, work: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let open = rtnetlink::new_connection_with_socket::<SmolSocket>;
    let (connection, handle, _unasked) = match namespace {
        None => open(),
        Some(namespace) => within(namespace, open),
    }
    .context("open rtnetlink socket")?;
    // The connection is a future that carries the messages; it is polled beside the work and dropped with it.
    let carried = async {
        connection.await;
        bail!("rtnetlink connection closed")
    };
    future::or(work(&handle), carried).await
}

/// Calls `open` on a thread that has entered `namespace`: what is opened there stays there, and no failure can leave the
/// caller's own thread in the wrong namespace.
pub fn within<T: Send>(namespace: BorrowedFd, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn_scoped(scope, || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)?;
            open()
        })?;
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What is acted on of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub up: bool,
    pub mtu: u32,
    pub mac: Vec<u8>,
    /// The bridge that it is a port of; 0 if none.
    pub bridge: u32,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            mac: Vec::new(),
            bridge: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(index) => link.bridge = index,
                _ => {}
            }
        }
        link
    }
}

/// The link of that name; `None` if there is none.
pub async fn link(handle: &Handle, name: &str) -> Result<Option<Link>> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    match found.try_next().await {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if errno(&error) == libc::ENODEV => Ok(None),
        Err(error) => Err(failure(error)).with_context(|| format!("look up link {name}")),
    }
}

/// All links of the namespace.
pub async fn links(handle: &Handle) -> Result<Vec<Link>> {
    let messages: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failure).context("list links")?;
    Ok(messages.into_iter().map(Link::from).collect())
}

/// Deletes the link of that name; that there is none is fine. The kernel waits, often for tens of milliseconds, until no
/// packet is on its way through the link: so this is done on another thread, by a socket of the caller's namespace.
pub async fn delete(name: &str) -> Result<()> {
    let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelLink(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE).context("open rtnetlink socket")?;
    let answer = smol::unblock(move || {
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&bytes, 0)?;
        socket.recv_from_full()
    });
    let (answer, _) = answer.await.with_context(|| format!("delete link {name}"))?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).context("read rtnetlink's answer")?.payload {
        NetlinkPayload::Error(error) if ![0, -libc::ENODEV].contains(&error.raw_code()) => {
            Err(Errno::from_raw(-error.raw_code())).with_context(|| format!("delete link {name}"))
        }
        _ => Ok(()),
    }
}

/// Deletes a link in the namespace of `handle`, which waits meanwhile; that it is gone already is fine.
pub async fn delete_now(handle: &Handle, link: &Link) -> Result<()> {
    match handle.link().del(link.index).execute().await {
        Err(error) if errno(&error) != libc::ENODEV => Err(failure(error)).with_context(|| format!("delete link {}", link.name)),
        _ => Ok(()),
    }
}

/// The kernel's error number, positive; 0 if the error is none of the kernel's.
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::NetlinkError(message) => -message.raw_code(),
        _ => 0,
    }
}

/// The kernel's own words instead of the crate's picture of a message.
pub fn failure(error: Error) -> anyhow::Error {
    match errno(&error) {
        0 => error.into(),
        code => Errno::from_raw(code).into(),
    }
}
