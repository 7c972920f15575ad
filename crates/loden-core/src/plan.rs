//! The plan: what to do to the kernel, in an order in which nothing is ever missing in between. Its Display is the dry run.

use std::fmt;

use serde::Serialize;

use crate::desired::Why;
use crate::kernel::{Key, Object, Sort};

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Make what is not there. The kernel refuses it when something foreign stands in its place.
    Add,
    /// Change what is there in place.
    Change,
    /// Delete and make anew: only for loden's own links whose fixed settings are other than wanted.
    Recreate,
    /// Delete what nobody wants any more.
    Remove,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is done.
    pub verb: Verb,
    /// To which object.
    pub key: Key,
    /// How it will be; `None` for [`Verb::Remove`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Object>,
    /// How it is; `None` for [`Verb::Add`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Object>,
    /// Who wants it; `None` when nobody does any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
}

/// A wish that is not carried out, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which object.
    pub key: Key,
    /// Why not, and what to do.
    pub cause: String,
}

/// The steps, ordered, and what was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which they are carried out.
    pub steps: Vec<Step>,
    /// What is not done although it is wanted.
    pub refused: Vec<Refusal>,
}

impl Plan {
    /// Whether there is nothing to do. Refusals do not count: they do not go away by doing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Puts the steps into the order of doing: makes and changes first, each after what it needs, then removals in the
    /// opposite order (make before break). The nftables table goes first in every case: it is one transaction, and
    /// packets must find its rules before they find a route.
    pub(crate) fn sort(&mut self) {
        let rank = |step: &Step| match (step.verb, step.key.sort()) {
            (Verb::Remove, _) => 1,
            _ => 0,
        };
        self.steps.sort_by(|a, b| {
            rank(a).cmp(&rank(b)).then_with(|| {
                let forward = order(&a.key).cmp(&order(&b.key)).then_with(|| a.key.cmp(&b.key));
                if a.verb == Verb::Remove && b.verb == Verb::Remove { forward.reverse() } else { forward }
            })
        });
    }
}

/// The place of an object in the order of making. Bridges go before their ports; a link goes before what is on it.
fn order(key: &Key) -> u8 {
    match key {
        Key::Sysctl(_) => 0,
        Key::Nft => 1,
        Key::Link(_) => 2,
        Key::DeviceSysctl(..) => 3,
        Key::Address(..) => 4,
        Key::Nexthop(..) => 5,
        Key::Neighbour(..) => 6,
        Key::Fdb(..) => 7,
        Key::Route(..) => 8,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verb {
            Verb::Add => "+",
            Verb::Change => "~",
            Verb::Recreate => "!",
            Verb::Remove => "-",
        };
        write!(f, "{sign} {}", self.key)?;
        if let Some(object) = self.new.as_ref().or(self.old.as_ref()) {
            let text = object.to_string();
            if !text.is_empty() {
                write!(f, " {text}")?;
            }
        }
        if let (Verb::Change | Verb::Recreate, Some(old)) = (self.verb, &self.old) {
            write!(f, "   (was: {old})")?;
        }
        match &self.why {
            Some(why) => write!(f, "   # {why}"),
            None => write!(f, "   # nobody wants it any more"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
            // A table is too much for a line: what it will be is shown whole.
            if let (Sort::Nft, Some(Object::Nft(table))) = (step.key.sort(), &step.new) {
                for line in table.to_string().lines() {
                    writeln!(f, "    {line}")?;
                }
            }
        }
        for refusal in &self.refused {
            writeln!(f, "x {}   # refused: {}", refusal.key, refusal.cause)?;
        }
        Ok(())
    }
}
