//! For tests: a kernel that refuses what Linux refuses, can be broken on purpose, and counts what is written to it; and a
//! Kubernetes API server that can be broken as well; certificates, container images, and a user of one's own.

pub mod certificates;
mod fake_kernel;
#[cfg(feature = "images")]
pub mod image;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod user;

pub use fake_kernel::FakeKernel;
