//! The columns of the table of settings: one [`Setting`] per row, with builders that read as one line of the table.
//! Pure data; `values` parses texts by a row's [`ValueKind`].

use std::time::Duration;

use super::line::FlagValues;

/// The form of a setting's value. The module `values` has one parser for each form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueKind {
    /// A boolean. On the command line, the flag alone means yes.
    Switch,
    /// A whole number between two bounds.
    Count(u64, u64),
    /// A duration in seconds.
    Seconds(u64, u64),
    /// A duration in milliseconds.
    Millis(u64, u64),
    /// A duration in days.
    Days(u64, u64),
    /// A size in bytes.
    Bytes(u64, u64),
    /// A number of processors.
    Processors(f64, f64),
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A path. A relative path starts from the current folder or, in the file, from the folder of the file.
    Path,
    /// Any text.
    Text,
    /// A token or password. Instead of the variable, a file (`NAME_FILE`) or a systemd credential may hold the
    /// value.
    Secret,
    /// An IP address, or `localhost`.
    Address,
    /// An address that only this machine can reach.
    Loopback,
    /// A host as in a URL: a name or an IP address.
    HostName,
    /// A URL with one of these schemes.
    Url(&'static [&'static str]),
    /// A list of texts separated by commas.
    List,
    /// `DISTRIBUTION=TEXT` pairs; in JSON an object.
    Pairs,
    /// JSON that the module `file` parses into its own type.
    Json,
    /// A flag of OpenWork's orchestrator that has no effect here, with or without a value.
    Ignored,
}

/// The value of a setting that is not given.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// No value.
    Nothing,
    /// This number.
    Number(u64),
    /// This word.
    Word(&'static str),
    /// A value that the code which uses the setting determines; the text describes it in help.
    Described(&'static str),
}

/// A heading under which help lists settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Server,
    Access,
    Workspaces,
    Opencode,
    Containers,
    Log,
    Host,
    Sandbox,
    Daemon,
    Client,
    Image,
    Bundle,
    Backup,
    Restore,
    Service,
    /// Settings with variables and no flag.
    Environment,
    /// Settings that no help shows. They are for berth's own processes and for command lines of OpenWork's
    /// orchestrator.
    Hidden,
}

impl Section {
    /// The sections in the order in which help shows them.
    pub const ALL: [Section; 16] = [
        Section::Server,
        Section::Access,
        Section::Workspaces,
        Section::Opencode,
        Section::Containers,
        Section::Host,
        Section::Sandbox,
        Section::Daemon,
        Section::Client,
        Section::Image,
        Section::Bundle,
        Section::Backup,
        Section::Restore,
        Section::Service,
        Section::Log,
        Section::Environment,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Section::Server => "Server",
            Section::Access => "Access",
            Section::Workspaces => "Workspaces",
            Section::Opencode => "OpenCode as a child of the server",
            Section::Containers => "Commands and containers",
            Section::Log => "Log and output",
            Section::Host => "Host",
            Section::Sandbox => "Sandbox of the host's OpenCode",
            Section::Daemon => "Daemon",
            Section::Client => "Status and approvals",
            Section::Image => "Images",
            Section::Bundle => "Bundle",
            Section::Backup => "Backup",
            Section::Restore => "Restore",
            Section::Service => "Service",
            Section::Environment => "Environment",
            Section::Hidden => "",
        }
    }
}

/// A set of commands that take the flag of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandSet(u32);

impl CommandSet {
    pub const NONE: CommandSet = CommandSet(0);
    pub const SERVE: CommandSet = CommandSet(1);
    pub const HOST: CommandSet = CommandSet(1 << 1);
    pub const CONNECT: CommandSet = CommandSet(1 << 2);
    pub const DAEMON: CommandSet = CommandSet(1 << 3);
    pub const WORKSPACE: CommandSet = CommandSet(1 << 4);
    pub const CLIENT: CommandSet = CommandSet(1 << 5);
    pub const REPLY: CommandSet = CommandSet(1 << 6);
    pub const TOKEN: CommandSet = CommandSet(1 << 7);
    pub const DOCTOR: CommandSet = CommandSet(1 << 8);
    pub const IMAGE: CommandSet = CommandSet(1 << 9);
    pub const BUNDLE: CommandSet = CommandSet(1 << 10);
    pub const BACKUP: CommandSet = CommandSet(1 << 11);
    pub const RESTORE: CommandSet = CommandSet(1 << 12);
    pub const INSTALL: CommandSet = CommandSet(1 << 13);
    pub const UNINSTALL: CommandSet = CommandSet(1 << 14);
    /// The settings that `berth host start` and the daemon share.
    pub const HOSTS: CommandSet = CommandSet::HOST.and(CommandSet::DAEMON);

    /// Returns the names of the commands as a user writes them.
    pub fn names(self) -> Vec<&'static str> {
        let names = [
            (CommandSet::SERVE, "serve"),
            (CommandSet::HOST, "host"),
            (CommandSet::CONNECT, "host connect"),
            (CommandSet::DAEMON, "daemon"),
            (CommandSet::WORKSPACE, "workspace"),
            (CommandSet::CLIENT, "status"),
            (CommandSet::CLIENT.and(CommandSet::REPLY), "approvals"),
            (CommandSet::TOKEN, "token"),
            (CommandSet::DOCTOR, "doctor"),
            (CommandSet::IMAGE, "image"),
            (CommandSet::BUNDLE, "bundle"),
            (CommandSet::BACKUP, "backup"),
            (CommandSet::RESTORE, "restore"),
            (CommandSet::INSTALL, "install"),
            (CommandSet::UNINSTALL, "uninstall"),
        ];
        names.into_iter().filter(|(takers, _)| takers.meets(self)).map(|(_, name)| name).collect()
    }

    pub const fn and(self, other: CommandSet) -> CommandSet {
        CommandSet(self.0 | other.0)
    }

    pub const fn meets(self, other: CommandSet) -> bool {
        self.0 & other.0 != 0
    }
}

/// A row of the table of settings.
#[derive(Clone, Copy)]
pub struct Setting {
    /// The flag and the name of its value, such as `--port N`; empty if the setting has a variable and no flag.
    pub(super) shown: &'static str,
    /// Other names of the flag, which `berth host` and the commands of the daemon accept.
    pub aliases: &'static [&'static str],
    /// The variables. The first one that is set is used.
    pub vars: &'static [&'static str],
    /// The key in `server.json`, such as `approval.mode`; empty if the setting has none.
    pub key: &'static str,
    pub kind: ValueKind,
    pub fallback: Fallback,
    pub section: Section,
    /// The commands that take the flag.
    pub takers: CommandSet,
    /// The meaning of the setting, in one line.
    pub about: &'static str,
    /// Whether the flag may be given more than once.
    pub many: bool,
    /// Whether the field distinguishes `--flag` (`yes`), `--no-flag` (`no`) and no flag.
    pub(super) tristate: bool,
    pub(super) values: fn(&FlagValues) -> Vec<&str>,
}

fn no_values(_: &FlagValues) -> Vec<&str> {
    Vec::new()
}

/// Creates a row with a flag, the name of its value, and its meaning.
pub(super) const fn flag(
    section: Section,
    takers: CommandSet,
    shown: &'static str,
    about: &'static str,
) -> Setting {
    Setting {
        shown,
        aliases: &[],
        vars: &[],
        key: "",
        kind: ValueKind::Text,
        fallback: Fallback::Nothing,
        section,
        takers,
        about,
        many: false,
        tristate: false,
        values: no_values,
    }
}

/// Creates a row without a flag.
pub(super) const fn variable(vars: &'static [&'static str], about: &'static str) -> Setting {
    flag(Section::Environment, CommandSet::NONE, "", about).vars(vars)
}

impl Setting {
    pub(super) const fn of(mut self, kind: ValueKind) -> Setting {
        self.kind = kind;
        self
    }

    pub(super) const fn vars(mut self, vars: &'static [&'static str]) -> Setting {
        self.vars = vars;
        self
    }

    pub(super) const fn key(mut self, key: &'static str) -> Setting {
        self.key = key;
        self
    }

    pub(super) const fn also(mut self, takers: CommandSet) -> Setting {
        self.takers = self.takers.and(takers);
        self
    }

    pub(super) const fn alias(mut self, aliases: &'static [&'static str]) -> Setting {
        self.aliases = aliases;
        self
    }

    pub(super) const fn or(mut self, number: u64) -> Setting {
        self.fallback = Fallback::Number(number);
        self
    }

    pub(super) const fn or_time(self, time: Duration) -> Setting {
        self.or(time.as_secs())
    }

    pub(super) const fn or_word(mut self, word: &'static str) -> Setting {
        self.fallback = Fallback::Word(word);
        self
    }

    pub(super) const fn else_as(mut self, described: &'static str) -> Setting {
        self.fallback = Fallback::Described(described);
        self
    }

    /// Returns the flag, such as `--port`; empty if the setting has a variable and no flag.
    pub fn flag(&self) -> &'static str {
        self.shown.split(' ').next().unwrap_or_default()
    }

    /// Returns the name of the flag's value, with a space before it.
    pub fn shown_value(&self) -> &'static str {
        &self.shown[self.flag().len()..]
    }

    /// Returns the flag with the name of its value; for a setting without flag, its variables.
    pub fn term(&self) -> String {
        if self.shown.is_empty() { self.vars.join(", ") } else { self.shown.to_owned() }
    }

    /// Returns whether the flag takes no value.
    pub fn is_switch(&self) -> bool {
        self.kind == ValueKind::Switch
    }

    /// Returns the possible values on a command line.
    pub(super) fn given<'a>(&self, line: &'a FlagValues) -> Vec<&'a str> {
        (self.values)(line)
    }

    /// Describes the form and bounds of the value; empty if the name of the value is clear enough.
    pub fn bounds(&self) -> String {
        match self.kind {
            ValueKind::Choice(words) => words.join(", "),
            ValueKind::Processors(least, most) => format!("{least} to {most}"),
            kind => match kind.range() {
                Some((0, u64::MAX)) | None => String::new(),
                Some((least, most)) if most >= 1 << 50 => format!("from {least}"),
                Some((least, most)) => format!("{least} to {most}"),
            },
        }
    }

    /// Describes the default value.
    pub fn default_text(&self) -> String {
        match self.fallback {
            Fallback::Nothing => String::new(),
            Fallback::Number(number) => number.to_string(),
            Fallback::Word(word) | Fallback::Described(word) => word.to_owned(),
        }
    }
}

impl ValueKind {
    /// Returns the bounds of a whole number.
    pub const fn range(self) -> Option<(u64, u64)> {
        match self {
            ValueKind::Count(least, most)
            | ValueKind::Seconds(least, most)
            | ValueKind::Millis(least, most)
            | ValueKind::Days(least, most)
            | ValueKind::Bytes(least, most) => Some((least, most)),
            _ => None,
        }
    }

    /// Describes the form of the value in one or two words, for the reference.
    pub const fn noun(self) -> &'static str {
        match self {
            ValueKind::Switch => "yes or no",
            ValueKind::Count(..) => "number",
            ValueKind::Seconds(..) => "seconds",
            ValueKind::Millis(..) => "milliseconds",
            ValueKind::Days(..) => "days",
            ValueKind::Bytes(..) => "bytes",
            ValueKind::Processors(..) => "processors",
            ValueKind::Choice(_) => "one of",
            ValueKind::Path => "path",
            ValueKind::Text | ValueKind::Ignored => "text",
            ValueKind::Secret => "secret",
            ValueKind::Address | ValueKind::Loopback => "address",
            ValueKind::HostName => "host name or address",
            ValueKind::Url(_) => "URL",
            ValueKind::List => "list with commas",
            ValueKind::Pairs => "NAME=VALUE pairs",
            ValueKind::Json => "JSON",
        }
    }
}
