//! Settings of a pod's namespace and interface, each with what was there before.

use serde::{Deserialize, Serialize};

use super::Mac;

/// What is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tuning {
    /// Sysctls of the namespace, in the order in which they are written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// Whether the interface takes in all frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promiscuous: Option<Setting<bool>>,
    /// Whether it takes in all multicast frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_multicast: Option<Setting<bool>>,
    /// How many packets may wait to be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<Setting<u32>>,
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Setting<Mac>>,
    /// Its MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Setting<u32>>,
}

/// A sysctl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sysctl {
    /// Its path below `/proc/sys`, which begins with `net/`.
    pub path: String,
    /// Its value.
    #[serde(flatten)]
    pub setting: Setting<String>,
}

/// A value, and the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting<T> {
    /// What is set.
    pub value: T,
    /// What was there before and comes back; `None`: nothing does, as what is set goes with the interface or cannot be read.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub former: Option<T>,
}

impl<T> Setting<T> {
    /// A value that is to be set.
    pub fn new(value: T) -> Self {
        Self { value, former: None }
    }

    /// The same with what was there before.
    pub fn after(self, former: Option<T>) -> Self {
        Self { former, ..self }
    }
}

impl Tuning {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Settings that go on top of these: what is set by both has the later value, and what was there before the first.
    #[must_use]
    pub fn overlaid(mut self, later: Self) -> Self {
        fn over<T>(first: Option<Setting<T>>, later: Option<Setting<T>>) -> Option<Setting<T>> {
            match (first, later) {
                (Some(first), Some(later)) => Some(Setting { value: later.value, former: first.former }),
                (first, later) => later.or(first),
            }
        }
        for sysctl in later.sysctls {
            match self.sysctls.iter_mut().find(|first| first.path == sysctl.path) {
                Some(first) => first.setting.value = sysctl.setting.value,
                None => self.sysctls.push(sysctl),
            }
        }
        Self {
            sysctls: self.sysctls,
            promiscuous: over(self.promiscuous, later.promiscuous),
            all_multicast: over(self.all_multicast, later.all_multicast),
            tx_queue_len: over(self.tx_queue_len, later.tx_queue_len),
            mac: over(self.mac, later.mac),
            mtu: over(self.mtu, later.mtu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_the_first_is_kept() {
        let set = |value, former| Some(Setting { value, former });
        let sysctl = |path: &str, value: &str, former: Option<&str>| Sysctl {
            path: path.to_owned(),
            setting: Setting { value: value.to_owned(), former: former.map(str::to_owned) },
        };
        let first =
            Tuning { mtu: set(1400, Some(1500)), sysctls: vec![sysctl("net/a", "1", Some("0"))], ..Tuning::default() };
        let later = Tuning {
            mtu: set(1300, Some(1400)),
            tx_queue_len: set(5, Some(1000)),
            sysctls: vec![sysctl("net/b", "7", Some("6")), sysctl("net/a", "2", Some("1"))],
            ..Tuning::default()
        };
        let both = first.overlaid(later);
        assert_eq!(both.mtu, set(1300, Some(1500)));
        assert_eq!(both.tx_queue_len, set(5, Some(1000)));
        assert_eq!(both.sysctls, [sysctl("net/a", "2", Some("0")), sysctl("net/b", "7", Some("6"))]);
        let text = serde_json::to_string(&both).expect("JSON");
        assert!(text.contains(r#"{"path":"net/a","value":"2","former":"0"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Tuning>(&text).expect("the same"), both);
    }
}
