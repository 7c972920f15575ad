//! `loden ipam show`: who has which address.

use std::path::Path;

use loden_core::api::Ipam;

use crate::args::Output;
use crate::error::CliError;
use crate::render;

/// Shows this node's blocks and addresses.
pub fn run(run_dir: &Path, output: Output) -> Result<u8, CliError> {
    let ipam: Ipam = render::ask(run_dir, "/v1/ipam")?;
    if output == Output::Json {
        return render::json(&ipam).map(|()| 0);
    }
    let mut text = render::table(
        &["BLOCK", "POOL", "USED", "CAPACITY"],
        ipam.blocks
            .iter()
            .map(|b| vec![b.cidr.to_string(), b.pool.to_string(), b.used.to_string(), b.capacity.to_string()]),
    );
    text += "\n";
    text += &render::table(
        &["ADDRESS", "POD", "HOST SIDE", "ATTACHMENT"],
        ipam.addresses.iter().map(|a| {
            let pod = a.pod.clone().unwrap_or_else(|| "-".to_owned());
            let host_side = a.host_side.clone().unwrap_or_else(|| "-".to_owned());
            vec![a.address.to_string(), pod, host_side, a.attachment.clone()]
        }),
    );
    render::text(&text).map(|()| 0)
}
