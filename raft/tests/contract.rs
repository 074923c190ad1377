//! What the host and the node promise each other: how effects are merged, which calls are refused, that
//! messages survive their encoding, and that nothing a peer sends can make a node panic or break what it has
//! committed.

use proptest::prelude::*;
use terrane_raft::{
    AppendOutcome, AppendSource, Body, Config, ConfigError, Effects, EntryKind, EntryMeta, HardState,
    LogError, Membership, MembershipError, Message, MessageError, NotLeader, PeerId, ProposeError, RaftNode,
    RestoreError, Restored, Role, Stamp, Term, TermRun, Time,
};

const SECOND: u64 = 1_000_000_000;

fn empty(voters: &[u64]) -> Restored {
    Restored {
        hard_state: HardState::default(),
        runs: Vec::new(),
        first_index: 1,
        last_index: 0,
        applied: 0,
        membership: Membership::of_voters(voters.iter().copied().map(PeerId)),
        suspect: false,
        rejoining: false,
    }
}

fn node(id: u64, restored: Restored) -> RaftNode {
    RaftNode::new(Config::new(PeerId(id)), restored, Time(0)).expect("a valid start")
}

fn metas(terms: &[Term]) -> Vec<EntryMeta> {
    terms.iter().map(|&term| EntryMeta { term, bytes: 10, kind: EntryKind::Ops }).collect()
}

fn append(term: Term, prev: (u64, Term), terms: &[Term], commit: u64) -> Message {
    let (prev_index, prev_term) = prev;
    let leader_last = prev_index + terms.len() as u64;
    let stamp = Stamp { sent_at: Time(5), round: 1 };
    Message {
        term,
        body: Body::Append { prev_index, prev_term, commit, leader_last, stamp, entries: metas(terms) },
    }
}

/// Takes all effects and reports their appends durable at once.
fn drain(node: &mut RaftNode, now: Time) -> Vec<Effects> {
    let mut all = Vec::new();
    loop {
        let effects = node.take_effects();
        if effects.is_empty() {
            return all;
        }
        if let Some(append) = &effects.append {
            let (term, index) = append.persisted_mark();
            node.on_persisted(now, term, index);
        }
        if let Some(commit) = effects.commit {
            node.on_applied(now, commit);
        }
        all.push(effects);
    }
}

/// A leader of three voters in term 1 whose first entry is committed and known to match at peer 2.
fn leader() -> (RaftNode, Time) {
    let mut node = node(1, empty(&[1, 2, 3]));
    let now = node.next_deadline();
    node.tick(now);
    drain(&mut node, now);
    let granted = Body::PreVoteReply { campaign: 1, granted: true };
    node.step(now, PeerId(2), Message { term: 0, body: granted });
    drain(&mut node, now);
    node.step(now, PeerId(2), Message { term: 1, body: Body::VoteReply { granted: true } });
    drain(&mut node, now);
    let stamp = Stamp { sent_at: now, round: 1 };
    let outcome = AppendOutcome::Accepted { persisted: 1 };
    let reply = Body::AppendReply { stamp, suspect: false, outcome };
    node.step(now, PeerId(2), Message { term: 1, body: reply });
    drain(&mut node, now);
    assert!(node.leader_ready());
    (node, now)
}

#[test]
fn proposals_of_one_pass_share_one_append_and_one_message_per_peer() {
    let (mut node, now) = leader();
    for size in [10, 20, 30] {
        node.propose(now, &[(EntryKind::Ops, size), (EntryKind::Ops, size)]).expect("it leads");
    }
    let effects = node.take_effects();
    let written = effects.append.expect("entries to store");
    assert_eq!((written.first, written.entries.len(), written.source), (2, 6, AppendSource::Proposal));
    let to_2: Vec<_> = effects.messages.iter().filter(|(to, _)| *to == PeerId(2)).collect();
    assert_eq!(to_2.len(), 1);
    let (first, entries) = to_2[0].1.entries_range().expect("an append");
    assert_eq!((first, entries), (2, written.entries.as_slice()));
    assert_eq!(to_2[0].1.payload_bytes(), 120);
    assert!(node.take_effects().is_empty());
}

#[test]
fn an_empty_proposal_does_nothing() {
    let (mut node, now) = leader();
    let proposed = node.propose(now, &[]).expect("it leads");
    assert_eq!((proposed.first, proposed.term), (2, 1));
    assert!(node.take_effects().is_empty());
}

#[test]
fn appends_that_cannot_be_merged_queue_up_in_order() {
    let mut node = node(1, empty(&[1, 2, 3]));
    let now = Time(1);
    node.step(now, PeerId(2), append(1, (0, 0), &[1, 1], 0));
    node.step(now, PeerId(2), append(1, (2, 1), &[1], 1));
    // A later leader replaces the last two.
    node.step(now, PeerId(3), append(2, (1, 1), &[2], 1));
    let first = node.take_effects();
    let second = node.take_effects();
    let third = node.take_effects();
    assert!(node.take_effects().is_empty());
    let range = |effects: &Effects| effects.append.as_ref().map(|append| (append.first, append.last()));
    assert_eq!([range(&first), range(&second), range(&third)], [Some((1, 2)), Some((3, 3)), Some((2, 2))]);
    assert_eq!(first.hard_state.map(|state| state.term), Some(1));
    // The term changed before the third append came, and must be durable before it is reported.
    assert_eq!(second.hard_state.map(|state| state.term), Some(2));
    assert_eq!(third.commit, Some(1));
    assert_eq!(third.role.map(|role| (role.term, role.leader)), Some((2, Some(PeerId(3)))));
}

#[test]
fn a_follower_stores_only_what_it_lacks() {
    let mut node = node(1, empty(&[1, 2, 3]));
    let now = Time(1);
    node.step(now, PeerId(2), append(1, (0, 0), &[1, 1, 1], 0));
    drain(&mut node, now);
    node.step(now, PeerId(2), append(1, (1, 1), &[1, 1, 1, 1], 0));
    let effects = drain(&mut node, now);
    let written = effects[0].append.as_ref().expect("entries to store");
    assert_eq!((written.first, written.last(), written.source), (4, 5, AppendSource::Message));
}

#[test]
fn calls_for_the_leader_are_refused_with_the_leader_known() {
    let mut node = node(1, empty(&[1, 2, 3]));
    let none = None;
    assert_eq!(node.propose(Time(0), &[]), Err(ProposeError::NotLeader { leader: none }));
    node.step(Time(1), PeerId(2), append(1, (0, 0), &[1], 0));
    let leader = Some(PeerId(2));
    assert_eq!(node.propose(Time(1), &[(EntryKind::Ops, 1)]), Err(ProposeError::NotLeader { leader }));
    assert_eq!(node.read_index(Time(1), 4), Err(NotLeader { leader }));
    assert!(!node.lease_valid(Time(1)) && !node.leader_ready() && !node.is_leader());
}

#[test]
fn a_contradictory_past_is_refused() {
    let refuse = |change: fn(&mut Restored)| {
        let mut restored = Restored {
            hard_state: HardState { term: 3, vote: None, commit: 2 },
            runs: vec![TermRun { term: 1, first: 1 }],
            last_index: 4,
            applied: 1,
            ..empty(&[1, 2, 3])
        };
        change(&mut restored);
        RaftNode::new(Config::new(PeerId(1)), restored, Time(0)).map(|_| ())
    };
    assert_eq!(refuse(|_| {}), Ok(()));
    let no_voters = refuse(|restored| restored.membership = Membership::default());
    assert_eq!(no_voters, Err(RestoreError::Membership(MembershipError::NoVoters)));
    let no_runs = refuse(|restored| restored.runs.clear());
    let coverage = LogError::Coverage { first_index: 1, last_index: 4 };
    assert_eq!(no_runs, Err(RestoreError::Log(coverage)));
    let applied = refuse(|restored| restored.applied = 5);
    assert_eq!(applied, Err(RestoreError::Applied { applied: 5, first_index: 1, last_index: 4 }));
    let term = refuse(|restored| restored.hard_state.term = 0);
    assert_eq!(term, Err(RestoreError::TermBelowLog { term: 0, last: 1 }));
    let config = RaftNode::new(Config::new(PeerId(0)), empty(&[1]), Time(0)).map(|_| ());
    assert_eq!(config, Err(RestoreError::Config(ConfigError::InvalidId(PeerId(0)))));
}

#[test]
fn a_commit_index_beyond_the_log_is_not_believed() {
    let restored = Restored {
        hard_state: HardState { term: 3, vote: None, commit: 9 },
        runs: vec![TermRun { term: 1, first: 1 }],
        last_index: 4,
        ..empty(&[1, 2, 3])
    };
    let mut node = node(1, restored);
    assert_eq!(node.commit(), 4);
    assert_eq!(node.take_effects().commit, Some(4), "the host applies what it had not");
}

#[test]
fn the_hard_state_never_vouches_for_more_than_is_durable() {
    let mut node = node(1, empty(&[1, 2, 3]));
    node.step(Time(1), PeerId(2), append(1, (0, 0), &[1, 1, 1], 3));
    assert_eq!(node.commit(), 3);
    let first = node.take_effects();
    assert_eq!((first.commit, first.append.map(|append| append.last())), (Some(3), Some(3)));
    // Nothing was reported durable when the next term comes.
    node.step(Time(1), PeerId(3), append(2, (3, 1), &[2], 3));
    let hard_state = node.take_effects().hard_state.expect("a new term");
    assert_eq!((hard_state.term, hard_state.commit), (2, 0));
}

#[test]
fn impossible_messages_are_ignored_and_listed() {
    let stamp = Stamp::default();
    let empty_entries = |prev_index, prev_term, commit, leader_last| Body::Append {
        prev_index,
        prev_term,
        commit,
        leader_last,
        stamp,
        entries: Vec::new(),
    };
    let unknown = EntryMeta { term: 1, bytes: EntryMeta::UNKNOWN_BYTES, kind: EntryKind::Ops };
    let table = [
        (0, 1, Body::TimeoutNow, MessageError::Sender),
        (1, 1, Body::TimeoutNow, MessageError::Sender),
        (u64::MAX, 1, Body::TimeoutNow, MessageError::Sender),
        (2, 0, Body::TimeoutNow, MessageError::ZeroTerm),
        (2, u64::MAX, Body::TimeoutNow, MessageError::OutOfRange),
        (2, 1, empty_entries(0, 1, 0, 0), MessageError::OutOfRange),
        (2, 1, empty_entries(4, 0, 0, 9), MessageError::OutOfRange),
        (2, 1, empty_entries(4, 2, 0, 9), MessageError::OutOfRange),
        (2, 1, empty_entries(u64::MAX, 1, 0, u64::MAX), MessageError::OutOfRange),
        (2, 1, empty_entries(4, 1, 0, 3), MessageError::BeyondLast),
        (2, 1, empty_entries(0, 0, 4, 3), MessageError::BeyondLast),
        (2, 3, append(3, (1, 1), &[3, 2], 0).body, MessageError::TermOrder),
        (2, 3, append(3, (1, 2), &[1], 0).body, MessageError::TermOrder),
        (2, 3, append(3, (0, 0), &[4], 0).body, MessageError::TermOrder),
        (2, 3, append(3, (0, 0), &[0], 0).body, MessageError::TermOrder),
        (
            2,
            1,
            Body::Append {
                prev_index: 0,
                prev_term: 0,
                commit: 0,
                leader_last: 1,
                stamp,
                entries: vec![unknown],
            },
            MessageError::UnknownBytes,
        ),
        (2, 1, Body::PreVote { campaign: 1, last_index: 0, last_term: 0 }, MessageError::OutOfRange),
        (2, 1, Body::Vote { last_index: 1, last_term: 1, transfer: false }, MessageError::OutOfRange),
        (
            2,
            1,
            Body::HeartbeatReply { stamp, suspect: false, matched: 1, persisted: 2 },
            MessageError::OutOfRange,
        ),
    ];
    for (from, term, body, error) in table {
        let mut node = node(1, empty(&[1, 2, 3]));
        let before = node.status();
        node.step(Time(9), PeerId(from), Message { term, body: body.clone() });
        let effects = node.take_effects();
        assert_eq!(effects.rejected, [(PeerId(from), error)], "{body:?}");
        assert_eq!(effects, Effects { rejected: effects.rejected.clone(), ..Effects::default() });
        let after = node.status();
        assert_eq!((after.term, after.role, after.rejected_messages), (before.term, before.role, 1));
    }
}

#[test]
fn what_contradicts_the_state_is_ignored_too() {
    let rejected = |node: &mut RaftNode, from, message| {
        node.step(Time(9), PeerId(from), message);
        let listed = drain(node, Time(9)).pop().map(|effects| effects.rejected).unwrap_or_default();
        listed.first().map(|(_, error)| *error)
    };
    let mut follower = node(1, empty(&[1, 2, 3]));
    assert_eq!(rejected(&mut follower, 2, append(1, (0, 0), &[1, 1], 2)), None);
    assert_eq!(rejected(&mut follower, 3, append(1, (2, 1), &[1], 2)), Some(MessageError::SecondLeader));
    let other = append(3, (1, 1), &[3], 2);
    assert_eq!(rejected(&mut follower, 2, other), Some(MessageError::ConflictsWithCommitted));
    let other = append(3, (2, 2), &[3], 2);
    assert_eq!(rejected(&mut follower, 2, other), Some(MessageError::ConflictsWithCommitted));
    assert_eq!((follower.commit(), follower.last_index()), (2, 2));

    let (mut leader, now) = leader();
    assert_eq!(rejected(&mut leader, 2, append(1, (1, 1), &[1], 1)), Some(MessageError::SecondLeader));
    let never_sent = Stamp { sent_at: now.plus(SECOND), round: 1 };
    let reply =
        |stamp, persisted| Body::HeartbeatReply { stamp, suspect: false, matched: persisted, persisted };
    let message = |body| Message { term: 1, body };
    assert_eq!(rejected(&mut leader, 3, message(reply(never_sent, 0))), Some(MessageError::Stamp));
    let no_such_round = Stamp { sent_at: Time(0), round: 99 };
    assert_eq!(rejected(&mut leader, 3, message(reply(no_such_round, 0))), Some(MessageError::Stamp));
    let beyond = message(reply(Stamp::default(), 50));
    assert_eq!(rejected(&mut leader, 3, beyond), Some(MessageError::OutOfRange));
    assert_eq!(leader.commit(), 1);
}

#[test]
#[should_panic(expected = "before it was committed")]
fn applying_what_is_not_committed_is_the_hosts_bug() {
    node(1, empty(&[1])).on_applied(Time(0), 1);
}

#[test]
fn time_does_not_run_backwards() {
    let (mut node, now) = leader();
    let stamp = Stamp { sent_at: now, round: 1 };
    let body = Body::HeartbeatReply { stamp, suspect: false, matched: 1, persisted: 1 };
    node.step(now.plus(SECOND * 9 / 10), PeerId(2), Message { term: 1, body });
    assert!(node.lease_valid(now.plus(SECOND * 9 / 10)));
    node.on_applied(now.plus(SECOND * 2), 1);
    assert!(!node.lease_valid(now), "the latest time seen counts");
}

/// Numbers small enough to collide with what the node has, now and then wild.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..8u64, 1 => any::<u64>()]
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (number(), number()).prop_map(|(at, round)| Stamp { sent_at: Time(at), round })
}

fn meta() -> impl Strategy<Value = EntryMeta> {
    (number(), prop_oneof![9 => 0..50u32, 1 => Just(u32::MAX)], 0..3u8).prop_map(|(term, bytes, kind)| {
        EntryMeta { term, bytes, kind: EntryKind::from_u8(kind).expect("a kind") }
    })
}

fn body() -> impl Strategy<Value = Body> {
    let outcome = prop_oneof![
        number().prop_map(|persisted| AppendOutcome::Accepted { persisted }),
        (number(), number(), number()).prop_map(|(prev_index, hint_index, hint_term)| {
            AppendOutcome::Rejected { prev_index, hint_index, hint_term }
        }),
    ];
    prop_oneof![
        (number(), number(), number()).prop_map(|(campaign, last_index, last_term)| Body::PreVote {
            campaign,
            last_index,
            last_term
        }),
        (number(), any::<bool>()).prop_map(|(campaign, granted)| Body::PreVoteReply { campaign, granted }),
        (number(), number(), any::<bool>()).prop_map(|(last_index, last_term, transfer)| Body::Vote {
            last_index,
            last_term,
            transfer
        }),
        any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
        (number(), number(), number(), number(), stamp(), prop::collection::vec(meta(), 0..4)).prop_map(
            |(prev_index, prev_term, commit, leader_last, stamp, entries)| Body::Append {
                prev_index,
                prev_term,
                commit,
                leader_last,
                stamp,
                entries
            }
        ),
        (stamp(), any::<bool>(), outcome).prop_map(|(stamp, suspect, outcome)| Body::AppendReply {
            stamp,
            suspect,
            outcome
        }),
        (stamp(), number()).prop_map(|(stamp, commit)| Body::Heartbeat { stamp, commit }),
        (stamp(), any::<bool>(), number(), number()).prop_map(|(stamp, suspect, matched, persisted)| {
            Body::HeartbeatReply { stamp, suspect, matched, persisted }
        }),
        Just(Body::TimeoutNow),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (number(), body()).prop_map(|(term, body)| Message { term, body })
}

#[derive(Clone, Debug)]
enum Act {
    Step(u64, Message),
    Tick(u64),
    Propose(u8),
    Read,
    Transfer(u64),
    Unreachable(u64),
    Campaign,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0..5u64, message()).prop_map(|(from, message)| Act::Step(from, message)),
        3 => (0..2 * SECOND).prop_map(Act::Tick),
        2 => (0..4u8).prop_map(Act::Propose),
        1 => Just(Act::Read),
        1 => (0..5u64).prop_map(Act::Transfer),
        1 => (0..5u64).prop_map(Act::Unreachable),
        1 => Just(Act::Campaign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_survive_their_encoding(message in message()) {
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&message).expect("encodable");
        let decoded = rkyv::from_bytes::<Message, rkyv::rancor::Error>(&bytes).expect("decodable");
        prop_assert_eq!(decoded, message);
    }

    #[test]
    fn damaged_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut aligned = rkyv::util::AlignedVec::<16>::new();
        aligned.extend_from_slice(&bytes);
        if let Ok(message) = rkyv::from_bytes::<Message, rkyv::rancor::Error>(&aligned) {
            let mut node = node(1, empty(&[1, 2, 3]));
            node.step(Time(1), PeerId(2), message);
        }
    }

    /// Even peers that lie cannot make a node panic, take back what it committed, or forget its term.
    #[test]
    fn hostile_peers_break_nothing(
        voters in 1..4u64,
        leads in any::<bool>(),
        persists in any::<bool>(),
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let (mut node, mut now) = if leads && voters == 3 {
            leader()
        } else {
            let voters: Vec<u64> = (1..=voters).collect();
            (node(1, empty(&voters)), Time(1))
        };
        let mut before = node.status();
        for act in acts {
            match act {
                Act::Step(from, message) => node.step(now, PeerId(from), message),
                Act::Tick(after) => {
                    now = now.plus(after);
                    node.tick(now);
                }
                Act::Propose(count) => {
                    let _ = node.propose(now, &vec![(EntryKind::Ops, 7); usize::from(count)]);
                }
                Act::Read => {
                    let _ = node.read_index(now, 1);
                }
                Act::Transfer(to) => {
                    let _ = node.transfer_leader(now, Some(PeerId(to)));
                }
                Act::Unreachable(peer) => node.report_unreachable(now, PeerId(peer)),
                Act::Campaign => node.campaign(now),
            }
            if persists {
                drain(&mut node, now);
            } else {
                while !node.take_effects().is_empty() {}
            }
            let after = node.status();
            prop_assert!(after.term >= before.term);
            prop_assert!(after.commit >= before.commit && after.commit <= after.last_index);
            prop_assert!(after.persisted <= after.last_index);
            if after.term == before.term {
                prop_assert!(before.vote.is_none() || after.vote == before.vote);
            }
            if after.role == Role::Leader {
                prop_assert_eq!(after.leader, Some(PeerId(1)));
            }
            before = after;
        }
    }
}
