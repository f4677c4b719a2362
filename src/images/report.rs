//! The parameters, the progress and the result of an import, as callers of [`super::Images`] see them. Data only.

use serde::Serialize;

use super::id::ImageName;
use super::record::ImageView;
use super::writer::LeftOut;

/// The progress of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportProgress {
    /// Current step: `unpack`, `layer 2 of 5`, `list`.
    pub step: String,
    /// Number of bytes of the input that were read in this step.
    pub read_bytes: u64,
    /// Number of bytes of the whole input, if known.
    pub total_bytes: Option<u64>,
    /// Number of entries written so far.
    pub entries: u64,
}

/// A callback that receives the progress.
pub type ProgressFn<'a> = &'a mut dyn FnMut(ImportProgress);

/// The result of an import.
#[derive(Clone, Debug, Serialize)]
pub struct ImportedImage {
    #[serde(flatten)]
    pub image: ImageView,
    /// The numbers of entries that were omitted or changed.
    pub left_out: LeftOut,
}

/// The parameters of an import.
#[derive(Clone, Debug)]
pub struct ImportSpec<'a> {
    /// The name that will point to the image.
    pub name: &'a ImageName,
    /// A description of the source.
    pub origin: String,
    /// The tag that selects one of several images in an archive.
    pub reference: Option<&'a str>,
}
