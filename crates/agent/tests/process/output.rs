//! What processes write.

use std::time::Duration;

use torpor_envd_api::connectrpc::{ErrorCode, client::CallOptions};
use torpor_envd_api::process::ConnectRequest;

use crate::support::{Agent, Events, by_pid, run, shell, started};

#[tokio::test]
async fn output_and_exit_code_arrive_with_both_codecs() {
    let agent = Agent::start().await;
    for client in [agent.client(), agent.client_with(|config| config.json())] {
        let result = run(&client, shell("echo out; echo err >&2; exit 3")).await.unwrap();
        assert_eq!((result.stdout.as_slice(), result.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        let end = result.end.unwrap();
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
    }
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole() {
    const SIZE: usize = 100_000_000;
    let agent = Agent::start().await;
    let command = format!(
        "head -c {SIZE} /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00 2>/dev/null | tee /dev/stderr | sha256sum | cut -c1-64"
    );
    let result = run(&agent.client(), shell(&command)).await.unwrap();
    assert_eq!(result.stderr.len(), SIZE);
    let mut expected = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut expected.stdin.take().unwrap(), &result.stderr).unwrap();
    let expected = expected.wait_with_output().unwrap().stdout;
    assert_eq!(result.stdout[..64], expected[..64]);
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_unchanged() {
    let agent = Agent::start().await;
    let client = agent.client_with(|config| config.json());
    let result = run(&client, shell(r"printf '\377\000\303'; printf '\244\n'")).await.unwrap();
    assert_eq!(result.stdout, b"\xff\x00\xc3\xa4\n");
}

#[tokio::test]
async fn two_subscribers_get_the_same_bytes_and_the_end() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("read -r _; seq 1 200000");
    request.stdin = None;
    let (pid, mut first) = started(&client, request).await;
    let mut second = Events::connect(&client, pid).await.unwrap();
    assert_eq!(second.pid().await, pid);
    client
        .send_input(crate::support::input(
            pid,
            torpor_envd_api::process::process_input::Input::Stdin(b"\n".to_vec()),
        ))
        .await
        .unwrap();
    let (first, second) = tokio::join!(first.collect(), second.collect());
    let (first, second) = (first.unwrap(), second.unwrap());
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(first.text() == expected && second.text() == expected);
    assert_eq!((first.status(), second.status()), ("exit status 0", "exit status 0"));
}

#[tokio::test]
async fn a_client_that_reads_slowly_makes_the_process_wait_and_loses_nothing() {
    const SIZE: usize = 30_000_000;
    let agent = Agent::start().await;
    let client = agent.client();
    let (_, mut events) = started(&client, shell(&format!("head -c {SIZE} /dev/zero"))).await;
    // Long enough for the process to fill every buffer on the way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak < 60_000, "the agent buffers {peak} KiB");
    assert_eq!(events.collect().await.unwrap().stdout.len(), SIZE);
}

#[tokio::test]
async fn descendants_that_keep_the_output_open_do_not_delay_the_end() {
    let agent = Agent::start().await;
    let client = agent.client();
    let result = run(&client, shell("sleep 1000 & echo $!")).await.unwrap();
    let sleeper: u32 = result.text().trim().parse().unwrap();
    assert_eq!(result.status(), "exit status 0");
    assert!(crate::support::is_alive(sleeper), "a descendant in the background is left alone");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(sleeper as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test]
async fn what_a_descendant_writes_after_the_end_is_read_so_that_it_is_not_killed_for_it() {
    let agent = Agent::start().await;
    let client = agent.client();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let command = format!("(sleep 1; head -c 1000000 /dev/zero; touch {}) & true", done.display());
    run(&client, shell(&command)).await.unwrap();
    crate::support::until(|| done.exists()).await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let agent = Agent::start().await;
    let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
    let mut events = Events::start(&agent.client(), shell("sleep 2.5"), options).await.unwrap();
    events.pid().await;
    let result = events.collect().await.unwrap();
    assert!(result.keepalives >= 1 && result.keepalives <= 3, "{} keepalives", result.keepalives);
    assert_eq!(result.status(), "exit status 0");
}

#[tokio::test]
async fn the_stream_of_a_second_client_is_kept_alive_too() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (pid, _events) = started(&client, shell("exec sleep 1000")).await;
    let request = ConnectRequest { process: by_pid(pid).into(), ..Default::default() };
    let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
    let mut follower = Events::Connect(client.connect_with_options(request, options).await.unwrap());
    follower.pid().await;
    let result = follower.collect_until(|so_far| so_far.keepalives == 2).await.unwrap();
    assert!(result.end.is_none());
}

#[tokio::test]
async fn what_cannot_be_started_is_an_invalid_argument() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut request = shell("true");
    request.process.get_or_insert_default().cmd = "/no/such/program".into();
    let error = run(&client, request).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.as_deref().unwrap_or_default().contains("/no/such/program"));
}
