//! Calls to the operating system that the standard library lacks. The only file of this crate with unsafe code; each
//! block is one call (or one read-modify pair) whose pointers live on this stack for its length.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Keeps other processes of this user from reading our memory, and the kernel from writing it into a core file.
pub fn forbid_dumps() {
    // SAFETY: both calls take plain values or a pointer to a struct on this stack. Their failure leaves the process as
    // it was, which is no reason not to go on.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
    }
}

/// Lets threads share their heaps: with eight for each processor, as glibc has it, a sixth of what a busy mount holds is memory that one of
/// them has freed and none of the others can use. Call it before any thread exists.
#[cfg(target_env = "gnu")]
pub fn share_heaps() {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let heaps = libc::c_int::try_from(processors.clamp(2, 8)).unwrap_or(2);
    // SAFETY: plain values only. If it is refused nothing changes.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, heaps);
    }
}

/// Other C libraries have one heap, or manage theirs otherwise.
#[cfg(not(target_env = "gnu"))]
pub fn share_heaps() {}

/// Marks this thread, and those it will start, as one that memory reclaim may have to wait for, so that reclaim never waits for it in a circle.
/// Needs a capability; without it the kernel refuses and nothing changes.
pub fn become_io_flusher() -> bool {
    /// From `linux/prctl.h` (since 5.6); the libc crate lacks it.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: plain values only.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 }
}

/// Takes a variable out of the environment and overwrites the place where it stood, so that `/proc/PID/environ` no longer
/// shows it. Call it before any thread exists.
pub fn take_secret_from_environment(name: &str) -> Option<Zeroizing<Vec<u8>>> {
    let name = CString::new(name).ok()?;
    // SAFETY: no other thread exists yet that could read or change the environment; getenv returns null or a
    // NUL-terminated string inside the process's own writable environment block.
    unsafe {
        let place = libc::getenv(name.as_ptr());
        if place.is_null() {
            return None;
        }
        let len = libc::strlen(place);
        let secret = Zeroizing::new(std::slice::from_raw_parts(place.cast::<u8>(), len).to_vec());
        for at in 0..len {
            std::ptr::write_volatile(place.add(at), 0);
        }
        libc::unsetenv(name.as_ptr());
        Some(secret)
    }
}

/// A terminal that neither echoes nor edits nor makes signals of keys, until it is dropped.
pub struct SilentTerminal<'t> {
    terminal: &'t File,
    before: libc::termios,
}

impl<'t> SilentTerminal<'t> {
    /// Takes the terminal.
    ///
    /// # Errors
    /// What the terminal answers.
    pub fn new(terminal: &'t File) -> io::Result<Self> {
        let mut attributes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the struct when it returns 0; it is read only then.
        let before = unsafe {
            check(libc::tcgetattr(terminal.as_raw_fd(), attributes.as_mut_ptr()))?;
            attributes.assume_init()
        };
        let mut silent = before;
        // Byte by byte and without signals: an interrupt that ended the process would leave the terminal silent.
        silent.c_lflag &= !(libc::ECHO | libc::ICANON | libc::ISIG);
        silent.c_cc[libc::VMIN] = 1;
        silent.c_cc[libc::VTIME] = 0;
        // SAFETY: the struct is initialised and lives through the call.
        unsafe { check(libc::tcsetattr(terminal.as_raw_fd(), libc::TCSAFLUSH, &silent))? };
        Ok(Self { terminal, before })
    }
}

impl Drop for SilentTerminal<'_> {
    fn drop(&mut self) {
        // SAFETY: as above. A failure can't be reported from here and leaves the terminal silent.
        unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSAFLUSH, &self.before) };
    }
}

/// Takes over a descriptor that was handed to this process by number. One of the terminal's numbers stays open, too: what is opened next
/// would get it, and [`leave_terminal`] replace that.
///
/// # Errors
/// `EBADF` if no such descriptor is open.
pub fn adopt_descriptor(fd: RawFd) -> io::Result<File> {
    // SAFETY: fcntl takes no memory; a descriptor that is open was opened by our caller for us (its number stands on our
    // command line), so nothing else in this process owns it, nor the copy.
    unsafe {
        let own = if fd <= libc::STDERR_FILENO {
            check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1))?
        } else {
            check(libc::fcntl(fd, libc::F_GETFD))?;
            fd
        };
        Ok(File::from_raw_fd(own))
    }
}

/// Which side of [`fork`] this is.
pub enum Forked {
    /// The caller; holds the child's process id.
    Parent(libc::pid_t),
    /// The new process, in a session of its own.
    Child,
}

/// Splits the process. Call it while there is only one thread. The child keeps no descriptor from 3 on that this process was started
/// with: a lock of whoever started it would be held, and a pipe stay open, as long as the child lives.
///
/// # Errors
/// What the kernel answers, or `EBUSY` if there is more than one thread.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let inherited = inherited()?;
    // SAFETY: with a single thread no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: no arguments. It fails only for a group leader, which a fresh child is not.
            unsafe { libc::setsid() };
            for fd in inherited {
                // SAFETY: plain values only; nothing in this process has opened it, so nothing owns it.
                unsafe { libc::close(fd) };
            }
            Ok(Forked::Child)
        }
        pid => Ok(Forked::Parent(pid)),
    }
}

/// The descriptors from 3 on that this process was started with. Whatever is opened in it is closed on exec, so these are the ones that
/// are not. Not simply all: libraries keep descriptors of their own for the whole process.
fn inherited() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // SAFETY: plain values only.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if fd > libc::STDERR_FILENO && flags != -1 && flags & libc::FD_CLOEXEC == 0 {
            found.push(fd);
        }
    }
    Ok(found)
}

/// Lets this process have as many files open as it may: each segment of the log that is not freed yet is one. Where that is refused the
/// bound stays as it was.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives on this stack and is filled before it is read.
    let raised = unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit)).and_then(|_| {
            limit.rlim_cur = limit.rlim_max;
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))
        })
    };
    if let Err(error) = raised {
        tracing::debug!(%error, "could not raise the bound of open files");
    }
}

/// Whether this process is told to end (SIGTERM) when the thread that made it ends.
pub fn end_with_parent(wish: bool) {
    let signal = if wish { libc::SIGTERM } else { 0 };
    // SAFETY: plain values only. If it is refused nothing changes.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0);
    }
}

/// How a child ended: its exit code, or the signal that ended it.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Waits for a child made by [`fork`].
///
/// # Errors
/// What the kernel answers.
pub fn wait_for_child(pid: libc::pid_t) -> io::Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: the status lives on this stack.
        match unsafe { check(libc::waitpid(pid, &mut status, 0)) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Ended::Signal(libc::WTERMSIG(status))),
            Ok(_) => return Ok(Ended::Exit(libc::WEXITSTATUS(status))),
        }
    }
}

/// Points standard input, output and error at `/dev/null`: a daemon has no terminal.
///
/// # Errors
/// What opening it or the kernel answers.
pub fn leave_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        // SAFETY: both descriptors are open; nothing in this process owns 0, 1 or 2 by value.
        unsafe { check(libc::dup2(null.as_raw_fd(), fd))? };
    }
    Ok(())
}

/// A pipe whose ends are closed on exec.
///
/// # Errors
/// What the kernel answers.
pub fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = io::pipe()?;
    Ok((File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer))))
}

/// Tries to take the exclusive lock of an open file; `false` if another holds it.
///
/// # Errors
/// What the kernel answers otherwise.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: plain values; the descriptor is open as long as the reference.
    match unsafe { check(libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB)) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Blocks SIGINT, SIGTERM and SIGHUP for this thread and all it will start; [`wait_for_signal`] then takes them.
pub fn block_signals() {
    let set = ending_signals();
    // SAFETY: the set is initialised and lives through the call.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Waits for one of the signals that [`block_signals`] holds back; its number.
pub fn wait_for_signal() -> i32 {
    let set = ending_signals();
    let mut signal = 0;
    // SAFETY: both pointers live on this stack.
    while unsafe { libc::sigwait(&set, &mut signal) } != 0 {}
    signal
}

fn ending_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Unmounts as root does.
///
/// # Errors
/// `EPERM` for others than root, `EBUSY`, `EINVAL` if nothing is mounted there.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: the string lives through the call.
    unsafe { check(libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW)).map(|_| ()) }
}

/// The effective user and group.
pub fn user() -> (u32, u32) {
    // SAFETY: no arguments, never fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// The name of this machine.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_open_on_exec_counts_as_inherited() {
        let (own, given) = pipe().unwrap();
        // SAFETY: plain values; the descriptor is open.
        unsafe { check(libc::fcntl(given.as_raw_fd(), libc::F_SETFD, 0)).unwrap() };
        let found = inherited().unwrap();
        assert!(found.contains(&given.as_raw_fd()) && !found.contains(&own.as_raw_fd()), "{found:?}");
    }
}
