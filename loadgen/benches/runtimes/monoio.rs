//! monoio, with its ring as it makes it and as the server has it made.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use ::monoio::fs::File;
use ::monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use ::monoio::net::{TcpListener, TcpStream};
use ::monoio::{IoUringDriver, Runtime, RuntimeBuilder};
use anyhow::{Context, ensure};
use nix::libc;
use terrane_ocssd::AlignedBuf;

use crate::job::{BLOCK_BYTES, CONNECTIONS, ECHO_BYTES, EchoJob, Lap, ReadJob, Reads};
use crate::raw::{ENTRIES, Ring};

fn runtime(ring: Ring) -> anyhow::Result<Runtime<IoUringDriver>> {
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(ENTRIES)
        .uring_builder(ring.builder())
        .build()
        .context("cannot make a runtime")
}

pub(crate) fn read(job: &ReadJob, ring: Ring) -> anyhow::Result<Reads> {
    runtime(ring)?.block_on(async {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&job.path)?;
        let file = Rc::new(File::from_std(file)?);
        let lap = Rc::new(Lap::begin(job.window)?);
        let tasks: Vec<_> = (0..job.depth)
            .map(|_| {
                let (file, lap, mut offsets) = (file.clone(), lap.clone(), job.offsets());
                ::monoio::spawn(async move {
                    let mut buf = AlignedBuf::zeroed(BLOCK_BYTES);
                    let mut reads = 0;
                    while lap.goes_on() {
                        let result;
                        (result, buf) = file.read_at(buf, offsets.next()).await;
                        ensure!(result? == BLOCK_BYTES, "a short read");
                        reads += 1;
                    }
                    Ok(reads)
                })
            })
            .collect();
        let mut reads = 0;
        for task in tasks {
            reads += task.await?;
        }
        lap.end(reads)
    })
}

pub(crate) fn echo(job: EchoJob, ring: Ring) -> anyhow::Result<()> {
    runtime(ring)?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        job.listening(listener.local_addr()?)?;
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tasks.push(::monoio::spawn(serve(stream)));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut buf = Vec::with_capacity(ECHO_BYTES);
    loop {
        let result;
        (result, buf) = stream.read(buf).await;
        // The client closes without a word; whatever is not read then is no matter.
        if !matches!(result, Ok(1..)) {
            return Ok(());
        }
        let result;
        (result, buf) = stream.write_all(buf).await;
        if result.is_err() {
            return Ok(());
        }
    }
}
