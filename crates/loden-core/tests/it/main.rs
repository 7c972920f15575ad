//! Tests of the pure core over its public face: golden plans, properties, tables.

mod config;
mod golden;
mod kernel;
mod order;
mod picture;
mod pools;
mod sim;
mod switch;
mod underlay;
