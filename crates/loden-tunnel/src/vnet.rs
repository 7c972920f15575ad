//! The header that goes before each packet of the TUN device (`struct virtio_net_hdr`, ten bytes in the machine's own order):
//! what the kernel has left to do, or what we leave to it.

/// Its length, in bytes.
pub const LEN: usize = 10;

/// The checksum is only begun: the field holds the sum of the pseudo-header (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const NEEDS_CHECKSUM: u8 = 1;
/// One segment more has its congestion window reduced (`VIRTIO_NET_HDR_GSO_ECN`).
const ECN: u8 = 0x80;

/// What a large packet is to be cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// TCP segments in IPv4.
    TcpV4,
    /// TCP segments in IPv6.
    TcpV6,
    /// UDP datagrams, in either.
    Udp,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vnet {
    /// Where the transport header and within it its checksum are, if that is only begun.
    pub checksum: Option<(u16, u16)>,
    /// What it is to be cut into, each with how many bytes of payload at most.
    pub gso: Option<(Gso, u16)>,
    /// How long all headers together are said to be, in bytes. It is a hint to the kernel, and not to be relied upon from it: of a packet
    /// that is forwarded it may be anything.
    pub header_len: u16,
}

impl Vnet {
    /// Reads it; `None` when it is of a sort that was not asked for.
    #[must_use]
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !ECN {
            0 => None,
            1 => Some(Gso::TcpV4),
            4 => Some(Gso::TcpV6),
            5 => Some(Gso::Udp),
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CHECKSUM != 0).then(|| (word(6), word(8)));
        Some(Self { checksum, gso: kind.map(|kind| (kind, word(4))), header_len: word(2) })
    }

    /// As the kernel takes it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, word: u16| bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        put(2, self.header_len);
        if let Some((_, size)) = self.gso {
            put(4, size);
        }
        if let Some((start, offset)) = self.checksum {
            put(6, start);
            put(8, offset);
            bytes[0] = NEEDS_CHECKSUM;
        }
        bytes[1] = match self.gso {
            None => 0,
            Some((Gso::TcpV4, _)) => 1,
            Some((Gso::TcpV6, _)) => 4,
            Some((Gso::Udp, _)) => 5,
        };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        for gso in [None, Some((Gso::TcpV4, 1448)), Some((Gso::TcpV6, 1428)), Some((Gso::Udp, 512))] {
            for checksum in [None, Some((20, 16)), Some((40, 6))] {
                let vnet = Vnet { checksum, gso, header_len: 52 };
                assert_eq!(Vnet::parse(&vnet.to_bytes()), Some(vnet));
            }
        }
        assert_eq!(Vnet::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "UFO");
        assert_eq!(Vnet::parse(&[0; LEN]), Some(Vnet::default()));
        let ecn = Vnet::parse(&[1, 0x81, 0, 0, 0xa8, 5, 20, 0, 16, 0]).expect("with ECN");
        assert_eq!(ecn.gso.map(|(kind, _)| kind), Some(Gso::TcpV4));
    }
}
