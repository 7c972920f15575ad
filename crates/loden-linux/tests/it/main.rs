//! The driver on the real kernel: each test in a network namespace of its own. Needs root (or root in a user namespace).

mod peers;
mod support;
