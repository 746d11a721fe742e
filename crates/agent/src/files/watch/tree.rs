//! A directory, or a directory tree, under observation: inotify's many small truths made into one.
//!
//! inotify watches single directories. To watch a tree, a watch is placed on each directory in it, and on each new
//! one as it appears. Between a directory's appearance and its watch, files may have been made in it; so after the
//! watch is placed the directory is read, and what is there is *announced* as created (and as written, if it is a
//! file with contents). What was made between the watch and the reading is seen twice; the second sight of an
//! announced name is dropped. Once inotify's queue has run dry nothing announced can come a second time, and the
//! announcements are forgotten.
//!
//! A directory that is moved within the tree is treated as leaving and arriving: its watches are removed and placed
//! anew, so that names are always those of now.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use inotify::{EventMask, EventOwned, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use torpor_envd_api::filesystem::EventType;

use crate::files::error::{FileError, off_thread};

/// Space for events that are read at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// To what, relative to the watched directory; `.` is that directory itself.
    pub(super) name: PathBuf,
    /// What.
    pub(super) kind: EventType,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Tree {
    inotify: AsyncFd<Inotify>,
    buffer: Vec<u8>,
    root: PathBuf,
    recursive: bool,
    /// The watched directories, relative to the root, which is the empty path.
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Read from the kernel, not yet looked at.
    raw: VecDeque<EventOwned>,
    /// To be handed out.
    changes: VecDeque<Change>,
    /// Names whose creation was handed out before inotify told of it.
    announced: HashSet<PathBuf>,
    /// A new directory that is being read. Kept here so that giving up waiting for it loses nothing.
    scanning: Option<JoinHandle<Result<Scan, FileError>>>,
}

/// What was found in a new directory.
#[derive(Debug, Default)]
struct Scan {
    directories: Vec<(WatchDescriptor, PathBuf)>,
    found: Vec<Found>,
}

#[derive(Debug)]
struct Found {
    name: PathBuf,
    /// A file that somebody has written to already.
    written: bool,
}

// === impl Tree ===

impl Tree {
    /// Starts watching the directory `root`, links followed. Everything from now on is seen.
    pub(super) async fn watch(root: PathBuf, recursive: bool) -> Result<Self, FileError> {
        let inotify = Inotify::init().map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE) => FileError::Exhausted(
                "too many directories are watched at once; remove watchers, or raise fs.inotify.max_user_instances"
                    .into(),
            ),
            _ => FileError::from_io("watching", &root, error),
        })?;
        let watches = inotify.watches();
        let path = root.clone();
        let scan = off_thread(move || scan_root(watches, &path, recursive)).await?;
        // Deprecated in favour of an unsafe function that has the caller promise that the object's descriptor stays
        // the same and open. An `Inotify`'s does.
        #[allow(deprecated)]
        let inotify = AsyncFd::new(inotify).map_err(|error| FileError::from_io("watching", &root, error))?;
        Ok(Self {
            inotify,
            buffer: vec![0; BUFFER_BYTES],
            root,
            recursive,
            directories: scan.directories.into_iter().collect(),
            raw: VecDeque::new(),
            changes: VecDeque::new(),
            announced: HashSet::new(),
            scanning: None,
        })
    }

    /// The next change, left in place until [`pop`](Self::pop): giving up waiting loses nothing.
    pub(super) async fn peek(&mut self) -> Result<&Change, FileError> {
        while !self.work().await? {
            self.wait().await?;
        }
        self.changes.front().ok_or_else(|| FileError::Internal("a change got lost".into()))
    }

    /// As [`peek`](Self::peek), but `None` instead of waiting. What had happened before the call is seen.
    pub(super) async fn peek_now(&mut self) -> Result<Option<&Change>, FileError> {
        self.work().await?;
        Ok(self.changes.front())
    }

    /// Takes the change that was peeked at.
    pub(super) fn pop(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Works until there is a change to hand out (true) or nothing more to read (false).
    async fn work(&mut self) -> Result<bool, FileError> {
        while self.changes.is_empty() {
            if let Some(scanning) = &mut self.scanning {
                let scan = scanning.await;
                self.scanning = None;
                let scan =
                    scan.map_err(|error| FileError::Internal(format!("reading a new directory: {error}")))??;
                self.adopt(scan);
            } else if let Some(event) = self.raw.pop_front() {
                self.handle(event)?;
            } else if !self.read()? {
                self.announced.clear();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the kernel has events.
    async fn wait(&mut self) -> Result<(), FileError> {
        let fail = |root: &Path, error| FileError::from_io("watching", root, error);
        let mut guard = self.inotify.readable_mut().await.map_err(|error| fail(&self.root, error))?;
        match guard.try_io(|inotify| read_events(inotify.get_mut(), &mut self.buffer, &mut self.raw)) {
            Ok(read) => read.map_err(|error| fail(&self.root, error)),
            // Woken for nothing.
            Err(_would_block) => Ok(()),
        }
    }

    /// Reads what the kernel has now. False if it has nothing.
    fn read(&mut self) -> Result<bool, FileError> {
        match read_events(self.inotify.get_mut(), &mut self.buffer, &mut self.raw) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(FileError::from_io("watching", &self.root, error)),
        }
    }

    fn handle(&mut self, event: EventOwned) -> Result<(), FileError> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Err(FileError::EventsLost(format!(
                "more happened in '{}' than the kernel could report (fs.inotify.max_queued_events); events were lost",
                self.root.display()
            )));
        }
        if event.mask.contains(EventMask::IGNORED) {
            self.directories.remove(&event.wd);
            return Ok(());
        }
        let Some(directory) = self.directories.get(&event.wd) else { return Ok(()) };
        match event.name {
            Some(name) => {
                let name = directory.join(name);
                self.handle_entry(name, event.mask);
            }
            // About a watched directory itself. Those below the root are entries of their parents, which tell.
            None if directory.as_os_str().is_empty() => {
                if let Some(kind) = self_event(event.mask) {
                    self.changes.push_back(Change { name: PathBuf::from("."), kind });
                }
            }
            None => {}
        }
        Ok(())
    }

    fn handle_entry(&mut self, name: PathBuf, mask: EventMask) {
        let Some(kind) = entry_event(mask) else { return };
        let is_directory = mask.contains(EventMask::ISDIR);
        if kind == EventType::EVENT_TYPE_CREATE {
            if self.announced.remove(&name) {
                return;
            }
            if self.recursive && is_directory {
                let (watches, root, name) =
                    (self.inotify.get_ref().watches(), self.root.clone(), name.clone());
                self.scanning = Some(tokio::task::spawn_blocking(move || scan_new(watches, &root, name)));
            }
        } else {
            if matches!(kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME) {
                self.announced.remove(&name);
            }
            if kind == EventType::EVENT_TYPE_RENAME && is_directory {
                self.forget(&name);
            }
        }
        self.changes.push_back(Change { name, kind });
    }

    fn adopt(&mut self, scan: Scan) {
        self.directories.extend(scan.directories);
        for Found { name, written } in scan.found {
            self.changes.push_back(Change { name: name.clone(), kind: EventType::EVENT_TYPE_CREATE });
            if written {
                self.changes.push_back(Change { name: name.clone(), kind: EventType::EVENT_TYPE_WRITE });
            }
            self.announced.insert(name);
        }
    }

    /// Removes the watches on a directory that has left, and on all below it.
    fn forget(&mut self, name: &Path) {
        let mut watches = self.inotify.get_ref().watches();
        self.directories.retain(|watch, directory| {
            let stays = !directory.starts_with(name);
            if !stays && let Err(error) = watches.remove(watch.clone()) {
                tracing::debug!(%error, "a watch was gone already");
            }
            stays
        });
    }
}

fn read_events(inotify: &mut Inotify, buffer: &mut [u8], into: &mut VecDeque<EventOwned>) -> io::Result<()> {
    into.extend(inotify.read_events(buffer)?.map(|event| event.to_owned()));
    Ok(())
}

/// What happened to an entry of a watched directory.
fn entry_event(mask: EventMask) -> Option<EventType> {
    [
        (EventMask::CREATE, EventType::EVENT_TYPE_CREATE),
        (EventMask::MOVED_TO, EventType::EVENT_TYPE_CREATE),
        (EventMask::MODIFY, EventType::EVENT_TYPE_WRITE),
        (EventMask::DELETE, EventType::EVENT_TYPE_REMOVE),
        (EventMask::MOVED_FROM, EventType::EVENT_TYPE_RENAME),
        (EventMask::ATTRIB, EventType::EVENT_TYPE_CHMOD),
    ]
    .into_iter()
    .find_map(|(bit, kind)| mask.contains(bit).then_some(kind))
}

/// What happened to the watched directory itself.
fn self_event(mask: EventMask) -> Option<EventType> {
    [
        (EventMask::DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
        (EventMask::UNMOUNT, EventType::EVENT_TYPE_REMOVE),
        (EventMask::MOVE_SELF, EventType::EVENT_TYPE_RENAME),
        (EventMask::ATTRIB, EventType::EVENT_TYPE_CHMOD),
    ]
    .into_iter()
    .find_map(|(bit, kind)| mask.contains(bit).then_some(kind))
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

/// Places the first watches. What is there already is not news.
fn scan_root(mut watches: Watches, root: &Path, recursive: bool) -> Result<Scan, FileError> {
    let watch = watches.add(root, mask()).map_err(|error| not_watched(root, error))?;
    let mut scan = Scan { directories: vec![(watch, PathBuf::new())], found: Vec::new() };
    if recursive {
        let below = read_entries(root, Path::new(""))?;
        scan_directories(
            &mut watches,
            root,
            below.into_iter().filter_map(|it| it.directory()).collect(),
            &mut scan,
        )?;
        scan.found.clear();
    }
    Ok(scan)
}

/// Places watches on a new directory and all below, and reads what is there.
fn scan_new(mut watches: Watches, root: &Path, name: PathBuf) -> Result<Scan, FileError> {
    let mut scan = Scan::default();
    scan_directories(&mut watches, root, vec![name], &mut scan)?;
    Ok(scan)
}

fn scan_directories(
    watches: &mut Watches,
    root: &Path,
    mut pending: Vec<PathBuf>,
    scan: &mut Scan,
) -> Result<(), FileError> {
    while let Some(directory) = pending.pop() {
        let path = root.join(&directory);
        match watches.add(&path, mask() | WatchMask::DONT_FOLLOW) {
            Ok(watch) => scan.directories.push((watch, directory.clone())),
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(not_watched(&path, error)),
        }
        for entry in read_entries(root, &directory)? {
            scan.found.push(Found { name: directory.join(&entry.name), written: entry.written });
            pending.extend(entry.directory());
        }
    }
    Ok(())
}

struct Entry {
    parent: PathBuf,
    name: OsString,
    is_directory: bool,
    written: bool,
}

impl Entry {
    /// The path relative to the root, if it is a directory.
    fn directory(self) -> Option<PathBuf> {
        self.is_directory.then(|| self.parent.join(self.name))
    }
}

fn read_entries(root: &Path, directory: &Path) -> Result<Vec<Entry>, FileError> {
    let path = root.join(directory);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(FileError::from_io("reading directory", &path, error)),
    };
    let mut found = Vec::new();
    // An entry that is gone again is none.
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let written = kind.is_file() && entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
        found.push(Entry {
            parent: directory.to_owned(),
            name: entry.file_name(),
            is_directory: kind.is_dir(),
            written,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn not_watched(path: &Path, error: io::Error) -> FileError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC) => FileError::Exhausted(format!(
            "'{}' cannot be watched: the kernel's limit of watched directories (fs.inotify.max_user_watches) is reached",
            path.display()
        )),
        _ => FileError::from_io("watching", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that has happened, as "KIND name".
    async fn seen(tree: &mut Tree) -> Vec<String> {
        let mut seen = Vec::new();
        while tree.peek_now().await.unwrap().is_some() {
            let change = tree.pop().unwrap();
            let kind = format!("{:?}", change.kind);
            seen.push(format!("{} {}", kind.trim_start_matches("EVENT_TYPE_"), change.name.display()));
        }
        seen
    }

    #[tokio::test]
    async fn each_kind_of_change_is_seen_in_order() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), false).await.unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::metadata(&file).unwrap().permissions()).unwrap();
        fs::rename(&file, root.path().join("other")).unwrap();
        fs::remove_file(root.path().join("other")).unwrap();
        assert_eq!(
            seen(&mut tree).await,
            ["CREATE file", "WRITE file", "CHMOD file", "RENAME file", "CREATE other", "REMOVE other"]
        );
        assert!(seen(&mut tree).await.is_empty());
    }

    #[tokio::test]
    async fn a_flat_watch_does_not_look_into_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), false).await.unwrap();
        fs::write(root.path().join("dir/file"), "x").unwrap();
        assert!(seen(&mut tree).await.is_empty());
    }

    #[tokio::test]
    async fn files_made_before_a_new_directory_is_watched_are_seen_once() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), true).await.unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "x").unwrap();
        fs::write(root.path().join("a/empty"), "").unwrap();
        assert_eq!(
            seen(&mut tree).await,
            ["CREATE a", "CREATE a/b", "CREATE a/empty", "CREATE a/b/file", "WRITE a/b/file"]
        );
        fs::write(root.path().join("a/b/later"), "x").unwrap();
        assert_eq!(seen(&mut tree).await, ["CREATE a/b/later", "WRITE a/b/later"]);
    }

    #[tokio::test]
    async fn a_directory_moved_within_the_tree_is_known_by_its_new_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("old/sub")).unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), true).await.unwrap();
        fs::rename(root.path().join("old"), root.path().join("new")).unwrap();
        assert_eq!(seen(&mut tree).await, ["RENAME old", "CREATE new", "CREATE new/sub"]);
        fs::write(root.path().join("new/sub/file"), "").unwrap();
        assert_eq!(seen(&mut tree).await, ["CREATE new/sub/file"]);
        fs::remove_dir_all(root.path().join("new")).unwrap();
        assert_eq!(seen(&mut tree).await, ["REMOVE new/sub/file", "REMOVE new/sub", "REMOVE new"]);
    }

    #[tokio::test]
    async fn a_directory_that_leaves_is_no_longer_watched() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), true).await.unwrap();
        fs::rename(root.path().join("dir"), elsewhere.path().join("dir")).unwrap();
        assert_eq!(seen(&mut tree).await, ["RENAME dir"]);
        fs::write(elsewhere.path().join("dir/file"), "x").unwrap();
        assert!(seen(&mut tree).await.is_empty());
    }

    #[tokio::test]
    async fn the_end_of_the_watched_directory_is_told() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dir");
        fs::create_dir(&path).unwrap();
        let mut tree = Tree::watch(path.clone(), true).await.unwrap();
        fs::remove_dir(&path).unwrap();
        assert_eq!(seen(&mut tree).await.last().map(String::as_str), Some("REMOVE ."));
    }

    #[tokio::test]
    async fn waiting_ends_when_something_happens() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::watch(root.path().to_owned(), false).await.unwrap();
        let path = root.path().join("file");
        let writer = tokio::task::spawn_blocking(move || fs::write(path, ""));
        assert_eq!(tree.peek().await.unwrap().name, Path::new("file"));
        writer.await.unwrap().unwrap();
    }
}
