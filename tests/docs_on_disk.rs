//! The byte tables of `docs/on-disk.md` are those of the code.

#![allow(clippy::unwrap_used)]

use cowshed::qcow2::layout::tables;

type Rows = Vec<(String, usize, usize)>;

/// The tables of the page with a `field | first byte | bytes` head, by section.
fn documented() -> Vec<(String, Rows)> {
    let page = include_str!("../docs/on-disk.md");
    let mut found: Vec<(String, Rows)> = Vec::new();
    let mut section = String::new();
    let mut inside = false;
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        }
        if line.starts_with("| field | first byte | bytes |") {
            found.push((section.clone(), Vec::new()));
            inside = true;
        } else if inside && line.starts_with('|') && !line.contains("---") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let row = (cells[0].to_owned(), cells[1].parse().unwrap(), cells[2].parse().unwrap());
            found.last_mut().unwrap().1.push(row);
        } else if !line.starts_with('|') {
            inside = false;
        }
    }
    found
}

#[test]
fn every_byte_table_of_the_page_is_the_one_of_the_code() {
    let coded: Vec<(String, Rows)> = tables()
        .into_iter()
        .map(|(name, size, rows)| {
            assert_eq!(rows.iter().map(|row| row.2).sum::<usize>(), size, "{name} fills its size");
            (name.to_owned(), rows.iter().map(|row| (row.0.to_owned(), row.1, row.2)).collect())
        })
        .collect();
    assert_eq!(documented(), coded);
}
