//! Pools stand in flannel's configuration, all in one text.

use loden_core::dialect::flannel::{Layout, NetConf};
use loden_core::model::{Family, Key, Pool};

use super::{Bound, Obstacle, Plan};

/// Writes a pool into the configuration, where flannel has words for it.
pub(super) fn put(layout: &Layout, pool: &Pool, nat_outgoing: bool) -> Result<Plan, Obstacle> {
    let path = Layout::path(&Key::Pool(pool.name.clone()));
    let mut conf = match (layout.conf(), layout.pair(&path)) {
        (Ok(conf), _) => conf.clone(),
        (Err(_), None) => NetConf { pools: Vec::new(), enable_nftables: false },
        (Err(cause), Some(_)) => return Err(Obstacle::Unsayable(cause.to_owned())),
    };
    conf.pools.retain(|other| other.name != pool.name);
    conf.pools.push(pool.clone());
    conf.pools.sort_by_key(|pool| pool.cidr.family() == Family::V6);
    let text = conf.render().map_err(|error| Obstacle::Unsayable(error.to_string()))?;
    let read = NetConf::parse(text.as_bytes(), nat_outgoing).map_err(|error| Obstacle::Unsayable(error.to_string()))?;
    if !read.pools.iter().zip(&conf.pools).all(|(read, meant)| means_the_same(read, meant)) {
        let names: Vec<_> = read.pools.iter().map(|pool| pool.name.to_string()).collect();
        return Err(Obstacle::Unsayable(format!(
            "in flannel's net-conf.json pool {} would read otherwise: pools are called {}, and natOutgoing is {nat_outgoing} \
             (`ip_masq` in the store's address)",
            pool.name,
            names.join(" and ")
        )));
    }
    let mut plan = Plan::default();
    plan.remember(layout, &path);
    // flannel's own words for it stay.
    if !layout.conf().is_ok_and(|conf| conf.pools.iter().any(|there| means_the_same(there, pool))) {
        plan.write(layout, path, text.into_bytes(), Bound::ForEver);
    }
    Ok(plan)
}

/// Whether two pools are the same but for the words: bounds that are not said are the usual ones.
fn means_the_same(one: &Pool, other: &Pool) -> bool {
    let plain = |pool: &Pool| Pool { first_block: None, last_block: None, ..pool.clone() };
    plain(one) == plain(other) && one.block_bounds() == other.block_bounds()
}

/// Takes a pool out of the configuration, and the last one with it.
pub(super) fn delete(layout: &Layout, key: &Key) -> Result<Plan, Obstacle> {
    let mut plan = Plan::default();
    let Ok(conf) = layout.conf() else { return Ok(plan) };
    let mut conf = conf.clone();
    conf.pools.retain(|pool| Key::Pool(pool.name.clone()) != *key);
    let path = Layout::path(key);
    if conf.pools.is_empty() {
        plan.remove(layout, &path);
        return Ok(plan);
    }
    let text = conf.render().map_err(|error| Obstacle::Unsayable(error.to_string()))?;
    plan.remember(layout, &path);
    plan.puts.insert(path, (text.into_bytes(), Bound::ForEver));
    Ok(plan)
}
