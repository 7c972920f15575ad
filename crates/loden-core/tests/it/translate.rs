//! Golden translations: `fixtures/cni/NAME.json` is a call of a plugin by a name, with the configuration that it is given;
//! `NAME.golden` is the attachment that it comes to with the first free addresses, and the result; or the error.

use std::fs;

use loden_core::cni::flannel;
use loden_core::cni::{self, CniError, HostFacts, NetConf, Role, Success, Verb};
use loden_core::dialect::flannel::SubnetEnv;
use loden_core::model::AttachmentKey;
use serde::Deserialize;
use serde_json::Value;

use crate::fuzzed;
use crate::golden::compare;
use crate::picture;

/// A call.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fixture {
    role: String,
    #[serde(default)]
    args: String,
    /// Whether the agent has told of the node.
    #[serde(default)]
    node: bool,
    /// What flanneld has left.
    subnet_env: Option<String>,
    conf: Value,
}

#[test]
fn every_configuration_comes_to_its_attachment() {
    let folder = picture::fixtures().join("cni");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    assert!(paths.len() > 15, "the configurations are not where they are looked for");
    let mut faults = String::new();
    for path in paths {
        let fixture: Fixture = serde_json::from_slice(&fs::read(&path).expect("read")).expect("a call");
        let came = match translate(&fixture) {
            Ok((attachment, result)) => format!("{attachment:#}\n{result:#}\n"),
            Err(error) => format!("{}: {error}\n", error.code.number()),
        };
        faults += &compare(&path.with_extension("golden"), &came);
    }
    assert!(faults.is_empty(), "{faults}\nLODEN_BLESS=1 takes what came out as right");
}

fn translate(fixture: &Fixture) -> Result<(Value, Value), CniError> {
    let environment = fuzzed::environment(&fixture.args)?;
    let (mut conf, mut role) = (fixture.conf.clone(), Role::of_program(&fixture.role));
    if let Some(env) = &fixture.subnet_env {
        let env: SubnetEnv = env.parse().expect("a subnet.env");
        let rendered = flannel::render(conf.as_object().expect("an object"), &env)?;
        (conf, role) = (rendered.conf, Role::of_program(&rendered.plugin));
    }
    let conf = NetConf::parse(conf.to_string().as_bytes(), Verb::Add, role)?;
    let make = conf.make.as_ref().expect("ADD makes");
    let facts = HostFacts { node: fixture.node.then(fuzzed::node), master: Some(fuzzed::master()), allow_list: None };
    let key = AttachmentKey {
        network: conf.name.clone().expect("a name"),
        container: environment.container.clone().expect("a container"),
        ifname: environment.ifname.expect("an interface"),
    };
    let draft = cni::draft(key, make, &environment, &facts)?;
    let attachment = draft.attachment(fuzzed::first_free(&draft).expect("room"));
    let result = if role.gives_addresses() {
        Success::of_addresses(&attachment, make.dns.clone())
    } else {
        Success::of(&attachment, make.dns.clone())
    };
    Ok((serde_json::to_value(&attachment).expect("JSON"), result.to_json(conf.version)))
}
