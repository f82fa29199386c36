//! Declared policies: what the configuration has done with the volumes that a pattern matches.
//!
//! The first policy that matches holds, and no other. Where what a policy asks for is not known yet, those
//! after it do not hold either: a volume is never handed to a later, weaker one for want of a reading.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Policies that a configuration has at most.
pub const MAX_POLICIES: usize = 64;
/// Longest name or pattern, in bytes.
pub const MAX_TEXT: usize = 256;

/// What is done with the volumes that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing is refused on it, and nothing of it is remembered.
    Exempt,
    /// Its refusals are reported and not carried out.
    Audit,
    /// While it holds a format, its own tools and trusted programs alone may write to it.
    Strict,
    /// Nobody formats it: a permit does not, nor is it armed when it reads blank.
    NeverFormat,
    /// What it held is worth nothing at each attachment: one format may begin, whatever is found on it.
    Ephemeral,
    /// It is overwritten as a whole, by anybody: nothing is refused on it, and the record follows.
    Slot,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 6] =
        [Self::Exempt, Self::Audit, Self::Strict, Self::NeverFormat, Self::Ephemeral, Self::Slot];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exempt => "exempt",
            Self::Audit => "audit",
            Self::Strict => "strict",
            Self::NeverFormat => "never-format",
            Self::Ephemeral => "ephemeral",
            Self::Slot => "slot",
        }
    }

    /// What it means, for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Exempt => "nothing is refused on it",
            Self::Audit => "its refusals are reported and not carried out",
            Self::Strict => {
                "while it holds a format, its own tools and trusted programs alone may write to it"
            }
            Self::NeverFormat => "nobody formats it, with or without a permit",
            Self::Ephemeral => "what it held is worth nothing at each attachment, and one format may begin",
            Self::Slot => "it is overwritten as a whole, and nothing is refused on it",
        }
    }
}

/// Which volumes a policy matches: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Criteria {
    /// A pattern for one of its names, or of those of the disk that it is a partition of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The scheme of such a name: what stands before its first colon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The type of a GPT partition, a UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpt_type: Option<String>,
    /// A pattern for the label of a GPT partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_label: Option<String>,
    /// A pattern for the label of the file system on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl Criteria {
    /// The keys, as the file has them.
    pub const KEYS: [&str; 5] = ["identity", "scheme", "gpt_type", "partition_label", "label"];

    /// What is given, by key.
    fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { identity, scheme, gpt_type, partition_label, label } = self;
        let all = [identity, scheme, gpt_type, partition_label, label];
        Self::KEYS.into_iter().zip(all).filter_map(|(key, text)| Some((key, text.as_deref()?)))
    }

    /// Whether a volume of which this is known matches; `None` where that is not known yet.
    fn matches(&self, facts: &Facts) -> Option<bool> {
        let any = |test: &dyn Fn(&str) -> bool| facts.names.iter().any(|name| test(name));
        let mut unknown = false;
        for (key, wanted) in self.given() {
            let met = match key {
                "identity" => Some(any(&|name| is_like(wanted, name))),
                "scheme" => {
                    Some(any(&|name| name.split_once(':').is_some_and(|(scheme, _)| scheme == wanted)))
                }
                "gpt_type" => facts.gpt_type.is(|text| text.eq_ignore_ascii_case(wanted)),
                "partition_label" => facts.partition_label.is(|text| is_like(wanted, text)),
                _ => facts.label.is(|text| is_like(wanted, text)),
            };
            match met {
                Some(true) => {}
                Some(false) => return Some(false),
                None => unknown = true,
            }
        }
        (!unknown).then_some(true)
    }

    /// Whether every volume that the other ones match is matched by these, too, as far as the patterns say.
    fn covers(&self, other: &Self) -> bool {
        self.given().all(|(key, pattern)| {
            other.given().any(|(same, text)| {
                // A '?' stands for one character, and a '*' of the other for any number.
                same == key && (pattern == text || !pattern.contains('?') && is_like(pattern, text))
            })
        })
    }
}

impl fmt::Display for Criteria {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (key, text)) in self.given().enumerate() {
            let and = if place == 0 { "" } else { " and " };
            write!(f, "{and}{key} '{text}'")?;
        }
        Ok(())
    }
}

/// One table `[[policy]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name: messages and `volume show` have it.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// To which volumes.
    #[serde(rename = "match")]
    pub criteria: Criteria,
}

impl Policy {
    /// The keys of the table.
    pub const KEYS: [&str; 3] = ["name", "action", "match"];
}

/// A policy that holds for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InForce {
    /// Its name.
    pub name: String,
    /// What is done.
    pub action: Action,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy '{}' ({})", self.name, self.action.name())
    }
}

/// Which policy holds for a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// None.
    #[default]
    None,
    /// Not known yet: it depends on what was not read. Nothing is armed meanwhile.
    Undecided,
    /// This one.
    Policy(InForce),
}

impl Choice {
    /// The policy that holds.
    #[must_use]
    pub const fn in_force(&self) -> Option<&InForce> {
        match self {
            Self::Policy(policy) => Some(policy),
            Self::None | Self::Undecided => None,
        }
    }

    /// Whether this is done.
    #[must_use]
    pub fn is(&self, action: Action) -> bool {
        self.in_force().is_some_and(|policy| policy.action == action)
    }

    /// Whether it keeps a volume from being armed, however blank that reads.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        *self == Self::Undecided || self.is(Action::NeverFormat)
    }
}

/// Something that may not be known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fact {
    /// It was not read.
    #[default]
    Unknown,
    /// It is this, or there is none.
    Known(Option<String>),
}

impl Fact {
    fn is(&self, wanted: impl Fn(&str) -> bool) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Known(text) => Some(text.as_deref().is_some_and(wanted)),
        }
    }
}

/// What policies ask of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its names, and those of the disk that it is a partition of.
    pub names: Vec<String>,
    /// The type of a GPT partition.
    pub gpt_type: Fact,
    /// The label of a GPT partition.
    pub partition_label: Fact,
    /// The label of the file system on it.
    pub label: Fact,
}

/// The policy that holds for a volume: the first that matches.
#[must_use]
pub fn choose(policies: &[Policy], facts: &Facts) -> Choice {
    for policy in policies {
        match policy.criteria.matches(facts) {
            Some(true) => {
                return Choice::Policy(InForce { name: policy.name.clone(), action: policy.action });
            }
            Some(false) => {}
            None => return Choice::Undecided,
        }
    }
    Choice::None
}

/// Whether a text is like a pattern: `*` stands for any characters, `?` for one.
fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Behind the last star that was met, and where the text that it stands for ends.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((behind, end)) => {
                    *end += 1;
                    (p, t) = (*behind, *end);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// What is wrong with the policies of a configuration, in a sentence.
pub fn check(policies: &[Policy]) -> Result<(), String> {
    if policies.len() > MAX_POLICIES {
        return Err(format!("there are {} policies: at most {MAX_POLICIES}", policies.len()));
    }
    for (place, policy) in policies.iter().enumerate() {
        let Policy { name, criteria, .. } = policy;
        let number = place + 1;
        if name.trim().is_empty() || name.len() > MAX_TEXT || name.chars().any(char::is_control) {
            return Err(format!("policy {number} has the name '{name}': write 1 to {MAX_TEXT} bytes"));
        }
        if let Some(before) = policies[..place].iter().position(|other| other.name == *name) {
            return Err(format!(
                "policies {} and {number} have the name '{name}': give each one of its own",
                before + 1
            ));
        }
        if criteria.given().next().is_none() {
            return Err(format!(
                "policy '{name}' matches every volume: write one of {} under match",
                Criteria::KEYS.join(", ")
            ));
        }
        let of_table = [("gpt_type", &criteria.gpt_type), ("partition_label", &criteria.partition_label)];
        let of_table = of_table.iter().find(|(_, text)| text.is_some());
        if let (Action::Ephemeral, Some((key, _))) = (policy.action, of_table) {
            return Err(format!(
                "policy '{name}' is ephemeral by {key}, which is read too late for that: match it by identity, scheme or \
                 label"
            ));
        }
        for (key, text) in criteria.given() {
            if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(format!("policy '{name}' has {key} '{text}': write 1 to {MAX_TEXT} bytes"));
            }
            let wrong = match key {
                "identity" if !text.chars().any(char::is_alphanumeric) => {
                    "write a volume's id, as format-guard volume show shows it, with * for any characters"
                }
                "scheme" if !is_scheme(text) => {
                    "write the part of an id before its first colon, without the colon (iscsi)"
                }
                "gpt_type" if !is_uuid(text) => {
                    "write the type's UUID, as lsblk -o PARTTYPE shows it (0fc63daf-8483-4772-8e79-3d69d8477de4)"
                }
                _ => continue,
            };
            return Err(format!("policy '{name}' has {key} '{text}': {wrong}"));
        }
    }
    Ok(())
}

/// What people are told of each policy, one line each.
#[must_use]
pub fn explain(policies: &[Policy]) -> Vec<String> {
    let mut lines = Vec::new();
    for (place, policy) in policies.iter().enumerate() {
        let Policy { name, action, criteria } = policy;
        let number = place + 1;
        lines.push(format!("policy {number} '{name}': {criteria}: {}, {}", action.name(), action.meaning()));
        if let Some(before) = policies[..place].iter().find(|before| before.criteria.covers(criteria)) {
            lines.push(format!(
                "policy {number} '{name}' is never reached: '{}' before it matches all that it matches",
                before.name
            ));
        }
    }
    lines
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_uuid(text: &str) -> bool {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let is_sound = |(place, byte): (usize, u8)| {
        if DASHES.contains(&place) { byte == b'-' } else { byte.is_ascii_hexdigit() }
    };
    text.len() == 36 && text.bytes().enumerate().all(is_sound)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(name: &str, action: Action, criteria: Criteria) -> Policy {
        Policy { name: name.to_owned(), action, criteria }
    }

    fn identity(pattern: &str) -> Criteria {
        Criteria { identity: Some(pattern.to_owned()), ..Criteria::default() }
    }

    fn labelled(label: &str) -> Criteria {
        Criteria { label: Some(label.to_owned()), ..Criteria::default() }
    }

    fn facts(name: &str) -> Facts {
        Facts {
            names: vec![name.to_owned()],
            gpt_type: Fact::Known(None),
            partition_label: Fact::Known(None),
            label: Fact::Unknown,
        }
    }

    fn name_of(choice: &Choice) -> &str {
        choice.in_force().map_or("-", |policy| policy.name.as_str())
    }

    #[test]
    fn a_pattern_stands_for_what_it_says() {
        for (pattern, text) in [
            ("a*", "a"),
            ("*", ""),
            ("a*c", "abbc"),
            ("*b*", "abc"),
            ("a?c", "abc"),
            ("iscsi:*:x*", "iscsi:a:b:xy"),
        ] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "abd"), ("?", ""), ("", "a"), ("a?", "a"), ("*b", "ba")]
        {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_that_matches_holds_and_all_that_is_given_must_match() {
        let both = Criteria { scheme: Some("iscsi".to_owned()), ..identity("*:pvc-2*") };
        let policies =
            [policy("one", Action::Strict, both), policy("rest", Action::Audit, identity("iscsi:*"))];
        for (name, chosen) in
            [("iscsi:x:pvc-2,lun=1", "one"), ("iscsi:x:pvc-1", "rest"), ("nvme:x:pvc-2", "-")]
        {
            assert_eq!(name_of(&choose(&policies, &facts(name))), chosen, "{name}");
        }
    }

    #[test]
    fn what_is_not_known_yet_holds_back_every_later_policy_and_no_earlier_one() {
        let policies = [
            policy("first", Action::Strict, identity("dm:a")),
            policy("label", Action::NeverFormat, labelled("keep*")),
            policy("rest", Action::Exempt, identity("*dm*")),
        ];
        let with = |label: Fact, name: &str| choose(&policies, &Facts { label, ..facts(name) });
        assert_eq!(name_of(&with(Fact::Unknown, "dm:a")), "first");
        assert_eq!(with(Fact::Unknown, "dm:b"), Choice::Undecided);
        assert_eq!(name_of(&with(Fact::Known(None), "dm:b")), "rest");
        assert_eq!(name_of(&with(Fact::Known(Some("keep-1".to_owned())), "dm:b")), "label");
        // What cannot match any more needs no reading.
        let narrow =
            [policy("narrow", Action::Slot, Criteria { label: Some("x".to_owned()), ..identity("nvme:*") })];
        assert_eq!(choose(&narrow, &facts("dm:b")), Choice::None);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_a_way_out() {
        let wrong = |policies: &[Policy]| check(policies).expect_err("refused");
        let sound = policy("x", Action::Audit, identity("dm:*"));
        assert_eq!(check(std::slice::from_ref(&sound)), Ok(()));
        assert!(wrong(&[sound.clone(), sound.clone()]).contains("policies 1 and 2 have the name 'x'"));
        assert!(wrong(&[policy("", Action::Audit, identity("a"))]).starts_with("policy 1 has the name ''"));
        assert!(wrong(&[policy("x", Action::Audit, Criteria::default())]).contains("matches every volume"));
        for (key, criteria) in [
            ("identity", identity("*")),
            ("scheme", Criteria { scheme: Some("iscsi:".to_owned()), ..Criteria::default() }),
            ("gpt_type", Criteria { gpt_type: Some("8300".to_owned()), ..Criteria::default() }),
            ("label", labelled("")),
        ] {
            let text = wrong(&[policy("x", Action::Audit, criteria)]);
            assert!(
                text.starts_with(&format!("policy 'x' has {key} '")) && text.contains("': write "),
                "{text}"
            );
        }
        let typed = Criteria {
            gpt_type: Some("0fc63daf-8483-4772-8e79-3d69d8477de4".to_owned()),
            ..Criteria::default()
        };
        assert_eq!(check(&[policy("x", Action::Slot, typed.clone())]), Ok(()));
        assert!(wrong(&[policy("x", Action::Ephemeral, typed)]).contains("read too late"));
        let many: Vec<Policy> =
            (0..=MAX_POLICIES).map(|i| Policy { name: format!("p{i}"), ..sound.clone() }).collect();
        assert_eq!(wrong(&many), format!("there are 65 policies: at most {MAX_POLICIES}"));
    }

    #[test]
    fn a_policy_that_is_never_reached_is_named() {
        let lines = |first: Criteria, second: Criteria| {
            explain(&[policy("a", Action::Audit, first), policy("b", Action::Strict, second)])
        };
        assert_eq!(
            lines(identity("dm:*"), identity("dm:LVM-*")),
            [
                "policy 1 'a': identity 'dm:*': audit, its refusals are reported and not carried out",
                "policy 2 'b': identity 'dm:LVM-*': strict, while it holds a format, its own tools and trusted programs alone may \
                 write to it",
                "policy 2 'b' is never reached: 'a' before it matches all that it matches",
            ]
        );
        assert_eq!(lines(identity("dm:LVM-*"), identity("dm:*")).len(), 2);
        assert_eq!(lines(identity("dm:?"), identity("dm:*")).len(), 2);
        let narrower = Criteria { label: Some("x".to_owned()), ..identity("dm:*") };
        assert_eq!(lines(narrower.clone(), identity("dm:*")).len(), 2);
        assert_eq!(lines(identity("dm:*"), narrower).len(), 3);
    }

    fn any_criteria() -> impl Strategy<Value = Criteria> {
        let text = || prop::option::of("[ab*?]{1,3}");
        (text(), text(), text()).prop_map(|(identity, partition_label, label)| Criteria {
            identity,
            partition_label,
            label,
            ..Criteria::default()
        })
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        prop_oneof![Just(Fact::Unknown), prop::option::of("[ab]{0,3}").prop_map(Fact::Known)]
    }

    proptest! {
        /// What is read later turns no volume over from one policy to another.
        #[test]
        fn more_is_known_and_the_same_policy_holds(
            all in prop::collection::vec(any_criteria(), 0..5),
            name in "[ab]{1,3}",
            (partition_label, label) in (any_fact(), any_fact()),
            (later_partition_label, later_label) in (any_fact(), any_fact()),
        ) {
            let policies: Vec<Policy> =
                (0..).zip(all).map(|(i, criteria)| policy(&format!("{i}"), Action::Audit, criteria)).collect();
            let before = Facts { partition_label, label, ..facts(&name) };
            let or = |known: &Fact, later: Fact| if *known == Fact::Unknown { later } else { known.clone() };
            let after = Facts {
                partition_label: or(&before.partition_label, later_partition_label),
                label: or(&before.label, later_label),
                ..before.clone()
            };
            let chosen = choose(&policies, &before);
            if chosen != Choice::Undecided {
                prop_assert_eq!(chosen, choose(&policies, &after));
            }
        }

        /// One that is said to be never reached never holds.
        #[test]
        fn what_is_covered_is_never_reached(first in any_criteria(), second in any_criteria(), name in "[ab]{1,3}", label in any_fact(), partition_label in any_fact()) {
            let covered = first.covers(&second);
            let policies = [policy("first", Action::Audit, first), policy("second", Action::Audit, second)];
            let chosen = choose(&policies, &Facts { partition_label, label, ..facts(&name) });
            prop_assert!(!covered || name_of(&chosen) != "second");
        }
    }
}
