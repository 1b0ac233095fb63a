//! Files that are read as a whole: no more than such a file ever has, so that a device or a wrong one takes no memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytesize::ByteSize;

/// The most that a configuration file has, and one with a single value.
pub(crate) const SMALL: ByteSize = ByteSize::mib(1);

/// Reads a file that has at most so much.
///
/// # Errors
/// What the system says, and a longer file.
pub(crate) fn bytes(path: &Path, most: ByteSize) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    File::open(path)?.take(most.as_u64() + 1).read_to_end(&mut read)?;
    at_most(read, most)
}

/// Reads what such a file has of text.
///
/// # Errors
/// Those of [`bytes`], and what is not UTF-8.
pub(crate) fn text(path: &Path, most: ByteSize) -> io::Result<String> {
    utf8(bytes(path, most)?)
}

/// Reads standard input as if it were such a file.
///
/// # Errors
/// Those of [`text`].
pub(crate) fn standard_input(most: ByteSize) -> io::Result<String> {
    let mut read = Vec::new();
    io::stdin().take(most.as_u64() + 1).read_to_end(&mut read)?;
    utf8(at_most(read, most)?)
}

fn at_most(read: Vec<u8>, most: ByteSize) -> io::Result<Vec<u8>> {
    if read.len() as u64 > most.as_u64() {
        return Err(io::Error::other(format!("it has more than {most}")));
    }
    Ok(read)
}

fn utf8(read: Vec<u8>) -> io::Result<String> {
    if read.starts_with(&[0xff, 0xfe]) || read.starts_with(&[0xfe, 0xff]) {
        return Err(io::Error::other("it is in UTF-16; save it as UTF-8"));
    }
    String::from_utf8(read).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(format!("it is not in UTF-8, from byte {} on", at + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_if_it_is_text_and_not_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let read = |content: &[u8]| {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            text(&path, ByteSize::kib(1)).map_err(|error| error.to_string())
        };
        assert_eq!(read(&[b'x'; 1024]).unwrap().len(), 1024);
        assert_eq!(read(&[b'x'; 1025]), Err("it has more than 1.0 KiB".into()));
        assert_eq!(read(b"abc\xffdef"), Err("it is not in UTF-8, from byte 4 on".into()));
        assert_eq!(read(b"\xff\xfea\0"), Err("it is in UTF-16; save it as UTF-8".into()));
        assert_eq!(text(Path::new("/dev/zero"), SMALL).unwrap_err().to_string(), "it has more than 1.0 MiB");
    }
}
