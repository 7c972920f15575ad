//! Which address a pod gets: the one that is asked for, or the first that is free, all of a demand or none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use loden_core::cni::NodeFile;
use loden_core::ipam::{Choice, Demand, Exhausted, Offer, RangeState, Supply};
use loden_core::model::{Attachment, PodAddress};

use super::{Ledger, Look, ReserveError};
use crate::clock::{boot_ms, boot_s};
use crate::error::LinuxError;
use crate::run_dir::{Attachments, read_json};

/// An address, the offer that it is of, and the state without it.
type Found<'a> = (&'a Offer, RangeState, IpAddr);

impl Ledger {
    /// Whether the addresses of a demand could be taken now; else why not. Takes no lock: the answer may be old as soon as it is
    /// given, and states are replaced whole.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub fn has_room(&self, demand: &Demand, quarantine: u32) -> Result<(), ReserveError> {
        let mut full = Vec::new();
        for choice in &self.still_served(&demand.choices)? {
            match self.first_with_room(choice, demand, quarantine, Look::Thorough)? {
                Ok(_) => {}
                Err(why) => full.extend(why),
            }
        }
        if full.is_empty() { Ok(()) } else { Err(ReserveError::Exhausted(full)) }
    }

    pub(super) fn allocate(
        &self,
        demand: &Demand,
        network: &str,
        quarantine: u32,
        look: Look,
    ) -> Result<Vec<PodAddress>, ReserveError> {
        if let Some(addr) = demand.unmet().first() {
            let ranges = demand.choices.iter().flatten().map(|offer| offer.supply.range.to_string());
            let ranges: Vec<String> = ranges.collect();
            let ranges = if ranges.is_empty() { "no range".to_owned() } else { ranges.join(", ") };
            return Err(ReserveError::Outside { addr: *addr, ranges });
        }
        let (mut taken, mut changed) = (Vec::new(), Vec::new());
        let choices = self.still_served(&demand.choices)?;
        for choice in &choices {
            let (offer, state, addr) = match demand.wanted_of(choice) {
                Some(addr) => self.claim(choice, addr)?,
                None => self.first_with_room(choice, demand, quarantine, look)?.map_err(ReserveError::Exhausted)?,
            };
            let subnet = offer.segment.unwrap_or(offer.supply.range.subnet());
            let net = IpNet::new(addr, subnet.len());
            let net = net.map_err(|_| ReserveError::Taken { addr, holder: None })?;
            taken.push(PodAddress { net, gateway: offer.gateway, supply: Some(offer.supply.clone()) });
            changed.push((&offer.supply, state));
        }
        for fixed in &demand.fixed {
            let addr = fixed.net.addr();
            self.must_be_nobodys(addr, Some(network))?;
            if let Some(holder) = self.holder(addr, Some(network)) {
                return Err(ReserveError::Taken { addr, holder: Some(Box::new(holder)) });
            }
            taken.push(fixed.clone());
        }
        // All of them are to be had: only now anything is written.
        for (supply, state) in changed {
            self.put_state(supply, &state)?;
        }
        Ok(taken)
    }

    /// The choices without the node's blocks that the agent has taken out of the plugin's hands since they were read, or whose term
    /// has ended: another node may have them. To be called under the lock under which the agent takes them out.
    fn still_served(&self, choices: &[Vec<Offer>]) -> Result<Vec<Vec<Offer>>, ReserveError> {
        if choices.iter().flatten().all(|offer| offer.supply.network.is_some()) {
            return Ok(choices.to_vec());
        }
        let (node, now) = (read_json::<NodeFile>(&self.run_dir.node_file())?, boot_ms());
        let is_served = |offer: &&Offer| {
            let block = offer.supply.range.subnet();
            offer.supply.network.is_some() || node.as_ref().is_some_and(|node| node.serves(block, now))
        };
        let served = |choice: &Vec<Offer>| {
            let served: Vec<Offer> = choice.iter().filter(is_served).cloned().collect();
            if served.is_empty() && !choice.is_empty() { Err(ReserveError::Withdrawn) } else { Ok(served) }
        };
        choices.iter().map(served).collect()
    }

    /// The address that is asked for, out of the offer that holds it.
    fn claim<'a>(&self, choice: &'a [Offer], addr: IpAddr) -> Result<Found<'a>, ReserveError> {
        for offer in choice.iter().filter(|offer| offer.supply.range.index_of(addr).is_some()) {
            self.must_be_nobodys(addr, offer.supply.network.as_deref())?;
            let mut state = self.state(&offer.supply)?;
            let is_free = state.claim(addr)
                || (reclaim(&mut state, &offer.supply, &self.run_dir.attachments()) && state.claim(addr));
            if is_free && offer.gateway != Some(addr) {
                return Ok((offer, state, addr));
            }
        }
        let network = choice.first().and_then(|offer| offer.supply.network.as_deref());
        Err(ReserveError::Taken { addr, holder: self.holder(addr, network).map(Box::new) })
    }

    /// Not a pod's that another plugin attached.
    fn must_be_nobodys(&self, addr: IpAddr, network: Option<&str>) -> Result<(), ReserveError> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        match elsewhere.holder(addr, network)? {
            Some(holder) => Err(ReserveError::Elsewhere { addr, holder }),
            None => Ok(()),
        }
    }

    /// Who has an address: of a network, or (`None`) of any.
    fn holder(&self, addr: IpAddr, network: Option<&str>) -> Option<Attachment> {
        let mut all = self.run_dir.attachments().good.into_iter();
        all.find(|there| network.is_none_or(|network| there.key.network == network) && there.ips().any(|ip| ip == addr))
    }

    /// An address of the first offer that has one; else why each has none. Of one that seems full only after a look at who has its
    /// addresses.
    fn first_with_room<'a>(
        &self,
        choice: &'a [Offer],
        demand: &Demand,
        quarantine: u32,
        look: Look,
    ) -> Result<Result<Found<'a>, Vec<Exhausted>>, LinuxError> {
        let is_kept = |offer: &Offer, elsewhere: &BTreeSet<IpAddr>, addr| {
            demand.is_kept(offer, addr) || elsewhere.contains(&addr)
        };
        let mut full = Vec::new();
        for offer in choice {
            let mut state = self.state(&offer.supply)?;
            let elsewhere = self.elsewhere.as_ref().map(|dir| dir.addresses(offer.supply.network.as_deref()));
            let elsewhere = elsewhere.transpose()?.unwrap_or_default();
            let avoid = |addr| is_kept(offer, &elsewhere, addr);
            match state.allocate(Choice { now: boot_s(), quarantine, avoid: &avoid }) {
                Ok(addr) => return Ok(Ok((offer, state, addr))),
                Err(error) => full.push((offer, state, elsewhere, error)),
            }
        }
        if look == Look::Quick {
            return Ok(Err(full.into_iter().map(|(.., error)| error).collect()));
        }
        // All seem full: one look at who has their addresses does for all.
        let found = self.run_dir.attachments();
        let mut causes = Vec::new();
        for (offer, mut state, elsewhere, error) in full {
            let is_reclaimed = reclaim(&mut state, &offer.supply, &found);
            let avoid = |addr| is_kept(offer, &elsewhere, addr);
            let how = Choice { now: boot_s(), quarantine, avoid: &avoid };
            match if is_reclaimed { state.allocate(how) } else { Err(error) } {
                Ok(addr) => return Ok(Ok((offer, state, addr))),
                Err(error) => causes.push(error),
            }
        }
        Ok(Err(causes))
    }
}

/// Says whether something was found. While an attachment cannot be read, nobody knows which addresses are not in use.
pub(super) fn reclaim(state: &mut RangeState, supply: &Supply, found: &Attachments) -> bool {
    found.unreadable.is_empty() && state.reclaim(in_use(supply, found))
}

/// The addresses that may be of a supply: a configuration may have changed the range's ends since they were given.
pub(super) fn in_use<'a>(supply: &'a Supply, found: &'a Attachments) -> impl Iterator<Item = IpAddr> + 'a {
    let is_of_it = |address: &&PodAddress| address.supply.as_ref().is_some_and(|of| of.network == supply.network);
    found.good.iter().flat_map(|there| &there.addresses).filter(is_of_it).map(|address| address.net.addr())
}
