//! Process handling against shell scripts that play the server (`tests/servers/`; checked in, because a script that was
//! just written cannot be executed while another test's fork still holds it open).

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::*;

/// A folder for logs, and a script in place of `terrane`.
struct Fixture {
    folder: tempfile::TempDir,
    terrane: PathBuf,
}

impl Fixture {
    fn new(script: &str) -> Self {
        let terrane = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(script);
        Fixture { folder: tempfile::tempdir().unwrap(), terrane }
    }

    fn layout(&self, nodes: u64) -> Layout {
        let files = |id: u64| NodeFiles {
            id,
            config: self.folder.path().join(format!("node-{id}.toml")),
            log: self.folder.path().join(format!("node-{id}.log")),
            address: format!("127.0.0.1:{}", 7400 + id),
        };
        Layout { nodes: (1..=nodes).map(files).collect() }
    }

    /// Polls until a node's log holds `text`.
    fn wait_for(&self, id: u64, text: &str) {
        let log = self.folder.path().join(format!("node-{id}.log"));
        while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text)) {
            std::thread::yield_now();
        }
    }
}

fn alive(pid: u32) -> bool {
    kill(Pid::from_raw(pid as i32), None).is_ok()
}

fn pids(nodes: &Nodes) -> Vec<u32> {
    nodes.servers.iter().filter_map(Server::pid).collect()
}

#[test]
fn nodes_start_stop_and_log() {
    let fixture = Fixture::new("obedient.sh");
    let mut nodes = Nodes::start(&fixture.terrane, &fixture.layout(2)).unwrap();
    fixture.wait_for(1, "up start --config");
    fixture.wait_for(2, "up start --config");
    nodes.check().unwrap();
    let pids = pids(&nodes);
    assert_eq!(nodes.stop(), Vec::<String>::new());
    assert!(pids.iter().all(|pid| !alive(*pid)));
    fixture.wait_for(1, "bye");
}

#[test]
fn a_killed_node_can_be_started_again() {
    let fixture = Fixture::new("obedient.sh");
    let mut nodes = Nodes::start(&fixture.terrane, &fixture.layout(2)).unwrap();
    fixture.wait_for(2, "up");
    let first = pids(&nodes)[1];
    let before = Instant::now();
    assert!(nodes.kill_node(2).unwrap() >= before);
    assert!(!alive(first));
    assert!(nodes.kill_node(2).unwrap_err().to_string().contains("not running"));
    nodes.check().unwrap();
    nodes.start_node(2).unwrap();
    assert_eq!(pids(&nodes).len(), 2);
    assert!(nodes.start_node(3).is_err());
}

#[test]
fn a_node_that_ends_by_itself_is_reported_with_its_log() {
    let fixture = Fixture::new("burning.sh");
    let mut nodes = Nodes::start(&fixture.terrane, &fixture.layout(1)).unwrap();
    let error = loop {
        match nodes.check() {
            Ok(()) => std::thread::yield_now(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("node 1 ended with code 3"), "{error}");
    assert!(error.contains("the disk is on fire"), "{error}");
}

#[test]
fn a_stubborn_node_is_killed_at_the_limit_and_on_drop() {
    let fixture = Fixture::new("stubborn.sh");
    let mut nodes = Nodes::start(&fixture.terrane, &fixture.layout(2)).unwrap();
    fixture.wait_for(1, "up");
    fixture.wait_for(2, "up");
    let pids = pids(&nodes);
    let complaints = nodes.stop_within(Duration::ZERO);
    assert_eq!(complaints.len(), 2);
    assert!(complaints[0].contains("was killed"), "{complaints:?}");
    assert!(pids.iter().all(|pid| !alive(*pid)));

    nodes.start_node(1).unwrap();
    let pid = self::pids(&nodes)[0];
    drop(nodes);
    assert!(!alive(pid));
}

#[test]
fn the_layout_is_read_as_printed() {
    let fixture = Fixture::new("layout.sh");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lay_out =
        |nodes| runtime.block_on(lay_out(&fixture.terrane, nodes, 2, fixture.folder.path(), 1 << 30));
    let layout = lay_out(2).unwrap();
    assert_eq!(layout.addresses(), ["127.0.0.1:7400", "127.0.0.1:7500"]);
    assert_eq!(layout.nodes[0].config, Path::new("/d/node-1.toml"));
    assert!(layout.nodes[1].log.is_absolute());
    assert!(lay_out(3).unwrap_err().to_string().contains("holds 2 nodes, not 3"));
}

#[test]
fn a_failed_layout_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (script, words) in [("burning.sh", "could not lay out"), ("chatty.sh", "printed something else")] {
        let fixture = Fixture::new(script);
        let error = runtime
            .block_on(lay_out(&fixture.terrane, 1, 1, fixture.folder.path(), 1 << 30))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}
