//! Records that nobody needs after the process has ended: files that are written, read back and removed, and never synced.
//!
//! Owns: the format, drawn in `docs/formats/scratch.md`, and the names of the files. Must not know: what a record means, or
//! which file is still needed.

use std::io;
use std::sync::Arc;

use crc32c::crc32c_append;

use crate::disk::{Disk, DiskFile};
use crate::format::u32_at;
use crate::limits::{READ_BYTES, SCRATCH_BYTES};
use crate::reader::ReadError;

const PREFIX: &str = "scratch-";

/// The length of the payload and the checksum, four bytes each.
const HEADER_BYTES: usize = 8;

/// The file of one stream and number.
fn file_name(stream: u32, number: u32) -> String {
    format!("{PREFIX}{stream}-{number}")
}

fn is_scratch(name: &str) -> bool {
    let Some((stream, number)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    [stream, number].iter().all(|part| part.parse::<u32>().is_ok())
}

/// The place goes into the checksum: what is read elsewhere does not verify.
fn checksum(stream: u32, number: u32, offset: u32, payload: &[u8]) -> u32 {
    let place = [stream, number, offset].map(u32::to_le_bytes);
    crc32c_append(crc32c::crc32c(place.as_flattened()), payload)
}

/// Removes what an earlier process has left. Returns how many files that were.
///
/// # Errors
/// If the folder cannot be listed or a file cannot be removed.
pub fn remove_scratch(disk: &dyn Disk) -> io::Result<usize> {
    let left: Vec<_> = disk.list()?.into_iter().filter(|name| is_scratch(name)).collect();
    left.iter().try_for_each(|name| disk.remove(name))?;
    Ok(left.len())
}

/// The files of one stream, as the only one who writes them has them.
pub struct Scratch {
    disk: Arc<dyn Disk>,
    stream: u32,
    /// The number of the file that is written, or of the last one that was.
    number: u32,
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes of the file that hold records.
    end: u32,
    /// What is to be written there.
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch")
            .field("stream", &self.stream)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Scratch {
    /// No file yet. No other one may have this stream.
    pub fn new(disk: Arc<dyn Disk>, stream: u32) -> Self {
        Scratch { disk, stream, number: 0, file: None, end: 0, buffer: Vec::new() }
    }

    /// The number of the file that the next record goes to, which is begun if need be.
    ///
    /// # Errors
    /// If no file can be made.
    ///
    /// # Panics
    /// If something was added and not written.
    pub fn begin(&mut self) -> io::Result<u32> {
        assert!(self.buffer.is_empty(), "what was added is written before a file is begun");
        if self.is_full() {
            self.finish();
        }
        if self.file.is_none() {
            // Numbers are not given twice: who reads may have the old file open.
            let number = self.number.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
            self.file = Some(self.disk.create(&file_name(self.stream, number))?);
            (self.number, self.end) = (number, 0);
        }
        Ok(self.number)
    }

    /// Whether the file has no room for more, with what was added.
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= (SCRATCH_BYTES as usize).saturating_sub(self.end as usize)
    }

    /// Adds a record to the file that was begun; it is there once [`Self::write`] has succeeded. Returns where in the file.
    pub fn add(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let begin = self.buffer.len();
        let offset = self.end.saturating_add(u32::try_from(begin).unwrap_or(u32::MAX));
        self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        encode(&mut self.buffer);
        let (header, payload) = self.buffer[begin..].split_at_mut(HEADER_BYTES);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..].copy_from_slice(&checksum(self.stream, self.number, offset, payload).to_le_bytes());
        offset
    }

    /// Bytes that were added and not written.
    pub fn added_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// If that cannot be written: then nothing of it is there, and the next record goes to another file.
    pub fn write(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let result = file.write_at(self.end.into(), &self.buffer);
        if result.is_ok() {
            self.end = self.end.saturating_add(u32::try_from(self.buffer.len()).unwrap_or(u32::MAX));
        } else {
            // What is there of it takes room that others may need. Who reads may have it all the same, so its places are not
            // given again.
            let _ = file.truncate(self.end.into());
            self.finish();
        }
        self.buffer.clear();
        self.buffer.shrink_to(READ_BYTES);
        result
    }

    /// Nothing more goes into the file that was begun. If nothing went there at all, it is gone.
    pub fn finish(&mut self) {
        if self.file.take().is_some() && self.end == 0 {
            // Nobody knows of it; if it stays, the next start removes it.
            let _ = self.remove(self.number);
        }
    }

    /// Bytes that are free for the process.
    ///
    /// # Errors
    /// If the disk does not say.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    /// Removes a file that nobody needs. It must not be the one that was begun.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        self.disk.remove(&file_name(self.stream, number))
    }
}

/// Reads records back. Any number of readers may read what others write.
pub struct ScratchReader {
    disk: Arc<dyn Disk>,
    open: Option<Open>,
    /// What was read last.
    buffer: Vec<u8>,
}

struct Open {
    stream: u32,
    number: u32,
    file: Arc<dyn DiskFile>,
    /// Where in the file the buffer begins.
    buffered_from: u32,
}

impl std::fmt::Debug for ScratchReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScratchReader").finish_non_exhaustive()
    }
}

impl ScratchReader {
    /// One for all streams.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        ScratchReader { disk, open: None, buffer: Vec::new() }
    }

    /// The payload of a record. Reading one file in ascending order is cheapest.
    ///
    /// # Errors
    /// If it cannot be read: see [`ReadError`]. Another record may be readable all the same.
    pub fn read(&mut self, stream: u32, number: u32, offset: u32) -> Result<&[u8], ReadError> {
        let is_open = self.open.as_ref().is_some_and(|open| (open.stream, open.number) == (stream, number));
        if !is_open {
            self.rest();
            match self.disk.open(&file_name(stream, number)) {
                Ok(file) => self.open = Some(Open { stream, number, file, buffered_from: 0 }),
                Err(error) => return Err(ReadError::Disk { file: file_name(stream, number), error }),
            }
        }
        let found = match self.find(stream, number, offset) {
            // The buffer may have been filled before this was written.
            Ok(None) => {
                self.buffer.clear();
                self.find(stream, number, offset)
            }
            found => found,
        };
        match found {
            Ok(Some(length)) => {
                let record = self.buffered(offset, HEADER_BYTES + length).unwrap_or_default();
                Ok(record.get(HEADER_BYTES..).unwrap_or_default())
            }
            Ok(None) => Err(ReadError::Damaged { file: file_name(stream, number), offset: offset.into() }),
            Err(error) => {
                self.rest();
                Err(ReadError::Disk { file: file_name(stream, number), error })
            }
        }
    }

    /// Lets go of what the last reads needed.
    pub fn rest(&mut self) {
        self.open = None;
        self.buffer = Vec::new();
    }

    /// Has a record in the buffer; the length of its payload, if it verifies.
    fn find(&mut self, stream: u32, number: u32, offset: u32) -> io::Result<Option<usize>> {
        let Some(header) = self.bytes(offset, HEADER_BYTES)? else { return Ok(None) };
        let (length, expected) = (u32_at(header, 0) as usize, u32_at(header, 4));
        let Some(record) = self.bytes(offset, HEADER_BYTES.saturating_add(length))? else { return Ok(None) };
        Ok((checksum(stream, number, offset, &record[HEADER_BYTES..]) == expected).then_some(length))
    }

    /// So many bytes of the file, if it has them.
    fn bytes(&mut self, offset: u32, length: usize) -> io::Result<Option<&[u8]>> {
        if self.buffered(offset, length).is_none() {
            let Some(open) = &mut self.open else { return Ok(None) };
            // What is damaged may say any length.
            let left = open.file.length()?.saturating_sub(offset.into());
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            if length > left {
                return Ok(None);
            }
            self.buffer.clear();
            self.buffer.resize(length.max(READ_BYTES).min(left), 0);
            self.buffer.shrink_to(READ_BYTES);
            open.buffered_from = offset;
            let count = open.file.read_at(offset.into(), &mut self.buffer)?;
            self.buffer.truncate(count);
        }
        Ok(self.buffered(offset, length))
    }

    /// So many bytes of the file, if the buffer has them.
    fn buffered(&self, offset: u32, length: usize) -> Option<&[u8]> {
        let at = offset.checked_sub(self.open.as_ref()?.buffered_from)? as usize;
        self.buffer.get(at..at.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_removed() {
        for name in ["scratch-1-1", "scratch-4000000000-17"] {
            assert!(is_scratch(name), "{name}");
        }
        for name in ["scratch", "scratch-1", "scratch-1-", "scratch-1-x", "scratch-1-1.bak", "my-scratch-1-1"] {
            assert!(!is_scratch(name), "{name}");
        }
    }
}
