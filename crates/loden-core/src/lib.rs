//! The pure half of loden: what should this host's kernel hold, and what is the difference.
//!
//! Nothing here does I/O, reads a clock, draws a random number or blocks: time and seeds are arguments. Start with
//! [`view`] (the picture of the cluster), [`backend`] (picture → kernel objects), [`desired`], [`delta`] and [`plan`].
//! [`kernel`] is the vocabulary that the rest shares with `loden-linux`.

pub mod advice;
pub mod api;
pub mod attach;
pub mod audit;
pub mod backend;
pub mod cni;
pub mod config;
pub mod delta;
pub mod desired;
pub mod dhcp;
pub mod dialect;
pub mod guard;
pub mod ipam;
pub mod kernel;
pub mod masquerade;
pub mod model;
pub mod offload;
pub mod plan;
pub mod pod_tables;
pub mod ports;
pub mod rate;
pub mod segments;
pub mod senders;
pub mod shape;
pub mod underlay;
pub mod unknown;
pub mod view;
