//! Ethernet addresses, and the deterministic ones that loden gives to its devices.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address that depends on `parts` alone.
    ///
    /// A device that is made again (after a reboot, or by hand) gets the address that its peers already know, so
    /// nothing has to be published or learned again (flannel #1155, #1795).
    #[must_use]
    pub fn derived(parts: &[&str]) -> Self {
        let mut hash = Fnv::new();
        for part in parts {
            hash.write(part.as_bytes());
            hash.write(&[0xff]);
        }
        let [a, b, c, d, e, f, ..] = hash.finish().to_be_bytes();
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// The link-local address that belongs to it (RFC 4291 appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The six octets, first on the wire first.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

/// FNV-1a with 64 bits and a final mix: short, stable over releases, and no secret hangs on it.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        let mut x = self.0;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    }
}

/// What stands for these parts in names of links: 11 hexadecimal digits.
pub(crate) fn digits(parts: &[&str]) -> String {
    let mut hash = Fnv::new();
    for part in parts {
        hash.write(part.as_bytes());
        hash.write(&[0xff]);
    }
    format!("{:011x}", hash.finish() & 0xfff_ffff_ffff)
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six octets in hexadecimal, parted by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 12:c6:65:89:b4:e3")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;
    fn from_str(s: &str) -> Result<Self, MacError> {
        let error = || MacError(s.to_owned());
        let mut octets = [0; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(s: String) -> Result<Self, MacError> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: Mac = "12:c6:65:89:b4:e3".parse().expect("valid");
        assert_eq!(mac.to_string(), "12:c6:65:89:b4:e3");
        for bad in ["", "12:c6:65:89:b4", "12:c6:65:89:b4:e3:00", "12:c6:65:89:b4:g3", "1:2:3:4:5:6"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn derived_addresses_are_local_unicast_stable_and_distinct() {
        let one = Mac::derived(&["uid-1", "flannel.1"]);
        assert_eq!(one, Mac::derived(&["uid-1", "flannel.1"]));
        assert_ne!(one, Mac::derived(&["uid-2", "flannel.1"]));
        assert_ne!(Mac::derived(&["ab", "c"]), Mac::derived(&["a", "bc"]));
        assert_eq!(one.0[0] & 0x03, 0x02);
    }
}
