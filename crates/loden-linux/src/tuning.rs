//! Settings of a pod's namespace and interface in the kernel. All of it runs inside the pod's namespace.

use loden_core::model::{IfName, Mac, Setting, Sysctl, Tuning};

use crate::error::LinuxError;
use crate::netlink::{Protocol, Socket, Writer};
use crate::rt::link;
use crate::sysctl;

/// Settings of a link; what is `None` stays as it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct LinkSettings {
    promiscuous: Option<bool>,
    all_multicast: Option<bool>,
    tx_queue_len: Option<u32>,
    mac: Option<Mac>,
    mtu: Option<u32>,
}

/// The settings with what is there now, to be brought back one day.
///
/// # Errors
/// [`LinuxError`]; also when the interface is not there.
pub(crate) fn with_former(tuning: &Tuning, ifname: IfName) -> Result<Tuning, LinuxError> {
    let seen = read(ifname)?.ok_or_else(|| LinuxError::Netlink {
        what: format!("interface {ifname} in the pod"),
        errno: libc::ENODEV,
        cause: "the plugin before this one has not made it".to_owned(),
    })?;
    fn after<T>(setting: Option<Setting<T>>, former: Option<T>) -> Option<Setting<T>> {
        setting.map(|setting| setting.after(former))
    }
    let sysctl = |sysctl: &Sysctl| {
        let former = now(&sysctl.path)?;
        Ok(Sysctl { path: sysctl.path.clone(), setting: sysctl.setting.clone().after(former) })
    };
    Ok(Tuning {
        sysctls: tuning.sysctls.iter().map(sysctl).collect::<Result<_, LinuxError>>()?,
        promiscuous: after(tuning.promiscuous, seen.promiscuous),
        all_multicast: after(tuning.all_multicast, seen.all_multicast),
        tx_queue_len: after(tuning.tx_queue_len, seen.tx_queue_len),
        mac: after(tuning.mac, seen.mac),
        mtu: after(tuning.mtu, seen.mtu),
    })
}

/// Sets everything.
///
/// # Errors
/// [`LinuxError`] for the first that is refused.
pub(crate) fn apply(tuning: &Tuning, ifname: IfName) -> Result<(), LinuxError> {
    set_sysctls(tuning)?;
    set(ifname, wanted(tuning))
}

/// Sets the sysctls alone.
///
/// # Errors
/// [`LinuxError`] for the first that is refused.
pub(crate) fn set_sysctls(tuning: &Tuning) -> Result<(), LinuxError> {
    tuning.sysctls.iter().try_for_each(|sysctl| sysctl::write_text(&sysctl.path, &sysctl.setting.value))
}

/// Brings back what was there before, where it still is as it was set: what somebody changed since is theirs.
///
/// # Errors
/// All that went wrong.
pub(crate) fn restore(tuning: &Tuning, ifname: IfName) -> Result<(), LinuxError> {
    fn back<T: PartialEq>(setting: Option<Setting<T>>, now: Option<T>) -> Option<T> {
        setting.filter(|setting| now.as_ref() == Some(&setting.value)).and_then(|setting| setting.former)
    }
    let mut errors = Vec::new();
    for Sysctl { path, setting } in tuning.sysctls.iter().rev() {
        let Some(former) = &setting.former else { continue };
        // One of an interface that has gone is `None`.
        let restored = match now(path) {
            Ok(Some(is)) if is_same(&is, &setting.value) => sysctl::write_text(path, former),
            read => read.map(drop),
        };
        errors.extend(restored.err());
    }
    if wanted(tuning) != LinkSettings::default() {
        match read(ifname) {
            Ok(Some(now)) => {
                let former = LinkSettings {
                    promiscuous: back(tuning.promiscuous, now.promiscuous),
                    all_multicast: back(tuning.all_multicast, now.all_multicast),
                    tx_queue_len: back(tuning.tx_queue_len, now.tx_queue_len),
                    mac: back(tuning.mac, now.mac),
                    mtu: back(tuning.mtu, now.mtu),
                };
                errors.extend(set(ifname, former).err());
            }
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    LinuxError::collected(errors)
}

/// What is otherwise: one line each.
///
/// # Errors
/// [`LinuxError`].
pub(crate) fn differing(tuning: &Tuning, ifname: IfName) -> Result<Vec<String>, LinuxError> {
    let mut faults = Vec::new();
    for Sysctl { path, setting } in &tuning.sysctls {
        match now(path)? {
            Some(is) if !is_same(&is, &setting.value) => {
                faults.push(format!("sysctl {path} is {is:?} in the pod, not {:?}", setting.value));
            }
            _ => {}
        }
    }
    let wanted = wanted(tuning);
    if wanted == LinkSettings::default() {
        return Ok(faults);
    }
    let Some(now) = read(ifname)? else {
        faults.push(format!("interface {ifname} is missing in the pod"));
        return Ok(faults);
    };
    fn shown<T: std::fmt::Display>(value: Option<T>) -> Option<String> {
        value.map(|value| value.to_string())
    }
    for (what, wanted, now) in [
        ("promiscuous mode", shown(wanted.promiscuous), shown(now.promiscuous)),
        ("all-multicast mode", shown(wanted.all_multicast), shown(now.all_multicast)),
        ("transmit queue length", shown(wanted.tx_queue_len), shown(now.tx_queue_len)),
        ("Ethernet address", shown(wanted.mac), shown(now.mac)),
        ("MTU", shown(wanted.mtu), shown(now.mtu)),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| now.as_ref() != Some(wanted)) {
            let now = now.unwrap_or_else(|| "unknown".to_owned());
            faults.push(format!("{what} of {ifname} is {now} in the pod, not {wanted}"));
        }
    }
    Ok(faults)
}

/// A sysctl's value; `None` also for one that can only be written, such as `net/ipv4/route/flush`.
fn now(path: &str) -> Result<Option<String>, LinuxError> {
    match sysctl::read_text(path) {
        Err(error) if [libc::EACCES, libc::EPERM].contains(&error.errno()) => Ok(None),
        read => read,
    }
}

/// The kernel puts other blanks between numbers than people do.
fn is_same(now: &str, set: &str) -> bool {
    now.split_whitespace().eq(set.split_whitespace())
}

fn wanted(tuning: &Tuning) -> LinkSettings {
    LinkSettings {
        promiscuous: tuning.promiscuous.map(|setting| setting.value),
        all_multicast: tuning.all_multicast.map(|setting| setting.value),
        tx_queue_len: tuning.tx_queue_len.map(|setting| setting.value),
        mac: tuning.mac.map(|setting| setting.value),
        mtu: tuning.mtu.map(|setting| setting.value),
    }
}

fn read(ifname: IfName) -> Result<Option<LinkSettings>, LinuxError> {
    let seen = link::read(&mut Socket::open(Protocol::Route)?, ifname)?;
    Ok(seen.map(|seen| LinkSettings {
        promiscuous: Some(seen.is_promiscuous),
        all_multicast: Some(seen.is_all_multicast),
        tx_queue_len: seen.tx_queue_len,
        mac: seen.link.mac,
        mtu: Some(seen.link.mtu),
    }))
}

fn set(ifname: IfName, settings: LinkSettings) -> Result<(), LinuxError> {
    let mut w = Writer::default();
    let mut names = Vec::new();
    if let Some(mtu) = settings.mtu {
        link::set_mtu(&mut w, ifname, mtu);
        names.push(format!("MTU {mtu} of {ifname} in the pod"));
    }
    if let Some(mac) = settings.mac {
        link::set_mac(&mut w, ifname, mac);
        names.push(format!("Ethernet address {mac} of {ifname} in the pod"));
    }
    if let Some(on) = settings.promiscuous {
        link::set_promiscuous(&mut w, ifname, on);
        names.push(format!("promiscuous mode of {ifname} in the pod"));
    }
    if let Some(on) = settings.all_multicast {
        link::set_all_multicast(&mut w, ifname, on);
        names.push(format!("all-multicast mode of {ifname} in the pod"));
    }
    if let Some(length) = settings.tx_queue_len {
        link::set_tx_queue_len(&mut w, ifname, length);
        names.push(format!("transmit queue length {length} of {ifname} in the pod"));
    }
    if names.is_empty() {
        return Ok(());
    }
    let results = Socket::open(Protocol::Route)?.batch(&mut w)?;
    let named = names.iter().zip(results).map(|(name, result)| result.map_err(|error| error.renamed(name)));
    LinuxError::collected(named.filter_map(Result::err).collect())
}
