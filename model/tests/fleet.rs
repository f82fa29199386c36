//! Every interleaving of the steps of nodes with the product's own records that share a volume, and for each
//! guard that is broken on purpose the proof that the checker sees it.

mod checker;

use checker::holds;
use format_guard_model::{Fleet, FleetBreak};

/// Two nodes whose leases do not end.
fn two() -> Fleet {
    Fleet { nodes: 2, horizon: 0, permits: 0, kills: 0, losses: 0, broken: None }
}

#[test]
fn an_agent_is_killed_and_one_loses_its_records() {
    holds("two nodes, a kill, a loss", Fleet { kills: 1, losses: 1, ..two() });
}

#[test]
fn an_agent_is_killed_and_a_permit_is_given() {
    holds("two nodes, a kill, a permit", Fleet { kills: 1, permits: 1, ..two() });
}

#[test]
#[ignore = "larger, many minutes: cargo test -p format-guard-model -- --ignored"]
fn larger_fleets() {
    holds("two nodes, time", Fleet { horizon: 1, ..two() });
    holds("two nodes, a loss, a permit", Fleet { losses: 1, permits: 1, ..two() });
    holds("two nodes, time, a permit", Fleet { horizon: 1, permits: 1, ..two() });
    holds("two nodes, time, a kill", Fleet { horizon: 1, kills: 1, ..two() });
    holds("two nodes, time, a loss", Fleet { horizon: 1, losses: 1, ..two() });
}

fn is_found(broken: FleetBreak, mut fleet: Fleet) {
    fleet.broken = Some(broken);
    checker::is_found(broken, fleet);
}

#[test]
fn a_late_word_that_is_acted_upon_is_found() {
    is_found(FleetBreak::ActsOnLateWords, Fleet { permits: 1, ..two() });
}

#[test]
fn a_claim_that_is_taken_over_without_doubt_is_found() {
    is_found(FleetBreak::TakesOverWithoutDoubt, Fleet { horizon: 1, ..two() });
}

#[test]
fn a_claim_that_is_taken_for_ones_own_is_found() {
    is_found(FleetBreak::TakesTheClaimForItsOwn, Fleet { losses: 1, ..two() });
}

#[test]
fn a_loss_that_is_forgotten_is_found() {
    is_found(FleetBreak::ForgetsTheLoss, Fleet { kills: 1, losses: 1, ..two() });
}

#[test]
fn a_claim_that_is_given_up_before_the_kernel_is_told_is_found() {
    is_found(FleetBreak::GivesUpAtOnce, two());
}

#[test]
fn a_renewal_by_one_who_leads_no_more_is_found() {
    is_found(FleetBreak::StaleLeaderRenews, Fleet { horizon: 1, ..two() });
}
