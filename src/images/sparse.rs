//! Sparse files in backups. This module finds the data ranges of a file (lseek(2)) and writes them as a map in PAX
//! format 1.0 (GNU tar's manual, "Storing Sparse Files"), which `archive` reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

use super::archive::DataRange;
use crate::base::limits;

/// Returns the ranges of a file that contain data, or `None` if the file is stored as a whole. A file with more ranges
/// than a reader accepts is also stored as a whole.
pub(super) fn data_ranges(file: &File, stat: &Stat) -> io::Result<Option<Vec<DataRange>>> {
    let size = stat.st_size.unsigned_abs();
    if stat.st_blocks.unsigned_abs().saturating_mul(512) >= size {
        return Ok(None);
    }
    let (mut pieces, mut at, mut bytes) = (Vec::new(), 0, 0);
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            // Only a hole follows the position `at`.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(None),
            start => start?,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= size || end <= start {
            break;
        }
        let piece = DataRange { at: start, length: end - start };
        bytes += line(piece.at).len() + line(piece.length).len();
        pieces.push(piece);
        at = end;
        // The map must fit into the limit for headers.
        if bytes + 2 * BLOCK > limits::IMAGE_HEADER_BYTES || pieces.len() >= limits::IMAGE_PIECES {
            return Ok(None);
        }
    }
    let whole = pieces.iter().map(|piece| piece.length).sum::<u64>() == size;
    Ok((!whole).then_some(pieces))
}

const BLOCK: usize = 512;

fn line(number: u64) -> String {
    format!("{number}\n")
}

/// Encodes the map, padded to a block.
pub(super) fn encode_map(pieces: &[DataRange]) -> Vec<u8> {
    let mut map = line(pieces.len() as u64).into_bytes();
    for piece in pieces {
        map.extend_from_slice(line(piece.at).as_bytes());
        map.extend_from_slice(line(piece.length).as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Reads the data of a file without its holes. Ranges that have been truncated since are read as zeros.
pub(super) struct SparseReader {
    file: File,
    pieces: std::vec::IntoIter<DataRange>,
    now: DataRange,
}

impl SparseReader {
    pub(super) fn new(file: File, pieces: Vec<DataRange>) -> SparseReader {
        SparseReader { file, pieces: pieces.into_iter(), now: DataRange { at: 0, length: 0 } }
    }
}

impl Read for SparseReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.length == 0 {
            let Some(next) = self.pieces.next() else { return Ok(0) };
            self.now = next;
        }
        let most = usize::try_from(self.now.length).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.file.read_at(&mut buffer[..most], self.now.at)? {
            0 => {
                buffer[..most].fill(0);
                most
            }
            read => read,
        };
        self.now.at += read as u64;
        self.now.length -= read as u64;
        Ok(read)
    }
}
