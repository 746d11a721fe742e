//! How paths in requests become absolute ones.
//!
//! A client may say nothing (the default directory is meant), `~` or `~/x` (the user's home), a relative path (seen
//! from the home) or an absolute one. `.` and `..` are resolved as text, as the protocol's first implementation
//! does; symbolic links are left to the kernel.

use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// Why a path cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `~name`, the home of somebody else.
    #[error("cannot expand '{0}': only '~' and '~/…' are supported; give an absolute path")]
    OtherHome(String),
    /// A NUL byte, which no path has.
    #[error("the path contains a NUL byte")]
    Nul,
}

/// The absolute path that a user means by `path`. `default` is where an empty path leads; `None` is the home.
pub fn resolve(path: &str, user: &User, default: Option<&str>) -> Result<PathBuf, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    let path = if path.is_empty() { default.unwrap_or("~") } else { path };
    let path = match path.strip_prefix('~') {
        Some("") => user.home.clone(),
        Some(rest) if rest.starts_with('/') => user.home.join(rest.trim_start_matches('/')),
        Some(_) => return Err(PathError::OtherHome(path.to_owned())),
        None => user.home.join(path),
    };
    Ok(clean(&Path::new("/").join(path)))
}

/// The path without `.`, `..` and repeated slashes.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user() -> User {
        User { name: "user".into(), uid: 1, gid: 1, groups: vec![1], home: "/home/user".into() }
    }

    fn resolved(path: &str, default: Option<&str>) -> String {
        resolve(path, &user(), default).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn relative_paths_start_in_the_users_home() {
        assert_eq!(resolved("a/b", None), "/home/user/a/b");
        assert_eq!(resolved("a/b", Some("/work")), "/home/user/a/b");
        assert_eq!(resolved("./a/../b//c/", None), "/home/user/b/c");
    }

    #[test]
    fn a_tilde_is_the_users_home_and_nobody_elses() {
        assert_eq!(resolved("~", None), "/home/user");
        assert_eq!(resolved("~/x", None), "/home/user/x");
        assert_eq!(resolved("~//x", None), "/home/user/x");
        assert!(matches!(resolve("~root/x", &user(), None), Err(PathError::OtherHome(_))));
    }

    #[test]
    fn an_empty_path_is_the_default_directory_or_home() {
        assert_eq!(resolved("", Some("/work")), "/work");
        assert_eq!(resolved("", None), "/home/user");
    }

    #[test]
    fn nothing_is_above_the_root() {
        assert_eq!(resolved("/../../etc", None), "/etc");
        assert_eq!(resolved("../../../..", None), "/");
    }

    proptest! {
        #[test]
        fn a_resolved_path_is_absolute_and_stays_as_it_is(path in "[^~\0][^\0]*") {
            let once = resolved(&path, None);
            prop_assert!(once.starts_with('/'));
            prop_assert_eq!(resolved(&once, None), once);
        }
    }
}
