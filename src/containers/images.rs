//! Base images: one per distribution, made once, then copied into roots. `<data>/images/<distro>/` is complete by its
//! very existence: it is made beside and renamed.
//!
//! Lock: `making`, one per distribution, held while an image is made, so two builds share one bootstrap.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::bootstrap::{bootstrap, outcome};
use super::build_log::BuildLog;
use super::mirrors::Sources;
use super::tools;
use crate::base::ids::Distro;
use crate::base::thread::lock;
use crate::base::{At, Result, limits};
use crate::proc::{Cancel, Cgroups, Spec};
use crate::store::{file, tree};

/// The image store.
pub struct Images {
    folder: PathBuf,
    sources: Sources,
    cgroups: Cgroups,
    making: Mutex<BTreeMap<Distro, Arc<Mutex<()>>>>,
}

/// Half-made images begin with this; a start removes them.
const STAGING: &str = ".new-";

impl Images {
    /// Opens the store in `folder` and removes what a crash left half-made.
    ///
    /// # Errors
    /// When the folder cannot be made or cleaned.
    pub fn open(folder: &Path, sources: Sources, cgroups: Cgroups) -> Result<Images> {
        file::create_dir_private(folder)?;
        for entry in std::fs::read_dir(folder).at("list", folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(STAGING) {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    tree::remove_tree(folder, &name)?;
                } else {
                    std::fs::remove_file(entry.path()).at("remove", entry.path())?;
                }
            }
        }
        Ok(Images { folder: folder.to_owned(), sources, cgroups, making: Mutex::default() })
    }

    /// Makes a root from `distro`'s image in the folder `root`, which must not exist; makes the image first if
    /// there is none.
    ///
    /// # Errors
    /// `BuildFailed` or `Cancelled`; `root` may then be half-made, and is the caller's to remove.
    pub fn make_root(&self, distro: Distro, root: &Path, log: &mut BuildLog, cancel: &Cancel) -> Result<()> {
        let image = self.image(distro, log, cancel)?;
        log.say(format!("Copying the base image of {distro}"));
        log.new_step();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let ended = Spec::new(tools::require("cp")?)
            .args(["--archive", "--reflink=auto", "--one-file-system", "--no-target-directory", "--"])
            .args([text(&image), text(root)])
            .run(
                self.cgroups.group(&format!("builds/{}", uuid::Uuid::new_v4()))?,
                log,
                limits::COPY_TIMEOUT,
                cancel,
            )?;
        outcome(ended, "copying the base image", log)
    }

    fn image(&self, distro: Distro, log: &mut BuildLog, cancel: &Cancel) -> Result<PathBuf> {
        let making = lock(&self.making).entry(distro).or_default().clone();
        let _one_at_a_time = lock(&making);
        let image = self.folder.join(distro.as_str());
        if image.is_dir() {
            return Ok(image);
        }
        log.say(format!("Building the base image of {distro}; this takes a minute, once"));
        let name = format!("{STAGING}{}", uuid::Uuid::new_v4());
        let staging = self.folder.join(&name);
        std::fs::create_dir(&staging).at("make", &staging)?;
        let made = self.cgroups.group(&format!("builds/{}", uuid::Uuid::new_v4())).and_then(|group| {
            // The folder was private while it was empty; as a root it must be enterable by its own users.
            std::fs::set_permissions(&staging, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .at("prepare", &staging)?;
            bootstrap(distro, &staging, &self.sources, group, log, cancel)?;
            std::fs::rename(&staging, &image).at("move", &staging)
        });
        let config = staging.with_extension("pacman.conf");
        let _ = std::fs::remove_file(config);
        if let Err(error) = made {
            if let Err(left) = tree::remove_tree(&self.folder, &name) {
                log::warn!("a half-made image is left until the next start: {left}");
            }
            return Err(error);
        }
        log.say("The base image is ready");
        Ok(image)
    }
}
