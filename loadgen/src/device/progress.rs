//! The probe's live line: what is being prepared or measured, and how far it is. On standard error and only on a
//! terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The live line, or nothing where nobody would see it move. Any thread may move it.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    laying_out: AtomicBool,
}

impl Progress {
    /// A line that nobody sees.
    pub(crate) fn new() -> Self {
        Progress { bar: ProgressBar::hidden(), laying_out: AtomicBool::new(false) }
    }

    /// A line on the terminal, if there is one.
    pub(crate) fn on_terminal() -> Self {
        let progress = Progress::new();
        if std::io::stderr().is_terminal() {
            progress.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        match ProgressStyle::with_template("{prefix:>10} {bar:24.cyan/blue} {percent:>3} %  {msg}") {
            Ok(style) => progress.bar.set_style(style),
            Err(error) => unreachable!("a constant template is valid: {error}"),
        }
        progress
    }

    /// The layout is being written, and is so far.
    pub(crate) fn laying_out(&self, done: u64, all: u64) {
        if !self.laying_out.swap(true, Ordering::SeqCst) {
            self.begin("laying out", all, HumanBytes(all).to_string());
        }
        self.bar.set_position(done);
    }

    /// The layout is written, or failed.
    pub(crate) fn laid_out(&self) {
        self.laying_out.store(false, Ordering::SeqCst);
    }

    /// Whether the layout is being written, which only the end of the process stops.
    pub(crate) fn is_laying_out(&self) -> bool {
        self.laying_out.load(Ordering::SeqCst)
    }

    /// The slices, of so many bytes in all, are about to be filled.
    pub(crate) fn filling(&self, all: u64) {
        self.begin("filling", all, HumanBytes(all).to_string());
    }

    /// So many bytes more are filled.
    pub(crate) fn filled(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// The cell of this name is being measured, after `done` of `all`.
    pub(crate) fn measuring(&self, done: usize, all: usize, name: String) {
        if done == 0 {
            self.begin("measuring", all as u64, String::new());
        }
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{} of {all}: {name}", done + 1));
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn begin(&self, what: &'static str, length: u64, message: String) {
        self.bar.set_position(0);
        self.bar.set_length(length);
        self.bar.set_prefix(what);
        self.bar.set_message(message);
    }
}
