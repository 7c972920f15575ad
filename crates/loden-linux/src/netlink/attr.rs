//! Netlink's type-length-value form, written and read.
//!
//! The reader never trusts a length: hostile or torn bytes end the iteration, they neither panic nor loop.

use std::net::IpAddr;

use loden_core::model::Mac;

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// The bit that marks an attribute as holding others.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are flags.
const FLAGS: u16 = 0xc000;

/// Rounds up to netlink's alignment of four.
#[must_use]
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// Writes messages one behind the other.
#[derive(Debug, Default)]
pub struct Writer {
    buf: Vec<u8>,
    /// Where the current message begins.
    message: usize,
}

/// A nested attribute that is open.
#[derive(Debug)]
#[must_use = "an open attribute has to be closed"]
pub struct Nest(usize);

impl Writer {
    /// Begins a message with its header; the sequence number is filled in when it is sent.
    pub fn begin(&mut self, kind: u16, flags: u16) {
        self.message = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
    }

    /// Ends the message: its length is known now.
    pub fn end(&mut self) {
        let len = u32::try_from(self.buf.len() - self.message).unwrap_or(u32::MAX);
        self.buf[self.message..self.message + 4].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// Appends a fixed structure behind the header.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    /// An attribute of bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A flag: an attribute without a value.
    pub fn flag(&mut self, kind: u16) {
        self.bytes(kind, &[]);
    }

    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// A 16-bit number in host order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A 16-bit number in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A 32-bit number in host order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A 32-bit number in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text, ended by a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// An address in network order.
    pub fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(addr) => self.bytes(kind, &addr.octets()),
            IpAddr::V6(addr) => self.bytes(kind, &addr.octets()),
        }
    }

    /// An Ethernet address.
    pub fn mac(&mut self, kind: u16, value: Mac) {
        self.bytes(kind, &value.octets());
    }

    /// Opens an attribute that holds others.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buf.len();
        self.bytes(kind | NESTED, &[]);
        Nest(at)
    }

    /// Closes it.
    #[expect(clippy::needless_pass_by_value, reason = "a closed attribute cannot be closed again")]
    pub fn close(&mut self, nest: Nest) {
        let len = u16::try_from(self.buf.len() - nest.0).unwrap_or(u16::MAX);
        self.buf[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// What was written.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    /// The same, to fill in sequence numbers.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buf
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Forgets everything but the room.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.message = 0;
    }

    fn pad(&mut self) {
        self.buf.resize(align(self.buf.len()), 0);
    }
}

/// Reads attributes: an iterator of (type without flags, value).
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// The attributes in these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The attributes behind a fixed structure of `len` bytes; none when it is not even there.
    #[must_use]
    pub fn behind(bytes: &'a [u8], len: usize) -> Self {
        Self(bytes.get(align(len)..).unwrap_or_default())
    }

    /// The first attribute of the type.
    #[must_use]
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(k, value)| (k == kind).then_some(value))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !FLAGS;
        let Some(value) = self.0.get(4..len) else {
            self.0 = &[];
            return None;
        };
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The 16-bit number in host order at an offset.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The 32-bit number in host order at an offset.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The 64-bit number in host order at an offset.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// The 32-bit number in network order that is the whole value.
#[must_use]
pub fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.get(..4)?.try_into().ok().map(u32::from_be_bytes)
}

/// A text up to its zero byte.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

/// An address of either family, by its length.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// An Ethernet address.
#[must_use]
pub fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.begin(16, 1);
        w.raw(&[1, 2, 3, 4]);
        w.text(3, "eth0");
        let nest = w.nest(18);
        w.u32(1, 7);
        w.close(nest);
        w.end();
        assert_eq!(u32_at(w.as_slice(), 0), Some(u32::try_from(w.len()).expect("short")));
        let attrs = Attrs::behind(&w.as_slice()[HEADER..], 4);
        assert_eq!(attrs.find(3).and_then(text), Some("eth0"));
        let inner = Attrs::new(attrs.find(18).expect("nested"));
        assert_eq!(inner.find(1).and_then(|b| u32_at(b, 0)), Some(7));
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_the_reading(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let total: usize = Attrs::new(&bytes).map(|(_, value)| value.len() + 4).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
