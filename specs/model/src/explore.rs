//! Asking a model: stateright looks for a state that breaks a property, and what is here for a state from which
//! there is no way out.
//!
//! A promise such as "every switch can finish" is about ways, not states: from *every* reachable state there is *some* way
//! to an end (in CTL, `AG EF end`). Stateright has no such property; its `eventually` is about every way, loops
//! excluded, and a switch that may be begun and given up again has loops. So the reachable states are numbered, the
//! steps between them kept, and the ends walked backwards: whatever is not met on that walk is stuck.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A model that can tell what happens in it, and what counts as an end.
pub trait Protocol: Model + Clone + Send + Sync + 'static
where
    Self::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
    Self::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
{
    /// One step, in words.
    fn tell(&self, before: &Self::State, action: &Self::Action, after: &Self::State) -> String;

    /// What must stay possible.
    fn endings(&self) -> Vec<Ending<Self>>;
}

/// What must stay possible from every state that can be reached.
pub struct Ending<M: Model> {
    /// The promise, in words.
    pub name: &'static str,
    /// Whether a state keeps it.
    pub reached: fn(&M, &M::State) -> bool,
    /// The steps that may be counted on to get there.
    pub by: fn(&M, &M::Action) -> bool,
}

/// What a search found.
#[derive(Debug)]
pub enum Verdict {
    /// Every property holds in each of so many states.
    Holds {
        /// Distinct states seen.
        states: usize,
    },
    /// A property does not hold.
    Broken {
        /// Its name.
        property: &'static str,
        /// How it comes about, a line a step.
        timeline: Vec<String>,
    },
}

/// Explores all of a model.
pub fn check<M>(model: &M, threads: usize) -> Verdict
where
    M: Protocol,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
{
    let checker =
        model.clone().checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    for property in model.properties() {
        // A model in which nothing ever happens keeps every promise: examples must be found.
        if property.expectation.discovery_is_failure() == found.contains_key(property.name) {
            let timeline = shortest(model, &property).unwrap_or_else(|| vec!["it never happens".to_owned()]);
            return Verdict::Broken { property: property.name, timeline };
        }
    }
    let endings = model.endings();
    let (graph, _) = Graph::of(model, &endings, |_| false);
    for (number, ending) in endings.iter().enumerate() {
        if let Some(stuck) = graph.stuck(number) {
            return Verdict::Broken { property: ending.name, timeline: graph.stuck_way(model, stuck) };
        }
    }
    Verdict::Holds { states: graph.parents.len() }
}

/// Looks for a counterexample to one property, and tells a shortest one.
pub fn hunt<M>(model: &M, name: &str) -> Option<Vec<String>>
where
    M: Protocol,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
{
    if let Some(property) = model.properties().into_iter().find(|property| property.name == name) {
        let wanted = HasDiscoveries::AnyOf([property.name].into());
        let checker = model.clone().checker().finish_when(wanted).spawn_bfs().join();
        checker.discovery(property.name)?;
        return shortest(model, &property);
    }
    let endings: Vec<_> = model.endings().into_iter().filter(|ending| ending.name == name).collect();
    let (graph, _) = Graph::of(model, &endings, |_| false);
    graph.stuck(0).map(|stuck| graph.stuck_way(model, stuck))
}

/// Stateright explores in blocks, and what it finds first need not be the shortest.
fn shortest<M>(model: &M, property: &Property<M>) -> Option<Vec<String>>
where
    M: Protocol,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
{
    if !property.expectation.discovery_is_failure() {
        return None;
    }
    let (graph, found) = Graph::of(model, &[], |state| !(property.condition)(model, state));
    found.map(|state| graph.way(model, state))
}

/// Every state that can be reached, by number in the order of discovery, and every step.
struct Graph {
    /// From which state each was reached first, and by which of that state's actions.
    parents: Vec<(u32, u16)>,
    /// Steps, and as a bit for each ending whether it may be counted on.
    steps: Vec<(u32, u32, u8)>,
    /// For each state, as a bit for each ending, whether it keeps it.
    ends: Vec<u8>,
}

impl Graph {
    /// Explores until a state is the one that is looked for.
    fn of<M>(model: &M, endings: &[Ending<M>], sought: impl Fn(&M::State) -> bool) -> (Graph, Option<u32>)
    where
        M: Model,
        M::State: Hash,
    {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let mut graph = Graph { parents: Vec::new(), steps: Vec::new(), ends: Vec::new() };
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut queue = VecDeque::new();
        let bits = |test: &dyn Fn(&Ending<M>) -> bool| {
            endings.iter().enumerate().fold(0u8, |bits, (number, ending)| bits | (u8::from(test(ending)) << number))
        };
        for state in model.init_states() {
            numbers.insert(hasher.hash_one(&state), graph.add(u32::MAX, 0));
            graph.ends.push(bits(&|ending| (ending.reached)(model, &state)));
            queue.push_back(state);
        }
        let mut actions = Vec::new();
        let mut from = 0;
        while let Some(state) = queue.pop_front() {
            if sought(&state) {
                return (graph, Some(from));
            }
            model.actions(&state, &mut actions);
            for (index, action) in actions.drain(..).enumerate() {
                let by = bits(&|ending| (ending.by)(model, &action));
                let Some(next) = model.next_state(&state, action) else { continue };
                let to = *numbers.entry(hasher.hash_one(&next)).or_insert_with(|| {
                    graph.ends.push(bits(&|ending| (ending.reached)(model, &next)));
                    queue.push_back(next);
                    graph.add(from, index)
                });
                graph.steps.push((from, to, by));
            }
            from += 1;
        }
        (graph, None)
    }

    fn add(&mut self, parent: u32, action: usize) -> u32 {
        let number = u32::try_from(self.parents.len()).expect("fewer than 2^32 states");
        self.parents.push((parent, u16::try_from(action).expect("fewer than 2^16 actions in a state")));
        number
    }

    /// The first state from which an ending is out of reach.
    fn stuck(&self, ending: usize) -> Option<u32> {
        // The steps by the state they lead to, so that they can be walked backwards.
        let mut starts = vec![0u32; self.parents.len() + 1];
        let counted = || self.steps.iter().filter(|step| step.2 & (1 << ending) != 0);
        for (_, to, _) in counted() {
            starts[*to as usize + 1] += 1;
        }
        for state in 1..starts.len() {
            starts[state] += starts[state - 1];
        }
        let mut sources = vec![0u32; starts[self.parents.len()] as usize];
        let mut filled = starts.clone();
        for (from, to, _) in counted() {
            sources[filled[*to as usize] as usize] = *from;
            filled[*to as usize] += 1;
        }
        let mut free: Vec<bool> = self.ends.iter().map(|ends| ends & (1 << ending) != 0).collect();
        let mut walk: Vec<u32> = (0..).zip(&free).filter(|(_, free)| **free).map(|(state, _)| state).collect();
        while let Some(state) = walk.pop() {
            for source in &sources[starts[state as usize] as usize..starts[state as usize + 1] as usize] {
                if !std::mem::replace(&mut free[*source as usize], true) {
                    walk.push(*source);
                }
            }
        }
        (0..).zip(&free).find(|(_, free)| !**free).map(|(state, _)| state)
    }

    /// How a state was reached that has no way out, in words.
    fn stuck_way<M>(&self, model: &M, state: u32) -> Vec<String>
    where
        M: Protocol,
        M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
    {
        let mut told = self.way(model, state);
        told.push("and there is no way on".to_owned());
        told
    }

    /// How a state was reached, in words.
    fn way<M>(&self, model: &M, state: u32) -> Vec<String>
    where
        M: Protocol,
        M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
        M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
    {
        let mut indices = Vec::new();
        let mut at = state;
        while self.parents[at as usize].0 != u32::MAX {
            indices.push(self.parents[at as usize].1);
            at = self.parents[at as usize].0;
        }
        let mut told = Vec::new();
        let mut before = model.init_states().swap_remove(at as usize);
        for index in indices.into_iter().rev() {
            let mut actions = Vec::new();
            model.actions(&before, &mut actions);
            let action = actions.swap_remove(usize::from(index));
            let Some(after) = model.next_state(&before, action.clone()) else { break };
            told.push(model.tell(&before, &action, &after));
            before = after;
        }
        told
    }
}
