//! The parameters, the progress and the result of an import, as callers of [`super::Images`] see them. Data only.

use serde::Serialize;

use super::id::ImageName;
use super::record::ImageView;
use super::writer::LeftOut;

/// Progress of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportProgress {
    /// Current step: `unpack`, `layer 2 of 5`, `list`.
    pub step: String,
    /// Bytes of the input read in this step.
    pub read_bytes: u64,
    /// Total number of bytes, if known.
    pub total_bytes: Option<u64>,
    /// Entries written so far.
    pub entries: u64,
}

/// Callback for progress.
pub type ProgressFn<'a> = &'a mut dyn FnMut(ImportProgress);

/// Result of an import.
#[derive(Clone, Debug, Serialize)]
pub struct ImportedImage {
    #[serde(flatten)]
    pub image: ImageView,
    /// Entries that were omitted or changed.
    pub left_out: LeftOut,
}

/// Parameters of an import.
#[derive(Clone, Debug)]
pub struct ImportSpec<'a> {
    /// Name that will point to the image.
    pub name: &'a ImageName,
    /// Description of the source.
    pub origin: String,
    /// Tag that selects one of several images in an archive.
    pub reference: Option<&'a str>,
}
