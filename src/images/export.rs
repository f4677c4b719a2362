//! Writes an image as an archive that any tar can unpack and that gives the same image when it is imported.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{Images, pack};
use crate::base::{At, Code, Error, Result};
use crate::proc::Cancel;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Returns the compression for the extension of a file name: `.tar`, `.tar.gz`, `.tgz` or `.tar.zst`.
    ///
    /// # Errors
    /// `InvalidRequest` for another extension.
    pub fn of(name: &str) -> Result<Compression> {
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        match () {
            () if ends(&[".tar"]) => Ok(Compression::None),
            () if ends(&[".tar.gz", ".tgz"]) => Ok(Compression::Gzip),
            () if ends(&[".tar.zst", ".tzst"]) => Ok(Compression::Zstd),
            () => Err(Error::new(
                Code::InvalidRequest,
                format!(
                    "'{}' must end with .tar, .tar.gz or .tar.zst, which selects the compression",
                    name.escape_debug()
                ),
            )),
        }
    }
}

impl Images {
    /// Writes the image that `wanted` identifies ([`Images::find`]) to `out`. `progress` receives the number of entries
    /// so far.
    ///
    /// # Errors
    /// `ImageNotFound`, `Cancelled`, and errors of writing.
    pub fn export(
        &self,
        wanted: &str,
        compression: Compression,
        out: impl Write,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let image = self.find(wanted)?;
        let mut out = BufWriter::with_capacity(256 << 10, out);
        match compression {
            Compression::None => pack::write(&image.root, &mut out, cancel, progress),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                pack::write(&image.root, &mut encoder, cancel, progress)?;
                encoder.finish().and_then(|mut out| out.flush()).at("write", "the archive")
            }
            Compression::Zstd => {
                // Level 3 uses the fast compressor, the only one in this build (.cargo/config.toml); its output is 2 %
                // larger.
                let mut encoder = zstd::Encoder::new(out, 3).at("write", "the archive")?;
                pack::write(&image.root, &mut encoder, cancel, progress)?;
                encoder.finish().and_then(|mut out| out.flush()).at("write", "the archive")
            }
        }
    }

    /// Exports an image into a file, which appears only when it is complete.
    ///
    /// # Errors
    /// The same as for [`Images::export`].
    pub fn export_file(
        &self,
        wanted: &str,
        path: &Path,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let compression = Compression::of(&name)?;
        let part = path.with_file_name(format!(".{name}.part-{}", std::process::id()));
        let out = File::create_new(&part).at("write", &part)?;
        let written = self
            .export(wanted, compression, &out, cancel, progress)
            .and_then(|()| out.sync_all().at("write", &part))
            .and_then(|()| std::fs::rename(&part, path).at("write", path));
        if written.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        written
    }
}
