//! tar archives for tests, built header by header, so that headers can be invalid.

use std::io::Write as _;
use std::path::Path;

use tar::{EntryType, Header};

/// An archive under construction.
#[derive(Clone, Default)]
pub struct Tape(pub Vec<u8>);

impl Tape {
    /// An archive with a shell, so that only the entries added to it can be invalid.
    pub fn system() -> Tape {
        Tape::default().folder("bin", 0o755).file("bin/sh", 0o755, b"#!")
    }

    /// A member with exactly this header; `data` follows, padded to a block.
    pub fn raw(mut self, header: &Header, data: &[u8]) -> Tape {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        let fill = data.len().wrapping_neg() % 512;
        self.0.extend(std::iter::repeat_n(0, fill));
        self
    }

    pub fn file(self, path: &str, mode: u32, data: &[u8]) -> Tape {
        let mut head = header(path, EntryType::Regular, mode);
        head.set_size(data.len() as u64);
        head.set_cksum();
        self.raw(&head, data)
    }

    pub fn folder(self, path: &str, mode: u32) -> Tape {
        self.raw(&header(path, EntryType::Directory, mode), b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Tape {
        self.raw(&linking(path, EntryType::Symlink, target), b"")
    }

    pub fn link(self, path: &str, target: &str) -> Tape {
        self.raw(&linking(path, EntryType::Link, target), b"")
    }

    pub fn special(self, path: &str, kind: EntryType) -> Tape {
        let mut head = header(path, kind, 0o666);
        head.set_device_major(1).unwrap();
        head.set_device_minor(3).unwrap();
        head.set_cksum();
        self.raw(&head, b"")
    }

    /// An extended header with these records.
    pub fn pax(self, kind: EntryType, records: &[(&str, &[u8])]) -> Tape {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = 3 + key.len() + value.len();
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        let mut head = header("x", kind, 0o644);
        head.set_size(data.len() as u64);
        head.set_cksum();
        self.raw(&head, &data)
    }

    /// The whole archive.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub fn save(self, path: &Path) {
        std::fs::write(path, self.end()).unwrap();
    }
}

pub fn header(path: &str, kind: EntryType, mode: u32) -> Header {
    let mut head = Header::new_gnu();
    head.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    head.set_entry_type(kind);
    head.set_mode(mode);
    head.set_uid(0);
    head.set_gid(0);
    head.set_mtime(1_700_000_000);
    head.set_size(0);
    head.set_cksum();
    head
}

fn linking(path: &str, kind: EntryType, target: &str) -> Header {
    let mut head = header(path, kind, 0o777);
    head.set_link_name_literal(target).unwrap();
    head.set_cksum();
    head
}
