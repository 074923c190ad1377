//! glommio, as it comes.

use std::rc::Rc;

use ::glommio::io::DmaFile;
use ::glommio::net::{TcpListener, TcpStream};
use ::glommio::{LocalExecutor, LocalExecutorBuilder, Placement, spawn_local};
use anyhow::{anyhow, ensure};
use futures_util::{AsyncReadExt, AsyncWriteExt};

use crate::job::{BLOCK_BYTES, CONNECTIONS, ECHO_BYTES, EchoJob, Lap, ReadJob, Reads};

fn executor() -> anyhow::Result<LocalExecutor> {
    // The thread is pinned already.
    let made = LocalExecutorBuilder::new(Placement::Unbound).make();
    made.map_err(|error| anyhow!("cannot make an executor: {error}"))
}

pub(crate) fn read(job: &ReadJob) -> anyhow::Result<Reads> {
    executor()?.run(async {
        let file = DmaFile::open(&job.path).await.map_err(|error| anyhow!("cannot open: {error}"))?;
        let file = Rc::new(file);
        let lap = Rc::new(Lap::begin(job.window)?);
        let tasks: Vec<_> = (0..job.depth)
            .map(|_| {
                let (file, lap, mut offsets) = (file.clone(), lap.clone(), job.offsets());
                spawn_local(async move {
                    let mut reads = 0;
                    while lap.goes_on() {
                        let read = file.read_at_aligned(offsets.next(), BLOCK_BYTES).await;
                        let read = read.map_err(|error| anyhow!("a read failed: {error}"))?;
                        ensure!(read.len() == BLOCK_BYTES, "a short read");
                        reads += 1;
                    }
                    anyhow::Ok(reads)
                })
            })
            .collect();
        let mut reads = 0;
        for task in tasks {
            reads += task.await?;
        }
        let reads = lap.end(reads)?;
        if let Ok(file) = Rc::try_unwrap(file) {
            file.close().await.map_err(|error| anyhow!("cannot close: {error}"))?;
        }
        Ok(reads)
    })
}

pub(crate) fn echo(job: EchoJob) -> anyhow::Result<()> {
    executor()?.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| anyhow!("cannot listen: {error}"))?;
        job.listening(listener.local_addr().map_err(|error| anyhow!("cannot listen: {error}"))?)?;
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = listener.accept().await.map_err(|error| anyhow!("cannot accept: {error}"))?;
            stream.set_nodelay(true).map_err(|error| anyhow!("cannot set up: {error}"))?;
            tasks.push(spawn_local(serve(stream)));
        }
        for task in tasks {
            task.await;
        }
        Ok(())
    })
}

/// Ends when the client closes, which it does without a word.
async fn serve(mut stream: TcpStream) {
    let mut buf = vec![0; ECHO_BYTES];
    while let Ok(read @ 1..) = stream.read(&mut buf).await {
        if stream.write_all(&buf[..read]).await.is_err() {
            return;
        }
    }
}
