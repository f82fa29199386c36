//! What a declared policy makes of a volume's states.

use super::*;
use crate::policy::InForce;

pub(super) fn chosen(action: Action) -> Event {
    Event::PolicyChosen(Choice::Policy(InForce { name: "test".into(), action }))
}

pub(super) fn none_chosen() -> Event {
    Event::PolicyChosen(Choice::None)
}

/// Attached with this number, in a boot.
fn attached_as(boot: &str, diskseq: u64) -> Event {
    let Event::Attached { strength, records_lost, quarantine, raw_content, claim, .. } = attached() else {
        unreachable!()
    };
    Event::Attached { boot: boot.into(), strength, records_lost, quarantine, raw_content, claim, diskseq }
}

/// The same volume, as it is loaded when it is attached anew.
fn loaded(volume: Volume) -> Volume {
    Volume::of(volume.record)
}

fn reports(effects: &[Effect], kind: &str) -> usize {
    let is_it = |effect: &&Effect| matches!(effect, Effect::Report(report) if report.kind == kind);
    effects.iter().filter(is_it).count()
}

#[test]
fn what_a_policy_exempts_is_exempt_as_long_as_it_holds() {
    let (exempt, effects) = run(record(), [chosen(Action::Exempt), attached()]);
    assert_eq!((exempt.state, reports(&effects, "exempted")), (State::Exempt, 1));
    assert!(is_exempt_by_policy(&exempt) && exempt.cause == "exempt by policy 'test'", "{}", exempt.cause);
    // After a restart it is the same, and told no more.
    let (again, effects) = run(loaded(exempt.clone()), [chosen(Action::Exempt), attached()]);
    assert_eq!((again.state, reports(&effects, "exempted")), (State::Exempt, 0));
    // Nobody has seen what was written: it is armed after the quarantine.
    let (ended, effects) = run(loaded(exempt), [none_chosen(), attached_as("boot-1", 6), blank(), blank()]);
    assert_eq!((ended.state, reports(&effects, "exemption-ended")), (State::Unverified, 1));
    assert_eq!(at(&ended, blank(), 200).state, State::Blank);
    // What held a format is protected again.
    let (ended, _) = run(record(), [attached(), holds("ext4", "a"), chosen(Action::Exempt), none_chosen()]);
    assert_eq!((ended.state, ended.content.as_ref().map(Content::name)), (State::Formatted, Some("ext4")));
}

#[test]
fn a_restart_ends_no_exemption_before_it_is_known_which_policy_holds() {
    let (exempt, _) = run(record(), [chosen(Action::Exempt), attached()]);
    let undecided = Event::PolicyChosen(Choice::Undecided);
    let (again, effects) = run(loaded(exempt), [undecided, attached()]);
    assert_eq!((again.state, effects), (State::Exempt, vec![Effect::Probe]));
    assert_eq!(run(again.clone(), [chosen(Action::Exempt)]).0.state, State::Exempt);
    assert_eq!(run(again, [none_chosen()]).0.state, State::Unverified);
}

#[test]
fn an_operators_exemption_outlives_every_policy() {
    let exempted = Event::Exempted { reason: "test".into(), uid: 0 };
    for events in [vec![exempted.clone(), chosen(Action::Exempt)], vec![chosen(Action::Exempt), exempted]] {
        let (exempt, _) = run(record(), [attached()].into_iter().chain(events).chain([none_chosen()]));
        assert_eq!(exempt.state, State::Exempt);
    }
}

#[test]
fn an_exemption_of_a_place_by_a_policy_holds_for_each_medium_there() {
    let (exempt, _) = run(record(), [chosen(Action::Exempt), weakly("boot-1", 5), Event::Detached]);
    let (again, _) = run(loaded(exempt), [chosen(Action::Exempt), weakly("boot-1", 6)]);
    assert_eq!(again.state, State::Exempt);
}

#[test]
fn what_is_never_formatted_is_neither_armed_nor_permitted() {
    let never = || chosen(Action::NeverFormat);
    let (volume, _) = run(record(), [never(), attached(), blank(), blank(), Event::Permitted(permit(1000))]);
    assert_eq!((volume.state, &volume.record.permit), (State::Unverified, &None));
    assert!(volume.cause.contains("a policy"), "{}", volume.cause);
    assert!(!waits(&volume, clock(11)) && waits(&volume, clock(10 + PACE)), "it is read at the slow pace");
    let (held, _) = run(volume.clone(), [holds("ext4", "a"), Event::Permitted(permit(1000))]);
    assert_eq!(held.state, State::Formatted);
    // Put in force on what is armed, or has a permit.
    let (armed, _) = run(record(), [attached(), blank(), blank(), never()]);
    assert_eq!(armed.state, State::Unverified);
    let (permitted, effects) =
        run(record(), [attached(), holds("ext4", "a"), Event::Permitted(permit(1000)), never()]);
    assert_eq!((permitted.state, reports(&effects, "permit-expired")), (State::Formatted, 1));
    // And lifted.
    let (lifted, _) = run(volume, [none_chosen(), blank(), blank()]);
    assert_eq!(lifted.state, State::Blank);
}

#[test]
fn nothing_is_armed_before_it_is_known_which_policy_holds() {
    let undecided = Event::PolicyChosen(Choice::Undecided);
    let (volume, _) = run(record(), [undecided, attached(), blank(), blank()]);
    assert_eq!(volume.state, State::Unverified);
    let (decided, effects) = run(volume, [none_chosen()]);
    assert!(effects.contains(&Effect::Probe));
    assert_eq!(run(decided, [blank(), blank()]).0.state, State::Blank);
}

#[test]
fn what_an_ephemeral_volume_held_is_worth_nothing_at_each_attachment() {
    let ephemeral = || chosen(Action::Ephemeral);
    // The platform has formatted it.
    let (fresh, effects) = run(record(), [ephemeral(), attached(), holds("ntfs", "a")]);
    assert_eq!((fresh.state, reports(&effects, "ephemeral")), (State::Blank, 1));
    assert_eq!(run(fresh.clone(), [holds("ntfs", "a")]).0.state, State::Blank);
    // In use it is protected, by whichever of them.
    let (mounted, _) = run(fresh.clone(), [Event::Mounted]);
    assert_eq!(mounted.state, State::Formatted);
    let (used, _) = run(fresh, [began(), ended(Some(0)), holds("ext4", "b")]);
    assert_eq!(used.state, State::Formatted);
    // A restart of the agent is no new attachment.
    let (kept, effects) = run(loaded(used.clone()), [ephemeral(), attached()]);
    assert_eq!((kept.state, reports(&effects, "ephemeral")), (State::Formatted, 0));
    // Another boot is, and so is another number.
    for (before, again) in
        [(used.clone(), attached_as("boot-2", 5)), (run(used, [Event::Detached]).0, attached_as("boot-1", 6))]
    {
        let (anew, effects) = run(loaded(before), [ephemeral(), again]);
        assert_eq!((anew.state, reports(&effects, "ephemeral"), anew.generation), (State::Unverified, 1, 0));
        assert!(anew.content.is_none() && anew.marks.is_empty());
        assert_eq!(run(anew.clone(), [holds("ext4", "b")]).0.state, State::Blank);
        assert_eq!(run(anew, [blank(), blank()]).0.state, State::Blank);
    }
}

#[test]
fn a_slot_is_what_was_written_to_it_and_reads_as_half_of_it_meanwhile() {
    let (slot, _) = run(record(), [chosen(Action::Slot), attached(), holds("squashfs", "a")]);
    let error = Event::Probed(Err(ProbeError::Read("EIO".into())));
    let (written, effects) = run(slot, [blank(), error, raw::raw("x"), holds("ext4", "b")]);
    assert_eq!(reports(&effects, "discrepancy"), 0);
    assert_eq!((written.state, written.record.discrepancy.as_ref()), (State::Formatted, None));
    assert_eq!(written.content.as_ref().map(Content::name), Some("ext4"));
    assert!(!waits(&written, clock(11)) && waits(&written, clock(10 + PACE)));
    // It is a volume like others again.
    let (ended, _) = run(written, [none_chosen(), holds("xfs", "c")]);
    assert_eq!(ended.content.as_ref().map(Content::name), Some("ext4"));
    assert!(ended.record.discrepancy.is_some());
    // Nobody was seen who wrote while anybody could.
    let (blank_slot, _) = run(record(), [chosen(Action::Slot), attached(), blank(), blank()]);
    assert_eq!(blank_slot.state, State::Blank);
    let (ended, _) = run(blank_slot.clone(), [none_chosen(), blank(), blank()]);
    assert_eq!((ended.state, at(&ended, blank(), 200).state), (State::Unverified, State::Blank));
    let (stopped, _) = run(blank_slot, [Event::Disarmed]);
    let (restarted, _) = run(loaded(stopped), [attached(), blank(), blank()]);
    assert_eq!(restarted.state, State::Unverified);
}

/// What happens under a policy, a permit among it.
fn any_history_with_permits() -> impl Strategy<Value = Vec<(Event, Now)>> {
    let permitted = Event::Permitted(permit(1000));
    any_history(40).prop_flat_map(move |events| {
        let permitted = permitted.clone();
        prop::collection::vec(any::<bool>(), events.len()).prop_map(move |permits| {
            let with = |(event, now): (Event, Now), permits: bool| {
                let before = permits.then(|| (permitted.clone(), now));
                before.into_iter().chain([(event, now)])
            };
            events
                .clone()
                .into_iter()
                .zip(permits)
                .flat_map(|(event, permits)| with(event, permits))
                .collect()
        })
    })
}

proptest! {
    /// Whatever happens, permits among it: no rule by which a format may begin comes of it.
    #[test]
    fn what_is_never_formatted_never_may_be(events in any_history_with_permits()) {
        let (mut volume, _) = run(record(), [chosen(Action::NeverFormat), attached()]);
        for (event, now) in events {
            volume = next(&volume, event.clone(), now).0;
            prop_assert!(!matches!(volume.state, State::Blank | State::Permitted), "{event:?}");
        }
    }

    /// Once it is formatted or mounted in its attachment, an ephemeral volume is as protected as any other.
    #[test]
    fn what_is_in_use_is_not_ephemeral(events in any_history(40)) {
        let fresh = [chosen(Action::Ephemeral), attached(), holds("ntfs", "a")];
        let (mut volume, _) = run(record(), fresh.into_iter().chain([began(), ended(Some(0)), holds("ext4", "a")]));
        for (event, now) in events.into_iter().map(|(event, now)| (by_its_name(event), now)) {
            volume = next(&volume, event, now).0;
            prop_assert_eq!(volume.state, State::Formatted);
        }
    }

    /// Policies come and go as they like: what holds a format is never armed by that.
    #[test]
    fn no_policy_that_comes_and_goes_arms_what_holds_a_format(
        actions in prop::collection::vec(prop::option::of(prop::sample::select(Action::ALL.to_vec())), 0..8),
        events in any_history(8),
    ) {
        let (mut volume, _) = run(record(), [attached(), holds("ext4", "a")]);
        let mut events = events.into_iter().map(|(event, now)| (by_its_name(event), now));
        for action in actions {
            volume = next(&volume, action.map_or_else(none_chosen, chosen), clock(10)).0;
            if let Some((event, now)) = events.next() {
                volume = next(&volume, event, now).0;
            }
            prop_assert!(matches!(volume.state, State::Formatted | State::Exempt), "{volume:?}");
        }
        volume = next(&volume, none_chosen(), clock(10)).0;
        prop_assert_eq!(volume.state, State::Formatted);
    }
}
