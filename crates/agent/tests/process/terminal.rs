//! Processes with a terminal.

use torpor_envd_api::{
    connectrpc::ErrorCode,
    process::{CloseStdinRequest, StartRequest, UpdateRequest, process_input::Input},
};

use crate::support::{Agent, by_pid, input, run, shell, started, terminal};

fn with_terminal(command: &str) -> StartRequest {
    StartRequest { pty: terminal(100, 30).into(), stdin: None, ..shell(command) }
}

#[tokio::test]
async fn a_terminal_has_the_size_that_was_asked_for_and_controls_the_session() {
    let agent = Agent::start().await;
    let result = run(&agent.client(), with_terminal("stty size; test -t 0 && : >/dev/tty && echo mine"))
        .await
        .unwrap();
    assert_eq!(String::from_utf8(result.pty.clone()).unwrap(), "30 100\r\nmine\r\n");
    assert!(result.stdout.is_empty() && result.stderr.is_empty());
    assert_eq!(result.status(), "exit status 0");
}

#[tokio::test]
async fn a_terminal_can_be_typed_into_and_resized() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) =
        started(&client, with_terminal("stty -echo; echo ready; read -r a; stty size; echo got $a")).await;
    events.collect_until(|so_far| so_far.pty.ends_with(b"ready\r\n")).await.unwrap();
    let resize =
        UpdateRequest { process: by_pid(pid).into(), pty: terminal(40, 10).into(), ..Default::default() };
    client.update(resize).await.unwrap();
    client.send_input(input(pid, Input::Pty(b"hello\r".to_vec()))).await.unwrap();
    let result = events.collect().await.unwrap();
    assert_eq!(String::from_utf8(result.pty).unwrap(), "10 40\r\ngot hello\r\n");
}

#[tokio::test]
async fn control_c_interrupts() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, with_terminal("stty -echo; echo ready; sleep 1000")).await;
    events.collect_until(|so_far| so_far.pty.ends_with(b"ready\r\n")).await.unwrap();
    client.send_input(input(pid, Input::Pty(vec![3]))).await.unwrap();
    assert_eq!(events.collect().await.unwrap().status(), "signal: interrupt");
}

#[tokio::test]
async fn terminal_and_pipe_are_not_confused() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, _events) = started(&client, with_terminal("sleep 1000")).await;
    let error = client.send_input(input(pid, Input::Stdin(b"x".to_vec()))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let close = CloseStdinRequest { process: by_pid(pid).into(), ..Default::default() };
    assert_eq!(client.close_stdin(close).await.unwrap_err().code, ErrorCode::FailedPrecondition);
    let (pid, _events) = started(&client, StartRequest { stdin: None, ..shell("sleep 1000") }).await;
    let error = client.send_input(input(pid, Input::Pty(b"x".to_vec()))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let resize =
        UpdateRequest { process: by_pid(pid).into(), pty: terminal(1, 1).into(), ..Default::default() };
    assert_eq!(client.update(resize).await.unwrap_err().code, ErrorCode::FailedPrecondition);
}
