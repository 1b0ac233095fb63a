//! Which names may stand in one configuration file. TOML: each table and each value is defined once.
//!
//! A name begins with a dot, so that it lies in another if it has more behind that, from a dot on. Of names in quotes, it does not
//! matter here whether a dot divides them: they mean the same setting.

/// What a name stands for from its line on.
pub(super) enum Claim {
    /// A table with a line of its own.
    Table(String),
    /// A value, or a table in braces, in the table whose name has so many bytes.
    Value(String, usize),
}

impl Claim {
    /// Whether TOML has no place for both.
    pub(super) fn excludes(&self, other: &Claim) -> bool {
        match (self, other) {
            (Claim::Table(one), Claim::Table(other)) => one == other,
            (Claim::Table(table), Claim::Value(value, bytes))
            | (Claim::Value(value, bytes), Claim::Table(table)) => {
                // Tables between a value and the table that it stands in are defined by its dots.
                table == value || lies_in(table, value) || lies_in(value, table) && table.len() > *bytes
            }
            (Claim::Value(one, _), Claim::Value(other, _)) => {
                one == other || lies_in(one, other) || lies_in(other, one)
            }
        }
    }
}

fn lies_in(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
}
