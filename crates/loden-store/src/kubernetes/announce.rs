//! The condition `NetworkUnavailable` of a Node: what the scheduler and people see of the network there.

use loden_core::model::NodeName;
use serde_json::{Value, json};

use super::client::Client;
use super::fault::Fault;
use super::object::Kind;
use crate::Readiness;

const TYPE: &str = "NetworkUnavailable";

/// Makes the condition say how the node is; answers whether it had to be written.
///
/// # Errors
/// [`Fault`]; a Node that is not there is one.
pub async fn announce(client: &Client, node: &NodeName, readiness: &Readiness) -> Result<bool, Fault> {
    let (object, date) = client.get_with_date(Kind::Node, node.as_str()).await?;
    let found =
        object.status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == TYPE);
    match wanted(found, readiness, date.as_deref().and_then(rfc3339)) {
        Some(condition) => client.patch_condition(node.as_str(), &condition).await.map(|_| true),
        None => Ok(false),
    }
}

/// The condition as it is to be; `None` when it is so. The time is the server's: a host's clock may be anything.
fn wanted(found: Option<&Value>, readiness: &Readiness, now: Option<String>) -> Option<Value> {
    let (status, reason) = if readiness.ready { ("False", "LodenIsUp") } else { ("True", "LodenIsDown") };
    let is = |key: &str, value: &str| found.is_some_and(|found| found[key] == value);
    if is("status", status) && is("reason", reason) && is("message", &readiness.message) {
        return None;
    }
    let since = found
        .filter(|_| is("status", status))
        .and_then(|found| found["lastTransitionTime"].as_str().map(str::to_owned));
    Some(json!({
        "type": TYPE, "status": status, "reason": reason, "message": readiness.message,
        "lastHeartbeatTime": now, "lastTransitionTime": since.or(now.clone()),
    }))
}

/// HTTP's `Wed, 25 Nov 2026 14:52:44 GMT` (RFC 9110 section 5.6.7) as Kubernetes writes a time.
fn rfc3339(date: &str) -> Option<String> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = date.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|known| *known == month)? + 1;
    Some(format!("{year}-{month:02}-{day}T{time}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(ready: bool) -> Readiness {
        Readiness { ready, message: "m".to_owned() }
    }

    #[test]
    fn a_condition_is_written_only_when_it_says_something_else() {
        let now = || rfc3339("Wed, 25 Nov 2026 14:52:44 GMT");
        let made = wanted(None, &readiness(true), now()).expect("there is none yet");
        assert_eq!(made["status"], "False");
        assert_eq!(made["lastTransitionTime"], "2026-11-25T14:52:44Z");
        assert_eq!(wanted(Some(&made), &readiness(true), now()), None);
        let down = wanted(Some(&made), &readiness(false), now()).expect("it went down");
        assert_eq!((&down["status"], &down["reason"]), (&json!("True"), &json!("LodenIsDown")));
        let flannels = json!({"type": TYPE, "status": "False", "reason": "FlannelIsUp", "message": "x", "lastTransitionTime": "T"});
        let ours = wanted(Some(&flannels), &readiness(true), now()).expect("another's words");
        assert_eq!(ours["lastTransitionTime"], "T", "it was available before");
    }
}
