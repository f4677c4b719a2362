//! What a person says about the sandbox of `berth host`: OpenWork's flags and variables, and those that only berth has.

use std::ops::RangeInclusive;

use super::sources::Lookup;
use super::values;
use crate::base::{Error, Result};
use crate::host::engine::{SandboxNetwork, SandboxPull};

/// What OpenCode runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxChoice {
    /// Nothing.
    #[default]
    None,
    /// A container of berth's own.
    Berth,
    /// A container of Docker's, or of another engine that `docker` reaches.
    Docker,
    /// A container of Apple's.
    Container,
    /// The first of them that works here; else there is no start.
    Auto,
}

/// The flags, as they were given.
#[derive(Clone, Debug, Default)]
pub struct SandboxFlags {
    values: Vec<(String, String)>,
    /// A workspace that berth refuses is mounted all the same.
    pub(super) any_workspace: bool,
}

/// The sandbox that there is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxWish {
    /// What OpenCode runs in.
    pub choice: SandboxChoice,
    /// Its image.
    pub image: Option<String>,
    /// The folder for OpenCode's home.
    pub persist_dir: Option<String>,
    /// Further folders.
    pub mounts: Vec<MountWish>,
    /// What it reaches.
    pub network: Option<SandboxNetwork>,
    /// The most memory.
    pub memory_bytes: Option<u64>,
    /// The most processors.
    pub cpus: Option<f64>,
    /// The most processes and threads.
    pub pids: Option<u64>,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// When a registry is asked for the image.
    pub pull: Option<SandboxPull>,
    /// A workspace that berth refuses is mounted all the same.
    pub any_workspace: bool,
    /// The server is in the container as well.
    pub server_inside: bool,
    /// The flags that were given, but for `--sandbox` and those that every sandbox takes.
    pub given: Vec<String>,
}

/// `HOST:SUB[:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountWish {
    /// The flag or variable that it is from.
    pub place: String,
    /// A path of the host.
    pub source: String,
    /// Where it is, below `extra` in the workspace.
    pub sub: String,
    /// `ro` and `rw`, if one was given.
    pub read_only: Option<bool>,
}

/// The flags with a value.
pub(super) const VALUES: [&str; 11] = [
    "--sandbox",
    "--sandbox-image",
    "--sandbox-persist-dir",
    "--sandbox-mount",
    "--sandbox-network",
    "--sandbox-memory",
    "--sandbox-cpus",
    "--sandbox-pids",
    "--sandbox-user",
    "--sandbox-pull",
    "--sandbox-server",
];

/// Those that every sandbox takes.
const EVERYWHERE: [&str; 5] =
    ["--sandbox-image", "--sandbox-mount", "--sandbox-memory", "--sandbox-cpus", "--sandbox-pids"];

/// With less OpenCode does not start.
const MEMORY_BYTES: RangeInclusive<u64> = 128 << 20..=1 << 50;
/// OpenCode alone has dozens of threads.
const PIDS: RangeInclusive<u64> = 64..=1 << 22;
const CPUS: RangeInclusive<f64> = 0.01..=4096.0;

impl SandboxFlags {
    pub(super) fn add(&mut self, name: &str, value: String) {
        self.values.push((name.to_owned(), value));
    }

    /// The sandbox that the flags and, for what they leave out, the variables ask for.
    ///
    /// # Errors
    /// `Config` for a value that means nothing, and for a flag that has no effect.
    pub fn wish(&self, named: Lookup<'_>) -> Result<SandboxWish> {
        let last = |name: &str| {
            let mut all = self.values.iter().rev();
            all.find(|(flag, _)| flag == name).map(|(flag, value)| (flag.clone(), value.clone()))
        };
        let variable = |word: &str| {
            let names = [format!("OPENWORK_{word}"), format!("OPENWRK_{word}")];
            let mut found =
                names.into_iter().filter_map(|name| Some((named(&name)?.into_string().ok()?, name)));
            found.find(|(value, _)| !value.is_empty()).map(|(value, name)| (name, value))
        };
        let pick = |flag: &str, word: &str| last(flag).or_else(|| variable(word));
        let choice = match pick("--sandbox", "SANDBOX") {
            None => SandboxChoice::None,
            Some((place, word)) => choice(&place, &word)?,
        };
        let image = pick("--sandbox-image", "SANDBOX_IMAGE");
        let persist_dir = pick("--sandbox-persist-dir", "SANDBOX_PERSIST_DIR");
        let mut mounts: Vec<(String, String)> =
            self.values.iter().filter(|(flag, _)| flag == "--sandbox-mount").cloned().collect();
        if mounts.is_empty() {
            mounts.extend(variable("SANDBOX_MOUNT"));
        }
        let own: Vec<String> = self.values.iter().map(|(flag, _)| flag.clone()).collect();
        let from_variables = [&image, &persist_dir].into_iter().flatten().chain(&mounts);
        let mut given: Vec<String> =
            own.into_iter().chain(from_variables.map(|(place, _)| place.clone())).collect();
        given.retain(|name| name != "--sandbox");
        if self.any_workspace {
            given.push("--sandbox-any-workspace".to_owned());
        }
        if let Some(flag) = given.first().filter(|_| choice == SandboxChoice::None) {
            return Err(Error::config(flag, "has no effect without a sandbox, and --sandbox is none"));
        }
        given.retain(|name| name.starts_with("--") && !EVERYWHERE.contains(&name.as_str()));
        given.extend(persist_dir.iter().map(|(place, _)| place.clone()));
        let server_inside = match last("--sandbox-server") {
            Some((place, word)) => values::word(&place, &word, &[("outside", false), ("inside", true)])?,
            None => false,
        };
        if !server_inside {
            given.retain(|name| name != "--sandbox-server");
        }
        let number = |flag: &str, range| {
            let number = |(place, text): (String, String)| values::number(&place, &text, range);
            last(flag).map(number).transpose()
        };
        let mut all = Vec::new();
        for (place, text) in &mounts {
            all.extend(parse_mounts(place, text)?);
        }
        if let Some(twice) = all.iter().enumerate().find_map(|(at, one)| {
            all[..at].iter().any(|other: &MountWish| other.sub == one.sub).then_some(one)
        }) {
            let problem = format!("{} is the place of two mounts", twice.sub);
            return Err(Error::config(&twice.place, problem));
        }
        Ok(SandboxWish {
            choice,
            image: image.map(|(_, image)| image),
            persist_dir: persist_dir.map(|(_, folder)| folder),
            mounts: all,
            network: last("--sandbox-network").map(network).transpose()?,
            memory_bytes: number("--sandbox-memory", MEMORY_BYTES)?,
            cpus: last("--sandbox-cpus").map(cpus).transpose()?,
            pids: number("--sandbox-pids", PIDS)?,
            user: last("--sandbox-user").map(user).transpose()?,
            pull: last("--sandbox-pull").map(pull).transpose()?,
            any_workspace: self.any_workspace,
            server_inside,
            given,
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
        other => {
            let problem = format!("Invalid sandbox value: {other}. Use none|auto|docker|container|berth.");
            return Err(Error::config(place, problem));
        }
    })
}

fn network((place, word): (String, String)) -> Result<SandboxNetwork> {
    let words = [
        ("none", SandboxNetwork::None),
        ("private", SandboxNetwork::Private),
        ("host", SandboxNetwork::Host),
    ];
    values::word(&place, &word, &words)
}

fn pull((place, word): (String, String)) -> Result<SandboxPull> {
    let words =
        [("never", SandboxPull::Never), ("missing", SandboxPull::Missing), ("always", SandboxPull::Always)];
    values::word(&place, &word, &words)
}

fn cpus((place, text): (String, String)) -> Result<f64> {
    let cpus: Option<f64> = text.parse().ok();
    let problem = format!("{text:?} is no number of processors, such as 0.5 or 2");
    cpus.filter(|cpus| CPUS.contains(cpus)).ok_or_else(|| Error::config(place, problem))
}

fn user((place, text): (String, String)) -> Result<(u32, Option<u32>)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text.as_str(), None),
    };
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let user = id(user).map(|user| (user, group.map(|group| id(group).ok_or(()))));
    match user {
        Some((user, None)) => Ok((user, None)),
        Some((user, Some(Ok(group)))) => Ok((user, Some(group))),
        _ => Err(Error::config(place, format!("{text:?} is no user; give numbers: UID or UID:GID"))),
    }
}

/// A list with `,` or `;` between its mounts, or a JSON array.
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
    // An engine's command line reads these as something else.
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
    use super::*;

    fn flags(words: &[&str]) -> SandboxFlags {
        let mut flags = SandboxFlags::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            flags.add(name, value.to_owned());
        }
        flags
    }

    fn wish(words: &[&str], env: &[(&str, &str)]) -> Result<SandboxWish, String> {
        let named = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        flags(words).wish(&named).map_err(|error| error.to_string())
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
