//! The table of commands: the text of each `--help` apart from the flags, and the settings of which a command takes
//! the flag.

use super::setting::{CommandSet, Section, Setting};
use super::table::settings;
use crate::base::unknown_fields::unknown_name_message;
use crate::base::{Error, Result};

/// The pages of `berth help` that are not the help of a command.
const HELP_PAGES: [&str; 5] = ["man", "bash", "zsh", "fish", "markdown"];

/// A command, as shown in help, the manual page and completions.
pub struct CommandSpec {
    pub name: &'static str,
    /// The arguments that may follow the name.
    pub verbs: &'static [&'static str],
    /// A short description of the command.
    pub about: &'static str,
    /// Variants of its command line, without `berth`, each with its meaning.
    pub usage: &'static [(&'static str, &'static str)],
    /// Example command lines, without `berth`, each with its purpose.
    pub examples: [(&'static str, &'static str); 2],
    /// The settings that its help lists.
    pub own: CommandSet,
    /// The settings of which it takes the flag.
    pub takes: CommandSet,
    /// Whether it takes arguments that are not flags.
    pub words: bool,
    /// Whether it takes OpenWork's names of flags, `--no-flag`, and a value after a switch.
    pub like_host: bool,
}

const BARE: CommandSpec = CommandSpec {
    name: "",
    verbs: &[],
    about: "",
    usage: &[],
    examples: [("", ""); 2],
    own: CommandSet::NONE,
    takes: CommandSet::NONE,
    words: false,
    like_host: false,
};

/// Returns a command of the host or the daemon.
const HOST: CommandSpec = CommandSpec {
    takes: CommandSet::SERVE.and(CommandSet::HOSTS).and(CommandSet::CONNECT).and(CommandSet::WORKSPACE),
    words: true,
    like_host: true,
    ..BARE
};

const fn takes(own: CommandSet, rest: CommandSet) -> CommandSpec {
    CommandSpec { own, takes: own.and(rest), words: true, ..BARE }
}

/// The commands for users.
#[rustfmt::skip]
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "serve",
        about: "serve the workspaces; the default command",
        usage: &[("[serve] [FLAGS]", "serve the workspaces")],
        examples: [
            ("serve --workspace ~/project", "serve one folder on http://127.0.0.1:8787"),
            ("serve --port 9000 --approval auto --log-format json", "on another port, without questions, with a JSON log"),
        ],
        words: false,
        ..takes(CommandSet::SERVE, CommandSet::NONE)
    },
    CommandSpec {
        name: "host",
        verbs: &["start", "stop", "status", "connect", "serve"],
        about: "serve a workspace and run an OpenCode for it",
        usage: &[
            ("host [start] [FLAGS]", "serve a workspace and run an OpenCode for it (--manage-opencode); `berth host serve` is the same"),
            ("host stop [FLAGS]", "stop it and wait for its end"),
            ("host status [FLAGS]", "report whether it and its OpenCode answer; exits with 1 if one does not"),
            ("host connect [FLAGS]", "make a token for a client elsewhere and print it with the address"),
        ],
        examples: [
            ("host --workspace ~/project --detach", "start in the background"),
            ("host connect --connect-host box.local --scope viewer", "let a client elsewhere read"),
        ],
        own: CommandSet::HOST.and(CommandSet::CONNECT),
        ..HOST
    },
    CommandSpec {
        name: "daemon",
        verbs: &["run", "start", "status", "stop"],
        about: "one OpenCode for many folders",
        usage: &[("daemon run|start|status|stop [FLAGS]",
            "one OpenCode for many folders, with OpenWork's router on a loopback port; start continues in the background")],
        examples: [
            ("daemon start --data-dir ~/.berth", "start it in the background"),
            ("daemon status", "print its address and its OpenCode as JSON"),
        ],
        own: CommandSet::DAEMON,
        ..HOST
    },
    CommandSpec {
        name: "workspace",
        verbs: &["list", "add", "add-remote", "switch", "info", "path"],
        about: "the daemon's folders",
        usage: &[("workspace list|add PATH|add-remote URL|switch ID|info ID|path ID [FLAGS]",
            "the daemon's folders; starts a daemon if none runs")],
        examples: [
            ("workspace add ~/project --name project", "add a folder"),
            ("workspace switch project", "make it the active one"),
        ],
        own: CommandSet::WORKSPACE,
        ..HOST
    },
    CommandSpec {
        name: "instance",
        verbs: &["dispose"],
        about: "instances of the daemon's OpenCode",
        usage: &[("instance dispose ID [FLAGS]", "have OpenCode forget the state of a folder")],
        examples: [
            ("instance dispose project", "of one folder"),
            ("instance dispose project --data-dir ~/.berth", "of a daemon with another data folder"),
        ],
        ..HOST
    },
    CommandSpec {
        name: "token",
        verbs: &["show", "make"],
        about: "print the kept tokens",
        usage: &[
            ("token show [FLAGS]", "print the kept tokens"),
            ("token make [FLAGS]", "make them first where there are none"),
        ],
        examples: [
            ("token show", "of the default data folder"),
            ("token make --data-dir /srv/berth", "before the first start of a server that other machines reach"),
        ],
        ..takes(CommandSet::TOKEN, CommandSet::NONE)
    },
    CommandSpec {
        name: "doctor",
        about: "report what this machine can do and lacks",
        usage: &[("doctor [FLAGS]",
            "report what this machine can do and lacks; exits with 1 when container workspaces cannot work")],
        examples: [
            ("doctor", "as a table"),
            ("doctor --json --data-dir /srv/berth", "as JSON, for a server with another data folder"),
        ],
        words: false,
        ..takes(CommandSet::DOCTOR, CommandSet::SERVE)
    },
    CommandSpec {
        name: "status",
        about: "report whether a running server answers",
        usage: &[("status [FLAGS]", "report whether a running server, and an OpenCode, answer; exits with 1 if one does not")],
        examples: [
            ("status", "of the server on this machine"),
            ("status --openwork-url http://127.0.0.1:9000 --json", "of another one, as JSON"),
        ],
        words: false,
        ..takes(CommandSet::CLIENT, CommandSet::NONE)
    },
    CommandSpec {
        name: "approvals",
        verbs: &["list", "show", "reply", "watch"],
        about: "writes that wait for a person",
        usage: &[
            ("approvals list [FLAGS]", "the writes that wait for an answer"),
            ("approvals show ID [FLAGS]", "one of them with its details"),
            ("approvals reply ID --allow [FLAGS]", "answer it; --deny refuses"),
            ("approvals watch [FLAGS]", "print them as they arrive and end"),
        ],
        examples: [
            ("approvals list --json", "as JSON"),
            ("approvals reply 4f1c --allow", "allow one"),
        ],
        ..takes(CommandSet::CLIENT.and(CommandSet::REPLY), CommandSet::NONE)
    },
    CommandSpec {
        name: "image",
        verbs: &["list", "import", "export", "verify", "remove", "build"],
        about: "base images of containers",
        usage: &[
            ("image list", "base images. NAME is a name, an id or its first digits. All of it works on the data folder itself, \
              beside a running server or without"),
            ("image import NAME FILE-OR-FOLDER", "a root file system as .tar (also .gz, .xz, .zst), the output of `docker save` \
              or `skopeo copy`, an OCI layout, or a folder with a system; - is standard input"),
            ("image export NAME FILE.tar[.gz|.zst]", "or - for a plain archive on standard output"),
            ("image verify [NAME]", "read everything again and compare it with the id"),
            ("image remove NAME", "unless a workspace needs it"),
            ("image build DISTRO [--pull always]", "make a distribution's image; asks the network only where there is none yet, \
              or with --pull always"),
        ],
        examples: [
            ("image build debian-bookworm", "make the image of a distribution"),
            ("image import tools ./rootfs.tar.zst --json", "import a root file system, and print its id as JSON"),
        ],
        ..takes(CommandSet::IMAGE, CommandSet::SERVE)
    },
    CommandSpec {
        name: "bundle",
        about: "pack everything for a machine without network",
        usage: &[
            ("bundle FILE [--image NAME]", "pack this binary, images, templates and the library into one file for a machine \
              without network; not the key of sealed secrets"),
            ("bundle --restore FILE [--bin DIR]", "on that machine: tar -xf FILE berth, ./berth bundle --restore FILE"),
        ],
        examples: [
            ("bundle berth.tar --image debian-bookworm", "pack one image"),
            ("bundle --restore berth.tar", "unpack, and install the binary to /usr/local/bin"),
        ],
        ..takes(CommandSet::BUNDLE, CommandSet::SERVE)
    },
    CommandSpec {
        name: "backup",
        about: "write the data folder to one archive",
        usage: &[("backup FILE [--without-containers]", "write the data folder to one archive, also beside a running server: \
            workspaces, tokens, runs, logs, templates and containers' files; - is standard output")],
        examples: [
            ("backup /mnt/berth.backup", "with containers"),
            ("backup - --without-containers | ssh box 'cat > berth.backup'", "without them, to another machine"),
        ],
        ..takes(CommandSet::BACKUP, CommandSet::NONE)
    },
    CommandSpec {
        name: "restore",
        about: "make a data folder from a backup",
        usage: &[("restore FILE [--data-dir DIR] [--replace]", "make a data folder from a backup, at any path, after every file in \
            it was compared with its checksum; - is standard input")],
        examples: [
            ("restore /mnt/berth.backup --data-dir /srv/berth", "to an empty folder"),
            ("restore /mnt/berth.backup --replace", "over the default data folder"),
        ],
        ..takes(CommandSet::RESTORE, CommandSet::NONE)
    },
    CommandSpec {
        name: "install",
        about: "make this binary a service of systemd",
        usage: &[("install [FLAGS]", "make this binary a service of systemd: copy it, write /etc/berth and the unit, start it")],
        examples: [
            ("install --yes", "without questions"),
            ("install --root /mnt/image --no-start", "into the file system of another machine"),
        ],
        words: false,
        ..takes(CommandSet::INSTALL, CommandSet::NONE)
    },
    CommandSpec {
        name: "uninstall",
        about: "remove the service",
        usage: &[("uninstall [--purge | --only-workloads] [FLAGS]",
            "end all processes of workspaces, remove service and binary; settings and data stay without --purge")],
        examples: [
            ("uninstall", "keep settings and data"),
            ("uninstall --purge --yes", "remove everything, without questions"),
        ],
        words: false,
        ..takes(CommandSet::UNINSTALL, CommandSet::NONE)
    },
    CommandSpec {
        name: "help",
        verbs: &HELP_PAGES,
        about: "print help",
        usage: &[
            ("help [COMMAND]", "print the help of berth or of a command"),
            ("help man | bash | zsh | fish | markdown", "print the manual page, completions for a shell, or the reference of settings"),
        ],
        examples: [
            ("help image", "the help of one command"),
            ("help bash > /etc/bash_completion.d/berth", "completions for bash"),
        ],
        words: true,
        ..BARE
    },
];

impl CommandSpec {
    /// Returns the command with this name.
    ///
    /// # Errors
    /// `Config` if there is no such command. The message lists all commands.
    pub fn named(name: &str) -> Result<&'static CommandSpec> {
        let name = if name == "workspaces" { "workspace" } else { name };
        COMMANDS.iter().find(|command| command.name == name).ok_or_else(|| {
            let names: Vec<String> = COMMANDS.iter().map(|command| command.name.to_owned()).collect();
            let problem =
                unknown_name_message("command", name, &[&names[..], &HELP_PAGES.map(str::to_owned)].concat());
            Error::config("command line", format!("{problem}; the commands are {}", names.join(", ")))
        })
    }

    /// Returns the settings of which the command takes the flag, except hidden ones.
    pub fn flags(&self) -> Vec<&'static Setting> {
        let mut all: Vec<&Setting> = settings().filter(|setting| setting.takers.meets(self.takes)).collect();
        all.retain(|setting| setting.section != Section::Hidden);
        all
    }

    /// Returns the settings that the help of the command lists.
    pub fn own_flags(&self) -> impl Iterator<Item = &'static Setting> + use<> {
        let own = self.own;
        settings().filter(move |setting| setting.takers.meets(own) && setting.section != Section::Hidden)
    }

    /// Returns the names of the command's flags, each with its setting.
    pub fn names(&self) -> Vec<(&'static str, &'static Setting)> {
        let mut all = Vec::new();
        for setting in self.flags() {
            all.push((setting.flag(), setting));
            all.extend(setting.aliases.iter().filter(|_| self.like_host).map(|alias| (*alias, setting)));
        }
        all.sort_by_key(|(name, _)| *name);
        all.dedup_by_key(|(name, _)| *name);
        all
    }

    /// Returns the setting of a flag, and whether the flag was written with `--no-`.
    pub fn find(&self, name: &str) -> Option<(&'static Setting, bool)> {
        let taken = |name: &str| {
            let is = |setting: &&Setting| {
                setting.flag() == name || self.like_host && setting.aliases.contains(&name)
            };
            settings().filter(|setting| setting.takers.meets(self.takes)).find(is)
        };
        // `--no-log-requests` is a setting with its own row, not the negation of another flag.
        taken(name).map(|setting| (setting, false)).or_else(|| {
            let positive = format!("--{}", name.strip_prefix("--no-").filter(|_| self.like_host)?);
            taken(&positive)
                .filter(|setting| setting.is_switch() || setting.section == Section::Hidden)
                .map(|setting| (setting, true))
        })
    }
}
