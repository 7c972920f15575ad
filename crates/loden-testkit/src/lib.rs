//! For tests: a kernel that refuses what Linux refuses, can be broken on purpose, and counts what is written to it.

mod fake_kernel;

pub use fake_kernel::FakeKernel;
