//! Every interleaving of the protocol's steps, and for each of its guards that is broken on purpose the proof
//! that the checker sees it.

mod checker;

use checker::holds;
use format_guard_model::{Break, Node};

/// One process that goes by a formatter's name, on a device that appears once; nothing fails.
fn node() -> Node {
    Node {
        formatters: 1,
        monitors: 0,
        earlier: false,
        losses: 0,
        clock_jumps: false,
        attachments: 1,
        cuts: 0,
        kills: 0,
        failures: 0,
        outages: 0,
        permits: 0,
        broken: None,
    }
}

/// Two such processes.
fn two() -> Node {
    Node { formatters: 2, ..node() }
}

#[test]
fn the_power_is_cut_and_the_device_comes_and_goes() {
    holds("power cut, re-attach", Node { attachments: 2, cuts: 1, ..two() });
}

#[test]
fn the_power_is_cut_and_the_agent_is_killed_or_stopped() {
    holds("power cut, kill", Node { cuts: 1, kills: 1, ..two() });
}

#[test]
fn the_power_is_cut_and_a_permit_is_given() {
    holds("power cut, permit", Node { cuts: 1, permits: 1, ..two() });
}

#[test]
fn everything_fails_once_under_one_formatter() {
    holds("everything once", Node { cuts: 1, kills: 1, failures: 1, permits: 1, ..node() });
}

#[test]
fn nothing_can_be_stored_for_a_while() {
    holds("store full, kill", Node { outages: 1, kills: 1, ..node() });
    holds("store full, power cut", Node { outages: 1, cuts: 1, ..node() });
    holds("store full, re-attach", Node { outages: 1, attachments: 2, ..node() });
}

#[test]
fn a_monitor_of_a_virtual_machine_writes_a_format() {
    holds("a monitor, power cut", Node { monitors: 1, cuts: 1, ..node() });
    holds("a monitor, re-attach", Node { monitors: 1, attachments: 2, ..node() });
}

#[test]
fn a_format_lies_there_that_is_older_than_the_guard() {
    holds("an earlier format", Node { earlier: true, cuts: 1, ..node() });
    holds("an earlier format, permit", Node { earlier: true, permits: 1, ..two() });
}

#[test]
fn the_clock_is_set() {
    holds("clock set, power cut", Node { clock_jumps: true, cuts: 1, ..node() });
}

#[test]
fn the_database_is_lost() {
    holds("database lost", Node { losses: 1, kills: 2, ..two() });
}

#[test]
#[ignore = "larger, some minutes: cargo test -p format-guard-model -- --ignored"]
fn larger() {
    holds("kill, re-attach", Node { attachments: 2, kills: 1, ..two() });
    holds("a monitor, re-attach, kill", Node { monitors: 1, attachments: 2, kills: 1, ..node() });
    holds("three formatters, permit", Node { formatters: 3, permits: 1, ..node() });
    holds("kill, permit", Node { kills: 1, permits: 1, ..two() });
    holds("store full, kill, two", Node { outages: 1, kills: 1, ..two() });
    holds(
        "everything once, re-attach",
        Node { attachments: 2, cuts: 1, kills: 1, failures: 1, permits: 1, ..node() },
    );
}

fn is_found(broken: Break, mut node: Node) {
    node.broken = Some(broken);
    checker::is_found(broken, node);
}

#[test]
fn a_rule_put_before_its_record_is_found() {
    is_found(Break::RuleBeforeStore, node());
}

#[test]
fn a_store_whose_failure_is_ignored_is_found() {
    is_found(Break::IgnoresFailingStore, Node { failures: 1, ..node() });
}

#[test]
fn a_formatter_that_is_let_go_of_before_its_format_is_stored_is_found() {
    is_found(Break::ReleasesUnstored, Node { outages: 1, kills: 1, ..two() });
}

#[test]
fn a_record_that_is_not_stored_later_is_found() {
    is_found(Break::ForgetsUnstored, Node { outages: 1, attachments: 2, ..two() });
}

#[test]
fn trust_in_what_was_armed_before_a_power_cut_is_found() {
    is_found(Break::TrustsWhatWasArmed, Node { cuts: 1, ..two() });
}

#[test]
fn a_formatters_success_that_is_forgotten_is_found() {
    is_found(Break::ForgetsSuccess, two());
}

#[test]
fn a_monitor_that_is_taken_for_a_formatter_is_found() {
    is_found(Break::TakesAllForFormatters, Node { monitors: 1, ..node() });
}

#[test]
fn a_formatter_that_wrote_nothing_and_is_taken_for_one_that_did_is_found() {
    is_found(Break::TakesAllForWriters, Node { earlier: true, permits: 1, ..two() });
}

#[test]
fn a_quarantine_by_the_clock_that_people_set_is_found() {
    is_found(Break::MeasuresByTheWallClock, Node { clock_jumps: true, cuts: 1, ..two() });
}

#[test]
fn a_lost_database_that_the_next_agent_knows_nothing_of_is_found() {
    is_found(Break::ForgetsLostDatabase, Node { losses: 1, kills: 2, ..two() });
}

#[test]
fn a_format_that_is_dropped_at_a_detach_is_found() {
    is_found(Break::DropsAtDetach, Node { attachments: 2, ..two() });
}

#[test]
fn a_format_that_is_dropped_at_a_start_is_found() {
    is_found(Break::DropsAtStart, Node { attachments: 2, kills: 1, ..two() });
}
