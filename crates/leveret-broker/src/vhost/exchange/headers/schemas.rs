//! Which names the bindings of a headers exchange require together.
//!
//! Owns: the sets of names, and how many patterns have each of them.
//! Must not know: values, or how a set is found.
//!
//! Where many bindings have each of their values in common with others (`row=7, column=3`), no single field leads to few of
//! them. All fields together do: a message that has the names of a set has one field for each, and there is a pattern of
//! just these fields or none.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{Message, is_name, name_of};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SchemaId(u32);

/// Fields of a message, in ascending order.
pub(super) type Fields<'m> = SmallVec<[&'m [u8]; 8]>;

pub(super) struct Schema {
    names: Vec<Name>,
    pub(super) patterns_count: usize,
    /// Under which of its names it hangs.
    hook: usize,
}

/// A name that is required, and whether a value goes with it.
#[derive(PartialEq, Eq, Hash)]
struct Name {
    name: Box<[u8]>,
    has_value: bool,
}

#[derive(Default)]
pub(super) struct Schemas {
    slots: Vec<Schema>,
    /// Places of those that no pattern has any more, to be used again.
    free: Vec<SchemaId>,
    /// Finds the schema of a set of names. Never iterated.
    by_names: HashTable<SchemaId>,
}

impl Schemas {
    /// Takes a pattern into the schema of its fields, and says whether it is new. `rank` says where it may hang: where that
    /// is lowest. None if two of the fields have one name.
    pub(super) fn add_pattern(
        &mut self,
        fields: &[Box<[u8]>],
        hasher: &FixedState,
        rank: impl Fn(&[u8]) -> usize,
    ) -> Option<(SchemaId, bool)> {
        if !fields.is_sorted_by(|a, b| name_of(a) < name_of(b)) {
            return None;
        }
        let name = |field: &[u8]| Name { name: name_of(field).into(), has_value: !is_name(field) };
        let names: Vec<_> = fields.iter().map(|field| name(field)).collect();
        let hash = hasher.hash_one(&names);
        if let Some(&id) = self.by_names.find(hash, |&id| self.get(id).names == names) {
            self.slots[id.0 as usize].patterns_count += 1;
            return Some((id, false));
        }
        let hook = (0..names.len()).min_by_key(|&at| rank(&names[at].name)).unwrap_or(0);
        let schema = Schema { names, patterns_count: 1, hook };
        let id = if let Some(id) = self.free.pop() {
            self.slots[id.0 as usize] = schema;
            id
        } else {
            self.slots.push(schema);
            SchemaId(u32::try_from(self.slots.len() - 1).expect("four billion schemas do not fit into memory"))
        };
        let Schemas { slots, by_names, .. } = self;
        by_names.insert_unique(hash, id, |&id| hasher.hash_one(&slots[id.0 as usize].names));
        Some((id, true))
    }

    /// Takes a pattern out of its schema. Returns the name that the schema hung under, if that was its last.
    pub(super) fn remove_pattern(&mut self, id: SchemaId, hasher: &FixedState) -> Option<Box<[u8]>> {
        let schema = &mut self.slots[id.0 as usize];
        schema.patterns_count -= 1;
        if schema.patterns_count > 0 {
            return None;
        }
        let names = std::mem::take(&mut schema.names);
        if let Ok(entry) = self.by_names.find_entry(hasher.hash_one(&names), |&other| other == id) {
            entry.remove();
        }
        self.free.push(id);
        Some(names.into_iter().nth(schema.hook)?.name)
    }

    pub(super) fn get(&self, id: SchemaId) -> &Schema {
        &self.slots[id.0 as usize]
    }
}

impl Schema {
    /// The name that it hangs under.
    pub(super) fn hook(&self) -> &[u8] {
        &self.names[self.hook].name
    }

    /// What a pattern has to require so that the message fits it; none if it lacks one of the names.
    pub(super) fn fields_of<'m>(&self, message: &'m Message) -> Option<Fields<'m>> {
        let field = |name: &Name| {
            let field = message.named(&name.name)?;
            Some(if name.has_value { field } else { name_of(field) })
        };
        self.names.iter().map(field).collect()
    }

    pub(super) fn names_count(&self) -> usize {
        self.names.len()
    }
}
