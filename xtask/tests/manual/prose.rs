//! The manual keeps to its style sheet (`docs/STYLE.md`): a list of words, and the length of sentences.

use crate::text::{Page, pages, plain};

/// Words of a sentence at most.
const LONGEST: usize = 30;

/// What is not written, and what is written in its place.
const WORDS: &[(&str, &str)] = &[
    // Clefts.
    ("is what", "the noun itself"),
    ("are what", "the noun itself"),
    ("was what", "the noun itself"),
    ("were what", "the noun itself"),
    // The product reports and records, commands print, pages say.
    ("tell", "report, record, say, distinguish"),
    ("tells", "reports, records, says, distinguishes"),
    ("telling", "reporting"),
    ("told", "reported, recorded, said"),
    // German in English words.
    ("shall", "must, will, should"),
    ("whoever", "who, everybody who"),
    ("the like", "name them"),
    ("their like", "name them"),
    ("wondered", "say what happens"),
    ("so many", "a number, at most N"),
    ("all the same", "leave it out"),
    // Filler.
    ("simply", "leave it out"),
    ("obviously", "leave it out"),
    ("of course", "leave it out"),
    ("easily", "leave it out"),
    ("utilise", "use"),
    ("leverage", "use"),
    ("via", "by, through"),
    // American spelling.
    ("behavior", "behaviour"),
    ("color", "colour"),
    ("center", "centre"),
    ("organize", "organise"),
    ("recognize", "recognise"),
    ("initialize", "initialise"),
    ("optimize", "optimise"),
    ("serialize", "serialise"),
    ("analyze", "analyse"),
    ("labeled", "labelled"),
    ("canceled", "cancelled"),
    ("gray", "grey"),
];

/// Where the rules do not hold: a page, what a finding there contains, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("docs/STYLE.md", "Nothing \"tells\"", "it names the word that is not written"),
    ("CHANGELOG.md", "", "its entries are as they were written"),
];

/// Sentences of a plain text.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (place, _) in text.match_indices(' ') {
        if text[start..place].trim_end_matches(['"', '\'', ')']).ends_with(['.', '?']) {
            sentences.push(&text[start..place]);
            start = place + 1;
        }
    }
    sentences.push(&text[start..]);
    sentences
}

/// Whether a text has these words one after the other, as words of their own.
fn has(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    let joins = |c: char| c.is_alphanumeric() || "_-".contains(c);
    text.match_indices(words)
        .any(|(place, _)| !text[..place].ends_with(joins) && !text[place + words.len()..].starts_with(joins))
}

/// What a page has against the style sheet, one line each.
fn findings(page: &Page) -> Vec<String> {
    let mut findings = Vec::new();
    for block in page.blocks() {
        let text = plain(&block.text);
        let at = |what: String| format!("{}:{}: {what}", page.path, block.line);
        findings.extend(
            WORDS
                .iter()
                .filter(|(words, _)| has(&text, words))
                .map(|(words, instead)| at(format!("'{words}' (write: {instead}): {text}"))),
        );
        let long = |sentence: &&str| {
            !block.heading
                && sentence.split(' ').filter(|word| word.contains(char::is_alphanumeric)).count() > LONGEST
        };
        findings.extend(
            sentences(&text)
                .into_iter()
                .filter(long)
                .map(|sentence| at(format!("more than {LONGEST} words: {sentence}"))),
        );
    }
    findings
}

#[test]
fn every_page_keeps_to_the_style_sheet() {
    let all: Vec<String> =
        pages().iter().filter(|page| !page.is_written_by_code()).flat_map(findings).collect();
    let is_excepted = |finding: &String, (path, part, _): &(&str, &str, &str)| {
        finding.starts_with(&format!("{path}:")) && finding.contains(part)
    };
    for exception in EXCEPTIONS {
        assert!(all.iter().any(|finding| is_excepted(finding, exception)), "{exception:?} is not needed");
    }
    let found: Vec<&str> = all
        .iter()
        .filter(|finding| !EXCEPTIONS.iter().any(|exception| is_excepted(finding, exception)))
        .map(String::as_str)
        .collect();
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

#[test]
fn what_the_style_sheet_forbids_is_found() {
    let found = |text: &str| findings(&Page { path: "x.md".to_owned(), text: text.to_owned() }).len();
    assert_eq!(found("A page that reads well.\n\n    code tells more\n"), 0);
    assert_eq!(found("The log tells why.\n"), 1);
    assert_eq!(found("A storyteller is not retelling, and `tells` is code.\n"), 0);
    let long = "word ".repeat(LONGEST);
    assert_eq!(found(&format!("{long}.\n")), 0);
    assert_eq!(found(&format!("{long} more.\n")), 1);
    assert_eq!(found(&format!("{long}. {long}.\n\n# {long} {long}\n")), 0);
}
