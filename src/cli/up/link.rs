//! The links of a node of `edgectl up`: loopback, and one that carries the node's address. It works in the network namespace
//! of the process, which is the node's own already.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use futures_lite::future;
use futures_util::TryStreamExt;
use rtnetlink::sys::SmolSocket;
use rtnetlink::{Error, Handle, LinkBridge, LinkUnspec};

/// The node's link; a bridge, so that other nodes can be plugged into it.
const INTERFACE: &str = "eth0";
const PREFIX: u8 = 24;

/// Sets loopback up and makes the node's link.
pub async fn set_up(address: Ipv4Addr) -> Result<()> {
    let (connection, handle, _unasked) = rtnetlink::new_connection_with_socket::<SmolSocket>().context("open rtnetlink socket")?;
    let carried = async {
        connection.await;
        bail!("rtnetlink connection closed")
    };
    let work = async {
        let loopback = LinkUnspec::new_with_index(index(&handle, "lo").await?).up().build();
        handle.link().change(loopback).execute().await.map_err(|error| failure(&error)).context("set lo up")?;
        let bridge = LinkBridge::new(INTERFACE).mcast_snooping(false).build();
        let made = handle.link().add(bridge).execute().await.map_err(|error| failure(&error));
        made.context("make the node's link (a bridge; the kernel needs CONFIG_BRIDGE)")?;
        let add = handle.address().add(index(&handle, INTERFACE).await?, address.into(), PREFIX);
        add.execute().await.map_err(|error| failure(&error)).with_context(|| format!("give the node its address {address}"))
    };
    future::or(work, carried).await
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    let link = found.try_next().await.map_err(|error| failure(&error)).with_context(|| format!("look up link {name}"))?;
    Ok(link.with_context(|| format!("link {name} is missing"))?.header.index)
}

/// The kernel's own words.
fn failure(error: &Error) -> anyhow::Error {
    match error {
        Error::NetlinkError(message) => std::io::Error::from_raw_os_error(-message.raw_code()).into(),
        other => other.clone().into(),
    }
}
