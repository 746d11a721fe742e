//! The wire itself: both codecs over both versions of HTTP, and requests that no client of ours would send.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use torpor_envd_api::{
    connectrpc::{
        ErrorCode,
        client::{ClientConfig, HttpClient},
        stream_iter,
    },
    process::{
        CloseStdinRequest, ListRequest, ProcessClient, ProcessInput, Signal, StartRequest,
        StreamInputRequest, UpdateRequest,
        process_input::Input,
        stream_input_request::{DataEvent, Event, StartEvent},
    },
};

use crate::support::{Agent, Client, Events, by_pid, input, run, shell, signal, started, terminal};

/// A client for each codec and each version of HTTP, with a name for messages.
fn every_client(agent: &Agent) -> Vec<(String, Client)> {
    let config = || ClientConfig::new(format!("http://{}", agent.address).parse().unwrap());
    let transports = [("HTTP/1.1", HttpClient::plaintext()), ("HTTP/2", HttpClient::plaintext_http2_only())];
    let mut clients = Vec::new();
    for (version, transport) in transports {
        for (codec, config) in [("JSON", config().json()), ("protobuf", config().proto())] {
            clients.push((format!("{codec} over {version}"), ProcessClient::new(transport.clone(), config)));
        }
    }
    clients
}

/// One message of a stream.
fn envelope(message: &Value) -> Vec<u8> {
    let message = message.to_string();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend(message.bytes());
    bytes
}

const STREAM_HEADERS: [(&str, &str); 2] =
    [("content-type", "application/connect+json"), ("connect-protocol-version", "1")];

async fn stream(agent: &Agent, method: &str, body: Vec<u8>) -> (u16, String) {
    let body = String::from_utf8(body).unwrap();
    agent.request("POST", &format!("/process.Process/{method}"), &STREAM_HEADERS, &body).await
}

#[tokio::test]
async fn every_rpc_works_with_both_codecs_over_both_versions_of_http() {
    let agent = Agent::start().await;
    for (name, client) in every_client(&agent) {
        let request = StartRequest { stdin: Some(true), tag: Some("it".into()), ..shell("exec cat") };
        let (pid, mut first) = started(&client, request).await;
        let mut second = Events::connect(&client, pid).await.unwrap();
        assert_eq!(second.pid().await, pid, "{name}");
        let listed = client.list(ListRequest::default()).await.unwrap().into_owned().processes;
        assert_eq!((listed.len(), listed[0].pid, listed[0].tag.as_deref()), (1, pid, Some("it")), "{name}");

        client.send_input(input(pid, Input::Stdin(b"sent\n".to_vec()))).await.unwrap();
        let message = |event: Event| StreamInputRequest { event: Some(event), ..Default::default() };
        let streamed =
            ProcessInput { input: Some(Input::Stdin(b"streamed\n".to_vec())), ..Default::default() };
        let messages = [
            message(StartEvent { process: by_pid(pid).into(), ..Default::default() }.into()),
            message(DataEvent { input: streamed.into(), ..Default::default() }.into()),
        ];
        client.stream_input(stream_iter(messages.to_vec())).await.unwrap();
        let close = CloseStdinRequest { process: by_pid(pid).into(), ..Default::default() };
        client.close_stdin(close).await.unwrap();
        let (first, second) = tokio::join!(first.collect(), second.collect());
        for collected in [first.unwrap(), second.unwrap()] {
            assert_eq!(
                (collected.text(), collected.status()),
                ("sent\nstreamed\n", "exit status 0"),
                "{name}"
            );
        }

        let request = StartRequest {
            pty: terminal(80, 24).into(),
            stdin: None,
            ..shell("stty -echo; echo ready; read -r _; stty size; sleep 1000")
        };
        let (pid, mut events) = started(&client, request).await;
        events.collect_until(|so_far| so_far.pty.ends_with(b"ready\r\n")).await.unwrap();
        let resize =
            UpdateRequest { process: by_pid(pid).into(), pty: terminal(40, 10).into(), ..Default::default() };
        client.update(resize).await.unwrap();
        client.send_input(input(pid, Input::Pty(b"\r".to_vec()))).await.unwrap();
        events.collect_until(|so_far| so_far.pty.ends_with(b"10 40\r\n")).await.unwrap();
        client.send_signal(signal(pid, Signal::SIGNAL_SIGKILL)).await.unwrap();
        assert_eq!(events.collect().await.unwrap().status(), "signal: killed", "{name}");

        let error = client.send_signal(signal(pid, Signal::SIGNAL_SIGKILL)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound, "{name}");
        let mut missing = Events::connect(&client, 4_000_000).await.unwrap();
        let error = missing.first().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound, "{name}");
        assert_eq!(error.message.as_deref(), Some("process with pid 4000000 not found"), "{name}");
    }
}

#[tokio::test]
async fn an_error_of_a_stream_is_its_last_and_only_message() {
    let agent = Agent::start().await;
    let request = json!({ "process": { "pid": 4_000_000 } });
    let (status, body) = stream(&agent, "Connect", envelope(&request)).await;
    let end = r#"{"error":{"code":"not_found","message":"process with pid 4000000 not found"}}"#;
    assert_eq!(
        (status, body.as_str()),
        (200, format!("\u{2}\0\0\0{}{end}", end.len() as u8 as char).as_str())
    );
}

#[tokio::test]
async fn an_error_after_output_is_the_last_message() {
    let agent = Agent::start().await;
    let request = json!({ "process": { "cmd": "/bin/sh", "args": ["-c", "echo out; exec sleep 1000"] } });
    let body = String::from_utf8(envelope(&request)).unwrap();
    let headers = [&STREAM_HEADERS[..], &[("connect-timeout-ms", "1000")]].concat();
    let (status, body) = agent.request("POST", "/process.Process/Start", &headers, &body).await;
    assert_eq!(status, 200);
    let positions: Vec<_> = [
        r#"{"start":{"pid":"#,
        r#"{"data":{"stdout":"b3V0Cg=="}}"#,
        r#"{"error":{"code":"deadline_exceeded""#,
    ]
    .map(|part| body.find(part).unwrap_or_else(|| panic!("{part} in {body}")))
    .to_vec();
    assert!(positions.is_sorted(), "{body}");
}

#[tokio::test]
async fn json_is_read_as_protobufs_json_mapping_allows() {
    let agent = Agent::start().await;
    // Numbers as text, names as in the definition, enums by number, null for what is not given, fields of the future.
    let (pid, _events) = started(&agent.client(), shell("exec sleep 1000")).await;
    let body = format!(r#"{{"process":{{"pid":"{pid}"}},"pty":null,"future":[1,{{"a":"b"}}]}}"#);
    assert_eq!(agent.post("/process.Process/Update", &body).await, (200, "{}".into()));
    let headers = [("content-type", "application/json; charset=utf-8")];
    let body = format!(r#"{{"process":{{"pid":{pid}}},"signal":9}}"#);
    assert_eq!(
        agent.request("POST", "/process.Process/SendSignal", &headers, &body).await,
        (200, "{}".into())
    );
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_argument() {
    let agent = Agent::start().await;
    for body in ["", "[]", "{", r#"{"process":7}"#, r#"{"process":{"pid":-1}}"#, "\u{0}"] {
        let (status, answer) = agent.post("/process.Process/SendSignal", body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_argument")), "{body:?}: {answer}");
    }
    let (status, _) = agent.post("/process.Process/NoSuchMethod", "{}").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_signal_that_is_not_named_is_refused() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, _events) = started(&client, shell("exec sleep 1000")).await;
    let error = client.send_signal(signal(pid, Signal::SIGNAL_UNSPECIFIED)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(crate::support::is_alive(pid));
}

#[tokio::test]
async fn a_request_in_pieces_is_read_as_one() {
    let agent = Agent::start().await;
    let mut connection = TcpStream::connect(agent.address).await.unwrap();
    let message = envelope(&json!({ "process": { "cmd": "echo", "args": ["pieces"] }, "stdin": false }));
    let head = "POST /process.Process/Start HTTP/1.1\r\nhost: agent\r\ntransfer-encoding: chunked\r\n\
                connection: close\r\ncontent-type: application/connect+json\r\n\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    for byte in message {
        connection.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await.unwrap();
        connection.flush().await.unwrap();
    }
    connection.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#"{"stdout":"cGllY2VzCg=="}"#), "{answer}");
}

#[tokio::test]
async fn a_message_larger_than_the_limit_is_refused_and_not_kept() {
    const LIMIT: usize = 64 << 20;
    let agent = Agent::start().await;
    let exhausted = |body: &str| assert!(body.contains(r#""code":"resource_exhausted""#), "{body}");

    // Announced in an envelope, of a stream from the client and of one from the server.
    for (method, announced) in
        [("StreamInput", 0xffff_ffff_u32), ("StreamInput", LIMIT as u32 + 1), ("Start", 0xffff_ffff)]
    {
        let mut connection = TcpStream::connect(agent.address).await.unwrap();
        let head = format!(
            "POST /process.Process/{method} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\
             content-type: application/connect+json\r\ncontent-length: 7\r\n\r\n"
        );
        let message = [head.as_bytes(), &[0], &announced.to_be_bytes(), b"{}"].concat();
        connection.write_all(&message).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#"{"error":{"code":"#), "{answer}");
    }
    // In full.
    let text = "x".repeat(LIMIT);
    let body = format!(r#"{{"process":{{"pid":1}},"input":{{"stdin":"{text}"}}}}"#);
    let (status, answer) = agent.post("/process.Process/SendInput", &body).await;
    assert_eq!(status, 429);
    exhausted(&answer);

    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: usize = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 200 << 10, "the agent used {peak_kib} KiB");
    assert_eq!(agent.get("/health").await.0, 204);
}

#[tokio::test]
async fn clients_that_stop_in_the_middle_hold_nobody_up() {
    let agent = Agent::start().await;
    let mut stalled = Vec::new();
    for half in [
        "POST /process.Process/List HTTP/1.1\r\nhost: ag",
        "POST /process.Process/List HTTP/1.1\r\nhost: agent\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
        "POST /process.Process/StreamInput HTTP/1.1\r\nhost: agent\r\ncontent-type: application/connect+json\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\n\0\0\0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        for _ in 0..16 {
            let mut connection = TcpStream::connect(agent.address).await.unwrap();
            connection.write_all(half.as_bytes()).await.unwrap();
            stalled.push(connection);
        }
    }
    assert_eq!(run(&agent.client(), shell("echo fine")).await.unwrap().text(), "fine\n");
    drop(stalled);
}

#[tokio::test]
async fn output_comes_in_chunks_that_clients_can_take() {
    let agent = Agent::start().await;
    let client = agent.client();
    let writes = "head -c 1000000 /dev/zero";
    for (request, largest) in [
        (shell(writes), 32 << 10),
        (StartRequest { pty: terminal(80, 24).into(), stdin: None, ..shell(writes) }, 16 << 10),
    ] {
        let (_, mut events) = started(&client, request).await;
        let mut total = 0;
        while let Some(event) = events.next().await.unwrap() {
            if let Some(bytes) = crate::support::output(&event) {
                assert!(!bytes.is_empty() && bytes.len() <= largest, "{} bytes", bytes.len());
                total += bytes.len();
            }
        }
        assert_eq!(total, 1_000_000);
    }
}

#[tokio::test]
async fn a_process_that_has_ended_is_forgotten_in_the_end() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, shell("exit 4")).await;
    events.collect().await.unwrap();
    let error = loop {
        match Events::connect(&client, pid).await.unwrap().first().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.message, Some(format!("process with pid {pid} not found")));
}
