//! As whom, where, and with what environment processes run.

use torpor_envd_api::{
    connectrpc::{ConnectError, ErrorCode, client::CallOptions},
    process::StartRequest,
};

use crate::support::{Agent, Collected, Events, OwnUser, run, shell};

async fn run_as(
    agent: &Agent,
    authorization: &str,
    request: StartRequest,
) -> Result<Collected, ConnectError> {
    let options = CallOptions::default().with_header("authorization", authorization);
    let mut events = Events::start(&agent.client(), request, options).await?;
    events.first().await?;
    events.collect().await
}

fn in_directory(command: &str, directory: &str) -> StartRequest {
    let mut request = shell(command);
    request.process.get_or_insert_default().cwd = Some(directory.into());
    request
}

#[tokio::test]
async fn a_process_runs_as_the_user_that_is_asked_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start processes as somebody else");
        return;
    }
    let agent = Agent::start().await;
    // "nobody:" and an empty password.
    let result = run_as(&agent, "Basic bm9ib2R5Og==", in_directory("id -un; echo $USER $LOGNAME $HOME", "/"))
        .await
        .unwrap();
    assert!(result.text().starts_with("nobody\nnobody nobody "), "{}", result.text());
}

#[tokio::test]
async fn an_unknown_user_is_unauthenticated() {
    let agent = Agent::start().await;
    // "ghost:"
    let error = run_as(&agent, "Basic Z2hvc3Q6", shell("true")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(error.message.as_deref(), Some("invalid username: 'ghost'"));
}

#[tokio::test]
async fn the_working_directory_is_the_requests_or_the_sandboxs_or_home() {
    let agent = Agent::start().await;
    let client = agent.client();
    assert_eq!(run(&client, in_directory("pwd", "/usr")).await.unwrap().text(), "/usr\n");
    let home = format!("{}\n", OwnUser::look_up().home);
    assert_eq!(run(&client, in_directory("pwd", "~")).await.unwrap().text(), home);
    assert_eq!(run(&client, shell("pwd")).await.unwrap().text(), home);
    agent.post("/init", r#"{"defaultWorkdir":"/var"}"#).await;
    assert_eq!(run(&client, shell("pwd")).await.unwrap().text(), "/var\n");
}

#[tokio::test]
async fn a_working_directory_that_does_not_exist_is_named() {
    let agent = Agent::start().await;
    let error = run(&agent.client(), in_directory("true", "/no/such")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(error.message.as_deref(), Some("cwd '/no/such' does not exist"));
}

#[tokio::test]
async fn the_environment_is_the_sandboxs_and_the_requests_and_nothing_else() {
    let agent = Agent::start().await;
    agent.post("/init", r#"{"envVars":{"A":"sandbox","B":"sandbox"},"sandboxId":"sbx"}"#).await;
    let mut request = shell("env");
    request.process.get_or_insert_default().envs =
        [("B".to_owned(), "request".to_owned())].into_iter().collect();
    let result = run(&agent.client(), request).await.unwrap();
    let mut lines: Vec<&str> = result.text().lines().filter(|line| !line.starts_with("PWD=")).collect();
    lines.sort_unstable();
    let OwnUser { name, home } = OwnUser::look_up();
    assert_eq!(
        lines,
        [
            "A=sandbox",
            "B=request",
            "E2B_SANDBOX=true",
            "E2B_SANDBOX_ID=sbx",
            &format!("HOME={home}"),
            &format!("LOGNAME={name}"),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            &format!("USER={name}"),
        ]
    );
}

#[tokio::test]
async fn processes_can_be_sacrificed_when_memory_is_short() {
    let agent = Agent::start().await;
    let result = run(&agent.client(), shell("cat /proc/self/oom_score_adj")).await.unwrap();
    assert_eq!(result.text(), "100\n");
}
