//! What has to be in a sandbox: the checker's state, computed here by the same rules (`checker.py`).
//!
//! Memory is not copied: of each page the model knows which step wrote it last, and what that step wrote follows from
//! its number. A [`Guest`] is cheap to clone, which is how the model pauses, forks and takes snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::draw::{Draw, fill};

/// Bytes in a page of the checker's memory.
const PAGE_BYTES: usize = 4096;
/// Pages of which one checksum is made.
const PAGES_PER_CHUNK: usize = 256;

/// A step: its number, and the salt of the sandbox that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Step {
    pub(super) number: u32,
    pub(super) salt: u32,
}

/// The state of one checker.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// The last step that is known to be done.
    pub(super) last: u32,
    /// A step that was asked for and not answered: it is done, or will be, or has to be asked for again.
    pub(super) pending: Option<Step>,
    /// Its memory is not kept, only its files: the checker has to be started.
    pub(super) is_cold: bool,
    /// Which step wrote each page.
    pages: Arc<Vec<Step>>,
    chain: [u8; 32],
    files: BTreeMap<String, Arc<Vec<u8>>>,
    facts: Arc<BTreeMap<u32, (u32, String)>>,
    /// The shell in the open terminal.
    pub(super) terminal: Terminal,
}

/// A shell in a terminal, and the variable it keeps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terminal {
    pub(super) pid: u32,
    pub(super) value: i64,
}

/// What a checker says of itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Digests {
    pub(super) step: u32,
    pub(super) chain: String,
    pub(super) sample: String,
    pub(super) files: String,
    pub(super) database: String,
    /// Of every byte of memory; only if all was asked for, as the two below.
    pub(super) memory: Option<String>,
    /// Of the files as they are read from the disk, past the page cache.
    pub(super) files_from_disk: Option<String>,
    /// What SQLite says of its database.
    pub(super) integrity: Option<String>,
    /// Fresh random bytes.
    #[serde(default)]
    pub(super) random: String,
    /// The guest's clock, in seconds since 1970.
    #[serde(default)]
    pub(super) time: f64,
}

/// What is asked of a checker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    /// Chooses the pages of the sample.
    pub(super) nonce: u32,
    /// How many pages are in the sample.
    pub(super) pages: u32,
    /// Whether every byte is read.
    pub(super) full: bool,
}

// === impl Step ===

impl Step {
    fn page(self, page: usize) -> String {
        format!("{}/{}/{page}", self.salt, self.number)
    }
}

// === impl Guest ===

impl Guest {
    /// A checker that was just started with `pages` pages.
    pub(super) fn new(salt: u32, pages: u32) -> Guest {
        let mut guest = Guest {
            last: 0,
            pending: None,
            is_cold: false,
            pages: Arc::default(),
            chain: [0; 32],
            files: BTreeMap::new(),
            facts: Arc::default(),
            terminal: Terminal::default(),
        };
        guest.forget_memory(salt, pages);
        guest
    }

    /// The checker was started anew, on the same files.
    pub(super) fn forget_memory(&mut self, salt: u32, pages: u32) {
        self.pages = Arc::new(vec![Step { number: 0, salt }; pages as usize]);
        self.chain = Sha256::digest(salt.to_string()).into();
        self.terminal = Terminal::default();
        self.is_cold = false;
    }

    /// How many pages of memory it has.
    pub(super) fn pages(&self) -> u32 {
        // It was made with a number of 32 bits.
        self.pages.len() as u32
    }

    /// The step that comes next, by the sandbox with `salt`.
    pub(super) fn next(&self, salt: u32) -> Step {
        Step { number: self.last + 1, salt }
    }

    /// Does a step.
    pub(super) fn apply(&mut self, step: Step) {
        let mut draw = Draw::new(format!("{}/{}", step.salt, step.number));
        self.apply_to_memory(step, &mut draw);
        self.apply_to_files(step, &mut draw);
        self.apply_to_facts(step, &mut draw);
        self.last = step.number;
        self.pending = None;
    }

    fn apply_to_memory(&mut self, step: Step, draw: &mut Draw) {
        let pages = Arc::make_mut(&mut self.pages);
        let count = pages.len() as u32;
        let mut chain = Sha256::new_with_prefix(self.chain);
        for _ in 0..100 + draw.below(900) {
            let page = draw.below(count) as usize;
            if let Some(written_by) = pages.get_mut(page) {
                chain.update(fill(&written_by.page(page), PAGE_BYTES));
                *written_by = step;
            }
        }
        self.chain = chain.finalize().into();
    }

    fn apply_to_files(&mut self, step: Step, draw: &mut Draw) {
        for number in 0..6 {
            let kind = if self.files.is_empty() { 0 } else { draw.below(8) };
            // Whether the checker flushes makes no difference here: that is the point.
            let _flush = draw.below(3);
            let key = format!("{}/{}/file/{number}", step.salt, step.number);
            if kind <= 1 {
                let name = format!("f{}", draw.below(32));
                let content = fill(&key, draw.below(40_000) as usize);
                self.files.insert(name, Arc::new(content));
                continue;
            }
            let chosen = draw.below(self.files.len() as u32) as usize;
            let Some((name, content)) = self.files.iter().nth(chosen) else { continue };
            let (name, mut content) = (name.clone(), content.as_ref().clone());
            let size = content.len() as u32;
            match kind {
                2 | 3 => {
                    let more = fill(&key, draw.below(8000) as usize);
                    if size >= 100_000 {
                        content.clear();
                    }
                    content.extend(more);
                }
                4 => {
                    let target = format!("f{}", draw.below(32));
                    let content = self.files.remove(&name).unwrap_or_default();
                    self.files.insert(target, content);
                    continue;
                }
                5 => content.truncate(draw.below(size + 1) as usize),
                6 => {
                    self.files.remove(&name);
                    continue;
                }
                _ => {
                    let at = draw.below(size + 1) as usize;
                    let bytes = fill(&key, draw.below(4000) as usize);
                    let end = (at + bytes.len()).max(content.len());
                    content.resize(end, 0);
                    content[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            self.files.insert(name, Arc::new(content));
        }
    }

    fn apply_to_facts(&mut self, step: Step, draw: &mut Draw) {
        let facts = Arc::make_mut(&mut self.facts);
        for number in 0..4 {
            let value = Sha256::digest(format!("{}/{}/fact/{number}", step.salt, step.number));
            facts.insert(draw.below(200), (step.number, hex::encode(value)));
        }
        facts.remove(&draw.below(200));
    }

    /// What its checker has to answer; `pending` must have been settled.
    pub(super) fn digests(&self, question: Question) -> Digests {
        let files = self.files_digest();
        Digests {
            step: self.last,
            chain: self.chain(),
            sample: self.sample(question.nonce, question.pages),
            database: self.facts_digest(),
            memory: question.full.then(|| self.memory_digest()),
            files_from_disk: question.full.then(|| files.clone()),
            integrity: question.full.then(|| "ok".to_owned()),
            files,
            random: String::new(),
            time: 0.0,
        }
    }

    /// The hash chain over everything its steps read.
    pub(super) fn chain(&self) -> String {
        hex::encode(self.chain)
    }

    fn sample(&self, nonce: u32, count: u32) -> String {
        let (mut draw, mut digest) = (Draw::new(format!("sample/{nonce}")), Sha256::new());
        for _ in 0..count {
            let page = draw.below(self.pages()) as usize;
            if let Some(written_by) = self.pages.get(page) {
                digest.update(fill(&written_by.page(page), PAGE_BYTES));
            }
        }
        hex::encode(digest.finalize())
    }

    fn memory_digest(&self) -> String {
        let mut digest = Sha256::new();
        for (chunk, pages) in self.pages.chunks(PAGES_PER_CHUNK).enumerate() {
            let mut sum = crc32fast::Hasher::new();
            for (at, written_by) in pages.iter().enumerate() {
                sum.update(&fill(&written_by.page(chunk * PAGES_PER_CHUNK + at), PAGE_BYTES));
            }
            digest.update(sum.finalize().to_le_bytes());
        }
        hex::encode(digest.finalize())
    }

    fn files_digest(&self) -> String {
        let mut digest = Sha256::new();
        for (name, content) in &self.files {
            digest.update(format!("{name} {}\n", content.len()));
            digest.update(content.as_slice());
        }
        hex::encode(digest.finalize())
    }

    fn facts_digest(&self) -> String {
        let mut digest = Sha256::new();
        for (id, (step, value)) in self.facts.iter() {
            digest.update(format!("{id} {step} {value}\n"));
        }
        hex::encode(digest.finalize())
    }
}

// === impl Terminal ===

impl Terminal {
    /// The value after a line was typed with `number` in it.
    pub(super) fn after(self, number: u32) -> i64 {
        self.value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i64::from(number))
    }
}

// === impl Digests ===

impl Digests {
    /// What differs between what has to be (`self`) and what was found; empty if nothing does.
    pub(super) fn differences(&self, found: &Digests) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let pairs = [
            ("step", self.step.to_string(), found.step.to_string()),
            ("memory (chain)", self.chain.clone(), found.chain.clone()),
            ("memory (sample)", self.sample.clone(), found.sample.clone()),
            ("files", self.files.clone(), found.files.clone()),
            ("database", self.database.clone(), found.database.clone()),
            ("memory (every byte)", text(&self.memory), text(&found.memory)),
            ("files (from disk)", text(&self.files_from_disk), text(&found.files_from_disk)),
            ("database (integrity_check)", text(&self.integrity), text(&found.integrity)),
        ];
        let differing = pairs.into_iter().filter(|(_, expected, found)| expected != found);
        differing
            .map(|(what, expected, found)| format!("{what}: expected {expected}, found {found}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    /// The checker itself, as it runs in guests, as far as this host's Python is enough for it.
    #[test]
    fn the_model_and_the_checker_follow_the_same_rules() {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut checker = Command::new("python3")
            .args(["-u", "-c", include_str!("checker.py")])
            .args([port.to_string(), "7".into(), "600".into(), "0".into(), dir.path().display().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let ask = |target: String| -> serde_json::Value {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let mut connection = loop {
                match std::net::TcpStream::connect(("127.0.0.1", port)) {
                    Ok(connection) => break connection,
                    Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
                }
            };
            write!(connection, "GET {target} HTTP/1.1\r\n\r\n").unwrap();
            let mut reader = BufReader::new(connection);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                assert_ne!(reader.read_line(&mut line).unwrap(), 0);
            }
            let mut body = String::new();
            reader.read_to_string(&mut body).unwrap();
            serde_json::from_str(&body).unwrap()
        };
        let mut guest = Guest::new(7, 600);
        for number in 1..=40 {
            // As after a fork: another sandbox's steps on the same state.
            let step = guest.next(if number < 20 { 7 } else { 8 });
            let answer = ask(format!("/do?step={}&salt={}", step.number, step.salt));
            guest.apply(step);
            assert_eq!(answer["chain"], guest.chain());
        }
        let again = ask("/do?step=40&salt=8".to_owned());
        assert_eq!(again["chain"], guest.chain(), "a step that is done is not done again");
        let found = ask("/digest?nonce=3&pages=50&full=1".to_owned());
        let found: Digests = serde_json::from_value(found).unwrap();
        let expected = guest.digests(Question { nonce: 3, pages: 50, full: true });
        assert_eq!(expected.differences(&found), Vec::<String>::new());
        guest.apply(guest.next(8));
        assert_ne!(
            guest.digests(Question { nonce: 3, pages: 50, full: true }).differences(&found),
            Vec::<String>::new()
        );
        checker.kill().unwrap();
        checker.wait().unwrap();
    }
}
