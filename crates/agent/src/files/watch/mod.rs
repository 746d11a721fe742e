//! Watching directories for clients.
//!
//! A client either holds a stream open ([`stream`]) or names a watcher and fetches from it now and then
//! ([`polled`]). Both report what [`tree`] sees. Events that cannot be reported are not passed over in silence: the
//! stream ends with an error, fetching answers one.

use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};
use torpor_envd_api::buffa::MessageField;
use torpor_envd_api::filesystem::{EventType, FilesystemEvent};

use self::tree::{Change, Tree};
use super::entry::{Detail, describe};
use super::error::{FileError, off_thread};
use super::mount::is_network_file_system;
use crate::users::names;

pub(crate) mod polled;
pub(crate) mod stream;
mod tree;

/// What to watch, and how to tell.
#[derive(Clone, Debug)]
pub(crate) struct WatchOptions {
    /// The directory.
    pub(crate) path: PathBuf,
    /// Whether to watch the directories below it too.
    pub(crate) recursive: bool,
    /// Whether events carry a description of what they are about, where it still exists.
    pub(crate) include_entry: bool,
    /// Whether the directory may live on another machine, whose changes inotify may not see.
    pub(crate) allow_network_mounts: bool,
    /// What the client understands.
    pub(crate) detail: Detail,
}

/// A directory under observation.
#[derive(Debug)]
pub(crate) struct Watch {
    tree: Tree,
    options: WatchOptions,
}

// === impl Watch ===

impl Watch {
    /// Starts watching. What happens after this has returned is seen.
    pub(crate) async fn start(options: WatchOptions) -> Result<Self, FileError> {
        let path = options.path.clone();
        let allowed = options.allow_network_mounts;
        off_thread(move || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = open(&path, flags, Mode::empty())
                .map_err(|errno| FileError::from_io("watching", &path, errno))?;
            if !allowed && is_network_file_system(&directory) {
                return Err(FileError::NetworkMount(path));
            }
            Ok(())
        })
        .await?;
        let tree = Tree::watch(options.path.clone(), options.recursive).await?;
        Ok(Self { tree, options })
    }

    /// The next event. Giving up waiting for it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<FilesystemEvent, FileError> {
        let change = self.tree.peek().await?.clone();
        let event = self.event(change).await;
        self.tree.pop();
        Ok(event)
    }

    /// The next event of those that have happened by now.
    pub(crate) async fn next_now(&mut self) -> Result<Option<FilesystemEvent>, FileError> {
        let Some(change) = self.tree.peek_now().await?.cloned() else { return Ok(None) };
        let event = self.event(change).await;
        self.tree.pop();
        Ok(Some(event))
    }

    async fn event(&self, change: Change) -> FilesystemEvent {
        let name = change.name.to_string_lossy().into_owned();
        // What was removed or renamed is gone; what has taken its name since is something else.
        let describable = !matches!(change.kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
        let wanted = self.options.include_entry && self.options.detail == Detail::Full;
        let entry = if wanted && describable {
            let path = crate::paths::clean(&self.options.path.join(&change.name));
            off_thread(move || describe(&path, Detail::Full, &names())).await.ok()
        } else {
            None
        };
        FilesystemEvent {
            name,
            r#type: change.kind.into(),
            entry: entry.map_or_else(MessageField::none, MessageField::some),
            ..FilesystemEvent::default()
        }
    }
}
