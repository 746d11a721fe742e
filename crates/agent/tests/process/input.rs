//! What processes read.

use torpor_envd_api::{
    connectrpc::{ErrorCode, stream_iter},
    process::{
        CloseStdinRequest, ProcessConfig, ProcessInput, StartRequest, StreamInputRequest,
        process_input::Input,
        stream_input_request::{DataEvent, Event, KeepAlive, StartEvent},
    },
};

use crate::support::{Agent, Client, by_pid, input, run, shell, started};

fn cat() -> StartRequest {
    StartRequest {
        process: ProcessConfig { cmd: "cat".into(), ..Default::default() }.into(),
        ..Default::default()
    }
}

async fn close(client: &Client, pid: u32) {
    client
        .close_stdin(CloseStdinRequest { process: by_pid(pid).into(), ..Default::default() })
        .await
        .unwrap();
}

#[tokio::test]
async fn input_reaches_the_process_until_it_is_closed() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, cat()).await;
    for line in ["one\n", "two\n"] {
        client.send_input(input(pid, Input::Stdin(line.into()))).await.unwrap();
    }
    close(&client, pid).await;
    let result = events.collect().await.unwrap();
    assert_eq!((result.text(), result.status()), ("one\ntwo\n", "exit status 0"));
}

#[tokio::test]
async fn closing_twice_is_fine_and_writing_then_is_not() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("sleep 1000");
    request.stdin = None;
    let (pid, _events) = started(&client, request).await;
    close(&client, pid).await;
    close(&client, pid).await;
    let error = client.send_input(input(pid, Input::Stdin(b"x".to_vec()))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn a_process_without_input_reads_its_end_at_once() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = cat();
    request.stdin = Some(false);
    assert_eq!(run(&client, request).await.unwrap().status(), "exit status 0");
}

#[tokio::test]
async fn a_stream_of_input_arrives_in_order() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, cat()).await;
    let message = |event: Event| StreamInputRequest { event: Some(event), ..Default::default() };
    let mut messages = vec![message(StartEvent { process: by_pid(pid).into(), ..Default::default() }.into())];
    let mut expected = String::new();
    for number in 0..500 {
        let line = format!("{number} {}\n", "x".repeat(1000));
        let input =
            ProcessInput { input: Some(Input::Stdin(line.clone().into_bytes())), ..Default::default() };
        messages.push(message(DataEvent { input: input.into(), ..Default::default() }.into()));
        messages.push(message(KeepAlive::default().into()));
        expected.push_str(&line);
    }
    let send = async {
        client.stream_input(stream_iter(messages)).await.unwrap();
        close(&client, pid).await;
    };
    let (result, ()) = tokio::join!(events.collect(), send);
    assert!(result.unwrap().text() == expected);
}

#[tokio::test]
async fn input_for_nobody_is_not_found() {
    let agent = Agent::start().await;
    let error = agent.client().send_input(input(4_000_000, Input::Stdin(b"x".to_vec()))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.message.as_deref(), Some("process with pid 4000000 not found"));
}

#[tokio::test]
async fn input_that_nobody_reads_does_not_hang_when_the_process_ends() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("sleep 1");
    request.stdin = None;
    let (pid, _events) = started(&client, request).await;
    let error = client.send_input(input(pid, Input::Stdin(vec![0; 1 << 20]))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}
