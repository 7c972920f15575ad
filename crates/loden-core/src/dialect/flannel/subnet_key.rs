//! The key of a lease in etcd: the subnets of a node.

use std::fmt;
use std::str::FromStr;

use super::FlannelError;
use crate::model::{Family, Prefix};

/// The key of a lease below `subnets/`: `10.5.34.0-24`, or `10.5.34.0-24&fc00:0:0:1::-64` for both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The subnet for IPv4, which is always there.
    pub v4: Prefix,
    /// The subnet for IPv6.
    pub v6: Option<Prefix>,
}

impl SubnetKey {
    /// Its subnets.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

impl FromStr for SubnetKey {
    type Err = FlannelError;

    fn from_str(given: &str) -> Result<Self, FlannelError> {
        let wrong = |cause: String| FlannelError::SubnetKey { given: given.to_owned(), cause };
        let prefix = |text: &str, family: Family| {
            let prefix: Prefix =
                plain(text).and_then(|text| text.parse().map_err(|error| format!("{error}"))).map_err(wrong)?;
            match prefix.family() == family {
                true => Ok(prefix),
                false => Err(wrong(format!("{prefix} is not {family}"))),
            }
        };
        let (v4, v6) = match given.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (given, None),
        };
        Ok(Self { v4: prefix(v4, Family::V4)?, v6: v6.map(|v6| prefix(v6, Family::V6)).transpose()? })
    }
}

/// A subnet with the slash that a key cannot hold.
fn plain(text: &str) -> Result<String, String> {
    let (addr, len) = text.rsplit_once('-').ok_or_else(|| format!("{text:?} has no length"))?;
    // What reads otherwise than it is written would be another key for the same subnet.
    if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
        return Err(format!("{len:?} is no length"));
    }
    if addr.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{addr:?} is not in lower case"));
    }
    Ok(format!("{addr}/{len}"))
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.network(), self.v4.len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.network(), v6.len()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["10.5.34.0-24", "10.5.34.0-24&fc00:0:0:1::-64", "10.5.34.128-26&fc00::1:0-112"] {
            assert_eq!(text.parse::<SubnetKey>().expect(text).to_string(), text);
        }
        for wrong in [
            "",
            "10.5.34.0",
            "10.5.34.0-33",
            "10.5.34.1-24",
            "fc00::-64",
            "10.5.34.0-24&",
            "10.5.34.0-24&10.5.35.0-24",
            "10.5.34.0/24",
            "10.5.34.0-024",
            "10.5.34.0-+24",
            "10.5.34.0-24&FC00::-64",
            "10.5.34.0-24&fc00::-64&fc00::-64",
        ] {
            assert!(wrong.parse::<SubnetKey>().is_err(), "{wrong}");
        }
    }
}
