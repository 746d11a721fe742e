//! How long processes live, and who ends them.

use std::time::Duration;

use torpor_envd_api::{
    connectrpc::{ErrorCode, client::CallOptions},
    process::{ListRequest, Signal},
};

use crate::support::{Agent, Events, by_pid, by_tag, is_alive, shell, signal, started, until};

#[tokio::test]
async fn a_process_outlives_the_client_that_started_it() {
    let agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let command = format!("while [ ! -e {} ]; do sleep 0.05; done; echo done; exit 7", go.display());
    let pid = {
        // Its own client, so that dropping it closes the connection.
        let client = agent.client();
        let (pid, events) = started(&client, shell(&command)).await;
        drop(events);
        pid
    };
    let client = agent.client();
    let mut events = Events::connect(&client, pid).await.unwrap();
    assert_eq!(events.pid().await, pid);
    std::fs::write(&go, "").unwrap();
    let result = events.collect().await.unwrap();
    assert_eq!((result.text(), result.status()), ("done\n", "exit status 7"));
}

#[tokio::test]
async fn output_that_nobody_follows_does_not_stop_the_process() {
    let agent = Agent::start().await;
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let client = agent.client();
    let (_, events) =
        started(&client, shell(&format!("sleep 0.3; seq 1 500000; touch {}", done.display()))).await;
    drop((events, client));
    until(|| done.exists()).await;
}

#[tokio::test]
async fn a_process_that_has_ended_still_tells_its_end_for_a_while() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, shell("exit 4")).await;
    events.collect().await.unwrap();
    let mut again = Events::connect(&client, pid).await.unwrap();
    assert_eq!(again.pid().await, pid);
    assert_eq!(again.collect().await.unwrap().status(), "exit status 4");
}

#[tokio::test]
async fn a_process_nobody_started_is_not_found() {
    let agent = Agent::start().await;
    let client = agent.client();
    let own = std::process::id();
    let error = Events::connect(&client, own).await.unwrap().first().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.message, Some(format!("process with pid {own} not found")));
}

#[tokio::test]
async fn the_list_has_those_that_run_and_no_others() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("sleep 1000");
    request.tag = Some("sleeper".into());
    let (pid, mut events) = started(&client, request.clone()).await;
    let list = || async { client.list(ListRequest::default()).await.unwrap().into_owned().processes };
    let listed = list().await;
    assert_eq!((listed.len(), listed[0].pid, listed[0].tag.as_deref()), (1, pid, Some("sleeper")));
    assert_eq!(listed[0].config, request.process);
    client.send_signal(signal(pid, Signal::SIGNAL_SIGKILL)).await.unwrap();
    assert_eq!(events.collect().await.unwrap().status(), "signal: killed");
    assert!(list().await.is_empty());
}

#[tokio::test]
async fn a_process_can_be_named_by_its_tag() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("sleep 1000");
    request.tag = Some("it".into());
    let (pid, _events) = started(&client, request).await;
    assert_eq!(Events::connect_to(&client, by_tag("it")).await.unwrap().pid().await, pid);
    let error = Events::connect_to(&client, by_tag("other")).await.unwrap().first().await.unwrap_err();
    assert_eq!(error.message.as_deref(), Some("process with tag other not found"));
}

#[tokio::test]
async fn signals_reach_the_process_and_its_children() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, mut events) = started(&client, shell("sleep 1000 & echo $!; wait")).await;
    let collected = events.collect_until(|so_far| so_far.stdout.ends_with(b"\n")).await.unwrap();
    let child: u32 = collected.text().trim().parse().unwrap();
    client.send_signal(signal(pid, Signal::SIGNAL_SIGTERM)).await.unwrap();
    let end = events.collect().await.unwrap().end.unwrap();
    assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: terminated"));
    until(|| !is_alive(child)).await;
    let error = client.send_signal(signal(pid, Signal::SIGNAL_SIGTERM)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_deadline_kills_the_whole_session_and_says_so() {
    let agent = Agent::start().await;
    let client = agent.client();
    // Job control gives the child a process group of its own.
    let mut request = shell("");
    let process = request.process.get_or_insert_default();
    process.cmd = "/bin/bash".into();
    process.args = ["-c", "set -m; sleep 1000 & echo $!; wait"].map(String::from).to_vec();
    // Sent as a header, so that the client's own timer does not take part.
    let options = CallOptions::default().with_header("connect-timeout-ms", "1500");
    let mut events = Events::start(&client, request, options).await.unwrap();
    let pid = events.pid().await;
    let collected = events.collect_until(|so_far| so_far.stdout.ends_with(b"\n")).await.unwrap();
    let child: u32 = collected.text().trim().parse().unwrap();
    let error = events.collect().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    until(|| !is_alive(pid) && !is_alive(child)).await;
}

#[tokio::test]
async fn a_deadline_holds_when_the_client_has_left() {
    let agent = Agent::start().await;
    let client = agent.client();
    let options = CallOptions::default().with_header("connect-timeout-ms", "1000");
    let mut events = Events::start(&client, shell("sleep 1000"), options).await.unwrap();
    let pid = events.pid().await;
    drop((events, client));
    until(|| !is_alive(pid)).await;
}

#[tokio::test]
async fn a_timeout_of_zero_is_none() {
    let agent = Agent::start().await;
    let options = CallOptions::default().with_header("connect-timeout-ms", "0");
    let mut events = Events::start(&agent.client(), shell("sleep 0.2"), options).await.unwrap();
    events.pid().await;
    assert_eq!(events.collect().await.unwrap().status(), "exit status 0");
}

#[tokio::test]
async fn a_deadline_of_a_follower_leaves_the_process_alone() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, _events) = started(&client, shell("sleep 1000")).await;
    let request =
        torpor_envd_api::process::ConnectRequest { process: by_pid(pid).into(), ..Default::default() };
    let options = CallOptions::default().with_header("connect-timeout-ms", "300");
    let mut follower = Events::Connect(client.connect_with_options(request, options).await.unwrap());
    follower.pid().await;
    assert_eq!(follower.collect().await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    assert!(is_alive(pid));
}

#[tokio::test]
async fn many_short_processes_all_tell_their_own_exit_code() {
    let agent = Agent::start().await;
    let client = agent.client();
    let runs = (0..200).map(|code| {
        let client = &client;
        async move {
            // Orphans end at the same time, to be reaped in between.
            let command = format!("(true &); (sleep 0.01 &) ; exit {code}");
            crate::support::run(client, shell(&command)).await.unwrap().end.unwrap().exit_code
        }
    });
    let codes: Vec<i32> =
        futures::StreamExt::collect(futures::StreamExt::buffered(futures::stream::iter(runs), 16)).await;
    assert_eq!(codes, (0..200).collect::<Vec<i32>>());
}

#[tokio::test]
async fn orphans_do_not_stay_zombies() {
    let agent = Agent::start().await;
    let client = agent.client();
    let result = crate::support::run(&client, shell("(sleep 0.3 >/dev/null & echo $!)")).await.unwrap();
    let orphan = result.text().trim().to_owned();
    tokio::time::timeout(
        Duration::from_secs(60),
        until(|| !std::path::Path::new("/proc").join(&orphan).exists()),
    )
    .await
    .unwrap();
}
