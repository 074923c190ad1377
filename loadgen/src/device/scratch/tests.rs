use super::*;

const SIZE: u64 = 8 << 20;

fn folder() -> TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

fn wanted(path: &Path) -> Wanted {
    Wanted { path: path.to_owned(), size_bytes: SIZE, shards: 1, request_bytes_max: 4096, force: false }
}

fn prepare(wanted: &Wanted) -> anyhow::Result<Scratch> {
    Scratch::prepare(wanted, &Stop::default(), &Progress::new())
        .map(|scratch| scratch.expect("nobody stops it"))
}

fn refused(wanted: &Wanted) -> ScratchError {
    prepare(wanted).map(drop).unwrap_err().downcast().unwrap()
}

/// A device such as a node has.
fn node(path: &Path, cluster: u128) {
    let options = FormatOptions {
        cluster,
        node: 1,
        shards: 1,
        size_bytes: SIZE,
        chunk_bytes: Some(64 << 10),
        sector_bytes: None,
        force: false,
    };
    terrane_ocssd::format(path, &options, &mut |_, _| {}).unwrap();
}

#[test]
fn data_is_refused_unless_forced() {
    let folder = folder();
    let path = folder.path().join("precious");
    for make in [|path: &Path| std::fs::write(path, "data").unwrap(), |path: &Path| node(path, 7)] {
        make(&path);
        let before = std::fs::read(&path).unwrap();
        let error = refused(&wanted(&path));
        assert!(matches!(error, ScratchError::HoldsData(_)), "{error}");
        assert!(error.to_string().contains("it holds data; name another path or say --force"));
        assert!(std::fs::read(&path).unwrap() == before, "it is untouched");
        let scratch = prepare(&Wanted { force: true, ..wanted(&path) }).unwrap();
        assert!(scratch.filled_bytes() <= SIZE);
        drop(scratch);
        assert!(!path.exists());
    }
}

#[test]
fn a_leftover_is_used_again() {
    let folder = folder();
    let path = folder.path().join("probe");
    node(&path, CLUSTER);
    drop(prepare(&wanted(&path)).unwrap());
    assert!(!path.exists());
}

#[test]
fn a_device_in_use_is_refused_even_if_forced() {
    let folder = folder();
    let path = folder.path().join("probe");
    let scratch = prepare(&wanted(&path)).unwrap();
    for force in [false, true] {
        let error = refused(&Wanted { force, ..wanted(&path) });
        assert!(matches!(error, ScratchError::InUse(_)), "{error}");
    }
    assert!(path.exists(), "it was not removed by those who were refused");
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn places_that_cannot_be_are_named() {
    let folder = folder();
    let error = refused(&wanted(folder.path()));
    assert!(matches!(error, ScratchError::NotADevice(_)), "{error}");
    let error = refused(&wanted(&folder.path().join("missing/probe")));
    assert!(matches!(error, ScratchError::NoFolder(_)), "{error}");
    let error = refused(&Wanted { size_bytes: 1 << 60, ..wanted(&folder.path().join("probe")) });
    assert!(matches!(error, ScratchError::Space { needed, .. } if needed == 1 << 60), "{error}");
    let error = prepare(&Wanted { shards: 64, ..wanted(&folder.path().join("probe")) }).unwrap_err();
    assert!(error.to_string().contains("too few"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn memory_is_no_place() {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    let shm = Path::new("/dev/shm");
    // Where the machine has no tmpfs there is nothing to refuse.
    if statfs(shm).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) {
        let error = prepare(&wanted(&shm.join("terrane-probe-test"))).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(place::PlaceError::Memory(_))), "{error}");
    }
}

#[test]
fn everything_is_filled_with_what_does_not_compress() {
    let folder = folder();
    let path = folder.path().join("probe");
    let scratch = prepare(&Wanted { shards: 2, ..wanted(&path) }).unwrap();
    let data = std::fs::read(&path).unwrap();
    let end = FIRST_SLICE_OFFSET + scratch.filled_bytes();
    let filled = &data[FIRST_SLICE_OFFSET as usize..end as usize];
    let mut blocks: Vec<&[u8]> = filled.chunks(4096).collect();
    assert!(blocks.iter().all(|block| block.iter().filter(|byte| **byte == 0).count() < 100));
    let all = blocks.len();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), all, "no two blocks are alike");
}

#[test]
fn chunks_follow_the_size_and_the_largest_request() {
    let chunk = |size_bytes, shards, request_bytes_max| {
        let path = PathBuf::new();
        chunk_bytes(&Wanted { path, size_bytes, shards, request_bytes_max, force: false })
    };
    assert_eq!(chunk((4 << 30) + FIRST_SLICE_OFFSET, 1, 1 << 20), 8 << 20);
    assert_eq!(chunk(1 << 40, 1, 1 << 20), 64 << 20);
    assert_eq!(chunk(64 << 20, 1, 1 << 20), 1 << 20);
    assert_eq!(chunk(64 << 20, 1, 4096), 64 << 10);
    assert_eq!(chunk(0, 1, 100_000), 128 << 10);
}
