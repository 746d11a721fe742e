//! What clients learn about one directory entry.
//!
//! An entry describes the name itself (its size, owner, times and permission string are those of a symbolic link if
//! it is one), except that `type` and `mode` tell what a link leads to, which is what callers act on. A link that
//! leads nowhere keeps the type `symlink`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use connectrpc::RequestContext;
use torpor_envd_api::buffa::MessageField;
use torpor_envd_api::buffa_types::google::protobuf::Timestamp;
use torpor_envd_api::filesystem::{EntryInfo, FileType};

use super::error::FileError;
use super::metadata;
use super::mode::{permission_bits, permission_string};
use crate::paths::clean;
use crate::server::is_legacy;
use crate::users::Names;

/// How much of an entry a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Everything.
    Full,
    /// Name, type and path alone: the first Python SDKs reject fields they do not know.
    Legacy,
}

/// Describes what is at `path`, without following a final symbolic link.
pub(crate) fn describe(path: &Path, detail: Detail, names: &Names) -> Result<EntryInfo, FileError> {
    let found = fs::symlink_metadata(path).map_err(|error| FileError::from_io("reading", path, error))?;
    let name = path.file_name().unwrap_or(OsStr::new("/")).to_string_lossy().into_owned();
    let is_symlink = found.is_symlink();
    let target = is_symlink.then(|| fs::metadata(path));
    let r#type = match &target {
        None => file_type(&found),
        Some(Ok(target)) => file_type(target),
        Some(Err(_)) => FileType::FILE_TYPE_SYMLINK,
    };
    let path_text = path.to_string_lossy().into_owned();
    if detail == Detail::Legacy {
        return Ok(EntryInfo { name, path: path_text, r#type: r#type.into(), ..EntryInfo::default() });
    }
    let mode = match &target {
        Some(Ok(target)) => target.mode(),
        _ => found.mode(),
    };
    Ok(EntryInfo {
        name,
        r#type: r#type.into(),
        path: path_text,
        size: i64::try_from(found.size()).unwrap_or(i64::MAX),
        mode: permission_bits(mode),
        permissions: permission_string(found.mode()),
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        modified_time: MessageField::some(Timestamp {
            seconds: found.mtime(),
            nanos: i32::try_from(found.mtime_nsec()).unwrap_or_default(),
            ..Timestamp::default()
        }),
        symlink_target: is_symlink.then(|| symlink_target(path)).flatten(),
        metadata: metadata::read(path).into_iter().collect(),
        is_symlink,
        ..EntryInfo::default()
    })
}

/// Where a link leads in the end, as an absolute path; for a link that leads nowhere, where it points.
fn symlink_target(path: &Path) -> Option<String> {
    let target = fs::canonicalize(path).or_else(|_| -> io::Result<_> {
        let pointed_at = fs::read_link(path)?;
        Ok(clean(&path.parent().unwrap_or(Path::new("/")).join(pointed_at)))
    });
    target.ok().map(|target| target.to_string_lossy().into_owned())
}

fn file_type(found: &fs::Metadata) -> FileType {
    if found.is_file() {
        FileType::FILE_TYPE_FILE
    } else if found.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else if found.is_symlink() {
        FileType::FILE_TYPE_SYMLINK
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

// === impl Detail ===

impl Detail {
    /// What the caller of this request understands.
    pub(crate) fn of(context: &RequestContext) -> Self {
        if is_legacy(context.headers()) { Self::Legacy } else { Self::Full }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::users::names;

    fn full(path: &Path) -> EntryInfo {
        describe(path, Detail::Full, &names()).unwrap()
    }

    #[test]
    fn a_file_is_described_fully() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file.txt");
        fs::write(&path, "hello").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        xattr::set(&path, "user.e2b.author", b"me").unwrap();
        let entry = full(&path);
        assert_eq!(entry.name, "file.txt");
        assert_eq!(entry.path, path.to_str().unwrap());
        assert_eq!(entry.r#type, FileType::FILE_TYPE_FILE);
        assert_eq!((entry.size, entry.mode, entry.permissions.as_str()), (5, 0o640, "-rw-r-----"));
        assert_eq!(entry.metadata.get("author").map(String::as_str), Some("me"));
        assert!(entry.modified_time.as_option().unwrap().seconds > 0);
        assert!(!entry.is_symlink && entry.symlink_target.is_none());
    }

    #[test]
    fn a_link_has_its_targets_type_and_mode() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        symlink("dir", root.join("link")).unwrap();
        let entry = full(&root.join("link"));
        assert_eq!(entry.r#type, FileType::FILE_TYPE_DIRECTORY);
        assert_eq!((entry.mode, entry.permissions.as_str()), (0o755, "Lrwxrwxrwx"));
        assert_eq!(entry.symlink_target.as_deref(), root.join("dir").to_str());
        assert!(entry.is_symlink);
    }

    #[test]
    fn a_link_to_nowhere_says_where_it_points() {
        let root = tempfile::tempdir().unwrap();
        symlink("../gone", root.path().join("link")).unwrap();
        let entry = full(&root.path().join("link"));
        assert_eq!(entry.r#type, FileType::FILE_TYPE_SYMLINK);
        assert_eq!(entry.symlink_target.as_deref(), root.path().parent().unwrap().join("gone").to_str());
    }

    #[test]
    fn an_old_client_gets_three_fields() {
        let root = tempfile::tempdir().unwrap();
        let entry = describe(root.path(), Detail::Legacy, &names()).unwrap();
        let json = serde_json::to_value(&entry).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["name", "path", "type"]);
    }
}
