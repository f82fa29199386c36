//! Copies of what makes a volume findable: of what is recorded, and of nothing else.

use super::*;
use crate::volume::copies::Piece;

fn id() -> VolumeId {
    "dm:UUID-1".into()
}

impl Setting {
    fn probed_with_copy(&mut self, finding: Finding, byte: u8) {
        let copy = Some(copies::pack(&[Piece { offset: 0, bytes: vec![byte; 4096] }]));
        let (result, begun) = (Ok(finding), Instant::now());
        self.give(Input::Probed(ProbeAnswer { dev: DEV, diskseq: 5, begun, result, twice: false, copy }));
    }

    /// The first byte of what is copied.
    fn copied(&mut self) -> Option<u8> {
        match self.reconciler.answer_of(&"dm:UUID-1".into(), VolumeRequest::Copy, 0) {
            Ok(Reply::Copy(copy)) => copy.pieces.first().map(|piece| piece.bytes[0]),
            _ => None,
        }
    }
}

fn another() -> Finding {
    Finding::Holds {
        found: vec![Found { name: "xfs".into(), uuid: None, label: None, magic_offset: Some(0) }],
        marks: vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: b"XFSB".to_vec() }],
        partitions: None,
    }
}

#[test]
fn what_is_recorded_is_copied_once_and_what_reads_otherwise_is_not() {
    let mut setting = setting();
    assert!(setting.reconciler.wanted_copy(&id()).is_some(), "the first probe may find a format");
    assert_eq!(setting.copied(), None);
    setting.probed_with_copy(holds(), 1);
    assert_eq!((setting.copied(), setting.reconciler.wanted_copy(&id())), (Some(1), None));
    for finding in [another(), Finding::Blank] {
        setting.probed_with_copy(finding, 2);
        assert_eq!(setting.copied(), Some(1), "what is not as recorded replaces no copy");
    }
    setting.reconciler.copies.clear();
    setting.reconciler.look_for_copy(&id());
    assert_eq!(setting.reconciler.wanted_copy(&id()), None, "it is there after a restart");
}

#[test]
fn a_reformat_is_copied_anew() {
    let mut setting = setting();
    setting.probed_with_copy(holds(), 1);
    let permit = Permit { reason: "test".into(), uid: 0, at: now(), expires: now() + 600, used: false };
    setting.reconciler.apply(&id(), Event::Permitted(permit));
    begin(&mut setting, DEV, DEV);
    setting.probed_with_copy(another(), 2);
    assert_eq!(setting.copied(), Some(1), "half of a format is none");
    setting.give(Input::Ended {
        process: Process { started: 1, tgid: u32::MAX, zero: 0 },
        status: None,
        last: true,
    });
    assert!(setting.reconciler.wanted_copy(&id()).is_some() || setting.state() == State::Formatting);
    setting.probed_with_copy(another(), 3);
    assert_eq!((setting.state(), setting.copied()), (State::Permitted, Some(1)), "its job may go on");
    setting.reconciler.apply(&id(), Event::Mounted);
    setting.probed_with_copy(another(), 3);
    assert_eq!((setting.state(), setting.copied()), (State::Formatted, Some(3)));
}

#[test]
fn a_copy_that_is_none_or_too_old_is_taken_again() {
    let mut setting = setting();
    let (result, begun) = (Ok(holds()), Instant::now());
    let copy = Some(b"garbage".to_vec());
    setting.give(Input::Probed(ProbeAnswer { dev: DEV, diskseq: 5, begun, result, twice: false, copy }));
    assert_eq!((setting.state(), setting.copied()), (State::Formatted, None));
    setting.probed_with_copy(holds(), 1);
    for day in [-2, 2] {
        let mut copy = setting.reconciler.store.copy(&id()).expect("read").expect("a copy");
        copy.at = now() + day * 24 * 3600;
        setting.reconciler.store.put_copies(&[(id(), copy)]).expect("put");
        setting.reconciler.look_for_copy(&id());
        assert!(setting.reconciler.wanted_copy(&id()).is_some(), "{day}");
    }
    setting.reconciler.settings.copied = None;
    assert_eq!(setting.reconciler.wanted_copy(&id()), None, "nothing is to be copied");
}

#[test]
fn what_answers_that_come_together_have_copied_is_kept_once_all_is_stored() {
    let mut setting = setting();
    let copy = || Some(copies::pack(&[Piece { offset: 0, bytes: vec![1; 4096] }]));
    let answer = || ProbeAnswer {
        dev: DEV,
        diskseq: 5,
        begun: Instant::now(),
        result: Ok(holds()),
        twice: false,
        copy: copy(),
    };
    setting.forget_all();
    let entered = setting.runtime.enter();
    setting.reconciler.apply_probe_batch(vec![answer(), answer()]);
    drop(entered);
    assert_eq!(setting.copied(), Some(1));
}
