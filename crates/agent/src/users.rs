//! The guest's users, read from its `/etc/passwd` and `/etc/group`.
//!
//! Read afresh each time, since programs in the sandbox add users, and without the C library's name service, which
//! a static program cannot load.

use std::{fs, io, path::PathBuf};

/// Where the users are listed.
const PASSWD: &str = "/etc/passwd";
/// Where the groups are listed.
const GROUP: &str = "/etc/group";

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All group ids, the primary one first, without repetition.
    pub groups: Vec<u32>,
    /// Home directory; `/` where the entry has none.
    pub home: PathBuf,
}

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The guest has no such user.
    #[error("invalid username: '{0}'")]
    Unknown(String),
    /// The guest's list of users cannot be read.
    #[error("cannot look up user '{name}': reading {file}: {source}")]
    Unreadable {
        /// The user that was looked for.
        name: String,
        /// The file that could not be read.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The names of users and groups by number, for listings of files. A number without a name is its own name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    users: Vec<(u32, String)>,
    groups: Vec<(u32, String)>,
}

/// The user of that name, or of that number.
pub fn lookup(name: &str) -> Result<User, UserError> {
    let unreadable = |file| move |source| UserError::Unreadable { name: name.to_owned(), file, source };
    let passwd = read(PASSWD).map_err(unreadable(PASSWD))?;
    let group = read(GROUP).map_err(unreadable(GROUP))?;
    find(name, &passwd, &group).ok_or_else(|| UserError::Unknown(name.to_owned()))
}

/// The names as they are now.
pub fn names() -> Names {
    Names::parse(&read(PASSWD).unwrap_or_default(), &read(GROUP).unwrap_or_default())
}

/// A file as text; a missing one is empty, bytes that are not UTF-8 are replaced.
fn read(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn find(name: &str, passwd: &str, group: &str) -> Option<User> {
    let entries = || passwd.lines().filter_map(PasswdEntry::parse);
    let entry = entries().find(|entry| entry.name == name).or_else(|| {
        let uid = name.parse::<u32>().ok()?;
        entries().find(|entry| entry.uid == uid)
    })?;
    let mut groups = vec![entry.gid];
    for group in group.lines().filter_map(GroupEntry::parse) {
        if group.members.split(',').any(|member| member.trim() == entry.name) && !groups.contains(&group.gid)
        {
            groups.push(group.gid);
        }
    }
    let home = if entry.home.is_empty() { "/" } else { entry.home };
    Some(User { name: entry.name.to_owned(), uid: entry.uid, gid: entry.gid, groups, home: home.into() })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

// === impl PasswdEntry ===

impl<'a> PasswdEntry<'a> {
    /// `name:password:uid:gid:comment:home:shell`; `None` for comments and broken lines.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['#', '+', '-']))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Self { name, uid, gid, home })
    }
}

// === impl GroupEntry ===

impl<'a> GroupEntry<'a> {
    /// `name:password:gid:members`; `None` for comments and broken lines.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['#', '+', '-']))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or("") })
    }
}

// === impl Names ===

impl Names {
    /// The name of a user id.
    pub fn user(&self, uid: u32) -> String {
        find_name(&self.users, uid)
    }

    /// The name of a group id.
    pub fn group(&self, gid: u32) -> String {
        find_name(&self.groups, gid)
    }

    fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd
                .lines()
                .filter_map(PasswdEntry::parse)
                .map(|e| (e.uid, e.name.to_owned()))
                .collect(),
            groups: group.lines().filter_map(GroupEntry::parse).map(|e| (e.gid, e.name.to_owned())).collect(),
        }
    }
}

fn find_name(entries: &[(u32, String)], id: u32) -> String {
    entries.iter().find(|(entry, _)| *entry == id).map_or_else(|| id.to_string(), |(_, name)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nuser:x:1000:1001:,,,:/home/user:/bin/bash\n\
                          nohome:x:5:5:::\nbroken:x:five:5::/:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,user\nuser:x:1001:user\ndocker:x:99: user\nbad\n";

    #[test]
    fn a_user_has_the_groups_that_list_it_and_its_primary_one_first() {
        let user = find("user", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!(user.groups, [1001, 27, 99]);
        assert_eq!(user.home, PathBuf::from("/home/user"));
    }

    #[test]
    fn a_user_without_home_lives_in_the_root_directory() {
        assert_eq!(find("nohome", PASSWD, GROUP).unwrap().home, PathBuf::from("/"));
    }

    #[test]
    fn a_user_can_be_named_by_number() {
        assert_eq!(find("1000", PASSWD, GROUP).unwrap().name, "user");
    }

    #[test]
    fn broken_entries_and_unknown_names_are_no_users() {
        assert_eq!(find("broken", PASSWD, GROUP), None);
        assert_eq!(find("nobody-here", PASSWD, GROUP), None);
        assert_eq!(find("", PASSWD, GROUP), None);
        assert_eq!(find("# comment", PASSWD, GROUP), None);
    }

    #[test]
    fn a_number_without_a_name_is_its_own_name() {
        let names = Names::parse(PASSWD, GROUP);
        assert_eq!((names.user(1000).as_str(), names.group(27).as_str()), ("user", "sudo"));
        assert_eq!((names.user(4242).as_str(), names.group(4242).as_str()), ("4242", "4242"));
    }

    #[test]
    fn an_unknown_user_is_refused_in_the_words_the_sdks_know() {
        assert_eq!(lookup("no such user").unwrap_err().to_string(), "invalid username: 'no such user'");
    }

    proptest! {
        #[test]
        fn any_file_can_be_parsed(passwd in ".*", group in ".*", name in ".*") {
            find(&name, &passwd, &group);
            Names::parse(&passwd, &group);
        }
    }
}
