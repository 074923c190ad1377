//! Runs the scenarios in `tests/scenarios/*.txt`: conversations of replicas, told step by step.
//!
//! A file is a topic comment and blocks of commands, each followed by `----` and what came of them.
//! `UPDATE_EXPECT=1` rewrites what came of them. Time stands still unless a command moves it, messages wait
//! until delivered, and writes are not durable until told so.
//!
//! | command | does |
//! |---|---|
//! | `group voters=1,2,3 [outgoing=..] [learners=..] [witnesses=..]` | makes the replicas, with empty disks |
//! | `config key=value ..` | windows of all replicas started later |
//! | `disk ID [terms=1,1,2] [term=T] [vote=V] [commit=C] [suspect]` | what the replica's disk holds |
//! | `start ID.. [rejoining]` | starts replicas from their disks |
//! | `crash ID` | loses what is not durable |
//! | `wait MS` / `tick ID` / `timeout ID` | moves the time / ticks / moves the time to the replica's deadline and ticks |
//! | `run MS` | moves the time by as much, ticking at deadlines and settling after each |
//! | `campaign ID`, `propose ID [COUNT [BYTES]]`, `read ID CONTEXT..`, `transfer ID [TO]`, `unreachable ID PEER`, `truncate ID FIRST` | calls |
//! | `deliver all`, `deliver FROM TO [COUNT]`, `drop ..`, `double ..` | delivers, loses or doubles messages under way |
//! | `reverse` | turns the order of the messages under way around |
//! | `cut ID..` / `heal` | loses all messages from and to the replicas / no longer |
//! | `write ID [COUNT]` | the oldest writes (all) become durable, and the node is told |
//! | `complete ID [COUNT]` / `report ID [COUNT]` | only the first half of that / only the second |
//! | `settle` | writes and delivers until nothing is left to do |
//! | `status ID..`, `logs`, `network` | shows |
//! | `quiet COMMAND` | without showing what came of it |

mod host;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    time::Duration,
};

use host::{Entry, Envelope, Replica, Turn};
use terrane_raft::{
    AppendOutcome, Body, Config, EntryKind, HardState, Membership, Message, PeerId, RaftNode, Time,
};

const MS: u64 = 1_000_000;

struct Scenario {
    now: Time,
    replicas: BTreeMap<PeerId, Replica>,
    config: Config,
    network: Vec<Envelope>,
    cut: BTreeSet<PeerId>,
    next_payload: u64,
    out: String,
    depth: usize,
}

/// `key=value` arguments, plain words and numbers of a command.
struct Arguments<'a> {
    words: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Arguments<'a> {
    fn parse(text: &'a str) -> Arguments<'a> {
        let (named, words): (Vec<&str>, Vec<&str>) =
            text.split_whitespace().partition(|word| word.contains('='));
        Arguments { words, named: named.into_iter().filter_map(|word| word.split_once('=')).collect() }
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn number(&self, position: usize) -> Option<u64> {
        self.words.get(position).map(|word| word.parse().unwrap_or_else(|_| panic!("{word} is not a number")))
    }

    fn numbers(&self) -> Vec<u64> {
        self.words.iter().filter_map(|word| word.parse().ok()).collect()
    }

    fn id(&self, position: usize) -> PeerId {
        PeerId(self.number(position).expect("a replica's id is missing"))
    }

    fn named_number(&self, name: &str) -> Option<u64> {
        self.named.get(name).map(|value| value.parse().unwrap_or_else(|_| panic!("{value} is not a number")))
    }

    fn named_list(&self, name: &str) -> Vec<u64> {
        let values = self.named.get(name).map_or("", |values| values);
        values
            .split(',')
            .filter(|value| !value.is_empty())
            .map(|value| value.parse().expect("a number"))
            .collect()
    }
}

impl Scenario {
    fn new() -> Scenario {
        Scenario {
            now: Time(0),
            replicas: BTreeMap::new(),
            config: Config {
                election_timeout: Duration::from_millis(1000),
                heartbeat_interval: Duration::from_millis(100),
                clock_drift_ppm: 10_000,
                seed: 1,
                ..Config::new(PeerId(1))
            },
            network: Vec::new(),
            cut: BTreeSet::new(),
            next_payload: 1,
            out: String::new(),
            depth: 0,
        }
    }

    fn say(&mut self, text: &str) {
        let _ = writeln!(self.out, "{:indent$}{text}", "", indent = self.depth * 2);
    }

    fn replica(&mut self, id: PeerId) -> &mut Replica {
        self.replicas.get_mut(&id).unwrap_or_else(|| panic!("there is no replica {id}"))
    }

    fn command(&mut self, line: &str) {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let arguments = Arguments::parse(rest);
        match name {
            "quiet" => {
                let kept = std::mem::take(&mut self.out);
                self.command(rest);
                self.out = kept;
            }
            "group" => self.group(&arguments),
            "config" => self.configure(&arguments),
            "disk" => self.set_disk(&arguments),
            "start" => {
                for id in arguments.numbers() {
                    let now = self.now;
                    let replica = self.replica(PeerId(id));
                    let applied = replica.disk.hard_state.commit;
                    replica.start(now, applied, arguments.has("rejoining"));
                }
            }
            "crash" => self.replica(arguments.id(0)).crash(),
            "wait" => self.now = self.now.plus(arguments.number(0).expect("milliseconds") * MS),
            "tick" => self.call(arguments.id(0), |node, now| node.tick(now)),
            "timeout" => {
                let id = arguments.id(0);
                let deadline = self.replica(id).node.as_ref().expect("running").next_deadline();
                assert!(deadline < Time::NEVER, "replica {id} waits for nothing");
                self.now = self.now.max(deadline);
                self.call(id, |node, now| node.tick(now));
            }
            "run" => self.run(arguments.number(0).expect("milliseconds")),
            "campaign" => self.call(arguments.id(0), |node, now| node.campaign(now)),
            "propose" => self.propose(&arguments),
            "read" => {
                let contexts: Vec<u64> = arguments.numbers()[1..].to_vec();
                let mut refused = None;
                self.call(arguments.id(0), |node, now| {
                    for context in contexts {
                        refused = node.read_index(now, context).err();
                    }
                });
                if let Some(error) = refused {
                    self.say(&format!("refused: {error}, leader {}", name_of(error.leader)));
                }
            }
            "transfer" => {
                let to = arguments.number(1).map(PeerId);
                let mut refused = None;
                self.call(arguments.id(0), |node, now| refused = node.transfer_leader(now, to).err());
                if let Some(error) = refused {
                    self.say(&format!("refused: {error}"));
                }
            }
            "unreachable" => {
                let peer = arguments.id(1);
                self.call(arguments.id(0), |node, now| node.report_unreachable(now, peer));
            }
            "truncate" => {
                let first = arguments.number(1).expect("an index");
                self.call(arguments.id(0), |node, now| node.on_log_truncated(now, first));
            }
            "deliver" => {
                for envelope in self.pick(&arguments) {
                    self.deliver(&envelope);
                }
            }
            "drop" => {
                for envelope in self.pick(&arguments) {
                    self.say(&format!("lost: {}", describe(&envelope)));
                }
            }
            "double" => {
                let picked = self.pick(&arguments);
                for envelope in picked {
                    self.network.push(envelope.clone());
                    self.network.push(envelope);
                }
            }
            "reverse" => self.network.reverse(),
            "cut" => self.cut.extend(arguments.numbers().into_iter().map(PeerId)),
            "heal" => self.cut.clear(),
            "write" => {
                for _ in 0..arguments.number(1).unwrap_or(u64::MAX) {
                    if !self.write_one(arguments.id(0)) {
                        break;
                    }
                }
            }
            "complete" => {
                let id = arguments.id(0);
                for _ in 0..arguments.number(1).unwrap_or(u64::MAX) {
                    if !self.replica(id).disk.complete_one() {
                        break;
                    }
                }
            }
            "report" => {
                for _ in 0..arguments.number(1).unwrap_or(u64::MAX) {
                    if !self.report_one(arguments.id(0)) {
                        break;
                    }
                }
            }
            "settle" => self.settle(),
            "status" => {
                for id in arguments.numbers() {
                    self.show_status(PeerId(id));
                }
            }
            "logs" => self.show_logs(),
            "network" => {
                for envelope in self.network.clone() {
                    self.say(&describe(&envelope));
                }
            }
            _ => panic!("there is no command {name}"),
        }
    }

    fn group(&mut self, arguments: &Arguments<'_>) {
        let ids = |name| arguments.named_list(name).into_iter().map(PeerId).collect::<BTreeSet<_>>();
        let membership = Membership {
            voters: ids("voters"),
            voters_outgoing: ids("outgoing"),
            learners: ids("learners"),
            witnesses: ids("witnesses"),
        };
        for id in membership.members() {
            let config = Config { id, ..self.config.clone() };
            self.replicas.insert(id, Replica::new(config, membership.clone()));
        }
    }

    fn configure(&mut self, arguments: &Arguments<'_>) {
        for (name, value) in &arguments.named {
            let number: u64 = value.parse().expect("a number");
            for config in
                self.replicas.values_mut().map(|replica| &mut replica.config).chain([&mut self.config])
            {
                match *name {
                    "inflight_entries" => config.inflight_entries_max = number as usize,
                    "inflight_bytes" => config.inflight_bytes_max = number,
                    "append_entries" => config.append_entries_max = number as usize,
                    "append_bytes" => config.append_bytes_max = number,
                    _ => panic!("there is no setting {name}"),
                }
            }
        }
    }

    fn set_disk(&mut self, arguments: &Arguments<'_>) {
        let disk = &mut self.replica(arguments.id(0)).disk;
        if arguments.named.contains_key("terms") {
            disk.log = arguments
                .named_list("terms")
                .into_iter()
                .map(|term| Entry { term, kind: EntryKind::Ops, bytes: 10, payload: 0 })
                .collect();
        }
        let vote = match arguments.named.get("vote") {
            Some(&"spent") => Some(PeerId::SPENT),
            Some(_) => arguments.named_number("vote").map(PeerId),
            None => disk.hard_state.vote,
        };
        disk.hard_state = HardState {
            term: arguments.named_number("term").unwrap_or(disk.hard_state.term),
            vote,
            commit: arguments.named_number("commit").unwrap_or(disk.hard_state.commit),
        };
        disk.suspect = arguments.has("suspect");
    }

    fn propose(&mut self, arguments: &Arguments<'_>) {
        let id = arguments.id(0);
        let count = arguments.number(1).unwrap_or(1);
        let bytes = arguments.number(2).unwrap_or(10) as u32;
        let payloads: Vec<u64> = (self.next_payload..self.next_payload + count).collect();
        self.next_payload += count;
        let now = self.now;
        match self.replica(id).propose(now, &payloads, bytes) {
            Some(turns) => self.carry_on(id, turns),
            None => self.say(&format!("{id} refuses")),
        }
    }

    fn call(&mut self, id: PeerId, call: impl FnOnce(&mut RaftNode, Time)) {
        let now = self.now;
        let turns = self.replica(id).call(now, |node| call(node, now));
        self.carry_on(id, turns);
    }

    fn carry_on(&mut self, id: PeerId, turns: Vec<Turn>) {
        for Turn { effects, outgoing, .. } in turns {
            if let Some(role) = effects.role {
                let text = if role.leader == Some(id) {
                    format!("{id}: leads term {}", role.term)
                } else {
                    format!("{id}: {:?} in term {}, leader {}", role.role, role.term, name_of(role.leader))
                };
                self.say(&text);
            }
            for (from, error) in &effects.rejected {
                self.say(&format!("{id}: ignores {from}: {error}"));
            }
            if let Some(hard_state) = effects.hard_state {
                let HardState { term, vote, .. } = hard_state;
                self.say(&format!("{id}: writes term {term}, vote {}", name_of(vote)));
            }
            if let Some(append) = &effects.append {
                let terms: Vec<String> = append.entries.iter().map(|entry| entry.term.to_string()).collect();
                let (first, last) = (append.first, append.last());
                self.say(&format!("{id}: writes entries {first} to {last}, terms {}", terms.join(" ")));
            }
            if let Some(commit) = effects.commit {
                self.say(&format!("{id}: commit {commit}"));
            }
            for read in &effects.reads {
                self.say(&format!("{id}: read {} may be answered at {}", read.context, read.index));
            }
            for context in &effects.reads_failed {
                self.say(&format!("{id}: read {context} failed"));
            }
            for peer in &effects.snapshot_wanted {
                self.say(&format!("{id}: {peer} needs a snapshot"));
            }
            if effects.repaired {
                self.say(&format!("{id}: is repaired"));
            }
            for (to, message) in &effects.messages_after_persist {
                let text = describe_message(message);
                let at_once = outgoing.iter().any(|sent| sent.to == *to && sent.message == *message);
                self.say(&format!("{id} -> {to}{}: {text}", if at_once { "" } else { " once durable" }));
            }
            for (to, message) in &effects.messages {
                self.say(&format!("{id} -> {to}: {}", describe_message(message)));
            }
            self.post(outgoing);
        }
    }

    fn post(&mut self, envelopes: Vec<Envelope>) {
        let cut = &self.cut;
        let kept = envelopes.into_iter().filter(|sent| !cut.contains(&sent.from) && !cut.contains(&sent.to));
        self.network.extend(kept);
    }

    /// Takes messages off the network: all of them, or some from one replica to another.
    fn pick(&mut self, arguments: &Arguments<'_>) -> Vec<Envelope> {
        if arguments.has("all") {
            return std::mem::take(&mut self.network);
        }
        let (from, to) = (arguments.id(0), arguments.id(1));
        let count = arguments.number(2).unwrap_or(u64::MAX);
        let mut picked = Vec::new();
        let (mut left, mut position) = (count, 0);
        while left > 0 && position < self.network.len() {
            let envelope = &self.network[position];
            if envelope.from == from && envelope.to == to {
                picked.push(self.network.remove(position));
                left -= 1;
            } else {
                position += 1;
            }
        }
        picked
    }

    fn deliver(&mut self, envelope: &Envelope) {
        if self.cut.contains(&envelope.from) || self.cut.contains(&envelope.to) {
            return;
        }
        self.say(&format!("[{}]", describe(envelope)));
        let now = self.now;
        let turns = self.replica(envelope.to).step(now, envelope);
        self.depth += 1;
        self.carry_on(envelope.to, turns);
        self.depth -= 1;
    }

    fn write_one(&mut self, id: PeerId) -> bool {
        let disk = &mut self.replica(id).disk;
        if disk.unreported.is_empty() && !disk.complete_one() {
            return false;
        }
        self.report_one(id)
    }

    fn report_one(&mut self, id: PeerId) -> bool {
        let now = self.now;
        let Some((sent, turns)) = self.replica(id).report_one(now) else { return false };
        self.say(&format!("[{id} has written]"));
        self.depth += 1;
        for envelope in &sent {
            self.say(&describe(envelope));
        }
        self.post(sent);
        self.carry_on(id, turns);
        self.depth -= 1;
        true
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let ids: Vec<PeerId> = self.replicas.keys().copied().collect();
            let mut wrote = false;
            for id in ids {
                while self.replicas[&id].node.is_some() && self.write_one(id) {
                    wrote = true;
                }
            }
            let under_way = std::mem::take(&mut self.network);
            if under_way.is_empty() && !wrote {
                return;
            }
            for envelope in under_way {
                if self.replica(envelope.to).node.is_some() {
                    self.deliver(&envelope);
                }
            }
        }
        panic!("the replicas do not come to rest");
    }

    fn run(&mut self, ms: u64) {
        let end = self.now.plus(ms * MS);
        self.settle();
        loop {
            let running =
                self.replicas.iter().filter_map(|(id, r)| Some((r.node.as_ref()?.next_deadline(), *id)));
            let Some((at, id)) = running.min().filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.call(id, |node, now| node.tick(now));
            self.settle();
        }
        self.now = end;
    }

    fn show_status(&mut self, id: PeerId) {
        let now = self.now;
        let Some(node) = &self.replica(id).node else {
            self.say(&format!("{id}: stopped"));
            return;
        };
        let status = node.status();
        let mut text = format!(
            "{id}: {:?} in term {}, vote {}, leader {}, log to {}, durable to {}, commit {}",
            status.role,
            status.term,
            name_of(status.vote),
            name_of(status.leader),
            status.last_index,
            status.persisted,
            status.commit
        );
        if node.lease_valid(now) {
            text.push_str(", lease");
        }
        if node.leader_ready() {
            text.push_str(", ready");
        }
        if status.suspect {
            text.push_str(", suspect");
        }
        self.say(&text);
        for peer in status.peers {
            let suspect = if peer.suspect { ", suspect" } else { "" };
            self.say(&format!(
                "  {}: {:?}, matched {}, next {}, in flight {} ({} bytes){suspect}",
                peer.id, peer.state, peer.matched, peer.next, peer.inflight_entries, peer.inflight_bytes
            ));
        }
    }

    fn show_logs(&mut self) {
        let lines: Vec<String> = self
            .replicas
            .iter()
            .map(|(id, replica)| {
                let terms: Vec<String> = replica.log.iter().map(|entry| entry.term.to_string()).collect();
                format!("{id}: {} | applied {}", terms.join(" "), replica.applied)
            })
            .collect();
        for line in lines {
            self.say(&line);
        }
    }
}

fn name_of(peer: Option<PeerId>) -> String {
    match peer {
        Some(PeerId::SPENT) => "spent".to_owned(),
        Some(id) => id.to_string(),
        None => "none".to_owned(),
    }
}

fn describe(envelope: &Envelope) -> String {
    format!("{} -> {}: {}", envelope.from, envelope.to, describe_message(&envelope.message))
}

fn describe_message(message: &Message) -> String {
    let what = match &message.body {
        Body::PreVote { campaign, last_index, last_term } => {
            format!("PreVote for term {campaign}, log ends {last_index}/{last_term}")
        }
        Body::PreVoteReply { campaign, granted } => {
            format!("PreVoteReply for term {campaign}: {}", yes(*granted))
        }
        Body::Vote { last_index, last_term, transfer } => {
            format!("Vote, log ends {last_index}/{last_term}{}", if *transfer { ", transfer" } else { "" })
        }
        Body::VoteReply { granted } => format!("VoteReply: {}", yes(*granted)),
        Body::Append { prev_index, prev_term, commit, leader_last, stamp, entries } => {
            let terms: Vec<String> = entries.iter().map(|entry| entry.term.to_string()).collect();
            format!(
                "Append after {prev_index}/{prev_term}: [{}], commit {commit} of {leader_last}, round {}",
                terms.join(" "),
                stamp.round
            )
        }
        Body::AppendReply { suspect, outcome, .. } => {
            let suspect = if *suspect { ", suspect" } else { "" };
            match outcome {
                AppendOutcome::Accepted { persisted } => {
                    format!("AppendReply: durable to {persisted}{suspect}")
                }
                AppendOutcome::Rejected { prev_index, hint_index, hint_term } => {
                    format!("AppendReply: not at {prev_index}, try {hint_index}/{hint_term}{suspect}")
                }
            }
        }
        Body::Heartbeat { stamp, commit } => format!("Heartbeat, commit {commit}, round {}", stamp.round),
        Body::HeartbeatReply { stamp, suspect, matched, persisted } => {
            let suspect = if *suspect { ", suspect" } else { "" };
            format!(
                "HeartbeatReply: matches to {matched}, durable to {persisted}, round {}{suspect}",
                stamp.round
            )
        }
        Body::TimeoutNow => "TimeoutNow".to_owned(),
    };
    format!("({}) {what}", message.term)
}

fn yes(granted: bool) -> &'static str {
    if granted { "yes" } else { "no" }
}

/// The file with the results of running it.
fn replay(text: &str) -> String {
    let mut scenario = Scenario::new();
    let mut result = String::new();
    for block in text.trim().split("\n\n") {
        let commands: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
        let comments_only = commands.iter().all(|line| line.starts_with('#'));
        for line in &commands {
            let _ = writeln!(result, "{line}");
            if !line.starts_with('#') {
                scenario.command(line);
            }
        }
        if !comments_only {
            let out = std::mem::take(&mut scenario.out);
            let _ = write!(result, "----\n{}", if out.is_empty() { "ok\n" } else { &out });
        }
        result.push('\n');
    }
    result.truncate(result.trim_end().len());
    result.push('\n');
    result
}

#[test]
fn every_scenario_goes_as_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the scenarios are there")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there are no scenarios");
    let mut differ = Vec::new();
    for path in files {
        let told = std::fs::read_to_string(&path).expect("a readable scenario");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("scenario {name}");
        let happened = replay(&told);
        if told == happened {
            continue;
        }
        if update {
            std::fs::write(&path, happened).expect("a writable scenario");
            continue;
        }
        let line = told.lines().zip(happened.lines()).position(|(told, happened)| told != happened);
        let line = line.unwrap_or_else(|| told.lines().count().min(happened.lines().count()));
        let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
        eprintln!("{name}:{}\n  told:     {}\n  happened: {}", line + 1, at(&told), at(&happened));
        differ.push(name);
    }
    assert!(differ.is_empty(), "not as told (UPDATE_EXPECT=1 rewrites): {differ:?}");
}
