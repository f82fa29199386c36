//! The manual leads nowhere that is not there: as files, with their anchors, and as the book that mdBook
//! makes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use crate::text::{Page, is_page, pages, read, root};

/// Where this repository's files are for those who read the book elsewhere.
const HERE: [&str; 2] = [
    "https://github.com/format-guard/format-guard/blob/main/",
    "https://github.com/format-guard/format-guard/tree/main/",
];

/// Where a text leads to, whether to pages, pictures or elsewhere.
fn links(text: &str) -> Vec<&str> {
    // What is quoted as code is no link.
    let pieces = text.split('`').enumerate().filter(|(place, _)| place % 2 == 0).map(|(_, piece)| piece);
    pieces.flat_map(|piece| piece.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors of a page, as GitHub and mdBook make them of its headings.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let headings = page.blocks().into_iter().filter(|block| block.heading);
    headings
        .map(|heading| {
            let slug: String = heading
                .text
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let times = seen.entry(slug.clone()).or_default();
            *times += 1;
            if *times == 1 { slug } else { format!("{slug}-{}", *times - 1) }
        })
        .collect()
}

/// A path without `.` and `..`, below the repository's root.
fn joined(folder: &Path, link: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in folder.join(link).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Links of these pages that lead nowhere.
fn broken(pages: &[Page]) -> Vec<String> {
    let known: BTreeMap<&str, BTreeSet<String>> =
        pages.iter().map(|page| (page.path.as_str(), anchors(page))).collect();
    let mut broken = Vec::new();
    for page in pages {
        let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
        for block in page.blocks() {
            for link in links(&block.text) {
                let here = HERE.iter().find_map(|start| link.strip_prefix(start));
                if here.is_none() && (link.contains("://") || link.starts_with("mailto:")) {
                    continue;
                }
                let (path, anchor) = match here.unwrap_or(link).split_once('#') {
                    Some((path, anchor)) => (path, Some(anchor)),
                    None => (here.unwrap_or(link), None),
                };
                let target = match (path, here) {
                    ("", _) => PathBuf::from(&page.path),
                    (path, Some(_)) => PathBuf::from(path),
                    (path, None) => joined(folder, path),
                };
                let name = target.to_string_lossy();
                let leads = root().join(&target).exists()
                    && anchor.is_none_or(|anchor| {
                        known.get(&*name).is_some_and(|anchors| anchors.contains(anchor))
                    });
                if !leads {
                    broken.push(format!("{}:{}: {link} leads nowhere", page.path, block.line));
                }
            }
        }
    }
    broken
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let broken = broken(&pages());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Files of the repository that a page names as code (`xtask/src/main.rs`) and that are not there.
fn gone(page: &Page) -> Vec<String> {
    const FOLDERS: [&str; 10] = [
        "deploy",
        "docs",
        "format-guard",
        "format-guard-common",
        "format-guard-ebpf",
        "format-guard-preload",
        "fuzz",
        "model",
        "tests",
        "xtask",
    ];
    let mut gone = Vec::new();
    for block in page.blocks() {
        for name in block.text.split('`').skip(1).step_by(2) {
            let path = name.split(['#', ':']).next().unwrap_or_default();
            let is_ours = path.split_once('/').is_some_and(|(folder, _)| FOLDERS.contains(&folder));
            // What has a blank or a pattern is a command or a name.
            if is_ours && !path.contains([' ', '*']) && !root().join(path).exists() {
                gone.push(format!("{}:{}: there is no {path}", page.path, block.line));
            }
        }
    }
    gone
}

#[test]
fn every_file_that_is_named_is_there() {
    let gone: Vec<String> = pages().iter().flat_map(gone).collect();
    assert!(gone.is_empty(), "{}", gone.join("\n"));
    let page = |text: &str| Page { path: "x.md".to_owned(), text: text.to_owned() };
    assert_eq!(self::gone(&page("`xtask/src/main.rs`, `/etc/format-guard/x`, `xtask test`\n")).len(), 0);
    assert_eq!(self::gone(&page("`xtask/src/none.rs`\n")).len(), 1);
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = |text: &str| Page { path: "docs/questions.md".to_owned(), text: text.to_owned() };
    let found = |text: &str| broken(&[page(text)]).len();
    assert_eq!(
        found("# A b\n\n[x](#a-b), [y](tiers.md), [z](../README.md), [q](https://example.org/none)\n"),
        0
    );
    assert_eq!(found("[`code`](none.md)\n"), 1);
    assert_eq!(found("# A b\n\n[x](#a-c)\n"), 1);
    assert_eq!(found(&format!("[x]({}docs/none.md)\n", HERE[0])), 1);
    assert_eq!(found("`[x](none.md)`\n\n    [y](none.md)\n"), 0);
}

#[test]
fn every_page_is_a_chapter_and_every_link_leads_to_one() {
    let summary = read("docs/SUMMARY.md");
    let chapters: BTreeSet<&str> = links(&summary).into_iter().collect();
    for chapter in &chapters {
        let text = read(&format!("docs/{chapter}"));
        let folder = Path::new(chapter).parent().expect("a page has one");
        for link in links(&text) {
            let link = link.split('#').next().unwrap_or_default();
            let is_chapter = |link: &str| chapters.contains(&*folder.join(link).to_string_lossy());
            let elsewhere = link.contains("://") || !is_page(link);
            assert!(elsewhere || is_chapter(link), "{chapter} leads to {link}, which is no chapter");
        }
    }
    for entry in fs::read_dir(root().join("docs")).expect("a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let page = is_page(&name) && name != "SUMMARY.md";
        assert!(!page || chapters.contains(&*name), "{name} is no chapter");
    }
}
