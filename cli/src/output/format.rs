//! Output formats: which there are, and how documents are written for programs.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use serde_json::Value;

use crate::error::CliError;

macro_rules! formats {
    ($( $variant:ident = $name:literal, )*) => {
        /// What `-o` says. Each command names those it knows with [`Format::among`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Format { $( $variant, )* }

        impl Format {
            fn named(name: &str) -> Option<Self> {
                match name { $( $name => Some(Self::$variant), )* _ => None }
            }
        }
    };
}

formats! {
    Table = "table",
    Wide = "wide",
    Short = "short",
    Json = "json",
    Yaml = "yaml",
    Csv = "csv",
    Name = "name",
    Har = "har",
    Junit = "junit",
}

impl Format {
    /// A parser for `-o` that takes just these names.
    pub fn among<const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(names)
            .try_map(|name| Self::named(&name).ok_or("not a format of meshctl"))
    }

    /// Whether people, not programs, are meant to read it.
    pub fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide | Self::Short)
    }
}

/// One JSON document, indented, with a line end.
pub fn json(document: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(document).map_err(unwritable)?;
    Ok(text + "\n")
}

/// One line of a JSON stream.
pub fn json_line(document: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string(document).map_err(unwritable)?;
    Ok(text + "\n")
}

/// One YAML document.
pub fn yaml(document: &impl Serialize) -> Result<String, CliError> {
    serde_saphyr::to_string(document).map_err(unwritable)
}

/// The rows of a document as CSV (quoted as RFC 4180 says): a heading of the field names, then a line per row. Fields that are
/// lists or objects are left out; `null` is an empty field.
pub fn csv(rows: &[impl Serialize], fields: &[&str]) -> Result<String, CliError> {
    let mut text = fields.join(",") + "\n";
    for row in rows {
        let row = serde_json::to_value(row).map_err(unwritable)?;
        let cells: Vec<String> = fields.iter().map(|field| csv_field(&row[*field])).collect();
        text += &cells.join(",");
        text += "\n";
    }
    Ok(text)
}

fn csv_field(value: &Value) -> String {
    let text = match value {
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

fn unwritable(error: impl std::fmt::Display) -> CliError {
    CliError::failed(format!("can't write the result: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_would_break_it() {
        let rows = [serde_json::json!({"a": "x,\"y\"", "b": null, "c": 1.5})];
        assert_eq!(csv(&rows, &["a", "b", "c"]).unwrap(), "a,b,c\n\"x,\"\"y\"\"\",,1.5\n");
    }
}
