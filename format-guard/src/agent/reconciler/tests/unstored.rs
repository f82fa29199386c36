//! A store that fails: what could not be stored is kept, tried again, and nothing is armed meanwhile.

use super::*;

const ID: &str = "dm:UUID-1";

impl Setting {
    fn broken(&self, broken: bool) {
        *self.broken.lock().expect("one thread") = broken;
    }

    fn stored(&self, id: &str) -> Record {
        self.reconciler.store.get(&id.into()).expect("read").expect("on record")
    }

    fn arm(&mut self) {
        for _ in 0..2 {
            self.probed(5, Finding::Blank);
        }
        assert_eq!(self.state(), State::Blank);
    }

    /// A second volume, in `dm-1`.
    fn attach_other(&mut self) -> Dev {
        attach_at(self.sysfs.path(), 1, "UUID-2", 7);
        self.give(changed("dm-1"));
        Dev { major: 253, minor: 1 }
    }

    fn end(&mut self, status: u32) {
        let process = Process { started: 1, tgid: u32::MAX, zero: 0 };
        let kind = EventKind::FormatEnded as u32;
        self.give(reported(&KernelEvent { kind, process, status, ..KernelEvent::default() }));
        self.give(Input::Ended { process, status: None, last: true });
    }

    fn api_status(&mut self) -> Box<api::Status> {
        match self.reconciler.answer(GuardRequest::Status, 0) {
            Ok(Reply::Status(status)) => status,
            _ => panic!("no status"),
        }
    }
}

#[test]
fn a_format_that_could_not_be_stored_is_stored_once_there_is_room() {
    let mut setting = setting();
    setting.arm();
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    setting.end(0);
    setting.probed(5, holds());
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Formatted as u32));
    assert_eq!(setting.stored(ID).state, State::Blank, "the store took nothing");
    assert!(!setting.enforcer.owners.lock().is_empty(), "the kernel keeps its note meanwhile");
    setting.give(Input::Tick);
    assert_eq!(setting.state(), State::Formatted, "the note says nothing new");
    setting.broken(false);
    setting.give(Input::Tick);
    let stored = setting.stored(ID);
    assert_eq!((stored.state, stored.armed, stored.ever_formatted), (State::Formatted, None, true));
    assert!(setting.enforcer.owners.lock().is_empty(), "the note is not needed any more");
}

#[test]
fn what_could_not_be_stored_and_is_gone_is_stored_all_the_same() {
    let mut setting = setting();
    setting.arm();
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    setting.end(0);
    setting.probed(5, holds());
    for link in ["class/block/dm-0", "dev/block/253:0"] {
        fs::remove_file(setting.sysfs.path().join(link)).expect("gone");
    }
    setting.give(Input::Removed { name: "dm-0".into() });
    assert!(!setting.enforcer.owners.lock().is_empty(), "an agent that starts now knows by the note");
    attach(setting.sysfs.path(), 9);
    setting.give(changed("dm-0"));
    assert_eq!(setting.state(), State::Formatted, "it is known here, if nowhere else");
    setting.broken(false);
    setting.give(Input::Tick);
    assert_eq!(setting.stored(ID).state, State::Formatted);
    assert!(setting.enforcer.owners.lock().is_empty());
}

#[test]
fn an_agent_that_starts_anew_before_that_takes_the_format_up_by_the_kernels_note() {
    let mut setting = setting();
    setting.arm();
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    setting.end(0);
    setting.probed(5, holds());
    setting.broken(false);
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Formatting);
    for _ in 0..2 {
        setting.probed(5, Finding::Blank);
    }
    assert_ne!(setting.state(), State::Blank, "somebody formatted it");
}

#[test]
fn nothing_is_armed_while_a_record_is_not_stored() {
    let mut setting = setting();
    let other = setting.attach_other();
    setting.arm();
    for _ in 0..2 {
        setting.give(answer(other, 7, Ok(Finding::Blank)));
    }
    assert_eq!(setting.rule_of(other).state, State::Blank as u32);
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    assert_eq!(setting.rule().state, State::Formatting as u32, "who has begun goes on");
    assert_eq!(setting.rule_of(other).state, State::Unverified as u32, "nobody else begins");
    for _ in 0..3 {
        setting.give(answer(other, 7, Ok(Finding::Blank)));
        setting.give(Input::Tick);
    }
    assert_eq!(setting.rule_of(other).state, State::Unverified as u32);
    setting.broken(false);
    setting.give(Input::Tick);
    for _ in 0..2 {
        setting.give(answer(other, 7, Ok(Finding::Blank)));
    }
    assert_eq!(setting.rule_of(other).state, State::Blank as u32);
    assert_eq!(setting.stored("dm:UUID-2").armed.as_deref(), Some("boot-1"));
}

#[test]
fn what_is_armed_is_stored_together_with_all_that_was_not() {
    let mut setting = setting();
    let other = setting.attach_other();
    setting.give(answer(other, 7, Ok(Finding::Blank)));
    setting.arm();
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    setting.broken(false);
    // Before the next resync.
    setting.give(answer(other, 7, Ok(Finding::Blank)));
    assert_eq!(setting.rule_of(other).state, State::Blank as u32);
    assert_eq!(setting.stored(ID).state, State::Formatting);
}

#[test]
fn status_says_what_is_not_stored_and_what_that_means() {
    let mut setting = setting();
    setting.arm();
    assert_eq!(setting.api_status().unstored, 0);
    setting.broken(true);
    begin(&mut setting, DEV, DEV);
    let status = setting.api_status();
    assert_eq!(status.unstored, 1);
    let degraded = status.degraded.join("\n");
    assert!(
        degraded.contains("1 records could not be stored") && degraded.contains("disk full"),
        "{degraded}"
    );
    setting.broken(false);
    setting.give(Input::Tick);
    let status = setting.api_status();
    assert!(status.unstored == 0 && status.degraded.is_empty(), "{status:?}");
}
