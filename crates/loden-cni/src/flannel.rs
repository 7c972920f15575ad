//! In the place of `flannel`: what flanneld says of the node becomes the configuration of the plugin that makes the interface, which
//! is this one too, unless it is one that it cannot stand for.

use std::fs;
use std::path::{Path, PathBuf};

use loden_core::cni::flannel::{self, Rendered};
use loden_core::cni::{self, CniError, Code, HostFacts, NetConf, Role, Verb};
use loden_core::dialect::flannel::SubnetEnv;
use loden_linux::delegate::{PATIENCE, Subject};
use loden_linux::ledger::Reservation;
use loden_linux::run_dir::remove_file;
use serde_json::Value;

use crate::add::{open_netns, refused};
use crate::{Call, add, del, delegate, failed, status};

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

/// Answers DEL. A pod that the plugin flannel attached before this one took its place has the configuration of the plugin that made its
/// interface in a file: one that this plugin does not stand for is called with it.
pub fn del(call: &Call) -> Result<(), CniError> {
    let key = call.key()?;
    let file = saved(call, &key.container);
    let left = match fs::read(&file) {
        // What cannot be read must not keep a pod from going: its address is found by its file.
        Ok(text) => serde_json::from_slice::<Value>(&text).ok().and_then(|conf| {
            let plugin = conf.get("type")?.as_str()?.to_owned();
            Some(Rendered { plugin, conf })
        }),
        Err(_) => None,
    };
    if let Some(rendered) = left
        && as_role(call, &rendered, Verb::Del).ok().flatten().is_none()
    {
        let plugin = delegate::find(call, &rendered.plugin, rendered.conf)?;
        let netns = call.environment.netns.as_deref().unwrap_or_default();
        let subject = Subject { key: Some(&key), netns };
        loden_linux::delegate::call(&plugin, "DEL", subject, &plugin.conf, PATIENCE)
            .map_err(|error| failed("the plugin that made the interface failed", &error))?;
    }
    del::run(call)?;
    // Last: a DEL that fails is repeated.
    remove_file(&file).map_err(|error| failed("what flannel left of the pod cannot be removed", &error))
}

/// Where the plugin flannel keeps what it called another one with.
fn saved(call: &Call, container: &str) -> PathBuf {
    let given = call.conf_given().ok();
    let dir = given.as_ref().and_then(Value::as_object).and_then(|conf| flannel::data_dir(conf).ok());
    Path::new(&dir.unwrap_or_else(|| flannel::DATA_DIR.to_owned())).join(container)
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
