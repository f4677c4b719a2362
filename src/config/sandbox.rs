//! The settings for the sandbox of `berth host`: OpenWork's flags and variables, and those that only berth has.

use super::line::{CommandLine, Style};
use super::setting::{Section, Setting};
use super::sources::{Given, Lookup, Sources};
use super::table::{self, settings};
use crate::base::{Error, Result};
use crate::host::engine::{SandboxNetwork, SandboxPull};

/// The kind of sandbox in which OpenCode runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxChoice {
    /// No sandbox.
    #[default]
    None,
    /// A container of berth.
    Berth,
    /// A container of Docker, or of another engine that the command `docker` uses.
    Docker,
    /// A container of Apple's container engine.
    Container,
    /// The first kind of container that works on this machine. If none does, the start fails.
    Auto,
}

/// The requested sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxWish {
    /// The kind of sandbox in which OpenCode runs.
    pub choice: SandboxChoice,
    /// The image of the sandbox.
    pub image: Option<String>,
    /// The folder on the host for OpenCode's home.
    pub persist_dir: Option<String>,
    /// Further folders that are mounted in the sandbox.
    pub mounts: Vec<MountWish>,
    /// The network access of the sandbox.
    pub network: Option<SandboxNetwork>,
    /// The memory limit of the sandbox.
    pub memory_bytes: Option<u64>,
    /// The limit on processors.
    pub cpus: Option<f64>,
    /// The limit on processes and threads.
    pub pids: Option<u64>,
    /// The user and group of processes in the sandbox.
    pub user: Option<(u32, Option<u32>)>,
    /// When the image is pulled from its registry.
    pub pull: Option<SandboxPull>,
    /// Whether a workspace that berth refuses by default is mounted all the same.
    pub any_workspace: bool,
    /// Whether the server runs in the container as well.
    pub server_inside: bool,
    /// The flags that were given, except `--sandbox` and those that every kind of sandbox takes.
    pub given: Vec<String>,
}

/// A mount of the form `HOST:SUB[:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountWish {
    /// The flag or variable that requests the mount.
    pub place: String,
    /// The path on the host.
    pub source: String,
    /// The path in the workspace, below `extra`.
    pub sub: String,
    /// `ro` or `rw`; `None` if neither was given.
    pub read_only: Option<bool>,
}

/// The flags that every kind of sandbox takes.
const EVERYWHERE: [&Setting; 5] = [
    &table::SANDBOX_IMAGE,
    &table::SANDBOX_MOUNT,
    &table::SANDBOX_MEMORY,
    &table::SANDBOX_CPUS,
    &table::SANDBOX_PIDS,
];

/// The port of OpenWork's messaging bot (owpenbot, later opencode-router) in the container, and its default on the
/// host.
pub const BOT_PORT: u16 = 3005;

impl CommandLine {
    /// Returns the port of this host on which the bot is published, if the server runs inside of the container.
    /// Returns `None` if no bot is configured.
    ///
    /// # Errors
    /// `Config` for an invalid port, and for one that has no effect.
    pub fn bot_port(&self, style: Style, server_inside: bool, env: Lookup<'_>) -> Result<Option<u16>> {
        let enabled = self.owpenbot.as_deref().map(|word| word == "yes");
        if enabled == Some(false) {
            return Ok(None);
        }
        if !server_inside {
            return match self.owpenbot_health_port.is_some() && style == Style::Strict {
                true => Err(Error::config(
                    self.place(&table::BOT_HEALTH_PORT),
                    "has no effect without --sandbox-server inside",
                )),
                false => Ok(None),
            };
        }
        match Sources::without_file(self, env).number(&table::BOT_HEALTH_PORT)? {
            Some(port) => Ok(u16::try_from(port).ok()),
            None => Ok((self.owpenbot_bin.is_some() || enabled == Some(true)).then_some(BOT_PORT)),
        }
    }

    /// Returns the sandbox that the flags request. A variable is used if its flag is absent.
    ///
    /// # Errors
    /// `Config` for an invalid value, and for a flag that has no effect.
    pub fn sandbox_wish(&self, env: Lookup<'_>) -> Result<SandboxWish> {
        let sources = Sources::without_file(self, env);
        let choice = match sources.given(&table::SANDBOX)? {
            None => SandboxChoice::None,
            Some(given) => choice(&given.place, &given.text)?,
        };
        let is_inside = sources.word(&table::SANDBOX_SERVER)? == Some("inside");
        let of_section = settings().filter(|setting| setting.section == Section::Sandbox);
        let mut given: Vec<(&Setting, String)> = Vec::new();
        for setting in of_section.filter(|setting| setting.flag() != table::SANDBOX.flag()) {
            given.extend(sources.given(setting)?.map(|given| (setting, given.place)));
        }
        if let Some((_, place)) = given.first().filter(|_| choice == SandboxChoice::None) {
            return Err(Error::config(place, "has no effect without a sandbox, and --sandbox is none"));
        }
        given.retain(|(setting, _)| {
            let outside = setting.flag() == table::SANDBOX_SERVER.flag() && !is_inside;
            !outside && !EVERYWHERE.iter().any(|other| other.flag() == setting.flag())
        });
        let mut mounts: Vec<MountWish> = Vec::new();
        let texts = match self.sandbox_mount.is_empty() {
            true => sources.given(&table::SANDBOX_MOUNT)?.into_iter().collect(),
            false => sources.all(&table::SANDBOX_MOUNT)?,
        };
        for given in &texts {
            mounts.extend(parse_mounts(&given.place, &given.text)?);
        }
        let twice = |at: usize| mounts[..at].iter().any(|other| other.sub == mounts[at].sub);
        if let Some(at) = (0..mounts.len()).find(|at| twice(*at)) {
            let problem = format!("{} is the place of two mounts", mounts[at].sub);
            return Err(Error::config(&mounts[at].place, problem));
        }
        Ok(SandboxWish {
            choice,
            image: sources.text(&table::SANDBOX_IMAGE)?,
            persist_dir: sources.text(&table::SANDBOX_PERSIST_DIR)?,
            network: sources.word(&table::SANDBOX_NETWORK)?.map(|word| match word {
                "none" => SandboxNetwork::None,
                "host" => SandboxNetwork::Host,
                _ => SandboxNetwork::Private,
            }),
            memory_bytes: sources.number(&table::SANDBOX_MEMORY)?,
            cpus: sources
                .given(&table::SANDBOX_CPUS)?
                .map(|given| table::SANDBOX_CPUS.kind.processors(&given.place, &given.text))
                .transpose()?,
            pids: sources.number(&table::SANDBOX_PIDS)?,
            user: sources.given(&table::SANDBOX_USER)?.map(user).transpose()?,
            pull: sources.word(&table::SANDBOX_PULL)?.map(|word| match word {
                "always" => SandboxPull::Always,
                "missing" => SandboxPull::Missing,
                _ => SandboxPull::Never,
            }),
            any_workspace: self.sandbox_any_workspace,
            server_inside: is_inside,
            given: given.into_iter().map(|(_, place)| place).collect(),
            mounts,
        })
    }
}

fn choice(place: &str, word: &str) -> Result<SandboxChoice> {
    Ok(match word {
        "none" => SandboxChoice::None,
        "auto" => SandboxChoice::Auto,
        "docker" => SandboxChoice::Docker,
        "container" => SandboxChoice::Container,
        "berth" => SandboxChoice::Berth,
        // This message is that of OpenWork's orchestrator.
        other => {
            let problem = format!("Invalid sandbox value: {other}. Use none|auto|docker|container|berth.");
            return Err(Error::config(place, problem));
        }
    })
}

fn user(Given { place, text, .. }: Given) -> Result<(u32, Option<u32>)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text.as_str(), None),
    };
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let user = id(user).map(|user| (user, group.map(|group| id(group).ok_or(()))));
    match user {
        Some((user, None)) => Ok((user, None)),
        Some((user, Some(Ok(group)))) => Ok((user, Some(group))),
        _ => Err(Error::config(place, format!("{text:?} is not a user; give numbers: UID or UID:GID"))),
    }
}

/// Parses a list of mounts separated by `,` or `;`, or a JSON array.
fn parse_mounts(place: &str, text: &str) -> Result<Vec<MountWish>> {
    let trimmed = text.trim();
    let entries: Vec<String> = if trimmed.starts_with('[') {
        serde_json::from_str(trimmed).map_err(|error| {
            Error::config(place, format!("is neither a list of mounts nor a JSON array of them ({error})"))
        })?
    } else {
        trimmed.split([',', ';']).map(|entry| entry.trim().to_owned()).collect()
    };
    entries.iter().filter(|entry| !entry.is_empty()).map(|entry| parse_mount(place, entry)).collect()
}

fn parse_mount(place: &str, entry: &str) -> Result<MountWish> {
    let wrong = || {
        let problem = format!("Invalid --sandbox-mount value: {entry}. Use hostPath:subpath[:ro|rw].");
        Error::config(place, problem)
    };
    let parts: Vec<&str> = entry.split(':').collect();
    let (source, sub, mode) = match parts.as_slice() {
        [source, sub] => (source, sub, None),
        [source, sub, "ro"] => (source, sub, Some(true)),
        [source, sub, "rw"] => (source, sub, Some(false)),
        _ => return Err(wrong()),
    };
    // The command line of a container engine gives these characters another meaning.
    let odd = |text: &str| text.contains([',', '"']) || text.chars().any(char::is_control);
    if source.is_empty() || odd(source) {
        return Err(wrong());
    }
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if sub.contains('\\') || odd(sub) || !sub.split('/').all(plain) {
        return Err(Error::config(place, format!("Invalid sandbox container subpath: {sub:?}")));
    }
    Ok(MountWish {
        place: place.to_owned(),
        source: (*source).to_owned(),
        sub: (*sub).to_owned(),
        read_only: mode,
    })
}

#[cfg(test)]
mod tests {
    use super::super::line::{Parsed, Style};
    use super::*;

    fn wish(words: &[&str], env: &[(&str, &str)]) -> Result<SandboxWish, String> {
        let named = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let Ok(Parsed::Run(line)) = CommandLine::parse("host", &words, Style::Strict) else {
            panic!("{words:?}")
        };
        line.sandbox_wish(&named).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_variables() {
        let env = [("OPENWORK_SANDBOX", "docker"), ("OPENWRK_SANDBOX_IMAGE", "theirs")];
        let from_env = wish(&[], &env).unwrap();
        assert_eq!((from_env.choice, from_env.image.as_deref()), (SandboxChoice::Docker, Some("theirs")));
        let words = ["--sandbox=berth", "--sandbox-image=mine", "--sandbox-cpus=0.5", "--sandbox-user=7:8"];
        let from_flags = wish(&words, &env).unwrap();
        assert_eq!((from_flags.choice, from_flags.image.as_deref()), (SandboxChoice::Berth, Some("mine")));
        assert_eq!((from_flags.cpus, from_flags.user), (Some(0.5), Some((7, Some(8)))));
        assert_eq!(from_flags.given, ["--sandbox-user"]);
        assert_eq!(wish(&["--sandbox=none"], &[("OPENWORK_SANDBOX", "docker")]).unwrap().given.len(), 0);
        assert_eq!(wish(&[], &[("OPENWORK_SANDBOX", "")]).unwrap(), SandboxWish::default());
    }

    #[test]
    fn a_bot_is_published_only_if_one_is_configured() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            match CommandLine::parse("host", &words, Style::Strict) {
                Ok(Parsed::Run(line)) => *line,
                _ => panic!("{line}"),
            }
        };
        let port = |line: &str, env: &[(&str, &str)]| {
            let named =
                |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            parse(line).bot_port(Style::Strict, true, &named)
        };
        for (line, env, want) in [
            ("", &[][..], None),
            ("--owpenbot", &[], Some(BOT_PORT)),
            ("--opencode-router true", &[], Some(BOT_PORT)),
            ("--owpenbot-bin /bin/bot", &[], Some(BOT_PORT)),
            ("--owpenbot-health-port 3055", &[("OWPENBOT_HEALTH_PORT", "1")], Some(3055)),
            ("", &[("OWPENBOT_HEALTH_PORT", "3056")], Some(3056)),
            ("", &[("OPENCODE_ROUTER_HEALTH_PORT", "3057")], Some(3057)),
            ("--no-owpenbot --owpenbot-health-port=3055", &[], None),
            ("--opencode-router false", &[("OWPENBOT_HEALTH_PORT", "3056")], None),
        ] {
            assert_eq!(port(line, env).unwrap(), want, "{line} {env:?}");
        }
        assert!(port("--owpenbot-health-port=0", &[]).is_err());
        let outside = parse("--owpenbot-health-port=3055");
        assert!(outside.bot_port(Style::Strict, false, &|_| None).is_err());
        assert_eq!(outside.bot_port(Style::Lenient, false, &|_| None).unwrap(), None);
    }

    #[test]
    fn mounts_are_lists() {
        let all = |text: &str| {
            let wish = wish(&["--sandbox=auto", &format!("--sandbox-mount={text}")], &[]).unwrap();
            wish.mounts.into_iter().map(|one| (one.source, one.sub, one.read_only)).collect::<Vec<_>>()
        };
        let one = |source: &str, sub: &str, mode| (source.to_owned(), sub.to_owned(), mode);
        assert_eq!(all("/a:x"), [one("/a", "x", None)]);
        assert_eq!(
            all("/a:x:ro, ~/b:a..b/y:rw;"),
            [one("/a", "x", Some(true)), one("~/b", "a..b/y", Some(false))]
        );
        assert_eq!(all(r#"["/a;b:x"]"#), [one("/a;b", "x", None)]);
    }

    #[test]
    fn mistakes_are_named() {
        for (words, want) in [
            (&["--sandbox=bogus"][..], "--sandbox: Invalid sandbox value: bogus. Use none|auto|"),
            (&["--sandbox-mount=/a:b"], "--sandbox-mount: has no effect without a sandbox"),
            (&["--sandbox=docker", "--sandbox-network=lan"], "--sandbox-network: "),
            (&["--sandbox=docker", "--sandbox-cpus=0"], "--sandbox-cpus: \"0\""),
            (&["--sandbox=docker", "--sandbox-cpus=NaN"], "--sandbox-cpus: \"NaN\""),
            (&["--sandbox=docker", "--sandbox-memory=1"], "--sandbox-memory: "),
            (&["--sandbox=docker", "--sandbox-user=me"], "--sandbox-user: \"me\""),
            (&["--sandbox=docker", "--sandbox-user=1:"], "--sandbox-user: \"1:\""),
            (&["--sandbox=docker", "--sandbox-mount=/a:x,/b:x"], "--sandbox-mount: x is the place of two"),
        ] {
            let error = wish(words, &[]).unwrap_err();
            assert!(error.starts_with(want), "{words:?}: {error}");
        }
        let error = wish(&[], &[("OPENWORK_SANDBOX_MOUNT", "/a:b")]).unwrap_err();
        assert!(error.starts_with("OPENWORK_SANDBOX_MOUNT: has no effect"), "{error}");
    }
}
