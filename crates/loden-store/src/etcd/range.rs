//! Reading keys: one, or all that begin alike, page by page at one revision.

use etcd_client::{Client, GetOptions, GetResponse, KeyValue, ResponseHeader, SortOrder, SortTarget};

use super::fault::{Fault, Sort};
use super::members::Members;

/// How many keys are read at once.
const PAGE: i64 = 1000;
/// The largest page, in bytes.
const MOST_BYTES: usize = 64 << 20;
/// How often reading begins anew when the revision that it reads at is compacted meanwhile.
const TRIES: usize = 5;

/// What stands at a place.
pub async fn one(members: &Members, place: &str) -> Result<Option<KeyValue>, Fault> {
    let answer = members.call(|client| async move { Ok(client.kv_client().get(place, None).await?) }).await?;
    Ok(answer.value.kvs().first().cloned())
}

/// All that begins with `root` (whose last byte is a slash) now, and the revision that it was read at.
pub async fn all(members: &Members, root: &str) -> Result<(Vec<KeyValue>, i64), Fault> {
    let mut tries = 0;
    loop {
        tries += 1;
        match all_at(members, root, 0).await {
            Err(Fault { sort: Sort::Compacted, .. }) if tries < TRIES => {}
            result => return result,
        }
    }
}

/// The same as it was at a revision (0: now).
pub async fn all_at(members: &Members, root: &str, mut revision: i64) -> Result<(Vec<KeyValue>, i64), Fault> {
    let end = [root.trim_end_matches('/').as_bytes(), b"0"].concat();
    let mut kvs: Vec<KeyValue> = Vec::new();
    loop {
        let from = kvs.last().map_or_else(|| root.as_bytes().to_vec(), |kv| [kv.key(), b"\0"].concat());
        let mut answer = members.call(|client| page(client, from.clone(), end.clone(), revision)).await?.value;
        if revision == 0 {
            revision = answer.header().map_or(0, ResponseHeader::revision);
        }
        let is_last = !answer.more();
        kvs.append(&mut answer.take_kvs());
        if is_last {
            return Ok((kvs, revision));
        }
    }
}

async fn page(client: Client, from: Vec<u8>, end: Vec<u8>, revision: i64) -> Result<GetResponse, Fault> {
    let options = GetOptions::new()
        .with_range(end)
        .with_limit(PAGE)
        .with_sort(SortTarget::Key, SortOrder::Ascend)
        .with_revision(revision);
    Ok(client.kv_client().max_decoding_message_size(MOST_BYTES).get(from, Some(options)).await?)
}
