//! compio, as it comes.

use std::rc::Rc;

use ::compio::BufResult;
use ::compio::buf::IoBuf;
use ::compio::fs::OpenOptions;
use ::compio::io::{AsyncRead, AsyncReadAt, AsyncWriteExt};
use ::compio::net::{TcpListener, TcpStream};
use ::compio::runtime::{Runtime, spawn};
use anyhow::{Context, anyhow, ensure};
use nix::libc;

use crate::job::{BLOCK_BYTES, CONNECTIONS, ECHO_BYTES, EchoJob, Lap, ReadJob, Reads};

fn runtime() -> anyhow::Result<Runtime> {
    let runtime = Runtime::new().context("cannot make a runtime")?;
    // It would fall back to epoll without a word.
    ensure!(runtime.driver_type().is_iouring(), "it did not take io_uring");
    Ok(runtime)
}

pub(crate) fn read(job: &ReadJob) -> anyhow::Result<Reads> {
    runtime()?.block_on(async {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&job.path).await?;
        let file = Rc::new(file);
        let lap = Rc::new(Lap::begin(job.window)?);
        let tasks: Vec<_> = (0..job.depth)
            .map(|_| {
                let (file, lap, mut offsets) = (file.clone(), lap.clone(), job.offsets());
                spawn(async move {
                    // Direct I/O wants an aligned part of it.
                    let memory = vec![0_u8; 2 * BLOCK_BYTES];
                    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
                    let mut buf = memory.slice(start..start + BLOCK_BYTES);
                    let mut reads = 0;
                    while lap.goes_on() {
                        let result;
                        BufResult(result, buf) = file.read_at(buf, offsets.next()).await;
                        ensure!(result? == BLOCK_BYTES, "a short read");
                        reads += 1;
                    }
                    Ok(reads)
                })
            })
            .collect();
        let mut reads = 0;
        for task in tasks {
            reads += task.await.map_err(|error| anyhow!("a task failed: {error:?}"))??;
        }
        lap.end(reads)
    })
}

pub(crate) fn echo(job: EchoJob) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        job.listening(listener.local_addr()?)?;
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tasks.push(spawn(serve(stream)));
        }
        for task in tasks {
            task.await.map_err(|error| anyhow!("a task failed: {error:?}"))?;
        }
        Ok(())
    })
}

/// Ends when the client closes, which it does without a word.
async fn serve(mut stream: TcpStream) {
    let mut buf = Vec::with_capacity(ECHO_BYTES);
    loop {
        let result;
        BufResult(result, buf) = stream.read(buf).await;
        if !matches!(result, Ok(1..)) {
            return;
        }
        let result;
        BufResult(result, buf) = stream.write_all(buf).await;
        if result.is_err() {
            return;
        }
        buf.clear();
    }
}
