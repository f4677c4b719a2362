//! Images in the formats of registries and container engines: an OCI layout (`oci-layout`, `index.json`, `blobs/`), or
//! the output of `docker save` (`manifest.json`). Every digest is checked: those of the manifests, of the
//! configuration, of the layers, and of each unpacked layer. Nothing is downloaded. Commands and variables in the
//! configuration are ignored, because a workspace has its own.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::import::unpack;
use super::report::ProgressFn;
use super::writer::{TreeWriter, normalize, split};
use crate::base::hex::encode as hex;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::Cancel;
use crate::store::beneath::Root;

/// Maximum number of layers of an image; Docker's limit is 127.
const IMAGE_LAYERS: usize = 256;

/// The parts of one image in such a format.
#[derive(Debug)]
pub(super) struct LayeredImage {
    root: Root,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    path: String,
    /// The digest of the layer's file, if the manifest contains it.
    digest: Option<String>,
    /// The digest of the unpacked layer.
    diff_id: String,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ImageIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl LayeredImage {
    /// Returns whether a tree contains an image in such a format rather than a system.
    pub(super) fn are_in(path: &Path) -> Result<bool> {
        let root = Root::open(path)?;
        let has = |name: &str| root.metadata(name).map(|found| found.is_some_and(|found| found.is_file()));
        Ok((has("manifest.json")? || (has("oci-layout")? && has("index.json")?)) && !root.exists("bin/sh")?)
    }

    /// Reads the list of an image's parts; `reference` selects one of several images.
    ///
    /// # Errors
    /// `InvalidImage` when the tree does not contain exactly one matching image, or when a part is invalid.
    pub(super) fn open(path: &Path, reference: Option<&str>) -> Result<LayeredImage> {
        let root = Root::open(path)?;
        // New versions of Docker write both formats; only the older format contains every tag.
        let layers = match read(&root, "manifest.json")? {
            Some(bytes) => docker(&root, &bytes, reference)?,
            None => {
                let bytes = read(&root, "index.json")?.ok_or_else(|| refused("has no index.json"))?;
                layout(&root, parse(&bytes, "index.json")?, reference, 0)?
            }
        };
        if layers.len() > IMAGE_LAYERS {
            return Err(refused(&format!("has more than {} layers", IMAGE_LAYERS)));
        }
        Ok(LayeredImage { root, layers })
    }
}

fn docker(root: &Root, bytes: &[u8], reference: Option<&str>) -> Result<Vec<Layer>> {
    let images: Vec<DockerImage> = parse(bytes, "manifest.json")?;
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let all = images.iter().flat_map(tags).collect::<Vec<_>>();
    let fits =
        |image: &&DockerImage| reference.is_none_or(|wanted| tags(image).iter().any(|tag| tag == wanted));
    let image = one(images.iter().filter(fits), &all, reference)?;
    let config = read(root, &image.config)?.ok_or_else(|| refused("lacks its configuration"))?;
    // The name of the configuration is its digest, in both forms that Docker has used.
    let name = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if name != hex(&Sha256::digest(&config)) {
        return Err(refused("has a configuration with the wrong digest"));
    }
    let diff_ids = diff_ids(&config)?;
    if diff_ids.len() != image.layers.len() {
        return Err(refused("has a different number of layers than its configuration"));
    }
    let layer = |(path, diff_id): (&String, String)| Layer { path: path.clone(), digest: None, diff_id };
    Ok(image.layers.iter().zip(diff_ids).map(layer).collect())
}

fn layout(root: &Root, index: ImageIndex, reference: Option<&str>, depth: usize) -> Result<Vec<Layer>> {
    const TAG: &str = "org.opencontainers.image.ref.name";
    if depth > 4 {
        return Err(refused("has too many nested indexes"));
    }
    let tag = |image: &Descriptor| image.annotations.get(TAG).cloned();
    let all: Vec<String> = index.manifests.iter().filter_map(tag).collect();
    let here = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    let fits = |image: &&Descriptor| {
        let platform = image.platform.as_ref().is_none_or(here);
        platform && (depth > 0 || reference.is_none_or(|wanted| tag(image).as_deref() == Some(wanted)))
    };
    let image = one(index.manifests.iter().filter(fits), &all, reference)?;
    let bytes = blob(root, image)?;
    if image.media_type.ends_with("image.index.v1+json")
        || image.media_type.ends_with("manifest.list.v2+json")
    {
        return layout(root, parse(&bytes, "an index")?, reference, depth + 1);
    }
    let manifest: ImageManifest = parse(&bytes, "a manifest")?;
    let diff_ids = diff_ids(&blob(root, &manifest.config)?)?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(refused("has a different number of layers than its configuration"));
    }
    let layer = |(layer, diff_id): (&Descriptor, String)| {
        Ok(Layer { path: blob_path(&layer.digest)?, digest: Some(layer.digest.clone()), diff_id })
    };
    manifest.layers.iter().zip(diff_ids).map(layer).collect()
}

/// Returns the only matching image.
fn one<'a, T>(
    mut fitting: impl Iterator<Item = &'a T>,
    tags: &[String],
    reference: Option<&str>,
) -> Result<&'a T> {
    let listed = || {
        let mut tags: Vec<String> = tags.iter().take(20).map(|tag| tag.escape_debug().to_string()).collect();
        tags.sort_unstable();
        if tags.is_empty() { "none with a name".to_owned() } else { tags.join(", ") }
    };
    match (fitting.next(), fitting.next(), reference) {
        (Some(image), None, _) => Ok(image),
        (Some(_), Some(_), _) => {
            Err(refused(&format!("holds several images; choose one by its tag (reference): {}", listed())))
        }
        (None, _, Some(_)) => {
            Err(refused(&format!("does not contain the requested image, but {}", listed())))
        }
        (None, _, None) => Err(refused(&format!("contains no image for linux on {}", architecture()))),
    }
}

fn diff_ids(config: &[u8]) -> Result<Vec<String>> {
    let config: ImageConfig = parse(config, "the configuration")?;
    let fits = (config.os.is_empty() || config.os == "linux")
        && (config.architecture.is_empty() || config.architecture == architecture());
    if !fits {
        let is = format!("{}/{}", config.os.escape_debug(), config.architecture.escape_debug());
        return Err(refused(&format!("is for {is}, and this machine is linux/{}", architecture())));
    }
    for id in &config.rootfs.diff_ids {
        blob_path(id)?;
    }
    Ok(config.rootfs.diff_ids)
}

/// Returns the name of this machine's architecture in Go, which image manifests use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn blob_path(digest: &str) -> Result<String> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    match hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        Some(hex) => Ok(format!("blobs/sha256/{hex}")),
        None => Err(refused("names a part without a SHA-256 digest")),
    }
}

fn blob(root: &Root, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = read(root, &blob_path(&descriptor.digest)?)?;
    let bytes = bytes.ok_or_else(|| refused(&format!("lacks the part {}", descriptor.digest)))?;
    let size_fits = descriptor.size == 0 || descriptor.size == bytes.len() as u64;
    if !size_fits || format!("sha256:{}", hex(&Sha256::digest(&bytes))) != descriptor.digest {
        return Err(refused(&format!("has been changed: the part {} has another digest", descriptor.digest)));
    }
    Ok(bytes)
}

fn read(root: &Root, path: &str) -> Result<Option<Vec<u8>>> {
    match root.read(path, limits::IMAGE_MANIFEST_BYTES) {
        Err(error) if error.code() == Code::InvalidPath => Err(refused(error.message())),
        read => read,
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| refused(&format!("has {what} that cannot be read: {error}")))
}

/// Unpacks the layers of the image in order.
///
/// # Errors
/// `InvalidImage` when a layer is invalid or does not match its digest; `DiskFull`; `Cancelled`.
pub(super) fn apply(
    parts: &LayeredImage,
    writer: &mut TreeWriter,
    progress: ProgressFn<'_>,
    cancel: &Cancel,
) -> Result<()> {
    for (number, layer) in parts.layers.iter().enumerate() {
        writer.next_layer();
        let file = match parts.root.open_file(&layer.path) {
            Err(error) if error.code() == Code::InvalidPath => return Err(refused(error.message())),
            file => file?.ok_or_else(|| refused(&format!("lacks the layer {}", layer.path)))?,
        };
        let length = file.metadata().at("read", &layer.path)?.len();
        let step = format!("layer {} of {}", number + 1, parts.layers.len());
        let mut plain = Sha256::new();
        let raw = std::sync::Mutex::new(Sha256::new());
        let input = HashingReader { input: file, digest: &raw };
        unpack(
            input,
            Some(length),
            &step,
            writer,
            &mut |bytes| plain.update(bytes),
            progress,
            cancel,
            &mut |w, m, c| {
                let path = normalize(&m.path)?;
                let (folder, name) = split(&path);
                match name.strip_prefix(b".wh.") {
                    Some(b".wh..opq") => w.opaque(folder),
                    // Other names with this prefix come from old versions of AUFS and have no meaning elsewhere.
                    Some(rest) if rest.starts_with(b".wh.") => Ok(()),
                    Some(b"") => Err(refused("removes an entry without a name")),
                    Some(rest) => w.whiteout(&super::writer::join(folder, rest)),
                    None => w.put(m, c).map(drop),
                }
            },
        )?;
        let with_prefix = |digest: Sha256| format!("sha256:{}", hex(&digest.finalize()));
        let raw = raw.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = layer.digest.as_ref().is_some_and(|digest| with_prefix(raw) != *digest);
        if changed || with_prefix(plain) != layer.diff_id {
            return Err(refused(&format!("has been changed: the layer {} has another digest", layer.path)));
        }
    }
    Ok(())
}

struct HashingReader<'a, R> {
    input: R,
    digest: &'a std::sync::Mutex<Sha256>,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        crate::base::thread::lock(self.digest).update(&buffer[..n]);
        Ok(n)
    }
}

fn refused(problem: &str) -> Error {
    Error::new(Code::InvalidImage, format!("The image {problem}"))
}
