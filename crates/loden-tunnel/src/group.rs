//! Puts packets for one next hop together, so that one system call sends them all and the kernel cuts them apart (`UDP_SEGMENT`).

/// Packets in one send at most (`UDP_MAX_SEGMENTS` of older kernels).
pub const MOST_PACKETS: u16 = 64;
/// Bytes in one send at most: with the outer headers they must fit into one datagram.
const MOST_BYTES: usize = 65_000;

/// Where the bytes of a span are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where the packets were read to.
    Packets,
    /// Among the headers that were made for segments.
    Headers,
}

/// A piece of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Whose bytes.
    pub place: Place,
    /// Where it begins.
    pub start: u32,
    /// How long it is, in bytes.
    pub len: u32,
}

/// Packets that are sent by one call: all of one length, but for the last one, which may be shorter.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// The number of the peer that they go to.
    pub peer: u32,
    /// What the outer header has as ECN.
    pub ecn: u8,
    /// How long each packet is, in bytes.
    pub segment: u16,
    /// How many there are.
    pub count: u16,
    /// How long they are together, in bytes.
    pub bytes: usize,
    /// Their pieces, in order.
    pub spans: Vec<Span>,
    is_closed: bool,
}

impl Group {
    /// The pieces of one packet after the other: for a kernel or a device that refuses to cut.
    pub fn packets(&self) -> impl Iterator<Item = &[Span]> {
        let mut rest = self.spans.as_slice();
        std::iter::from_fn(move || {
            let (mut len, mut n) = (0, 0);
            while n < rest.len() && len < u32::from(self.segment) {
                len += rest[n].len;
                n += 1;
            }
            let (packet, behind) = rest.split_at(n);
            rest = behind;
            (!packet.is_empty()).then_some(packet)
        })
    }
}

/// The groups of a batch, in the order in which they are sent. Only the last one of a peer is open, and so nothing overtakes.
#[derive(Debug, Default)]
pub struct Groups {
    list: Vec<Group>,
    used: usize,
    /// The last group of each peer.
    last: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Groups {
    /// Adds a packet of `parts` for a peer, which takes at most `limit` packets at once.
    pub fn push(&mut self, peer: u32, limit: u16, ecn: u8, parts: &[Span]) {
        let len: usize = parts.iter().map(|part| part.len as usize).sum();
        let at = peer as usize;
        if at >= self.last.len() {
            self.last.resize(at + 1, NONE);
        }
        if let Some(group) = self.list[..self.used].get_mut(self.last[at] as usize)
            && !group.is_closed
            && group.ecn == ecn
            && group.count < limit
            && len <= usize::from(group.segment)
            && group.bytes + len <= MOST_BYTES
        {
            group.is_closed = len < usize::from(group.segment);
            group.count += 1;
            group.bytes += len;
            group.spans.extend_from_slice(parts);
            return;
        }
        if self.used == self.list.len() {
            self.list.push(Group::default());
        }
        let group = &mut self.list[self.used];
        self.last[at] = self.used as u32;
        self.used += 1;
        (group.peer, group.ecn, group.segment, group.count, group.bytes) = (peer, ecn, len as u16, 1, len);
        group.is_closed = false;
        group.spans.clear();
        group.spans.extend_from_slice(parts);
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[Group] {
        &self.list[..self.used]
    }

    /// Forgets them, but keeps the memory.
    pub fn clear(&mut self) {
        for group in &self.list[..self.used] {
            self.last[group.peer as usize] = NONE;
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(groups: &mut Groups, peer: u32, limit: u16, ecn: u8, len: u32) {
        groups.push(peer, limit, ecn, &[Span { place: Place::Packets, start: 0, len }]);
    }

    fn shape(groups: &Groups) -> Vec<(u32, u16, u16, usize)> {
        groups.list().iter().map(|group| (group.peer, group.segment, group.count, group.bytes)).collect()
    }

    #[test]
    fn a_shorter_packet_closes_a_group_and_a_longer_one_begins_another() {
        let mut groups = Groups::default();
        for len in [100, 100, 60, 100, 60, 61] {
            push(&mut groups, 0, 64, 0, len);
        }
        assert_eq!(shape(&groups), [(0, 100, 3, 260), (0, 100, 2, 160), (0, 61, 1, 61)]);
    }

    #[test]
    fn groups_have_their_limits_and_one_mark() {
        let mut groups = Groups::default();
        (0..70).for_each(|_| push(&mut groups, 0, 64, 0, 1472));
        (0..20).for_each(|_| push(&mut groups, 1, 16, 0, 52));
        assert_eq!(shape(&groups), [(0, 1472, 44, 64768), (0, 1472, 26, 38272), (1, 52, 16, 832), (1, 52, 4, 208)]);
        groups.clear();
        for ecn in [0, 0, 2, 0] {
            push(&mut groups, 1, 64, ecn, 52);
        }
        // The third one could have gone with the first two, but then it would be before the one that was before it.
        assert_eq!(shape(&groups), [(1, 52, 2, 104), (1, 52, 1, 52), (1, 52, 1, 52)]);
    }

    #[test]
    fn packets_of_a_group_are_found_again() {
        let mut groups = Groups::default();
        let span = |place, len| Span { place, start: 0, len };
        groups.push(0, 64, 0, &[span(Place::Packets, 100)]);
        groups.push(0, 64, 0, &[span(Place::Headers, 40), span(Place::Packets, 60)]);
        groups.push(0, 64, 0, &[span(Place::Headers, 40), span(Place::Packets, 10)]);
        let lens: Vec<Vec<u32>> = groups.list()[0].packets().map(|p| p.iter().map(|span| span.len).collect()).collect();
        assert_eq!(lens, [vec![100], vec![40, 60], vec![40, 10]]);
    }
}
