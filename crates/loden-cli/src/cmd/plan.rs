//! `loden plan`: the dry run.

use std::path::Path;

use loden_core::api::PlanReply;

use crate::args::Output;
use crate::error::CliError;
use crate::render;

/// Exit code 2 when there is drift.
pub fn run(run_dir: &Path, output: Output) -> Result<u8, CliError> {
    let plan: PlanReply = render::ask(run_dir, "/v1/plan")?;
    match output {
        Output::Json => render::json(&plan)?,
        Output::Text if plan.steps + plan.refused == 0 => {
            render::text("nothing to do: the kernel is as wanted\n")?;
        }
        Output::Text => render::text(&plan.text)?,
    }
    Ok(if plan.steps > 0 { 2 } else { 0 })
}
