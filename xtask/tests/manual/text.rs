//! The pages of the manual, and what of them is prose.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Pages that are written by the code: their words are the code's.
const WRITTEN_BY_CODE: [&str; 2] = ["docs/states.md", "docs/configuration.md"];

/// A file of the repository.
pub(crate) struct Page {
    /// Below the repository's root.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A heading, a paragraph, an item of a list or a cell of a table.
pub(crate) struct Block {
    /// The line that it begins at, from one.
    pub(crate) line: usize,
    pub(crate) heading: bool,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page that people read, in the order of its path.
pub(crate) fn pages() -> Vec<Page> {
    let mut paths: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/helm/format-guard/README.md"]
            .map(str::to_owned)
            .into();
    let docs = fs::read_dir(root().join("docs")).expect("a folder").flatten();
    let names = docs.map(|entry| entry.file_name().to_string_lossy().into_owned());
    paths.extend(names.filter(|name| is_page(name)).map(|name| format!("docs/{name}")));
    paths.sort();
    paths.into_iter().map(|path| Page { text: read(&path), path }).collect()
}

pub(crate) fn is_page(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "md")
}

impl Page {
    pub(crate) fn is_written_by_code(&self) -> bool {
        WRITTEN_BY_CODE.contains(&self.path.as_str())
    }

    /// All that is not code.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut fenced, mut indented, mut after_blank, mut open) = (false, false, true, false);
        for (number, line) in (1..).zip(self.text.lines()) {
            let trimmed = line.trim();
            if trimmed.starts_with("```") {
                (fenced, open) = (!fenced, false);
                continue;
            }
            // Code of a list's item is indented by more than four.
            indented = line.starts_with("    ") && (after_blank || indented);
            after_blank = trimmed.is_empty();
            if fenced || indented || after_blank {
                open = false;
                continue;
            }
            let block = |heading, text: &str| Block { line: number, heading, text: text.trim().to_owned() };
            if let Some(cells) = trimmed.strip_prefix('|') {
                // A bar in a cell is escaped.
                let cells = cells.replace("\\|", "\u{1}");
                let is_text = |cell: &&str| !cell.trim().trim_matches(['-', ':']).is_empty();
                blocks.extend(
                    cells.split('|').filter(is_text).map(|cell| block(false, &cell.replace('\u{1}', "|"))),
                );
                open = false;
            } else if trimmed.starts_with('#') {
                blocks.push(block(true, trimmed.trim_start_matches('#')));
                open = false;
            } else if let Some(item) = item(trimmed) {
                blocks.push(block(false, item));
                open = true;
            } else if open && let Some(last) = blocks.last_mut() {
                last.text.push(' ');
                last.text.push_str(trimmed);
            } else {
                blocks.push(block(false, trimmed));
                open = true;
            }
        }
        blocks
    }
}

/// The text of a list's item.
fn item(line: &str) -> Option<&str> {
    let numbered =
        || line.split_once(". ").filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    line.strip_prefix("* ").or_else(|| line.strip_prefix("- ")).or_else(|| numbered().map(|(_, rest)| rest))
}

/// Without marks of emphasis, code and the targets of links.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (place, piece) in text.split('`').enumerate() {
        if place % 2 == 1 {
            plain.push_str("code");
            continue;
        }
        let mut rest = piece;
        while let Some((before, link)) = rest.split_once("](") {
            plain.push_str(before);
            rest = link.split_once(')').map_or("", |(_, after)| after);
        }
        plain.push_str(rest);
    }
    plain.replace("**", "").replace(['[', ']', '!'], "")
}

/// A number with a comma between groups of three digits.
pub(crate) fn grouped(number: &str) -> String {
    let digits: Vec<char> = number.chars().collect();
    let mut text = String::new();
    for (place, digit) in digits.iter().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(*digit);
    }
    text
}

#[test]
fn code_is_no_prose_and_cells_are() {
    let text = "# A `b`\n\nOne\ntwo.\n\n    code\n    more\n\n* three\n  four\n\n| a | b\\|c |\n|---|---|\n\n```sh\nno\n```\n";
    let page = Page { path: String::new(), text: text.to_owned() };
    let found: Vec<String> = page.blocks().into_iter().map(|block| block.text).collect();
    assert_eq!(found, ["A `b`", "One two.", "three four", "a", "b|c"]);
    assert_eq!(plain("see [the `x` page](y.md#z), **now**"), "see the code page, now");
}
