//! An input as the decisions that a target takes from it.

/// Takes an input apart from its front. Where it has ended, everything is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'i>(&'i [u8]);

impl<'i> Bytes<'i> {
    pub(crate) fn new(input: &'i [u8]) -> Self {
        Bytes(input)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// So many bytes, or what is left.
    pub(crate) fn take(&mut self, count: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes behind an octet that says how many.
    pub(crate) fn short(&mut self) -> &'i [u8] {
        let count = self.u8();
        self.take(count.into())
    }

    /// One of some.
    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.u8()) % all.len()]
    }

    pub(crate) fn rest(self) -> &'i [u8] {
        self.0
    }
}
