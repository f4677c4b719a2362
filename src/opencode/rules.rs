//! Recognises the restricted parts of a request: paths that leave the base path, replies to permission requests, and
//! directories outside of the workspace. Paths are parsed as OpenCode parses them (URL standard, decoded once); an
//! ambiguous path counts as restricted. Pure, except for [`check_directory`] and [`is_file_inside`], which use the
//! file system.

use std::borrow::Cow;
use std::path::{Component, Path};

use crate::base::{Code, Error, Result};

/// Decodes percent-encoding and leaves malformed escapes unchanged. With `plus`, a `+` is decoded as a space.
fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Refuses a path with `..` in any spelling, since it would leave the base path.
///
/// # Errors
/// Fails with `InvalidPath`.
pub fn check_path(path: &str) -> Result<()> {
    let climbs = decode(path, false).split(['/', '\\']).any(|segment| segment == "..");
    if climbs {
        return Err(Error::new(Code::InvalidPath, "The path may not contain '..'"));
    }
    Ok(())
}

/// Splits a path at each character at which a version of OpenCode could split or end it; for example, 1.18 ends a path
/// at a `;`.
pub(super) fn segments(path: &str) -> Vec<String> {
    let decoded = decode(path, false);
    decoded.split(['/', '\\', ';', '?', '#']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Like [`segments`], but returns the segments in lower case, because the router of 1.18 ignores case.
pub(super) fn words(path: &str) -> Vec<String> {
    segments(path).iter().map(|word| word.to_lowercase()).collect()
}

/// Returns the decoded parameter names of a query.
pub(super) fn query_names(query: &str) -> impl Iterator<Item = String> {
    query.split('&').map(|pair| decode(pair.split('=').next().unwrap_or_default(), true))
}

/// Returns the parameters of a query that select the directory or workspace.
pub(super) fn location_query(query: &str) -> String {
    let decides = |pair: &&str| {
        let name = decode(pair.split('=').next().unwrap_or_default(), true);
        ["directory", "workspace"].iter().any(|known| name == *known || name.ends_with(&format!("[{known}]")))
    };
    query.split('&').filter(decides).collect::<Vec<_>>().join("&")
}

/// Returns the paths of the files that a request reads, in each way in which a version of OpenCode decodes them.
/// 1.1.53 follows symbolic links.
pub fn files(path: &str, query: &str) -> Vec<String> {
    if words(path).first().is_none_or(|word| word != "file") {
        return Vec::new();
    }
    let named = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let once = (decode(name, true) == "path").then(|| decode(value, true))?;
        Some([decode(&once, false), once])
    };
    query.split('&').filter_map(named).flatten().collect()
}

/// Returns whether a write to this path replies to a permission request or changes a reply.
pub fn is_about_permissions(path: &str) -> bool {
    words(path).iter().any(|word| word == "permission" || word == "permissions")
}

/// Returns whether OpenCode's response for a path can contain secrets: configurations contain the values of `{env:…}`
/// and `{file:…}`, and providers contain their keys.
pub fn exposes_secrets(path: &str) -> bool {
    words(path).iter().any(|word| ["config", "provider", "providers"].contains(&word.as_str()))
}

/// Returns every directory that a request names, in each way in which a version of OpenCode may decode it.
///
/// # Errors
/// Fails with `InvalidPath` for values that OpenCode would decode differently: malformed escapes, bytes that are not
/// UTF-8, and a header that is not ASCII, which OpenCode reads as Latin-1.
pub fn directories<'a>(query: &'a str, headers: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let malformed = |text: &str| {
        let message =
            "The directory is not percent-encoded correctly; encode it as encodeURIComponent() does";
        Error::new(Code::InvalidPath, message).detail("directory", text)
    };
    let mut all = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name, true);
        if name == "directory" || name.ends_with("[directory]") {
            let once = decode_strictly(&value.replace('+', " ")).ok_or_else(|| malformed(value))?;
            // 1.1 decodes a query twice, later versions once. All versions decode the header.
            all.extend(decode_strictly(&once));
            all.push(once);
        }
    }
    for header in headers {
        let decoded = Some(header).filter(|header| header.is_ascii()).and_then(decode_strictly);
        all.push(decoded.ok_or_else(|| malformed(header))?);
    }
    all.retain(|directory| !directory.is_empty());
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Decodes a text like JavaScript's decodeURIComponent(); returns `None` where that function throws an exception.
pub(super) fn decode_strictly(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((byte, behind)) = rest.split_first() {
        let (decoded, behind) = match byte {
            b'%' => {
                let (hex, behind) = behind.split_at_checked(2)?;
                let digits = hex.iter().all(u8::is_ascii_hexdigit);
                let hex = std::str::from_utf8(hex).ok().filter(|_| digits)?;
                (u8::from_str_radix(hex, 16).ok()?, behind)
            }
            byte => (*byte, behind),
        };
        out.push(decoded);
        rest = behind;
    }
    String::from_utf8(out).ok()
}

/// Returns whether a query or header selects another workspace among OpenCode's own workspaces.
pub fn names_workspace<'a>(query: &str, mut headers: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    let in_query = query_names(query).any(|name| name == "workspace" || name.ends_with("[workspace]"));
    in_query || headers.any(|(name, _)| name.eq_ignore_ascii_case("x-opencode-workspace"))
}

/// Encodes a directory for the `x-opencode-directory` header: returns it unchanged if possible, otherwise encoded as
/// OpenCode's own client does.
pub fn directory_header(directory: &str) -> String {
    let plain = directory.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%');
    if plain { directory.to_owned() } else { query_value(directory) }
}

/// Translates a path on the host into the path inside the container whose root folder is `root` on the host.
fn inside(directory: &str, root: &Path) -> Option<String> {
    let below = Path::new(directory).strip_prefix(root).ok()?;
    Some(format!("/{}", below.to_string_lossy()))
}

/// Translates the directory header of a request to OpenCode in a container whose root folder is `root` on the host.
pub fn header_inside(header: &str, root: Option<&Path>) -> String {
    let named = root.and_then(|root| inside(&decode_strictly(header)?, root));
    named.map_or_else(|| header.to_owned(), |named| directory_header(&named))
}

/// Translates the directories in the query of a request to OpenCode in a container whose root folder is `root` on the
/// host.
pub fn query_inside<'a>(path_and_query: &'a str, root: Option<&Path>) -> Cow<'a, str> {
    let Some((root, (path, query))) = root.zip(path_and_query.split_once('?')) else {
        return path_and_query.into();
    };
    let pairs = query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = decode(name, true);
        let named = (plain == "directory" || plain.ends_with("[directory]"))
            .then(|| inside(&decode_strictly(&value.replace('+', " "))?, root))
            .flatten();
        named.map_or_else(|| pair.to_owned(), |named| format!("{name}={}", query_value(&named)))
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&")).into()
}

/// Percent-encodes the value of a query parameter.
pub fn query_value(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()/".contains(&byte);
    text.bytes().fold(String::new(), |text, byte| {
        if keep(byte) {
            text + (byte as char).encode_utf8(&mut [0; 4])
        } else {
            text + &format!("%{byte:02X}")
        }
    })
}

/// Refuses a directory that is not `base` or below it. If `is_here` is true, symbolic links are resolved; if the
/// directory is on another machine, only the paths are compared.
///
/// # Errors
/// Fails with `Forbidden`.
pub fn check_directory(directory: &str, base: &Path, is_here: bool) -> Result<()> {
    let path = Path::new(directory);
    if path == base {
        return Ok(());
    }
    let refused = || {
        Error::new(Code::Forbidden, "The directory is not inside the workspace")
            .detail("directory", directory)
            .detail("workspace", base.to_string_lossy())
    };
    let plain = path.is_absolute()
        && !directory.contains('\0')
        && !path.components().any(|part| part == Component::ParentDir);
    if !plain {
        return Err(refused());
    }
    if !is_here {
        return if path.starts_with(base) { Ok(()) } else { Err(refused()) };
    }
    let real = |path: &Path| path.canonicalize().map_err(|error| refused().with_source(error));
    if real(path)?.starts_with(real(base)?) { Ok(()) } else { Err(refused()) }
}

/// Returns whether a path is below `base`; the file need not exist. If `is_here` is true, symbolic links are resolved;
/// if the file is on another machine, only the paths are compared.
pub fn is_file_inside(path: &Path, base: &Path, is_here: bool) -> bool {
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    if !plain || !is_here {
        return plain && path.starts_with(base);
    }
    let real = path.ancestors().find_map(|up| {
        // A dangling symbolic link could point anywhere once its target exists, so it counts as outside.
        if up.symlink_metadata().is_ok() { Some(up.canonicalize().ok()) } else { None }
    });
    match (real.flatten(), base.canonicalize()) {
        (Some(real), Ok(base)) => real.starts_with(base),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_segments_are_refused_in_every_spelling() {
        for path in ["/..", "/a/../b", "/%2e%2E/b", "/a/.%2e", "/a\\..\\b", "/a%5c..%2fb", "/a/..%2f"] {
            assert!(check_path(path).is_err(), "{path}");
        }
        for path in ["/", "//", "/a/...", "/a..b/%2f", "/%zz/%", "/.x/.", "/%ff"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn permission_paths_are_recognised_in_every_spelling() {
        for path in [
            "/permission/x/reply",
            "/session/s/permissions/p",
            "/api/session/s/permission/p/reply",
            "/%70ermission/x/repl%79",
            "//permission//x//reply",
            "/a\\permission\\x\\reply",
            "/Permission/x/reply",
            "/x/permission;a",
        ] {
            assert!(is_about_permissions(path), "{path}");
        }
        for path in
            ["/", "/permissionx/y", "/session/s/message", "/question/q/reply", "/%2570ermission/x/reply"]
        {
            assert!(!is_about_permissions(path), "{path}");
        }
    }

    #[test]
    fn secret_paths_are_recognised_in_every_spelling() {
        for path in [
            "/config",
            "/config/providers",
            "/provider",
            "/global/config",
            "/c%6fnfig",
            "//Config/",
            "/api/provider/x",
            "/config;x",
        ] {
            assert!(exposes_secrets(path), "{path}");
        }
        for path in ["/", "/session/config-1", "/file", "/configs", "/event"] {
            assert!(!exposes_secrets(path), "{path}");
        }
    }

    #[test]
    fn directories_are_found_in_every_spelling() {
        let found = |query: &str| directories(query, std::iter::empty()).unwrap();
        assert_eq!(found("x=1&directory=/a%20b+c&directoryx=/n"), ["/a b c"]);
        assert_eq!(found("%64irectory=%2Fetc"), ["/etc"]);
        assert_eq!(found("location%5Bdirectory%5D=/e&directory="), ["/e"]);
        assert_eq!(found("directory=%252Fetc"), ["%2Fetc", "/etc"]);
        assert_eq!(found("directory=/100%25"), ["/100%"]);
        assert_eq!(directories("", ["/a", "%2Fb"].into_iter()).unwrap(), ["/a", "/b"]);
        for odd in ["/a%41%zz", "/a%", "/a%4", "/a%+1", "/a%ff", "/a%c3%28", "/a%ed%a0%80"] {
            assert!(directories("", [odd].into_iter()).is_err(), "{odd}");
            assert!(directories(&format!("directory={odd}"), std::iter::empty()).is_err(), "{odd}");
        }
        assert!(directories("", ["/ü"].into_iter()).is_err());
        assert!(names_workspace("a=1&workspac%65=x", std::iter::empty()));
        assert!(!names_workspace("workspaces=x", std::iter::empty()));
        for (plain, header) in [("/a/b", "/a/b"), ("/ü b", "/%C3%BC%20b"), ("/100%", "/100%25")] {
            assert_eq!(directory_header(plain), header);
            assert_eq!(decode(header, false), plain);
        }
    }

    #[test]
    fn host_paths_become_paths_inside() {
        let root = Some(Path::new("/c/root"));
        for (header, want) in
            [("/c/root", "/"), ("%2Fc%2Froot%2Fa%20b", "/a%20b"), ("/x", "/x"), ("/c/roots", "/c/roots")]
        {
            assert_eq!(header_inside(header, root), want);
        }
        assert_eq!(query_inside("/f?a=1&directory=/c/root/x%20y&b", root), "/f?a=1&directory=/x%20y&b");
        assert_eq!(query_inside("/f?location%5Bdirectory%5D=/c/root", root), "/f?location%5Bdirectory%5D=/");
        assert_eq!(query_inside("/f?directory=/c/root", None), "/f?directory=/c/root");
    }

    #[test]
    fn directories_outside_the_workspace_are_refused() {
        let scratch = crate::store::scratch::TestFolder::new();
        let base = scratch.join("ws");
        std::fs::create_dir_all(base.join("sub")).unwrap();
        std::fs::create_dir_all(scratch.join("ws2")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        std::os::unix::fs::symlink("sub", base.join("in")).unwrap();
        let ok = |path: &str| check_directory(&format!("{}{path}", scratch.display()), &base, true).is_ok();
        for path in ["/ws", "/ws/", "/ws/sub", "/ws/in", "/ws/./sub"] {
            assert!(ok(path), "{path}");
        }
        for path in ["", "/ws2", "/ws/out", "/ws/../ws2", "/ws/sub/../..", "/ws/none", "/ws/sub\0"] {
            assert!(!ok(path), "{path}");
        }
        assert!(check_directory("sub", &base, true).is_err());
        assert!(check_directory("/far/away", Path::new("/far"), false).is_ok());
        for path in ["/faraway", "/far/../etc", "/", "far"] {
            assert!(check_directory(path, Path::new("/far"), false).is_err(), "{path}");
        }
    }
}
