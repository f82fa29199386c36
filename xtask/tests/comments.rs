//! Comments are no wider than code: rustfmt (1.95) wraps them with an unstable option alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// As `max_width` in rustfmt.toml.
const WIDTH: usize = 110;

/// The Rust files below a folder, but for what is built.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Tables, addresses and commands cannot be wrapped.
fn is_too_wide(line: &str) -> bool {
    let comment = line.trim_start();
    let text = comment.trim_start_matches(['/', '!']).trim_start();
    comment.starts_with("//")
        && line.chars().count() > WIDTH
        && !text.starts_with(['|', '`'])
        && !line.contains("://")
}

#[test]
fn comments_are_no_wider_than_code() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        let wide = text.lines().enumerate().filter(|(_, line)| is_too_wide(line));
        found.extend(wide.map(|(number, _)| format!("{}:{}", file.display(), number + 1)));
    }
    assert!(found.is_empty(), "{} comments:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_wide_comment_is_seen() {
    assert!(is_too_wide(&format!("    /// {}", "word ".repeat(30))));
    assert!(!is_too_wide(&format!("//! | {}", "word ".repeat(30))));
    assert!(!is_too_wide(&format!("    let text = \"{}\";", "word ".repeat(30))));
}
