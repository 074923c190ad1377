//! The reactor against the real kernel: loopback sockets, eventfds and threads.

use std::thread;

use terrane_ocssd::SimMedia;

use super::*;
use crate::mesh::Mesh;

type TestReactor = Reactor<SimMedia>;

fn on_shard<F: Future>(main: impl FnOnce(TestReactor) -> F) -> F::Output {
    run_shard(None, 256, main).expect("these tests need io_uring")
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn read_to_end(mut reader: TcpReader) -> io::Result<BytesMut> {
    let mut buf = BytesMut::new();
    loop {
        buf.reserve(4096);
        let (result, filled) = reader.read(buf).await;
        buf = filled;
        if result? == 0 {
            return Ok(buf);
        }
    }
}

#[test]
fn an_echo_comes_back_whole() {
    on_shard(|reactor| async move {
        let mut port = reactor.listen(loopback(), false).await.unwrap();
        let addr = port.local_addr();
        reactor.spawn(async move {
            let (mut reader, mut writer, _) = port.accept().await.unwrap();
            loop {
                let (result, buf) = reader.read(BytesMut::with_capacity(100_000)).await;
                if result.unwrap() == 0 {
                    return;
                }
                writer.write_all(buf.to_vec()).await.0.unwrap();
            }
        });
        let (mut reader, mut writer) = reactor.connect(addr).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let to_write = sent.clone();
        reactor.spawn(async move {
            writer.write_all(to_write).await.0.unwrap();
            // The connection must live until the echo has come.
            std::future::pending::<()>().await;
        });
        let mut received = BytesMut::with_capacity(sent.len());
        while received.len() < sent.len() {
            let before = received.len();
            let (result, buf) = reader.read(received).await;
            received = buf;
            assert_eq!(received.len(), before + result.unwrap(), "a read appends");
        }
        assert!(received == sent);
    });
}

#[test]
fn a_closer_ends_a_stuck_write_and_a_waiting_read() {
    on_shard(|reactor| async move {
        let mut port = reactor.listen(loopback(), false).await.unwrap();
        let (reader, mut writer) = reactor.connect(port.local_addr()).await.unwrap();
        let (mut peer_reader, _peer_writer, _) = port.accept().await.unwrap();
        let closer = writer.closer();
        reactor.spawn(async move {
            // Once the first bytes are here the write is under way; it is too large to ever end unread.
            peer_reader.read(BytesMut::with_capacity(16)).await.0.unwrap();
            closer.close();
            std::future::pending::<()>().await;
        });
        let (result, _) = writer.write_all(vec![0; 64 << 20]).await;
        assert!(result.is_err());
        assert!(read_to_end(reader).await.is_ok_and(|rest| rest.is_empty()));
    });
}

#[test]
fn a_closer_that_outlives_its_connection_touches_nothing() {
    on_shard(|reactor| async move {
        let mut port = reactor.listen(loopback(), false).await.unwrap();
        let (reader, writer) = reactor.connect(port.local_addr()).await.unwrap();
        let (peer_reader, _peer_writer, _) = port.accept().await.unwrap();
        let closer = writer.closer();
        drop((reader, writer));
        assert!(read_to_end(peer_reader).await.is_ok_and(|rest| rest.is_empty()));
        // This one may well get the same descriptor.
        let (_reader, mut writer) = reactor.connect(port.local_addr()).await.unwrap();
        let (mut peer_reader, _peer_writer, _) = port.accept().await.unwrap();
        closer.close();
        writer.write_all(b"still open".to_vec()).await.0.unwrap();
        let (result, _) = peer_reader.read(BytesMut::with_capacity(64)).await;
        assert_eq!(result.unwrap(), 10);
    });
}

#[test]
fn an_exclusive_port_is_refused_to_the_second_and_a_shared_one_is_not() {
    on_shard(|reactor| async move {
        let exclusive = reactor.listen(loopback(), false).await.unwrap();
        for shared in [false, true] {
            let error = reactor.listen(exclusive.local_addr(), shared).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains(&exclusive.local_addr().to_string()));
        }
        let first = reactor.listen(loopback(), true).await.unwrap();
        let second = reactor.listen(first.local_addr(), true).await.unwrap();
        assert_eq!(first.local_addr(), second.local_addr());
    });
}

#[test]
fn nobody_listening_is_refused() {
    on_shard(|reactor| async move {
        // Bound, so that nobody else takes the port, but not listening.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&loopback().into()).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let error = reactor.connect(addr).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_sleep_is_never_short() {
    on_shard(|reactor| async move {
        let at = reactor.now() + Duration::from_millis(7);
        reactor.sleep_until(at).await;
        assert!(reactor.now() >= at);
        reactor.sleep_until(Time::ZERO).await;
    });
}

#[test]
fn a_ring_from_another_thread_wakes_a_shard_that_sleeps() {
    const ROUNDS: usize = 200;
    let (there, back) = (DoorbellKit::new().unwrap(), DoorbellKit::new().unwrap());
    let (ring_there, ring_back) = (there.bell(), back.bell());
    let echo = thread::spawn(move || {
        on_shard(|_| async move {
            let mut door = there.open().unwrap();
            for _ in 0..ROUNDS {
                door.wait().await;
                ring_back.ring();
            }
        });
    });
    on_shard(|_| async move {
        let mut door = back.open().unwrap();
        for _ in 0..ROUNDS {
            ring_there.ring();
            door.wait().await;
        }
    });
    echo.join().unwrap();
}

#[test]
fn a_dropped_wait_loses_no_ring() {
    on_shard(|_| async move {
        let kit = DoorbellKit::new().unwrap();
        kit.bell().ring();
        let mut door = kit.open().unwrap();
        {
            let mut wait = std::pin::pin!(door.wait());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending(), "the read needs the ring");
        }
        door.wait().await;
        let bell = door.bell();
        bell.ring();
        bell.ring();
        door.wait().await;
    });
}

#[test]
fn shards_on_threads_of_their_own_talk_over_the_mesh() {
    const MESSAGES: u64 = 5_000;
    let kits: Vec<_> = (0..2).map(|_| DoorbellKit::new().unwrap()).collect();
    let bells: Vec<_> = kits.iter().map(DoorbellKit::bell).collect();
    let Mesh { ends, mut control } = Mesh::<u64, u64, &'static str, _>::new(16, &bells);
    let threads: Vec<_> = ends
        .into_iter()
        .zip(kits)
        .map(|(end, kit)| {
            thread::spawn(move || {
                on_shard(|_| async move {
                    let mut door = kit.open().unwrap();
                    let asks = end.shard() == 0;
                    let (mut sent, mut answered) = (0, 0);
                    loop {
                        while asks && sent < MESSAGES && end.try_send(1, sent).is_ok() {
                            sent += 1;
                        }
                        end.wait(&mut door).await;
                        while let Some((from, request)) = end.recv_request() {
                            end.reply(from, request + 1);
                        }
                        while let Some((_, reply)) = end.recv_reply() {
                            answered += 1;
                            assert_eq!(reply, answered);
                        }
                        if asks && answered == MESSAGES {
                            return;
                        }
                        if let Some(message) = end.recv_control() {
                            assert_eq!(message, "stop");
                            return;
                        }
                    }
                });
            })
        })
        .collect();
    let mut threads = threads.into_iter();
    threads.next().unwrap().join().unwrap();
    control.send(1, "stop").unwrap();
    threads.next().unwrap().join().unwrap();
}

#[test]
fn a_shard_runs_where_it_is_pinned() {
    let cpu = *allowed_cpus().unwrap().last().unwrap();
    let ran_on = thread::spawn(move || {
        run_shard::<SimMedia, _>(Some(cpu), 256, |_| async { nix::sched::sched_getcpu().unwrap() })
    });
    assert_eq!(ran_on.join().unwrap().unwrap(), cpu);
    let missing = thread::spawn(|| run_shard::<SimMedia, _>(Some(1023), 256, |_| async {}));
    let error = missing.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("CPU 1023"), "{error}");
}
