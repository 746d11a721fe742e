use proptest::prelude::*;

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn entry(seq: u64, at_us: i64) -> LogEntry {
    LogEntry {
        seq,
        at_us,
        level: LogLevel::Info,
        logger: "process".into(),
        message: format!("line {seq}"),
        fields: BTreeMap::new(),
    }
}

fn entries(numbers: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    numbers.map(|seq| entry(seq, seq as i64)).collect()
}

fn messages(directory: &Path, id: &SandboxId) -> Vec<String> {
    read(directory, id).unwrap().into_iter().map(|record| record.message).collect()
}

fn cursor(boot_id: &str, seq: u64) -> Option<Cursor> {
    Some(Cursor { boot_id: boot_id.to_owned(), seq })
}

#[test]
fn a_log_goes_on_after_a_restart_without_a_gap_or_a_repetition() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    assert_eq!(log.cursor(), None);
    log.append("a", &entries(1..=3), now()).unwrap();
    drop(log);
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    assert_eq!(log.cursor(), cursor("a", 3));
    log.append("a", &entries(2..=4), now()).unwrap();
    assert_eq!(messages(dir.path(), &id), ["line 1", "line 2", "line 3", "line 4"]);
    log.append("b", &entries(1..=1), now()).unwrap();
    assert_eq!(log.cursor(), cursor("b", 1), "after a boot numbers begin anew");
}

#[test]
fn a_sandbox_that_is_set_back_goes_on_from_its_last_pause() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    log.append("a", &entries(1..=3), now()).unwrap();
    log.mark_pause(log.cursor()).unwrap();
    log.append("a", &entries(4..=9), now()).unwrap();
    drop(log);
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    assert_eq!(log.cursor(), cursor("a", 9));
    log.set_back();
    assert_eq!(log.cursor(), cursor("a", 3));
    log.append("a", &entries(4..=4), now()).unwrap();
    assert_eq!(messages(dir.path(), &id).last().unwrap(), "line 4");
}

#[test]
fn a_line_that_was_not_finished_is_left_out_and_spoils_no_other() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    log.append("a", &entries(1..=2), now()).unwrap();
    let file = path(dir.path(), &id, EXTENSION);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 5]).unwrap();
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    assert_eq!(log.cursor(), cursor("a", 1));
    log.append("a", &entries(2..=3), now()).unwrap();
    assert_eq!(messages(dir.path(), &id), ["line 1", "line 2", "line 3"]);
}

#[test]
fn a_log_is_bounded_keeps_the_newest_and_remembers_the_pause() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    log.append("a", &entries(1..=1), now()).unwrap();
    log.mark_pause(log.cursor()).unwrap();
    for seq in 2..=4000 {
        let mut long = entry(seq, seq as i64);
        long.message = "x".repeat(1000);
        log.append("a", &[long], now()).unwrap();
    }
    let bytes: u64 =
        fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 3 * MAX_FILE_BYTES, "{bytes}");
    let kept = read(dir.path(), &id).unwrap();
    assert_eq!(kept.last().unwrap().seq, 4000);
    assert!(kept.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    log.set_back();
    assert_eq!(log.cursor(), cursor("a", 1));
}

#[test]
fn times_of_a_guest_with_a_wrong_clock_are_brought_in_order() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    let end = now().as_microsecond();
    log.append("a", &[entry(1, 500), entry(2, 100), entry(3, end + 1), entry(4, 600)], now()).unwrap();
    let times: Vec<i64> = read(dir.path(), &id).unwrap().iter().map(|record| record.at_us).collect();
    assert_eq!(times, [500, 500, end, end]);
}

#[test]
fn logs_of_sandboxes_that_are_gone_are_removed_and_others_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, gone) = (SandboxId::random(), SandboxId::random());
    for id in [&kept, &gone] {
        LogFile::open(dir.path(), id).unwrap();
        fs::write(path(dir.path(), id, OLD_EXTENSION), "").unwrap();
    }
    remove_all_but(dir.path(), &HashSet::from([kept.clone()])).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert!(path(dir.path(), &kept, EXTENSION).exists());
    remove(dir.path(), &gone).unwrap();
}

fn record(seq: u64, at_us: i64, level: LogLevel) -> LogRecord {
    LogRecord {
        boot_id: String::new(),
        seq,
        at_us,
        level,
        logger: String::new(),
        message: format!("line {seq}"),
        fields: BTreeMap::new(),
    }
}

proptest! {
    #[test]
    fn a_page_has_what_matches_from_its_cursor_on_in_its_direction(
        steps in proptest::collection::vec((0i64..3, 0usize..4), 0..40),
        cursor_us in proptest::option::of(0i64..60), limit in 1usize..50, backward: bool, level in 0usize..4,
    ) {
        const LEVELS: [LogLevel; 4] = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];
        let mut at_us = 0;
        let records: Vec<LogRecord> = steps.iter().enumerate().map(|(seq, (step, level))| {
            at_us += step;
            record(seq as u64, at_us, LEVELS[*level])
        }).collect();
        let direction = if backward { Direction::Backward } else { Direction::Forward };
        let min_level = LEVELS[level];
        let query = LogQuery { cursor_us, limit, direction, min_level, search: "line".into() };
        let page = query.select(records.clone());
        prop_assert!(page.len() <= limit && page.iter().all(|record| record.level >= min_level));
        let in_order = page.windows(2).all(|pair| match direction {
            Direction::Forward => pair[0].seq < pair[1].seq,
            Direction::Backward => pair[0].seq > pair[1].seq,
        });
        prop_assert!(in_order);
        // Page after page, with repetitions at the cursor left out, every entry is shown.
        let whole = LogQuery { cursor_us: None, limit: 1000, ..query.clone() }.select(records);
        if cursor_us.is_none() {
            prop_assert_eq!(&page[..], &whole[..limit.min(whole.len())]);
        }
    }

    #[test]
    fn a_search_finds_the_messages_that_have_the_text(search in "[0-9]{0,2}") {
        let records: Vec<LogRecord> = (0..30).map(|seq| record(seq, seq as i64, LogLevel::Info)).collect();
        let query = LogQuery { search: search.clone(), ..LogQuery::default() };
        let expected = records.iter().filter(|record| record.message.contains(&search)).count();
        prop_assert_eq!(query.select(records).len(), expected);
    }
}

#[test]
fn what_the_server_itself_tells_is_in_order_and_the_agent_is_asked_as_before() {
    let (dir, id) = (tempfile::tempdir().unwrap(), SandboxId::random());
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    log.append("a", &entries(1..=2), now()).unwrap();
    let own = |log: &mut LogFile, now| log.append_own(LogLevel::Info, "paused".into(), BTreeMap::new(), now);
    own(&mut log, now()).unwrap();
    assert_eq!(log.cursor(), cursor("a", 2));
    drop(log);
    let mut log = LogFile::open(dir.path(), &id).unwrap();
    assert_eq!(log.cursor(), cursor("a", 2));
    // A clock that was set back does not bring the log out of order.
    own(&mut log, Timestamp::from_second(1).unwrap()).unwrap();
    log.append("a", &entries(3..=3), now()).unwrap();
    assert_eq!(messages(dir.path(), &id), ["line 1", "line 2", "paused", "paused", "line 3"]);
}
