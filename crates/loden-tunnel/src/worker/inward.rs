//! From the wire to the device.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use loden_core::kernel::tunnel::Wire;
use loden_linux::LinuxError;
use loden_linux::datagram::{Inbox, Received};

use super::Queue;
use super::send::{Bytes, Sender, recycled};
use super::shared::Shared;
use crate::counters::Cause;
use crate::engine::{Arrival, Inbound};

/// Room for the largest datagram, or the longest run of them that the kernel puts together, in bytes.
const ROOM: usize = 64 << 10;
/// After so many batches every socket is asked, whether it has said that it has something or not.
const ASK_ALL: usize = 64;
/// How many of those in one batch.
const MOST_MESSAGES: usize = 8;

/// Runs until it is over.
pub(super) fn run(shared: &Shared, queue: &Queue, thread: usize) -> Result<(), LinuxError> {
    let began = Instant::now();
    let mut seen = 0;
    let Some(picture) = shared.board.newer(thread, &mut seen) else { return Ok(()) };
    let mut engine = Inbound::new(picture, queue.wire, queue.tun.has_uso());
    let (mut inbox, mut memory) = (Inbox::default(), vec![0; MOST_MESSAGES * ROOM]);
    let (mut sender, mut parts) = (Sender::default(), Vec::new());
    // A socket that had nothing is asked again when it says so, or now and then while another one is never empty.
    let mut is_ready = [true; 2];
    for round in 0_usize.. {
        if shared.is_over() {
            break;
        }
        if round % ASK_ALL == 0 {
            is_ready = [true; 2];
        }
        for (socket, is_ready) in queue.receive.iter().zip(&mut is_ready).filter(|(_, is_ready)| **is_ready) {
            let received = inbox.receive(socket, &mut memory, ROOM)?;
            if received.is_empty() {
                *is_ready = false;
                continue;
            }
            // Behind the call: they may come because of another picture.
            if let Some(picture) = shared.board.newer(thread, &mut seen) {
                engine.look_at(picture);
            }
            let now = began.elapsed();
            for (n, message) in received.iter().enumerate() {
                match arrival(queue.wire, n * ROOM, message, &memory) {
                    Some(arrival) => engine.take(&mut memory, &arrival, now),
                    None => engine.picture().nobody.dropped(Cause::Malformed),
                }
            }
            let picture = Arc::clone(engine.picture());
            for slot in engine.packets(&mut memory) {
                let header = slot.vnet.to_bytes();
                let mut list = recycled(std::mem::take(&mut parts));
                list.push(IoSlice::new(&header));
                let bytes = Bytes { packets: &memory, headers: &[] };
                list.extend(slot.spans.iter().map(|span| IoSlice::new(bytes.of(span))));
                if let Err(error) = queue.tun.write(&list) {
                    shared.refused(error);
                    picture.nobody.dropped(Cause::Undeliverable);
                }
                parts = recycled(list);
            }
            if !engine.replies().list().is_empty() {
                let bytes = Bytes { packets: &memory, headers: engine.headers() };
                sender.send(shared, queue.wire, &queue.send, &picture, engine.replies(), bytes)?;
            }
            engine.clear();
        }
        if !is_ready.iter().take(queue.receive.len()).any(|is_ready| *is_ready) {
            is_ready = shared.rest(queue.receive.iter().map(|socket| socket.as_fd()))?;
        }
    }
    Ok(())
}

/// What there is in a message; `None` when it is not all there.
fn arrival(wire: Wire, start: usize, message: &Received, memory: &[u8]) -> Option<Arrival> {
    let end = start + message.len;
    // A raw socket gives the outer header too.
    let header = if wire == Wire::Ipip && message.len > 0 { usize::from(memory[start] & 15) * 4 } else { 0 };
    let is_all = !message.is_truncated && header < message.len;
    let segment = if wire == Wire::Ipip { message.len - header.min(message.len) } else { message.segment };
    is_all.then(|| Arrival { at: start + header..end, segment, from: message.from.ip(), tos: message.tos })
}
