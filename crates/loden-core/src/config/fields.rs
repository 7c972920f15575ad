//! A table of a configuration, read key by key, so that what nobody asked for is found at the end.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::ConfigError;

/// A table that is being read.
#[derive(Debug)]
pub struct Fields {
    path: String,
    left: Map<String, Value>,
    known: BTreeSet<&'static str>,
}

impl Fields {
    /// Begins to read a table; `path` is its own key, empty for the whole file.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when the value is no table.
    pub fn new(path: &str, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(left) => Ok(Self { path: path.to_owned(), left, known: BTreeSet::new() }),
            other => Err(ConfigError::Invalid {
                key: if path.is_empty() { "the file".to_owned() } else { path.to_owned() },
                value: other.to_string(),
                meant: "a table of keys was meant".to_owned(),
            }),
        }
    }

    /// Takes a key's value as it is, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.insert(key);
        self.left.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a text.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is none.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.take(key)
            .map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(self.invalid(key, &other, "a text in quotes was meant")),
            })
            .transpose()
    }

    /// Takes a text that stands for a `T`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the words of `T`'s own error.
    pub fn parsed<T>(&mut self, key: &'static str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr<Err: Display>,
    {
        self.text(key)?
            .map(|text| text.parse().map_err(|error: T::Err| self.invalid(key, &text, &error.to_string())))
            .transpose()
    }

    /// Takes a text that stands for a `T` whose own error says too little.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the given words.
    pub fn parsed_as<T: FromStr>(&mut self, key: &'static str, meant: &str) -> Result<Option<T>, ConfigError> {
        self.text(key)?.map(|text| text.parse().map_err(|_| self.invalid(key, &format!("{text:?}"), meant))).transpose()
    }

    /// Takes yes or no.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is neither.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        self.take(key)
            .map(|value| match value {
                Value::Bool(flag) => Ok(flag),
                other => Err(self.invalid(key, &other, "true or false was meant")),
            })
            .transpose()
    }

    /// Takes a whole number between `least` and `most`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the range.
    pub fn number(&mut self, key: &'static str, least: u32, most: u32) -> Result<Option<u32>, ConfigError> {
        self.take(key)
            .map(|value| {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                number.filter(|n| (least..=most).contains(n)).ok_or_else(|| {
                    self.invalid(key, &value, &format!("a whole number from {least} to {most} was meant"))
                })
            })
            .transpose()
    }

    /// Takes a list of texts, or one text as a list of one.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is neither.
    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let items = match value {
            Value::Array(items) => items,
            one => vec![one],
        };
        items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(self.invalid(key, &other, "a text, or a list of texts, was meant")),
            })
            .collect()
    }

    /// Takes a table of texts.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is none.
    pub fn labels(&mut self, key: &'static str) -> Result<std::collections::BTreeMap<String, String>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(Default::default()) };
        let meant = "a table of texts was meant, such as { zone = \"a\" }";
        let Value::Object(map) = value else { return Err(self.invalid(key, &value, meant)) };
        map.into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok((name, text)),
                other => Err(self.invalid(key, &other, meant)),
            })
            .collect()
    }

    /// Takes a table of its own.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is none.
    pub fn table(&mut self, key: &'static str) -> Result<Option<Self>, ConfigError> {
        self.take(key).map(|value| Self::new(&self.name(key), value)).transpose()
    }

    /// Takes a list of tables.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is none.
    pub fn tables(&mut self, key: &'static str) -> Result<Vec<Self>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(n, item)| Self::new(&format!("{}[{n}]", self.name(key)), item))
                .collect(),
            Some(other) => Err(self.invalid(key, &other, "a list of tables was meant")),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] for a key that nobody asked for, with the nearest one that somebody did.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some(key) = self.left.keys().find(|key| !self.left[*key].is_null()).cloned() else {
            return Ok(());
        };
        let nearest = nearest(&key, self.known.iter().copied()).map(|known| self.name(known));
        Err(ConfigError::UnknownKey { key: self.name(&key), nearest, known: self.known.into_iter().collect() })
    }

    /// An error about a key's value.
    #[must_use]
    pub fn invalid(&self, key: &str, value: &dyn Display, meant: &str) -> ConfigError {
        ConfigError::Invalid { key: self.name(key), value: value.to_string(), meant: meant.to_owned() }
    }

    /// An error about a key that is not there; if one that nobody knows is near to it, about that one.
    #[must_use]
    pub fn missing(&self, key: &str, meant: &str) -> ConfigError {
        match self.left.keys().find(|given| nearest(given, [key].into_iter()).is_some()) {
            Some(given) => {
                let known = self.known.iter().copied().collect();
                ConfigError::UnknownKey { key: self.name(given), nearest: Some(self.name(key)), known }
            }
            None => ConfigError::Missing { key: self.name(key), meant: meant.to_owned() },
        }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// The known word that is fewest edits away, if it is near enough to have been meant.
#[must_use]
pub fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let given = plain(given);
    known
        .map(|word| (distance(&given, &plain(word)), word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 3)
        .map(|(_, word)| word)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
