//! Resolves users by name or number in /etc/passwd and /etc/group of the container or host in which the command
//! runs. A container's files may be malicious; at worst they name another user of the same container.

use crate::base::{Code, Error, Result};
use crate::proc::{Launcher, ProcessUser};

/// Maximum size of /etc/passwd and /etc/group.
const ACCOUNTS_BYTES: u64 = 1 << 20;
/// Maximum number of groups of a user; the kernel allows 65,536 (NGROUPS_MAX).
const GROUPS: usize = 1024;

/// A user, and the name and home directory of its account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserAccount {
    pub user: ProcessUser,
    /// Value of USER and LOGNAME: the user's name, or the number if the user has no name.
    pub name: String,
    /// Value of HOME.
    pub home: String,
}

/// Resolves a user such as `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. A number needs no entry in the files; the
/// default group of such a user has the same number.
///
/// # Errors
/// `InvalidUser` when the user or group does not exist.
pub fn resolve(text: &str, place: &dyn Launcher) -> Result<UserAccount> {
    let read = |path: &str| -> Result<String> {
        let bytes = place.file(path, ACCOUNTS_BYTES)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    find(text, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn find(text: &str, passwd: &str, group: &str) -> Result<UserAccount> {
    let refused = |what: String| Error::new(Code::InvalidUser, what).detail("user", text);
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<String>>();
    // setresuid(2) interprets the ID -1 as "no change", so no user can have it.
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u32>().ok().filter(|id| *id != u32::MAX),
        false => None,
    };
    let entry = passwd
        .lines()
        .map(fields)
        .filter(|entry| entry.len() >= 6)
        .find(|entry| entry[0] == user || number(user).is_some_and(|uid| number(&entry[2]) == Some(uid)));
    let known = entry.and_then(|entry| Some((number(&entry[2])?, number(&entry[3])?, entry)));
    let (uid, own_gid, name, home) = match (known, number(user)) {
        (Some((uid, gid, entry)), _) => (uid, gid, entry[0].clone(), entry[5].clone()),
        (None, Some(uid)) => (uid, uid, user.to_owned(), "/".to_owned()),
        (None, None) => {
            return Err(refused(format!(
                "There is no user '{}' where the command is to run",
                user.escape_debug()
            )));
        }
    };
    let groups: Vec<Vec<String>> = group.lines().map(fields).filter(|entry| entry.len() >= 3).collect();
    let gid = match wanted_group {
        None => own_gid,
        Some(group) => groups
            .iter()
            .find(|entry| entry[0] == group)
            .and_then(|entry| number(&entry[2]))
            .or_else(|| number(group))
            .ok_or_else(|| {
                refused(format!("There is no group '{}' where the command is to run", group.escape_debug()))
            })?,
    };
    let member = |entry: &&Vec<String>| {
        entry.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
    };
    let mut all: Vec<u32> = groups.iter().filter(member).filter_map(|entry| number(&entry[2])).collect();
    all.push(gid);
    all.sort_unstable();
    all.dedup();
    all.truncate(GROUPS);
    let home = if home.starts_with('/') { home } else { "/".to_owned() };
    Ok(UserAccount { user: ProcessUser { uid, gid, groups: all }, name, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nme:x:1000:1001:Me,,,:/home/me:/bin/sh\n\
                          odd:x:-1:5:::\n7:x:70:70::relative:\n";
    const GROUP: &str = "root:x:0:\nme:x:1001:\nsudo:x:27:you,me\ndocker:x:999:me\nmean:x:5:men\n";

    fn found(text: &str) -> (u32, u32, Vec<u32>, String, String) {
        let UserAccount { user, name, home } = find(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, name, home)
    }

    #[test]
    fn names_and_numbers() {
        let me = (1000, 1001, vec![27, 999, 1001], "me".to_owned(), "/home/me".to_owned());
        assert_eq!(found("me"), me);
        assert_eq!(found("1000"), me);
        assert_eq!(found("root"), (0, 0, vec![0], "root".into(), "/root".into()));
        assert_eq!(found("me:sudo").1, 27);
        assert_eq!(found("me:4242").1, 4242);
        assert_eq!(found("4242"), (4242, 4242, vec![4242], "4242".into(), "/".into()));
        assert_eq!(found("4242:0").1, 0);
        assert_eq!(found("70").4, "/", "a home that is no path");
        for text in [
            "",
            ":",
            "nobody",
            "me:",
            "me:none",
            "-1",
            "4294967295",
            "99999999999",
            "odd",
            "broken",
            "a\nroot",
            "+5",
        ] {
            let refused = find(text, PASSWD, GROUP);
            assert!(refused.is_err(), "{text:?}: {refused:?}");
        }
    }
}
