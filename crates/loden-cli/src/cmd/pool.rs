//! `loden pool apply|ls`: the cluster's pools, checked before they are written.

use std::path::Path;

use loden_core::config::cluster;
use loden_core::model::{Key, Pool, Record};
use loden_store::{Expect, Store};
use serde_json::{Map, Value};

use crate::args::{Output, Pool as Command};
use crate::error::CliError;
use crate::render;

/// Runs the command on a runtime of its own.
pub fn run(command: &Command, output: Output) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::Output(error.to_string()))?.block_on(async {
        match command {
            Command::Apply { store, file } => apply(&store.store, file, output).await,
            Command::Ls { store } => ls(&store.store, output).await,
        }
    })
}

async fn pools(store: &dyn Store) -> Result<Vec<Pool>, CliError> {
    let pool = |record: Record| if let Record::Pool(pool) = record { Some(pool) } else { None };
    Ok(store.list().await?.entries.into_iter().filter_map(|entry| pool(entry.record)).collect())
}

async fn apply(url: &str, file: &Path, output: Output) -> Result<u8, CliError> {
    let path = file.display().to_string();
    let bad = |cause: String| CliError::File { path: path.clone(), cause };
    let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    let tree: Map<String, Value> = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let wanted =
        cluster::parse_pools(Value::Object(tree)).map_err(|source| CliError::Config { path: path.clone(), source })?;

    let store = loden_store::open(url).await?;
    let there = pools(&*store).await?;
    let mut done = Vec::new();
    // What goes, goes first: a new pool may take its place.
    for pool in there.iter().filter(|pool| wanted.iter().all(|other| other.name != pool.name)) {
        store.delete(&Key::Pool(pool.name.clone()), Expect::Any).await?;
        done.push(format!("pool {} removed", pool.name));
    }
    for mut pool in wanted {
        let name = pool.name.clone();
        let former = there.iter().find(|other| other.name == name);
        if let Some(former) = former {
            pool.unknown = former.unknown.clone();
        }
        let verb = match former {
            None => "made",
            Some(former) if *former == pool => "unchanged",
            Some(_) => "changed",
        };
        store.put(Record::Pool(pool), Expect::Any, None).await?;
        done.push(format!("pool {name} {verb}"));
    }
    match output {
        Output::Json => render::json(&done)?,
        Output::Text => render::text(&(done.join("\n") + "\n"))?,
    }
    Ok(0)
}

async fn ls(url: &str, output: Output) -> Result<u8, CliError> {
    let store = loden_store::open(url).await?;
    let all = pools(&*store).await?;
    match output {
        Output::Json => render::json(&all)?,
        Output::Text => render::text(&render::table(
            &["POOL", "CIDR", "BLOCKS", "BACKEND", "NAT"],
            all.iter().map(|pool| {
                vec![
                    pool.name.to_string(),
                    pool.cidr.to_string(),
                    format!("/{}", pool.block_len),
                    pool.backend.kind().to_owned(),
                    if pool.nat_outgoing { "yes" } else { "no" }.to_owned(),
                ]
            }),
        ))?,
    }
    Ok(0)
}
