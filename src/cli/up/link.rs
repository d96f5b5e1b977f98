//! The links of a node of `edgectl up`: loopback, and one that carries the node's address. That of the first node is a bridge, that of
//! every other one a cable into it. It works in the network namespace of the process, which is the node's own already, and makes
//! nothing in the first node's but the cable's other end.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context, Result, bail};
use futures_lite::future;
use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::sys::SmolSocket;
use rtnetlink::{Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

/// The node's link.
const INTERFACE: &str = "eth0";
const PREFIX: u8 = 24;

/// The first node, into which another one is plugged.
pub struct Hub {
    /// Its network namespace.
    pub network: OwnedFd,
    /// The cable's end there; of each node another one.
    pub port: String,
}

/// Sets loopback up and makes the node's link.
pub async fn set_up(address: Ipv4Addr, hub: Option<&Hub>) -> Result<()> {
    if let Some(hub) = hub {
        let own = File::open("/proc/thread-self/ns/net").context("open the node's network namespace")?;
        connected(Some(hub), async |handle| plug(handle, hub, &own).await).await.context("plug the node into the first one")?;
    }
    connected(None, async |handle| {
        let loopback = LinkUnspec::new_with_index(index(handle, "lo").await?).up().build();
        handle.link().change(loopback).execute().await.map_err(|error| failure(&error)).context("set lo up")?;
        if hub.is_none() {
            let bridge = LinkBridge::new(INTERFACE).mcast_snooping(false).build();
            let made = handle.link().add(bridge).execute().await.map_err(|error| failure(&error));
            made.context("make the node's link (a bridge; the kernel needs CONFIG_BRIDGE)")?;
        }
        let add = handle.address().add(index(handle, INTERFACE).await?, address.into(), PREFIX);
        add.execute().await.map_err(|error| failure(&error)).with_context(|| format!("give the node its address {address}"))?;
        let up = LinkUnspec::new_with_index(index(handle, INTERFACE).await?).up().build();
        handle.link().change(up).execute().await.map_err(|error| failure(&error)).context("set the node's link up")
    })
    .await
}

/// Makes the cable from the hub's side: its other end is born in the namespace `node`.
async fn plug(handle: &Handle, hub: &Hub, node: &File) -> Result<()> {
    // That of a node which was killed a moment ago may still be there: the kernel clears namespaces away when it has time.
    if let Ok(index) = index(handle, &hub.port).await {
        // It may go at this very moment.
        let _ = handle.link().del(index).execute().await;
    }
    let bridge = index(handle, INTERFACE).await?;
    let end = LinkMessageBuilder::<LinkUnspec>::new().name(INTERFACE.to_owned()).setns_by_fd(node.as_raw_fd()).build();
    let cable = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(hub.port.clone())
        .controller(bridge)
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(end)))
        .build();
    let made = handle.link().add(cable).execute().await.map_err(|error| failure(&error));
    made.with_context(|| format!("make link {} (a veth; the kernel needs CONFIG_VETH)", hub.port))
}

/// Does the work with a connection to the hub's network namespace, or to the process's own.
async fn connected<T>(hub: Option<&Hub>, work: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let open = rtnetlink::new_connection_with_socket::<SmolSocket>;
    let opened = match hub {
        None => open(),
        // On a thread that enters the namespace and ends: what is opened there stays there.
        Some(hub) => thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&hub.network, CloneFlags::CLONE_NEWNET)?;
                open()
            });
            entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
        }),
    };
    let (connection, handle, _unasked) = opened.context("open rtnetlink socket")?;
    let carried = async {
        connection.await;
        bail!("rtnetlink connection closed")
    };
    future::or(work(&handle), carried).await
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name.to_owned()).execute());
    let link = found.try_next().await.map_err(|error| failure(&error)).with_context(|| format!("look up link {name}"))?;
    Ok(link.with_context(|| format!("link {name} is missing"))?.header.index)
}

/// The kernel's own words.
fn failure(error: &Error) -> anyhow::Error {
    match error {
        Error::NetlinkError(message) => io::Error::from_raw_os_error(-message.raw_code()).into(),
        other => other.clone().into(),
    }
}
