//! NVMe commands through an io_uring of our own, awaited within the shard's reactor.
//!
//! Passthrough needs submission entries of 128 bytes and completion entries of 32 (without these the kernel answers
//! `EOPNOTSUPP`), which the reactor's ring does not have. So there is a second ring, and the reactor learns of its completions
//! through an eventfd that it polls like a socket: nothing spins, nothing blocks.
//!
//! ```text
//! a transfer --entry--> this ring --completion, then signal--> eventfd (the bell)
//!      ^                                                          |
//!      |  wakes the owner                     reactor's ring polls it
//!      +---- listener: silence the bell, then look at all completions
//! ```
//!
//! A **listener** is a task that waits for the bell once, wakes the owners, and leaves another behind it if something is still
//! in flight; so none is left when the ring is idle. It lives in the runtime that spawned it. If that one ends while the
//! listener waits, monoio neither drops it nor tells, and whoever comes in a later runtime would wait for ever. So **a
//! transfer that has to wait never relies on a listener that waits already: it wakes it**. In the same runtime that
//! only makes it look once more. In another it is not put into the queue, and nothing else holds it: it is dropped, and says so.
//! (monoio panics when a task of another runtime is woken. That is caught, but its message stands in the error output; and a
//! program built to abort on a panic ends there, where it would have waited for ever.)
//!
//! With that, a later runtime is served, and so is a future that was carried over into it. Tasks that the ended one left waiting
//! cannot be woken by anybody: their buffers stay with the ring, and their places are free as soon as the kernel is done. (A chunk
//! that such a task was writing stays busy: see [`ChunkOrder`](crate::chunk_order).) Two runtimes that take turns are not
//! served: what waits in the one is forgotten as soon as the other comes.
//!
//! No wake-up is lost:
//! - The kernel posts a completion first and rings the bell after. A listener silences it first (a read sets the eventfd to
//!   zero) and looks at the completions after. A completion that the look missed was posted after the look began, so the bell
//!   rings after it was silenced, and the next listener finds it ringing.
//! - Whoever waits for a completion or a place was polled while a listener was still to run in that runtime. One that is
//!   dropped before it ran says so.
//! - Only listeners look at completions, and a transfer is woken by its last one; nothing depends on a transfer being polled
//!   in time, or ever.
//!
//! Invariants:
//! - At most `depth` entries are in flight, and `depth` is at most the ring's size: neither queue overflows.
//!   Transfers wait for a place in the order they came.
//! - A buffer belongs to the ring from the first entry that names it until the last of these completed, even if
//!   the future is dropped, the ring is dropped, or the runtime ends. As long, the device stays locked.

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};

use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode};
use monoio::net::UnixStream;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::command::{COMMAND_BYTES, Command, URING_CMD_IO};
use super::status::Fault;
use crate::buffer::AlignedBuf;
use crate::line::{Line, Turn};
use crate::lock::LockedFile;

/// Entries in flight at once, unless said otherwise: more than a drive needs to be busy, and little memory.
pub(crate) const DEPTH: u32 = 128;

type Uring = IoUring<Entry128, cqueue::Entry32>;

/// A ring for commands to one namespace. Its transfers must be awaited within a monoio runtime with io_uring;
/// elsewhere they panic.
pub(crate) struct Ring {
    inner: Rc<Inner>,
}

struct Inner {
    uring: RefCell<Uring>,
    bell: Bell,
    device: LockedFile,
    depth: u32,
    state: RefCell<State>,
}

struct State {
    transfers: slab::Slab<Transfer>,
    /// Entries that the kernel has. A place is taken and used without a wait in between, so places are no more.
    in_flight: u32,
    /// Those of them whose transfer's future was dropped.
    abandoned: u32,
    /// Transfers that wait for a place.
    line: Line,
    listener: Listener,
}

/// What the listener is at. There is one at most.
enum Listener {
    /// There is none.
    None,
    /// It will look at the completions before its runtime sleeps, or is dropped with it.
    ToRun,
    /// It waits, unless its runtime ended. Nothing else holds it: without this, it is dropped.
    Waits(Wait),
}

/// What a listener waits for, and how it is woken before that.
struct Wait {
    rings: Pin<Box<dyn Future<Output = io::Result<()>>>>,
    listener: Waker,
}

impl Wait {
    /// Wakes the listener if it is of this runtime, and drops it if not.
    fn cut_short(self) {
        // Its other hold on the listener.
        drop(self.rings);
        // monoio panics where the task is another runtime's, unless it was woken there already.
        let _ = catch_unwind(AssertUnwindSafe(|| self.listener.wake_by_ref()));
    }
}

/// How the kernel tells of completions: an eventfd that is signalled with each.
struct Bell {
    event: EventFd,
    /// The same, as the reactor polls it. monoio polls sockets alone, and does not ask whether one is.
    polled: OnceCell<Rc<UnixStream>>,
}

impl Bell {
    fn of(uring: &Uring) -> io::Result<Self> {
        // Reads by a listener must not block: another may have silenced it.
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        uring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
        Ok(Self { event, polled: OnceCell::new() })
    }

    /// Joins the thread's runtime at its first use, since there may be none before.
    fn polled(&self) -> io::Result<&Rc<UnixStream>> {
        if let Some(polled) = self.polled.get() {
            return Ok(polled);
        }
        let polled = UnixStream::from_std(self.event.as_fd().try_clone_to_owned()?.into())?;
        Ok(self.polled.get_or_init(|| Rc::new(polled)))
    }

    /// Waits until it rings. It must have been [polled](Self::polled) before, where that could fail.
    fn rings(&self) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
        let polled = self.polled().expect("it was opened before the first transfer").clone();
        Box::pin(async move { polled.readable(false).await })
    }

    fn silence(&self) {
        // Nothing to read: it is silent.
        let _ = self.event.read();
    }
}

/// One buffer, and the entries that move parts of it.
struct Transfer {
    buf: AlignedBuf,
    parts_in_flight: u32,
    /// First part that failed, with what the completion said.
    failed: Option<(u32, i32)>,
    /// The value that came with a completion.
    answer: u64,
    owner: Option<Waker>,
    /// The future was dropped: nobody will come for the buffer.
    abandoned: bool,
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    failed: Option<(u32, i32)>,
    answer: u64,
}

/// A part of a transfer failed.
#[derive(Debug)]
pub(crate) struct PartFailed {
    /// Which part, counted from zero.
    pub(crate) part: u32,
    /// Why.
    pub(crate) fault: Fault,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.inner.state.borrow();
        f.debug_struct("Ring")
            .field("depth", &self.inner.depth)
            .field("in_flight", &state.in_flight)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring to `device` (a namespace's character device) with at most `depth` commands in flight.
    ///
    /// # Errors
    /// If the kernel has no io_uring with large entries (before Linux 5.19), forbids it, or lacks memory.
    pub(crate) fn new(device: LockedFile, depth: u32) -> io::Result<Self> {
        let uring = Uring::builder()
            // Completions need not interrupt us: we enter the kernel anyway before we sleep.
            .setup_coop_taskrun()
            .dontfork()
            .build(depth)
            .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINVAL) => {
                    let text =
                        "this kernel's io_uring has no large entries, which passthrough needs (Linux 5.19)";
                    io::Error::new(io::ErrorKind::Unsupported, text)
                }
                _ => error,
            })?;
        let state = State {
            transfers: slab::Slab::new(),
            in_flight: 0,
            abandoned: 0,
            line: Line::default(),
            listener: Listener::None,
        };
        let bell = Bell::of(&uring)?;
        let inner = Inner { uring: RefCell::new(uring), bell, device, depth, state: RefCell::new(state) };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Sends the `parts` commands that `command` makes, each for the next part of `buf` from byte `from` on, as fast as
    /// places become free and without regard to order. Resolves when all have completed, with the value that came with the last
    /// completion. After a failure no further part is sent.
    pub(crate) async fn transfer(
        &self,
        parts: u32,
        buf: AlignedBuf,
        from: usize,
        mut command: impl FnMut(u32) -> Command,
    ) -> (Result<u64, PartFailed>, AlignedBuf) {
        let device = Fd(self.inner.device.file().as_raw_fd());
        let (outcome, buf) = self
            .run(parts, buf, from, |part, addr| {
                let command = Command { addr, ..command(part) };
                let mut bytes = [0; 80];
                bytes[..COMMAND_BYTES].copy_from_slice(&command.encode());
                (
                    opcode::UringCmd80::new(device, URING_CMD_IO).cmd(bytes).build(),
                    command.data_bytes as usize,
                )
            })
            .await;
        let result = match outcome.failed {
            None => Ok(outcome.answer),
            Some((part, result)) => {
                // A result beyond any status comes from outside: a failure like another, nothing to panic over.
                let unknown = || Fault::Io(io::Error::other(format!("the kernel answered {result:#x}")));
                let fault = Fault::of_result(result).unwrap_or_else(unknown);
                Err(PartFailed { part, fault })
            }
        };
        (result, buf)
    }

    /// Sends one command that moves nothing.
    pub(crate) async fn command(&self, command: Command) -> Result<(), Fault> {
        assert_eq!(command.data_bytes, 0, "a command with data needs a buffer");
        let (result, _) = self.transfer(1, AlignedBuf::zeroed(0), 0, |_| command).await;
        result.map(drop).map_err(|failed| failed.fault)
    }

    /// As [`Self::transfer`], of any entries: `entry` gets the part and its address, and says how many bytes of the
    /// buffer it moves.
    async fn run(
        &self,
        parts: u32,
        buf: AlignedBuf,
        from: usize,
        mut entry: impl FnMut(u32, u64) -> (Entry128, usize),
    ) -> (Outcome, AlignedBuf) {
        // Where it cannot fail any more in a listener.
        if let Err(error) = self.inner.bell.polled() {
            let failed = Some((0, -error.raw_os_error().unwrap_or(Errno::EIO as i32)));
            return (Outcome { failed, answer: 0 }, buf);
        }
        let (base, len) = (buf.as_ptr() as u64, buf.len());
        let mut transfer = pin!(async {
            let transfer = Holding { inner: &self.inner, key: Some(self.inner.hold(buf)) };
            let mut done = from;
            for part in 0..parts {
                self.inner.place().await;
                if transfer.has_failed() {
                    self.inner.give_place_back();
                    break;
                }
                let (entry, bytes) = entry(part, base + done as u64);
                done += bytes;
                assert!(done <= len, "the parts are larger than the buffer");
                self.inner.submit(transfer.key(), part, entry);
            }
            transfer.completed().await
        });
        // Whether it waits for a completion or for a place, both take somebody who listens, in the runtime where it waits.
        poll_fn(|context| {
            // First, so that it is not among those whom another runtime left behind.
            self.inner.see_to_a_listener();
            let polled = transfer.as_mut().poll(context);
            if polled.is_pending() {
                self.inner.see_to_a_listener();
            }
            polled
        })
        .await
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.inner.state.borrow().transfers.len()
    }
}

/// The claim of a future on its transfer. Dropped before the end, it leaves the buffer to the ring.
struct Holding<'a> {
    inner: &'a Inner,
    key: Option<usize>,
}

impl Holding<'_> {
    fn key(&self) -> usize {
        self.key.expect("the transfer has not completed")
    }

    fn has_failed(&self) -> bool {
        self.inner.state.borrow().transfers[self.key()].failed.is_some()
    }

    async fn completed(mut self) -> (Outcome, AlignedBuf) {
        let key = self.key();
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            let transfer = &mut state.transfers[key];
            if transfer.parts_in_flight > 0 {
                transfer.owner = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        self.key = None;
        let transfer = self.inner.state.borrow_mut().transfers.remove(key);
        (Outcome { failed: transfer.failed, answer: transfer.answer }, transfer.buf)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let state = &mut *self.inner.state.borrow_mut();
            let transfer = &mut state.transfers[key];
            transfer.abandoned = true;
            transfer.owner = None;
            state.abandoned += transfer.parts_in_flight;
            if transfer.parts_in_flight == 0 {
                state.transfers.remove(key);
            }
        }
    }
}

impl Transfer {
    fn failed(&mut self, part: u32, result: i32) {
        if self.failed.is_none_or(|(first, _)| part < first) {
            self.failed = Some((part, result));
        }
    }
}

impl Inner {
    fn hold(&self, buf: AlignedBuf) -> usize {
        let transfer =
            Transfer { buf, parts_in_flight: 0, failed: None, answer: 0, owner: None, abandoned: false };
        self.state.borrow_mut().transfers.insert(transfer)
    }

    /// Waits for a place in the ring, and takes it.
    async fn place(&self) {
        let depth = self.depth;
        Turn::new(
            &self.state,
            |state| &mut state.line,
            move |state: &mut State| (state.in_flight < depth).then(|| state.in_flight += 1),
        )
        .await;
    }

    /// If something is in flight, a listener of this very runtime will run.
    fn see_to_a_listener(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.in_flight == 0 || matches!(state.listener, Listener::ToRun) {
            return;
        }
        // Then there is nobody to be woken, and no need to ask.
        let deserted = state.abandoned == state.in_flight;
        let last = std::mem::replace(&mut state.listener, Listener::ToRun);
        drop(state);
        if let Listener::Waits(wait) = last
            && !deserted
        {
            wait.cut_short();
            if matches!(self.state.borrow().listener, Listener::ToRun) {
                return;
            }
            self.forget_who_waits();
        }
        self.state.borrow_mut().listener = Listener::ToRun;
        monoio::spawn(Listening { inner: self.clone() }.listen());
    }

    /// Those who wait do so in a runtime that ended: they must not be woken, nor stand in the way of others.
    fn forget_who_waits(&self) {
        let mut state = self.state.borrow_mut();
        let line = state.line.forget();
        let owners: Vec<_> = state.transfers.iter_mut().map(|(_, transfer)| transfer.owner.take()).collect();
        drop(state);
        // Nothing else may hold those tasks. Dropped, they would let go of chunks and places for which others of them wait, and
        // wake those.
        std::mem::forget((line, owners));
    }

    fn give_place_back(&self) {
        let mut state = self.state.borrow_mut();
        state.in_flight -= 1;
        let next = state.line.front();
        drop(state);
        Line::wake(next);
    }

    /// Hands an entry, for which a place was taken, to the kernel.
    fn submit(&self, key: usize, part: u32, entry: Entry128) {
        self.state.borrow_mut().transfers[key].parts_in_flight += 1;
        let entry = entry.user_data(key as u64 | u64::from(part) << 32);
        let mut uring = self.uring.borrow_mut();
        // SAFETY: the descriptor stays open and the buffer that the entry names stays where it is and untouched by us until
        // the completion was seen: both are owned by `Inner`, whose drop waits for what is in flight.
        unsafe { uring.submission().push(&entry) }.expect("no more entries than places");
        loop {
            match uring.submit() {
                Ok(_) => break,
                // A signal, or the kernel is short of memory for a moment. Waiting elsewhere would not be better: the
                // entry is in the queue and cannot be taken back.
                Err(error)
                    if [Errno::EINTR as i32, Errno::EAGAIN as i32]
                        .map(Some)
                        .contains(&error.raw_os_error()) =>
                {
                    std::thread::yield_now();
                }
                Err(error) => panic!("the kernel refuses to be entered: {error}"),
            }
        }
    }

    /// Looks at every completion that is there.
    fn reap(&self) {
        loop {
            let next = self.uring.borrow_mut().completion().next();
            let Some(completion) = next else { return };
            let key = completion.user_data() as u32 as usize;
            let part = (completion.user_data() >> 32) as u32;
            self.complete(key, part, completion.result(), completion.big_cqe()[0]);
        }
    }

    fn complete(&self, key: usize, part: u32, result: i32, answer: u64) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        state.in_flight -= 1;
        let transfer = &mut state.transfers[key];
        transfer.parts_in_flight -= 1;
        state.abandoned -= u32::from(transfer.abandoned);
        if result == 0 {
            transfer.answer = answer;
        } else {
            transfer.failed(part, result);
        }
        let mut owner = None;
        if transfer.parts_in_flight == 0 {
            owner = transfer.owner.take();
            if transfer.abandoned {
                state.transfers.remove(key);
            }
        }
        let next = state.line.front();
        drop(borrowed);
        if let Some(owner) = owner {
            owner.wake();
        }
        Line::wake(next);
    }
}

/// A listener's claim on its ring. Dropped before its time, it says so.
struct Listening {
    inner: Rc<Inner>,
}

impl Listening {
    async fn listen(self) {
        // However it is woken, it looks.
        let heard = poll_fn(|context| {
            let last = std::mem::replace(&mut self.inner.state.borrow_mut().listener, Listener::ToRun);
            self.inner.reap();
            if self.inner.state.borrow().in_flight == 0 {
                return Poll::Ready(false);
            }
            let mut rings = match last {
                Listener::Waits(wait) => wait.rings,
                Listener::None | Listener::ToRun => self.inner.bell.rings(),
            };
            match rings.as_mut().poll(context) {
                Poll::Ready(result) => {
                    result.expect("an eventfd of our own can be polled");
                    Poll::Ready(true)
                }
                Poll::Pending => {
                    let wait = Wait { rings, listener: context.waker().clone() };
                    self.inner.state.borrow_mut().listener = Listener::Waits(wait);
                    Poll::Pending
                }
            }
        });
        if heard.await {
            let inner = self.inner.clone();
            drop(self);
            inner.bell.silence();
            inner.reap();
            // Behind those that were woken: what they send shares it.
            inner.see_to_a_listener();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let last = std::mem::replace(&mut self.inner.state.borrow_mut().listener, Listener::None);
        debug_assert!(!matches!(last, Listener::Waits(_)), "what waits is held by that");
    }
}

impl Drop for Inner {
    /// Waits, blocking, for what the kernel still has. That happens only if the runtime ended before.
    fn drop(&mut self) {
        while self.state.borrow().in_flight > 0 {
            let waited = self.uring.borrow_mut().submit_and_wait(1);
            if waited.is_err_and(|error| error.raw_os_error() != Some(Errno::EINTR as i32)) {
                // The buffers can never be known to be free: better lost than written into by the device later.
                std::mem::forget(std::mem::take(&mut self.state.get_mut().transfers));
                return;
            }
            self.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, PipeWriter, Write, pipe};
    use std::path::Path;
    use std::sync::Arc;
    use std::task::Context;

    use super::*;
    use crate::lock::{DeviceLock, LockError};
    use crate::probe::Kind;

    /// In a runtime as the server's: its ring runs deferred work only when it parks.
    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        run_with(builder, future)
    }

    fn run_with<T>(builder: io_uring::Builder, future: impl Future<Output = T>) -> T {
        let runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().uring_builder(builder).build();
        runtime.unwrap().block_on(future)
    }

    fn ring(depth: u32) -> Rc<Ring> {
        let file = tempfile::NamedTempFile::new().unwrap();
        ring_to(file.path(), depth)
    }

    /// A ring that alone holds the lock of its device.
    fn ring_to(path: &Path, depth: u32) -> Rc<Ring> {
        let lock = DeviceLock::take(path, Kind::RegularFile).unwrap();
        let device = LockedFile::new(File::open(path).unwrap(), Arc::new(lock));
        Rc::new(Ring::new(device, depth).unwrap())
    }

    /// Submits, and drops the future in flight.
    fn begin_and_drop<T>(operation: impl Future<Output = T>) {
        assert!(pin!(operation).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// Operations that stay in flight until the test says otherwise: each part of a transfer reads eight bytes from a pipe of
    /// its own.
    struct Pipes {
        readers: Rc<Vec<PipeReader>>,
        writers: Vec<PipeWriter>,
    }

    const BYTES: usize = 8;

    impl Pipes {
        fn new(count: usize) -> Self {
            let (readers, writers) = (0..count).map(|_| pipe().unwrap()).unzip();
            Self { readers: Rc::new(readers), writers }
        }

        fn let_go(&mut self, pipe: usize, byte: u8) {
            self.writers[pipe].write_all(&[byte; BYTES]).unwrap();
        }

        /// Reads from the pipes `first..first + parts`, each into its part of the buffer.
        fn read(
            &self,
            ring: &Rc<Ring>,
            first: usize,
            parts: u32,
        ) -> impl Future<Output = (Outcome, AlignedBuf)> + use<> {
            let (ring, readers) = (ring.clone(), self.readers.clone());
            async move {
                let buf = AlignedBuf::zeroed(parts as usize * BYTES);
                let entry = |part: u32, addr: u64| {
                    let pipe = Fd(readers[first + part as usize].as_raw_fd());
                    let read = opcode::Read::new(pipe, addr as *mut u8, BYTES as u32).build();
                    (Entry128::from(read), BYTES)
                };
                ring.run(parts, buf, 0, entry).await
            }
        }
    }

    /// A read says how many bytes it moved, which a command would call a failure.
    fn moved(part: u32) -> Option<(u32, i32)> {
        Some((part, BYTES as i32))
    }

    #[test]
    fn a_refused_command_gives_its_buffer_back() {
        let ring = ring(4);
        run(async {
            let buf = AlignedBuf::zeroed(4096);
            let address = buf.as_ptr();
            let (result, buf) = ring.transfer(1, buf, 0, |_| Command::read(1, 0, 8, 512)).await;
            assert_eq!((buf.as_ptr(), buf.len()), (address, 4096));
            // A file takes no commands.
            let failed = result.unwrap_err();
            let Fault::Io(error) = failed.fault else { panic!("{failed:?}") };
            assert_eq!((failed.part, error.raw_os_error()), (0, Some(Errno::EOPNOTSUPP as i32)));
            assert!(ring.command(Command::flush(1)).await.is_err());
            assert_eq!(ring.held(), 0);
        });
    }

    #[test]
    fn after_a_failed_part_no_more_are_sent() {
        let ring = ring(1);
        run(async {
            let mut sent = 0;
            let command = |_| {
                sent += 1;
                Command::read(1, 0, 1, 512)
            };
            let (result, _) = ring.transfer(5, AlignedBuf::zeroed(5 * 512), 0, command).await;
            assert_eq!(result.unwrap_err().part, 0);
            assert_eq!(sent, 1);
            // The place is free again.
            assert!(ring.command(Command::flush(1)).await.is_err());
        });
    }

    #[test]
    fn each_completion_wakes_its_owner() {
        let ring = ring(8);
        let mut pipes = Pipes::new(8);
        run(async {
            let tasks: Vec<_> = (0..8).map(|pipe| monoio::spawn(pipes.read(&ring, pipe, 1))).collect();
            monoio::spawn(async {}).await;
            for (pipe, task) in tasks.into_iter().enumerate().rev() {
                pipes.let_go(pipe, pipe as u8);
                let (outcome, buf) = task.await;
                assert_eq!((outcome.failed, &buf[..]), (moved(0), &[pipe as u8; BYTES][..]));
            }
            assert_eq!(ring.held(), 0);
        });
    }

    #[test]
    fn parts_of_one_buffer_complete_in_any_order() {
        let ring = ring(8);
        let mut pipes = Pipes::new(3);
        run(async {
            let task = monoio::spawn(pipes.read(&ring, 0, 3));
            for pipe in [2, 0, 1] {
                pipes.let_go(pipe, pipe as u8);
                monoio::spawn(async {}).await;
            }
            let (outcome, buf) = task.await;
            assert_eq!(buf.iter().copied().collect::<Vec<_>>(), [[0; 8], [1; 8], [2; 8]].concat());
            // Of several, the first part counts.
            assert_eq!(outcome.failed, moved(0));
        });
    }

    /// Without the line, the one that came last would take the free place.
    #[test]
    fn places_are_given_in_the_order_of_coming() {
        let ring = ring(2);
        let mut pipes = Pipes::new(4);
        run(async {
            let poll = |future: std::pin::Pin<&mut dyn Future<Output = (Outcome, AlignedBuf)>>| {
                future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
            };
            let (mut first, mut second) = (pin!(pipes.read(&ring, 0, 1)), pin!(pipes.read(&ring, 1, 1)));
            let (mut third, mut fourth) = (pin!(pipes.read(&ring, 2, 1)), pin!(pipes.read(&ring, 3, 1)));
            assert!(
                !poll(first.as_mut())
                    && !poll(second.as_mut())
                    && !poll(third.as_mut())
                    && !poll(fourth.as_mut())
            );
            let in_flight = || ring.inner.state.borrow().in_flight;
            assert_eq!((in_flight(), ring.inner.state.borrow().line.len()), (2, 2));
            pipes.let_go(1, 1);
            second.await;
            assert!(!poll(fourth.as_mut()));
            assert_eq!(in_flight(), 1, "the fourth took the third's place");
            assert!(!poll(third.as_mut()));
            assert_eq!((in_flight(), ring.inner.state.borrow().line.len()), (2, 1));
            for pipe in [0, 2, 3] {
                pipes.let_go(pipe, 1);
            }
            first.await;
            third.await;
            fourth.await;
        });
    }

    #[test]
    fn a_dropped_transfer_leaves_its_buffer_to_the_ring() {
        let ring = ring(4);
        let mut pipes = Pipes::new(2);
        run(async {
            begin_and_drop(pipes.read(&ring, 0, 1));
            assert_eq!(ring.held(), 1, "the kernel would write into freed memory");
            pipes.let_go(0, 7);
            pipes.let_go(1, 8);
            pipes.read(&ring, 1, 1).await;
            assert_eq!(ring.held(), 0);
        });
    }

    /// As above, but the ring goes as well: the listener holds it until the kernel gave the buffer back.
    #[test]
    fn a_dropped_ring_lives_until_its_buffers_are_back() {
        let (ring, again) = (ring(4), ring(4));
        let mut pipes = Pipes::new(1);
        run(async {
            begin_and_drop(pipes.read(&ring, 0, 1));
            let inner = Rc::downgrade(&ring.inner);
            drop(ring);
            monoio::spawn(async {}).await;
            assert!(inner.upgrade().is_some());
            pipes.let_go(0, 7);
            while inner.upgrade().is_some() {
                let mut other = Pipes::new(1);
                other.let_go(0, 1);
                // Something to wait for, so that the reactor looks at what completed.
                other.read(&again, 0, 1).await;
            }
        });
    }

    /// Whoever opened the device next would not expect what is still to come.
    #[test]
    fn the_device_stays_locked_until_what_was_dropped_is_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (ring, again) = (ring_to(file.path(), 4), ring(4));
        let mut pipes = Pipes::new(1);
        run(async {
            begin_and_drop(pipes.read(&ring, 0, 1));
            drop(ring);
            monoio::spawn(async {}).await;
            let take = || DeviceLock::take(file.path(), Kind::RegularFile);
            assert!(matches!(take(), Err(LockError::Held)));
            pipes.let_go(0, 7);
            while take().is_err() {
                let mut other = Pipes::new(1);
                other.let_go(0, 1);
                // Something to wait for, so that the reactor looks at what completed.
                other.read(&again, 0, 1).await;
            }
        });
    }

    fn poll_once<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// The listener of the first runtime never ran, or waits in it for ever.
    #[test]
    fn a_ring_serves_the_runtime_after_one_that_ended_in_the_midst() {
        for listener_ran in [false, true] {
            let ring = ring(2);
            let mut pipes = Pipes::new(5);
            run(async {
                begin_and_drop(pipes.read(&ring, 0, 1));
                begin_and_drop(pipes.read(&ring, 1, 1));
                if listener_ran {
                    monoio::spawn(async {}).await;
                }
            });
            let waits = matches!(ring.inner.state.borrow().listener, Listener::Waits(_));
            assert_eq!(waits, listener_ran);
            run(async {
                let mut waits = pin!(pipes.read(&ring, 2, 1));
                assert!(poll_once(waits.as_mut()).is_pending(), "there is no place yet");
                pipes.let_go(0, 1);
                pipes.let_go(2, 2);
                assert_eq!(waits.await.1[..], [2; BYTES]);
                // And so it goes on, though one is still in flight.
                pipes.let_go(3, 3);
                assert_eq!(pipes.read(&ring, 3, 1).await.1[..], [3; BYTES]);
                pipes.let_go(1, 1);
                pipes.let_go(4, 4);
                assert_eq!(pipes.read(&ring, 4, 1).await.1[..], [4; BYTES]);
            });
            assert_eq!(ring.held(), 0);
        }
    }

    /// monoio drops no task that waits: those of the first runtime look like any other. Fails (hangs) if the listener that waits
    /// there for ever is taken for one that will hear, if the third of its tasks keeps its place in the line, and (panics) if
    /// any of them is woken.
    #[test]
    fn a_runtime_is_served_although_tasks_of_one_that_ended_wait() {
        let ring = ring(2);
        let mut pipes = Pipes::new(5);
        run(async {
            // Two are in flight, the third waits for a place.
            for pipe in 0..3 {
                monoio::spawn(pipes.read(&ring, pipe, 1));
            }
            monoio::spawn(async {}).await;
        });
        assert_eq!((ring.held(), ring.inner.state.borrow().line.len()), (3, 1));
        run(async {
            let mut waits = pin!(pipes.read(&ring, 3, 1));
            assert!(poll_once(waits.as_mut()).is_pending());
            for pipe in [1, 0, 3] {
                pipes.let_go(pipe, pipe as u8);
            }
            assert_eq!(waits.await.1[..], [3; BYTES]);
            pipes.let_go(4, 4);
            assert_eq!(pipes.read(&ring, 4, 1).await.1[..], [4; BYTES]);
        });
        assert_eq!((ring.held(), ring.inner.state.borrow().in_flight), (3, 0), "they were left alone");
        assert!(matches!(ring.inner.state.borrow().listener, Listener::None));
    }

    /// Not a task, but a future that its owner took along. Fails (hangs) if only what sends sees to a listener.
    #[test]
    fn a_transfer_begun_in_one_runtime_ends_in_another() {
        let ring = ring(1);
        let mut pipes = Pipes::new(2);
        let mut sent = Box::pin(pipes.read(&ring, 0, 1));
        let mut in_line = Box::pin(pipes.read(&ring, 1, 1));
        run(async {
            assert!(poll_once(sent.as_mut()).is_pending() && poll_once(in_line.as_mut()).is_pending());
            monoio::spawn(async {}).await;
        });
        pipes.let_go(0, 1);
        assert_eq!(run(sent).1[..], [1; BYTES]);
        pipes.let_go(1, 2);
        assert_eq!(run(in_line).1[..], [2; BYTES]);
    }

    /// None is left behind, whatever comes while one waits: it would hold the ring, and with it the device's lock.
    #[test]
    fn there_is_one_listener_whoever_wakes_it() {
        let ring = ring(8);
        let mut pipes = Pipes::new(8);
        run(async {
            let mut tasks = Vec::new();
            for pipe in 0..8 {
                tasks.push(monoio::spawn(pipes.read(&ring, pipe, 1)));
                monoio::spawn(async {}).await;
                // The test's, and the listener's; each task has the ring itself.
                assert_eq!(Rc::strong_count(&ring.inner), 2);
                assert!(matches!(ring.inner.state.borrow().listener, Listener::Waits(_)));
            }
            for pipe in 0..8 {
                pipes.let_go(pipe, 1);
            }
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(Rc::strong_count(&ring.inner), 1);
    }

    /// It was woken when its runtime ended, and never looked. Fails (hangs) if what woke it still holds it.
    #[test]
    fn a_listener_that_was_woken_and_dropped_is_replaced() {
        let ring = ring(4);
        let mut pipes = Pipes::new(3);
        run(async {
            monoio::spawn(pipes.read(&ring, 0, 1));
            monoio::spawn(async {}).await;
            begin_and_drop(pipes.read(&ring, 1, 1));
            assert!(matches!(ring.inner.state.borrow().listener, Listener::ToRun));
        });
        assert!(matches!(ring.inner.state.borrow().listener, Listener::None));
        pipes.let_go(2, 2);
        assert_eq!(run(pipes.read(&ring, 2, 1)).1[..], [2; BYTES]);
        pipes.let_go(0, 1);
        pipes.let_go(1, 1);
    }

    #[test]
    fn a_ring_serves_one_runtime_after_another() {
        let ring = ring(4);
        for round in 0..3 {
            let mut pipes = Pipes::new(1);
            pipes.let_go(0, round);
            let (_, buf) = run(pipes.read(&ring, 0, 1));
            assert_eq!(buf[..], [round; BYTES]);
        }
    }

    /// Many rounds in which completions meet the listener at every moment of its loop. If it looked at the completions before
    /// it took the signals, a round would hang.
    #[test]
    fn no_wake_up_is_lost_in_many_rounds() {
        run(many_rounds());
        run_with(IoUring::builder(), many_rounds());
    }

    async fn many_rounds() {
        let ring = ring(4);
        let tasks: Vec<_> = (0..8_u8)
            .map(|task| {
                let ring = ring.clone();
                let mut pipes = Pipes::new(1);
                monoio::spawn(async move {
                    for round in 0..500_u32 {
                        let byte = task.wrapping_add(round as u8);
                        // Both before and after the read is in flight.
                        let early = round % 3 == 0;
                        if early {
                            pipes.let_go(0, byte);
                        }
                        let read = monoio::spawn(pipes.read(&ring, 0, 1));
                        if !early {
                            monoio::spawn(async {}).await;
                            pipes.let_go(0, byte);
                        }
                        assert_eq!(read.await.1[..], [byte; BYTES]);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(ring.held(), 0);
    }
}
