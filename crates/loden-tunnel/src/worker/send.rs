//! Groups to the wire: many by one call, and what the kernel refuses in one piece once more in its parts.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use loden_core::kernel::tunnel::Wire;
use loden_core::model::Family;
use loden_linux::LinuxError;
use loden_linux::datagram::{Datagrams, Message, Outbox, path_mtu};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::shared::{Shared, is_not_now};
use crate::counters::Cause;
use crate::engine::Picture;
use crate::group::{Group, Groups, Place, Span};

/// Where the bytes of spans lie.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    pub(super) packets: &'a [u8],
    pub(super) headers: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(super) fn of(self, span: &Span) -> &'a [u8] {
        let place = if span.place == Place::Packets { self.packets } else { self.headers };
        &place[span.start as usize..][..span.len as usize]
    }
}

/// A packet that does not fit on its way: all of it, and how many bytes of it would.
pub(super) struct TooBig {
    pub(super) packet: Vec<u8>,
    pub(super) mtu: u32,
}

/// What is used again from batch to batch.
#[derive(Default)]
pub(super) struct Sender {
    outbox: Outbox,
    parts: Vec<IoSlice<'static>>,
    /// Where the parts of each group end.
    ends: Vec<usize>,
}

impl Sender {
    /// Sends them all. Gives those packets whose senders should hear that they were too big.
    pub(super) fn send(
        &mut self,
        shared: &Shared,
        wire: Wire,
        sockets: &[Arc<Datagrams>],
        picture: &Picture,
        groups: &Groups,
        bytes: Bytes<'_>,
    ) -> Result<Vec<TooBig>, LinuxError> {
        let mut too_big = Vec::new();
        let family_of = |group: &Group| picture.peers.get(group.peer).to().map(|to| Family::of(to.ip()));
        for group in
            groups.list().iter().filter(|group| sockets.iter().all(|socket| Some(socket.family()) != family_of(group)))
        {
            // This host has no address of the peer's family.
            lost(picture, group, Cause::Unsendable);
        }
        for socket in sockets {
            let list = groups.list().iter().filter(|group| family_of(group) == Some(socket.family()));
            let mut parts = recycled(std::mem::take(&mut self.parts));
            self.ends.clear();
            for group in list.clone() {
                parts.extend(group.spans.iter().map(|span| IoSlice::new(bytes.of(span))));
                self.ends.push(parts.len());
            }
            let mut done = 0;
            while done < self.ends.len() && !shared.is_over() {
                let messages = list.clone().enumerate().skip(done).filter_map(|(n, group)| {
                    let begin = n.checked_sub(1).map_or(0, |before| self.ends[before]);
                    Some(Message {
                        to: picture.peers.get(group.peer).to()?,
                        parts: &parts[begin..self.ends[n]],
                        segment: (group.count > 1).then_some(group.segment),
                        tos: group.ecn,
                    })
                });
                let sent = self.outbox.send(socket, messages);
                for group in list.clone().skip(done).take(sent.count) {
                    picture.cells[group.peer as usize].carried(group.count.into(), group.bytes);
                }
                done += sent.count;
                let Some(error) = sent.error else { break };
                if is_not_now(&error) {
                    shared.wait([socket.as_fd()], PollFlags::OUT)?;
                } else if let Some(group) = list.clone().nth(done) {
                    self.refused(shared, wire, socket, picture, group, bytes, &error, &mut too_big)?;
                    done += 1;
                }
            }
            self.parts = recycled(parts);
        }
        Ok(too_big)
    }

    /// A group that the kernel has refused is sent packet by packet: it may be the way or the link that cannot cut it.
    #[expect(clippy::too_many_arguments, reason = "the slow path of the one function above")]
    fn refused(
        &mut self,
        shared: &Shared,
        wire: Wire,
        socket: &Datagrams,
        picture: &Picture,
        group: &Group,
        bytes: Bytes<'_>,
        error: &io::Error,
        too_big: &mut Vec<TooBig>,
    ) -> Result<(), LinuxError> {
        let Some(to) = picture.peers.get(group.peer).to() else { return Ok(()) };
        let cells = &picture.cells[group.peer as usize];
        let is_of_size =
            Errno::from_io_error(error).is_some_and(|errno| [Errno::MSGSIZE, Errno::INVAL, Errno::IO].contains(&errno));
        if !is_of_size {
            shared.refused(refusal(to, error));
            lost(picture, group, Cause::Unsendable);
            return Ok(());
        }
        // Asked once, however many are too big.
        let mut mtu = None;
        for packet in group.packets() {
            let parts: Vec<IoSlice<'_>> = packet.iter().map(|span| IoSlice::new(bytes.of(span))).collect();
            let len = packet.iter().map(|span| span.len as usize).sum();
            loop {
                let message = Message { to, parts: &parts, segment: None, tos: group.ecn };
                let sent = self.outbox.send(socket, [message]);
                match sent.error {
                    None => cells.carried(1, len),
                    Some(error) if is_not_now(&error) && !shared.is_over() => {
                        shared.wait([socket.as_fd()], PollFlags::OUT)?;
                        continue;
                    }
                    Some(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => {
                        cells.dropped(Cause::TooBig);
                        let overhead = overhead(wire, Family::of(to.ip()));
                        if let Some(mtu) = *mtu.get_or_insert_with(|| path_mtu(to.ip()).ok()) {
                            let packet = parts.iter().flat_map(|part| part.iter().copied()).collect();
                            too_big.push(TooBig { packet, mtu: mtu.saturating_sub(overhead) });
                        }
                    }
                    Some(error) => {
                        shared.refused(refusal(to, &error));
                        cells.dropped(Cause::Unsendable);
                    }
                }
                break;
            }
        }
        Ok(())
    }
}

fn refusal(to: SocketAddr, error: &io::Error) -> LinuxError {
    let cause = Errno::from_io_error(error).unwrap_or(Errno::IO);
    LinuxError::system(format!("send to {to}"), cause)
}

fn lost(picture: &Picture, group: &Group, cause: Cause) {
    (0..group.count).for_each(|_| picture.cells[group.peer as usize].dropped(cause));
}

/// Bytes that the outer headers take.
fn overhead(wire: Wire, underlay: Family) -> u32 {
    let ip = if underlay == Family::V4 { 20 } else { 40 };
    if wire == Wire::Ipip { ip } else { ip + 8 }
}

/// The memory of a list for another one, whose parts live for another time.
pub(super) fn recycled<'a>(mut list: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    list.clear();
    // The compiler sees that the memory will do (there is a test that it does).
    list.into_iter().map_while(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_list_is_used_again() {
        let mut list: Vec<IoSlice<'static>> = Vec::with_capacity(1000);
        let at = list.as_ptr() as usize;
        for _ in 0..3 {
            let bytes = vec![1, 2, 3];
            let mut parts = recycled(list);
            parts.push(IoSlice::new(&bytes));
            assert_eq!((parts.as_ptr() as usize, parts.capacity()), (at, 1000));
            list = recycled(parts);
        }
    }
}
