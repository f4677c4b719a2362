//! Finds files in a tree that a hostile workload can change at any moment, within a budget: the walk ends when it is
//! spent, and says so. Any thread; lock: the folders that were read, a leaf. Links are followed inside the tree only, and never in circles.

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, statat};
use rustix::io::Errno;

use super::beneath::{BENEATH, IN_ROOT, Root, is_dots, map_kernel_error, none_if_missing};
use super::exchange::FileIdentity;
use super::file_cache::{FileCache, FileStat};
use crate::base::{Code, Result};

/// Entries that one list looks at: some 20 ms.
const ENTRIES: usize = 20_000;
/// Bytes of files that one list reads.
const BYTES: u64 = 32 << 20;
/// Folders within each other.
const DEPTH: usize = 32;
/// How long one list looks for more. A disk that answers slowly ends it.
const TIME: Duration = Duration::from_secs(5);

/// What one list may cost.
#[derive(Debug)]
pub struct SearchBudget {
    entries: usize,
    bytes: u64,
    /// Bytes of JSON text that its answer may have.
    text: usize,
    until: Instant,
    /// Something was left out.
    pub truncated: bool,
}

impl SearchBudget {
    /// For an answer of at most so many bytes.
    pub fn new(text: usize) -> SearchBudget {
        SearchBudget { entries: ENTRIES, bytes: BYTES, text, until: Instant::now() + TIME, truncated: false }
    }

    /// Takes the reading of a file; `false` when it is not to be read.
    pub fn take_read(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.bytes && Instant::now() < self.until;
        if fits {
            self.bytes -= bytes;
        }
        self.truncated |= !fits;
        fits
    }

    /// Takes room in the answer; `false` when there is not so much left.
    pub fn take_text(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.text;
        if fits {
            self.text -= bytes;
        }
        self.truncated |= !fits;
        fits
    }

    fn entry(&mut self) -> bool {
        let fits = self.entries > 0 && (self.entries % 256 != 0 || Instant::now() < self.until);
        self.entries = self.entries.saturating_sub(1);
        self.truncated |= !fits;
        fits
    }
}

/// What a string takes in JSON text.
pub fn json_length(text: &str) -> usize {
    let length = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    };
    text.chars().map(length).sum::<usize>() + 2
}

/// An entry of a folder. What a link leads to is not known yet.
#[derive(Clone, Debug)]
pub struct FolderEntry {
    /// Its name; one that is not UTF-8 has characters in its place, and cannot be opened by it.
    pub name: String,
    /// Whether `name` is exact.
    pub exact: bool,
    /// What it is.
    pub kind: FileType,
}

/// What was found below a folder.
#[derive(Debug, Default)]
pub struct SearchResult {
    /// The files, sorted.
    pub files: Vec<FoundFile>,
    /// The folders that were read, the top included.
    pub folders: Vec<String>,
    /// Links that lead out of the root or are absolute, sorted: those with a wanted name, and those that can be folders. Where
    /// they lead was not looked at, not even whether something is there.
    pub outside_links: Vec<String>,
}

/// A file that was found.
#[derive(Debug)]
pub struct FoundFile {
    /// Below the root.
    pub path: String,
    /// What it is; of a link, where it leads.
    pub stat: FileStat,
}

/// A folder that is open, with its entries, sorted.
struct OpenFolder {
    fd: OwnedFd,
    stat: FileStat,
    entries: Arc<Vec<FolderEntry>>,
}

/// Folders as they were read last: an entry that comes or goes changes a folder's times.
static FOLDERS: LazyLock<FileCache<Arc<Vec<FolderEntry>>>> = LazyLock::new(FileCache::default);

impl Root {
    /// The entries of a folder, sorted; `None` if there is no such folder.
    ///
    /// # Errors
    /// See [`Root`].
    pub fn list(&self, rel: &str, budget: &mut SearchBudget) -> Result<Option<Arc<Vec<FolderEntry>>>> {
        Ok(self.folder(rel, budget)?.map(|folder| folder.entries))
    }

    fn folder(&self, rel: &str, budget: &mut SearchBudget) -> Result<Option<OpenFolder>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let Some(fd) = map_kernel_error(none_if_missing(self.resolve(rel, flags, IN_ROOT)), "list", rel)?
        else {
            return Ok(None);
        };
        let stat = FileStat::from(map_kernel_error(fstat(&fd), "list", rel)?);
        if let Some(entries) = FOLDERS.get(&stat) {
            if entries.iter().all(|_| budget.entry()) {
                return Ok(Some(OpenFolder { fd, stat, entries }));
            }
            return Ok(Some(OpenFolder { fd, stat, entries: Arc::default() }));
        }
        let (mut entries, mut whole, mut bytes) = (Vec::new(), true, 64);
        for entry in map_kernel_error(Dir::read_from(&fd), "list", rel)? {
            let entry = map_kernel_error(entry, "list", rel)?;
            let name = entry.file_name();
            if is_dots(name.to_bytes()) {
                continue;
            }
            if !budget.entry() {
                whole = false;
                break;
            }
            let exact = name.to_str().is_ok();
            bytes += name.to_bytes().len() as u64 + 48;
            entries.push(FolderEntry {
                name: name.to_string_lossy().into_owned(),
                exact,
                kind: entry.file_type(),
            });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let entries = Arc::new(entries);
        if whole {
            FOLDERS.insert(&stat, bytes, entries.clone());
        }
        Ok(Some(OpenFolder { fd, stat, entries }))
    }

    /// The files that [`Root::walk`] finds.
    ///
    /// # Errors
    /// See [`Root`]; never `InvalidPath`.
    pub fn find_files(
        &self,
        top: &str,
        dots: bool,
        wanted: impl Fn(&str) -> bool,
        budget: &mut SearchBudget,
    ) -> Result<Vec<FoundFile>> {
        Ok(self.walk(top, dots, wanted, budget)?.files)
    }

    /// The files below a folder whose names `wanted` takes, in the order of their paths; links to files as well. Names
    /// that begin with a dot count only with `dots`. A folder that cannot be listed has none.
    ///
    /// # Errors
    /// See [`Root`]; never `InvalidPath`.
    pub fn walk(
        &self,
        top: &str,
        dots: bool,
        wanted: impl Fn(&str) -> bool,
        budget: &mut SearchBudget,
    ) -> Result<SearchResult> {
        let mut found = SearchResult::default();
        // Each with the folders above it, and whether a link leads to it.
        let mut folders: Vec<(String, Vec<FileIdentity>, bool)> = vec![(top.to_owned(), Vec::new(), true)];
        while let Some((folder, mut above, linked)) = folders.pop() {
            let OpenFolder { fd, stat, entries } = match self.folder(&folder, budget) {
                Ok(Some(listed)) => listed,
                Err(error) if error.code() != Code::InvalidPath => return Err(error),
                Ok(None) | Err(_) => {
                    if linked && budget.entry() && self.leads_out(&folder) {
                        found.outside_links.push(folder);
                    }
                    continue;
                }
            };
            if above.contains(&stat.inode()) {
                continue;
            }
            above.push(stat.inode());
            found.folders.push(folder.clone());
            let mut below = Vec::new();
            for entry in entries.iter().filter(|entry| entry.exact) {
                if entry.name.starts_with('.') && !dots {
                    continue;
                }
                let path =
                    if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
                let maybe_file =
                    matches!(entry.kind, FileType::RegularFile | FileType::Symlink | FileType::Unknown);
                let maybe_folder =
                    matches!(entry.kind, FileType::Directory | FileType::Symlink | FileType::Unknown);
                if maybe_folder {
                    if above.len() < DEPTH {
                        // The target is not looked at, so the name has to show what it is.
                        let telling = wanted(&entry.name) || !entry.name.contains('.');
                        let linked = entry.kind == FileType::Symlink && telling;
                        below.push((path.clone(), above.clone(), linked));
                    } else {
                        budget.truncated = true;
                    }
                }
                if maybe_file && wanted(&entry.name) {
                    // The last part alone, and no link: nothing is resolved here.
                    let own = statat(&fd, entry.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map(FileStat::from);
                    let stat = match own {
                        Ok(stat) if stat.is_file() => Some(stat),
                        Ok(_) => self.stat(&path).ok().flatten().filter(FileStat::is_file),
                        Err(_) => None,
                    };
                    found.files.extend(stat.map(|stat| FoundFile { path, stat }));
                }
            }
            below.reverse();
            folders.append(&mut below);
        }
        found.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        found.outside_links.sort_unstable();
        Ok(found)
    }

    /// Whether a link on this path leads out of the root, or is absolute.
    fn leads_out(&self, rel: &str) -> bool {
        matches!(self.resolve(rel, OFlags::PATH, BENEATH), Err(Errno::XDEV))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's own files")]
    fn files_are_found_in_bounds() {
        let dir = TestFolder::new();
        let root = Root::open(&dir).unwrap();
        fs::create_dir_all(dir.join("a/b/.c/d")).unwrap();
        for file in ["a/x.md", "a/b/x.md", "a/b/.c/d/x.md", "a/b/y.txt"] {
            fs::write(dir.join(file), "").unwrap();
        }
        fs::create_dir(dir.join("a/dir.md")).unwrap();
        symlink("..", dir.join("a/b/loop")).unwrap();
        symlink("x.md", dir.join("a/link.md")).unwrap();
        symlink("/", dir.join("a/out")).unwrap();
        symlink("self", dir.join("a/self")).unwrap();
        let find = |dots| {
            let mut budget = SearchBudget::new(100);
            let found = root.find_files("a", dots, |name| name.ends_with(".md"), &mut budget).unwrap();
            assert!(!budget.truncated);
            found.into_iter().map(|file| file.path).collect::<Vec<_>>()
        };
        assert_eq!(find(false), ["a/b/x.md", "a/link.md", "a/x.md"]);
        assert_eq!(find(true), ["a/b/.c/d/x.md", "a/b/x.md", "a/link.md", "a/x.md"]);
        let mut small = SearchBudget { entries: 3, ..SearchBudget::new(100) };
        root.find_files("a", true, |_| true, &mut small).unwrap();
        assert!(small.truncated);
        assert!(root.find_files("no", true, |_| true, &mut SearchBudget::new(1)).unwrap().is_empty());
        symlink("/nowhere", dir.join("a/b/far.md")).unwrap();
        symlink("../../..", dir.join("a/up")).unwrap();
        symlink("gone.md", dir.join("a/dangling.md")).unwrap();
        let out = |top: &str| {
            root.walk(top, true, |name| name.ends_with(".md"), &mut SearchBudget::new(1))
                .unwrap()
                .outside_links
        };
        assert_eq!(out("a"), ["a/b/far.md"]);
        symlink("/nowhere/b", dir.join("b")).unwrap();
        assert_eq!((out("b"), out("none")), (vec!["b".to_owned()], vec![]));
    }

    #[test]
    fn json_length_is_that_of_the_text() {
        for text in ["", "a\"b\\", "\n\t\u{1}\u{7f}é😀\u{8}\u{c}"] {
            assert_eq!(json_length(text), serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }
}
