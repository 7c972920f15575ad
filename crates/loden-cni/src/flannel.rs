//! In the place of `flannel`: what flanneld says of the node becomes the configuration of the plugin that makes the interface, which
//! is this one too, unless it is one that it cannot stand for.

use std::fs;

use loden_core::cni::flannel::{self, Rendered};
use loden_core::cni::{self, CniError, Code, HostFacts, NetConf, Role, Verb};
use loden_core::dialect::flannel::SubnetEnv;
use loden_linux::ledger::Reservation;
use serde_json::Value;

use crate::add::{open_netns, refused};
use crate::{Call, add, delegate, failed, status};

/// Answers ADD.
pub fn add(call: &Call) -> Result<Value, CniError> {
    let rendered = render(call, Code::TryAgain)?;
    match as_role(call, &rendered, Verb::Add)? {
        Some(call) => add::run(&call),
        None => hand_over(call, rendered),
    }
}

/// Answers STATUS.
pub fn status(call: &Call) -> Result<(), CniError> {
    let rendered = render(call, Code::NotAvailable)?;
    as_role(call, &rendered, Verb::Status)?.map_or(Ok(()), |call| status::run(&call))
}

fn render(call: &Call, missing: Code) -> Result<Rendered, CniError> {
    let Value::Object(conf) = call.conf_given()? else {
        return Err(CniError::new(Code::Decode, "the configuration is no JSON object"));
    };
    let path = flannel::subnet_file(&conf)?;
    let hint = "flanneld, or lodend in its place, writes it when the node has its subnet: see its log";
    let not_yet =
        |cause: String| CniError::new(missing, "the node has no subnet yet").with(format!("{path}: {cause}; {hint}"));
    let text = fs::read_to_string(&path).map_err(|error| not_yet(error.to_string()))?;
    let env: SubnetEnv = text.parse().map_err(not_yet)?;
    flannel::render(&conf, &env)
}

/// The same call of the plugin that makes the interface, if this one stands for it.
fn as_role(call: &Call, rendered: &Rendered, verb: Verb) -> Result<Option<Call>, CniError> {
    let role = Role::of_program(&rendered.plugin);
    if role == Role::Loden && rendered.plugin != "loden-cni" || !role.makes_interfaces() {
        return Ok(None);
    }
    let input = rendered.conf.to_string().into_bytes();
    let conf = NetConf::parse(&input, verb, role)?;
    Ok(Some(Call { environment: call.environment.clone(), conf, role, input }))
}

/// Calls a plugin that this one does not stand for. It is written down first, for its DEL.
fn hand_over(call: &Call, rendered: Rendered) -> Result<Value, CniError> {
    open_netns(call, call.environment.netns.as_deref().unwrap_or_default())?;
    let plugin = delegate::find(call, &rendered.plugin, rendered.conf)?;
    let mut draft = cni::draft(call.key()?, call.make()?, &call.environment, &HostFacts::default())?;
    draft.delegates.push(plugin.clone());
    let ledger = call.ledger();
    let mut reservation = ledger.reserve(&draft, call.conf.quarantine).map_err(refused)?;
    let finish = |reservation: &mut Reservation| {
        let (answer, _) = delegate::add(call, &plugin, reservation)?;
        ledger.complete(reservation).map_err(refused)?;
        Ok(answer)
    };
    finish(&mut reservation).map_err(|mut error: CniError| {
        if let Err(second) = ledger.release(&draft.key) {
            error.details = format!("{}; and undoing it: {}", error.details, failed("DEL", &second));
        }
        error
    })
}
