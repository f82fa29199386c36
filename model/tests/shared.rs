//! Every interleaving of the steps of nodes that share a volume, and for each guard of their protocol that is
//! broken on purpose the proof that the checker sees it.

mod checker;

use checker::holds;
use format_guard_model::{Cluster, ClusterBreak};

/// Two nodes, for as long as a lease can be given twice.
fn two() -> Cluster {
    Cluster { nodes: 2, horizon: 5, kills: 0, broken: None }
}

#[test]
fn two_nodes_that_may_be_paused() {
    holds("two nodes", two());
}

#[test]
fn two_nodes_one_of_whose_agents_is_killed() {
    holds("two nodes, a kill", Cluster { horizon: 3, kills: 1, ..two() });
}

fn is_found(broken: ClusterBreak) {
    checker::is_found(broken, Cluster { horizon: 4, broken: Some(broken), ..two() });
}

#[test]
fn a_rule_without_an_end_is_found() {
    is_found(ClusterBreak::NoEnd);
}

#[test]
fn a_lease_that_is_counted_from_its_answer_is_found() {
    is_found(ClusterBreak::CountsFromTheAnswer);
}

#[test]
fn clocks_that_go_alike_are_not_relied_on() {
    is_found(ClusterBreak::NoMargin);
}

#[test]
fn arming_without_a_claim_is_found() {
    is_found(ClusterBreak::NoClaim);
}

#[test]
fn a_claim_that_looks_at_no_record_is_found() {
    is_found(ClusterBreak::ClaimsBlindly);
}

#[test]
fn a_claim_of_an_earlier_lease_is_found() {
    is_found(ClusterBreak::KeepsTheClaim);
}

#[test]
fn probes_from_before_the_claim_are_found() {
    is_found(ClusterBreak::ProbesBeforeTheClaim);
}
