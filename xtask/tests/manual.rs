//! The manual leads nowhere that is not there: as files, and as the book that mdBook makes of them.

use std::{collections::BTreeSet, fs, path::Path};

/// Where a text links to, below the manual's folder: pages, without their sections.
fn links(text: &str) -> Vec<&str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    links.filter(|link| !link.is_empty() && !link.contains("://")).collect()
}

fn is_page(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "md")
}

#[test]
fn every_page_is_a_chapter_and_every_link_leads_to_one() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let summary = fs::read_to_string(manual.join("SUMMARY.md")).expect("a summary");
    let chapters: BTreeSet<&str> = links(&summary).into_iter().collect();
    for chapter in &chapters {
        let text = fs::read_to_string(manual.join(chapter)).expect(chapter);
        let folder = Path::new(chapter).parent().expect("a page has one");
        for link in links(&text).into_iter().filter(|link| is_page(link)) {
            let page = folder.join(link);
            assert!(
                chapters.contains(&*page.to_string_lossy()),
                "{chapter} leads to {link}, which is no chapter"
            );
        }
    }
    for entry in fs::read_dir(&manual).expect("a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let page = is_page(&name) && name != "SUMMARY.md";
        assert!(!page || chapters.contains(&*name), "{name} is no chapter");
    }
}
