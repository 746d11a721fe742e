//! `GET /files`, `POST /files` and `POST /files/compose`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use torpor_envd_api::signature::{Operation, sign};

use crate::support::{Agent, files, full, own_user, text};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// Bytes that do not repeat soon, the same for the same number.
fn block(number: u64) -> Bytes {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(1 << 16);
    while bytes.len() < 1 << 16 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.into()
}

#[tokio::test]
async fn two_hundred_megabytes_come_back_unchanged_through_little_memory() {
    const BLOCKS: u64 = 3200;
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("big");
    let mut sent = blake3::Hasher::new();
    for number in 0..BLOCKS {
        sent.update(&block(number));
    }

    for compressed in [false, true] {
        let _ = fs::remove_file(&path);
        let blocks = (0..BLOCKS).map(move |number| {
            let bytes = if compressed { Bytes::from(gzip_fast(&block(number))) } else { block(number) };
            Ok::<_, io::Error>(Frame::data(bytes))
        });
        let mut headers = vec![("content-type", "application/octet-stream")];
        if compressed {
            headers.push(("content-encoding", "gzip"));
        }
        let body = StreamBody::new(stream::iter(blocks)).boxed();
        let reply = agent.send(Method::POST, &files(&[("path", text(&path))]), &headers, body).await;
        assert_eq!(reply.json(), json!([{ "path": text(&path), "name": "big", "type": "file" }]));

        let response = agent.open(Method::GET, &files(&[("path", text(&path))]), &[], full("")).await;
        assert_eq!(response.headers()["content-length"], (BLOCKS << 16).to_string());
        let mut received = blake3::Hasher::new();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            received.update(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(received.finalize(), sent.finalize());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak_kib < 64 * 1024, "the agent used {peak_kib} KiB for a file of 200 MiB");
}

fn gzip_fast(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_form_with_several_files_writes_each_to_its_name() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("deep/er/a.txt"), root.path().join("b ü.txt"));
    let reply = agent
        .post_form(
            &[],
            &[],
            &[
                ("note", None, b"ignored"),
                ("file", Some(text(&a)), b"one"),
                ("file", Some(text(&b)), b"two\r\n--X"),
            ],
        )
        .await;
    assert_eq!(
        reply.json(),
        json!([
            { "path": text(&a), "name": "a.txt", "type": "file" },
            { "path": text(&b), "name": "b ü.txt", "type": "file" },
        ])
    );
    assert_eq!(fs::read(a).unwrap(), b"one");
    assert_eq!(fs::read(b).unwrap(), b"two\r\n--X");
}

#[tokio::test]
async fn the_query_names_the_file_whatever_the_form_calls_it() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    for name in [Some("upload"), Some("blob"), Some("/etc/other"), None] {
        let reply = agent.post_form(&[("path", text(&path))], &[], &[("file", name, b"x")]).await;
        assert_eq!(reply.json(), json!([{ "path": text(&path), "name": "file", "type": "file" }]));
    }
}

#[tokio::test]
async fn a_path_given_twice_is_refused_and_the_first_file_stays() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let parts: [(&str, Option<&str>, &[u8]); 2] =
        [("file", Some(text(&path)), b"first"), ("file", Some(text(&path)), b"second")];
    for query in [&[][..], &[("path", text(&path))]] {
        let reply = agent.post_form(query, &[], &parts).await;
        assert_eq!(reply.status, 400);
        assert!(
            reply.text().contains("you cannot upload multiple files to the same path"),
            "{}",
            reply.text()
        );
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }
}

#[tokio::test]
async fn requests_that_cannot_be_right_are_refused() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let dir = text(root.path());
    let raw = [("content-type", "application/octet-stream")];

    agent.get(root.path(), &[]).await.assert_error(400, &format!("path '{dir}' is a directory"));
    let missing = root.path().join("missing");
    agent.get(&missing, &[]).await.assert_error(404, &format!("path '{}' does not exist", text(&missing)));
    agent.put(root.path(), &[], "x").await.assert_error(400, &format!("path '{dir}' is a directory"));
    agent
        .send(Method::POST, "/files", &raw, full("x"))
        .await
        .assert_error(400, "path query parameter is required for raw body upload");
    let json_body =
        agent.send(Method::POST, &files(&[("path", "x")]), &[("content-type", "text/plain")], full("")).await;
    assert_eq!(json_body.status, 400);
    let nameless = agent.post_form(&[], &[], &[("file", None, b"x")]).await;
    assert_eq!(nameless.status, 400);

    let query = "/files?path=x&signature_expiration=soon";
    assert_eq!(agent.send(Method::GET, query, &[], full("")).await.json()["code"], 400);

    let nobody = files(&[("path", "x"), ("username", "no-such-user")]);
    agent
        .send(Method::GET, &nobody, &[], full(""))
        .await
        .assert_error(401, "invalid username: 'no-such-user'");
    agent
        .send(Method::POST, &nobody, &raw, full(""))
        .await
        .assert_error(401, "invalid username: 'no-such-user'");

    fs::write(root.path().join("file"), "").unwrap();
    assert_eq!(agent.put(&root.path().join("file/below"), &[], "x").await.status, 400);
    assert_eq!(agent.get(&root.path().join("file/below"), &[]).await.status, 404);
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_still_gets_the_answer() {
    let agent = Agent::start().await;
    let raw = [("content-type", "application/octet-stream")];
    let target = files(&[("path", "x"), ("username", "no-such-user")]);
    for _ in 0..3 {
        let reply = agent.send(Method::POST, &target, &raw, full(vec![0; 16 << 20])).await;
        reply.assert_error(401, "invalid username: 'no-such-user'");
    }
}

#[tokio::test]
async fn pipes_and_devices_are_refused_at_once() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let pipe = root.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    assert_eq!(agent.get(&pipe, &[]).await.status, 400);
    assert_eq!(agent.put(&pipe, &[], "x").await.status, 400);
    assert_eq!(agent.get("/dev/zero".as_ref(), &[]).await.status, 400);
}

#[tokio::test]
async fn a_range_yields_its_part_of_the_file() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "0123456789").unwrap();
    for (range, content_range, part) in [
        ("bytes=0-3", "bytes 0-3/10", "0123"),
        ("bytes=8-", "bytes 8-9/10", "89"),
        ("bytes=8-99", "bytes 8-9/10", "89"),
        ("bytes=-3", "bytes 7-9/10", "789"),
    ] {
        let reply = agent.get(&path, &[("range", range), ("accept-encoding", "gzip")]).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-range")), (206, Some(content_range)));
        assert_eq!((reply.text().as_str(), reply.header("content-encoding")), (part, None));
    }
    let reply = agent.get(&path, &[("range", "bytes=10-")]).await;
    assert_eq!((reply.status.as_u16(), reply.header("content-range")), (416, Some("bytes */10")));
    assert_eq!(reply.json()["code"], 416);

    let whole = agent.get(&path, &[("range", "bytes=oops")]).await;
    assert_eq!((whole.status.as_u16(), whole.text().as_str()), (200, "0123456789"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-disposition"), Some("inline; filename=\"file\""));
    let head = agent.send(Method::HEAD, &files(&[("path", text(&path))]), &[], full("")).await;
    assert_eq!((head.status.as_u16(), head.header("content-length"), head.body.len()), (200, Some("10"), 0));
}

#[tokio::test]
async fn a_file_that_has_not_changed_is_not_sent_again() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file.html");
    fs::write(&path, "contents").unwrap();
    let first = agent.get(&path, &[]).await;
    assert_eq!(first.header("content-type"), Some("text/html"));
    let modified = first.header("last-modified").unwrap();
    let again = agent.get(&path, &[("if-modified-since", modified)]).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    let long_ago = "Thu, 01 Jan 1970 00:00:01 GMT";
    assert_eq!(agent.get(&path, &[("if-modified-since", long_ago)]).await.status, 200);
    // The part a client wants belongs to the version it has: it gets all of the new one.
    let stale = agent.get(&path, &[("range", "bytes=0-0"), ("if-range", long_ago)]).await;
    assert_eq!((stale.status.as_u16(), stale.text().as_str()), (200, "contents"));
    assert_eq!(agent.get(&path, &[("range", "bytes=0-0"), ("if-range", modified)]).await.status, 206);
}

#[tokio::test]
async fn gzip_works_in_both_directions() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let contents = b"all work and no play ".repeat(10_000);
    let packed = gzip(&contents);

    let raw = root.path().join("raw");
    assert_eq!(agent.put(&raw, &[("content-encoding", "gzip")], packed).await.status, 200);
    assert_eq!(fs::read(&raw).unwrap(), contents);

    let in_form = root.path().join("form");
    let (content_type, body) = crate::support::form(&[("file", Some(text(&in_form)), &contents)]);
    let headers = [("content-type", content_type.as_str()), ("content-encoding", "gzip")];
    assert_eq!(agent.send(Method::POST, "/files", &headers, full(gzip(&body))).await.status, 200);
    assert_eq!(fs::read(&in_form).unwrap(), contents);

    let reply = agent.get(&raw, &[("accept-encoding", "gzip, deflate, br")]).await;
    assert_eq!(
        (reply.header("content-encoding"), reply.header("vary")),
        (Some("gzip"), Some("Accept-Encoding"))
    );
    assert!(reply.body.len() < contents.len() / 10);
    assert_eq!(gunzip(&reply.body), contents);

    assert_eq!(agent.get(&raw, &[]).await.header("content-encoding"), None);
    assert_eq!(agent.get(&raw, &[("accept-encoding", "br, identity;q=0")]).await.status, 406);
    assert_eq!(agent.put(&raw, &[("content-encoding", "br")], "x").await.status, 400);
}

#[tokio::test]
async fn an_upload_that_cannot_be_unpacked_changes_nothing() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    fs::write(&old, "as it was").unwrap();
    let mut broken = gzip(&[1; 100_000]);
    broken.truncate(broken.len() - 4);
    for path in [&old, &new] {
        assert_eq!(agent.put(path, &[("content-encoding", "gzip")], broken.clone()).await.status, 400);
    }
    assert_eq!(fs::read_to_string(old).unwrap(), "as it was");
    assert!(!new.exists());
}

#[tokio::test]
async fn a_packed_form_whose_checksum_is_wrong_is_refused() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let (content_type, body) = crate::support::form(&[("file", Some(text(&path)), b"contents")]);
    let mut packed = gzip(&body);
    // The form's last byte is long read when the checksum comes.
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    let headers = [("content-type", content_type.as_str()), ("content-encoding", "gzip")];
    for piece in [1, packed.len()] {
        let pieces: Vec<_> = packed
            .chunks(piece)
            .map(|piece| Ok::<_, io::Error>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(stream::iter(pieces)).boxed();
        let reply = agent.send(Method::POST, "/files", &headers, body).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
}

/// Begins an upload of 8 MiB, and hangs up after `sent` bytes.
async fn hang_up(agent: &Agent, path: &str, sent: usize) {
    let mut connection = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        files(&[("path", path)]),
        8 << 20
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&vec![b'n'; sent]).await.unwrap();
    connection.shutdown().await.unwrap();
    // The agent closes its side once it has given up.
    let _ = tokio::io::copy(&mut connection, &mut tokio::io::sink()).await;
}

/// Waits for something that another process is about to do.
async fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn a_new_file_whose_client_hangs_up_is_removed() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("dir/file");
    hang_up(&agent, text(&path), 5 << 20).await;
    eventually("the incomplete file is removed", || root.path().join("dir").exists() && !path.exists()).await;
}

#[tokio::test]
async fn an_existing_file_whose_client_hangs_up_early_is_unchanged() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "old").unwrap();
    hang_up(&agent, text(&path), 100_000).await;
    // The agent has answered this after it has seen the other connection end.
    assert_eq!(agent.get(&path, &[]).await.text(), "old");
}

#[tokio::test]
async fn an_existing_file_whose_client_hangs_up_late_holds_what_arrived() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, vec![b'o'; 9 << 20]).unwrap();
    hang_up(&agent, text(&path), 5 << 20).await;
    let only_new = || {
        let contents = fs::read(&path).unwrap();
        contents.len() <= 5 << 20 && contents.iter().all(|byte| *byte == b'n')
    };
    eventually("the file is cut off where the new contents end", only_new).await;
}

#[tokio::test]
async fn writing_over_a_file_keeps_its_mode_and_inode() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (path, link) = (root.path().join("dir/file"), root.path().join("link"));
    assert_eq!(agent.put(&path, &[], "long contents").await.status, 200);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
    symlink(&path, &link).unwrap();
    let before = fs::metadata(&path).unwrap();

    assert_eq!(agent.put(&link, &[], "short").await.status, 200);

    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.ino(), after.mode(), after.len()), (before.ino(), before.mode(), 5));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(agent.put(&path, &[], "").await.status, 200);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let empty = agent.get(&path, &[]).await;
    assert_eq!(
        (empty.status.as_u16(), empty.header("content-length"), empty.body.len()),
        (200, Some("0"), 0)
    );
}

#[tokio::test]
async fn files_of_the_kernel_are_read_through() {
    let agent = Agent::start().await;
    for path in
        ["/proc/sys/kernel/random/boot_id", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"]
    {
        let contents = fs::read(path).unwrap();
        let reply = agent.get(path.as_ref(), &[]).await;
        assert_eq!(reply.body, contents, "{path}");
        assert_eq!(reply.header("content-length"), Some(contents.len().to_string().as_str()));
        let packed = agent.get(path.as_ref(), &[("accept-encoding", "gzip")]).await;
        assert_eq!(gunzip(&packed.body), contents, "{path}");
        let part = agent.get(path.as_ref(), &[("range", "bytes=2-4")]).await;
        assert_eq!((part.status.as_u16(), &part.body[..]), (206, &contents[2..5]));
    }
    // Longer than what is read ahead of the answer.
    let long = agent.get("/proc/kallsyms".as_ref(), &[]).await;
    assert_eq!(long.status, 200);
    assert!(long.body.len() > 1 << 18 && long.body.ends_with(b"\n"), "{} bytes", long.body.len());
}

#[tokio::test]
async fn parts_are_composed_into_one_file_and_removed() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let parts: Vec<_> = (0..3).map(|number| root.path().join(format!("part{number}"))).collect();
    let whole = root.path().join("new/whole");
    let compose = async |sources: &[&std::path::Path], destination: &std::path::Path| {
        let request = json!({ "source_paths": sources, "destination": destination, "username": own_user() });
        let headers = [("content-type", "application/json")];
        agent.send(Method::POST, "/files/compose", &headers, full(request.to_string())).await
    };
    let sources: Vec<_> = parts.iter().map(|part| part.as_path()).collect();

    fs::write(&parts[0], "one ").unwrap();
    fs::write(&parts[1], "two ").unwrap();
    assert_eq!(compose(&sources, &whole).await.status, 404);
    assert!(parts[0].exists() && !whole.exists(), "a missing part leaves everything as it was");

    fs::write(&parts[2], "three").unwrap();
    let reply = compose(&sources, &whole).await;
    assert_eq!(reply.json(), json!({ "path": text(&whole), "name": "whole", "type": "file" }));
    assert_eq!(fs::read_to_string(&whole).unwrap(), "one two three");
    assert_eq!(fs::metadata(&whole).unwrap().mode() & 0o777, 0o644);
    assert!(parts.iter().all(|part| !part.exists()));
    assert_eq!(fs::read_dir(whole.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");

    assert_eq!(compose(&[&whole], &whole).await.status, 400);
    assert_eq!(compose(&[], &whole).await.status, 400);
    assert_eq!(compose(&[root.path()], &whole).await.status, 400);
    assert_eq!(compose(&[&whole], root.path()).await.status, 400);
    assert!(whole.exists());
}

#[tokio::test]
async fn a_signed_url_stands_in_for_the_token() {
    const TOKEN: &str = "secret-token";
    let agent = Agent::start().await;
    agent.init(json!({ "accessToken": TOKEN })).await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let raw = [("content-type", "application/octet-stream")];

    let signature = sign(text(&path), Operation::Write, "", TOKEN, None);
    let signed = files(&[("path", text(&path)), ("signature", &signature)]);
    assert_eq!(agent.send(Method::POST, &signed, &raw, full("signed")).await.status, 200);
    agent.send(Method::GET, &signed, &[], full("")).await.assert_error(401, "invalid signature");
    agent.get(&path, &[]).await.assert_error(401, "missing signature query parameter");
    assert_eq!(agent.get(&path, &[("x-access-token", TOKEN)]).await.text(), "signed");

    // An upload that names its file in the form is signed for the empty path.
    let anywhere = sign("", Operation::Write, "", TOKEN, None);
    let other = root.path().join("other");
    let reply =
        agent.post_form(&[("signature", &anywhere)], &[], &[("file", Some(text(&other)), b"x")]).await;
    assert_eq!(reply.status, 200);
}
