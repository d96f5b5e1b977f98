//! By which addresses others reach this machine. It asks the kernel, sends nothing and keeps nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The link to a node's own pods: its address is no one's way to the node.
pub const BRIDGE: &str = "edge0";

/// For documentation (RFC 5737): a way there is a way out.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// The address with which this machine would speak to another one.
///
/// # Errors
/// If there is no way there.
pub fn towards(other: IpAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(if other.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    // Nothing is sent: connecting a datagram socket only looks the route up.
    socket.connect(SocketAddr::new(other, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// That of the way out, or else the first of a link that is neither loopback nor the pods'. What loopback has beside its own (the name
/// server's address, a Service's) is on every node.
pub fn of_machine() -> Option<IpAddr> {
    let first = || {
        let addresses = getifaddrs().ok()?.filter_map(|interface| {
            let address = interface.address?.as_sockaddr_in()?.ip();
            let is_own = !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) && interface.interface_name != BRIDGE;
            is_own.then_some(IpAddr::V4(address))
        });
        addresses.into_iter().next()
    };
    towards(OUTSIDE).ok().or_else(first)
}
