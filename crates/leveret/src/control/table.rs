//! A list as a table, as JSON or as CSV.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::filter::{field, shown};
use crate::commands::one_line;

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// One JSON array, with all fields unless columns are named.
    Json,
    /// Comma-separated values with a line of names, quoted as RFC 4180 has them.
    Csv,
}

/// Characters of a cell in a table.
const CELL_CHARACTERS_MAX: usize = 255;

/// Prints elements by these columns.
pub(super) fn write(out: &mut impl Write, format: Format, columns: &[&str], elements: &[Value]) -> io::Result<()> {
    match format {
        Format::Table => write_table(out, columns, elements),
        Format::Csv => write_csv(out, columns, elements),
        Format::Json => {
            let chosen: Vec<_> = elements.iter().map(|element| Chosen { columns, element }).collect();
            write_json(out, &chosen)
        }
    }
}

/// One line of JSON.
pub(super) fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Columns with two spaces between them, so that a line can be cut into words. What is in a cell may come from anywhere.
fn write_table(out: &mut impl Write, columns: &[&str], elements: &[Value]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns);
    for element in elements {
        table.add_row(columns.iter().map(|column| cell(field(element, column))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

/// A value on one line, cut where it is very long: JSON and CSV have all of it, and JSON every character.
fn cell(value: &Value) -> String {
    let text = one_line(&shown(value));
    match text.char_indices().nth(CELL_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A line for each element, which ends as those of all commands do, and as those of RabbitMQ's `rabbitmqctl --formatter csv`: not as in RFC
/// 4180. What is in a cell may come from anywhere here, too, and go to a terminal.
fn write_csv(out: &mut impl Write, columns: &[&str], elements: &[Value]) -> io::Result<()> {
    let header = columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(",");
    writeln!(out, "{header}")?;
    for element in elements {
        let cells = columns.iter().map(|column| quoted(&shown(field(element, column))));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join(","))?;
    }
    Ok(())
}

fn quoted(cell: &str) -> String {
    let cell = one_line(cell);
    let must_be = cell.contains([',', '"']) || cell.starts_with(' ') || cell.ends_with(' ');
    if must_be { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

/// An element with some of its fields, in this order; with all if none is named.
struct Chosen<'a> {
    columns: &'a [&'a str],
    element: &'a Value,
}

impl Serialize for Chosen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.columns.is_empty() {
            return self.element.serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for column in self.columns {
            map.serialize_entry(column, field(self.element, column))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printed(format: Format, columns: &[&str]) -> String {
        let elements = [
            json!({ "name": "a, \"b\"", "messages": 1, "arguments": { "x": [1] } }),
            json!({ "name": "two\nlines \u{1b}[31m", "messages": 12345, "owner": { "name": "größe" } }),
        ];
        let mut out = Vec::new();
        write(&mut out, format, columns, &elements).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_has_aligned_columns_and_no_escape_sequences() {
        let expected = "name             messages  owner.name\n\
                        a, \"b\"           1\n\
                        two lines  [31m  12345     größe\n";
        assert_eq!(printed(Format::Table, &["name", "messages", "owner.name"]), expected);
    }

    #[test]
    fn a_cell_of_a_table_is_cut_where_it_is_very_long() {
        let element = json!({ "name": "ö".repeat(100_000) });
        let mut out = Vec::new();
        write(&mut out, Format::Table, &["name"], &[element]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("name\n{}…\n", "ö".repeat(255)));
    }

    #[test]
    fn csv_is_quoted_where_it_must_be_and_has_no_escape_sequences() {
        let expected = "name,messages,arguments\n\
                        \"a, \"\"b\"\"\",1,\"{\"\"x\"\":[1]}\"\n\
                        two lines  [31m,12345,\n";
        assert_eq!(printed(Format::Csv, &["name", "messages", "arguments"]), expected);
    }

    #[test]
    fn json_has_the_fields_that_are_named_or_all() {
        let text = printed(Format::Json, &["messages", "owner.name"]);
        assert_eq!(text, "[{\"messages\":1,\"owner.name\":null},{\"messages\":12345,\"owner.name\":\"größe\"}]\n");
        let all: Vec<Value> = serde_json::from_str(&printed(Format::Json, &[])).unwrap();
        assert_eq!(all[0], json!({ "name": "a, \"b\"", "messages": 1, "arguments": { "x": [1] } }));
    }
}
