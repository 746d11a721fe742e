//! A file's metadata: the small map of strings that a client may attach to a file.
//!
//! It lives in the file's extended attributes, one `user.e2b.<key>` each, and nowhere else. So it moves with the
//! file, and programs in the sandbox read and write it with `getfattr` and `setfattr`. An upload replaces the whole
//! map: what the upload does not name is gone afterwards. Attributes under other names are never touched.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use http::HeaderMap;
use rustix::io::Errno;
use xattr::FileExt;

use super::error::FileError;

/// What the names of the attributes start with.
const ATTRIBUTE_PREFIX: &[u8] = b"user.e2b.";
/// What the names of the request headers start with; header names are lower case by now.
const HEADER_PREFIX: &str = "x-metadata-";
/// The kernel's limit for an attribute's name, in bytes.
const NAME_MAX: usize = 255;

/// Keys and values, in the order of the keys.
pub(crate) type Metadata = BTreeMap<String, String>;

/// The metadata that an upload's headers carry. Of a repeated header the first value counts.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Metadata, FileError> {
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX).filter(|key| !key.is_empty()) else {
            continue;
        };
        if ATTRIBUTE_PREFIX.len() + key.len() > NAME_MAX {
            return Err(FileError::Invalid(format!(
                "metadata key '{key}' is longer than {} characters",
                NAME_MAX - ATTRIBUTE_PREFIX.len()
            )));
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        metadata.entry(key.to_owned()).or_insert(value);
    }
    Ok(metadata)
}

/// The metadata of the file at `path`, symbolic links followed. Where the file or its file system has none, empty.
pub(crate) fn read(path: &Path) -> Metadata {
    let Ok(names) = xattr::list_deref(path) else { return Metadata::new() };
    names
        .filter_map(|name| {
            let key = name.as_bytes().strip_prefix(ATTRIBUTE_PREFIX).filter(|key| !key.is_empty())?;
            let value = xattr::get_deref(path, &name).ok()??;
            Some((String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(&value).into_owned()))
        })
        .collect()
}

/// Makes `metadata` the whole metadata of the open `file`; `path` is for the error message.
pub(crate) fn replace(file: &File, path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    // A file system without extended attributes has nothing to clear.
    let old: Vec<OsString> = file
        .list_xattr()
        .map(|names| names.filter(|name| name.as_bytes().starts_with(ATTRIBUTE_PREFIX)).collect())
        .unwrap_or_default();
    let new: BTreeMap<OsString, &str> =
        metadata.iter().map(|(key, value)| (attribute(key), value.as_str())).collect();
    for name in old.into_iter().filter(|name| !new.contains_key(name)) {
        file.remove_xattr(&name)
            .map_err(|error| FileError::from_io("removing metadata from", path, error))?;
    }
    for (name, value) in new {
        file.set_xattr(&name, value.as_bytes()).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::OPNOTSUPP | Errno::PERM) => FileError::NoMetadata(path.to_owned()),
                // ext4 answers "no space" when an inode's attributes outgrow the block that holds them.
                Some(Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) => {
                    FileError::MetadataTooLarge(path.to_owned())
                }
                _ => FileError::from_io("writing metadata to", path, error),
            }
        })?;
    }
    Ok(())
}

fn attribute(key: &str) -> OsString {
    OsString::from_vec([ATTRIBUTE_PREFIX, key.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn keys_are_lower_case_and_the_first_value_counts() {
        let mut headers =
            headers(&[("X-Metadata-Author", "me"), ("content-type", "x"), ("X-METADATA-Purpose", "")]);
        headers.append("x-metadata-author", HeaderValue::from_static("you"));
        let expected = Metadata::from([("author".into(), "me".into()), ("purpose".into(), String::new())]);
        assert_eq!(from_headers(&headers).unwrap(), expected);
    }

    #[test]
    fn a_key_that_cannot_be_stored_is_refused() {
        let long = format!("x-metadata-{}", "k".repeat(NAME_MAX));
        assert!(matches!(from_headers(&headers(&[(&long, "v")])), Err(FileError::Invalid(_))));
    }

    proptest! {
        #[test]
        fn replacing_leaves_exactly_the_new_metadata(
            first in proptest::collection::btree_map("[a-z0-9!#$%&'*+.^_`|~-]{1,12}", "[ -~]{0,20}", 0..4),
            second in proptest::collection::btree_map("[a-z0-9!#$%&'*+.^_`|~-]{1,12}", "[ -~]{0,20}", 0..4),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            xattr::set(file.path(), "user.other", b"stays").unwrap();
            for metadata in [&first, &second] {
                replace(file.as_file(), file.path(), metadata).unwrap();
                prop_assert_eq!(&read(file.path()), metadata);
            }
            prop_assert_eq!(xattr::get(file.path(), "user.other").unwrap().unwrap(), b"stays");
        }
    }
}
