//! The reference pages say what the code does: every word of a refusal, every kind of event, every metric,
//! request, exit status and limit, and none that is not there.

use std::{collections::BTreeSet, fs};

use format_guard_common::{Operation, Reason, State};

use crate::text::{Page, grouped, read, root};

/// The rows of the tables below a heading, until the next one of its rank.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let rank = format!("{} ", heading.split(' ').next().unwrap_or_default());
    let section = text
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("{page} has no section {heading}"))
        .1
        .split(&format!("\n{rank}"))
        .next()
        .unwrap_or_default()
        .to_owned();
    let tables: Vec<&str> = section.lines().collect();
    // After each table's head and its rule.
    let is_row = |place: usize| {
        let line = tables[place];
        let above = |back: usize| place.checked_sub(back).map_or("", |place| tables[place]);
        line.starts_with('|')
            && !line.starts_with("|---")
            && !tables.get(place + 1).is_some_and(|next| next.starts_with("|---"))
            && above(1).starts_with('|')
    };
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    (0..tables.len()).filter(|place| is_row(*place)).map(|place| cells(tables[place])).collect()
}

/// The words in backquotes of a cell.
fn quoted(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The words in the first cells below a heading.
fn first(page: &str, heading: &str) -> BTreeSet<String> {
    rows(page, heading).iter().flat_map(|row| quoted(&row[0]).collect::<Vec<_>>()).collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// A file of Rust, without its unit tests.
struct Source {
    /// Below the repository's root.
    path: String,
    text: String,
}

/// Every file of Rust below a folder, without those of tests.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        if entry.path().is_dir() && name != "tests" {
            found.extend(sources(&path));
        } else if entry.path().extension().is_some_and(|end| end == "rs") && name != "tests.rs" {
            let text = read(&path).split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            found.push(Source { path, text });
        }
    }
    found
}

/// The one file of the agent and its command line that says this.
fn source_with(words: &str) -> String {
    let found: Vec<Source> =
        sources("format-guard/src").into_iter().filter(|source| source.text.contains(words)).collect();
    let [one] =
        <[Source; 1]>::try_from(found).unwrap_or_else(|found| panic!("{} files say {words}", found.len()));
    one.text
}

#[test]
fn every_reason_operation_and_state_is_explained() {
    let reasons = set(Reason::ALL.map(Reason::name));
    assert_eq!(first("docs/reasons.md", "## Reasons of a refusal"), reasons);
    let operations = (1..).map_while(Operation::from_raw).map(Operation::name);
    assert_eq!(first("docs/reasons.md", "## Operations"), set(operations));
    assert_eq!(first("docs/how-it-works.md", "## The states of a volume"), set(State::ALL.map(State::name)));
}

/// Prometheus' rules and their tests name reasons that there are.
#[test]
fn every_reason_of_an_alert_is_one() {
    let reasons = set(Reason::ALL.map(Reason::name));
    for path in ["deploy/helm/format-guard/rules.yaml", "deploy/prometheus/rules.test.yaml"] {
        let text = read(path);
        let named: Vec<&str> = text
            .split("reason")
            .skip(1)
            .filter(|rest| rest.starts_with(['=', '!', ':']))
            .filter_map(|rest| {
                rest.trim_start_matches(['=', '!', '~', ':', ' ', '"']).split(['"', ',', '}']).next()
            })
            .flat_map(|words| words.split('|'))
            .collect();
        assert!(named.len() > 3, "{path}: {named:?}");
        for name in named {
            assert!(reasons.contains(name), "{path}: there is no reason {name}");
        }
    }
}

/// The arguments of a call, from behind its opening bracket on.
fn arguments(text: &str) -> Vec<String> {
    let (mut arguments, mut one) = (Vec::new(), String::new());
    let (mut depth, mut in_text) = (0, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_text => one.extend([Some(c), chars.next()].into_iter().flatten()),
            '"' => {
                in_text = !in_text;
                one.push(c);
            }
            _ if in_text => one.push(c),
            ')' | ']' | '}' if depth == 0 => break,
            ',' if depth == 0 => arguments.push(std::mem::take(&mut one)),
            _ => {
                depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
                one.push(c);
            }
        }
    }
    arguments.push(one);
    arguments.into_iter().map(|argument| argument.trim().to_owned()).collect()
}

#[test]
fn every_kind_of_event_is_explained() {
    // What adds a line to the history, and which argument is its kind.
    const CALLS: [(&str, usize); 4] =
        [(".report(", 0), (".tell(", 1), (".append_history(", 1), ("HistoryEvent::new(", 2)];
    // Chosen by a condition.
    const CHOSEN: [&str; 4] = ["store-away", "store-answers", "denied", "would-deny"];
    let mut kinds: BTreeSet<String> = BTreeSet::new();
    for Source { text, .. } in &sources("format-guard/src") {
        for (call, place) in CALLS {
            for (at, _) in text.match_indices(call) {
                let all = arguments(&text[at + call.len()..]);
                let kind = all.get(place).and_then(|kind| kind.strip_prefix('"')?.strip_suffix('"'));
                kinds.extend(kind.map(str::to_owned));
            }
        }
        kinds.extend(
            CHOSEN.iter().filter(|kind| text.contains(&format!("\"{kind}\""))).map(|kind| (*kind).to_owned()),
        );
    }
    assert!(kinds.len() > 30, "{kinds:?}");
    assert_eq!(first("docs/reasons.md", "## Kinds of events"), kinds);
}

#[test]
fn every_metric_is_explained() {
    let text = source_with("Registry::with_prefix(");
    let pieces: Vec<&str> = text.split('"').collect();
    // A name, a comma, and a sentence.
    let named = pieces.windows(3).step_by(1).filter(|three| three[1].trim() == ",").filter(|three| {
        let is_name = three[0].bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_name && !three[0].is_empty() && three[2].contains(' ')
    });
    let named = set(named.map(|three| three[0]));
    assert!(named.len() > 25, "{named:?}");
    let page = Page { path: String::new(), text: read("docs/metrics.md") };
    let explained = page.blocks().into_iter().filter_map(|block| {
        let name = block.text.strip_prefix("`format_guard_")?.split(['`', '{']).next()?.to_owned();
        let bare = ["_total", "_info", "_seconds"]
            .iter()
            .fold(&*name, |name, end| name.strip_suffix(end).unwrap_or(name));
        Some(bare.to_owned())
    });
    assert_eq!(explained.collect::<BTreeSet<_>>(), named);
}

#[test]
fn every_request_of_the_control_api_is_explained() {
    let text = source_with(".route(\"/v1/");
    let routes = text.split(".route(").skip(1).map(|rest| {
        let all = arguments(rest);
        let method = all[1].split('(').next().unwrap_or_default().to_uppercase();
        format!("{method} {}", all[0].trim_matches('"'))
    });
    let explained = first("docs/api.md", "## Requests");
    let explained: BTreeSet<String> = explained
        .iter()
        .filter(|row| row.contains(' '))
        .map(|row| row.split('?').next().unwrap_or(row).to_owned())
        .collect();
    assert_eq!(explained, routes.collect());
}

#[test]
fn every_exit_status_is_explained() {
    let text = source_with("pub(super) const NO_AGENT: u8");
    let numbers = text.split("pub(super) const ").skip(1).filter_map(|rest| {
        let (_, number) = rest.split_once(": u8 = ")?;
        number.split(';').next().map(str::to_owned)
    });
    let statuses: BTreeSet<String> = numbers.chain(["0".to_owned()]).collect();
    assert!(statuses.len() > 7, "{statuses:?}");
    let explained = rows("docs/commands.md", "## Exit status").into_iter().map(|row| row[0].clone());
    assert_eq!(explained.collect::<BTreeSet<_>>(), statuses);
}

#[test]
fn every_limit_is_the_codes() {
    let mut held = 0;
    for heading in ["## Limits that a key changes", "## Fixed limits"] {
        for row in rows("docs/limits.md", heading) {
            let source = row.last().expect("a source");
            let [path, declared] =
                quoted(source).collect::<Vec<_>>().try_into().expect("a file and what it says");
            let says = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").contains(&declared);
            if !fs::read_to_string(root().join(&path)).is_ok_and(|text| says(&text)) {
                let folder = path.split("/src/").next().unwrap_or_default();
                let all = sources(&format!("{folder}/src"));
                let elsewhere: Vec<&str> = all
                    .iter()
                    .filter(|source| says(&source.text))
                    .map(|source| source.path.as_str())
                    .collect();
                panic!("{}: {path} does not say {declared}; these do: {elsewhere:?}", row[0]);
            }
            // Of a plain number the page says the same; others are in another unit there.
            let number = declared.rsplit("= ").next().unwrap_or_default().replace('_', "");
            let in_unit = declared.contains("Seconds") || number.len() > 7;
            if number.bytes().all(|byte| byte.is_ascii_digit()) && !in_unit {
                let said = row[1..row.len() - 1].iter().any(|cell| {
                    cell.split([' ', ';']).any(|word| word.trim_matches(',') == grouped(&number))
                });
                assert!(said, "{}: the page does not say {}", row[0], grouped(&number));
            }
            held += 1;
        }
    }
    assert!(held > 35, "{held} limits");
}
