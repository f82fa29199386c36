//! What the checker is asked of every model.

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

/// Every invariant holds in every state.
pub(crate) fn holds<M>(name: &str, model: M)
where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>
        + Send
        + Sync
        + 'static,
{
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states", checker.unique_state_count());
    checker.assert_properties();
}

/// The checker finds a way to break an invariant of a model with this guard broken.
pub(crate) fn is_found<M>(broken: impl Debug, model: M)
where
    M: Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>
        + Send
        + Sync
        + 'static,
{
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let failed: Vec<_> = checker
        .discoveries()
        .into_iter()
        .filter(|(name, _)| {
            matches!(checker.discovery_classification(name), DiscoveryClassification::Counterexample)
        })
        .collect();
    assert!(!failed.is_empty(), "{broken:?} was not found");
    for (name, path) in failed {
        println!("{broken:?}: not so: {name}: {:?}", path.into_actions());
    }
}
