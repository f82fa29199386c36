//! Declared policies: which one holds is known in time, and every answer names it.

use super::*;
use crate::{api::Outcome, config::Config, policy::Action, volume::probe::Partition};

const ID: &str = "dm:UUID-1";

impl Setting {
    /// Reads a configuration of these policies: name, action and match each.
    fn declare(&mut self, policies: &[(&str, &str, &str)]) {
        let table = |(name, action, criteria): &(&str, &str, &str)| {
            format!("[[policy]]\nname = '{name}'\naction = '{action}'\nmatch = {{ {criteria} }}\n")
        };
        let tables: Vec<String> = policies.iter().map(table).collect();
        let text = tables.concat();
        self.give(Input::Reloaded(Box::new(Config::parse(&text).expect("a configuration"))));
    }

    fn shown(&self) -> crate::api::Volume {
        self.reconciler.volume(&VolumeId::from(ID)).expect("known")
    }

    fn policy(&self) -> Option<String> {
        self.shown().policy.map(|policy| policy.name)
    }
}

fn labelled(label: &str) -> Finding {
    let Finding::Holds { mut found, marks, partitions } = holds() else { panic!("it holds nothing") };
    found[0].label = Some(label.to_owned());
    Finding::Holds { found, marks, partitions }
}

#[test]
fn what_is_never_formatted_is_shown_as_such_and_has_no_permit() {
    let mut setting = setting();
    setting.declare(&[("archive", "never-format", "identity = 'dm:UUID-*'")]);
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    assert_eq!((setting.state(), setting.rule().state), (State::Unverified, State::Unverified as u32));
    setting.probed(5, holds());
    assert_eq!((setting.state(), setting.policy().as_deref()), (State::Formatted, Some("archive")));
    let failure = setting.reconciler.permit(&VolumeId::from(ID), 60, "test", 0).expect_err("refused");
    assert!(failure.error.contains("policy 'archive' (never-format)"), "{failure}");
    // It ends with the policy.
    setting.declare(&[]);
    assert_eq!(setting.policy(), None);
    setting.reconciler.permit(&VolumeId::from(ID), 60, "test", 0).expect("permitted");
}

#[test]
fn the_json_of_a_volume_without_a_policy_says_nothing_of_one() {
    let setting = setting();
    let json = serde_json::to_value(setting.shown()).expect("JSON");
    assert!(json.get("policy").is_none(), "{json}");
}

#[test]
fn a_label_that_a_probe_finds_chooses_before_the_record_is_made() {
    let mut setting = setting();
    setting.declare(&[("scratch", "ephemeral", "label = 'scratch-*'"), ("rest", "audit", "scheme = 'dm'")]);
    assert_eq!(setting.policy(), None, "which one holds is not known yet");
    setting.probed(5, labelled("scratch-1"));
    assert_eq!((setting.state(), setting.policy().as_deref()), (State::Blank, Some("scratch")));
    let mut other = super::setting();
    other.declare(&[("scratch", "ephemeral", "label = 'scratch-*'"), ("rest", "audit", "scheme = 'dm'")]);
    other.probed(5, labelled("data"));
    assert_eq!((other.state(), other.policy().as_deref()), (State::Formatted, Some("rest")));
    assert!(other.shown().audit && other.rule().flags & flag::AUDIT != 0);
}

#[test]
fn a_type_in_the_disks_table_chooses_for_its_partition() {
    let mut setting = setting();
    setting.declare(&[("root", "never-format", &format!("gpt_type = '{}'", ROOT.to_uppercase()))]);
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    let blank = |setting: &mut Setting| {
        for _ in 0..2 {
            setting.give(answer(PART, 5, Ok(Finding::Blank)));
        }
        setting.rule_of(PART).state
    };
    assert_eq!(blank(&mut setting), State::Unverified as u32, "the table was not read");
    setting.probed(5, table(ROOT, None));
    assert_eq!(blank(&mut setting), State::Unverified as u32);
    setting.probed(5, table(DATA, None));
    assert_eq!(blank(&mut setting), State::Blank as u32);
}

const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

/// A partition table with one partition.
fn table(kind: &str, label: Option<&str>) -> Finding {
    Finding::Holds {
        found: vec![Found { name: "gpt".into(), uuid: None, label: None, magic_offset: Some(512) }],
        marks: vec![Mark { offset: 512, kind: MarkKind::Magic, bytes: b"EFI PART".to_vec() }],
        partitions: Some(vec![Partition {
            start: 8,
            kind: Some(kind.to_owned()),
            label: label.map(str::to_owned),
        }]),
    }
}

#[test]
fn a_policy_is_chosen_by_a_partitions_label_and_by_its_disks_name() {
    let mut setting = setting();
    setting.declare(&[
        ("slots", "slot", "partition_label = 'root-*'"),
        ("disk", "never-format", "identity = 'dm:UUID-1'"),
    ]);
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    let by = |setting: &Setting| {
        let id = setting.reconciler.graph.id(PART).expect("present");
        setting.reconciler.policy_of(id).map(|policy| policy.name.clone())
    };
    assert_eq!(by(&setting), None, "the table was not read");
    setting.probed(5, table(DATA, None));
    assert_eq!(by(&setting).as_deref(), Some("disk"), "it has no label");
    // As the table says, where a program told the kernel of the partition; then as the kernel read it.
    setting.probed(5, table(DATA, Some("root-b")));
    assert_eq!(by(&setting).as_deref(), Some("slots"));
    setting.probed(5, table(DATA, Some("data")));
    assert_eq!(by(&setting).as_deref(), Some("disk"));
    let uevent = setting.sysfs.path().join("devices/virtual/block/dm-0/dm-0p1/uevent");
    fs::write(uevent, "DEVTYPE=partition\nPARTN=1\nPARTNAME=root-a\n").expect("attribute");
    setting.reconciler.device_gone(PART);
    setting.give(changed("dm-0p1"));
    assert_eq!(by(&setting).as_deref(), Some("slots"));
    assert_eq!(setting.rule_of(PART).state, State::Exempt as u32);
}

#[test]
fn what_a_policy_exempts_is_guarded_again_when_that_is_gone() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.declare(&[("lab", "exempt", "identity = 'dm:*'")]);
    assert_eq!((setting.state(), setting.rule().state), (State::Exempt, State::Exempt as u32));
    let failure = setting.reconciler.answer_of(
        &VolumeId::from(ID),
        VolumeRequest::Adopt { found: Vec::new(), marks: Vec::new(), reason: "test".into() },
        0,
    );
    assert!(failure.is_err_and(|failure| failure.error.contains("policy 'lab'")));
    // A restart under the same configuration, and one under another.
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Exempt);
    setting.reconciler.settings.policies.clear();
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Formatted);
}

#[test]
fn what_is_exempt_by_its_label_is_so_after_a_restart_without_a_pause() {
    let mut setting = setting();
    setting.declare(&[("lab", "exempt", "label = 'lab'")]);
    setting.probed(5, labelled("lab"));
    assert_eq!(setting.state(), State::Exempt);
    setting.reconciler.policy_facts = PolicyFacts::default();
    start_again(&mut setting);
    let deeds = setting.deeds.take();
    assert!(deeds.iter().all(|deed| *deed == Deed::Ruled(State::Exempt)), "{deeds:?}");
    setting.probed(5, labelled("other"));
    assert_eq!((setting.state(), setting.policy()), (State::Formatted, None));
}

#[test]
fn a_slot_takes_every_format_and_the_record_follows() {
    let mut setting = setting();
    setting.declare(&[("a-b", "slot", "identity = 'dm:*'")]);
    setting.probed(5, holds());
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Exempt as u32));
    setting.probed(5, Finding::Blank);
    assert!(setting.shown().discrepancy.is_none());
    let simulation = setting.reconciler.simulate(&VolumeId::from(ID), "mkfs.xfs").expect("simulated");
    assert!(simulation.outcomes.iter().all(|each| each.outcome == Outcome::Allowed), "{simulation:?}");
}

#[test]
fn what_is_simulated_is_what_the_rule_says_and_leaves_no_trace() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.deeds.take();
    let id = VolumeId::from(ID);
    let outcome = |setting: &Setting, program: &str, what: &str| {
        let simulation = setting.reconciler.simulate(&id, program).expect("simulated");
        let found = simulation.outcomes.into_iter().find(|each| each.what.starts_with(what));
        let found = found.unwrap_or_else(|| panic!("nothing of {what}"));
        (found.outcome, found.reason)
    };
    let refused = |reason: &str| (Outcome::Refused, Some(reason.to_owned()));
    assert_eq!(outcome(&setting, "mkfs.ext4", "open"), refused("formatter"));
    assert_eq!(outcome(&setting, "dd", "open"), (Outcome::Allowed, None));
    assert_eq!(outcome(&setting, "dd", "write zeros over the magic"), refused("identity"));
    assert_eq!(outcome(&setting, "dd", "write the magic of another"), refused("foreign-format"));
    assert_eq!(outcome(&setting, "dd", "discard"), refused("discard"));
    assert_eq!(outcome(&setting, "dd", "map"), refused("mapping"));
    assert!(setting.deeds.take().is_empty(), "something was stored or ruled");
    setting.declare(&[("watched", "audit", "identity = 'dm:*'")]);
    assert_eq!(
        outcome(&setting, "mkfs.ext4", "open"),
        (Outcome::WouldBeRefused, Some("formatter".to_owned()))
    );
    setting.declare(&[("mine", "strict", "identity = 'dm:*'")]);
    setting.reconciler.settings.trusted = vec!["backup".to_owned()];
    assert_eq!(outcome(&setting, "dd", "open"), refused("strict"));
    assert_eq!(outcome(&setting, "backup", "open"), (Outcome::Allowed, None));
    let policy = setting.reconciler.simulate(&id, "dd").expect("simulated").policy;
    assert_eq!(policy.map(|policy| policy.action), Some(Action::Strict));
}

#[test]
fn a_blank_volume_begins_a_format_by_simulation_too() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    let simulation = setting.reconciler.simulate(&VolumeId::from(ID), "mkfs.ext4").expect("simulated");
    assert_eq!(simulation.outcomes[0].outcome, Outcome::BeginsFormat);
    assert_eq!(setting.state(), State::Blank);
}
