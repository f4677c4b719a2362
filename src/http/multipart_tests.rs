//! Tests of forms that arrive split at any position: file content is preserved, and malformed forms are refused.

use std::io::Read;

use proptest::prelude::*;

use super::*;

/// A reader that returns at most this many bytes per read.
struct SteppedReader<'a>(&'a [u8], usize);

impl Read for SteppedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(self.1).min(buffer.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

fn form() -> MultipartForm {
    MultipartForm::new(Some("multipart/form-data; boundary=XBX")).unwrap()
}

fn body(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, data) in parts {
        body.extend_from_slice(b"--XBX\r\nContent-Disposition: form-data; ");
        body.extend_from_slice(disposition.as_bytes());
        body.extend_from_slice(b"\r\nContent-Type: text/plain\r\n\r\n");
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XBX--\r\n");
    body
}

fn read(body: &[u8], step: usize) -> Result<Vec<(FormPart, Vec<u8>)>> {
    let (mut form, mut source, mut parts) = (form(), SteppedReader(body, step), Vec::new());
    while let Some(part) = form.next_part(&mut source)? {
        let mut data = Vec::new();
        loop {
            let piece = form.data(&mut source)?;
            if piece.is_empty() {
                break;
            }
            data.extend_from_slice(piece);
        }
        parts.push((part, data));
    }
    Ok(parts)
}

fn named(disposition: &str) -> FormPart {
    read(&body(&[(disposition, b"x")]), 4096).unwrap().remove(0).0
}

#[test]
fn files_of_every_size_around_the_buffer_are_preserved() {
    for step in [1000, 4096, usize::MAX] {
        for size in (0..300).chain(8_000..8_300).chain(BUFFER - 300..BUFFER + 300) {
            let data = vec![b'a'; size];
            let parts = read(&body(&[("name=\"file\"; filename=\"x\"", &data)]), step).unwrap();
            assert!(parts.len() == 1 && parts[0].1 == data, "{size} bytes in steps of {step}");
        }
    }
}

proptest! {
    #[test]
    fn files_are_preserved_at_any_split(
        files in prop::collection::vec(
            prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), Just(b'B'), any::<u8>()], 0..400),
            1..4
        ),
        step in 1_usize..300,
    ) {
        prop_assume!(files.iter().all(|file| memchr::memmem::find(file, b"\r\n--XBX").is_none() && !file.starts_with(b"--XBX")));
        let parts: Vec<(&str, &[u8])> = files.iter().map(|file| ("name=file; filename=x", file.as_slice())).collect();
        let read = read(&body(&parts), step).unwrap();
        prop_assert!(read.iter().map(|(_, data)| data).eq(&files));
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(bytes in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), Just(b'B'), Just(b':'), any::<u8>()], 0..600)) {
        let _ = read(&bytes, 50);
        let _ = part(&bytes);
    }
}

#[test]
fn truncated_forms_are_refused() {
    let whole = body(&[("name=path", b"a/b"), ("name=file; filename=x", b"some bytes\r\n--XB")]);
    let parts = read(&whole, 7).unwrap();
    assert_eq!((parts[0].1.as_slice(), parts[1].1.as_slice()), (&b"a/b"[..], &b"some bytes\r\n--XB"[..]));
    for length in 0..whole.len() - 4 {
        let code = read(&whole[..length], 7).unwrap_err().code();
        assert_eq!(code, Code::InvalidRequest, "cut after {length} bytes");
    }
}

#[test]
fn field_and_file_names_are_parsed_as_clients_send_them() {
    let part = |name: &str, file: &str| FormPart { name: name.into(), file_name: Some(file.into()) };
    for (disposition, want) in [
        ("name=\"file\"; filename=\"a b;c.txt\"", part("file", "a b;c.txt")),
        ("filename=\"a.txt\"; name=\"file\"", part("file", "a.txt")),
        ("name=file;filename=a.txt", part("file", "a.txt")),
        ("name=\"file\"; filename=\"a\\\"b\\\\c\"", part("file", "a\"b\\c")),
        ("name=\"file\"; filename=\"a%22b\"", part("file", "a\"b")),
        ("name=\"file\"; filename=\"C:\\dir\\x\"", part("file", "C:\\dir\\x")),
        ("name=\"file\"; filename=\"日本語.txt\"", part("file", "日本語.txt")),
        ("name=\"file\"; filename=\"x\"; filename*=UTF-8''na%C3%AFve", part("file", "naïve")),
        ("name=\"file\"; filename=\"\"", part("file", "")),
    ] {
        assert_eq!(named(disposition), want, "{disposition}");
    }
    assert_eq!(named("name=\"path\"").file_name, None);
}

#[test]
fn malformed_forms_are_refused() {
    for kind in [
        None,
        Some("application/json"),
        Some("multipart/form-data"),
        Some("multipart/form-data; boundary="),
        Some("multipart/form-data; boundary=\"ends with a space \""),
        Some("multipart/mixed; boundary=x"),
    ] {
        assert_eq!(MultipartForm::new(kind).unwrap_err().code(), Code::InvalidPayload, "{kind:?}");
    }
    assert!(MultipartForm::new(Some("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"")).is_ok());
    for bytes in [
        "--XBX\r\n\r\nx\r\n--XBX--",
        "--XBXY\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XBX--",
        "--XBX\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--XBX--",
        "--XBX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XBX--",
        "--XBX\r\nno colon\r\n\r\nx\r\n--XBX--",
    ] {
        assert_eq!(read(bytes.as_bytes(), 7).unwrap_err().code(), Code::InvalidPayload, "{bytes}");
    }
    let endless = format!("--XBX\r\nContent-Disposition: form-data; name={}", "x".repeat(BUFFER));
    assert_eq!(read(endless.as_bytes(), 999).unwrap_err().code(), Code::InvalidPayload);
    let fields = "x".repeat(limits::FORM_FIELDS_BYTES + 1);
    let (body, mut form) = (body(&[("name=a", fields.as_bytes()), ("name=b", b"")]), form());
    let mut source = SteppedReader(&body, 5000);
    form.next_part(&mut source).unwrap();
    assert_eq!(form.next_part(&mut source).unwrap_err().code(), Code::BodyTooLarge);
}
