//! Decodes the names of entries in zip archives and normalises their paths. Pure.

use rawzip::ZipFileHeaderRecord;
use rawzip::extra_fields::ExtraFieldId;

/// The characters for the bytes 0x80 to 0xFF in code page 437, the character set of names without bit 11 (APPNOTE.TXT,
/// appendix D).
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The path of an entry, with `/` as separator.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryName {
    pub(super) path: String,
    /// Whether the name ends with a slash, so that it names a folder.
    pub(super) folder: bool,
    /// Whether the bytes are invalid in the character set that the archive declares.
    pub(super) undecodable: bool,
}

/// The reason why a name makes the whole archive unusable.
pub(super) const LEADS_OUT: &str = "leads out of the skill's folder: it is absolute or has '..' as a part";

/// Reads the name of an entry.
///
/// # Errors
/// Returns the name and [`LEADS_OUT`] if any program could resolve the name to a path outside of the skill's folder.
pub(super) fn read(entry: &ZipFileHeaderRecord<'_>) -> Result<EntryName, String> {
    let raw = entry.file_path();
    let unicode = entry.extra_fields().find(|(id, _)| *id == ExtraFieldId::INFO_ZIP_UNICODE_PATH);
    let (text, undecodable) =
        decode(raw.as_bytes(), entry.flags().is_utf8(), unicode.map(|(_, field)| field));
    // The raw bytes are checked too, for programs that support neither character set.
    for name in [&*text, &*String::from_utf8_lossy(raw.as_bytes())] {
        if leads_out(name) {
            return Err(format!("'{}' {LEADS_OUT}", name.escape_debug()));
        }
    }
    let (path, folder) = normal(&text);
    Ok(EntryName { path, folder, undecodable })
}

/// Returns the text of a name, and whether it is undecodable. `unicode` is the Info-ZIP field 0x7075. It is used only
/// if its checksum matches this name, because a tool that renames an entry without supporting the field leaves an
/// outdated value in it.
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
        // A name is first decoded as UTF-8 even without bit 11: macOS writes UTF-8 without setting the bit, and text
        // in CP437 is practically never valid UTF-8.
        Ok(text) => (text.to_owned(), false),
        Err(_) if utf8 => (String::from_utf8_lossy(raw).into_owned(), true),
        // Real names do not contain box-drawing characters, so such bytes are letters of another code page, such as
        // GBK, which the archive does not declare. unzip(1) and 7-Zip then use the machine's locale, but the locale of
        // a server is not that of the archive's author.
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

/// Windows accepts both separators, and PowerShell 5.1 writes backslashes.
const SLASHES: [char; 2] = ['/', '\\'];

fn leads_out(name: &str) -> bool {
    let mut first = name.chars();
    let drive = first.next().is_some_and(|c| c.is_ascii_alphabetic()) && first.next() == Some(':');
    name.starts_with(SLASHES)
        || name.split(SLASHES).any(|part| part == "..")
        || (drive && first.next().is_some_and(|c| SLASHES.contains(&c)))
}

/// Removes empty components and `.` from a path. Also returns whether the path names a folder.
fn normal(name: &str) -> (String, bool) {
    let parts: Vec<&str> = name.split(SLASHES).filter(|part| !matches!(*part, "" | ".")).collect();
    (parts.join("/"), name.ends_with(SLASHES) || parts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_with_the_declared_character_set() {
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
    fn parent_components_and_absolute_names_lead_out() {
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
    fn paths_are_normalised() {
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
