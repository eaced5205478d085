//! Disks that are files: making, opening, refusing, locking, truncation, and the engines' ends.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use gemel::base::buffer::AlignedBuf;
use gemel::disk::file::{Allocation, CreateError, available_bytes, create};
use gemel::disk::open::OpenRefusal;
use gemel::disk::{Disk, DiskErrorKind, Engine, EnginePreference, OpenError, OpenOptions, open};

const SIZE: u64 = 4 << 20;

fn engines() -> Vec<Engine> {
    let preferences = [EnginePreference::Uring, EnginePreference::Threads];
    preferences.into_iter().filter_map(|preference| Engine::start(preference).ok()).collect()
}

fn open_now(engine: &Engine, path: &Path) -> Result<Rc<dyn Disk>, OpenError> {
    open(engine, path, &OpenOptions { lock_patience: Duration::ZERO })
}

fn refusal(engine: &Engine, path: &Path) -> OpenRefusal {
    open_now(engine, path).err().expect("must be refused").reason
}

fn write_everywhere(engine: &Engine, disk: &Rc<dyn Disk>) {
    let data = AlignedBuf::copy_of(&vec![1; 1 << 20]).freeze();
    for offset in (0..SIZE).step_by(1 << 20) {
        engine.block_on(disk.write(offset, vec![data.clone()])).unwrap();
    }
}

/// Whether files under `path` can share flushes at all.
fn on_a_known_file_system(path: &Path) -> bool {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(path).output().unwrap();
    let name = String::from_utf8(output.stdout).unwrap();
    ["ext2/ext3", "xfs"].contains(&name.trim())
}

#[test]
fn the_engine_that_runs_says_what_it_is() {
    assert_eq!(Engine::start(EnginePreference::Threads).unwrap().to_string(), "threads");
    let automatic = Engine::start(EnginePreference::Automatic).unwrap().to_string();
    let uring = Engine::start(EnginePreference::Uring).map(|engine| engine.to_string());
    assert_eq!(automatic, uring.unwrap_or("threads".to_owned()));
}

#[test]
fn what_is_not_a_disk_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    for engine in engines() {
        assert!(matches!(refusal(&engine, &directory.path().join("none")), OpenRefusal::NotFound));
        let what = |path| match refusal(&engine, path) {
            OpenRefusal::NotADisk { what } => what,
            other => panic!("{other}"),
        };
        assert_eq!(what(directory.path()), "directory");
        assert_eq!(what(Path::new("/dev/null")), "character device");
        let short = directory.path().join("short");
        File::create(&short).unwrap().set_len(4095).unwrap();
        assert!(matches!(refusal(&engine, &short), OpenRefusal::TooSmall { size_bytes: 4095 }));
        File::options().write(true).open(&short).unwrap().set_len(10_000).unwrap();
        assert_eq!(open_now(&engine, &short).unwrap().properties().size_bytes, 8192);
        std::fs::remove_file(&short).unwrap();
    }
}

#[test]
fn a_file_is_made_once_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let available = available_bytes(directory.path()).unwrap();
    let too_much = (available / 4096 + 1_000_000) * 4096;
    let error = create(&path, too_much, Allocation::Preallocated).unwrap_err();
    assert!(matches!(error, CreateError::NotEnoughSpace { needed_bytes, .. } if needed_bytes == too_much));
    assert!(!path.exists());
    create(&path, SIZE, Allocation::Sparse).unwrap();
    let error = create(&path, SIZE, Allocation::Preallocated).unwrap_err();
    assert!(matches!(error, CreateError::Exists { .. }), "{error}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
}

#[test]
fn only_fully_written_files_share_their_flushes() {
    let directory = tempfile::tempdir().unwrap();
    if !on_a_known_file_system(directory.path()) {
        eprintln!("skipped: the temporary directory is neither on ext4 nor on XFS");
        return;
    }
    let path = |name| directory.path().join(name);
    for (index, engine) in engines().into_iter().enumerate() {
        let group = |name: &str| open_now(&engine, &path(name.to_owned())).unwrap().properties().flush_group;
        let (sparse, full) = (format!("sparse{index}"), format!("full{index}"));
        create(&path(sparse.clone()), SIZE, Allocation::Sparse).unwrap();
        create(&path(full.clone()), SIZE, Allocation::Preallocated).unwrap();
        assert_eq!(group(&sparse), None);
        assert!(group(&full).is_some());
        // A discard leaves a shared file as it is, and punches one that is by itself.
        for (name, punched) in [(&sparse, true), (&full, false)] {
            let disk = open_now(&engine, &path(name.clone())).unwrap();
            write_everywhere(&engine, &disk);
            engine.block_on(disk.discard(0, 1 << 20)).unwrap();
            let buffer = engine.block_on(disk.read(0, AlignedBuf::zeroed(4096))).unwrap();
            assert_eq!(buffer[0], u8::from(!punched));
            drop(disk);
            assert_eq!(group(name).is_none(), punched);
        }
        let disk = open_now(&engine, &path(sparse.clone())).unwrap();
        write_everywhere(&engine, &disk);
        drop(disk);
        assert_eq!(group(&sparse), group(&full), "written in full by now");
    }
}

#[test]
fn reads_behind_the_end_of_a_truncated_file_are_short() {
    let directory = tempfile::tempdir().unwrap();
    for engine in engines() {
        let path = directory.path().join("disk");
        create(&path, SIZE, Allocation::Preallocated).unwrap();
        let disk = open_now(&engine, &path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(SIZE / 2 + 1000).unwrap();
        let read = |offset| engine.block_on(disk.read(offset, AlignedBuf::zeroed(8192)));
        assert!(read(SIZE / 2 - 8192).is_ok());
        for offset in [SIZE / 2 - 4096, SIZE / 2, SIZE / 2 + 4096] {
            let error = read(offset).unwrap_err();
            assert_eq!(error.kind, DiskErrorKind::Short);
            assert!(error.to_string().starts_with(&format!("read of 8192 bytes at {offset} on ")), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn engines_finish_what_they_started_before_they_end() {
    let directory = tempfile::tempdir().unwrap();
    for engine in engines() {
        let path = directory.path().join("disk");
        create(&path, SIZE, Allocation::Sparse).unwrap();
        let disk = open_now(&engine, &path).unwrap();
        let data = AlignedBuf::copy_of(&[9; 4096]).freeze();
        let mut last = None;
        for offset in (0..SIZE).step_by(4096) {
            last = Some(disk.write(offset, vec![data.clone()]));
        }
        drop(data);
        drop(disk);
        drop(engine);
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 9));
        // Complete, though nothing runs any more.
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(last.unwrap().as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn many_disks_share_an_engine_and_closing_one_frees_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    for (index, engine) in engines().into_iter().enumerate() {
        // More than the ring keeps places for.
        let paths: Vec<_> = (0..70).map(|disk| directory.path().join(format!("{index}-{disk}"))).collect();
        let open_all = || {
            paths.iter().map(|path| open(&engine, path, &OpenOptions::default()).unwrap()).collect::<Vec<_>>()
        };
        paths.iter().for_each(|path| create(path, 1 << 16, Allocation::Sparse).unwrap());
        for round in 1..4u8 {
            let disks = open_all();
            let data = AlignedBuf::copy_of(&[round; 4096]).freeze();
            for disk in &disks {
                engine.block_on(disk.write(0, vec![data.clone()])).unwrap();
            }
            for path in &paths {
                assert!(matches!(refusal(&engine, path), OpenRefusal::InUse { .. }));
            }
        }
        for disk in open_all() {
            let buffer = engine.block_on(disk.read(0, AlignedBuf::zeroed(4096))).unwrap();
            assert_eq!(buffer[0], 3);
        }
    }
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    for (index, engine) in engines().into_iter().enumerate() {
        let path = directory.path().join(format!("disk{index}"));
        create(&path, SIZE, Allocation::Sparse).unwrap();
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holds_a_disk_for_another_test", "--include-ignored", "--nocapture"])
            .env(HELD_PATH, &path)
            .env(HELD_ENGINE, engine.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(holder.stdout.take().unwrap());
        assert!(
            output.lines().map_while(Result::ok).any(|line| line.contains(HELD)),
            "the holder has opened it"
        );
        let OpenRefusal::InUse { holder: named } = refusal(&engine, &path) else { panic!("not in use") };
        assert!(named.unwrap().starts_with(&format!("process {} ", holder.id())));
        holder.kill().unwrap();
        holder.wait().unwrap();
        open(&engine, &path, &OpenOptions { lock_patience: Duration::from_secs(10) }).unwrap();
    }
}

/// Not a test: the other process of the test above, which kills it.
#[test]
#[ignore = "run by another test"]
fn holds_a_disk_for_another_test() {
    let Some(path) = std::env::var_os(HELD_PATH) else { return };
    let uring = std::env::var(HELD_ENGINE).unwrap() == "io_uring";
    let preference = if uring { EnginePreference::Uring } else { EnginePreference::Threads };
    let engine = Engine::start(preference).unwrap();
    let disk = open_now(&engine, Path::new(&path)).unwrap();
    write_everywhere(&engine, &disk);
    println!("{HELD}");
    std::io::stdout().flush().unwrap();
    // Ends with the parent at the latest: its end of the pipe closes.
    let _ = std::io::stdin().read_line(&mut String::new());
}

const HELD: &str = "the disk is held";
const HELD_PATH: &str = "GEMEL_TEST_HELD_PATH";
const HELD_ENGINE: &str = "GEMEL_TEST_HELD_ENGINE";
