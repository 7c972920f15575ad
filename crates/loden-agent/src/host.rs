//! The kernel as the agent has it: Linux, and beside it the tunnels that this process runs.

use loden_core::kernel::{Kernel, KernelError, Observed, Scope, Sort};
use loden_core::plan::Step;
use loden_linux::LinuxKernel;

use crate::tunnels::Tunnels;

/// Both together.
#[derive(Debug)]
pub struct Host {
    linux: LinuxKernel,
    tunnels: Tunnels,
}

impl Host {
    /// A kernel, and tunnels that are yet to be started. `on_failure` is called when one has ended by itself.
    #[must_use]
    pub fn new(linux: LinuxKernel, on_failure: impl Fn() + Send + Sync + 'static) -> Self {
        Self { linux, tunnels: Tunnels::new(on_failure) }
    }

    /// The kernel alone.
    pub fn linux(&mut self) -> &mut LinuxKernel {
        &mut self.linux
    }

    /// The tunnels.
    pub fn tunnels(&mut self) -> &mut Tunnels {
        &mut self.tunnels
    }
}

impl Kernel for Host {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        let mut seen = self.linux.observe(scope)?;
        if scope.sorts.contains(&Sort::Tunnel) {
            self.tunnels.observe(&mut seen);
        }
        Ok(seen)
    }

    fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), KernelError>> {
        let is_ours = |step: &Step| step.key.sort() == Sort::Tunnel;
        let runs = steps.chunk_by(|a, b| is_ours(a) == is_ours(b));
        runs.flat_map(|run| if is_ours(&run[0]) { self.tunnels.apply(run) } else { self.linux.apply(run) }).collect()
    }
}
