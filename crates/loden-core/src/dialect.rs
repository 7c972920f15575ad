//! Dialects: how other programs of the field write down what loden's model says. Translations at the edge, and nothing else.

pub mod flannel;
