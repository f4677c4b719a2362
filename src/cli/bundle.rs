//! `berth bundle`: packs all files for a machine without network into one archive, and restores such an archive. The
//! file is a tar archive: `bundle.json` (the list of contents), `berth` (this binary), `library/…` (templates, skills,
//! tools, scripts) and `images/NAME.tar.zst`. The key for secrets in templates is not included; copy it by hand if you
//! need it. Restoring is idempotent.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::base::logging::counted;
use crate::base::{At, Code, Error, Result, limits};
use crate::config::{self, CommandLine};
use crate::images::{Compression, ImageId, ImageName, Images, ImportSpec};
use crate::library::is_ignored_name;
use crate::proc::{Cancel, Cgroups};
use crate::server::{self, Settings};
use crate::store::beneath::Root;
use crate::store::{file, format};

/// The content of `bundle.json`.
#[derive(Serialize, Deserialize)]
struct BundleManifest {
    /// The version of the bundle's format. A bundle with another version is refused.
    format: u32,
    /// The version of berth that wrote the bundle.
    version: String,
    images: Vec<BundledImage>,
}

#[derive(Serialize, Deserialize)]
struct BundledImage {
    name: ImageName,
    id: ImageId,
}

/// Runs `berth bundle …`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), or if a step fails.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("bundle", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let [name] = &asked.words[..] else {
        return Err(Error::config("bundle", "say `berth bundle FILE` or `berth bundle --restore FILE`"));
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let settings = config::resolve(&asked, &config::process_env, &current_dir)?.settings;
    format::prepare(&settings.data_dir)?;
    let cgroups = Cgroups::take(&format!("berth-image-{}", std::process::id()));
    let images = server::images(&settings, cgroups.clone())?;
    let done = act(&images, &settings, &asked, &current_dir, name);
    cgroups.release();
    done
}

fn act(
    images: &Images,
    settings: &Settings,
    asked: &CommandLine,
    current_dir: &Path,
    name: &str,
) -> Result<ExitCode> {
    let cancel = Cancel::new()?;
    super::doctor::on_interrupt(&cancel)?;
    let path = current_dir.join(name);
    if asked.restore {
        let bin = current_dir.join(asked.bin.as_deref().unwrap_or("/usr/local/bin"));
        restore(&path, images, settings, &bin, &cancel)?;
    } else {
        let part = path.with_file_name(format!(".berth-bundle-{}", std::process::id()));
        let written = write(&path, &part, images, settings, &asked.image, &cancel);
        for left in [part.with_extension("image"), part] {
            let _ = std::fs::remove_file(left);
        }
        written?;
    }
    Ok(ExitCode::SUCCESS)
}

fn library_of(settings: &Settings) -> PathBuf {
    settings.library.clone().unwrap_or_else(|| settings.data_dir.join("library"))
}

fn write(
    path: &Path,
    part: &Path,
    images: &Images,
    settings: &Settings,
    wanted: &[String],
    cancel: &Cancel,
) -> Result<()> {
    let mut packed = Vec::new();
    for image in images.list()? {
        let chosen =
            |name: &&ImageName| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name.as_str());
        let names = image.names.iter().filter(chosen);
        packed.extend(names.map(|name| BundledImage { name: name.clone(), id: image.record.id.clone() }));
    }
    if let Some(missing) =
        wanted.iter().find(|name| !packed.iter().any(|image| image.name.as_str() == **name))
    {
        let message = format!(
            "There is no image with the name '{}'; `berth image list` shows them",
            missing.escape_debug()
        );
        return Err(Error::new(Code::ImageNotFound, message));
    }
    let contents = BundleManifest { format: 1, version: env!("CARGO_PKG_VERSION").into(), images: packed };
    let out = File::create_new(part).at("write", part)?;
    let mut bundle = tar::Builder::new(BufWriter::with_capacity(1 << 20, &out));
    let listed = serde_json::to_vec_pretty(&contents)
        .map_err(|error| Error::internal("The bundle's list cannot be written").with_source(error))?;
    add(&mut bundle, "bundle.json", 0o644, listed.len() as u64, &listed[..]).at("write", part)?;
    let exe = Path::new("/proc/self/exe");
    let binary = File::open(exe).at("open", exe)?;
    let size = binary.metadata().at("read", exe)?.len();
    add(&mut bundle, "berth", 0o755, size, binary).at("write", part)?;
    let library = library_of(settings);
    if library.is_dir() {
        let root = Root::open(&library)?;
        add_folder(&mut bundle, &root, "", part, 0)?;
    }
    let mut done: Vec<&ImageId> = Vec::new();
    for image in &contents.images {
        // An image with several names is stored only once.
        if done.contains(&&image.id) {
            continue;
        }
        done.push(&image.id);
        eprintln!("Packing the image {} ({})", image.name, image.id.short());
        let beside = part.with_extension("image");
        let archive = File::options().read(true).write(true).create(true).truncate(true).open(&beside);
        let archive = archive.at("write", &beside)?;
        images.export(image.id.as_str(), Compression::Zstd, &archive, cancel, &mut |_| {})?;
        let size = archive.metadata().at("read", &beside)?.len();
        let again = File::open(&beside).at("open", &beside)?;
        add(&mut bundle, &format!("images/{}.tar.zst", image.name), 0o644, size, again).at("write", part)?;
    }
    bundle
        .into_inner()
        .and_then(|out| out.into_inner().map_err(|error| error.into_error()))
        .at("write", part)?;
    out.sync_all().at("write", part)?;
    std::fs::rename(part, path).at("write", path)?;
    eprintln!(
        "{} has berth {}, {} and the library. On the other machine:\n  tar -xf {} berth && ./berth bundle --restore {}",
        path.display(),
        contents.version,
        counted(done.len(), "image"),
        path.display(),
        path.display()
    );
    Ok(())
}

fn add(
    bundle: &mut tar::Builder<impl std::io::Write>,
    name: &str,
    mode: u32,
    size: u64,
    content: impl Read,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    bundle.append_data(&mut header, name, content)
}

/// Adds the regular files of a folder. Hidden files are included only in skills, because the library may be a git
/// clone.
fn add_folder(
    bundle: &mut tar::Builder<impl std::io::Write>,
    root: &Root,
    folder: &str,
    part: &Path,
    depth: usize,
) -> Result<()> {
    if depth > limits::LIBRARY_PATH_PARTS + 2 {
        return Ok(());
    }
    let mut names = root.entries(folder, limits::LIBRARY_ENTRIES)?;
    names.sort_unstable();
    let counts = |name: &&String| match folder.starts_with("skill/") {
        true => !is_ignored_name(name),
        false => !name.starts_with('.'),
    };
    for name in names.iter().filter(counts) {
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if root.is_dir(&path)? {
            add_folder(bundle, root, &path, part, depth + 1)?;
            continue;
        }
        let mode = match root.metadata(&path)? {
            Some(found) if found.mode() & 0o100 != 0 => 0o755,
            _ => 0o644,
        };
        match root.read(&path, limits::SKILL_BYTES as u64) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                add(bundle, &format!("library/{path}"), mode, bytes.len() as u64, &bytes[..])
                    .at("write", part)?;
            }
            Err(error) if error.code() == Code::InvalidPath => {
                eprintln!("The bundle gets the library without {path}: {}", error.message());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn restore(path: &Path, images: &Images, settings: &Settings, bin: &Path, cancel: &Cancel) -> Result<()> {
    let library = library_of(settings);
    file::create_dir_private(&library)?;
    let library = Root::open(&library)?;
    let input = File::open(path).map_err(|error| Error::config(path.display(), error))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, input));
    let broken =
        |error: std::io::Error| Error::new(Code::InvalidImage, format!("The bundle is damaged: {error}"));
    let mut contents: Option<BundleManifest> = None;
    let (mut files, mut kept, mut restored) = (0, 0, 0);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| refused("a name that is not UTF-8"))?;
        let parts: Vec<_> = Path::new(&name).components().collect();
        if !parts.iter().all(|part| matches!(part, Component::Normal(_)))
            || !entry.header().entry_type().is_file()
        {
            return Err(refused(&format!("'{}', which has no place there", name.escape_debug())));
        }
        match (name.as_str(), &contents) {
            ("bundle.json", None) => {
                let mut bytes = Vec::new();
                entry.by_ref().take(limits::IMAGE_MANIFEST_BYTES).read_to_end(&mut bytes).map_err(broken)?;
                let read: BundleManifest = serde_json::from_slice(&bytes)
                    .map_err(|error| refused(&format!("a list that cannot be read ({error})")))?;
                if read.format != 1 {
                    return Err(refused(
                        "the form of another version of berth; use the binary that is in it",
                    ));
                }
                contents = Some(read);
            }
            (_, None) => return Err(refused("no bundle.json at its beginning; it is something else")),
            ("berth", Some(_)) => {
                let size = entry.size();
                if size > limits::BUNDLE_BINARY_BYTES {
                    return Err(refused("a binary that is too large"));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(broken)?;
                std::fs::create_dir_all(bin).at("make", bin)?;
                file::write_atomic(&bin.join("berth"), &bytes, 0o755)?;
            }
            (name, Some(contents)) => match (name.strip_prefix("library/"), name.strip_prefix("images/")) {
                (Some(rel), _) => {
                    if entry.size() > limits::SKILL_BYTES as u64 {
                        return Err(refused(&format!("'{}', which is too large", name.escape_debug())));
                    }
                    let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
                    let mut bytes = Vec::new();
                    entry.by_ref().read_to_end(&mut bytes).map_err(broken)?;
                    match library.read(rel, limits::SKILL_BYTES as u64)? {
                        // A file that already exists in the library is kept.
                        Some(there) => kept += u32::from(there != bytes),
                        None => {
                            if let Some((folder, _)) = rel.rsplit_once('/') {
                                library.make_dirs(folder)?;
                            }
                            library.write_new(rel, &bytes, if executable { 0o755 } else { 0o644 })?;
                            files += 1;
                        }
                    }
                }
                (None, Some(rel)) => {
                    let wanted = rel.strip_suffix(".tar.zst").unwrap_or_default();
                    let image = contents.images.iter().find(|image| image.name.as_str() == wanted);
                    let image = image.ok_or_else(|| refused("an image that it does not list"))?;
                    eprintln!("Restoring the image {} ({})", image.name, image.id.short());
                    let size = Some(entry.size());
                    restore_image(images, image, &contents.images, &mut entry, size, cancel)?;
                    restored += 1;
                }
                _ => return Err(refused(&format!("'{}', which has no place there", name.escape_debug()))),
            },
        }
    }
    let contents = contents.ok_or_else(|| refused("nothing in it"))?;
    let mut ids: Vec<&ImageId> = contents.images.iter().map(|image| &image.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if restored < ids.len() {
        return Err(refused("fewer images than it lists; it is incomplete"));
    }
    eprintln!(
        "Restored berth {} to {}, {} and {} of the library{}. Start it with\n  {}",
        contents.version,
        bin.display(),
        counted(restored, "image"),
        counted(files, "file"),
        if kept > 0 { format!(" (not replaced: {kept} that existed already)") } else { String::new() },
        bin.join("berth").display(),
    );
    Ok(())
}

fn restore_image(
    images: &Images,
    image: &BundledImage,
    all: &[BundledImage],
    input: &mut dyn Read,
    size: Option<u64>,
    cancel: &Cancel,
) -> Result<()> {
    if images.get(&image.id).is_err() {
        // The names are assigned after the image's id was verified.
        let wanted = ImportSpec { name: &image.name, origin: "a bundle".into(), reference: None };
        let made = images.import_upload(input, size, &wanted, cancel)?.image.record.id;
        if made != image.id {
            images.remove(&made)?;
            return Err(refused(&format!(
                "another image than it lists as {}; it was changed or is damaged",
                image.name
            )));
        }
    }
    for name in all.iter().filter(|other| other.id == image.id) {
        images.set_pointer(&name.name, &image.id)?;
    }
    Ok(())
}

fn refused(problem: &str) -> Error {
    Error::new(Code::InvalidImage, format!("The bundle has {problem}"))
}
