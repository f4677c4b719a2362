//! Names in zip archives: which characters the bytes of a name are, and which path that is. Pure.

use rawzip::ZipFileHeaderRecord;
use rawzip::extra_fields::ExtraFieldId;

/// Bytes 0x80 to 0xFF of code page 437, the character set of names without bit 11 (APPNOTE.TXT, appendix D).
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The path of an entry, with slashes between its parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryName {
    pub(super) path: String,
    /// It ends with a slash, so it is the name of a folder.
    pub(super) folder: bool,
    /// Its bytes are not text in the character set that the archive states.
    pub(super) undecodable: bool,
}

/// Why a name makes the whole archive unusable.
pub(super) const LEADS_OUT: &str = "leads out of the skill's folder: it is absolute or has '..' as a part";

/// Reads an entry's name.
///
/// # Errors
/// [`LEADS_OUT`], with the name, when any reader could take it for a path outside.
pub(super) fn read(entry: &ZipFileHeaderRecord<'_>) -> Result<EntryName, String> {
    let raw = entry.file_path();
    let unicode = entry.extra_fields().find(|(id, _)| *id == ExtraFieldId::INFO_ZIP_UNICODE_PATH);
    let (text, undecodable) =
        decode(raw.as_bytes(), entry.flags().is_utf8(), unicode.map(|(_, field)| field));
    // What follows the raw bytes is checked too: a reader that knows neither character set may use those.
    for name in [&*text, &*String::from_utf8_lossy(raw.as_bytes())] {
        if leads_out(name) {
            return Err(format!("'{}' {LEADS_OUT}", name.escape_debug()));
        }
    }
    let (path, folder) = normal(&text);
    Ok(EntryName { path, folder, undecodable })
}

/// The text of a name, and whether it is not text. `unicode`: the Info-ZIP field 0x7075, which counts only with the checksum
/// of this very name: a tool that renames the entry without knowing the field leaves a stale one.
fn decode(raw: &[u8], utf8: bool, unicode: Option<&[u8]>) -> (String, bool) {
    if let Some([1, rest @ ..]) = unicode
        && let Some((checksum, name)) = rest.split_first_chunk::<4>()
        && u32::from_le_bytes(*checksum) == rawzip::crc32(raw)
        && let Ok(name) = std::str::from_utf8(name)
        && !name.is_empty()
    {
        return (name.to_owned(), false);
    }
    match std::str::from_utf8(raw) {
        // Also without bit 11: macOS writes UTF-8 and does not say so, and no text in CP437 looks like that by chance.
        Ok(text) => (text.to_owned(), false),
        Err(_) if utf8 => (String::from_utf8_lossy(raw).into_owned(), true),
        // Names have no box drawings: these bytes are letters of another code page, such as GBK, of which the archive says
        // nothing. unzip(1) and 7-Zip take the machine's own then, and a server has none that means anything.
        Err(_) => (cp437(raw), raw.iter().any(|byte| (0xb0..=0xdf).contains(byte))),
    }
}

fn cp437(raw: &[u8]) -> String {
    let upper: Vec<char> = CP437.chars().collect();
    let letter = |byte: &u8| match byte.checked_sub(128) {
        Some(at) => upper.get(usize::from(at)).copied().unwrap_or(char::REPLACEMENT_CHARACTER),
        None => char::from(*byte),
    };
    raw.iter().map(letter).collect()
}

/// Windows takes a backslash for a slash, and so do archives from PowerShell 5.1.
const SLASHES: [char; 2] = ['/', '\\'];

fn leads_out(name: &str) -> bool {
    let mut first = name.chars();
    let drive = first.next().is_some_and(|c| c.is_ascii_alphabetic()) && first.next() == Some(':');
    name.starts_with(SLASHES)
        || name.split(SLASHES).any(|part| part == "..")
        || (drive && first.next().is_some_and(|c| SLASHES.contains(&c)))
}

/// A path without empty parts and `.`, and whether it names a folder.
fn normal(name: &str) -> (String, bool) {
    let parts: Vec<&str> = name.split(SLASHES).filter(|part| !matches!(*part, "" | ".")).collect();
    (parts.join("/"), name.ends_with(SLASHES) || parts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_as_the_archive_states() {
        assert_eq!(CP437.chars().count(), 128);
        let name = |raw: &[u8], utf8, unicode: Option<&[u8]>| decode(raw, utf8, unicode);
        assert_eq!(name("für.md".as_bytes(), true, None), ("für.md".into(), false));
        assert_eq!(name("für.md".as_bytes(), false, None), ("für.md".into(), false));
        assert_eq!(name(b"f\x81r.md", false, None), ("für.md".into(), false));
        assert_eq!(name(b"\xe1\xff", false, None), ("ß\u{a0}".into(), false));
        assert_eq!(name(b"\xcb\xb5\xc3\xf7.md", false, None), ("╦╡├≈.md".into(), true), "GBK");
        assert_eq!(name(b"f\x81r.md", true, None), ("f\u{fffd}r.md".into(), true));
        let field =
            |of: &[u8], name: &str| [&[1][..], &rawzip::crc32(of).to_le_bytes(), name.as_bytes()].concat();
        assert_eq!(name(b"x", false, Some(&field(b"x", "說明"))), ("說明".into(), false));
        assert_eq!(name(b"x", false, Some(&field(b"y", "說明"))), ("x".into(), false), "a stale field");
        for broken in [&[][..], &[1], &[1, 2, 3, 4], &[2, 0, 0, 0, 0, b'a'], &field(b"x", "")] {
            assert_eq!(name(b"x", false, Some(broken)), ("x".into(), false), "{broken:?}");
        }
    }

    #[test]
    fn only_parts_of_two_dots_and_absolute_names_lead_out() {
        for name in
            ["..", "../x", "a/../b", "a/..", "/x", "\\x", "..\\x", "a\\..\\b", "C:\\x", "c:/x", "\\\\host\\x"]
        {
            assert!(leads_out(name), "{name}");
        }
        for name in ["v1..v2.md", "[...slug]/x", "..x", "x..", ".../x", "./x", "a//b", "C:x", "a:b/c"] {
            assert!(!leads_out(name), "{name}");
        }
    }

    #[test]
    fn paths_have_no_detours() {
        for (name, path, folder) in [
            ("a\\b\\c.md", "a/b/c.md", false),
            ("a\\b\\", "a/b", true),
            ("./a//b", "a/b", false),
            ("a/", "a", true),
            ("./", "", true),
        ] {
            assert_eq!(normal(name), (path.to_owned(), folder), "{name}");
        }
    }
}
