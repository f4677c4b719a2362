//! `berth image`: manages base images on the command line. The command works directly on the data folder, whether a
//! server is running or not: several processes can use the store of images at the same time (`images`), so the command
//! needs no address, token or server, and a running server sees its changes at once. Progress is printed on stderr if
//! stderr is a terminal.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::base::ids::Distro;
use crate::base::{At, Code, Error, Result, logging};
use crate::config::{self, CommandLine, table};
use crate::images::BuildLog;
use crate::images::{
    Compression, ImageName, ImageView, Images, ImportProgress, ImportSpec, ImportedImage, LeftOut, Pull,
};
use crate::proc::{Cancel, Cgroups};
use crate::server;
use crate::store::format;

/// Runs `berth image …`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), or if the operation fails.
pub fn run(args: &[String]) -> Result<ExitCode> {
    if args.first().is_none_or(|first| ["help", "-h", "--help"].contains(&first.as_str())) {
        return Ok(super::help("image"));
    }
    let asked = match super::line("image", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let settings = config::resolve(&asked, &config::process_env, &current_dir)?.settings;
    format::prepare(&settings.data_dir)?;
    // The processes of builds get a cgroup of their own, separate from those of a running server.
    let cgroups = Cgroups::take(&format!("berth-image-{}", std::process::id()));
    let images = server::images(&settings, cgroups.clone())?;
    let cancel = Cancel::new()?;
    super::doctor::on_interrupt(&cancel)?;
    let done = act(&images, &asked, &current_dir, &cancel);
    cgroups.release();
    done
}

fn act(images: &Images, asked: &CommandLine, here: &Path, cancel: &Cancel) -> Result<ExitCode> {
    let words: Vec<&str> = asked.words.iter().map(String::as_str).collect();
    let (verb, names) = words.split_first().map_or(("", &[][..]), |(verb, names)| (*verb, names));
    let pull = Pull::parse(asked.word(&table::PULL)?).unwrap_or(Pull::Missing);
    match (verb, names) {
        ("list", []) => {
            let all = images.list()?;
            super::print(&if asked.json { as_json(&all)? } else { table(&all) });
        }
        ("import", [name, source]) => {
            let name = ImageName::parse(name)?;
            let (mut line, path) = (ProgressLine::new(), here.join(source));
            let origin =
                if *source == "-" { "standard input".to_owned() } else { path.display().to_string() };
            let wanted = ImportSpec { name: &name, origin, reference: asked.reference.as_deref() };
            let imported = match *source {
                "-" => images.import_upload(&mut io::stdin().lock(), None, &wanted, cancel),
                _ => images.import_path(&path, &wanted, &mut |progress| line.show(&progress), cancel),
            };
            line.end();
            super::print(&if asked.json { as_json(&imported?)? } else { told(&imported?) });
        }
        ("export", [name, "-"]) => {
            images.export(name, Compression::None, io::stdout().lock(), cancel, &mut |_| {})?;
        }
        ("export", [name, target]) => {
            images.export_file(name, &here.join(target), cancel, &mut |_| {})?;
        }
        ("remove", [name]) => {
            let id = images.find(name)?.id;
            images.remove(&id)?;
        }
        ("verify", [] | [_]) => {
            let all = match names.first() {
                Some(name) => vec![images.find(name)?.id.clone()],
                None => images.list()?.into_iter().map(|image| image.record.id).collect(),
            };
            let found = all.iter().map(|id| images.verify(id, cancel)).collect::<Result<Vec<_>>>()?;
            if asked.json {
                super::print(&as_json(&found)?);
            } else {
                for image in &found {
                    let word = if image.ok { "unchanged" } else { "HAS BEEN CHANGED" };
                    super::print(&format!("{}  {word}\n", image.id.short()));
                    image.differences.iter().for_each(|line| super::print(&format!("    {line}\n")));
                }
            }
            return Ok(if found.iter().all(|image| image.ok) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        ("build", [distro]) => {
            let stderr = io::stderr().as_fd().try_clone_to_owned().at("open", "stderr")?;
            let mut log = BuildLog::to_file(File::from(stderr));
            let image = images.base(Distro::parse(distro)?, pull, &mut log, cancel)?;
            super::print(&format!("{}\n", image.id));
        }
        (verb, _) => {
            return Err(Error::config(
                format!("image {verb}"),
                "say `berth image list`, `import NAME FILE`, `export NAME FILE`, `verify [NAME]`, `remove NAME` or \
                 `build DISTRO`",
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The progress line on the terminal.
struct ProgressLine {
    shown: Option<Instant>,
    terminal: bool,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine { shown: None, terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, progress: &ImportProgress) {
        if !self.terminal || self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.shown = Some(Instant::now());
        let mib = |bytes: u64| bytes >> 20;
        let of = progress.total_bytes.map_or(String::new(), |total| format!(" of {}", mib(total)));
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{}: {}{of} MiB, {} entries",
            progress.step,
            mib(progress.read_bytes),
            progress.entries
        );
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn told(imported: &ImportedImage) -> String {
    let ImportedImage { image: ImageView { record, .. }, left_out: LeftOut { devices, owners, attributes } } =
        imported;
    let mut text =
        format!("{}  {} with {}\n", record.id, record.name, logging::counted(record.entries, "entry"));
    for (count, what) in [
        (devices, "devices and FIFOs were left out; a container has its own"),
        (owners, "entries belong to nobody, since their owners' ids are above 65535"),
        (attributes, "extended attributes that belong to a host were left out"),
    ] {
        if *count > 0 {
            text += &format!("{count} {what}\n");
        }
    }
    text
}

fn table(all: &[ImageView]) -> String {
    let mut text =
        format!("{:<12}  {:<24} {:>9} {:>9}  {:<20}  {}\n", "ID", "NAME", "MIB", "ENTRIES", "MADE", "SYSTEM");
    for ImageView { record, names, held_by } in all {
        let current: Vec<&str> = names.iter().map(ImageName::as_str).collect();
        let name = if current.is_empty() { format!("({})", record.name) } else { current.join(",") };
        let used = if held_by.is_empty() { String::new() } else { format!("; {} in use", held_by.len()) };
        text += &format!(
            "{:<12}  {name:<24} {:>9} {:>9}  {:<20}  {}{used}\n",
            record.id.short(),
            record.size_bytes >> 20,
            record.entries,
            record.created_at.get(..19).unwrap_or_default(),
            record.os.as_deref().unwrap_or("-"),
        );
    }
    text
}

fn as_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| {
        Error::new(Code::Internal, "The answer cannot be written as JSON").with_source(error)
    })
}
