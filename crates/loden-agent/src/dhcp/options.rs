//! Options of a server's message (RFC 2132, 3396, 3397, 3442): read as far as they are whole, a longer one put together of its parts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use loden_core::dhcp::{Dns, Terms};
use loden_core::model::{PodRoute, Prefix, RouteExtras};
use smoltcp::wire::DhcpPacket;

use super::wire::Fault;

/// Where the fields `file` and `sname` are, which may hold options too (option 52).
const FILE: std::ops::Range<usize> = 108..236;
const SNAME: std::ops::Range<usize> = 44..108;
/// Bytes before the options.
const HEADER: usize = 240;

/// Options by number.
#[derive(Debug, Default)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Reads those of a message of at least [`HEADER`] bytes.
    pub fn read(bytes: &[u8]) -> Self {
        let mut options = Self::default();
        options.take(bytes);
        let overload = options.get(52).and_then(|data| data.first().copied()).unwrap_or(0);
        for (bit, field) in [(1, FILE), (2, SNAME)] {
            if overload & bit != 0 {
                options.take(&[&[0; HEADER], &bytes[field]].concat());
            }
        }
        options
    }

    fn take(&mut self, bytes: &[u8]) {
        for option in DhcpPacket::new_unchecked(bytes).options() {
            self.0.entry(option.kind).or_default().extend_from_slice(option.data);
        }
    }

    /// An option's data.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// The addresses in an option.
    fn addrs(&self, code: u8) -> Vec<Ipv4Addr> {
        self.get(code).unwrap_or_default().chunks_exact(4).filter_map(addr_at).collect()
    }

    /// The first of them.
    pub fn addr(&self, code: u8) -> Option<Ipv4Addr> {
        self.addrs(code).first().copied()
    }

    fn number(&self, code: u8) -> Option<u32> {
        self.get(code).and_then(|data| data.try_into().ok()).map(u32::from_be_bytes)
    }

    /// A text as people may see it: what cannot be shown is left out.
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.get(code)?);
        let text: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(255).collect();
        (!text.is_empty()).then_some(text)
    }
}

/// What a server gives with an address.
pub fn terms(options: &Options, addr: Ipv4Addr) -> Result<Terms, Fault> {
    let mask = options.addr(1).map_or_else(|| Some(classful(addr)), prefix_len).ok_or("has a subnet mask with gaps")?;
    let domain = options.text(15).filter(|name| is_name(name));
    Ok(Terms {
        net: Ipv4Net::new(addr, mask).map_err(|_| "has a subnet mask with gaps")?,
        router: options.addr(3).filter(|router| !router.is_unspecified()),
        routes: options.get(121).map_or(Ok(Vec::new()), routes)?,
        dns: Dns { nameservers: options.addrs(6), domain, search: options.get(119).map(names).unwrap_or_default() },
        mtu: options.get(26).and_then(|data| data.try_into().ok()).map(|data| u32::from(u16::from_be_bytes(data))),
        server: options.addr(54).ok_or("does not name its server")?,
        lease_s: options.number(51).ok_or("has no lease time")?,
        renewal_s: options.number(58),
        rebinding_s: options.number(59),
    })
}

fn addr_at(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// The length of a mask without gaps.
fn prefix_len(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let len = bits.leading_ones();
    (bits.checked_shl(len).unwrap_or(0) == 0).then(|| u8::try_from(len).ok()).flatten()
}

/// The length that an address has by itself, for a server that says none (RFC 791 section 3.2).
fn classful(addr: Ipv4Addr) -> u8 {
    match addr.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// Classless routes (RFC 3442): a length, as many bytes of the destination as it fills, a router, which is 0.0.0.0 for one on the link.
fn routes(mut data: &[u8]) -> Result<Vec<PodRoute>, Fault> {
    let fault = "has classless routes that are cut short";
    let mut routes = Vec::new();
    while let Some((len, rest)) = data.split_first() {
        let filled = usize::from(*len).div_ceil(8);
        if *len > 32 || rest.len() < filled + 4 {
            return Err(fault);
        }
        let mut destination = [0; 4];
        destination[..filled].copy_from_slice(&rest[..filled]);
        let router = addr_at(&rest[filled..filled + 4]).ok_or(fault)?;
        routes.push(PodRoute {
            prefix: Prefix::holding(Ipv4Addr::from(destination).into(), *len),
            gateway: (!router.is_unspecified()).then_some(router.into()),
            priority: 0,
            extras: RouteExtras::default(),
        });
        data = &rest[filled + 4..];
    }
    Ok(routes)
}

/// Names as the DNS packs them (RFC 3397, RFC 1035 section 4.1.4), up to the first that is not right.
fn names(data: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let Some((name, behind)) = name(data, at) else { break };
        if is_name(&name) && !names.contains(&name) {
            names.push(name);
        }
        at = behind;
    }
    names
}

/// The name at a place, and the place behind it. A pointer leads back only, so that there is an end.
fn name(data: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut labels, mut at, mut behind, mut least) = (Vec::new(), start, None, start);
    loop {
        let len = *data.get(at)?;
        match len {
            0 => return Some((labels.join("."), behind.unwrap_or(at + 1))),
            1..=63 => {
                let label = data.get(at + 1..at + 1 + usize::from(len))?;
                labels.push(String::from_utf8(label.to_vec()).ok()?);
                at += 1 + usize::from(len);
            }
            0xc0.. => {
                let to = usize::from(u16::from_be_bytes([len & 0x3f, *data.get(at + 1)?]));
                behind = behind.or(Some(at + 2));
                if to >= least {
                    return None;
                }
                (at, least) = (to, to);
            }
            _ => return None,
        }
    }
}

/// What may stand in a resolver's configuration: a server must not bring more than a name into it.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.trim_end_matches('.').split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(u8, &[u8])]) -> Options {
        let mut bytes = vec![0; HEADER];
        for (code, data) in list {
            bytes.extend([*code, u8::try_from(data.len()).unwrap_or(0)]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        Options::read(&bytes)
    }

    #[test]
    fn terms_are_read_or_refused() {
        let addr = Ipv4Addr::new(192, 0, 2, 9);
        let base: [(u8, &[u8]); 2] = [(54, &[192, 0, 2, 1]), (51, &[0, 0, 0, 60])];
        let with = |more: &[(u8, &[u8])]| terms(&options(&[&base, more].concat()), addr);
        let plain = with(&[]).map(|terms| (terms.net.to_string(), terms.lease_s));
        assert_eq!(plain, Ok(("192.0.2.9/24".to_owned(), 60)), "without a mask by its class");
        assert_eq!(with(&[(1, &[255, 255, 255, 128])]).map(|terms| terms.net.prefix_len()), Ok(25));
        for (more, fault) in [
            ((1, &[255, 0, 255, 0][..]), "has a subnet mask with gaps"),
            ((121, &[24, 10, 0][..]), "has classless routes that are cut short"),
            ((121, &[33, 10, 0, 0, 0, 1, 1, 1, 1, 1][..]), "has classless routes that are cut short"),
        ] {
            assert_eq!(with(&[more]).map(|_| ()), Err(fault));
        }
        assert_eq!(terms(&options(&base[..1]), addr).map(|_| ()), Err("has no lease time"));
        assert_eq!(terms(&options(&base[1..]), addr).map(|_| ()), Err("does not name its server"));
        let routed = with(&[(121, &[0, 192, 0, 2, 1, 16, 10, 9, 0, 0, 0, 0])]).map(|terms| terms.routes);
        let shown: Vec<_> =
            routed.unwrap_or_default().iter().map(|route| (route.prefix.to_string(), route.gateway)).collect();
        assert_eq!(shown, [("0.0.0.0/0".to_owned(), Some([192, 0, 2, 1].into())), ("10.9.0.0/16".to_owned(), None)]);
    }

    #[test]
    fn long_options_are_put_together_and_others_fields_are_read() {
        let read = options(&[(119, b"\x03eng\x05appl"), (119, b"e\x03com\x00\x09marketing\xc0\x04")]);
        assert_eq!(names(read.get(119).unwrap_or_default()), ["eng.apple.com", "marketing.apple.com"]);
        let mut bytes = vec![0; HEADER];
        bytes.extend([52, 1, 3, 255]);
        bytes[FILE.start..FILE.start + 7].copy_from_slice(&[6, 4, 9, 9, 9, 9, 255]);
        bytes[SNAME.start..SNAME.start + 5].copy_from_slice(&[15, 2, b'l', b'a', 255]);
        let read = Options::read(&bytes);
        assert_eq!((read.addr(6), read.text(15)), (Some([9, 9, 9, 9].into()), Some("la".to_owned())));
    }

    #[test]
    fn hostile_options_come_to_an_end() {
        // A pointer to itself, one forward, a label past the end, one that would bring a line of its own.
        for data in [&b"\xc0\x00"[..], b"\x01a\xc0\x04\x00\x00", b"\x3fabc", b"\x05a\nb c\x00", b"\x80abc"] {
            assert_eq!(names(data), Vec::<String>::new(), "{data:?}");
        }
        assert_eq!(options(&[(15, b"lab\nnameserver 6.6.6.6")]).text(15).filter(|name| is_name(name)), None);
        let mut cut = vec![0; HEADER];
        cut.extend([51, 4, 0, 0]);
        assert_eq!(Options::read(&cut).number(51), None);
    }
}
