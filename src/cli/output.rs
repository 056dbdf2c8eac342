//! Standard output: tables for people, JSON for programs.

use super::failure::output_error::Stdout;
use clap::Args;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, BufWriter, StdoutLock, Write};

/// `--json`, for commands that report.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Json {
    /// Print JSON, with sizes in bytes, instead of text for people.
    #[arg(long)]
    pub(super) json: bool,
}

/// Standard output, buffered; [`Out::end`] writes out what is left.
pub(super) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(super) fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    pub(super) fn write(&mut self, text: &str) -> Result<(), Stdout> {
        self.0.write_all(text.as_bytes()).map_err(Stdout)
    }

    pub(super) fn end(mut self) -> Result<(), Stdout> {
        self.0.flush().map_err(Stdout)
    }
}

/// Prints `text` and a line end.
pub(super) fn line(text: impl std::fmt::Display) -> Result<(), Stdout> {
    let mut out = Out::new();
    out.write(&format!("{text}\n"))?;
    out.end()
}

/// Prints `value` as indented JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// A table without lines, with `right` columns aligned at the right.
pub(super) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    let columns = header.len();
    for (at, column) in table.column_iter_mut().enumerate() {
        // One space between columns is the padding of the left one.
        column.set_padding((0, if at + 1 == columns { 0 } else { 2 }));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Prints a table, without blanks at the ends of lines.
pub(super) fn print_table(table: &Table) -> Result<(), Stdout> {
    let mut out = Out::new();
    for row in table.lines() {
        out.write(row.trim_end())?;
        out.write("\n")?;
    }
    out.end()
}

/// Prints `label: value` lines, the values in one column.
pub(super) fn fields(fields: &[(&str, String)]) -> Result<(), Stdout> {
    let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 2;
    let mut out = Out::new();
    for (label, value) in fields {
        let label = format!("{label}:");
        out.write(&format!("{label:<width$}{value}\n"))?;
    }
    out.end()
}
