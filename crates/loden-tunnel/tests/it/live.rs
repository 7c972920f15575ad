//! On the real kernel: two hosts, a tunnel between them.
