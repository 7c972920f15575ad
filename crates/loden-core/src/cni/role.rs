//! As which plugin this one is called: by its own name, or in the place of one of the reference plugins.

use crate::model::Part;

/// The plugin whose configuration is read and whose work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Loden's own: everything, by the keys of one object.
    Loden,
    /// `bridge`.
    Bridge,
    /// `ptp`.
    Ptp,
    /// `macvlan`.
    Macvlan,
    /// `host-local`, for another plugin.
    HostLocal,
    /// `static`, for another plugin.
    Static,
    /// `portmap`, behind another plugin.
    Portmap,
    /// `bandwidth`, behind another plugin.
    Bandwidth,
    /// `tuning`, behind another plugin.
    Tuning,
    /// `loopback`.
    Loopback,
    /// `flannel`: its configuration becomes another plugin's.
    Flannel,
}

impl Role {
    /// The role that a program's name gives; every name that is no reference plugin's is loden's own.
    #[must_use]
    pub fn of_program(path: &str) -> Self {
        match path.rsplit('/').next().unwrap_or(path) {
            "bridge" => Self::Bridge,
            "ptp" => Self::Ptp,
            "macvlan" => Self::Macvlan,
            "host-local" => Self::HostLocal,
            "static" => Self::Static,
            "portmap" => Self::Portmap,
            "bandwidth" => Self::Bandwidth,
            "tuning" => Self::Tuning,
            "loopback" => Self::Loopback,
            "flannel" => Self::Flannel,
            _ => Self::Loden,
        }
    }

    /// Whether it makes a pod's interface out of this configuration.
    #[must_use]
    pub fn makes_interfaces(self) -> bool {
        matches!(self, Self::Loden | Self::Bridge | Self::Ptp | Self::Macvlan)
    }

    /// The part of an attachment that it makes behind another plugin.
    #[must_use]
    pub fn part(self) -> Option<Part> {
        match self {
            Self::Portmap => Some(Part::Ports),
            Self::Bandwidth => Some(Part::Bandwidth),
            Self::Tuning => Some(Part::Tuning),
            _ => None,
        }
    }

    /// Whether it gives addresses to another plugin.
    #[must_use]
    pub fn gives_addresses(self) -> bool {
        matches!(self, Self::HostLocal | Self::Static)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_roles() {
        assert_eq!(Role::of_program("/opt/cni/bin/host-local"), Role::HostLocal);
        assert_eq!(Role::of_program("loden-cni"), Role::Loden);
        assert_eq!(Role::of_program("/x/bridge/loden-cni"), Role::Loden);
    }
}
