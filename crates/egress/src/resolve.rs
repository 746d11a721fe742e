//! Questions to the node's DNS resolver, asked from inside a sandbox's namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use torpor_network::NamespaceSockets;
use torpor_types::DomainName;

use crate::error::ResolveError;

const DNS_PORT: u16 = 53;
/// How long one attempt waits for the answer.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;
/// Bytes an answer may have over UDP without being split on common links.
const MAX_UDP_BYTES: u16 = 1232;

/// Asks the node's resolver, with sockets of one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) sockets: NamespaceSockets,
}

// === impl Resolver ===

impl Resolver {
    /// The IPv4 addresses of `name`.
    pub(crate) async fn addresses(&self, name: &DomainName) -> Result<Vec<Ipv4Addr>, ResolveError> {
        let wire = |error: &dyn std::fmt::Display| ResolveError::Wire(error.to_string());
        let asked = Name::from_ascii(format!("{name}.")).map_err(|e| wire(&e))?;
        let reply = self.ask(&Query::query(asked, RecordType::A), false).await?;
        let reply = Message::from_vec(&reply).map_err(|e| wire(&e))?;
        let addresses = reply.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// The resolver's answer to one question, as it came.
    pub(crate) async fn ask(&self, question: &Query, dnssec_ok: bool) -> Result<Vec<u8>, ResolveError> {
        let server = SocketAddr::from((self.server.ok_or(ResolveError::NoResolver)?, DNS_PORT));
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..ATTEMPTS {
            let mut message = Message::query();
            message.metadata.recursion_desired = true;
            message.add_query(question.clone());
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES).set_dnssec_ok(dnssec_ok);
            message.set_edns(edns);
            let bytes = message.to_vec().map_err(|error| ResolveError::Wire(error.to_string()))?;
            match timeout(ATTEMPT_LIMIT, self.exchange(server, &bytes, &message)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last.into())
    }

    async fn exchange(&self, server: SocketAddr, query: &[u8], message: &Message) -> io::Result<Vec<u8>> {
        let socket = self.sockets.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let Some(reply) = answer_to(message, &buffer[..length]) else { continue };
            if !reply.metadata.truncation {
                buffer.truncate(length);
                return Ok(buffer);
            }
            return self.exchange_by_tcp(server, query, message).await;
        }
    }

    async fn exchange_by_tcp(
        &self,
        server: SocketAddr,
        query: &[u8],
        message: &Message,
    ) -> io::Result<Vec<u8>> {
        let mut stream = self.sockets.tcp().await?.connect(server).await?;
        write_message(&mut stream, query).await?;
        let reply = read_message(&mut stream).await?;
        match answer_to(message, &reply) {
            Some(_) => Ok(reply),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the resolver answered another question")),
        }
    }
}

/// The message in `bytes`, if it answers `query`.
fn answer_to(query: &Message, bytes: &[u8]) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let same_question = reply.queries.len() == 1
        && reply.queries.iter().zip(&query.queries).all(|(there, here)| {
            there.name == here.name
                && there.query_type == here.query_type
                && there.query_class == here.query_class
        });
    let is_answer = reply.metadata.message_type == MessageType::Response
        && reply.metadata.op_code == OpCode::Query
        && reply.metadata.id == query.metadata.id;
    (is_answer && same_question).then_some(reply)
}

/// Reads a message as it is framed over TCP.
pub(crate) async fn read_message(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message as it is framed over TCP.
pub(crate) async fn write_message(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_u16(length).await?;
    stream.write_all(message).await?;
    stream.flush().await
}
