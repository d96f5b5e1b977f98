//! Takes away all that the pod network has made on a node: ways to other nodes, links, the node's further addresses, tables of rules. What
//! it does not know for its own it leaves; the kernel's switches stay as they are, for nobody knows how they were.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{AddressMessageBuilder, Handle, RouteMessageBuilder};

use super::nftables::{self, Connection, Transaction};
use super::{firewall, netlink, node, peers, pod, policy, services};

/// Removes what there is of it and says what that was. `bridge` and `local_addresses` are as in the node's configuration.
///
/// # Errors
/// What the kernel would not let go of; the next call does the rest.
pub async fn remove(bridge: &str, local_addresses: &[Ipv4Addr]) -> Result<Vec<String>> {
    let mut removed = netlink::with(None, async |handle| {
        let mut removed = remove_routes(handle).await?;
        for link in netlink::links(handle).await? {
            let is_bridge = link.name == bridge && link.mac.starts_with(&node::MAC_PREFIX);
            if is_bridge || [pod::ALIAS_PREFIX, peers::ALIAS_PREFIX].iter().any(|prefix| link.alias.starts_with(prefix)) {
                netlink::delete_now(handle, &link).await?;
                removed.push(format!("link {}", link.name));
            }
        }
        removed.extend(remove_addresses(handle, local_addresses).await?);
        Ok(removed)
    })
    .await?;
    // Opened here: it belongs to this thread's network namespace.
    let connection = Connection::open().context("open nf_tables socket")?;
    removed.extend(smol::unblock(move || remove_tables(&connection)).await?);
    Ok(removed)
}

async fn remove_routes(handle: &Handle) -> Result<Vec<String>> {
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> =
        handle.route().get(all).execute().try_collect().await.map_err(netlink::failure).context("list routes")?;
    let mut removed = 0;
    for route in routes.into_iter().filter(|route| route.header.protocol == RouteProtocol::from(peers::PROTOCOL)) {
        handle.route().del(route).execute().await.map_err(netlink::failure).context("delete a route to another node's pods")?;
        removed += 1;
    }
    Ok(if removed > 0 { vec![format!("{removed} routes to other nodes' pods")] } else { vec![] })
}

async fn remove_addresses(handle: &Handle, addresses: &[Ipv4Addr]) -> Result<Vec<String>> {
    let Some(loopback) = netlink::link(handle, "lo").await? else { return Ok(vec![]) };
    let observed = node::addresses(handle, loopback.index).await?;
    let mut removed = vec![];
    for address in addresses.iter().filter(|address| observed.contains(&(**address, 32))) {
        let found = AddressMessageBuilder::<Ipv4Addr>::new().index(loopback.index).address(*address, 32).build();
        let deleted = handle.address().del(found).execute().await;
        deleted.map_err(netlink::failure).with_context(|| format!("delete address {address} of lo"))?;
        removed.push(format!("address {address} of lo"));
    }
    Ok(removed)
}

fn remove_tables(connection: &Connection) -> Result<Vec<String>> {
    let mut removed = vec![];
    for table in [policy::TABLE, services::TABLE, firewall::TABLE] {
        let generation = nftables::generation(connection).context("read the generation of the rules")?;
        let mut transaction = Transaction::new(table, generation);
        transaction.delete_table();
        match transaction.commit(connection) {
            Ok(()) => removed.push(format!("nf_tables table {table}")),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("delete table {table}")),
        }
    }
    Ok(removed)
}
