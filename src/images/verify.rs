//! Verifies that an image still matches its ID, by reading all of its files.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead as _, BufReader, Seek as _};

use serde::Serialize;

use super::listing::{self, KnownDigests, SpecialFiles};
use super::{Image, ImageId, Images};
use crate::base::{At, Result};
use crate::proc::Cancel;

/// Maximum number of differences on each side that a verification reports.
const IMAGE_DIFFERENCES: usize = 20;

/// The result of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    pub id: ImageId,
    /// Whether the content is unchanged.
    pub ok: bool,
    /// The first lines of the listing that are no longer correct (`-`) or are new (`+`).
    pub differences: Vec<String>,
}

impl Images {
    /// Reads the whole image and compares it with its id.
    ///
    /// # Errors
    /// `ImageNotFound`, `Cancelled`, or errors of reading.
    pub fn verify(&self, id: &ImageId, cancel: &Cancel) -> Result<Verified> {
        let image = self.get(id)?;
        self.compare(&image, cancel)
    }

    pub(super) fn compare(&self, image: &Image, cancel: &Cancel) -> Result<Verified> {
        let mut now = tempfile(&self.folder)?;
        let totals = listing::write(&image.root, &KnownDigests::new(), SpecialFiles::Show, &mut now, cancel)?;
        let mut verified =
            Verified { id: image.id.clone(), ok: totals.id == image.id, differences: Vec::new() };
        if !verified.ok {
            let path = image.root.with_file_name("listing");
            let mut then = File::open(&path).at("open", &path)?;
            now.rewind().at("read", "the listing")?;
            compare(&mut then, &mut now, &mut verified.differences).at("read", &path)?;
        }
        Ok(verified)
    }
}

/// Creates a file without a name in `folder`.
pub(super) fn tempfile(folder: &std::path::Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(folder, flags, Mode::RUSR | Mode::WUSR).map(File::from).at("write in", folder)
}

/// Finds lines that only one of the two files contains. The hashes of all lines fit into memory, but the lines may not.
fn compare(then: &mut File, now: &mut File, differences: &mut Vec<String>) -> std::io::Result<()> {
    let state = RandomState::new();
    let mut known = [HashSet::new(), HashSet::new()];
    for (file, lines) in [&mut *then, &mut *now].into_iter().zip(&mut known) {
        for line in BufReader::new(&mut *file).split(b'\n') {
            lines.insert(state.hash_one(line?));
        }
        file.rewind()?;
    }
    for (file, other, sign) in [(then, &known[1], '-'), (now, &known[0], '+')] {
        let lines = BufReader::new(file).split(b'\n');
        let mut left = IMAGE_DIFFERENCES;
        for line in lines {
            let line = line?;
            if !other.contains(&state.hash_one(&line)) {
                differences.push(format!("{sign} {}", String::from_utf8_lossy(&line)));
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
    }
    Ok(())
}
