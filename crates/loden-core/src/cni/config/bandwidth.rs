//! How fast a pod's packets may go, as a configuration says it: with the keys of the reference plugin.

use crate::cni::keys::Keys;
use crate::cni::{CniError, Code};
use crate::model::{Bandwidth, Shape};

/// Runtimes that know no burst send the largest number that they have: kubelet 2³¹−1 bits, containerd 2³²−1. Taken at its word it
/// lets the first half gigabyte of every pod go unbounded (reference plugins, issue 609).
const BURST_UNSET: u64 = (1 << 31) - 1;

/// Reads the keys in the configuration itself, or else those of `runtimeConfig.bandwidth`.
pub(super) fn parse(keys: &Keys<'_>) -> Result<Bandwidth, CniError> {
    let all = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    if all.iter().any(|key| keys.get(key).is_some()) {
        return of(keys);
    }
    let asked = keys.object("runtimeConfig")?.map(|runtime| runtime.object("bandwidth")).transpose()?.flatten();
    asked.map_or(Ok(Bandwidth::default()), |asked| of(&asked))
}

fn of(keys: &Keys<'_>) -> Result<Bandwidth, CniError> {
    Ok(Bandwidth {
        ingress: shape(keys, "ingressRate", "ingressBurst")?,
        egress: shape(keys, "egressRate", "egressBurst")?,
    })
}

fn shape(keys: &Keys<'_>, rate_key: &str, burst_key: &str) -> Result<Option<Shape>, CniError> {
    let rate = keys.number::<u64>(rate_key)?.filter(|rate| *rate > 0);
    let burst = keys.number::<u64>(burst_key)?.filter(|burst| (1..BURST_UNSET).contains(burst));
    match (rate, burst) {
        (Some(rate), burst) => Ok(Some(Shape { rate, burst })),
        (None, None) => Ok(None),
        (None, Some(burst)) => Err(CniError::new(
            Code::InvalidConfig,
            format!("`{burst_key}` is {burst} and `{rate_key}` is not set: a burst is one of a rate"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(conf: &Value) -> Result<Bandwidth, String> {
        parse(&Keys::new(conf.as_object().expect("an object"))).map_err(|error| error.to_string())
    }

    #[test]
    fn what_runtimes_send() {
        let both = |ingress, egress| Ok(Bandwidth { ingress, egress });
        let shape = |rate, burst| Some(Shape { rate, burst });
        for (conf, expected) in [
            (json!({}), both(None, None)),
            (json!({ "runtimeConfig": { "bandwidth": null } }), both(None, None)),
            // containerd, with Go's names; a direction without an annotation has zeros.
            (
                json!({ "runtimeConfig": { "bandwidth":
                    { "IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u32, "EgressRate": 0, "EgressBurst": 0 } } }),
                both(shape(10_000_000, None), None),
            ),
            // kubelet's own, of old.
            (
                json!({ "runtimeConfig": { "bandwidth": { "egressRate": 1_000_000, "egressBurst": 2_147_483_647 } } }),
                both(None, shape(1_000_000, None)),
            ),
            (json!({ "runtimeConfig": { "bandwidth": { "egressBurst": u64::MAX } } }), both(None, None)),
            (
                json!({ "ingressRate": 800, "ingressBurst": 1600, "egressRate": 10_u64.pow(11) }),
                both(shape(800, Some(1600)), shape(10_u64.pow(11), None)),
            ),
            // As in the reference plugin what the configuration says itself goes before the runtime's.
            (json!({ "ingressRate": 0, "runtimeConfig": { "bandwidth": { "egressRate": 9 } } }), both(None, None)),
        ] {
            assert_eq!(read(&conf), expected, "{conf}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (conf, words) in [
            (json!({ "ingressBurst": 1600 }), ["`ingressBurst` is 1600", "`ingressRate` is not set"]),
            (json!({ "egressRate": 0, "egressBurst": 7 }), ["`egressBurst` is 7", "`egressRate`"]),
            (json!({ "ingressRate": -1 }), ["`ingressRate` is -1", "whole number"]),
            (json!({ "ingressRate": "10M" }), ["`ingressRate` is \"10M\"", "whole number"]),
            (json!({ "runtimeConfig": { "bandwidth": 5 } }), ["`runtimeConfig.bandwidth` is 5", "an object"]),
            (
                json!({ "runtimeConfig": { "bandwidth": { "egressRate": 1.5 } } }),
                ["`runtimeConfig.bandwidth.egressRate` is 1.5", "whole number"],
            ),
        ] {
            let error = read(&conf).expect_err("wrong");
            assert!(words.iter().all(|word| error.contains(word)), "{conf}: {error}");
        }
    }
}
