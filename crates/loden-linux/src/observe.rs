//! The real kernel: reads what is loden's. What carries no mark of loden's is neither returned nor touched.

use std::collections::{BTreeMap, BTreeSet};

use loden_core::kernel::link::LinkKind;
use loden_core::kernel::nft::{TABLE, take_open_sets};
use loden_core::kernel::{Kernel, KernelError, Key, Object, Observed, PARKED_GROUP, Scope, Sort, Via};
use loden_core::model::{Family, IfName, Mac};
use loden_core::plan::Step;

use crate::error::LinuxError;
use crate::index::Index;
use crate::netlink::{Protocol, Socket, Writer};
use crate::nft::{Nft, Ownership};
use crate::rt::{address, link, neighbour, nexthop, route};
use crate::sysctl::{self, Watch};

/// The kernel of the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct LinuxKernel {
    pub(crate) socket: Socket,
    pub(crate) nft: Nft,
    pub(crate) index: Index,
    pub(crate) writer: Writer,
    pub(crate) sysctls: Watch,
}

impl LinuxKernel {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn open() -> Result<Self, LinuxError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            nft: Nft::open(TABLE, Ownership::Owned)?,
            index: Index::default(),
            writer: Writer::default(),
            sysctls: Watch::new(),
        })
    }

    /// The nftables side.
    pub fn nft(&mut self) -> &mut Nft {
        &mut self.nft
    }

    /// The link with a number, as last seen.
    #[must_use]
    pub fn link_of(&self, number: u32) -> Option<IfName> {
        self.index.name(number)
    }

    /// The Ethernet addresses of the bridges and VXLAN devices that there are.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn addresses_of_devices(&mut self) -> Result<BTreeMap<IfName, Mac>, LinuxError> {
        let all = self.all_links()?;
        let is_device = |seen: &link::Seen| matches!(seen.link.kind, LinkKind::Bridge(_) | LinkKind::Vxlan(_));
        Ok(all.into_iter().filter(is_device).filter_map(|seen| Some((seen.name, seen.link.mac?))).collect())
    }

    /// Why not every change of a sysctl is noticed at once, if that is so.
    #[must_use]
    pub fn deafness(&self) -> Option<LinuxError> {
        self.sysctls.hindrance()
    }

    fn all_links(&mut self) -> Result<Vec<link::Seen>, LinuxError> {
        self.writer.clear();
        link::list(&mut self.writer);
        self.socket.dump("list links", &mut self.writer, Vec::new, |all: &mut Vec<_>, message| {
            all.extend(link::parse(message.payload));
        })
    }

    /// Renews what is known of links and says which are in scope: those of loden's group, and those asked for by name.
    fn links(&mut self, scope: &Scope) -> Result<Vec<link::Seen>, LinuxError> {
        let all = self.all_links()?;
        self.index.clear_links();
        for seen in &all {
            self.index.put_link(seen.name, seen.index, seen.is_tunnel());
        }
        Ok(all.into_iter().filter(|seen| seen.is_ours() || scope.links.contains(&seen.name)).collect())
    }

    fn observe_links(&self, links: &[link::Seen], out: &mut Observed) {
        for seen in links.iter().filter(|seen| seen.link.group != PARKED_GROUP) {
            let link = seen.clone().resolve(|number| self.index.name(number));
            out.insert(Key::Link(seen.name), Object::Link(Box::new(link)));
        }
    }

    fn observe_addresses(&mut self, links: &[link::Seen], out: &mut Observed) -> Result<(), LinuxError> {
        let numbers: BTreeSet<u32> = links.iter().map(|seen| seen.index).collect();
        self.writer.clear();
        address::list(&mut self.writer);
        let all = self.socket.dump("list addresses", &mut self.writer, Vec::new, |all: &mut Vec<_>, message| {
            all.extend(address::parse(message.payload).filter(|seen| numbers.contains(&seen.index)));
        })?;
        for seen in all {
            if let Some(dev) = self.index.name(seen.index) {
                out.insert(Key::Address(dev, seen.net), Object::Address { ours: seen.ours });
            }
        }
        Ok(())
    }

    /// Nexthop objects are always read whole: their numbers are needed for routes and for making new ones.
    pub(crate) fn observe_nexthops(&mut self, out: &mut Observed) -> Result<(), LinuxError> {
        self.writer.clear();
        nexthop::list(&mut self.writer);
        let listed = self.socket.dump("list nexthops", &mut self.writer, Vec::new, |all: &mut Vec<_>, message| {
            all.extend(nexthop::parse(message.payload));
        });
        self.index.clear_nexthops();
        for seen in listed? {
            self.index.saw_nexthop_number(seen.id);
            if let (true, Some((number, gateway))) = (seen.ours, seen.leads_to)
                && let Some(dev) = self.index.name(number)
            {
                self.index.put_nexthop(dev, gateway, seen.id);
                out.insert(Key::Nexthop(dev, gateway), Object::Nexthop);
            }
        }
        Ok(())
    }

    fn observe_neighbours(&mut self, links: &[link::Seen], out: &mut Observed) -> Result<(), LinuxError> {
        let own: BTreeSet<u32> = links.iter().filter(|seen| seen.is_ours()).map(|seen| seen.index).collect();
        for family in Family::ALL {
            self.writer.clear();
            neighbour::list(&mut self.writer, family);
            let all = self.read_neighbours("list neighbours", &own)?;
            out.extend(all.into_iter().filter_map(|seen| neighbour_object(&self.index, seen)));
        }
        Ok(())
    }

    fn observe_fdb(&mut self, links: &[link::Seen], out: &mut Observed) -> Result<(), LinuxError> {
        for seen in links.iter().filter(|seen| seen.is_ours() && seen.link.kind.name() == "vxlan") {
            self.writer.clear();
            neighbour::list_fdb(&mut self.writer, seen.index);
            let all = match self.read_neighbours("list forwarding entries", &[seen.index].into()) {
                // The device went away between the listings: so did its entries.
                Err(error) if error.errno() == libc::ENODEV => continue,
                listed => listed?,
            };
            let mut entries = BTreeMap::new();
            for (key, object) in all.into_iter().filter_map(|seen| neighbour_object(&self.index, seen)) {
                // The kernel sends a copy to each of several destinations: that is no entry of loden's.
                let several = Object::Fdb(neighbour::UNSPECIFIED);
                entries.entry(key).and_modify(|first| *first = several).or_insert(object);
            }
            out.extend(entries);
        }
        Ok(())
    }

    fn read_neighbours(&mut self, what: &str, links: &BTreeSet<u32>) -> Result<Vec<neighbour::Seen>, LinuxError> {
        self.socket.dump(what, &mut self.writer, Vec::new, |all: &mut Vec<_>, message| {
            let seen = neighbour::parse(message.payload);
            all.extend(seen.filter(|seen| seen.is_permanent && links.contains(&seen.index)));
        })
    }

    /// Loden's routes, and those that a predecessor has led out of a device that has become loden's: like the entries on it, they
    /// have changed hands with it.
    fn observe_routes(&mut self, links: &[link::Seen], out: &mut Observed) -> Result<(), LinuxError> {
        for family in Family::ALL {
            for tunnel in links.iter().filter(|seen| seen.is_ours() && seen.is_tunnel()) {
                for seen in route::read_unmarked(&mut self.socket, family, tunnel.index)? {
                    out.extend(unmarked_route(&self.index, seen));
                }
            }
            let all = route::read(&mut self.socket, family, loden_core::kernel::PROTOCOL)?;
            // With `net.ipv4.nexthop_compat_mode` 0 a route says nothing but the number of its nexthop object.
            let is_unknown = |seen: &route::Seen| match seen.to {
                Some(route::To::Nexthop(id)) => self.index.nexthop_by_number(id).is_none(),
                _ => false,
            };
            if all.iter().any(is_unknown) {
                self.observe_nexthops(&mut Observed::new())?;
            }
            out.extend(all.into_iter().filter_map(|seen| route_object(&self.index, seen)));
        }
        Ok(())
    }

    fn observe_sysctls(&self, scope: &Scope, out: &mut Observed) -> Result<(), LinuxError> {
        let of_host = scope.sysctls.iter().map(|path| (Key::Sysctl(path), (*path).to_owned()));
        let of_devices =
            scope.device_sysctls.iter().map(|(dev, which)| (Key::DeviceSysctl(*dev, *which), which.path(*dev)));
        let all: Vec<(Key, String)> = of_host.chain(of_devices).collect();
        // First, so that nothing is missed between.
        self.sysctls.listen(all.iter().map(|(_, path)| path.as_str()));
        for (key, path) in all {
            if let Some(value) = sysctl::read(&path)? {
                out.insert(key, Object::Sysctl(value));
            }
        }
        Ok(())
    }

    fn look(&mut self, scope: &Scope) -> Result<Observed, LinuxError> {
        let mut out = Observed::new();
        let wants = |sort| scope.sorts.contains(&sort);
        let needs_links = scope.sorts.iter().any(|sort| !matches!(sort, Sort::Sysctl | Sort::Nft | Sort::Tunnel));
        let links = if needs_links { self.links(scope)? } else { Vec::new() };
        if wants(Sort::Sysctl) {
            self.observe_sysctls(scope, &mut out)?;
        }
        if wants(Sort::Nft)
            && let Some(mut table) = self.nft.observe()?
        {
            out.extend(take_open_sets(&mut table));
            out.insert(Key::Nft, Object::Nft(Box::new(table)));
        }
        if wants(Sort::Link) {
            self.observe_links(&links, &mut out);
        }
        if wants(Sort::Address) {
            self.observe_addresses(&links, &mut out)?;
        }
        if wants(Sort::Nexthop) {
            self.observe_nexthops(&mut out)?;
        }
        if wants(Sort::Neighbour) {
            self.observe_neighbours(&links, &mut out)?;
        }
        if wants(Sort::Fdb) {
            self.observe_fdb(&links, &mut out)?;
        }
        if wants(Sort::Route) {
            self.observe_routes(&links, &mut out)?;
        }
        Ok(out)
    }
}

impl Kernel for LinuxKernel {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        self.look(scope).map_err(|error| {
            let object = match &error {
                LinuxError::Netlink { what, .. } | LinuxError::System { what, .. } => what.clone(),
                _ => "the kernel's tables".to_owned(),
            };
            error.about(object)
        })
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        self.carry_out(steps)
    }
}

/// A neighbour or forwarding entry in the model's terms; `None` for one that is none of loden's.
pub(crate) fn neighbour_object(index: &Index, seen: neighbour::Seen) -> Option<(Key, Object)> {
    let object = match seen.entry {
        neighbour::Entry::Neighbour(_, mac) => Object::Neighbour(mac?),
        neighbour::Entry::Fdb(neighbour::UNKNOWN, _) => Object::Flood,
        neighbour::Entry::Fdb(_, dst) => Object::Fdb(dst),
    };
    neighbour_key(index, seen).filter(|_| seen.is_permanent).map(|key| (key, object))
}

/// Which entry of the model's it is.
pub(crate) fn neighbour_key(index: &Index, seen: neighbour::Seen) -> Option<Key> {
    let dev = index.name(seen.index)?;
    Some(match seen.entry {
        neighbour::Entry::Neighbour(addr, _) => Key::Neighbour(dev, addr),
        // The group is the device's own setting; one that leads elsewhere than loden's do is somebody else's.
        neighbour::Entry::Fdb(neighbour::UNKNOWN, dst) if dst.is_multicast() || dst.is_unspecified() => return None,
        neighbour::Entry::Fdb(neighbour::UNKNOWN, dst) => Key::Flood(dev, dst),
        neighbour::Entry::Fdb(mac, _) => Key::Fdb(dev, mac),
    })
}

/// A route that a predecessor has led to a gateway, without a mark.
pub(crate) fn unmarked_route(index: &Index, seen: route::Seen) -> Option<(Key, Object)> {
    let Some(route::To::Gateway(number, gateway)) = seen.to else { return None };
    let is_its = seen.protocol == route::BOOT && seen.nexthop.is_none();
    let via = Via::Gateway(index.name(number)?, gateway);
    is_its.then_some((Key::Route(seen.prefix, seen.priority), Object::Route(via)))
}

/// A route in the model's terms; one of a form that loden does not make is shown as a blackhole, so that it is put right.
pub(crate) fn route_object(index: &Index, seen: route::Seen) -> Option<(Key, Object)> {
    if seen.table != loden_core::kernel::TABLE_MAIN || seen.protocol != loden_core::kernel::PROTOCOL {
        return None;
    }
    let via = match seen.to {
        Some(route::To::Gateway(number, gateway)) if seen.nexthop.is_none() => {
            Via::Gateway(index.name(number)?, gateway)
        }
        Some(route::To::Gateway(number, gateway)) => Via::Nexthop(index.name(number)?, gateway),
        Some(route::To::Link(number)) => Via::Link(index.name(number)?),
        Some(route::To::Nexthop(id)) => index.nexthop_by_number(id).map(|(dev, gateway)| Via::Nexthop(dev, gateway))?,
        Some(route::To::Blackhole) | None => Via::Blackhole,
    };
    Some((Key::Route(seen.prefix, seen.priority), Object::Route(via)))
}
