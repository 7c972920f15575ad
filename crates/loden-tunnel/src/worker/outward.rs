//! From the device to the wire.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::Instant;

use loden_linux::LinuxError;

use super::Queue;
use super::send::{Bytes, Sender};
use super::shared::Shared;
use crate::counters::Cause;
use crate::engine::Outbound;
use crate::vnet;

/// Memory for what is read in one batch, in bytes.
const MEMORY: usize = 384 << 10;
/// The largest packet with the header before it, in bytes.
const ROOM: usize = 65_536 + vnet::LEN;
/// Packets in one batch.
const MOST_PACKETS: usize = 128;
/// A packet of so many bytes is sent at once, as long as the processor has it at hand.
const LARGE: usize = 16 << 10;

/// Runs until it is over.
pub(super) fn run(shared: &Shared, queue: &Queue, thread: usize) -> Result<(), LinuxError> {
    let began = Instant::now();
    let mut seen = 0;
    let Some(picture) = shared.board.newer(thread, &mut seen) else { return Ok(()) };
    let has_segmentation = queue.send.iter().all(|socket| socket.has_segmentation());
    let mut engine = Outbound::new(picture, queue.wire, has_segmentation);
    let (mut sender, mut memory) = (Sender::default(), vec![0; MEMORY]);
    // Where packets come one by one each goes out at once: somebody waits for the answer. Where more come they go together.
    let (mut most, mut since_rest) = (1, 0);
    while !shared.is_over() {
        let (mut used, mut count, mut now) = (0, 0, None);
        let is_drained = loop {
            if count == most || used + ROOM > memory.len() {
                break false;
            }
            let Some(len) = queue.tun.read(&mut memory[used..used + ROOM])? else { break true };
            // Behind the read: a packet may have been led here because of another picture. Those before it go by theirs.
            if let Some(picture) = shared.board.newer(thread, &mut seen) {
                flush(shared, queue, &mut engine, &mut sender, &memory, began)?;
                engine.look_at(picture);
            }
            let now = *now.get_or_insert_with(|| began.elapsed());
            engine.take(&mut memory, used..used + len, now);
            count += 1;
            // Each begins where the processor begins to fetch.
            used = (used + len).next_multiple_of(64);
            if len > LARGE || engine.is_full() {
                break false;
            }
        };
        if count > 0 {
            flush(shared, queue, &mut engine, &mut sender, &memory, began)?;
        }
        since_rest += count;
        most = MOST_PACKETS;
        if is_drained {
            shared.rest([queue.tun.as_fd()])?;
            most = if since_rest > 1 { MOST_PACKETS } else { 1 };
            since_rest = 0;
        }
    }
    Ok(())
}

/// Sends what was taken, and the answers to those whose packets cannot be.
fn flush(
    shared: &Shared,
    queue: &Queue,
    engine: &mut Outbound,
    sender: &mut Sender,
    memory: &[u8],
    began: Instant,
) -> Result<(), LinuxError> {
    let bytes = Bytes { packets: memory, headers: engine.headers() };
    let too_big = sender.send(shared, queue.wire, &queue.send, engine.picture(), engine.groups(), bytes)?;
    for packet in too_big {
        engine.too_big(&packet.packet, packet.mtu, began.elapsed());
    }
    for answer in engine.answers() {
        let header = [0; vnet::LEN];
        if let Err(error) = queue.tun.write(&[IoSlice::new(&header), IoSlice::new(answer)]) {
            shared.refused(error);
            engine.picture().nobody.dropped(Cause::Undeliverable);
        }
    }
    engine.clear();
    Ok(())
}
