//! Servers that break the protocol: the client says so, and neither hangs nor panics.

use std::time::Duration;
use terrane_client::testing::{Fault, MemoryCluster, Shape};
use terrane_client::wire::{
    BODY_BYTES_MAX, ErrorReply, Opcode, Request, RequestHead, Response, encode_connection_error,
};
use terrane_client::{Client, GetError, PutError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What a get says when the server answers it with `bytes`, always.
async fn get_answered_with(bytes: Vec<u8>) -> GetError {
    let cluster = MemoryCluster::new(Shape::default());
    let settings = Client::builder().timeout(Duration::from_millis(300));
    let client = cluster.client_with(settings).await.unwrap();
    cluster.on_call(move |call| match call.request {
        Request::Get { .. } => Fault::Bytes(bytes.clone()),
        _ => Fault::None,
    });
    let error = client.get("k").await.unwrap_err();
    // A sound server at the same place would be used again at once.
    cluster.on_call(|_| Fault::None);
    assert_eq!(client.get("k").await, Ok(None));
    error
}

fn last_problem(error: GetError) -> String {
    match error {
        GetError::TimedOut { last, .. } => last.as_deref().unwrap_or_default().to_owned(),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn another_protocol_is_recognized() {
    let problem = last_problem(get_answered_with(b"HTTP/1.1 400 Bad Request\r\n".repeat(10)).await);
    assert!(problem.contains("not a Terrane peer"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn another_version_is_recognized() {
    let mut bytes = Vec::new();
    Response::Pong.encode(Opcode::Ping as u8, 1, 0, &mut bytes);
    bytes[4] = 7;
    let problem = last_problem(get_answered_with(bytes).await);
    assert!(problem.contains("version 7"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn damage_is_recognized() {
    let mut bytes = Vec::new();
    Response::Written { version: 1 }.encode(Opcode::Get as u8, 1, 0, &mut bytes);
    *bytes.last_mut().unwrap() ^= 1;
    let problem = last_problem(get_answered_with(bytes).await);
    assert!(problem.contains("damaged in transit"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_request_from_a_server_is_refused() {
    let mut bytes = Vec::new();
    Request::Ping.encode(&RequestHead { request_id: 1, ..RequestHead::default() }, &mut bytes);
    let problem = last_problem(get_answered_with(bytes).await);
    assert!(problem.contains("sent a request"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_error_says_why_it_closes() {
    let mut bytes = Vec::new();
    encode_connection_error(&ErrorReply::Unavailable { why: "too many connections".into() }, 1, &mut bytes);
    let problem = last_problem(get_answered_with(bytes).await);
    assert!(problem.contains("too many connections"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn an_oversized_claim_is_refused() {
    let mut bytes = Vec::new();
    Response::Pong.encode(Opcode::Ping as u8, 1, 0, &mut bytes);
    bytes[32..36].copy_from_slice(&(BODY_BYTES_MAX + 1).to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
    let problem = last_problem(get_answered_with(bytes).await);
    assert!(problem.contains("the limit is"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn replies_to_nobody_are_ignored() {
    // Ids nobody uses: another slot, another generation. The answer that follows is the one that counts.
    let cluster = MemoryCluster::new(Shape::default());
    let client = cluster.client().await.unwrap();
    cluster.on_call(|call| {
        let Request::Get { .. } = call.request else { return Fault::None };
        let id = call.header.request_id;
        let mut bytes = Vec::new();
        let wrong = Response::Value { version: 1, value: "wrong".into() };
        for other in [u64::MAX, id + 1, id + (1 << 32), id + (1 << 63)] {
            wrong.encode(call.header.opcode, other, 1, &mut bytes);
        }
        let right = Response::Value { version: 2, value: "right".into() };
        right.encode(call.header.opcode, id, 1, &mut bytes);
        // A second answer to the same request is to nobody as well.
        wrong.encode(call.header.opcode, id, 1, &mut bytes);
        Fault::Bytes(bytes)
    });
    for _ in 0..10 {
        assert_eq!(client.get("k").await.unwrap().unwrap().value, "right");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_another_kind_is_a_protocol_error() {
    let cluster = MemoryCluster::new(Shape::default());
    let client = cluster.client().await.unwrap();
    cluster.on_call(|call| {
        if call.request.key().is_none() {
            return Fault::None;
        }
        let mut bytes = Vec::new();
        Response::Pong.encode(Opcode::Ping as u8, call.header.request_id, 1, &mut bytes);
        Fault::Bytes(bytes)
    });
    assert!(matches!(client.get("k").await, Err(GetError::Protocol { .. })));
    assert!(matches!(client.put("k", "v").await, Err(PutError::Protocol { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_is_a_protocol_error() {
    let cluster = MemoryCluster::new(Shape::default());
    let client = cluster.client().await.unwrap();
    cluster.on_call(|call| {
        let Request::Get { .. } = call.request else { return Fault::None };
        // A pong's empty body under a get's opcode: sound as a frame, cut as a value.
        let mut bytes = Vec::new();
        Response::Pong.encode(Opcode::Get as u8, call.header.request_id, 1, &mut bytes);
        Fault::Bytes(bytes)
    });
    let error = client.get("k").await.unwrap_err();
    assert!(matches!(&error, GetError::Protocol { why } if why.contains("version")), "{error}");
}

#[tokio::test]
async fn connecting_to_something_else_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 16];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"220 mail.example.com ESMTP ready, and so on and so forth\r\n").await;
        }
    });
    let error = Client::connect(&address).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("not a Terrane peer"), "{error}");
}
