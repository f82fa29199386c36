//! The page that sums up the tables of `cargo xtask matrix`. `FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test` writes
//! it anew.

use std::{collections::BTreeSet, env, fmt::Write, fs};

use crate::text::{grouped, read, root};

const PAGE: &str = "docs/matrix.md";
const FILES: &str = "https://github.com/format-guard/format-guard/blob/main/docs/matrix";

const BEGINNING: &str = "# The tables of refused and everyday work

`cargo xtask matrix` runs two tables, row by row, on every kind of volume, and checks the volume's bytes after each row:

* **destructive**: every destructive tool, by its name and as a copy under another name. Also every road to a mark: system calls, 32-bit
  callers, namespaces, passed descriptors, layers over the volume, the disk below it. Each must leave the marks as they were.
* **everyday**: mount, check, resize, snapshot, relabel and all else that an administrator does. It must go on.

This page is written from the tables by a test. The tables themselves are long, and are files of the source tree.

";

const LEGEND: &str = "
## How to read them

| word | meaning |
|---|---|
| held | destructive: refused, and not one byte had changed; everyday: it went on |
| partly N | the marks are intact and the record is true, but N bytes elsewhere had changed before the refusal, if there was one |
| open | this tier leaves it open, as [the tiers](tiers.md) say |
| - (not tried) | the tool, or something that it needs, is not there |
| failed | neither: none may remain |

";

const END: &str = "
A row that is partly held writes elsewhere before it comes to a mark, or its tool is not distinguished from one that does everyday work.
In mode `strict` none of them changed a byte (notes at the end of each table). Where it matters, make the volume strict:
[what is not protected](protection.md#what-is-not-protected).

The plan of checks runs the kinds of volumes that matter most on every change, and all of them in the night. A row that was tried in the
last whole run and is not tried now is a failure.
";

/// Each table, as it is called here.
const TABLES: [(&str, &str); 5] = [
    ("6.1", "Linux 6.1"),
    ("6.12", "Linux 6.12"),
    ("6.18", "Linux 6.18"),
    ("7", "Linux 7"),
    ("preload", "under the library"),
];

/// The number before these words.
fn number(line: &str, words: &str) -> String {
    let before = line.split(words).next().filter(|before| before.len() < line.len()).unwrap_or("0");
    grouped(before.rsplit([' ', ',']).find(|word| !word.is_empty()).unwrap_or("0"))
}

fn page() -> String {
    let mut page = BEGINNING.to_owned();
    let mut partly = BTreeSet::new();
    for kind in ["destructive", "everyday"] {
        let _ = write!(
            page,
            "## {}\n\n| on | rows tried | held | partly | open | failed | not tried | run on | table |\n\
             |---|---|---|---|---|---|---|---|---|\n",
            if kind == "destructive" { "Destructive work" } else { "Everyday work" }
        );
        for (key, on) in TABLES {
            let text = read(&format!("docs/matrix/{kind}-{key}.md"));
            let mut lines = text.lines().filter(|line| !line.is_empty());
            let (title, counts, tools) = (
                lines.next().unwrap_or_default(),
                lines.next().unwrap_or_default(),
                lines.next().unwrap_or_default(),
            );
            let version = title.rsplit_once(", kernel ").map_or(on, |(_, version)| version);
            let _ = writeln!(
                page,
                "| {version} | {} | {} | {} | {} | {} | {} | {} | [{kind}-{key}]({FILES}/{kind}-{key}.md) |",
                number(counts, " rows held"),
                number(counts, " of "),
                number(counts, " kept the marks alone"),
                number(counts, " are open"),
                number(counts, " failed"),
                number(counts, " not tried"),
                tools.split(':').next().unwrap_or_default(),
            );
            // In the long table: a cell that begins with the word.
            partly.extend(
                text.lines().filter(|line| line.starts_with("| ") && line.contains("| partly ")).filter_map(
                    |line| Some(format!("`{}`", line.trim_start_matches("| ").split(" | ").next()?)),
                ),
            );
        }
        page.push('\n');
    }
    page.push_str(LEGEND.trim_start());
    let partly: Vec<String> = partly.into_iter().collect();
    let _ =
        write!(page, "## Rows that are partly held\n\nOn some kinds of volumes: {}.\n", partly.join("; "));
    page.push_str(END);
    page
}

#[test]
fn the_page_sums_up_the_tables() {
    let (path, text) = (root().join(PAGE), page());
    if env::var_os("FORMAT_GUARD_WRITE_SCHEMAS").is_some() {
        fs::write(&path, &text).expect("written");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == text, "{PAGE} is not what the tables say");
}
