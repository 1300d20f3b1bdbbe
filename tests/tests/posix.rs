//! What POSIX and Linux say of a filesystem beyond reading and writing: permissions, locks, times of access, atomicity,
//! limits. Scripts run on the mount and on the local filesystem and must print the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axiomfs_tests::compare::{note, same_as_local, same_output};
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::{must, run, wait_for};
use axiomfs_tests::source::tree_bytes;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, RawDir, RenameFlags, Timespec, Timestamps};

#[test]
fn acls_are_enforced_inherited_and_follow_the_mode() {
    same_output(
        "acl",
        "umask 027
        as() { id=$1; shift; setpriv --reuid $id --regid $id --clear-groups \"$@\"; }
        echo secret > f; chmod 640 f
        setfacl -m u:12345:rw f; stat -c '%a' f; getfacl -cn f
        as 12345 cat f; as 12345 sh -c 'echo more >> f'; as 12346 cat f
        chmod 600 f; getfacl -cn f; as 12345 cat f
        chmod 660 f; as 12345 cat f
        as 12345 setfacl -m o::rwx f
        cp -a f copy; getfacl -cn copy
        setfacl -b f; getfacl -cn f; stat -c %a f; as 12345 cat f
        setfacl -m u::rw,g::rw,o::r f; getfacl -cn f; stat -c %a f
        mkdir d; setfacl -d -m u:12345:rwx,g::rx,o::r d; getfacl -cn d
        touch d/x; mkdir d/sub; mknod d/p p; ln -s x d/s; touch d/sub/deep
        getfacl -cn d/x d/sub d/p d/sub/deep; stat -c '%a %n' d/*
        (umask 077; touch d/masked; getfacl -cn d/masked)
        touch plain; mkdir plaindir; mknod plainpipe p; stat -c '%a %n' plain*
        setfacl -d -m u::rwx f; setfacl -k f; setfacl -k d; getfacl -cn d; touch d/later; stat -c %a d/later
        touch g; chown 12345:77 g; chmod 2775 g; as 12345 setfacl -m u:1:r g; stat -c %a g
        touch h; chown 12345:12345 h; chmod 2775 h; as 12345 setfacl -m u:1:r h; stat -c %a h",
    );
}

#[test]
fn acls_survive_a_crash_a_remount_and_hold_in_snapshots() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("acl-kept");
    repo.mount();
    let dir = repo.live().join("d");
    fs::create_dir(&dir).expect("made");
    must("setfacl", &["-d", "-m", "u:12345:rwx,g:77:r", text(&dir)], LIMIT);
    fs::write(dir.join("f"), b"x").expect("written");
    let acls = |at: PathBuf| {
        let done = run(Command::new("getfacl").args(["-cnR", "."]).current_dir(at), LIMIT);
        assert!(done.stdout.contains("user:12345:rwx"), "{}{}", done.stdout, done.stderr);
        done.stdout
    };
    let want = acls(dir.clone());
    fs::create_dir(repo.snapshot("s")).expect("snapshot");
    repo.kill9();
    repo.mount();
    assert_eq!(acls(dir.clone()), want, "after a crash");
    must("setfacl", &["-Rb", text(&dir)], LIMIT);
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    repo.mount();
    assert_eq!(acls(repo.snapshot("s").join("d")), want, "in the snapshot, from the store");
    let done = must("getfacl", &["-cnR", text(&dir)], LIMIT);
    assert!(!done.contains("12345"), "removed lists are back: {done}");
}

#[test]
fn a_program_that_is_changed_loses_its_set_id_bits_and_capabilities() {
    same_output(
        "setid",
        "as() { setpriv --reuid 12345 --regid 12345 --clear-groups \"$@\"; }
        fresh() { rm -f p; cp /bin/true p; chmod ${1:-6777} p; setcap cap_net_raw+ep p; }
        show() { stat -c '%a %s' p; getcap p; }
        for by in '' as; do
            fresh; $by sh -c 'echo x >> p'; show
            fresh; $by sh -c 'echo x > p'; show
            fresh; $by truncate -s 10 p; show
            fresh; $by truncate -s 1M p; show
            fresh; $by fallocate -l 2M p; show
            fresh; $by fallocate -p -l 4096 p; show
            fresh; $by dd if=/bin/ls of=p bs=4096 count=2 conv=notrunc status=none; show
            fresh 2767; $by sh -c 'echo x >> p'; show
            fresh 2767; chgrp 12345 p; chmod 2767 p; $by sh -c 'echo x >> p'; show
            fresh; $by touch p; show
        done
        fresh; chown 5 p; show
        fresh; chgrp 5 p; show
        fresh 2767; chown 5:5 p; show
        fresh; chmod 6755 p; show
        fresh; ln p q; mv q r; show
        mkdir d; chmod 6777 d; chown 5:5 d; stat -c %a d",
    );
}

fn atime(path: &Path) -> (i64, i64) {
    let m = fs::symlink_metadata(path).expect("metadata");
    (m.atime(), m.atime_nsec())
}

/// Sets the time of access to one `ago` seconds before now, newer than that of change.
fn set_atime(path: &Path, ago: i64) {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as i64;
    let time = |secs| Timespec { tv_sec: secs, tv_nsec: 1_000_000 };
    let times = Timestamps { last_access: time(now - ago), last_modification: time(now - ago - 1_000_000) };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("times are set");
}

#[test]
fn times_of_access_move_as_with_relatime() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("atime");
    repo.mount();
    let (file, dir, link) = (repo.live().join("f"), repo.live().join("d"), repo.live().join("l"));
    fs::write(&file, noise(1, 100_000)).expect("written");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("entry"), b"x").expect("written");
    symlink("f", &link).expect("linked");
    let read_file: &dyn Fn() = &|| drop(fs::read(&file).expect("read"));
    let read_dir: &dyn Fn() = &|| assert_eq!(fs::read_dir(&dir).expect("listed").count(), 1);
    let read_link: &dyn Fn() = &|| drop(fs::read_link(&link).expect("read"));
    for (path, read) in [(&file, read_file), (&dir, read_dir), (&link, read_link)] {
        let shown = path.display();
        // The mode or the time has changed since, in the same moment at the earliest.
        set_atime(path, 1000);
        let before = atime(path);
        thread::sleep(Duration::from_millis(20));
        read();
        wait_for(&format!("{shown}: the first read after a change moves the time"), LIMIT, || atime(path) > before);
        let moved = atime(path);
        thread::sleep(Duration::from_millis(20));
        read();
        thread::sleep(Duration::from_millis(200));
        assert_eq!(atime(path), moved, "{shown}: a second read moves it again");
    }
    // One keeps it open, another reads what the page cache has and is done.
    set_atime(&file, 1000);
    let before = atime(&file);
    let kept = File::open(&file).expect("opened");
    fs::read(&file).expect("read");
    wait_for("the time moves while somebody keeps the file open", LIMIT, || atime(&file) > before);
    drop(kept);
    // More than go into the log at once.
    let many: Vec<_> = (0..100).map(|number| repo.live().join(format!("many-{number}"))).collect();
    for path in &many {
        fs::write(path, noise(2, 5000)).expect("written");
        set_atime(path, 1000);
        let before = atime(path);
        fs::read(path).expect("read");
        wait_for("a read moves the time", LIMIT, || atime(path) > before);
    }
    thread::sleep(Duration::from_millis(600));
    let times = || [&file].into_iter().chain(&many).map(|path| atime(path)).collect::<Vec<_>>();
    let moved = times();
    repo.kill9();
    repo.mount();
    assert_eq!(times(), moved, "after a crash");
    // A read from the store, by a descriptor that says that it leaves no trace.
    set_atime(&file, 100);
    let before = atime(&file);
    let quiet = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&file).expect("opened");
    quiet.read_exact_at(&mut [0; 10], 0).expect("read");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(atime(&file), before, "O_NOATIME moved the time");
    drop(quiet);
    // Opened to write and to read: only reading counts.
    repo.umount().mount();
    let both = OpenOptions::new().read(true).write(true).open(&file).expect("opened");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(atime(&file), before, "opening to write moved the time");
    both.read_exact_at(&mut [0; 10], 50_000).expect("read");
    wait_for("a read by a descriptor that may write moves the time", LIMIT, || atime(&file) > before);
}

#[test]
fn appends_of_several_processes_never_overlap() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("append-processes");
    repo.settings("checkpoint: {interval: 100ms}").mount();
    let log = repo.live().join("log");
    let script = |id: usize| {
        // Pieces that cross pages, of another length in each process.
        let piece = "x".repeat(1500 + 977 * id);
        format!("i=0; while [ $i -lt 300 ]; do echo \"{id} $i {piece}\"; i=$((i+1)); done >> {}", text(&log))
    };
    let mut children: Vec<_> =
        (0..4).map(|id| Command::new("sh").args(["-c", &script(id)]).spawn().expect("sh")).collect();
    for child in &mut children {
        assert!(child.wait().expect("waited").success());
    }
    let check = |when: &str| {
        let read = fs::read_to_string(&log).expect("read");
        let mut next: BTreeMap<usize, usize> = BTreeMap::new();
        for line in read.lines() {
            let mut words = line.split(' ');
            let (id, i) = (words.next().expect("an id"), words.next().expect("a number"));
            let (id, i): (usize, usize) = (id.parse().expect("an id"), i.parse().expect("a number"));
            assert_eq!(words.next().map(str::len), Some(1500 + 977 * id), "{when}: line {i} of {id} is torn");
            let next = next.entry(id).or_default();
            assert_eq!(i, *next, "{when}: line {next} of {id} is missing");
            *next += 1;
        }
        assert_eq!(next, (0..4).map(|id| (id, 300)).collect(), "{when}");
    };
    check("at once");
    repo.kill9();
    repo.mount();
    check("after a crash");
}

#[test]
fn a_rename_is_atomic_to_any_observer() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("rename-atomic");
    repo.settings("checkpoint: {interval: 100ms}").mount();
    let live = repo.live();
    let version = |n: u64| noise(n % 7, 20_000 + (n % 7) as usize * 1000);
    fs::write(live.join("target"), version(0)).expect("written");
    for (name, content) in [("left", b"left"), ("ight", b"ight")] {
        fs::create_dir(live.join(name)).expect("made");
        fs::write(live.join(name).join("who"), content).expect("written");
    }
    let done = AtomicBool::new(false);
    let seen = thread::scope(|s| {
        let observers: Vec<_> = (0..3)
            .map(|_| {
                s.spawn(|| {
                    let mut seen = 0;
                    while !done.load(Ordering::Relaxed) {
                        let have = fs::read(live.join("target")).expect("the target is always there");
                        assert!((0..7).any(|n| have == version(n)), "{} bytes of no version", have.len());
                        let who = |name: &str| fs::read(live.join(name).join("who")).expect("always there");
                        assert!([&b"left"[..], b"ight"].contains(&&who("left")[..]));
                        let names: Vec<_> = fs::read_dir(&live).expect("listed").flatten().collect();
                        assert!(names.iter().any(|e| e.file_name() == "target"), "the target is missing in a listing");
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for n in 1..=1500u64 {
            fs::write(live.join("new"), version(n)).expect("written");
            fs::rename(live.join("new"), live.join("target")).expect("renamed");
            let (a, b) = (live.join("left"), live.join("ight"));
            rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchanged");
        }
        done.store(true, Ordering::Relaxed);
        observers.into_iter().map(|o| o.join().expect("an observer")).sum::<u32>()
    });
    assert!(seen > 100, "the observers looked {seen} times only");
}

/// Names of a directory with the position behind each, from a position on.
fn entries_from(dir: &Path, position: u64) -> Vec<(Vec<u8>, u64)> {
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opened");
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(position)).expect("a position that was told");
    let mut buffer = Vec::with_capacity(4096);
    let mut dir = RawDir::new(&fd, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push((name, entry.next_entry_cookie()));
        }
    }
    found
}

#[test]
fn positions_in_a_directory_hold_while_it_changes() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("seekdir");
    repo.settings("checkpoint: {interval: 100ms}").mount();
    let dir = repo.live().join("d");
    fs::create_dir(&dir).expect("made");
    let name = |i: usize| format!("entry-{i:05}");
    for i in 0..3000 {
        File::create(dir.join(name(i))).expect("made");
    }
    let told = entries_from(&dir, 0);
    assert_eq!(told.len(), 3000);
    for i in (0..3000).step_by(3) {
        fs::remove_file(dir.join(name(i))).expect("removed");
    }
    for i in (1..3000).step_by(300) {
        fs::rename(dir.join(name(i)), dir.join(format!("moved-{i}"))).expect("renamed");
        File::create(dir.join(format!("new-{i}"))).expect("made");
    }
    let touched = |n: &[u8]| {
        let i: usize = std::str::from_utf8(n).ok().and_then(|n| n.strip_prefix("entry-")?.parse().ok()).unwrap_or(0);
        i.is_multiple_of(3) || i % 300 == 1
    };
    let check = |repo: &TestRepo, when: &str| {
        for at in (0..3000).step_by(97) {
            let want: Vec<&[u8]> = told[at + 1..].iter().map(|(n, _)| &n[..]).filter(|n| !touched(n)).collect();
            let have = entries_from(&dir, told[at].1);
            let names: BTreeSet<&[u8]> = have.iter().map(|(n, _)| &n[..]).collect();
            assert_eq!(names.len(), have.len(), "{when}: an entry came twice from position {at} on");
            let old: Vec<&[u8]> =
                have.iter().map(|(n, _)| &n[..]).filter(|n| n.starts_with(b"entry-") && !touched(n)).collect();
            assert_eq!(old, want, "{when}: from position {at} on");
        }
        assert_eq!(entries_from(&dir, 0).len(), fs::read_dir(&dir).expect("listed").count(), "{when}");
        repo.status();
    };
    check(&repo, "at once");
    repo.umount().mount();
    check(&repo, "after a remount");
}

#[test]
fn posix_and_ofd_locks_exclude_by_range() {
    same_as_local("record-locks", |root| {
        let path = root.join("f");
        fs::write(&path, noise(1, 100)).expect("written");
        let open = || OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        let lock = |kind: i32, start, len| libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: len,
            l_pid: 0,
        };
        let (one, two, third) = (open(), open(), open());
        let ofd = |f: &File, l| fcntl(f, FcntlArg::F_OFD_SETLK(&l)).map_err(io::Error::from);
        let posix = |f: &File, l| fcntl(f, FcntlArg::F_SETLK(&l)).map_err(io::Error::from);
        let mut facts = Vec::new();
        note(&mut facts, "the first", ofd(&one, lock(libc::F_WRLCK, 0, 10)));
        note(&mut facts, "overlapping", ofd(&two, lock(libc::F_WRLCK, 5, 10)));
        note(&mut facts, "beside it", ofd(&two, lock(libc::F_WRLCK, 10, 10)));
        note(&mut facts, "POSIX over OFD", posix(&third, lock(libc::F_WRLCK, 0, 1)));
        note(&mut facts, "reading over writing", posix(&third, lock(libc::F_RDLCK, 15, 1)));
        note(&mut facts, "POSIX beside", posix(&third, lock(libc::F_RDLCK, 50, 10)));
        note(&mut facts, "two readers", ofd(&one, lock(libc::F_RDLCK, 55, 10)));
        note(&mut facts, "a writer among them", ofd(&two, lock(libc::F_WRLCK, 52, 1)));
        note(&mut facts, "given up in the middle", ofd(&one, lock(libc::F_UNLCK, 3, 4)));
        note(&mut facts, "taken there", ofd(&two, lock(libc::F_WRLCK, 3, 4)));
        drop(one);
        note(&mut facts, "closing gives all up", posix(&third, lock(libc::F_WRLCK, 0, 3)));
        facts
    });
}

#[test]
fn what_fallocate_cannot_do_is_refused_and_changes_nothing() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("fallocate-refused");
    repo.mount();
    let path = repo.live().join("f");
    fs::write(&path, noise(1, 100_000)).expect("written");
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE] {
        let refused = rustix::fs::fallocate(&file, flags, 4096, 4096).map_err(|e| e.raw_os_error());
        assert_eq!(refused, Err(libc::EOPNOTSUPP), "{flags:?}");
    }
    assert!(fs::read(&path).expect("read") == noise(1, 100_000));
}

#[test]
fn unnamed_temporary_files_are_refused() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("tmpfile");
    repo.mount();
    let refused = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(repo.live());
    assert_eq!(refused.map(drop).map_err(|e| e.raw_os_error()), Err(Some(libc::EOPNOTSUPP)));
    assert_eq!(fs::read_dir(repo.live()).expect("listed").count(), 0, "it left something");
}

#[test]
fn copies_inside_live_share_chunks_and_are_not_read() {
    const SIZE: u64 = 64 << 20;
    let _slot = alone();
    let mut repo = TestRepo::new("share");
    repo.mount();
    fs::write(repo.live().join("a"), noise(1, SIZE as usize)).expect("written");
    fs::create_dir(repo.snapshot("s")).expect("snapshot");
    repo.umount().mount();
    let (store, io) = (tree_bytes(&repo.store), daemon_io(&repo));
    must("cp", &["--sparse=never", text(&repo.live().join("a")), text(&repo.live().join("b"))], LIMIT);
    let from = File::open(repo.live().join("a")).expect("opened");
    let to = File::create(repo.live().join("c")).expect("created");
    let (mut at, mut into) = (1000, 0);
    while at < SIZE - 1000 {
        let left = (SIZE - 1000 - at) as usize;
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), left).expect("copied");
        assert!(copied > 0, "the copy stopped at {at}");
    }
    drop((from, to));
    let moved = daemon_io(&repo) - io;
    assert!(moved < SIZE / 8, "the daemon moved {moved} bytes to copy {SIZE} twice");
    repo.sync();
    let grown = tree_bytes(&repo.store) - store;
    assert!(grown < SIZE / 100, "two copies of {SIZE} bytes added {grown} to the store");
    let want = noise(1, SIZE as usize);
    assert!(fs::read(repo.live().join("b")).expect("read") == want, "the copy is wrong");
    assert!(fs::read(repo.live().join("c")).expect("read") == want[1000..SIZE as usize - 1000], "the part is wrong");
    let blocks = fs::metadata(repo.live().join("b")).expect("metadata").blocks() * 512;
    assert_eq!(blocks, SIZE, "what a shared copy occupies");
}

/// Bytes that the daemon has read and written by system calls, requests of the kernel among them.
fn daemon_io(repo: &TestRepo) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", repo.pid())).expect("a running daemon");
    let number = |name: &str| io.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    number("rchar:").zip(number("wchar:")).map(|(r, w)| r + w).expect("two numbers")
}

#[test]
fn links_of_a_file_end_at_65000() {
    let _slot = alone();
    let mut repo = TestRepo::new("links");
    repo.mount();
    let file = repo.live().join("f");
    File::create(&file).expect("made");
    for i in 1..65_000 {
        fs::hard_link(&file, repo.live().join(format!("{i}"))).unwrap_or_else(|e| panic!("link {i}: {e}"));
    }
    let refused = fs::hard_link(&file, repo.live().join("one more")).map_err(|e| e.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EMLINK)));
    assert_eq!(fs::metadata(&file).expect("metadata").nlink(), 65_000);
    fs::remove_file(repo.live().join("1")).expect("removed");
    fs::hard_link(&file, repo.live().join("one more")).expect("there is room again");
}

#[test]
fn a_directory_holds_more_than_65000_directories() {
    let _slot = alone();
    let mut repo = TestRepo::new("subdirectories");
    repo.mount();
    let dir = repo.live().join("d");
    fs::create_dir(&dir).expect("made");
    for i in 0..65_100 {
        fs::create_dir(dir.join(format!("{i}"))).unwrap_or_else(|e| panic!("directory {i}: {e}"));
    }
    assert_eq!(fs::metadata(&dir).expect("metadata").nlink(), 65_102);
    repo.umount().mount();
    assert_eq!(fs::read_dir(&dir).expect("listed").count(), 65_100);
}

#[test]
fn a_panic_inside_a_request_gives_eio_and_ends_nothing_else() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("panic");
    repo.environment("AXIOMFS_FAULT_POINT", "snapshot.logged").environment("AXIOMFS_FAULT_ACTION", "panic").mount();
    fs::write(repo.live().join("before"), b"kept").expect("written");
    let error = fs::create_dir(repo.snapshot("a")).expect_err("the request panics");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // The answer goes out while the panic unwinds, the report only after it.
    wait_for("the report of the panic", Duration::from_secs(20), || {
        fs::read_to_string(repo.dir.join("daemon.log")).is_ok_and(|log| log.contains("Panic inside a request"))
    });
    for i in 0..20 {
        fs::write(repo.live().join(format!("after-{i}")), b"new").expect("written");
        fs::create_dir(repo.snapshot(&format!("after-{i}"))).expect("the next snapshot");
    }
    assert_eq!(fs::read(repo.live().join("before")).expect("read"), b"kept");
    repo.umount().mount();
    assert_eq!(fs::read(repo.snapshot("after-19").join("after-19")).expect("read"), b"new");
}

#[test]
fn a_busy_mount_says_so_and_goes_on() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("busy");
    repo.mount();
    let path = repo.live().join("f");
    fs::write(&path, b"one").expect("written");
    let open = OpenOptions::new().append(true).open(&path).expect("opened");
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert_eq!(done.code(), 1, "{}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains("busy") && done.stderr.contains(text(&repo.mnt)), "{}", done.stderr);
    (&open).write_all(b"two").expect("the mount goes on");
    assert_eq!(fs::read(&path).expect("read"), b"onetwo");
    drop(open);
    repo.umount().mount();
    assert_eq!(fs::read(&path).expect("read"), b"onetwo");
}
