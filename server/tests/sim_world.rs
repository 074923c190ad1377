//! The simulator as a shard sees it: time, streams, faults, media, and that a seed repeats a run exactly.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use terrane_ocssd::{AlignedBuf, ChunkId, Durability, Geometry, Media, MediaError, SimOptions};
use terrane_server::mesh::Mesh;
use terrane_server::seam::{Bell, ByteReader, ByteWriter, Closer, Doorbell, Listener, Time, World};
use terrane_server::sim::{NetworkOptions, SimDoorbell, SimReader, SimWorld, Simulation, Stalled};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 7000;

/// What a reader saw until its stream ended.
#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    /// How often bytes came.
    reads: usize,
    end: Option<Result<(), io::ErrorKind>>,
}

async fn listen_to(mut reader: SimReader, heard: Rc<RefCell<Heard>>) {
    loop {
        let (result, buf) = reader.read(BytesMut::with_capacity(4096)).await;
        let mut heard = heard.borrow_mut();
        match result {
            Ok(0) => heard.end = Some(Ok(())),
            Ok(_) => {
                heard.bytes.extend_from_slice(&buf);
                heard.reads += 1;
                continue;
            }
            Err(error) => heard.end = Some(Err(error.kind())),
        }
        return;
    }
}

/// Node `node` accepts on [`PORT`] and sends back whatever it reads.
fn spawn_echo(sim: &Simulation, node: u32) {
    let world = sim.world(node);
    let addr = sim.addr(node, PORT);
    sim.spawn(node, async move {
        let mut listener = world.listen(addr, false).await.unwrap();
        loop {
            let (mut reader, mut writer, _) = listener.accept().await.unwrap();
            world.spawn(async move {
                loop {
                    let (result, buf) = reader.read(BytesMut::with_capacity(1000)).await;
                    let Ok(1..) = result else { return };
                    if writer.write_all(buf.to_vec()).await.0.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Connects, again and again until it succeeds.
async fn connect_at_last(
    world: &SimWorld,
    addr: std::net::SocketAddr,
) -> (SimReader, <SimWorld as World>::Writer) {
    loop {
        if let Ok(halves) = world.connect(addr).await {
            return halves;
        }
        world.sleep(Duration::from_millis(1)).await;
    }
}

/// Writes and then stays, so that the connection stays.
async fn write_and_stay(mut writer: impl ByteWriter, bytes: Vec<u8>) {
    // A fault may break the connection at any point; the reader's side of it says what happened.
    let _ = writer.write_all(bytes).await;
    std::future::pending::<()>().await;
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn virtual_time_jumps_and_timers_ring_in_order() {
    let sim = Simulation::new(1);
    let rung = Rc::new(RefCell::new(Vec::new()));
    for seconds in [3600, 1, 60] {
        let (world, rung) = (sim.world(0), rung.clone());
        sim.spawn(0, async move {
            world.sleep(Duration::from_secs(seconds)).await;
            rung.borrow_mut().push(seconds);
        });
    }
    sim.run_until(|| sim.tasks() == 0, Duration::from_secs(3601)).unwrap();
    assert_eq!(*rung.borrow(), [1, 60, 3600]);
    assert!(sim.elapsed() >= Duration::from_secs(3600));
}

#[test]
fn a_run_that_cannot_go_on_says_so() {
    let sim = Simulation::new(2);
    sim.spawn(0, std::future::pending());
    let idle = sim.run_until(|| false, SECOND).unwrap_err();
    assert!(matches!(idle, Stalled::Idle { seed: 2, tasks: 1, .. }), "{idle}");
    let world = sim.world(0);
    sim.spawn(0, async move {
        loop {
            world.sleep(Duration::from_millis(10)).await;
        }
    });
    let late = sim.run_until(|| false, SECOND).unwrap_err();
    assert!(matches!(late, Stalled::Deadline { seed: 2, tasks: 2, .. }), "{late}");
}

#[test]
fn a_task_that_spins_meets_its_deadline() {
    let sim = Simulation::new(3);
    sim.spawn(
        0,
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }),
    );
    assert!(sim.run_until(|| false, Duration::from_millis(10)).is_err());
}

#[test]
fn an_echo_comes_back_whole_whatever_the_seed() {
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        spawn_echo(&sim, 1);
        let (world, addr) = (sim.world(0), sim.addr(1, PORT));
        let sent = pattern(600_000);
        let heard = Rc::new(RefCell::new(Heard::default()));
        let (task_heard, task_sent) = (heard.clone(), sent.clone());
        sim.spawn(0, async move {
            let (reader, writer) = connect_at_last(&world, addr).await;
            world.spawn(listen_to(reader, task_heard));
            write_and_stay(writer, task_sent).await;
        });
        sim.run_until(|| heard.borrow().bytes.len() >= sent.len(), 60 * SECOND).unwrap();
        assert!(heard.borrow().bytes == sent, "seed {seed}");
        assert!(heard.borrow().reads > sent.len() / 4096 + 10, "some reads are short");
    }
}

#[test]
fn a_writer_waits_for_a_peer_that_does_not_read() {
    let options = NetworkOptions { window_bytes: 1000, ..NetworkOptions::default() };
    let sim = Simulation::with_network(4, options);
    let kept = Rc::new(RefCell::new(None));
    let (world, addr, keep) = (sim.world(1), sim.addr(1, PORT), kept.clone());
    sim.spawn(1, async move {
        let mut listener = world.listen(addr, false).await.unwrap();
        let (reader, writer, _) = listener.accept().await.unwrap();
        *keep.borrow_mut() = Some((reader, writer));
        std::future::pending::<()>().await;
    });
    let outcome = Rc::new(Cell::new(None));
    let closer = Rc::new(RefCell::new(None));
    let (world, its_outcome, its_closer) = (sim.world(0), outcome.clone(), closer.clone());
    sim.spawn(0, async move {
        let (_reader, mut writer) = connect_at_last(&world, addr).await;
        *its_closer.borrow_mut() = Some(writer.closer());
        let (result, buf) = writer.write_all(vec![7; 1001]).await;
        its_outcome.set(Some((result.is_ok(), buf.len())));
    });
    sim.run_for(10 * SECOND);
    assert_eq!(outcome.get(), None, "one byte does not fit");
    closer.borrow().as_ref().unwrap().close();
    sim.run_for(SECOND);
    assert_eq!(outcome.get(), Some((false, 1001)), "the closer ends it, and the buffer comes back");
    let heard = Rc::new(RefCell::new(Heard::default()));
    let (reader, _writer) = kept.take().unwrap();
    sim.block_on(listen_to(reader, heard.clone()));
    let heard = heard.borrow();
    assert_eq!((heard.bytes.len(), heard.end), (1000, Some(Ok(()))), "what was sent before the close");
}

#[test]
fn a_write_after_the_peer_closed_fails() {
    let sim = Simulation::new(5);
    let (world, addr) = (sim.world(1), sim.addr(1, PORT));
    sim.spawn(1, async move {
        let mut listener = world.listen(addr, false).await.unwrap();
        drop(listener.accept().await.unwrap());
        std::future::pending::<()>().await;
    });
    let world = sim.world(0);
    sim.block_on(async {
        let (mut reader, mut writer) = connect_at_last(&world, addr).await;
        let (result, _) = reader.read(BytesMut::with_capacity(10)).await;
        assert_eq!(result.unwrap(), 0);
        let (result, _) = writer.write_all(vec![1]).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn listening_follows_the_rules_of_sockets() {
    let sim = Simulation::new(6);
    let world = sim.world(3);
    sim.block_on(async {
        let kind = |result: io::Result<_>| result.map(drop).unwrap_err().kind();
        let addr = sim.addr(3, PORT);
        let first = world.listen(addr, false).await.unwrap();
        assert_eq!(kind(world.listen(addr, false).await), io::ErrorKind::AddrInUse);
        assert_eq!(kind(world.listen(addr, true).await), io::ErrorKind::AddrInUse);
        drop(first);
        let one = world.listen(addr, true).await.unwrap();
        let two = world.listen(addr, true).await.unwrap();
        assert_eq!(one.local_addr(), two.local_addr());
        let elsewhere = world.listen(sim.addr(4, PORT), false).await;
        assert_eq!(kind(elsewhere), io::ErrorKind::AddrNotAvailable);
        let any = world.listen(sim.addr(3, 0), false).await.unwrap();
        assert_ne!(any.local_addr().port(), 0);
        let loopback = world.listen(([127, 0, 0, 1], 9000).into(), false).await.unwrap();
        world.connect(loopback.local_addr()).await.unwrap();
        let other = sim.world(4);
        let refused = other.connect(([127, 0, 0, 1], 9000).into()).await;
        assert_eq!(refused.map(drop).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let refused = other.connect(sim.addr(3, 9000)).await;
        assert_eq!(refused.map(drop).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn shared_listeners_share() {
    let sim = Simulation::new(7);
    let accepted = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
    let addr = sim.addr(1, PORT);
    for count in &accepted {
        let (world, count) = (sim.world(1), count.clone());
        sim.spawn(1, async move {
            let mut listener = world.listen(addr, true).await.unwrap();
            loop {
                listener.accept().await.unwrap();
                count.set(count.get() + 1);
            }
        });
    }
    let world = sim.world(0);
    sim.block_on(async {
        for _ in 0..50 {
            connect_at_last(&world, addr).await;
        }
        world.sleep(SECOND).await;
    });
    assert_eq!(accepted[0].get() + accepted[1].get(), 50);
    assert!(accepted.iter().all(|count| count.get() > 5), "{accepted:?}");
}

/// A stream of node 0 to node 1 that has begun when this returns; what node 1 heard, and how it ended.
fn begin_stream(sim: &Simulation, bytes: Vec<u8>) -> Rc<RefCell<Heard>> {
    let heard = Rc::new(RefCell::new(Heard::default()));
    let (world, addr, its_heard) = (sim.world(1), sim.addr(1, PORT), heard.clone());
    sim.spawn(1, async move {
        let mut listener = world.listen(addr, false).await.unwrap();
        let (reader, _writer, _) = listener.accept().await.unwrap();
        listen_to(reader, its_heard).await;
        std::future::pending::<()>().await;
    });
    let world = sim.world(0);
    sim.spawn(0, async move {
        let (_reader, writer) = connect_at_last(&world, addr).await;
        write_and_stay(writer, bytes).await;
    });
    let begun = heard.clone();
    sim.run_until(move || begun.borrow().reads > 0, 10 * SECOND).unwrap();
    heard
}

#[test]
fn a_cut_stalls_a_stream_and_a_heal_ends_the_stall_or_the_stream() {
    let sent = pattern(2_000_000);
    let (mut survived, mut broke_early, mut broke_at_heal) = (0, 0, 0);
    for seed in 0..40 {
        let sim = Simulation::new(seed);
        let heard = begin_stream(&sim, sent.clone());
        if seed % 2 == 0 {
            sim.cut(0, 1);
        } else {
            sim.cut_one_way(0, 1);
        }
        // What had arrived before may still be read.
        sim.run_for(Duration::from_millis(10));
        let before = heard.borrow().bytes.len();
        sim.run_for(10 * SECOND);
        assert_eq!(heard.borrow().bytes.len(), before, "seed {seed}: nothing passes a cut");
        let early = heard.borrow().end;
        assert!(matches!(early, None | Some(Err(io::ErrorKind::TimedOut))), "seed {seed}: {early:?}");
        sim.heal();
        sim.run_for(10 * SECOND);
        let heard = heard.borrow();
        assert!(sent.starts_with(&heard.bytes), "seed {seed}: an unbroken beginning");
        match (early, heard.end) {
            (Some(_), _) => broke_early += 1,
            (None, Some(end)) => {
                assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
                broke_at_heal += 1;
            }
            (None, None) => {
                assert_eq!(heard.bytes.len(), sent.len(), "seed {seed}: all of it arrives late");
                survived += 1;
            }
        }
    }
    assert!(survived > 2 && broke_early > 2 && broke_at_heal > 2, "{survived} {broke_early} {broke_at_heal}");
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() {
    for seed in 0..10 {
        let sim = Simulation::new(seed);
        let sent = pattern(10_000_000);
        let heard = begin_stream(&sim, sent);
        sim.cut_one_way(1, 0);
        let before = heard.borrow().bytes.len();
        sim.run_for(Duration::from_millis(100));
        let after = heard.borrow().bytes.len();
        assert!(after > before, "seed {seed}");
        assert!(after < before + (1 << 20), "seed {seed}: but unacknowledged, it stops at the window");
        let world = sim.world(0);
        let attempt = sim.block_on(world.connect(sim.addr(1, PORT)));
        assert_eq!(attempt.map(drop).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_killed_node_resets_its_peers_and_refuses_until_it_is_back() {
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        let heard = begin_stream(&sim, pattern(10_000_000));
        sim.kill(0);
        assert!(!sim.is_running(0));
        sim.run_for(SECOND);
        assert_eq!(heard.borrow().end, Some(Err(io::ErrorKind::ConnectionReset)), "seed {seed}");

        sim.kill(1);
        let world = sim.world(2);
        let attempt = sim.block_on(world.connect(sim.addr(1, PORT)));
        assert_eq!(attempt.map(drop).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(sim.tasks(), 0, "seed {seed}: all tasks of both nodes are gone");
        sim.boot(1);
        spawn_echo(&sim, 1);
        sim.block_on(connect_at_last(&world, sim.addr(1, PORT)));
    }
}

#[test]
fn a_crashed_machine_is_silent_and_its_peers_learn_of_it_by_its_return_at_the_latest() {
    let (mut at_once, mut at_return) = (0, 0);
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        let heard = begin_stream(&sim, pattern(10_000_000));
        sim.crash(0);
        let world = sim.world(2);
        let attempt = sim.block_on(world.connect(sim.addr(0, PORT)));
        assert_eq!(attempt.map(drop).unwrap_err().kind(), io::ErrorKind::TimedOut);
        sim.run_for(5 * SECOND);
        if heard.borrow().end.is_some() {
            at_once += 1;
        } else {
            at_return += 1;
        }
        sim.boot(0);
        sim.run_for(SECOND);
        assert_eq!(heard.borrow().end, Some(Err(io::ErrorKind::ConnectionReset)), "seed {seed}");
    }
    assert!(at_once > 2 && at_return > 2, "{at_once} {at_return}");
}

#[test]
fn a_handle_of_a_former_life_reaches_nothing() {
    let sim = Simulation::new(8);
    let old = sim.world(0);
    sim.kill(0);
    sim.boot(0);
    let ran = Rc::new(Cell::new(false));
    let set = ran.clone();
    old.spawn(async move { set.set(true) });
    sim.run_for(SECOND);
    assert!(!ran.get());
    let listening = sim.block_on(old.listen(sim.addr(0, PORT), false));
    assert_eq!(listening.unwrap_err().kind(), io::ErrorKind::NetworkDown);
}

#[test]
fn a_paused_node_stands_still_and_then_goes_on() {
    let sim = Simulation::new(9);
    let ticks = Rc::new(Cell::new(0));
    let (world, count) = (sim.world(0), ticks.clone());
    sim.spawn(0, async move {
        loop {
            world.sleep(Duration::from_millis(10)).await;
            count.set(count.get() + 1);
        }
    });
    sim.run_for(SECOND);
    let before = ticks.get();
    assert!(before > 50);
    let shown = sim.world(0).now();
    sim.pause(0, 2 * SECOND);
    sim.pause(0, SECOND);
    sim.run_for(Duration::from_millis(1900));
    assert_eq!(ticks.get(), before, "the longer pause counts");
    assert!(sim.world(0).now() - shown >= Duration::from_millis(1900), "its clock goes on");
    sim.run_for(SECOND);
    assert!(ticks.get() > before + 50);
}

#[test]
fn clocks_of_nodes_differ_and_drift() {
    let sim = Simulation::new(10);
    let (steady, fast) = (sim.world(0), sim.world(1));
    assert_ne!(steady.now(), fast.now());
    sim.set_drift(1, 1000);
    let (start, start_fast) = (steady.now(), fast.now());
    sim.run_for(1000 * SECOND);
    let (elapsed, elapsed_fast) = (steady.now() - start, fast.now() - start_fast);
    assert_eq!(elapsed_fast.saturating_sub(elapsed).as_millis(), 1000);
    // A timer follows the clock of its node.
    let at = fast.now() + 100 * SECOND;
    let before = sim.elapsed();
    sim.block_on(fast.sleep_until(at));
    assert!(fast.now() >= at);
    let took = sim.elapsed() - before;
    assert!(took < 100 * SECOND && took > 99 * SECOND, "{took:?}");
    let before = steady.now();
    sim.crash(0);
    sim.boot(0);
    let after = sim.world(0).now();
    assert!(after.as_nanos().abs_diff(before.as_nanos()) > 1_000_000, "another boot, another clock");
}

fn geometry() -> Geometry {
    Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 4,
        chunk_sectors: 64,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 0,
    }
}

#[test]
fn media_take_time_and_follow_their_node_through_its_lives() {
    let sim = Simulation::new(11);
    let shard = sim.add_media(0, geometry(), SimOptions::default());
    let media = sim.media(0, shard);
    sim.block_on(media.reset(ChunkId(0))).unwrap();
    let mut buf = AlignedBuf::zeroed(512);
    buf.fill(7);
    let before = sim.elapsed();
    let (result, _) = sim.block_on(media.write(ChunkId(0), 0, buf, Durability::Durable));
    result.unwrap();
    let took = sim.elapsed() - before;
    assert!(took >= Duration::from_micros(100) && took < Duration::from_micros(400), "{took:?}");

    sim.crash(0);
    let (result, _) = sim.block_on(media.read(ChunkId(0), 0, AlignedBuf::zeroed(512)));
    assert!(matches!(result, Err(MediaError::PowerLost)));
    sim.boot(0);
    let (result, _) = sim.block_on(media.read(ChunkId(0), 0, AlignedBuf::zeroed(512)));
    assert!(matches!(result, Err(MediaError::PowerLost)), "a handle of the former life");
    let media = sim.media(0, shard);
    let (result, buf) = sim.block_on(media.read(ChunkId(0), 0, AlignedBuf::zeroed(512)));
    result.unwrap();
    assert!(buf.iter().all(|byte| *byte == 7), "what was durable is there");

    sim.kill(0);
    sim.boot(0);
    let (result, _) = sim.block_on(media.read(ChunkId(0), 0, AlignedBuf::zeroed(512)));
    assert!(matches!(result, Err(MediaError::PowerLost)), "a process's handles die with it");
    let media = sim.media(0, shard);
    sim.block_on(media.flush()).unwrap();
}

#[test]
fn shards_of_a_node_talk_over_the_mesh() {
    let sim = Simulation::new(12);
    let doors: Vec<_> = (0..3).map(|_| SimDoorbell::new()).collect();
    let bells: Vec<_> = doors.iter().map(Doorbell::bell).collect();
    let Mesh { ends, mut control } = Mesh::<u64, u64, &'static str, _>::new(4, &bells);
    let answered = Rc::new(Cell::new(0));
    for (end, mut door) in ends.into_iter().zip(doors) {
        let end = Rc::new(end);
        if end.shard() != 2 {
            let end = end.clone();
            sim.spawn(0, async move {
                for request in 0..100 {
                    while end.try_send(2, request).is_err() {
                        end.credit_returned(2).await;
                    }
                }
            });
        }
        let answered = answered.clone();
        sim.spawn(0, async move {
            loop {
                end.wait(&mut door).await;
                while let Some((from, request)) = end.recv_request() {
                    end.reply(from, request);
                }
                while let Some((from, _)) = end.recv_reply() {
                    assert_eq!(from, 2);
                    answered.set(answered.get() + 1);
                }
                if let Some(message) = end.recv_control() {
                    assert_eq!(message, "stop");
                    return;
                }
            }
        });
    }
    sim.run_until(|| answered.get() == 200, SECOND).unwrap();
    for shard in 0..3 {
        control.send(shard, "stop").unwrap();
    }
    sim.run_until(|| sim.tasks() == 0, SECOND).unwrap();
}

#[test]
fn a_ring_before_the_wait_counts_and_counts_once() {
    let sim = Simulation::new(13);
    let mut door = SimDoorbell::new();
    let bell = door.bell();
    bell.ring();
    bell.ring();
    sim.block_on(door.wait());
    let woken = Rc::new(Cell::new(false));
    let set = woken.clone();
    sim.spawn(0, async move {
        door.wait().await;
        set.set(true);
    });
    sim.run_for(SECOND);
    assert!(!woken.get());
    bell.ring();
    sim.run_until(|| woken.get(), SECOND).unwrap();
}

/// A run with a bit of everything, and what came of it.
fn eventful_run(seed: u64) -> (u64, Duration, Vec<usize>) {
    let sim = Simulation::new(seed);
    let shard = sim.add_media(2, geometry(), SimOptions { yields_max: 3, ..SimOptions::default() });
    spawn_echo(&sim, 1);
    let heard: Vec<_> = (0..4).map(|_| Rc::new(RefCell::new(Heard::default()))).collect();
    for (client, heard) in (2..).zip(&heard) {
        let (world, addr, heard) = (sim.world(client), sim.addr(1, PORT), heard.clone());
        sim.spawn(client, async move {
            loop {
                let (reader, writer) = connect_at_last(&world, addr).await;
                let media_bytes = world.random() % 60_000;
                world.spawn(listen_to(reader, heard.clone()));
                world.spawn(write_and_stay(writer, pattern(media_bytes as usize)));
                world.sleep(Duration::from_millis(300)).await;
            }
        });
    }
    let media = sim.media(2, shard);
    sim.spawn(2, async move {
        for chunk in 0..4 {
            media.reset(ChunkId(chunk)).await.unwrap();
            for sector in 0..64 {
                let buf = AlignedBuf::zeroed(512);
                let (result, _) = media.write(ChunkId(chunk), sector, buf, Durability::Durable).await;
                result.unwrap();
            }
        }
    });
    sim.run_for(SECOND);
    sim.cut(1, 3);
    sim.set_drift(2, 200);
    sim.run_for(SECOND);
    sim.kill(4);
    sim.pause(5, Duration::from_millis(700));
    sim.run_for(SECOND);
    sim.heal();
    sim.crash(1);
    sim.run_for(SECOND);
    sim.boot(1);
    sim.boot(4);
    spawn_echo(&sim, 1);
    sim.run_for(2 * SECOND);
    let counts = heard.iter().map(|heard| heard.borrow().bytes.len()).collect();
    (sim.trace_hash(), sim.elapsed(), counts)
}

#[test]
fn a_seed_repeats_its_run_exactly_and_another_seed_does_not() {
    let first = eventful_run(77);
    assert_eq!(first, eventful_run(77));
    let other = eventful_run(78);
    assert_ne!(first.0, other.0);
    assert!(first.2.iter().all(|bytes| *bytes > 0), "{:?}", first.2);
}

#[test]
fn block_on_may_hold_the_simulation_and_break_it() {
    let sim = Simulation::new(14);
    spawn_echo(&sim, 1);
    let world = sim.world(0);
    let mut answered = 0;
    sim.block_on(async {
        for round in 0..3 {
            let (mut reader, mut writer) = connect_at_last(&world, sim.addr(1, PORT)).await;
            writer.write_all(vec![round]).await.0.unwrap();
            let (result, buf) = reader.read(BytesMut::with_capacity(1)).await;
            assert_eq!((result.unwrap(), &buf[..]), (1, &[round][..]));
            answered += 1;
            sim.crash(1);
            sim.boot(1);
            spawn_echo(&sim, 1);
        }
    });
    assert_eq!(answered, 3);
}

#[test]
fn dropping_the_simulation_drops_what_runs_in_it() {
    struct OnDrop(Rc<Cell<u32>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    async fn hold(guard: OnDrop, forever: impl Future<Output = ()>) {
        forever.await;
        drop(guard);
    }
    let dropped = Rc::new(Cell::new(0));
    let sim = Simulation::new(15);
    spawn_echo(&sim, 1);
    let world = sim.world(0);
    sim.spawn(0, hold(OnDrop(dropped.clone()), async move { world.sleep_until(Time::MAX).await }));
    sim.spawn(1, hold(OnDrop(dropped.clone()), std::future::pending()));
    sim.run_for(SECOND);
    sim.kill(1);
    assert_eq!(dropped.get(), 1);
    drop(sim);
    assert_eq!(dropped.get(), 2);
}
