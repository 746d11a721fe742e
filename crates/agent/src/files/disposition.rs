//! The two sides of `Content-Disposition`: reading the target path out of an uploaded part, and naming a download.
//!
//! Clients put whole paths, slashes included, into the `filename` of a multipart upload, so nothing is cut off
//! here. A backslash quotes the next character only where that character is special in HTTP, so that Windows
//! names survive; percent signs stay, since a file may really be called `100%25.txt`.

use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that RFC 5987 lets stand for themselves.
const ATTRIBUTE: AsciiSet = NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What a multipart part's `Content-Disposition` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartName {
    /// The form field.
    pub(crate) name: Option<String>,
    /// The file's path, as the client wrote it.
    pub(crate) file_name: Option<String>,
}

/// Reads the header of a multipart part. Bytes that are not UTF-8 are replaced.
pub(crate) fn part_name(header: &[u8]) -> PartName {
    let header = String::from_utf8_lossy(header);
    let mut found = PartName::default();
    let mut rest = header.as_ref();
    while let Some(start) = rest.find(';') {
        rest = rest[start + 1..].trim_start();
        let Some(equals) = rest.find(['=', ';']) else { break };
        if rest.as_bytes()[equals] == b';' {
            rest = &rest[equals..];
            continue;
        }
        let key = rest[..equals].trim().to_ascii_lowercase();
        let (value, after) = value(rest[equals + 1..].trim_start());
        rest = after;
        match key.as_str() {
            "name" => found.name = found.name.or(Some(value)),
            "filename" => found.file_name = found.file_name.or(Some(value)),
            // RFC 5987: charset'language'percent-encoded; it wins over the plain name.
            "filename*" => {
                if let Some(encoded) = value.splitn(3, '\'').nth(2) {
                    found.file_name =
                        Some(percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned());
                }
            }
            _ => {}
        }
    }
    found
}

/// One parameter value, quoted or not, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => match characters.next_if(|(_, next)| is_special(*next)) {
                Some((_, next)) => value.push(next),
                None => value.push('\\'),
            },
            _ => value.push(character),
        }
    }
    (value, "")
}

fn is_special(character: char) -> bool {
    "()<>@,;:\\\"/[]?=".contains(character)
}

/// The header that names a download after the last component of `path`.
pub(crate) fn inline(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if plain {
        let quoted: String = name.chars().fold(String::new(), |mut quoted, character| {
            if matches!(character, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(character);
            quoted
        });
        format!("inline; filename=\"{quoted}\"")
    } else {
        format!("inline; filename*=UTF-8''{}", utf8_percent_encode(&name, &ATTRIBUTE))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file_name(header: &str) -> Option<String> {
        part_name(header.as_bytes()).file_name
    }

    #[test]
    fn a_file_name_keeps_its_slashes() {
        assert_eq!(
            part_name(br#"form-data; name="file"; filename="/home/user/a b/c.txt""#),
            PartName { name: Some("file".into()), file_name: Some("/home/user/a b/c.txt".into()) }
        );
    }

    #[test]
    fn quoting_follows_the_clients_that_exist() {
        assert_eq!(file_name(r#"form-data; name="file"; filename="a\"b""#).as_deref(), Some(r#"a"b"#));
        assert_eq!(file_name(r#"form-data; name="file"; filename="a\\b""#).as_deref(), Some(r"a\b"));
        assert_eq!(
            file_name(r#"form-data; name="file"; filename="C:\dir\name""#).as_deref(),
            Some(r"C:\dir\name")
        );
        assert_eq!(
            file_name(r#"form-data; name="file"; filename="100%25;x=y.txt""#).as_deref(),
            Some("100%25;x=y.txt")
        );
        assert_eq!(file_name("form-data; name=file; filename=plain.txt").as_deref(), Some("plain.txt"));
        assert_eq!(
            file_name("form-data; name=file; filename=x; filename*=UTF-8''na%C3%AFve").as_deref(),
            Some("naïve")
        );
        assert_eq!(file_name(r#"form-data; name="filename=x""#), None);
        assert_eq!(
            part_name("form-data; name=\"file\"; filename=\"ünï.txt\"".as_bytes()).file_name.as_deref(),
            Some("ünï.txt")
        );
    }

    #[test]
    fn a_download_is_named_after_the_file() {
        assert_eq!(inline(Path::new("/a/b.txt")), r#"inline; filename="b.txt""#);
        assert_eq!(inline(Path::new("/a/sp ace \"q\".txt")), r#"inline; filename="sp ace \"q\".txt""#);
        assert_eq!(inline(Path::new("/a/ü.txt")), "inline; filename*=UTF-8''%C3%BC.txt");
    }

    proptest! {
        #[test]
        fn a_name_survives_the_way_there_and_back(name in "[^/\\x00]{1,40}") {
            prop_assume!(name != "." && name != "..");
            let header = inline(&Path::new("/dir").join(&name));
            prop_assert!(http::HeaderValue::from_str(&header).is_ok());
            let got = part_name(header.as_bytes()).file_name;
            prop_assert_eq!(got.as_deref(), Some(name.as_str()));
        }

        #[test]
        fn any_header_is_read_without_harm(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = part_name(&header);
        }
    }
}
