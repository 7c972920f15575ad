//! Objects of a configuration: keys match without regard to case, as the reference library's do, and what is wrong is named by
//! its way through the objects.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::{CniError, Code};

/// An object. A null is no value.
#[derive(Debug, Clone)]
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// How it is reached: empty for the whole, `ipam.` for a part.
    way: String,
}

impl<'a> Keys<'a> {
    /// The whole configuration.
    #[must_use]
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, way: String::new() }
    }

    /// All of it, as it is.
    #[must_use]
    pub fn all(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// A value as it is; an exact match goes first.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let loose = || self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.map.get(key).or_else(loose).filter(|value| !value.is_null())
    }

    /// The fault of a key whose value is not what was meant.
    #[must_use]
    pub fn wrong(&self, key: &str, meant: &str) -> CniError {
        let given = self.get(key).map(ToString::to_string).unwrap_or_default();
        let shown: String = given.chars().take(80).collect();
        CniError::new(Code::InvalidConfig, format!("`{}{key}` is {shown}: {meant} was meant", self.way))
    }

    fn read<T>(&self, key: &str, meant: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, CniError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, meant))).transpose()
    }

    /// A text; an empty one is none.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, CniError> {
        Ok(self.read(key, "a text", Value::as_str)?.filter(|text| !text.is_empty()))
    }

    /// Yes or no; without it no.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn is_set(&self, key: &str) -> Result<bool, CniError> {
        Ok(self.flag(key)?.unwrap_or(false))
    }

    /// Yes, no, or not said.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, CniError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A whole number.
    ///
    /// # Errors
    /// Code 7 when it is something else or too large.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, CniError> {
        self.read(key, "a whole number", |value| value.as_u64().and_then(|number| T::try_from(number).ok()))
    }

    /// A text of a form of its own.
    ///
    /// # Errors
    /// Code 7 with the form's own words.
    pub fn parsed<T: FromStr<Err: Display>>(&self, key: &str, meant: &str) -> Result<Option<T>, CniError> {
        let parse = |text: &str| text.parse().map_err(|error| self.wrong(key, meant).with(format!("{error}")));
        self.text(key)?.map(parse).transpose()
    }

    /// A list of texts of a form of its own; without it an empty one.
    ///
    /// # Errors
    /// Code 7 with the form's own words.
    pub fn all_parsed<T: FromStr<Err: Display>>(&self, key: &str, meant: &str) -> Result<Vec<T>, CniError> {
        let wrong = || self.wrong(key, &format!("a list of {meant}"));
        let parse = |value: &Value| {
            let text = value.as_str().ok_or_else(wrong)?;
            text.parse().map_err(|error| wrong().with(format!("{text:?}: {error}")))
        };
        self.values(key)?.iter().map(parse).collect()
    }

    /// An object within.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn object(&self, key: &str) -> Result<Option<Self>, CniError> {
        let inner = self.read(key, "an object", Value::as_object)?;
        Ok(inner.map(|map| Self { map, way: format!("{}{key}.", self.way) }))
    }

    /// A list of objects; without it an empty one.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn objects(&self, key: &str) -> Result<Vec<Self>, CniError> {
        let of = |(place, value): (usize, &'a Value)| {
            let map = value.as_object().ok_or_else(|| self.wrong(key, "a list of objects"))?;
            Ok(Self { map, way: format!("{}{key}[{place}].", self.way) })
        };
        self.values(key)?.iter().enumerate().map(of).collect()
    }

    /// A list of lists of objects; without it an empty one.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn object_lists(&self, key: &str) -> Result<Vec<Vec<Self>>, CniError> {
        let wrong = || self.wrong(key, "a list of lists of objects");
        let of = |(place, value): (usize, &'a Value)| {
            let inner = value.as_array().ok_or_else(wrong)?.iter();
            let one = |value: &'a Value| {
                let map = value.as_object().ok_or_else(wrong)?;
                Ok(Self { map, way: format!("{}{key}[{place}].", self.way) })
            };
            inner.map(one).collect()
        };
        self.values(key)?.iter().enumerate().map(of).collect()
    }

    fn values(&self, key: &str) -> Result<&'a [Value], CniError> {
        Ok(self.read(key, "a list", Value::as_array)?.map_or(&[], Vec::as_slice))
    }
}
