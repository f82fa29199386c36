//! Records that were lost: nothing is armed but by a permit, whoever starts, until an operator ends it.

use super::*;
use crate::{api::Failure, record::store::Loss};

impl Setting {
    fn lose(&mut self) {
        let loss = Loss { at: 1, cause: "the database was damaged and is kept at /x".into() };
        let value = serde_json::to_string(&Some(loss)).expect("JSON");
        self.reconciler.store.set(Loss::SETTING, &value, &[]).expect("set");
    }

    fn blank_twice(&mut self) {
        for _ in 0..2 {
            self.probed(5, Finding::Blank);
        }
    }

    pub(super) fn forget_all(&mut self) {
        let ids: Vec<VolumeId> =
            self.reconciler.store.list().expect("list").into_iter().map(|record| record.id).collect();
        for id in ids {
            self.reconciler.store.forget(&id, &[]).expect("forgotten");
        }
    }

    fn end_loss(&mut self, reason: &str) -> Result<Reply, Failure> {
        let _entered = self.runtime.enter();
        let request = api::EndLossRequest { reason: reason.into() };
        self.reconciler.answer(GuardRequest::EndLoss(request), 7)
    }
}

#[test]
fn nothing_is_armed_after_a_loss_however_often_the_agent_starts() {
    let mut setting = setting();
    setting.lose();
    for _ in 0..3 {
        start_again(&mut setting);
        setting.blank_twice();
        assert_eq!(setting.state(), State::Unverified);
    }
    let Ok(Reply::Status(status)) = setting.reconciler.answer(GuardRequest::Status, 0) else {
        panic!("no status")
    };
    assert!(
        status.records_lost.is_some() && status.degraded[0].contains("format-guard loss end"),
        "{status:?}"
    );
}

#[test]
fn an_operator_ends_a_loss_by_a_reason_and_for_good() {
    let mut setting = setting();
    setting.lose();
    start_again(&mut setting);
    setting.blank_twice();
    assert!(setting.end_loss(" ").is_err(), "without a reason");
    *setting.broken.lock().expect("one thread") = true;
    assert!(setting.end_loss("all is seen").is_err(), "what is not stored is not ended");
    setting.blank_twice();
    assert_eq!(setting.state(), State::Unverified);
    *setting.broken.lock().expect("one thread") = false;
    assert!(setting.end_loss("all is seen").is_ok());
    assert_eq!(setting.state(), State::Unverified, "it was read while nobody would have armed it");
    setting.blank_twice();
    assert_eq!(setting.state(), State::Blank);
    assert!(setting.end_loss("again").is_err(), "there is none");
    start_again(&mut setting);
    setting.blank_twice();
    assert_eq!(setting.state(), State::Blank);
}

#[test]
fn the_rule_of_a_formatted_volume_is_taken_over_as_its_record() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.forget_all();
    setting.lose();
    start_again(&mut setting);
    let record = setting.reconciler.records[&VolumeId::from("dm:UUID-1")].clone();
    assert_eq!((record.state, record.ever_formatted), (State::Formatted, true));
    assert!(record.content.as_ref().is_some_and(|content| content.name().starts_with("ext")));
    assert_eq!(record.marks, [Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }]);
    // It is on record from now on, and is not forgotten for a false reading.
    setting.probed(5, Finding::Blank);
    assert_eq!(setting.state(), State::Formatted);
    let id = VolumeId::from("dm:UUID-1");
    assert!(setting.reconciler.records[&id].discrepancy.is_some());
    // The format that it was taken over for is that very one, and tells the rest of it.
    let Finding::Holds { mut found, marks, partitions } = holds() else { panic!("it holds nothing") };
    found[0].uuid = Some("1-2-3".into());
    setting.probed(5, Finding::Holds { found, marks, partitions });
    let record = &setting.reconciler.records[&id];
    assert_eq!(record.discrepancy, None);
    assert_eq!(record.content.as_ref().and_then(|content| content.uuid.as_deref()), Some("1-2-3"));
}

#[test]
fn another_format_is_not_taken_for_the_one_whose_rule_was_taken_over() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.forget_all();
    setting.lose();
    start_again(&mut setting);
    let Finding::Holds { mut found, mut marks, partitions } = holds() else { panic!("it holds nothing") };
    found[0].name = "xfs".into();
    marks[0] = Mark { offset: 0, kind: MarkKind::Magic, bytes: b"XFSB".to_vec() };
    setting.probed(5, Finding::Holds { found, marks, partitions });
    let record = &setting.reconciler.records[&VolumeId::from("dm:UUID-1")];
    assert!(record.discrepancy.is_some() && record.marks[0].offset == 1080, "{record:?}");
}

#[test]
fn the_rule_of_another_attachment_says_nothing() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.forget_all();
    setting.lose();
    attach(setting.sysfs.path(), 6);
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Unverified);
}

#[test]
fn without_a_loss_no_rule_is_taken_over() {
    let mut setting = setting();
    setting.probed(5, holds());
    setting.forget_all();
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Unverified, "it is probed like any other");
}
