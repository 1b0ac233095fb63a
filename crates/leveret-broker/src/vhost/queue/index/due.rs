//! Which pages have messages that expire, and when the next of each does.
//!
//! Owns: a deadline for each page that is not later than the first of those in it that count. So what it takes follows
//! from the number of pages, not of messages, and a page is looked at when its time has come.
//! Must not know: messages.

use std::collections::{BTreeMap, BTreeSet};

use super::Position;
use crate::moment::{Deadline, Moment};

/// The deadlines of pages; a page goes by the position of its first entry.
#[derive(Debug, Default)]
pub(super) struct Due {
    pages: BTreeMap<Position, Deadline>,
    in_time: BTreeSet<(Deadline, Position)>,
}

impl Due {
    /// The first deadline of all.
    pub(super) fn first(&self) -> Option<Deadline> {
        self.in_time.first().map(|&(deadline, _)| deadline)
    }

    /// The pages in the order of their deadlines.
    pub(super) fn pages(&self) -> impl Iterator<Item = (Deadline, Position)> {
        self.in_time.iter().copied()
    }

    /// Something in a page is due by then.
    pub(super) fn note(&mut self, page: Position, deadline: Deadline) {
        let known = self.pages.get(&page).copied();
        if known.is_some_and(|known| known <= deadline) {
            return;
        }
        if let Some(known) = known {
            self.in_time.remove(&(known, page));
        }
        self.pages.insert(page, deadline);
        self.in_time.insert((deadline, page));
    }

    /// Takes out a page whose deadline has come.
    pub(super) fn take(&mut self, now: Moment) -> Option<Position> {
        let &(deadline, page) = self.in_time.first()?;
        now.has_reached(deadline).then(|| {
            self.forget(page);
            page
        })
    }

    /// Nothing is left of a page.
    pub(super) fn forget(&mut self, page: Position) {
        if let Some(deadline) = self.pages.remove(&page) {
            self.in_time.remove(&(deadline, page));
        }
    }

    /// Nothing is left of all pages from this one on.
    pub(super) fn forget_from(&mut self, page: Position) {
        for (page, deadline) in self.pages.split_off(&page) {
            self.in_time.remove(&(deadline, page));
        }
    }

    /// Nothing is left at all.
    pub(super) fn clear(&mut self) {
        // A tree that is empty is not cleared for nothing, as most are.
        if !self.pages.is_empty() {
            self.pages.clear();
            self.in_time.clear();
        }
    }
}
