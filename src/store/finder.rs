//! Finds files in a tree that a hostile workload can change at any moment. A budget limits the search, and a truncated
//! result is marked. Links are followed only inside the tree, and never in loops.
//! Any thread may search. The lock of the cache of folders is a leaf.

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, statat};
use rustix::io::Errno;

use super::beneath::{BENEATH, IN_ROOT, Root, dir_entries, map_kernel_error, none_if_missing};
use super::exchange::FileIdentity;
use super::file_cache::{FileCache, FileStat};
use crate::base::{Code, Result};

/// Maximum number of entries that one search visits, which takes some 20 ms.
const MAX_ENTRIES: usize = 20_000;
/// Maximum number of bytes of files that one search reads.
const MAX_BYTES: u64 = 32 << 20;
/// Maximum depth of folders.
const MAX_DEPTH: usize = 32;
/// Maximum duration of a search, for disks that respond slowly.
const MAX_TIME: Duration = Duration::from_secs(5);

/// The remaining budget of one search.
#[derive(Debug)]
pub struct SearchBudget {
    entries: usize,
    bytes: u64,
    /// Number of bytes of JSON text that the answer may still have.
    text: usize,
    until: Instant,
    /// Whether the result is incomplete.
    pub truncated: bool,
}

impl SearchBudget {
    /// Creates the budget for an answer of at most `text` bytes.
    pub fn new(text: usize) -> SearchBudget {
        SearchBudget {
            entries: MAX_ENTRIES,
            bytes: MAX_BYTES,
            text,
            until: Instant::now() + MAX_TIME,
            truncated: false,
        }
    }

    /// Takes the bytes of a file that is to be read from the budget. Returns `false` if the budget does not allow this.
    pub fn take_read(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.bytes && Instant::now() < self.until;
        if fits {
            self.bytes -= bytes;
        }
        self.truncated |= !fits;
        fits
    }

    /// Takes bytes of the answer from the budget. Returns `false` if the budget does not allow this.
    pub fn take_text(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.text;
        if fits {
            self.text -= bytes;
        }
        self.truncated |= !fits;
        fits
    }

    fn take_entry(&mut self) -> bool {
        let fits = self.entries > 0 && (self.entries % 256 != 0 || Instant::now() < self.until);
        self.entries = self.entries.saturating_sub(1);
        self.truncated |= !fits;
        fits
    }
}

/// Returns the length of a string as JSON text.
pub fn json_length(text: &str) -> usize {
    let length = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    };
    text.chars().map(length).sum::<usize>() + 2
}

/// An entry of a folder; links are not resolved.
#[derive(Clone, Debug)]
pub struct FolderEntry {
    /// The name; if it is not UTF-8, it has replacement characters and cannot be used to open the entry.
    pub name: String,
    /// Whether `name` is the exact name, without replacement characters.
    pub exact: bool,
    /// Type of the entry.
    pub kind: FileType,
}

/// The result of a search below a folder.
#[derive(Debug, Default)]
pub struct SearchResult {
    /// The files, sorted.
    pub files: Vec<FoundFile>,
    /// The folders that were read, including the top.
    pub folders: Vec<String>,
    /// Links that are absolute or lead out of the root, sorted: links with a wanted name, and links that may be
    /// folders. The targets of these links are not accessed, not even to check whether they exist.
    pub outside_links: Vec<String>,
}

/// A file that was found.
#[derive(Debug)]
pub struct FoundFile {
    /// The file's path relative to the root.
    pub path: String,
    /// The metadata of the file, or of the target if the entry is a link.
    pub stat: FileStat,
}

/// An open folder with its entries, sorted.
struct OpenFolder {
    fd: OwnedFd,
    stat: FileStat,
    entries: Arc<Vec<FolderEntry>>,
}

/// Cached listings of folders: a folder's times change when an entry is added or removed, so a cached listing is
/// current.
static FOLDER_CACHE: LazyLock<FileCache<Arc<Vec<FolderEntry>>>> = LazyLock::new(FileCache::default);

impl Root {
    /// Returns the entries of a folder, sorted; `None` if the folder does not exist.
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
        if let Some(entries) = FOLDER_CACHE.get(&stat) {
            if entries.iter().all(|_| budget.take_entry()) {
                return Ok(Some(OpenFolder { fd, stat, entries }));
            }
            return Ok(Some(OpenFolder { fd, stat, entries: Arc::default() }));
        }
        let (mut entries, mut whole, mut bytes) = (Vec::new(), true, 64);
        for entry in dir_entries(map_kernel_error(Dir::read_from(&fd), "list", rel)?) {
            let entry = map_kernel_error(entry, "list", rel)?;
            let name = entry.file_name();
            if !budget.take_entry() {
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
            FOLDER_CACHE.insert(&stat, bytes, entries.clone());
        }
        Ok(Some(OpenFolder { fd, stat, entries }))
    }

    /// Returns the files that [`Root::walk`] finds.
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

    /// Finds the files below a folder whose names `wanted` accepts, including links to files, sorted by path. Names
    /// that start with a dot are included only if `dots` is set. A folder that cannot be listed is treated as empty.
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
        // Each folder has the identities of its parents, and whether it was reached through a link.
        let mut folders: Vec<(String, Vec<FileIdentity>, bool)> = vec![(top.to_owned(), Vec::new(), true)];
        while let Some((folder, mut above, linked)) = folders.pop() {
            let OpenFolder { fd, stat, entries } = match self.folder(&folder, budget) {
                Ok(Some(listed)) => listed,
                Err(error) if error.code() != Code::InvalidPath => return Err(error),
                Ok(None) | Err(_) => {
                    if linked && budget.take_entry() && self.leads_outside(&folder) {
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
                    if above.len() < MAX_DEPTH {
                        // The target is not accessed, so only the link's name can show whether the file may be wanted.
                        let telling = wanted(&entry.name) || !entry.name.contains('.');
                        let linked = entry.kind == FileType::Symlink && telling;
                        below.push((path.clone(), above.clone(), linked));
                    } else {
                        budget.truncated = true;
                    }
                }
                if maybe_file && wanted(&entry.name) {
                    // The name is a single component and links are not followed, so the lookup stays in this folder.
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

    /// Returns whether a link in this path is absolute or leads out of the root.
    fn leads_outside(&self, rel: &str) -> bool {
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
    #[expect(clippy::disallowed_methods, reason = "the test's own files")]
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
    fn json_length_equals_the_length_of_the_text() {
        for text in ["", "a\"b\\", "\n\t\u{1}\u{7f}é😀\u{8}\u{c}"] {
            assert_eq!(json_length(text), serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }
}
