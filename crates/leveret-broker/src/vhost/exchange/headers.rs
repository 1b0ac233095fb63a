//! Which bindings of a headers exchange the headers of a message match.
//!
//! Owns: what the arguments of each binding require, and the targets that go with it.
//! Must not know: what a target is, or where headers come from.
//! Invariant: every pattern has a target, and hangs under the hooks it says it hangs under.
//!
//! We follow `rabbit_exchange_type_headers` and `mc_amqpl` of RabbitMQ 4:
//! - `x-match` says whether `all` (also when absent) or `any` of the other arguments have to fit. Arguments whose
//!   names start with `x-` do not take part, unless it says `all-with-x` or `any-with-x`. If nothing is left, `all`
//!   matches every message and `any` none.
//! - An argument fits if the message has a header of that name and an equal value. A void argument fits any value,
//!   a void header fits only a void argument.
//! - Values are equal if Erlang's `=:=` says so of what RabbitMQ decodes, at the top level without types:
//!   integers of all widths compare, and so do both widths of floats, strings and byte arrays, and the empty array
//!   and the empty table; an integer never equals a float, nor (since Erlang 27) 0.0 equal -0.0. Inside of arrays and tables the types
//!   have to be the same too, and the fields of a table in the same order.
//! - RabbitMQ counts the timestamps of a message in milliseconds here, but those of a binding in seconds. So a
//!   timestamp in a binding equals no useful timestamp in a message. It does equal an integer of that many seconds.
//! - If the message has several headers of one name, the last counts. If a binding has several arguments of one
//!   name, each stands for itself, so that `all` of them never fit.
//!
//! Bindings that require the same are one pattern. To be found, a pattern hangs under hooks, each a name, or a name
//! with a value: `any` under all it requires, `all` under one of them, the one with the fewest patterns so far. Each
//! header of a message looks up two hooks, and what hangs there is compared with the whole message. Where even the
//! fewest would be several, an `all` hangs nowhere itself: the set of its names does, and finds it by all of its fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::hash::BuildHasher;
use std::mem;
use std::ops::{Bound, Range};

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use leveret_amqp::{Table, Value};

use self::schemas::{SchemaId, Schemas};
use crate::limits::STEPS_PER_LOOKUP;
use crate::memory::BLOCK_BYTES_LEAST;

mod schemas;
#[cfg(test)]
mod tests;

/// How much of a value is quoted in an error: a reply text holds no more.
const QUOTED_BYTES_MAX: usize = 255;

/// An `x-match` argument that a headers exchange refuses, as RabbitMQ says it. Values are written as Erlang terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidXMatch {
    /// A string, but none of the four.
    #[error("Invalid x-match field value {value}; expected all, any, all-with-x, or any-with-x")]
    Value {
        /// The string.
        value: String,
    },
    /// Not a string.
    #[error("Invalid x-match field type {type_name} (value {value}); expected longstr")]
    Type {
        /// RabbitMQ's name of the type it has instead.
        type_name: &'static str,
        /// Its value.
        value: String,
    },
}

/// The bindings of one headers exchange, each with its targets.
pub(crate) struct HeadersIndex<T> {
    patterns: Vec<Pattern<T>>,
    /// Patterns without targets, to be used again.
    free: Vec<PatternId>,
    /// Finds the pattern of a binding. Never iterated.
    by_requirements: HashTable<PatternId>,
    /// Never iterated.
    hooks: HashTable<Hook>,
    schemas: Schemas,
    /// The bindings that require nothing: every message matches.
    unconditional: BTreeMap<T, u32>,
    hasher: FixedState,
}

/// How far the search for one message has come. The room is kept so that the next one need not allocate: it grows with
/// the headers of the largest message, which the frame limits. Any index can use it.
#[derive(Debug, Default)]
pub(crate) struct HeadersScratch {
    /// The message, if it was read.
    message: Message,
    is_read: bool,
    /// Where to go on: first with the bindings that require nothing, then at the hooks, two for each field of the message.
    hook: usize,
    at: At,
    /// A bit for each pattern: whether it was looked at.
    seen: Vec<u64>,
}

/// How far a search has come at one hook: the last that was looked at.
#[derive(Clone, Copy, Debug)]
enum At {
    Patterns(Option<PatternId>),
    Schemas(Option<SchemaId>),
}

impl Default for At {
    fn default() -> Self {
        At::Patterns(None)
    }
}

/// Patterns under one value that are compared with each message that has it. Beyond that, those of other values are found
/// by all of their fields.
const PATTERNS_PER_HOOK: usize = 2;

/// What a tree takes for the first of its numbers.
const TREE_LEAF_BYTES: usize = 64;

/// Bytes of a field that count as another step.
const BYTES_PER_STEP: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PatternId(u32);

struct Pattern<T> {
    requirements: Requirements,
    hangs: Hangs,
    /// With the number of bindings that come to the same: they can differ in arguments that take no part.
    targets: BTreeMap<T, u32>,
}

/// Where a pattern is found.
#[derive(Debug)]
enum Hangs {
    /// Under these of its fields.
    Under(Range<usize>),
    /// With all others that require the same names.
    With(SchemaId),
}

/// What is left of the arguments of a binding: distinct fields in ascending order, see [`push_field`].
#[derive(PartialEq, Eq, Hash)]
struct Requirements {
    mode: Mode,
    fields: Vec<Box<[u8]>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Mode {
    All,
    Any,
}

struct Hook {
    field: Box<[u8]>,
    patterns: BTreeSet<PatternId>,
    /// Under a name only.
    schemas: BTreeSet<SchemaId>,
}

/// The headers of a message: one field for each name, in ascending order.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    fields: Vec<Range<usize>>,
}

impl<T: Copy + Ord> HeadersIndex<T> {
    /// An index of no bindings. The seed decides where hooks are in the hash table, and nothing that can be seen.
    pub(crate) fn new(seed: u64) -> Self {
        HeadersIndex {
            patterns: vec![],
            free: vec![],
            by_requirements: HashTable::new(),
            hooks: HashTable::new(),
            schemas: Schemas::default(),
            unconditional: BTreeMap::new(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Whether a headers exchange accepts a binding with these arguments.
    pub(crate) fn check(arguments: Table<'_>) -> Result<(), InvalidXMatch> {
        XMatch::of(arguments).map(|_| ())
    }

    /// What a binding takes in memory at most: a pattern, and for each argument a field, once more where it is found, and a hook with
    /// leaves of two trees. The lists may have room for as many again.
    pub(crate) fn bytes(arguments: Table<'_>) -> usize {
        let pattern = 2 * size_of::<Pattern<T>>() + TREE_LEAF_BYTES;
        let field = size_of::<Box<[u8]>>() + 2 * (BLOCK_BYTES_LEAST + size_of::<Hook>() + TREE_LEAF_BYTES);
        pattern + 2 * arguments.as_bytes().len() + field * arguments.iter().count()
    }

    /// Adds a binding. One that is there already is counted.
    pub(crate) fn insert(&mut self, arguments: Table<'_>, target: T) {
        let requirements = Requirements::of(arguments);
        let targets = match (requirements.mode, &requirements.fields[..]) {
            (Mode::All, []) => &mut self.unconditional,
            (Mode::Any, []) => return,
            (_, [..]) => {
                let id = self.find(&requirements).unwrap_or_else(|| self.add_pattern(requirements));
                &mut self.pattern_mut(id).targets
            }
        };
        *targets.entry(target).or_insert(0) += 1;
    }

    /// Takes one binding away, if there is one. Arguments that require the same are the same here: which bindings
    /// there are, the caller knows.
    pub(crate) fn remove(&mut self, arguments: Table<'_>, target: T) {
        let requirements = Requirements::of(arguments);
        match (requirements.mode, &requirements.fields[..]) {
            (Mode::All, []) => take_one(&mut self.unconditional, target),
            (Mode::Any, []) => {}
            (_, [..]) => {
                let Some(id) = self.find(&requirements) else { return };
                let targets = &mut self.pattern_mut(id).targets;
                take_one(targets, target);
                if targets.is_empty() {
                    self.free_pattern(id);
                }
            }
        }
    }

    /// Begins the search for a message. One without headers has an empty table.
    pub(crate) fn begin(&self, headers: Table<'_>, scratch: &mut HeadersScratch, steps: &mut usize) {
        let HeadersScratch { message, is_read, hook, at, seen } = scratch;
        if !mem::replace(is_read, true) {
            message.read(headers);
            *steps = steps.saturating_sub(message.fields.len() + message.bytes.len() / BYTES_PER_STEP);
        }
        (*hook, *at) = (0, At::default());
        seen.clear();
        seen.resize(self.patterns.len().div_ceil(64), 0);
    }

    /// Goes on with the search, and hands out the targets that the message matches, some perhaps more than once. Stops soon
    /// after `steps` are used up: false if something is left then.
    pub(crate) fn go_on(&self, scratch: &mut HeadersScratch, steps: &mut usize, mut found: impl FnMut(T)) -> bool {
        let HeadersScratch { message, hook, at, seen, .. } = scratch;
        if *hook == 0 {
            *hook = 1;
            *steps = steps.saturating_sub(self.unconditional.len());
            self.unconditional.keys().copied().for_each(&mut found);
        }
        if self.hooks.is_empty() {
            return true;
        }
        while let Some(field) = message.fields.get((*hook - 1) / 2) {
            if *steps == 0 {
                return false;
            }
            let field = &message.bytes[field.clone()];
            let field = if hook.is_multiple_of(2) { name_of(field) } else { field };
            *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
            let here = self.hook(field);
            if let At::Patterns(after) = *at {
                let first = after.map_or(Bound::Unbounded, Bound::Excluded);
                let patterns = here.map(|here| here.patterns.range((first, Bound::Unbounded)));
                for &id in patterns.into_iter().flatten() {
                    *at = At::Patterns(Some(id));
                    *steps = steps.saturating_sub(STEPS_PER_LOOKUP);
                    let (seen, bit) = (&mut seen[id.0 as usize / 64], 1 << (id.0 % 64));
                    let is_new = mem::replace(seen, *seen | bit) & bit == 0;
                    let Pattern { requirements, targets, .. } = self.pattern(id);
                    if is_new && requirements.fit(message, steps) {
                        *steps = steps.saturating_sub(targets.len());
                        targets.keys().copied().for_each(&mut found);
                    }
                    if *steps == 0 {
                        return false;
                    }
                }
                *at = At::Schemas(None);
            }
            if let At::Schemas(after) = *at {
                let first = after.map_or(Bound::Unbounded, Bound::Excluded);
                let schemas = here.map(|here| here.schemas.range((first, Bound::Unbounded)));
                for &id in schemas.into_iter().flatten() {
                    *at = At::Schemas(Some(id));
                    if let Some(pattern) = self.pattern_of(id, message, steps) {
                        *steps = steps.saturating_sub(pattern.targets.len());
                        pattern.targets.keys().copied().for_each(&mut found);
                    }
                    if *steps == 0 {
                        return false;
                    }
                }
            }
            (*hook, *at) = (*hook + 1, At::default());
        }
        true
    }

    /// The pattern with these names that a message fits. A set of names hangs under one, so it comes up once.
    fn pattern_of(&self, id: SchemaId, message: &Message, steps: &mut usize) -> Option<&Pattern<T>> {
        let schema = self.schemas.get(id);
        *steps = steps.saturating_sub(STEPS_PER_LOOKUP * (1 + schema.names_count()));
        let fields = schema.fields_of(message)?;
        *steps = steps.saturating_sub(fields.iter().map(|field| field.len()).sum::<usize>() / BYTES_PER_STEP);
        let hash = self.hasher.hash_one((Mode::All, &fields[..]));
        let is_same = |&id: &PatternId| {
            let Pattern { requirements, .. } = self.pattern(id);
            requirements.mode == Mode::All
                && requirements.fields.iter().map(|field| &**field).eq(fields.iter().copied())
        };
        let &found = self.by_requirements.find(hash, is_same)?;
        // One that hangs elsewhere is found there.
        Some(self.pattern(found)).filter(|pattern| matches!(pattern.hangs, Hangs::With(_)))
    }

    fn pattern(&self, id: PatternId) -> &Pattern<T> {
        &self.patterns[id.0 as usize]
    }

    fn pattern_mut(&mut self, id: PatternId) -> &mut Pattern<T> {
        &mut self.patterns[id.0 as usize]
    }

    fn find(&self, requirements: &Requirements) -> Option<PatternId> {
        let hash = self.hasher.hash_one(requirements);
        self.by_requirements.find(hash, |&id| self.pattern(id).requirements == *requirements).copied()
    }

    fn hook(&self, field: &[u8]) -> Option<&Hook> {
        self.hooks.find(self.hasher.hash_one(field), |hook| *hook.field == *field)
    }

    /// Adds a pattern without targets. It requires something.
    fn add_pattern(&mut self, requirements: Requirements) -> PatternId {
        let id = self.free.pop().unwrap_or_else(|| {
            let id = u32::try_from(self.patterns.len()).expect("four billion patterns do not fit into memory");
            self.patterns.push(Pattern::none());
            PatternId(id)
        });
        let hangs = match requirements.mode {
            Mode::Any => Hangs::Under(0..requirements.fields.len()),
            Mode::All => {
                let best = self.most_selective(&requirements.fields);
                let is_crowded = self.patterns_count(&requirements.fields[best]) >= PATTERNS_PER_HOOK;
                let schema = if is_crowded { self.join_schema(&requirements.fields) } else { None };
                schema.map_or(Hangs::Under(best..best + 1), Hangs::With)
            }
        };
        if let Hangs::Under(hooks) = &hangs {
            for field in &requirements.fields[hooks.clone()] {
                self.hook_mut(field).patterns.insert(id);
            }
        }
        let hash = self.hasher.hash_one(&requirements);
        *self.pattern_mut(id) = Pattern { requirements, hangs, targets: BTreeMap::new() };
        let HeadersIndex { patterns, by_requirements, hasher, .. } = self;
        by_requirements.insert_unique(hash, id, |&id| hasher.hash_one(&patterns[id.0 as usize].requirements));
        id
    }

    /// The field that the fewest messages should lead to in vain: rather a value than a name alone, and where
    /// little hangs so far.
    fn most_selective(&self, fields: &[Box<[u8]>]) -> usize {
        let rank = |field: &[u8]| (is_name(field), self.patterns_count(field));
        (0..fields.len()).min_by_key(|&position| rank(&fields[position])).unwrap_or(0)
    }

    fn patterns_count(&self, field: &[u8]) -> usize {
        self.hook(field).map_or(0, |hook| hook.patterns.len())
    }

    /// Takes a pattern to those that require the same names, unless two of its fields have one.
    fn join_schema(&mut self, fields: &[Box<[u8]>]) -> Option<SchemaId> {
        let HeadersIndex { schemas, hooks, hasher, .. } = self;
        let rank = |name: &[u8]| {
            let hook = hooks.find(hasher.hash_one(name), |hook| *hook.field == *name);
            hook.map_or(0, |hook| hook.schemas.len())
        };
        let (id, is_new) = schemas.add_pattern(fields, hasher, rank)?;
        if is_new {
            let name: Box<[u8]> = self.schemas.get(id).hook().into();
            self.hook_mut(&name).schemas.insert(id);
        }
        Some(id)
    }

    fn hook_mut(&mut self, field: &[u8]) -> &mut Hook {
        let HeadersIndex { hooks, hasher, .. } = self;
        let hash = hasher.hash_one(field);
        match hooks.entry(hash, |hook| *hook.field == *field, |hook| hasher.hash_one(&*hook.field)) {
            Entry::Occupied(hook) => hook.into_mut(),
            Entry::Vacant(place) => {
                let hook = Hook { field: field.into(), patterns: BTreeSet::new(), schemas: BTreeSet::new() };
                place.insert(hook).into_mut()
            }
        }
    }

    fn take_off(&mut self, field: &[u8], take: impl FnOnce(&mut Hook)) {
        let hash = self.hasher.hash_one(field);
        if let Ok(mut hook) = self.hooks.find_entry(hash, |hook| *hook.field == *field) {
            take(hook.get_mut());
            if hook.get().patterns.is_empty() && hook.get().schemas.is_empty() {
                hook.remove();
            }
        }
    }

    fn free_pattern(&mut self, id: PatternId) {
        let Pattern { requirements, hangs, .. } = mem::replace(self.pattern_mut(id), Pattern::none());
        self.free.push(id);
        let hash = self.hasher.hash_one(&requirements);
        if let Ok(entry) = self.by_requirements.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
        match hangs {
            Hangs::Under(hooks) => {
                for field in &requirements.fields[hooks] {
                    self.take_off(field, |hook| _ = hook.patterns.remove(&id));
                }
            }
            Hangs::With(schema) => {
                if let Some(name) = self.schemas.remove_pattern(schema, &self.hasher) {
                    self.take_off(&name, |hook| _ = hook.schemas.remove(&schema));
                }
            }
        }
        if self.by_requirements.is_empty() {
            // An exchange that had many bindings once gives their memory back.
            self.patterns = vec![];
            self.free = vec![];
            self.by_requirements = HashTable::new();
            self.hooks = HashTable::new();
            self.schemas = Schemas::default();
        }
    }
}

fn take_one<T: Copy + Ord>(targets: &mut BTreeMap<T, u32>, target: T) {
    let Some(count) = targets.get_mut(&target) else { return };
    *count -= 1;
    if *count == 0 {
        targets.remove(&target);
    }
}

impl<T: fmt::Debug> fmt::Debug for HeadersIndex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns = self.patterns.iter().map(|pattern| &pattern.targets);
        let targets = patterns.chain([&self.unconditional]).flat_map(BTreeMap::keys);
        f.debug_struct("HeadersIndex").field("targets", &targets.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl<T> Pattern<T> {
    /// What a free place holds.
    fn none() -> Self {
        let requirements = Requirements { mode: Mode::All, fields: vec![] };
        Pattern { requirements, hangs: Hangs::Under(0..0), targets: BTreeMap::new() }
    }
}

impl HeadersScratch {
    /// The next search is for another message.
    pub(crate) fn forget_message(&mut self) {
        self.is_read = false;
    }
}

/// The values of `x-match`.
#[derive(Clone, Copy)]
enum XMatch {
    All,
    Any,
    AllWithX,
    AnyWithX,
}

impl XMatch {
    fn of(arguments: Table<'_>) -> Result<Self, InvalidXMatch> {
        match arguments.get("x-match") {
            None | Some(Value::LongStr(b"all")) => Ok(XMatch::All),
            Some(Value::LongStr(b"any")) => Ok(XMatch::Any),
            Some(Value::LongStr(b"all-with-x")) => Ok(XMatch::AllWithX),
            Some(Value::LongStr(b"any-with-x")) => Ok(XMatch::AnyWithX),
            Some(value @ Value::LongStr(_)) => Err(InvalidXMatch::Value { value: erlang_term(value) }),
            Some(value) => Err(InvalidXMatch::Type { type_name: value.type_name(), value: erlang_term(value) }),
        }
    }

    fn takes(self, name: &[u8]) -> bool {
        match self {
            XMatch::All | XMatch::Any => !name.starts_with(b"x-"),
            XMatch::AllWithX | XMatch::AnyWithX => name != b"x-match",
        }
    }
}

impl Requirements {
    /// Whether a message fulfils them that has one of the hooks.
    fn fit(&self, message: &Message, steps: &mut usize) -> bool {
        match self.mode {
            Mode::Any => true, // the hook is one of the fields
            Mode::All => self.fields.iter().all(|field| {
                *steps = steps.saturating_sub(STEPS_PER_LOOKUP + field.len() / BYTES_PER_STEP);
                message.has(field)
            }),
        }
    }

    fn of(arguments: Table<'_>) -> Self {
        // RabbitMQ: what nobody checked counts as `all`.
        let x_match = XMatch::of(arguments).unwrap_or(XMatch::All);
        let mode = match x_match {
            XMatch::All | XMatch::AllWithX => Mode::All,
            XMatch::Any | XMatch::AnyWithX => Mode::Any,
        };
        let taken = arguments.iter().filter(|(name, _)| x_match.takes(name));
        let mut fields: Vec<Box<[u8]>> = taken
            .map(|(name, value)| {
                let mut field = vec![];
                push_field(&mut field, name, value, Side::Binding);
                field.into()
            })
            .collect();
        fields.sort_unstable();
        fields.dedup();
        Requirements { mode, fields }
    }
}

impl Message {
    fn read(&mut self, headers: Table<'_>) {
        let Message { bytes, fields } = self;
        bytes.clear();
        fields.clear();
        for (name, value) in headers {
            let start = bytes.len();
            push_field(bytes, name, value, Side::Message);
            fields.push(start..bytes.len());
        }
        // Of headers with the same name the last comes first, and stays.
        let name = |field: &Range<usize>| name_of(&bytes[field.clone()]);
        fields.sort_unstable_by(|a, b| name(a).cmp(name(b)).then(b.start.cmp(&a.start)));
        fields.dedup_by(|a, b| name(a) == name(b));
    }

    /// Whether there is the header that a binding requires.
    fn has(&self, required: &[u8]) -> bool {
        let field = self.first_from(required);
        field.is_some_and(|field| if is_name(required) { field.starts_with(required) } else { field == required })
    }

    /// The header of that name.
    fn named(&self, name: &[u8]) -> Option<&[u8]> {
        // A name alone sorts just before the name with any value.
        self.first_from(name).filter(|field| field.starts_with(name))
    }

    fn first_from(&self, field: &[u8]) -> Option<&[u8]> {
        let at = |range: &Range<usize>| &self.bytes[range.clone()];
        let first = self.fields.partition_point(|range| at(range) < field);
        self.fields.get(first).map(at)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Binding,
    Message,
}

/// Appends a field in a form in which equal bytes mean equal fields: the length of the name, the name, then the
/// value, of which there is nothing for a void argument.
fn push_field(out: &mut Vec<u8>, name: &[u8], value: Value<'_>, side: Side) {
    push_name(out, name);
    match (side, value) {
        (Side::Binding, Value::Void) => {}
        (Side::Message, Value::Timestamp(seconds)) => push_integer(out, i128::from(seconds) * 1000),
        (Side::Binding | Side::Message, value) => push_value(out, value),
    }
}

/// Appends the value of a header in a form in which equal bytes mean equal values.
pub(super) fn push_header(out: &mut Vec<u8>, value: Value<'_>) {
    push_field(out, b"", value, Side::Message);
}

fn push_name(out: &mut Vec<u8>, name: &[u8]) {
    out.push(u8::try_from(name.len()).expect("names in tables are at most 255 bytes"));
    out.extend_from_slice(name);
}

/// The field without its value.
fn name_of(field: &[u8]) -> &[u8] {
    &field[..=usize::from(field[0])]
}

fn is_name(field: &[u8]) -> bool {
    name_of(field).len() == field.len()
}

fn push_integer(out: &mut Vec<u8>, n: i128) {
    out.push(b'i');
    out.extend_from_slice(&n.to_be_bytes());
}

/// Appends a value without its type: values that RabbitMQ decodes to the same Erlang term become the same bytes,
/// and no value is the beginning of another.
fn push_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Bool(flag) => out.extend_from_slice(&[b't', flag.into()]),
        Value::I8(n) => push_integer(out, n.into()),
        Value::U8(n) => push_integer(out, n.into()),
        Value::I16(n) => push_integer(out, n.into()),
        Value::U16(n) => push_integer(out, n.into()),
        Value::I32(n) => push_integer(out, n.into()),
        Value::U32(n) => push_integer(out, n.into()),
        Value::I64(n) => push_integer(out, n.into()),
        Value::Timestamp(seconds) => push_integer(out, seconds.into()),
        Value::F32(n) => push_value(out, Value::F64(n.into())),
        Value::F64(n) => {
            out.push(b'd');
            out.extend_from_slice(&n.to_bits().to_be_bytes());
        }
        Value::Decimal(scale, digits) => {
            out.extend_from_slice(&[b'D', scale]);
            out.extend_from_slice(&digits.to_be_bytes());
        }
        Value::LongStr(bytes) | Value::Bytes(bytes) => {
            out.push(b'S');
            out.extend_from_slice(&bytes.len().to_be_bytes());
            out.extend_from_slice(bytes);
        }
        Value::Void => out.push(b'V'),
        // In Erlang both are lists: of pairs, and of triples.
        Value::Array(array) => {
            out.push(b'L');
            for value in array {
                out.push(2);
                push_typed(out, value);
            }
            out.push(0);
        }
        Value::Table(table) => {
            out.push(b'L');
            for (name, value) in table {
                out.push(3);
                push_name(out, name);
                push_typed(out, value);
            }
            out.push(0);
        }
    }
}

fn push_typed(out: &mut Vec<u8>, value: Value<'_>) {
    out.extend_from_slice(value.type_name().as_bytes());
    out.push(0);
    push_value(out, value);
}

/// A value as `~tp` of Erlang's `io:format` writes it, on one line and cut where no reply text would show it.
pub(super) fn erlang_term(value: Value<'_>) -> String {
    let mut out = String::new();
    write_term(&mut out, value);
    out
}

fn write_term(out: &mut String, value: Value<'_>) {
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Bool(flag) => write!(out, "{flag}"),
        Value::I8(n) => write!(out, "{n}"),
        Value::U8(n) => write!(out, "{n}"),
        Value::I16(n) => write!(out, "{n}"),
        Value::U16(n) => write!(out, "{n}"),
        Value::I32(n) => write!(out, "{n}"),
        Value::U32(n) => write!(out, "{n}"),
        Value::I64(n) => write!(out, "{n}"),
        Value::Timestamp(seconds) => write!(out, "{seconds}"),
        Value::F32(n) => write!(out, "{:?}", f64::from(n)),
        Value::F64(n) => write!(out, "{n:?}"),
        Value::Decimal(scale, digits) => write!(out, "{{{scale},{digits}}}"),
        Value::LongStr(bytes) | Value::Bytes(bytes) => write_binary(out, bytes),
        Value::Void => write!(out, "undefined"),
        Value::Array(array) => write_list(out, array, |out, value| {
            write!(out, "{{{},", value.type_name())?;
            write_term(out, value);
            out.write_str("}")
        }),
        Value::Table(table) => write_list(out, table, |out, (name, value)| {
            out.write_str("{")?;
            write_binary(out, name)?;
            write!(out, ",{},", value.type_name())?;
            write_term(out, value);
            out.write_str("}")
        }),
    };
}

fn write_list<I>(
    out: &mut String,
    items: impl IntoIterator<Item = I>,
    mut write_item: impl FnMut(&mut String, I) -> fmt::Result,
) -> fmt::Result {
    out.write_str("[")?;
    for (position, item) in items.into_iter().enumerate() {
        if out.len() > QUOTED_BYTES_MAX {
            break;
        }
        out.write_str(if position == 0 { "" } else { "," })?;
        write_item(out, item)?;
    }
    out.write_str("]")
}

/// `<<"text">>` if it is printable ASCII, else `<<1,2,3>>`.
fn write_binary(out: &mut String, bytes: &[u8]) -> fmt::Result {
    let bytes = &bytes[..bytes.len().min(QUOTED_BYTES_MAX)];
    let printable = |&byte: &u8| byte == b' ' || byte.is_ascii_graphic();
    out.write_str("<<")?;
    if bytes.is_empty() {
        // Erlang writes the empty binary without quotes.
    } else if bytes.iter().all(printable) {
        out.write_str("\"")?;
        for &byte in bytes {
            out.write_str(if matches!(byte, b'"' | b'\\') { "\\" } else { "" })?;
            out.write_char(char::from(byte))?;
        }
        out.write_str("\"")?;
    } else {
        for (position, byte) in bytes.iter().enumerate() {
            write!(out, "{}{byte}", if position == 0 { "" } else { "," })?;
        }
    }
    out.write_str(">>")
}
