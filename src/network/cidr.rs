//! An IPv4 network such as 10.244.0.0/16: reading, writing and counting in it. It never asks the kernel.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// An IPv4 network: an address with no bit set behind the prefix (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The network that `address` lies in. `prefix` is 0 to 32 bits.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self> {
        ensure!(prefix <= 32, "prefix length {prefix} is not between 0 and 32");
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { address: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }

    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// How many addresses the network has, the network's own and the broadcast address among them.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address at `offset` from the network's own; `None` beyond its end.
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from(u32::from(self.address) + offset as u32))
    }

    /// The least network that holds this one and the other.
    pub fn joined(self, other: Self) -> Self {
        let differ = u32::from(self.address) ^ u32::from(other.address);
        let prefix = (differ.leading_zeros() as u8).min(self.prefix).min(other.prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Self { address: Ipv4Addr::from(u32::from(self.address) & mask), prefix }
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.address)
    }
}

impl FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = text.split_once('/').with_context(|| format!("{text:?} is no network: no /PREFIX"))?;
        let address: Ipv4Addr = address.parse().with_context(|| format!("{text:?} is no network"))?;
        let cidr = Self::new(address, prefix.parse().with_context(|| format!("{text:?} is no network"))?)?;
        ensure!(cidr.address == address, "{text:?} is no network: bits are set behind the prefix, did you mean {cidr}");
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_networks_lie_in_the_least_one_that_holds_both() {
        for (one, other, both) in [
            ("10.244.0.0/16", "10.244.7.0/24", "10.244.0.0/16"),
            ("10.244.0.0/16", "10.245.0.0/24", "10.244.0.0/15"),
            ("10.244.0.0/16", "10.224.3.0/24", "10.224.0.0/11"),
            ("192.0.2.0/24", "10.0.0.0/8", "0.0.0.0/0"),
            ("192.0.2.1/32", "192.0.2.1/32", "192.0.2.1/32"),
        ] {
            let parse = |text: &str| text.parse::<Cidr>().unwrap();
            assert_eq!((parse(one).joined(parse(other)), parse(other).joined(parse(one))), (parse(both), parse(both)));
        }
    }

    #[test]
    fn networks_read_back_what_they_write() {
        for text in ["0.0.0.0/0", "10.244.0.0/16", "10.244.3.0/24", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_network_with_host_bits_is_refused_with_the_likely_one() {
        let error = "10.244.3.1/24".parse::<Cidr>().unwrap_err().to_string();
        assert!(error.ends_with("did you mean 10.244.3.0/24"), "{error}");
        for text in ["10.244.0.0", "10.244.0.0/33", "10.244.0/16", "a/8", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_knows_what_lies_in_it() {
        let cidr: Cidr = "10.244.3.0/24".parse().unwrap();
        assert_eq!(cidr.size(), 256);
        assert_eq!(cidr.nth(255), Some(Ipv4Addr::new(10, 244, 3, 255)));
        assert_eq!(cidr.nth(256), None);
        assert!(cidr.contains(Ipv4Addr::new(10, 244, 3, 77)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 244, 4, 0)));
    }
}
