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
use gemel::disk::{Disk, DiskErrorKind, Engine, EnginePreference, OpenOptions, open};

const SIZE: u64 = 4 << 20;

fn engines() -> Vec<Engine> {
    let preferences = [EnginePreference::Uring, EnginePreference::Threads];
    preferences.into_iter().filter_map(|preference| Engine::start(preference).ok()).collect()
}

/// Opens what nobody else holds. The system may take a moment to free what was closed just now.
fn opened(engine: &Engine, path: &Path) -> Rc<dyn Disk> {
    open(engine, path, &OpenOptions::default()).unwrap()
}

fn refusal(engine: &Engine, path: &Path) -> OpenRefusal {
    let at_once = OpenOptions { lock_patience: Duration::ZERO };
    open(engine, path, &at_once).err().expect("must be refused").reason
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
fn threads_serve_where_io_uring_is_not_permitted() {
    // The filter binds this thread and its children only.
    std::thread::spawn(|| {
        forbid_io_uring();
        let refused = Engine::start(EnginePreference::Uring).err().unwrap();
        assert!(refused.to_string().contains("kernel.io_uring_disabled"), "{refused}");
        let engine = Engine::start(EnginePreference::Automatic).unwrap();
        assert_eq!(engine.to_string(), "threads");
        let directory = tempfile::tempdir().unwrap();
        create(&directory.path().join("disk"), SIZE, Allocation::Sparse).unwrap();
        let disk = opened(&engine, &directory.path().join("disk"));
        write_everywhere(&engine, &disk);
        assert_eq!(engine.block_on(disk.read(SIZE - 4096, AlignedBuf::zeroed(4096))).unwrap()[0], 1);
    })
    .join()
    .unwrap();
}

/// Answers io_uring_setup with EPERM in this thread from now on, as containers do.
fn forbid_io_uring() {
    let instruction =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let system_call = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut filter = [
        // The number of the system call is the first word of what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, system_call),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0);
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
        assert_eq!(opened(&engine, &short).properties().size_bytes, 8192);
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
        let group = |name: &str| opened(&engine, &path(name.to_owned())).properties().flush_group;
        let (sparse, full) = (format!("sparse{index}"), format!("full{index}"));
        create(&path(sparse.clone()), SIZE, Allocation::Sparse).unwrap();
        create(&path(full.clone()), SIZE, Allocation::Preallocated).unwrap();
        assert_eq!(group(&sparse), None);
        assert!(group(&full).is_some());
        // A discard leaves a shared file as it is, and punches one that is by itself.
        for (name, punched) in [(&sparse, true), (&full, false)] {
            let disk = opened(&engine, &path(name.clone()));
            write_everywhere(&engine, &disk);
            engine.block_on(disk.discard(0, 1 << 20)).unwrap();
            let buffer = engine.block_on(disk.read(0, AlignedBuf::zeroed(4096))).unwrap();
            assert_eq!(buffer[0], u8::from(!punched));
            drop(disk);
            assert_eq!(group(name).is_none(), punched);
        }
        let disk = opened(&engine, &path(sparse.clone()));
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
        let disk = opened(&engine, &path);
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
        let disk = opened(&engine, &path);
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
        let open_all = || paths.iter().map(|path| opened(&engine, path)).collect::<Vec<_>>();
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
    let disk = opened(&engine, Path::new(&path));
    write_everywhere(&engine, &disk);
    println!("{HELD}");
    std::io::stdout().flush().unwrap();
    // Ends with the parent at the latest: its end of the pipe closes.
    let _ = std::io::stdin().read_line(&mut String::new());
}

const HELD: &str = "the disk is held";
const HELD_PATH: &str = "GEMEL_TEST_HELD_PATH";
const HELD_ENGINE: &str = "GEMEL_TEST_HELD_ENGINE";
