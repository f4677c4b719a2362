//! The version of the data folder's format: one number, in the file `format`, for all of berth's files there. It
//! changes when an older berth would misread or damage the files of a newer one; a new field that older versions ignore
//! does not change it. A folder without the file is from a version before the file existed, and has format 1.
//!
//! **Invariant:** a folder of a newer format is neither written to nor repaired. Every command checks the number when
//! it resolves its data folder; the server checks it again once it holds the folder's lock.
//!
//! The version does not cover files in OpenWork's formats (`tokens.json`, `openwork-orchestrator-state.json`) or in
//! sandboxed.sh's formats (the library, `private_key`), because other programs read them, too.

use std::path::Path;

use super::file;
use crate::base::{Code, Error, Result};

/// The format that this version reads and writes. assets/packaging/deb/build reads the number from this line.
pub const DATA_FORMAT: u32 = 1;

/// The name of the file that contains the format.
pub const FORMAT_FILE: &str = "format";

/// Returns the format of the data folder. The folder does not have to exist.
///
/// # Errors
/// `NewerFormat` when the format is newer than this version supports; `Config` when the file does not contain a number.
pub fn check(data_dir: &Path) -> Result<u32> {
    let path = data_dir.join(FORMAT_FILE);
    // If this user cannot enter the folder, the command that needs the folder reports this.
    if path.symlink_metadata().is_err() {
        return Ok(1);
    }
    let bytes = file::read_optional(&path, 64)?.unwrap_or_else(|| b"1".to_vec());
    let text = String::from_utf8_lossy(&bytes);
    let found = text.trim().parse::<u32>().ok().filter(|found| *found > 0);
    let found = found.ok_or_else(|| {
        let text = text.trim().escape_debug().to_string();
        let problem =
            format!("'{text}' is not the version of a data folder; it is a number, {DATA_FORMAT} now");
        Error::config(path.display(), problem)
    })?;
    check_known(found, &data_dir.display().to_string())?;
    Ok(found)
}

/// Checks that this version supports the format `found`.
///
/// # Errors
/// `NewerFormat`, with a message that names the data `what`.
pub fn check_known(found: u32, what: &str) -> Result<()> {
    if found <= DATA_FORMAT {
        return Ok(());
    }
    let version = env!("CARGO_PKG_VERSION");
    Err(Error::new(
        Code::NewerFormat,
        format!(
            "{what} has data format {found}, which a newer berth wrote; berth {version} reads formats up to {DATA_FORMAT}. \
             Nothing was changed: use the newer version, or another data folder (--data-dir)"
        ),
    ))
}

/// Creates the data folder if necessary, and records its format.
///
/// # Errors
/// The same as for [`check`]; also when the folder cannot be created.
pub fn prepare(data_dir: &Path) -> Result<()> {
    file::create_dir_private(data_dir)?;
    record(data_dir)
}

/// Records the format in an existing folder.
///
/// # Errors
/// The same as for [`check`].
pub fn record(data_dir: &Path) -> Result<()> {
    check(data_dir)?;
    let path = data_dir.join(FORMAT_FILE);
    if !path.exists() {
        // A full disk must not prevent the start, and a missing file means format 1.
        if let Err(error) = file::write_atomic(&path, format!("{DATA_FORMAT}\n").as_bytes(), 0o600) {
            log::warn!("{error}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn newer_format_is_refused_and_a_missing_file_means_the_first() {
        let dir = TestFolder::new();
        assert_eq!(check(&dir.join("missing")).unwrap(), 1);
        assert_eq!(check(&dir).unwrap(), 1);
        prepare(&dir.join("data")).unwrap();
        let path = dir.join("data").join(FORMAT_FILE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{DATA_FORMAT}\n"));
        file::write_atomic(&path, format!("{}\n", DATA_FORMAT + 1).as_bytes(), 0o600).unwrap();
        let newer = prepare(&dir.join("data")).unwrap_err();
        assert_eq!(newer.code(), Code::NewerFormat);
        assert!(newer.message().contains("a newer berth wrote"), "{newer}");
        for damaged in ["", "0", "-1", "one", "1 2"] {
            file::write_atomic(&path, damaged.as_bytes(), 0o600).unwrap();
            assert_eq!(check(&dir.join("data")).unwrap_err().code(), Code::Config, "{damaged:?}");
        }
    }
}
