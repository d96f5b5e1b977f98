//! Selectors by labels and by fields, as lists and watches carry them. They only say what matches.

mod fields;
mod labels;

use std::fmt;

pub use fields::Fields;
pub use labels::Labels;

/// Why a selector cannot be read; the text goes to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}
