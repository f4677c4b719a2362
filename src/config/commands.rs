//! The flags of the commands that work on a data folder or a machine instead of serving, and the table of all commands from
//! which the manual page and the completions are made. As in `args`, argh fills the structs.

use argh::FromArgs;

use super::args::{CLIENT, Kind, Many, Once, Parsed, SERVE, ServeArgs, Switch, TOKEN, parse_words, split};
use super::host::HOST_FLAGS;
use crate::base::Result;

/// `berth backup`.
#[derive(Default, FromArgs)]
#[argh(description = "Writes a backup.")]
pub struct BackupArgs {
    /// the file
    #[argh(positional)]
    pub file: Vec<String>,
    /// with containers' roots, snapshots and images
    #[argh(switch)]
    pub containers: bool,
    /// without them
    #[argh(switch)]
    pub without_containers: bool,
    /// configuration file
    #[argh(option)]
    pub config: Option<String>,
    /// where all state is stored
    #[argh(option)]
    pub data_dir: Option<String>,
    /// the server of that folder
    #[argh(option)]
    pub openwork_url: Option<String>,
    /// its host token
    #[argh(option)]
    pub host_token: Option<String>,
}

/// `berth restore`.
#[derive(Default, FromArgs)]
#[argh(description = "Restores a backup.")]
pub struct RestoreArgs {
    /// the file
    #[argh(positional)]
    pub file: Vec<String>,
    /// replace what is there
    #[argh(switch)]
    pub replace: bool,
    /// configuration file
    #[argh(option)]
    pub config: Option<String>,
    /// where all state is stored
    #[argh(option)]
    pub data_dir: Option<String>,
}

/// `berth bundle`, beside the flags of `serve`.
#[derive(Default, FromArgs)]
#[argh(description = "Packs everything for a machine without network.")]
pub struct BundleArgs {
    /// the file
    #[argh(positional)]
    pub file: Vec<String>,
    /// unpack it
    #[argh(switch)]
    pub restore: bool,
    /// images to pack
    #[argh(option)]
    pub image: Vec<String>,
    /// where the binary goes
    #[argh(option)]
    pub bin: Option<String>,
}

/// `berth image`, beside the flags of `serve`.
#[derive(Default, FromArgs)]
#[argh(description = "Works on base images.")]
pub struct ImageArgs {
    /// what to do, and with what
    #[argh(positional)]
    pub words: Vec<String>,
    /// say it as JSON
    #[argh(switch)]
    pub json: bool,
    /// which of several images in an archive
    #[argh(option)]
    pub reference: Option<String>,
    /// whether the network is asked
    #[argh(option)]
    pub pull: Option<String>,
}

/// `berth install`.
#[derive(Default, FromArgs)]
#[argh(description = "Makes berth a service.")]
pub struct InstallArgs {
    /// where the binary goes
    #[argh(option)]
    pub bin: Option<String>,
    /// below which folder everything is written
    #[argh(option)]
    pub root: Option<String>,
    /// do not start it
    #[argh(switch)]
    pub no_start: bool,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
}

/// `berth uninstall`.
#[derive(Default, FromArgs)]
#[argh(description = "Removes the service.")]
pub struct UninstallArgs {
    /// remove settings and data
    #[argh(switch)]
    pub purge: bool,
    /// only end what runs
    #[argh(switch)]
    pub only_workloads: bool,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
    /// the server
    #[argh(option)]
    pub openwork_url: Option<String>,
    /// its host token
    #[argh(option)]
    pub host_token: Option<String>,
}

type Flags = [(&'static str, Kind)];

const BACKUP: &Flags = &[
    ("--containers", Switch),
    ("--without-containers", Switch),
    ("--config", Once),
    ("--data-dir", Once),
    ("--openwork-url", Once),
    ("--host-token", Once),
];
const RESTORE: &Flags = &[("--replace", Switch), ("--config", Once), ("--data-dir", Once)];
const BUNDLE: &Flags = &[("--restore", Switch), ("--image", Many), ("--bin", Once)];
const IMAGE: &Flags = &[("--json", Switch), ("--reference", Once), ("--pull", Once)];
const INSTALL: &Flags = &[("--bin", Once), ("--root", Once), ("--no-start", Switch), ("--yes", Switch)];
const UNINSTALL: &Flags = &[
    ("--purge", Switch),
    ("--only-workloads", Switch),
    ("--yes", Switch),
    ("--openwork-url", Once),
    ("--host-token", Once),
];
const DOCTOR: &Flags = &[("--json", Switch)];

/// A command as completions show it.
pub struct CommandWords {
    /// Its name.
    pub name: &'static str,
    /// What may follow it.
    pub verbs: &'static [&'static str],
    own: &'static [&'static Flags],
    host: bool,
}

const fn command(
    name: &'static str,
    verbs: &'static [&'static str],
    own: &'static [&'static Flags],
) -> CommandWords {
    CommandWords { name, verbs, own, host: false }
}

const fn of_host(name: &'static str, verbs: &'static [&'static str]) -> CommandWords {
    CommandWords { name, verbs, own: &[SERVE], host: true }
}

/// All commands that people use.
pub const COMMANDS: &[CommandWords] = &[
    command("serve", &[], &[SERVE]),
    of_host("host", &["start", "stop", "status", "connect", "serve"]),
    of_host("daemon", &["run", "start", "status", "stop"]),
    of_host("workspace", &["list", "add", "add-remote", "switch", "info", "path"]),
    of_host("instance", &["dispose"]),
    command("token", &["show", "make"], &[TOKEN]),
    command("doctor", &[], &[DOCTOR, SERVE]),
    command("status", &[], &[CLIENT]),
    command("approvals", &["list", "show", "reply", "watch"], &[CLIENT]),
    command("image", &["list", "import", "export", "verify", "remove", "build"], &[IMAGE, SERVE]),
    command("bundle", &[], &[BUNDLE, SERVE]),
    command("backup", &[], &[BACKUP]),
    command("restore", &[], &[RESTORE]),
    command("install", &[], &[INSTALL]),
    command("uninstall", &[], &[UNINSTALL]),
    command("help", &["man", "bash"], &[]),
];

impl CommandWords {
    /// Its flags.
    pub fn flags(&self) -> Vec<&'static str> {
        let own = self.own.iter().flat_map(|flags| flags.iter().map(|(name, _)| *name));
        let mut all: Vec<&str> = own.chain(HOST_FLAGS.into_iter().filter(|_| self.host)).collect();
        all.extend(["--help", "--version"]);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Those that a value follows.
    pub fn value_flags(&self) -> Vec<&'static str> {
        let mut all = self.flags();
        all.retain(|flag| {
            let own = self.own.iter().flat_map(|flags| flags.iter());
            let known = own.filter(|(name, _)| name == flag).map(|(_, kind)| *kind != Switch);
            known.chain([self.host && super::host::takes_value(flag)]).any(|takes| takes)
        });
        all
    }
}

impl BackupArgs {
    /// Reads the arguments after `backup`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<BackupArgs>> {
        parse_words(args, BACKUP)
    }
}

impl RestoreArgs {
    /// Reads the arguments after `restore`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<RestoreArgs>> {
        parse_words(args, RESTORE)
    }
}

impl InstallArgs {
    /// Reads the arguments after `install`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<InstallArgs>> {
        super::args::parse(args, INSTALL)
    }
}

impl UninstallArgs {
    /// Reads the arguments after `uninstall`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<UninstallArgs>> {
        super::args::parse(args, UNINSTALL)
    }
}

/// Reads a command's own flags and words, and among them the flags of `serve`.
fn with_serve<T: FromArgs>(args: &[String], own: &Flags) -> Result<Parsed<(T, ServeArgs)>> {
    let (own_words, serve_words) = split(args, own, SERVE);
    let serve = match ServeArgs::parse(&serve_words)? {
        Parsed::Run(serve) => serve,
        Parsed::Help => return Ok(Parsed::Help),
        Parsed::Version => return Ok(Parsed::Version),
    };
    Ok(match parse_words(&own_words, own)? {
        Parsed::Run(own) => Parsed::Run((own, serve)),
        Parsed::Help => Parsed::Help,
        Parsed::Version => Parsed::Version,
    })
}

impl BundleArgs {
    /// Reads the arguments after `bundle`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<(BundleArgs, ServeArgs)>> {
        with_serve(args, BUNDLE)
    }
}

impl ImageArgs {
    /// Reads the arguments after `image`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<(ImageArgs, ServeArgs)>> {
        with_serve(args, IMAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn own_flags_and_those_of_serve_are_told_apart() {
        let line =
            words(&["a", "--image", "x", "--data-dir", "d", "--read-only", "--image=y", "--bin", "b", "c"]);
        let Ok(Parsed::Run((bundle, serve))) = BundleArgs::parse(&line) else { panic!("not parsed") };
        assert_eq!((bundle.file, bundle.image), (words(&["a", "c"]), words(&["x", "y"])));
        assert_eq!((bundle.bin.as_deref(), serve.data_dir.as_deref()), (Some("b"), Some("d")));
        assert!(serve.read_only && !bundle.restore);
        for (line, want) in [
            (&["--nonsense"][..], "--nonsense: unknown flag"),
            (&["--bin"], "--bin: needs a value"),
            (&["--bin", "--restore"], "--bin: needs a value"),
            (&["--bin=a", "--bin=b"], "--bin: given twice"),
            (&["--port"], "--port: needs a value"),
        ] {
            let error =
                BundleArgs::parse(&words(line)).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(want), "{line:?}: {error}");
        }
    }

    #[test]
    fn every_listed_flag_reaches_argh() {
        fn check<T>(flags: &Flags, parse: impl Fn(&[String]) -> Result<Parsed<T>>) {
            for (flag, kind) in flags {
                let line = if *kind == Switch { vec![*flag] } else { vec![*flag, "x"] };
                assert!(matches!(parse(&words(&line)), Ok(Parsed::Run(_))), "{flag}");
            }
        }
        check(BACKUP, BackupArgs::parse);
        check(RESTORE, RestoreArgs::parse);
        check(BUNDLE, BundleArgs::parse);
        check(IMAGE, ImageArgs::parse);
        check(INSTALL, InstallArgs::parse);
        check(UNINSTALL, UninstallArgs::parse);
    }
}
