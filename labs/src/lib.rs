//! Nothing: the tests are in `tests/it`, the topologies in `topologies/`.
