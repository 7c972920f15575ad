//! Connection tracking: flows that must be thought of anew (numbers: linux/netfilter/nfnetlink_conntrack.h).

use loden_core::model::Family;

use crate::error::LinuxError;
use crate::netlink::attr::{Attrs, Writer};
use crate::netlink::socket::DUMP;
use crate::netlink::{Protocol, Socket};

/// `NFNL_SUBSYS_CTNETLINK`, and its messages.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GENMSG: usize = 4;
const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
/// `CTA_FILTER_F_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT`: what of the tuple the kernel compares.
const BY_DESTINATION_PORT: u32 = 1 << 3 | 1 << 5;
const UDP: u8 = 17;

/// Forgets the UDP flows that were sent to these ports, in both families.
///
/// # Errors
/// [`LinuxError`].
pub fn forget_udp(ports: &[u16]) -> Result<(), LinuxError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    for family in Family::ALL {
        for port in ports {
            forget(&mut socket, family, *port)?;
        }
    }
    Ok(())
}

fn forget(socket: &mut Socket, family: Family, port: u16) -> Result<(), LinuxError> {
    let head = [crate::rt::af(family), 0, 0, 0];
    let mut w = Writer::default();
    w.begin(GET, DUMP);
    w.raw(&head);
    let tuple = w.nest(TUPLE_ORIG);
    let proto = w.nest(TUPLE_PROTO);
    w.u8(PROTO_NUM, UDP);
    w.be16(PROTO_DST_PORT, port);
    w.close(proto);
    w.close(tuple);
    let filter = w.nest(FILTER);
    w.u32(FILTER_ORIG_FLAGS, BY_DESTINATION_PORT);
    w.close(filter);
    w.end();
    let listed = socket.dump("list flows", &mut w, Vec::new, |all: &mut Vec<_>, message| {
        let attrs = Attrs::behind(message.payload, GENMSG);
        let (tuple, id) = (attrs.find(TUPLE_ORIG), attrs.find(ID));
        // A kernel older than 5.8 does not filter.
        if let Some(tuple) = tuple.filter(|tuple| is_to_port(tuple, port)) {
            all.push((tuple.to_vec(), id.map(<[u8]>::to_vec)));
        }
    });
    let flows = match listed {
        // A kernel without connection tracking has no flows.
        Err(error) if matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT) => return Ok(()),
        listed => listed?,
    };
    if flows.is_empty() {
        return Ok(());
    }
    let mut w = Writer::default();
    for (tuple, id) in &flows {
        w.begin(DELETE, 0);
        w.raw(&head);
        w.bytes(TUPLE_ORIG | NESTED, tuple);
        if let Some(id) = id {
            w.bytes(ID, id);
        }
        w.end();
    }
    // One that ended meanwhile is forgotten too.
    let refused = socket.batch(&mut w)?.into_iter().filter_map(Result::err).find(|e| e.errno() != libc::ENOENT);
    refused.map_or(Ok(()), |error| Err(error.renamed(&format!("flows to UDP port {port}"))))
}

/// `NLA_F_NESTED`: connection tracking insists on it.
const NESTED: u16 = 0x8000;

fn is_to_port(tuple: &[u8], port: u16) -> bool {
    let proto = Attrs::new(tuple).find(TUPLE_PROTO).map(Attrs::new);
    let find = |kind| proto.and_then(|proto| proto.find(kind));
    find(PROTO_NUM) == Some(&[UDP]) && find(PROTO_DST_PORT) == Some(&port.to_be_bytes())
}
