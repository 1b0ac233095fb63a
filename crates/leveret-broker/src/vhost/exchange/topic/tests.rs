use std::collections::BTreeSet;
use std::iter;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::vhost::exchange::naive::topic_matches;

/// The targets that a key matches, and how many steps that took, if the search stops each time after so many.
fn search(
    index: &TopicIndex<u32>,
    routing_key: &str,
    scratch: &mut TopicScratch,
    at_once: usize,
) -> (Vec<u32>, usize) {
    let (mut found, mut steps) = (BTreeSet::new(), 0);
    index.begin(routing_key, scratch);
    loop {
        let mut left = at_once;
        let is_done = index.go_on(routing_key, scratch, &mut left, |target| {
            found.insert(target);
        });
        steps += at_once - left;
        if is_done {
            return (found.into_iter().collect(), steps);
        }
        assert_eq!(left, 0, "it stops when it has to");
    }
}

fn matches(index: &TopicIndex<u32>, routing_key: &str) -> Vec<u32> {
    search(index, routing_key, &mut TopicScratch::default(), usize::MAX).0
}

fn index_of(keys: &[&str]) -> TopicIndex<u32> {
    let mut index = TopicIndex::new(1);
    for (target, key) in (0..).zip(keys) {
        index.insert(key, target);
    }
    index
}

fn does_match(binding_key: &str, routing_key: &str) -> bool {
    !matches(&index_of(&[binding_key]), routing_key).is_empty()
}

// The rules as the documentation has them.

#[test]
fn the_animals_of_the_tutorial_go_to_the_queues_of_the_tutorial() {
    // RabbitMQ tutorial 5, "Topics": Q1 is bound with the first key, Q2 with the others.
    let mut index = TopicIndex::new(1);
    index.insert("*.orange.*", 1);
    index.insert("*.*.rabbit", 2);
    index.insert("lazy.#", 2);
    for (routing_key, queues) in [
        ("quick.orange.rabbit", &[1, 2][..]),
        ("lazy.orange.elephant", &[1, 2]),
        ("quick.orange.fox", &[1]),
        ("lazy.brown.fox", &[2]),
        ("lazy.pink.rabbit", &[2]), // once, although two bindings match
        ("quick.brown.fox", &[]),
        ("orange", &[]),
        ("quick.orange.new.rabbit", &[]),
        ("lazy.orange.new.rabbit", &[2]),
        ("lazy", &[2]),
    ] {
        assert_eq!(matches(&index, routing_key), queues, "{routing_key:?}");
    }
}

#[test]
fn a_star_is_exactly_one_word_and_a_hash_is_any_number_of_words() {
    for (binding_key, matching, others) in [
        ("kern.*", &["kern.critical", "kern.", "kern.*"][..], &["kern", "kern.a.b", "", ".kern"][..]),
        ("*", &["a", "*", "#"], &["", ".", "a.b"]),
        ("#", &["", "a", ".", "a..b", "#"], &[]),
        ("#.a", &["a", ".a", "b.c.a", "a.a"], &["", "a.b", "a."]),
        ("a.#", &["a", "a.", "a.b.c"], &["", "b.a", ".a"]),
        ("a.#.b", &["a.b", "a.x.b", "a.b.b", "a...b"], &["a", "b", "a.b.c"]),
        ("#.*", &["a", ".", "a.b"], &[""]),
        ("*.#.*", &["a.b", ".", "a.b.c"], &["", "a"]),
        ("#.#", &["", "a", "a.b"], &[]),
        ("a.b", &["a.b"], &["a", "a.b.c", "a.*", "a.#", "A.b"]),
    ] {
        for key in matching {
            assert!(does_match(binding_key, key), "{binding_key:?} does not match {key:?}");
        }
        for key in others {
            assert!(!does_match(binding_key, key), "{binding_key:?} matches {key:?}");
        }
    }
}

#[test]
fn the_empty_key_has_no_words() {
    assert_eq!(matches(&index_of(&["", "#", "#.#", "*", ".", "*.*"]), ""), [0, 1, 2]);
    assert_eq!(matches(&index_of(&["", "#", "#.#", "*", ".", "*.*"]), "."), [1, 2, 4, 5]);
    assert!(does_match("a.*.b", "a..b"), "nothing between two dots is a word too");
    assert!(does_match("a..b", "a..b"));
}

#[test]
fn wildcards_are_wildcards_only_as_whole_words_of_binding_keys() {
    assert!(!does_match("a*", "ab"));
    assert!(!does_match("a.##", "a.b.c"));
    assert!(does_match("a.##", "a.##"));
    assert!(!does_match("a.b", "a.*"));
    assert!(!does_match("a.b", "#"));
}

#[test]
fn targets_come_in_ascending_order_and_once() {
    let mut index = TopicIndex::new(1);
    for (key, target) in [("a.b", 7), ("#", 9), ("*.b", 3), ("a.*", 7), ("#.b.#", 3), ("a.#", 1)] {
        index.insert(key, target);
    }
    assert_eq!(matches(&index, "a.b"), [1, 3, 7, 9]);
}

// Adding and removing.

#[test]
fn a_binding_made_twice_has_to_be_removed_twice() {
    let mut index = index_of(&["a.#"]);
    index.insert("a.#", 0);
    index.remove("a.#", 0);
    assert_eq!(matches(&index, "a.b"), [0]);
    index.remove("a.#", 0);
    assert_eq!(matches(&index, "a.b"), []);
    assert!(index.is_empty());
}

#[test]
fn removing_what_is_not_there_changes_nothing() {
    let mut index = index_of(&["a.b"]);
    for key in ["a", "a.b.c", "b", "", "*", "#"] {
        index.remove(key, 0);
    }
    index.remove("a.b", 1);
    assert_eq!(matches(&index, "a.b"), [0]);
}

#[test]
fn nodes_are_used_again_and_an_empty_index_holds_only_the_root() {
    let mut index = index_of(&["keep"]);
    for round in 0..100 {
        index.insert(&format!("word{round}.*.#.end"), 1);
        index.remove(&format!("word{round}.*.#.end"), 1);
    }
    assert_eq!(index.nodes.len(), 1 + 1 + 4);
    index.remove("keep", 0);
    assert!(index.is_empty());
    assert_eq!((index.nodes.len(), index.literals.len()), (1, 0));
}

#[test]
fn one_scratch_serves_any_number_of_indexes() {
    let (left, right) = (index_of(&["#", "a.#.b"]), index_of(&["x", "#.b", "#.#", "y"]));
    let mut scratch = TopicScratch::default();
    for at_once in [1, 2, usize::MAX] {
        assert_eq!(search(&left, "a.b", &mut scratch, at_once).0, [0, 1]);
        assert_eq!(search(&right, "a.b", &mut scratch, at_once).0, [1, 2]);
    }
}

// The bound on the work.

/// The look-ups of one search. None goes to a node or one of its children twice.
fn lookups(index: &TopicIndex<u32>, routing_key: &str) -> usize {
    let (found, steps) = search(index, routing_key, &mut TopicScratch::default(), usize::MAX);
    let lookups = (steps - found.len()) / STEPS_PER_LOOKUP;
    assert!(lookups <= 2 * index.nodes.len(), "{lookups} look-ups");
    lookups
}

fn repeated(word: &str, times: usize) -> String {
    iter::repeat_n(word, times).collect::<Vec<_>>().join(".")
}

#[test]
fn many_hashes_cost_nodes_and_not_words() {
    let key = repeated("a", 128);
    for (binding_key, nodes_count) in [
        (repeated("#", 60), 61),
        (repeated("#", 128), 129),
        (repeated("#.a", 64), 129),
        (repeated("#.*", 64), 129),
        (format!("{}.b", repeated("#.a", 63)), 128),
        (format!("{}.b", repeated("#.*", 63)), 128),
    ] {
        let index = index_of(&[&binding_key]);
        assert_eq!(index.nodes.len(), nodes_count);
        assert!(lookups(&index, &key) <= 2 * nodes_count);
        assert_eq!(matches(&index, &key).len(), usize::from(!binding_key.ends_with('b')));
    }
}

#[test]
fn all_hostile_keys_together_cost_nodes_and_not_words() {
    let patterns = ["#", "*", "a", "#.a", "#.*", "*.#", "a.#", "#.#.a", "#.a.*"];
    let keys: Vec<String> = patterns.iter().map(|p| repeated(p, 256 / (p.len() + 1))).collect();
    let index = index_of(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    for key in [repeated("a", 128), repeated("b", 128), ".".repeat(255), String::new()] {
        assert!(lookups(&index, &key) <= 2 * index.nodes.len());
    }
}

#[test]
fn keys_of_other_words_are_not_looked_at() {
    let mut index = TopicIndex::new(1);
    for n in 0..10_000 {
        index.insert(&format!("area.{n}.#"), n);
        index.insert(&format!("#.tail{n}"), n);
        index.insert(&format!("*.{n}"), n);
    }
    assert_eq!(matches(&index, "area.77"), [77]);
    assert!(lookups(&index, "area.77") <= 12);
    assert!(lookups(&index, "area.77.x.tail5") <= 20);
}

/// Behind a `#` every word may be next: of few children and many words, or many children and few words, the fewer count.
#[test]
fn a_node_costs_its_children_or_the_words_that_follow_whichever_are_fewer() {
    let mut index = TopicIndex::new(1);
    for n in 0..10_000 {
        index.insert(&format!("#.many{n}"), n);
    }
    assert!(lookups(&index, "a.b.c.many7") <= 10);
    let words: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let few = index_of(&["#.7", "#.x", "#.y"]);
    assert!(lookups(&few, &words.join(".")) <= 8);
}

#[test]
fn the_longest_key_has_a_place_behind_its_last_word() {
    let key = ".".repeat(255);
    for binding_key in ["#", "#.*", "*.#", &key, "#.#.*.*.#"] {
        assert!(does_match(binding_key, &key), "{binding_key:?}");
    }
    for binding_key in ["*", "#.a", &key[1..]] {
        assert!(!does_match(binding_key, &key), "{binding_key:?}");
    }
}

// The index against a matcher that is obviously right.

#[derive(Default)]
struct Model(Vec<(String, u32)>);

impl Model {
    fn remove(&mut self, key: &str, target: u32) {
        if let Some(at) = self.0.iter().position(|(k, t)| k == key && *t == target) {
            self.0.swap_remove(at);
        }
    }

    fn matches(&self, routing_key: &str) -> Vec<u32> {
        let does_match = |pattern: &str| topic_matches(pattern, routing_key);
        let found: BTreeSet<_> = self.0.iter().filter(|(k, _)| does_match(k)).map(|(_, t)| *t).collect();
        found.into_iter().collect()
    }

    /// The distinct beginnings of keys that the trie needs a node for.
    fn nodes_count(&self) -> usize {
        let mut beginnings = BTreeSet::from([vec![]]);
        for (key, _) in &self.0 {
            let key: Vec<_> = words(key).collect();
            beginnings.extend((0..=key.len()).map(|end| key[..end].to_vec()));
        }
        beginnings.len()
    }
}

#[test]
fn every_short_pattern_matches_every_short_key_as_the_model_says() {
    fn all_keys(alphabet: &[&str], words_max: usize) -> Vec<String> {
        let mut keys = vec![String::new()];
        let mut longest: Vec<String> = alphabet.iter().map(ToString::to_string).collect();
        for _ in 0..words_max {
            keys.extend(longest.iter().filter(|key| !key.is_empty()).cloned());
            longest = longest.iter().flat_map(|key| alphabet.iter().map(move |w| format!("{key}.{w}"))).collect();
        }
        keys
    }
    let patterns = all_keys(&["a", "b", "*", "#", ""], 4);
    let index = index_of(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
    let model = Model(patterns.iter().cloned().zip(0..).collect());
    let mut pairs_matching = 0;
    for key in all_keys(&["a", "b", "c", ""], 4) {
        let found = matches(&index, &key);
        assert_eq!(found, model.matches(&key), "{key:?}");
        pairs_matching += found.len();
    }
    assert!(pairs_matching > 10_000, "only {pairs_matching} pairs match");
}

#[derive(Clone, Debug)]
enum Step {
    Insert(String, u32),
    /// Removes a binding inserted before, if there is one: the number picks it.
    RemoveKnown(usize),
    Remove(String, u32),
    Match(String),
}

fn key_of(alphabet: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(alphabet), 0..6).prop_map(|words| words.join("."))
}

fn step() -> impl Strategy<Value = Step> {
    let binding_key = || key_of(&["a", "a", "b", "*", "*", "#", "#", ""]);
    prop_oneof![
        7 => (binding_key(), 0..6u32).prop_map(|(key, target)| Step::Insert(key, target)),
        2 => any::<usize>().prop_map(Step::RemoveKnown),
        1 => (binding_key(), 0..6u32).prop_map(|(key, target)| Step::Remove(key, target)),
        4 => key_of(&["a", "a", "a", "b", "c", "", "*", "#"]).prop_map(Step::Match),
    ]
}

fn steps_of_a_run() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

/// What every node says of its literal children is what they say of it.
fn check_structure(index: &TopicIndex<u32>) -> Result<(), TestCaseError> {
    let mut listed = 0;
    for nth in 0..index.nodes.len() {
        let parent = NodeId::last_of(nth + 1);
        let (mut previous, mut next) = (None, index.node(parent).first_literal);
        let mut children = 0;
        while let Some(child) = next {
            let node = index.node(child);
            prop_assert_eq!((node.parent, node.previous), (parent, previous));
            (previous, next) = (Some(child), node.next);
            children += 1;
        }
        prop_assert_eq!(children, index.node(parent).literals_count);
        listed += children as usize;
    }
    prop_assert_eq!(listed, index.literals.len());
    Ok(())
}

/// Does the steps with index and model side by side, and returns how many targets each match found.
fn run(steps: Vec<Step>) -> Result<Vec<usize>, TestCaseError> {
    let mut index = TopicIndex::new(7);
    let mut model = Model::default();
    let mut scratch = TopicScratch::default();
    let mut counts = vec![];
    for step in steps {
        match step {
            Step::Insert(key, target) => {
                index.insert(&key, target);
                model.0.push((key, target));
            }
            Step::RemoveKnown(pick) if !model.0.is_empty() => {
                let (key, target) = model.0.swap_remove(pick % model.0.len());
                index.remove(&key, target);
            }
            Step::RemoveKnown(_) => {}
            Step::Remove(key, target) => {
                index.remove(&key, target);
                model.remove(&key, target);
            }
            Step::Match(key) => {
                let expected = model.matches(&key);
                for at_once in [1, 2, 3, usize::MAX] {
                    let (found, _) = search(&index, &key, &mut scratch, at_once);
                    prop_assert_eq!(&found, &expected, "{:?}", key);
                }
                counts.push(expected.len());
            }
        }
        prop_assert_eq!(index.is_empty(), model.0.is_empty());
        prop_assert_eq!(index.nodes.len() - index.free.len(), model.nodes_count());
        check_structure(&index)?;
    }
    Ok(counts)
}

proptest! {
    #[test]
    fn after_any_inserts_and_removes_the_index_matches_what_the_model_matches(steps in steps_of_a_run()) {
        run(steps)?;
    }
}

#[test]
fn the_random_runs_are_worth_running() {
    let mut runner = TestRunner::deterministic();
    let mut counts = vec![];
    for _ in 0..200 {
        let steps = steps_of_a_run().new_tree(&mut runner).unwrap().current();
        counts.extend(run(steps).unwrap());
    }
    let some = counts.iter().filter(|&&count| count > 0).count();
    let several = counts.iter().filter(|&&count| count > 1).count();
    println!("of {} matches {some} find something, {several} several targets", counts.len());
    assert!((counts.len() * 4 / 10..counts.len() * 9 / 10).contains(&some));
    assert!(several > counts.len() * 2 / 10);
}
