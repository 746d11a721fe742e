//! Routing, streaming, upgrades, refusals.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use torpor_gateway::TrafficNow;

use crate::support::{Sandbox, ask, client, closed_port, gateway, http_program, raw_program, soon, to};

#[tokio::test]
async fn requests_reach_the_port_they_name_by_host_or_headers_and_the_api_otherwise() {
    let program = http_program(|request: Request<Incoming>| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let forwarded = request.headers()["x-forwarded-for"].to_str().unwrap().to_owned();
        let text = format!("{} {} host={host} for={forwarded}", request.method(), request.uri());
        Response::new(Full::new(Bytes::from(text)))
    })
    .await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;

    let by_host = to(program, "GET", "/a/b?c=%20d");
    let expected = format!("GET /a/b?c=%20d host={program}-isandbox.example.org for=127.0.0.1");
    assert_eq!(ask(address, by_host).await, (200, expected));

    let by_header = Request::get("/sandboxes")
        .header("host", "localhost")
        .header("e2b-sandbox-id", "isandbox")
        .header("e2b-sandbox-port", program.to_string());
    let expected = "GET /sandboxes host=localhost for=127.0.0.1".to_owned();
    assert_eq!(ask(address, by_header).await, (200, expected));

    let to_api = Request::post("/sandboxes/isandbox/connect")
        .header("host", "localhost")
        .header("e2b-sandbox-id", "isandbox")
        .header("e2b-sandbox-port", "49983");
    assert_eq!(ask(address, to_api).await, (200, "api /sandboxes/isandbox/connect".to_owned()));
    let health = Request::get("/health").header("host", "localhost");
    assert_eq!(ask(address, health).await, (200, "api /health".to_owned()));
}

#[tokio::test]
async fn refusals_have_the_status_and_body_sdks_expect() {
    let address = gateway(&Sandbox::new()).await;
    let port = closed_port().await;
    let (status, body) = ask(address, to(port, "GET", "/")).await;
    let expected = format!(
        r#"{{"sandboxId":"isandbox","message":"The sandbox is running but port is not open","port":{port},"code":502}}"#
    );
    assert_eq!((status, body), (502, expected));

    let health = |id: &str| {
        Request::get("/health")
            .header("host", "localhost")
            .header("e2b-sandbox-id", id)
            .header("e2b-sandbox-port", "49983")
    };
    let not_found = r#"{"sandboxId":"ipaused","message":"The sandbox was not found","code":502}"#.to_owned();
    assert_eq!(ask(address, health("ipaused")).await, (502, not_found));
    assert_eq!(ask(address, health("ibusy")).await.0, 409);
    assert_eq!(ask(address, health("I_X")).await.0, 400);

    let init = Request::post("/init").header("host", "49983-isandbox.example.org");
    let (status, body) = ask(address, init).await;
    assert_eq!(status, 404);
    assert!(body.contains("reserved for the E2B control plane"), "{body}");

    let page = to(port, "GET", "/").header("accept", "text/html").header("user-agent", "Mozilla/5.0");
    let (status, body) = ask(address, page).await;
    assert_eq!(status, 502);
    assert!(body.starts_with("<!doctype html>"), "{body}");
}

#[tokio::test]
async fn chunks_travel_both_ways_as_they_come() {
    // The program answers every chunk before the next one is sent: any buffering would be a deadlock.
    let program = http_program(|request: Request<Incoming>| async move {
        let chunks = request.into_body().into_data_stream();
        Response::new(StreamBody::new(chunks.map(|chunk| {
            let text = format!("<{}>", String::from_utf8_lossy(&chunk.unwrap()));
            Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
        })))
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    let (mut sender, receiver) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let request = to(program, "POST", "/").body(StreamBody::new(receiver)).unwrap();
    let mut client = client(address).await;
    let mut answer = soon(client.send_request(request)).await.unwrap().into_body().into_data_stream();
    for word in ["one", "two", "three"] {
        sender.send(Ok(Frame::data(Bytes::from(word)))).await.unwrap();
        assert_eq!(soon(answer.next()).await.unwrap().unwrap(), format!("<{word}>"));
    }
    drop(sender);
    assert!(soon(answer.next()).await.is_none());
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_in_both_directions() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 100;
    let program = http_program(|request: Request<Incoming>| async move {
        let mut received = 0;
        let mut body = request.into_body().into_data_stream();
        while let Some(chunk) = body.next().await {
            received += chunk.unwrap().len();
        }
        let chunk = Bytes::from(vec![7; CHUNK]);
        let chunks = futures::stream::repeat(chunk).take(received / CHUNK);
        Response::new(StreamBody::new(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)))))
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    let chunks = futures::stream::repeat(Bytes::from(vec![3; CHUNK])).take(CHUNKS);
    let body = StreamBody::new(chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let mut client = client(address).await;
    let response = client.send_request(to(program, "POST", "/").body(body).unwrap()).await.unwrap();
    let mut received = 0;
    let mut body = response.into_body().into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.iter().all(|byte| *byte == 7));
        received += chunk.len();
    }
    assert_eq!(received, CHUNK * CHUNKS);
}

#[tokio::test]
async fn connections_to_a_port_are_used_again() {
    let program = http_program(|_| async { Response::new(Full::new(Bytes::from("ok"))) }).await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;
    for _ in 0..10 {
        assert_eq!(ask(address, to(program, "GET", "/")).await.0, 200);
    }
    // A connection returns to the pool a moment after its answer was read, so that a second one may be made.
    assert!(sandbox.connections.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn http2_in_clear_text_is_understood() {
    let program = http_program(|request: Request<Incoming>| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        Response::new(Full::new(Bytes::from(format!("{:?} {host}", request.version()))))
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{program}-isandbox.example.org/");
    let response = sender.send_request(Request::get(uri).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("HTTP/1.1 {program}-isandbox.example.org"));
}

async fn websocket_echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
                let (sink, stream) = socket.split();
                let _ = stream.take_while(|m| std::future::ready(m.is_ok())).forward(sink).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn web_sockets_work_and_are_cut_when_the_sandbox_stops() {
    let program = websocket_echo().await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;
    let mut request = format!("ws://{address}/chat").into_client_request().unwrap();
    request.headers_mut().insert("host", format!("{program}-isandbox.example.org").parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    for length in [1, 1000, 1_000_000] {
        let message = Message::binary(vec![5; length]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), message);
    }
    sandbox.closed.cancel();
    assert!(!matches!(soon(socket.next()).await, Some(Ok(Message::Binary(_) | Message::Text(_)))));
}

#[tokio::test]
async fn an_exchange_counts_until_its_last_byte_and_a_web_socket_is_work_until_it_is_closed() {
    let program = http_program(|request: Request<Incoming>| async move {
        Response::new(StreamBody::new(
            request
                .into_body()
                .into_data_stream()
                .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk.unwrap()))),
        ))
    })
    .await;
    let sandbox = Sandbox::new();
    let traffic = sandbox.upstream.traffic().clone();
    let address = gateway(&sandbox).await;
    let until = async |wanted: &dyn Fn(TrafficNow) -> bool| {
        soon(async {
            while !wanted(traffic.now()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    let (mut sender, receiver) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let request = to(program, "POST", "/").body(StreamBody::new(receiver)).unwrap();
    let mut one = client(address).await;
    let mut answer = soon(one.send_request(request)).await.unwrap().into_body().into_data_stream();
    sender.send(Ok(Frame::data(Bytes::from("one")))).await.unwrap();
    assert_eq!(soon(answer.next()).await.unwrap().unwrap(), "one");
    assert!(traffic.now().oldest.is_some());
    drop(sender);
    assert!(soon(answer.next()).await.is_none());
    until(&|now| now.oldest.is_none()).await;
    assert_eq!(traffic.now().last_work, None, "it was over at once");

    let program = websocket_echo().await;
    let mut request = format!("ws://{address}/chat").into_client_request().unwrap();
    request.headers_mut().insert("host", format!("{program}-isandbox.example.org").parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert!(traffic.now().is_work);
    drop(socket);
    until(&|now| !now.is_work).await;
    assert!(traffic.now().last_work.is_some());
}

#[tokio::test]
async fn a_stopped_sandbox_cuts_streams_at_once_and_then_is_not_found() {
    let program = http_program(|_| async {
        let first = futures::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from("first")))]);
        Response::new(StreamBody::new(first.chain(futures::stream::pending())))
    })
    .await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;
    let mut client = client(address).await;
    let request = to(program, "GET", "/").body(Empty::<Bytes>::new()).unwrap();
    let mut body = soon(client.send_request(request)).await.unwrap().into_body().into_data_stream();
    assert_eq!(soon(body.next()).await.unwrap().unwrap(), "first");
    sandbox.closed.cancel();
    assert!(soon(body.next()).await.unwrap().is_err(), "a cut stream must not look complete");
    assert_eq!(ask(address, to(program, "GET", "/")).await.0, 502);
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_when_the_sandbox_stops_is_told_so() {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let program = http_program(move |_| {
        let arrived = arrived.clone();
        async move {
            arrived.send(()).unwrap();
            std::future::pending::<Response<Full<Bytes>>>().await
        }
    })
    .await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;
    let answer = tokio::spawn(ask(address, to(program, "GET", "/slow")));
    soon(arrivals.recv()).await.unwrap();
    sandbox.closed.cancel();
    let (status, body) = soon(answer).await.unwrap();
    assert_eq!(status, 502);
    assert!(body.contains("The sandbox was not found"), "{body}");
}

#[tokio::test]
async fn idle_connections_are_closed_when_the_sandbox_stops() {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let program = raw_program(move |mut stream| {
        let ended = ended.clone();
        async move {
            let mut request = [0; 4096];
            assert_ne!(stream.read(&mut request).await.unwrap(), 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            while stream.read(&mut request).await.is_ok_and(|n| n > 0) {}
            ended.send(()).unwrap();
        }
    })
    .await;
    let sandbox = Sandbox::new();
    let address = gateway(&sandbox).await;
    assert_eq!(ask(address, to(program, "GET", "/")).await, (200, "ok".to_owned()));
    assert!(ends.try_recv().is_err(), "the connection should have been kept");
    sandbox.closed.cancel();
    soon(ends.recv()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_connection_to_the_sandbox_with_it() {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let program = raw_program(move |mut stream| {
        let ended = ended.clone();
        async move {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            if request[..n].starts_with(b"GET /stream") {
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
                stream.write_all(head).await.unwrap();
            }
            while stream.read(&mut request).await.is_ok_and(|n| n > 0) {}
            ended.send(()).unwrap();
        }
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    for path in ["/stream", "/silent"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {program}-isandbox.example.org\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        if path == "/stream" {
            let mut answer = String::new();
            while !answer.contains("first") {
                let mut buffer = [0; 1024];
                let n = soon(stream.read(&mut buffer)).await.unwrap();
                answer.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
        }
        drop(stream);
        soon(ends.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_on_a_connection_the_program_just_closed_is_sent_again() {
    // Every connection answers once, keeps silent about closing, and closes at the next request.
    let program = raw_program(|mut stream| async move {
        let mut request = [0; 4096];
        if stream.read(&mut request).await.is_ok_and(|n| n > 0) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let _ = stream.read(&mut request).await;
        }
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    for _ in 0..5 {
        assert_eq!(ask(address, to(program, "GET", "/")).await, (200, "ok".to_owned()));
    }
}

#[tokio::test]
async fn a_program_that_closes_without_an_answer_is_named_as_the_culprit() {
    let program = raw_program(|mut stream| async move {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
    })
    .await;
    let address = gateway(&Sandbox::new()).await;
    let (status, body) = ask(address, to(program, "POST", "/")).await;
    assert_eq!(status, 502);
    assert!(body.contains("closed the connection without an answer"), "{body}");
}
