//! Creates that are sent again.

use super::*;

const GOOD: &str = r#"{"templateID":"base","metadata":{"a":"1","b":"2"}}"#;

#[tokio::test]
async fn a_create_that_is_sent_again_with_its_key_makes_no_second_sandbox() {
    let server = Server::start().await;
    let create =
        async |key: &str, body: &str| server.create_once(&server.key, key, "/v2/sandboxes", body).await;
    let (status, first) = create("one", GOOD).await;
    assert_eq!(status, 201);
    let same = r#"{ "metadata": {"b":"2","a":"1"}, "timeout": 300, "templateID": "base" }"#;
    assert_eq!(create("one", same).await, (201, first.clone()), "the same, said otherwise");
    assert_ne!(create("two", GOOD).await.1["sandboxID"], first["sandboxID"]);
    let (status, refused) = create("one", r#"{"templateID":"base","timeout":60}"#).await;
    assert_eq!((status, &refused["code"]), (409, &json!(409)), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains(first["sandboxID"].as_str().unwrap()), "{refused}");

    let id = first["sandboxID"].as_str().unwrap();
    server.ask("POST", &format!("/sandboxes/{id}/pause"), "").await;
    assert_eq!(create("one", GOOD).await.1["sandboxID"], *id, "a paused sandbox is still there");
    server.ask("DELETE", &format!("/sandboxes/{id}"), "").await;
    let (status, anew) = create("one", r#"{"templateID":"base","timeout":60}"#).await;
    assert_eq!(status, 201, "a killed one is created anew, whatever is asked: {anew}");
    assert_ne!(anew["sandboxID"], *id);
}

#[tokio::test]
async fn a_key_is_free_again_when_its_create_failed_and_belongs_to_one_team() {
    let server = Server::start().await;
    let (status, _) = server.create_once(&server.key, "k", "/sandboxes", r#"{"templateID":"nope"}"#).await;
    assert_eq!(status, 404);
    let (status, mine) = server.create_once(&server.key, "k", "/sandboxes", GOOD).await;
    assert_eq!(status, 201, "{mine}");
    let other = server.key_of_another_team().await;
    let (status, theirs) = server.create_once(&other, "k", "/sandboxes", r#"{"templateID":"base"}"#).await;
    assert_eq!(status, 201, "{theirs}");
    assert_ne!(mine["sandboxID"], theirs["sandboxID"]);
    let (status, refused) = server.create_once(&server.key, "Not This", "/sandboxes", GOOD).await;
    assert_eq!(status, 400, "{refused}");
}

#[tokio::test]
async fn requests_with_one_key_at_the_same_time_share_one_sandbox_also_if_the_first_client_hangs_up() {
    let server = Arc::new(Server::start().await);
    let held = server.sandboxes.creating.lock().await;
    let ask = |server: Arc<Server>| async move {
        server.create_once(&server.key, "k", "/v2/sandboxes", GOOD).await.1["sandboxID"].clone()
    };
    let impatient = tokio::spawn(ask(server.clone()));
    while server
        .registry
        .create_key(&team_of(&server).await, "k", Timestamp::UNIX_EPOCH)
        .await
        .unwrap()
        .is_none()
    {
        tokio::task::yield_now().await;
    }
    impatient.abort();
    let patient: Vec<_> = (0..4).map(|_| tokio::spawn(ask(server.clone()))).collect();
    drop(held);
    let mut ids = Vec::new();
    for answer in patient {
        ids.push(answer.await.unwrap());
    }
    assert!(ids.iter().all(|id| id.is_string() && *id == ids[0]), "{ids:?}");
    assert_eq!(server.sandboxes.views.lock().unwrap().len(), 1);
}

async fn team_of(server: &Server) -> TeamId {
    server.registry.team_named(keys::DEFAULT_TEAM).await.unwrap().id
}
