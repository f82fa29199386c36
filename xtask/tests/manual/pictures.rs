//! The manual's diagrams, drawn from the tables that other tests hold: the states from `docs/states.md`,
//! which the code writes, the tiers from `docs/tiers.md`, whose cells are asserted on real kernels.
//! `FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test` draws them anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
};

use crate::text::{read, root};

/// Of light and dark pages.
const STYLE: &str = "\
text{font-family:system-ui,sans-serif;font-size:13px;fill:#1f2328}\
.name{font-weight:600;font-size:14px}\
.small{font-size:12px;fill:#59636e}\
.box{fill:#f6f8fa;stroke:#59636e;stroke-width:1.5}\
.good{fill:#dafbe1;stroke:#1a7f37;stroke-width:1.5}\
.bad{fill:#ffebe9;stroke:#cf222e;stroke-width:1.5}\
.line{stroke:#59636e;stroke-width:1.5;fill:none}\
.life{stroke:#afb8c1;stroke-width:1;stroke-dasharray:4 4}\
.tip{fill:#59636e}\
.done{fill:#1a7f37}.rest{fill:#d1d9e0}\
@media (prefers-color-scheme:dark){\
text{fill:#f0f6fc}.small{fill:#9198a1}\
.box{fill:#151b23;stroke:#9198a1}.good{fill:#12261e;stroke:#3fb950}.bad{fill:#25171c;stroke:#f85149}\
.line{stroke:#9198a1}.life{stroke:#3d444d}.tip{fill:#9198a1}.done{fill:#3fb950}.rest{fill:#3d444d}}";

struct Picture {
    size: (u32, u32),
    body: String,
}

impl Picture {
    const fn new(width: u32, height: u32) -> Self {
        Self { size: (width, height), body: String::new() }
    }

    fn text(&mut self, class: &str, anchor: &str, (x, y): (i32, i32), text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x}\" y=\"{y}\">{text}</text>"
        );
    }

    fn rect(&mut self, class: &str, (x, y): (i32, i32), (width, height): (i32, i32)) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>"
        );
    }

    fn line(&mut self, class: &str, from: (i32, i32), to: (i32, i32)) {
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    fn arrow(&mut self, from: (i32, i32), to: (i32, i32)) {
        let _ = writeln!(
            self.body,
            "<line class=\"line\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" marker-end=\"url(#tip)\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// The whole file, with what it shows for those who do not see it.
    fn svg(&self, title: &str) -> String {
        let (width, height) = self.size;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <defs><marker id=\"tip\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"7\" markerHeight=\"7\" \
             orient=\"auto\"><path class=\"tip\" d=\"M0 0L10 5L0 10z\"/></marker></defs>\n{}</svg>\n",
            self.body
        )
    }
}

fn is_drawn(name: &str, svg: &str) {
    let path = root().join("docs/pictures").join(name);
    if env::var_os("FORMAT_GUARD_WRITE_SCHEMAS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, svg).expect("written");
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == svg, "{name} is not what the tables say");
}

/// An arrow between two states: from, to, what happens, and where it is drawn and named.
struct Step {
    from: &'static str,
    to: &'static str,
    /// What `docs/states.md` calls one of the things that happen then.
    shown_by: &'static str,
    says: &'static str,
    line: [(i32, i32); 2],
    label: (&'static str, (i32, i32)),
}

const fn step(
    [from, to]: [&'static str; 2],
    [shown_by, says]: [&'static str; 2],
    line: [(i32, i32); 2],
    label: (&'static str, (i32, i32)),
) -> Step {
    Step { from, to, shown_by, says, line, label }
}

const BOX: (i32, i32) = (130, 44);
const STATES: [(&str, &str, (i32, i32)); 6] = [
    ("unverified", "bad", (20, 50)),
    ("blank", "good", (350, 50)),
    ("formatting", "box", (680, 50)),
    ("exempt", "good", (20, 230)),
    ("formatted", "bad", (350, 230)),
    ("permitted", "good", (680, 230)),
];
const STEPS: &[Step] = &[
    step(
        ["unverified", "blank"],
        ["reads blank", "reads blank, twice"],
        [(150, 62), (350, 62)],
        ("middle", (250, 54)),
    ),
    step(
        ["blank", "unverified"],
        ["is detached", "detached, or unreadable"],
        [(350, 82), (150, 82)],
        ("middle", (250, 99)),
    ),
    step(
        ["blank", "formatting"],
        ["a known formatter is let through", "a formatter is let through"],
        [(480, 62), (680, 62)],
        ("middle", (580, 54)),
    ),
    step(
        ["formatting", "blank"],
        ["reads as ext4", "a first format failed"],
        [(680, 82), (480, 82)],
        ("middle", (580, 99)),
    ),
    step(
        ["unverified", "formatted"],
        ["reads as ext4", "reads as a format"],
        [(110, 94), (355, 230)],
        ("start", (240, 150)),
    ),
    step(
        ["formatting", "formatted"],
        ["reads as ext4", "the format is there"],
        [(700, 94), (470, 230)],
        ("end", (575, 150)),
    ),
    step(
        ["permitted", "formatting"],
        ["a known formatter is let through", "a formatter is let through"],
        [(745, 230), (745, 94)],
        ("end", (738, 190)),
    ),
    step(
        ["formatted", "permitted"],
        ["an operator permits a re-format", "an operator permits"],
        [(480, 242), (680, 242)],
        ("middle", (580, 234)),
    ),
    step(
        ["permitted", "formatted"],
        ["its permit's time is over", "the permit ends"],
        [(680, 262), (480, 262)],
        ("middle", (580, 279)),
    ),
    step(
        ["exempt", "formatted"],
        ["an operator adopts it", "an operator adopts it"],
        [(150, 252), (350, 252)],
        ("middle", (250, 244)),
    ),
];
/// What an operator may do in any other state.
const BY_OPERATORS: [(&str, &str); 2] =
    [("permitted", "an operator permits a re-format"), ("exempt", "an operator exempts it")];
/// What happens seldom, and is not drawn.
const SELDOM: &[(&str, &str, &str)] = &[
    ("blank", "formatted", "a format or raw content is found on it"),
    ("unverified", "formatting", "an agent that starts finds a format under way"),
    ("permitted", "unverified", "the permit of a volume that never held a format ends"),
    ("formatted", "unverified", "its image file was cut to nothing"),
    ("exempt", "unverified", "the policy that exempted it holds no longer"),
];

/// What `docs/states.md` says may happen: from, to, by what.
fn transitions() -> BTreeMap<(String, String), BTreeSet<String>> {
    let text = read("docs/states.md");
    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let mut from = String::new();
    for line in text.lines() {
        if let Some(state) = line.strip_prefix("## ") {
            state.split(',').next().unwrap_or_default().clone_into(&mut from);
        } else if let [what, to, _] =
            line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>()[..]
            && STATES.iter().any(|(state, _, _)| *state == to)
            && to != from
        {
            found.entry((from.clone(), to.to_owned())).or_default().insert(what.to_owned());
        }
    }
    found
}

#[test]
fn the_states_are_drawn() {
    let transitions = transitions();
    let key = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    for step in STEPS {
        let by = transitions.get(&key(step.from, step.to));
        let known = by.is_some_and(|by| by.contains(step.shown_by));
        assert!(known, "{} -> {}: nothing is called {}", step.from, step.to, step.shown_by);
    }
    for ((from, to), by) in &transitions {
        let drawn = STEPS.iter().any(|step| (step.from, step.to) == (from, to));
        let by_operator = BY_OPERATORS.iter().any(|(state, what)| state == to && by.contains(*what));
        let seldom = SELDOM.iter().any(|(one, other, _)| (one, other) == (&from.as_str(), &to.as_str()));
        assert!(drawn || by_operator || seldom, "{from} -> {to} is not drawn: {by:?}");
    }
    let mut picture = Picture::new(830, 496);
    picture.text("name", "start", (20, 24), "States of a volume");
    for (name, class, place) in STATES {
        picture.rect(class, place, BOX);
        picture.text("name", "middle", (place.0 + BOX.0 / 2, place.1 + 27), name);
    }
    for step in STEPS {
        picture.arrow(step.line[0], step.line[1]);
        picture.text("", step.label.0, step.label.1, step.says);
    }
    for (state, says) in [
        ("exempt", "any state: an operator exempts it"),
        ("permitted", "any other state: an operator permits"),
    ] {
        let (_, _, (x, y)) = STATES.into_iter().find(|(name, _, _)| *name == state).expect("a state");
        let middle = x + BOX.0 / 2;
        picture.arrow((middle, y + 92), (middle, y + BOX.1));
        let (anchor, at) = if x < 400 { ("start", 20) } else { ("end", 810) };
        picture.text("", anchor, (at, y + 108), says);
    }
    picture.text(
        "small",
        "start",
        (20, 372),
        "Green: a format may begin, or nothing is guarded. Red: nobody may format.",
    );
    picture.text("small", "start", (20, 394), "Seldom, and not drawn:");
    for (place, (from, to, by)) in (0..).zip(SELDOM) {
        picture.text("small", "start", (36, 412 + 17 * place), &format!("{from} to {to}: {by}"));
    }
    is_drawn("states.svg", &picture.svg("The six states of a volume and the transitions between them"));
}

#[test]
fn the_tiers_are_drawn() {
    let text = read("docs/tiers.md");
    let table = |head: &str| -> Vec<Vec<String>> {
        let lines =
            text.lines().skip_while(|line| !line.starts_with(head)).take_while(|line| line.starts_with('|'));
        let cells =
            |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        lines.filter(|line| !line.starts_with("|---")).map(cells).collect()
    };
    let (tiers, operations) = (table("| tier "), table("| operation "));
    let (head, operations) = operations.split_first().expect("a table");
    let mut picture = Picture::new(830, 360);
    picture.text("name", "start", (20, 24), "The ladder of tiers: the best that the kernel proves is taken");
    for (place, tier) in (0..).zip(&tiers[1..]) {
        let column = head.iter().position(|name| *name == tier[0]).expect("a column");
        let refused = operations.iter().filter(|row| row[column] == "refused").count();
        let (all, refused) =
            (i32::try_from(operations.len()).expect("few"), i32::try_from(refused).expect("few"));
        let (left, top) = (20 + 24 * place, 44 + 78 * place);
        picture.rect(if refused == all { "good" } else { "box" }, (left, top), (790 - 24 * place, 66));
        picture.text("name", "start", (left + 14, top + 24), &tier[0]);
        picture.text("", "start", (left + 100, top + 24), &tier[1]);
        picture.text("small", "start", (left + 100, top + 46), &format!("needs {}", tier[2]));
        let width = 180 * refused / all;
        picture.rect("rest", (610, top + 30), (180, 10));
        if width > 0 {
            picture.rect("done", (610, top + 30), (width.max(8), 10));
        }
        picture.text("small", "end", (790, top + 56), &format!("refuses {refused} of {all} operations"));
    }
    is_drawn("tiers.svg", &picture.svg("The four tiers, and how many of the operations each one refuses"));
}

/// Who takes part in an incident.
const PARTIES: [(&str, i32); 4] =
    [("storage", 95), ("CSI plugin", 310), ("kernel and guard", 535), ("operator", 735)];
/// What they do, one after the other: from, to, what. To oneself: a note.
const INCIDENT: &[(usize, usize, &str, &str)] = &[
    (0, 1, "", "attached; reads give zeros"),
    (1, 1, "box", "blkid: exit status 2, taken for blank"),
    (1, 2, "", "mkfs opens the device"),
    (2, 2, "bad", "recorded as ext4: refuse"),
    (2, 1, "", "Operation not permitted"),
    (2, 3, "", "event, line in dmesg, metric"),
    (0, 1, "", "reads give the data again"),
    (1, 1, "box", "the kubelet tries again; blkid: ext4"),
    (1, 2, "", "mount"),
    (2, 2, "good", "not one byte has changed"),
];

#[test]
fn the_incident_is_drawn() {
    let mut picture = Picture::new(830, 500);
    for (name, x) in PARTIES {
        picture.rect("box", (x - 85, 12), (170, 34));
        picture.text("name", "middle", (x, 34), name);
        picture.line("life", (x, 46), (x, 490));
    }
    for (place, (from, to, class, says)) in (0..).zip(INCIDENT) {
        let (y, start, end) = (84 + 42 * place, PARTIES[*from].1, PARTIES[*to].1);
        if from == to {
            picture.rect(class, (start - 125, y - 20), (250, 28));
            picture.text("", "middle", (start, y - 1), says);
        } else {
            picture.arrow((start, y), (end, y));
            picture.text("", "middle", (i32::midpoint(start, end), y - 7), says);
        }
    }
    is_drawn("incident.svg", &picture.svg("Attach, a false blank, a format that is refused, and recovery"));
}
