//! The processes the agent has started, while they run and a little longer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use connectrpc::ConnectError;
use rustix::process::{Pid, Signal};
use tokio::sync::watch;
use torpor_envd_api::process::{ProcessConfig, ProcessSelector, process_selector::Selector};

use super::{
    feed::Feed,
    input::{Input, Turn},
    reaper::{Reach, Reaper},
};

/// How long a process that has ended can still be connected to, for its end.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The processes the agent has started.
#[derive(Debug)]
pub struct Processes {
    pub(super) reaper: Arc<Reaper>,
    table: Mutex<BTreeMap<u32, Arc<Process>>>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) config: ProcessConfig,
    pub(super) tag: Option<String>,
    pub(super) feed: Arc<Feed>,
    pub(super) input: Input,
    pub(super) input_turn: Turn,
    pub(super) exited: watch::Sender<bool>,
    timed_out: AtomicBool,
}

// === impl Processes ===

impl Processes {
    /// No processes yet.
    pub fn new(reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self { reaper, table: Mutex::default() })
    }

    /// The machine has been resumed, so clients may be gone without a trace.
    pub fn resumed(&self) {
        for process in self.lock().values() {
            process.feed.doubt_subscribers();
        }
    }

    /// Those that run, in the order of their ids.
    pub(super) fn running(&self) -> Vec<Arc<Process>> {
        self.lock().values().filter(|process| process.is_running()).cloned().collect()
    }

    /// The running process that is meant.
    pub(super) fn find_running(&self, selector: &ProcessSelector) -> Result<Arc<Process>, ConnectError> {
        self.find(selector, Process::is_running)
    }

    /// The process that is meant; it may have ended a moment ago.
    pub(super) fn find_recent(&self, selector: &ProcessSelector) -> Result<Arc<Process>, ConnectError> {
        self.find(selector, |_| true)
    }

    pub(super) fn insert(&self, process: Arc<Process>) {
        self.lock().insert(process.pid(), process);
    }

    /// Forgets the process after a while.
    pub(super) fn forget_later(self: &Arc<Self>, process: Arc<Process>) {
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REMEMBERED).await;
            let mut table = this.lock();
            // Its id may have gone to another one meanwhile.
            if table.get(&process.pid()).is_some_and(|present| Arc::ptr_eq(present, &process)) {
                table.remove(&process.pid());
            }
        });
    }

    /// Sends a signal to the process and its group; `false` when it is gone.
    pub(super) fn signal(&self, process: &Process, signal: Signal) -> bool {
        self.reaper.signal(process.pid, signal, Reach::Group)
    }

    /// Kills the process and its whole session because its time is up.
    pub(super) fn time_out(&self, process: &Process) {
        if process.is_running() {
            process.timed_out.store(true, Ordering::Relaxed);
            self.reaper.signal(process.pid, Signal::KILL, Reach::Session);
        }
    }

    fn find(
        &self,
        selector: &ProcessSelector,
        wanted: impl Fn(&Process) -> bool,
    ) -> Result<Arc<Process>, ConnectError> {
        let table = self.lock();
        let found = match &selector.selector {
            Some(Selector::Pid(pid)) => {
                let found = table.get(pid).filter(|process| wanted(process));
                found.ok_or_else(|| format!("process with pid {pid} not found"))
            }
            Some(Selector::Tag(tag)) => {
                let tagged =
                    || table.values().filter(|it| it.tag.as_ref() == Some(tag)).filter(|it| wanted(it));
                // A tag can be used again when its process has ended.
                let found = tagged().find(|process| process.is_running()).or_else(|| tagged().next_back());
                found.ok_or_else(|| format!("process with tag {tag} not found"))
            }
            None => {
                return Err(ConnectError::invalid_argument(
                    "no process is named: give either its pid or its tag",
                ));
            }
        };
        found.cloned().map_err(ConnectError::not_found)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Process ===

impl Process {
    pub(super) fn new(pid: Pid, config: ProcessConfig, tag: Option<String>, input: Input) -> Arc<Self> {
        Arc::new(Self {
            pid,
            config,
            tag,
            feed: Arc::default(),
            input,
            input_turn: Turn::default(),
            exited: watch::Sender::new(false),
            timed_out: AtomicBool::new(false),
        })
    }

    /// Its id as the protocol has it.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn is_running(&self) -> bool {
        !*self.exited.borrow()
    }

    /// Whether it was killed because its time was up.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }
}
