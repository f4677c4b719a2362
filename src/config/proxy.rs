//! How requests are passed on to OpenCode: how many at once, with how much patience, and who may answer what it asks.

use std::time::Duration;

use crate::access::Scope;
use crate::base::{Result, limits};
use crate::server::ProxySettings;

use super::args::ServeArgs;
use super::sources::{Given, Sources};
use super::values;

/// A day; whoever needs more wants a stream.
const TIMEOUT_MAX: u64 = 24 * 60 * 60;

pub(super) fn proxying(sources: &Sources<'_>, args: &ServeArgs) -> Result<ProxySettings> {
    let json = &sources.file.json;
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let workers = sources.pick(
        "--max-proxied",
        args.max_proxied.as_deref(),
        "BERTH_MAX_PROXIED",
        "maxProxied",
        number(json.max_proxied),
    )?;
    let patience = sources.pick(
        "--opencode-timeout",
        args.opencode_timeout.as_deref(),
        "BERTH_OPENCODE_TIMEOUT",
        "opencodeTimeout",
        number(json.opencode_timeout),
    )?;
    let replies = sources.pick(
        "--permission-replies",
        args.permission_replies.as_deref(),
        "BERTH_PERMISSION_REPLIES",
        "permissionReplies",
        json.permission_replies.clone(),
    )?;
    let shell = sources.pick(
        "--opencode-shell",
        args.opencode_shell.as_deref(),
        "BERTH_OPENCODE_SHELL",
        "opencodeShell",
        json.opencode_shell.clone(),
    )?;
    let words = [("owner", Scope::Owner), ("collaborator", Scope::Collaborator)];
    let scope = |given: Option<Given>| {
        given.map_or(Ok(Scope::Owner), |given| values::word(&given.place, &given.text, &words))
    };
    Ok(ProxySettings {
        workers: workers
            .map_or(Ok(limits::PROXY_WORKERS), |given| values::count(&given.place, &given.text, 1..=1024))?,
        patience: patience.map_or(Ok(limits::UPSTREAM_ANSWER), |given| {
            values::number(&given.place, &given.text, 1..=TIMEOUT_MAX).map(Duration::from_secs)
        })?,
        permission_replies: scope(replies)?,
        opencode_shell: scope(shell)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::super::args::{Parsed, ServeArgs};
    use super::super::resolve::resolve;
    use super::*;

    fn made(flags: &[&str], env: &[(&str, &str)]) -> Result<ProxySettings> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let Parsed::Run(args) = ServeArgs::parse(&flags)? else { panic!() };
        let env: HashMap<_, _> = env.iter().copied().collect();
        resolve(&args, &|name| env.get(name).map(Into::into), Path::new("/"))
            .map(|resolved| resolved.settings.proxying)
    }

    #[test]
    fn flags_variables_and_defaults() {
        let all = |flags: &[&str], env: &[(&str, &str)]| {
            let made = made(flags, env).unwrap();
            (made.workers, made.patience.as_secs(), made.permission_replies, made.opencode_shell)
        };
        let env = [
            ("BERTH_MAX_PROXIED", "2"),
            ("BERTH_OPENCODE_TIMEOUT", "3"),
            ("BERTH_PERMISSION_REPLIES", "collaborator"),
            ("BERTH_OPENCODE_SHELL", "collaborator"),
        ];
        assert_eq!(all(&[], &[]), (16, 600, Scope::Owner, Scope::Owner));
        assert_eq!(all(&[], &env), (2, 3, Scope::Collaborator, Scope::Collaborator));
        let flags = ["--max-proxied=1024", "--opencode-timeout=86400", "--permission-replies=owner"];
        assert_eq!(all(&flags, &env), (1024, 86400, Scope::Owner, Scope::Collaborator));
        for flag in ["--max-proxied=0", "--max-proxied=x", "--opencode-timeout=0", "--opencode-shell=viewer"]
        {
            let error = made(&[flag], &[]).unwrap_err();
            assert!(error.message().starts_with(flag.split('=').next().unwrap()), "{error}");
        }
    }
}
