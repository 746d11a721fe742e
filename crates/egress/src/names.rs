//! DNS for sandboxes that may resolve some names only.
//!
//! A query is read, and if its name is allowed, asked anew: nothing of the guest's reaches the resolver but the question,
//! and no name that is not allowed does. Everything else is answered REFUSED at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use torpor_types::{DomainName, Egress};

use crate::resolve::{Resolver, read_message, write_message};

/// Queries of one sandbox that are under way at a time; more wait.
const MAX_QUERIES: usize = 128;
/// How long a client may keep a TCP connection without a query.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Bytes an answer over UDP may have when the client does not say.
const DEFAULT_UDP_BYTES: u16 = 512;

/// Answers the queries of one sandbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NameServer {
    resolver: Resolver,
    policy: watch::Receiver<Arc<Egress>>,
    queries: Arc<Semaphore>,
}

/// An answer, and how long it may be over UDP.
struct Answer {
    bytes: Vec<u8>,
    max_udp_bytes: u16,
}

// === impl NameServer ===

impl NameServer {
    pub(crate) fn new(resolver: Resolver, policy: watch::Receiver<Arc<Egress>>) -> Self {
        Self { resolver, policy, queries: Arc::new(Semaphore::new(MAX_QUERIES)) }
    }

    /// Serves queries over UDP until dropped.
    pub(crate) async fn serve_udp(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut answering = tokio::task::JoinSet::new();
        loop {
            let received = socket.recv_from(&mut buffer).await;
            while answering.try_join_next().is_some() {}
            match received {
                Ok((length, client)) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
                    answering.spawn(async move { server.answer_udp(&socket, client, &query).await });
                }
                // What the last answer met: the client had gone.
                Err(error) => tracing::debug!(%error, "receiving a DNS query"),
            }
        }
    }

    /// Serves queries over TCP until dropped.
    pub(crate) async fn serve_tcp(self, listener: TcpListener) {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while clients.try_join_next().is_some() {}
            match accepted {
                Ok((client, _)) if clients.len() < MAX_QUERIES => {
                    let server = self.clone();
                    clients.spawn(async move {
                        // It ends with the client, whichever way that goes.
                        let _ = server.answer_tcp(client).await;
                    });
                }
                Ok(_) => {}
                Err(error) => crate::serve::accept_failed(&error).await,
            }
        }
    }

    async fn answer_udp(&self, socket: &UdpSocket, client: SocketAddr, query: &[u8]) {
        let Some(answer) = self.answer(query).await else { return };
        let bytes = match answer.bytes.len() > usize::from(answer.max_udp_bytes) {
            false => Some(answer.bytes),
            true => Message::from_vec(&answer.bytes).ok().and_then(|m| m.truncate().to_vec().ok()),
        };
        if let Some(bytes) = bytes {
            // Lost answers are asked for again.
            let _ = socket.send_to(&bytes, client).await;
        }
    }

    async fn answer_tcp(&self, mut client: TcpStream) -> io::Result<()> {
        loop {
            let query = tokio::time::timeout(IDLE_LIMIT, read_message(&mut client)).await??;
            match self.answer(&query).await {
                Some(answer) => write_message(&mut client, &answer.bytes).await?,
                None => return Ok(()),
            }
        }
    }

    /// `None` for what is no query at all.
    async fn answer(&self, query: &[u8]) -> Option<Answer> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let max_udp_bytes =
            query.edns.as_ref().map_or(DEFAULT_UDP_BYTES, |e| e.max_payload().max(DEFAULT_UDP_BYTES));
        let local = |code| local_answer(&query, code).map(|bytes| Answer { bytes, max_udp_bytes });
        let code = judge(&self.policy.borrow(), &query);
        match (code, query.queries.first()) {
            (Judgement::Ask, Some(question)) => {
                let _turn = self.queries.acquire().await.ok()?;
                let dnssec_ok = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
                match self.resolver.ask(question, dnssec_ok).await {
                    Ok(mut bytes) => {
                        bytes.get_mut(..2)?.copy_from_slice(&query.metadata.id.to_be_bytes());
                        Some(Answer { bytes, max_udp_bytes })
                    }
                    Err(error) => {
                        tracing::info!(%error, name = %question.name, "a sandbox's DNS query was not answered");
                        local(ResponseCode::ServFail)
                    }
                }
            }
            (Judgement::Nothing, _) => local(ResponseCode::NoError),
            (Judgement::Refuse, question) => {
                tracing::debug!(name = ?question.map(|q| q.name.to_string()), "refused a sandbox's DNS query");
                local(ResponseCode::Refused)
            }
            (Judgement::Ask, None) => None,
        }
    }
}

/// What becomes of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Ask,
    /// There is no such record, as far as the sandbox has to know.
    Nothing,
    Refuse,
}

fn judge(egress: &Egress, query: &Message) -> Judgement {
    let [question] = query.queries.as_slice() else { return Judgement::Refuse };
    let name: Option<DomainName> = question.name.to_ascii().parse().ok();
    let allowed = query.metadata.op_code == OpCode::Query
        && question.query_class == DNSClass::IN
        && name.is_some_and(|name| egress.allows_name(&name));
    match question.query_type {
        _ if !allowed => Judgement::Refuse,
        // They carry the keys with which clients hide the server name, by which alone connections are allowed.
        RecordType::HTTPS | RecordType::SVCB => Judgement::Nothing,
        _ => Judgement::Ask,
    }
}

fn local_answer(query: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(query.queries.iter().cloned());
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    #[test]
    fn only_allowed_names_are_asked_for_and_none_that_hides_the_server_name() {
        let egress: Egress = Egress {
            allow_out: vec!["*.example.com".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            ..Egress::default()
        };
        for (name, kind, expected) in [
            ("a.Example.com.", RecordType::A, Judgement::Ask),
            ("a.example.com.", RecordType::TXT, Judgement::Ask),
            ("a.example.com.", RecordType::HTTPS, Judgement::Nothing),
            ("example.com.", RecordType::A, Judgement::Refuse),
            ("secret.evil.net.", RecordType::A, Judgement::Refuse),
            ("secret.evil.net.", RecordType::HTTPS, Judgement::Refuse),
            (".", RecordType::NS, Judgement::Refuse),
            ("1.2.0.192.in-addr.arpa.", RecordType::PTR, Judgement::Refuse),
        ] {
            assert_eq!(judge(&egress, &query(name, kind)), expected, "{name} {kind}");
        }
        let mut two = query("a.example.com.", RecordType::A);
        two.add_query(Query::query(Name::from_ascii("secret.evil.net.").unwrap(), RecordType::A));
        assert_eq!(judge(&egress, &two), Judgement::Refuse);
    }

    #[test]
    fn a_refusal_repeats_the_question_and_its_number() {
        let query = query("evil.net.", RecordType::A);
        let answer = Message::from_vec(&local_answer(&query, ResponseCode::Refused).unwrap()).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer.queries, query.queries);
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    }
}
