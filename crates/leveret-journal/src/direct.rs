//! Writing past the cache of the operating system, straight from a buffer to the disk (`O_DIRECT`).
//!
//! What the journal writes is synced at once, and through that cache a small write and its sync take a tenth longer. A large one
//! does not, as there the system sends several parts of it to the disk at a time.
//!
//! Owns: whole blocks. A disk takes nothing less that way, so what stands before a write in its first block is written with
//! it once more. Reads and syncs know nothing of this: the system keeps its cache true.
//! Invariant: what is held of a file is what the file holds there. Whoever changes that in another way has it forgotten.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::limits::{DIRECT_BYTES, PAGE_BYTES};

/// Bytes of a block. Hardly any disk wants larger ones, and a batch is written with zeros to the end of one.
const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == PAGE_BYTES);

/// What writes to one file.
pub(crate) struct Direct {
    /// The file once more, opened for this.
    file: File,
    /// Bytes of a block, which is what offsets, lengths and addresses are multiples of.
    block: usize,
    /// Room for [`DIRECT_BYTES`] that begins with a block, and what lies before.
    buffer: Box<[u8]>,
    /// Where that room begins.
    begin: usize,
    /// Of the file, what is still in the buffer, from its beginning on.
    held: Range<u64>,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("file", &self.file).field("held", &self.held).finish_non_exhaustive()
    }
}

/// Whether that many bytes there can be written this way: they end with a block, as they have to, and fit into the buffer with
/// what stands before them in theirs.
pub(crate) fn takes(offset: u64, bytes: &[u8]) -> bool {
    let end = offset + bytes.len() as u64;
    end.is_multiple_of(BLOCK as u64) && length(first_block(offset, BLOCK), end) <= DIRECT_BYTES
}

impl Direct {
    /// For this file.
    ///
    /// # Errors
    /// If its file system cannot do it.
    #[cfg(target_os = "linux")]
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        use std::os::fd::AsRawFd;

        // By its descriptor, since its name may have changed.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        Ok(Direct::with_block(file, BLOCK))
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new(_file: &File) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn with_block(file: File, block: usize) -> Self {
        let buffer = vec![0; block + DIRECT_BYTES].into_boxed_slice();
        let begin = buffer.as_ptr().align_offset(block).min(block);
        Direct { file, block, buffer, begin, held: 0..0 }
    }

    /// One with blocks that no disk has.
    #[cfg(test)]
    pub(crate) fn misaligned(file: &File) -> io::Result<Self> {
        Ok(Direct { begin: 1, ..Direct::with_block(Direct::new(file)?.file, 1) })
    }

    /// Writes all of `bytes`, which it [`takes`], at `offset` of the file, which is also `cached`. False if that cannot be done
    /// this way after all, as the file system wants larger blocks, or the file ends before `offset`; then any part of it may have been
    /// written.
    pub(crate) fn write_at(&mut self, cached: &File, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        let first = first_block(offset, self.block);
        if !self.hold(cached, first..offset)? {
            return Ok(false);
        }
        let begin = self.begin + length(first, offset);
        let end = begin + bytes.len();
        self.buffer[begin..end].copy_from_slice(bytes);
        let is_written = self.write_blocks(first, self.begin..end)?;
        if is_written {
            self.held = first..offset + bytes.len() as u64;
        }
        Ok(is_written)
    }

    /// The file is about to be changed in another way.
    pub(crate) fn forget(&mut self) {
        self.held = 0..0;
    }

    /// Has these bytes of the file at the beginning of the buffer, and nothing else is held from then on. False if the file has not
    /// as many.
    fn hold(&mut self, cached: &File, wanted: Range<u64>) -> io::Result<bool> {
        let length_wanted = length(wanted.start, wanted.end);
        let held = std::mem::take(&mut self.held);
        if length_wanted == 0 {
            return Ok(true);
        }
        if held.start <= wanted.start && wanted.end <= held.end {
            let from = self.begin + length(held.start, wanted.start);
            self.buffer.copy_within(from..from + length_wanted, self.begin);
            return Ok(true);
        }
        match cached.read_exact_at(&mut self.buffer[self.begin..self.begin + length_wanted], wanted.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| true),
        }
    }

    /// Writes whole blocks. False if the file system does not take them.
    fn write_blocks(&self, mut offset: u64, mut range: Range<usize>) -> io::Result<bool> {
        while !range.is_empty() {
            match self.file.write_at(&self.buffer[range.clone()], offset) {
                // The rest is to begin with a block again.
                Ok(count) if count >= self.block => {
                    let count = count / self.block * self.block;
                    offset += count as u64;
                    range.start += count;
                }
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Its blocks are larger, or it had only promised.
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Where the block begins in which that lies.
fn first_block(offset: u64, block: usize) -> u64 {
    offset / block as u64 * block as u64
}

/// Bytes from one place to another.
fn length(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None` where temporary files are on a file system that cannot do it, and nobody has said that it must.
    fn direct(file: &File) -> Option<Direct> {
        let direct = Direct::new(file);
        assert!(direct.is_ok() || std::env::var_os("CI").is_none(), "{direct:?}");
        if let Err(error) = &direct {
            println!("not tried, as temporary files cannot be written past the cache: {error}");
        }
        direct.ok()
    }

    #[test]
    fn what_stands_before_a_write_in_its_block_stays_wherever_it_is_known_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create_new(folder.path().join("file")).unwrap();
        file.set_len(64 * PAGE_BYTES).unwrap();
        let Some(mut direct) = direct(&file) else { return };
        let mut model = vec![0; 64 * BLOCK];
        // From the disk, from the buffer (in its first block, in its last, in between) and from the cache; and where the file becomes longer.
        let writes = [
            (100, 1),
            (300, 1),
            (2 * BLOCK - 7, 16),
            (15 * BLOCK + 9, 17),
            (16 * BLOCK + 8, 17),
            (40 * BLOCK, 41),
            (60 * BLOCK + 3, 66),
            (66 * BLOCK, 67),
        ];
        for (nth, &(from, to)) in (1..).zip(&writes) {
            let (at, to) = (from as u64, to * BLOCK);
            let bytes = vec![nth; to - from];
            assert!(takes(at, &bytes) && !takes(at, &bytes[1..]), "{from}");
            if nth == 7 {
                file.write_all_at(&[99; 8], at - 8).unwrap();
                model[from - 8..from].fill(99);
                direct.forget();
            }
            assert!(direct.write_at(&file, at, &bytes).unwrap(), "{from}");
            model.resize(model.len().max(to), 0);
            model[from..to].fill(nth);
            let mut written = vec![0; model.len()];
            file.read_exact_at(&mut written, 0).unwrap();
            assert!(written == model && file.metadata().unwrap().len() == model.len() as u64, "write {nth}");
        }
    }

    #[test]
    fn what_the_buffer_has_no_room_for_is_not_taken_with_what_stands_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create_new(folder.path().join("file")).unwrap();
        let Some(mut direct) = direct(&file) else { return };
        let (bytes, last) = (vec![7; DIRECT_BYTES + BLOCK], BLOCK - 1);
        file.write_all_at(&bytes, 0).unwrap();
        assert!(takes(0, &bytes[BLOCK..]) && takes(last as u64, &bytes[BLOCK + last..]));
        assert!(!takes(0, &bytes) && !takes(last as u64, &bytes[last..]));
        assert!(direct.write_at(&file, last as u64, &bytes[BLOCK + last..]).unwrap());
    }

    #[test]
    fn a_file_system_that_takes_only_other_blocks_is_told_apart_from_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        let Some(mut direct) = direct(&file) else { return };
        assert!(!direct.write_at(&file, 3, &[7; BLOCK - 3]).unwrap(), "the file ends before");
        let mut misaligned = Direct::misaligned(&file).unwrap();
        let is_taken = misaligned.write_at(&file, 3, b"odd").unwrap();
        assert_eq!(misaligned.held, if is_taken { 3..6 } else { 0..0 });
        assert_eq!(file.metadata().unwrap().len(), misaligned.held.end);
        let mut read_only = Direct::with_block(File::open(&path).unwrap(), BLOCK);
        read_only.write_at(&file, 0, &[7; BLOCK]).unwrap_err();
        assert_eq!(read_only.held, 0..0);
    }
}
