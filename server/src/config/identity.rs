//! Who a node is and where it is reached.
//!
//! Invariant: an address names a node's base port; shard `s` listens on `port + 1 + s`. So one address per
//! node is enough for everyone to find every shard.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A cluster's identity: 128 random bits, drawn once when the cluster is laid out, kept in every
/// superblock and shown at every hello, so that nodes of two clusters never mix. Written as 32 hexadecimal
/// digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that is not a cluster id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a cluster id: write 32 hexadecimal digits, not all zero; \
     `openssl rand -hex 16` makes one"
)]
pub struct ClusterIdError(String);

impl FromStr for ClusterId {
    type Err = ClusterIdError;

    fn from_str(text: &str) -> Result<ClusterId, ClusterIdError> {
        let error = || ClusterIdError(text.to_owned());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        match u128::from_str_radix(text, 16) {
            Ok(0) | Err(_) => Err(error()),
            Ok(id) => Ok(ClusterId(id)),
        }
    }
}

impl Serialize for ClusterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClusterId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `host:port` of a node's base port. The host is a name or an IP address (IPv6 in brackets).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    host: String,
    port: u16,
}

impl NodeAddress {
    /// An address on this IP.
    pub fn from_ip(ip: IpAddr, port: u16) -> NodeAddress {
        NodeAddress { host: ip.to_string(), port }
    }

    /// The host: a name or an IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The base port, which takes requests for any shard.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of one shard: base + 1 + shard. `None` past 65535, which a validated configuration excludes.
    pub fn shard_port(&self, shard: u32) -> Option<u16> {
        u16::try_from(u32::from(self.port).checked_add(1)?.checked_add(shard)?).ok()
    }

    /// The IP address, if the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether the host names this machine only: a loopback IP address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// The first socket address of the host with `port` (the base port or a shard's). Blocks on the system's
    /// resolver when the host is a name: not for a shard's thread once it serves.
    pub fn resolve(&self, port: u16) -> io::Result<SocketAddr> {
        if let Some(ip) = self.ip() {
            return Ok(SocketAddr::new(ip, port));
        }
        (self.host.as_str(), port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host)))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A text that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: {problem}")]
pub struct NodeAddressError {
    text: String,
    problem: &'static str,
}

impl FromStr for NodeAddress {
    type Err = NodeAddressError;

    fn from_str(text: &str) -> Result<NodeAddress, NodeAddressError> {
        let error = |problem| NodeAddressError { text: text.to_owned(), problem };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| error("write host:port"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(error("what stands in brackets is not an IPv6 address")),
            None if host.contains(':') => {
                return Err(error("write an IPv6 address in brackets, as in [::1]:7400"));
            }
            None => host,
        };
        if host.is_empty()
            || !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'))
        {
            return Err(error("the host is not a name or an IP address"));
        }
        match port.parse() {
            Ok(0) | Err(_) => Err(error("the port is not a number from 1 to 65535")),
            Ok(port) => Ok(NodeAddress { host: host.to_owned(), port }),
        }
    }
}

impl Serialize for NodeAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_32_digits_and_not_zero() {
        let id: ClusterId = "00000000000000000000000000C0FFEE".parse().expect("upper case is fine");
        assert_eq!(id, ClusterId(0xc0ffee));
        assert_eq!(id.to_string(), "00000000000000000000000000c0ffee");
        for text in ["", "c0ffee", "0000000000000000000000000000000g", "+0000000000000000000000000000001"] {
            assert!(text.parse::<ClusterId>().is_err(), "{text}");
        }
        assert!("0".repeat(32).parse::<ClusterId>().is_err());
    }

    #[test]
    fn addresses_round_trip() {
        for text in ["127.0.0.1:7400", "[::1]:7400", "db-1.example.org:1", "localhost:65535"] {
            let address: NodeAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "7400", "::1:7400", "[db]:7400", "host:0", "host:65536", "host:", ":7400", "a b:7"] {
            assert!(text.parse::<NodeAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        for (text, loopback) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("LocalHost:1", true),
            ("10.0.0.1:1", false),
            ("example.org:1", false),
        ] {
            assert_eq!(text.parse::<NodeAddress>().expect(text).is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn shard_ports_stop_at_the_last_port() {
        let address: NodeAddress = "h:65533".parse().expect("valid");
        assert_eq!(address.shard_port(1), Some(65535));
        assert_eq!(address.shard_port(2), None);
        assert_eq!(address.shard_port(u32::MAX), None);
    }
}
