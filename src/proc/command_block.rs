//! A command as one block of words. A process receives the block and uses it in place, because a process that shares
//! the server's memory must not allocate. No threads, no locks.
//!
//! Format, in native byte order and padded to eight bytes: the block's length; flags for a terminal and a user; uid and
//! gid; the number of supplementary groups; the groups, two in a word. Then the offsets of strings from the block's
//! start follow: the working directory; the command lines, each terminated by 0, and another 0; the environment,
//! terminated by 0. The strings follow last, each terminated by NUL. Several offsets may refer to one string.

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::CommandSpec;
use super::exec::{RawUser, StartReport, enter_group};

/// Eight bytes of a block, which hold one number in native byte order.
pub(super) type Word = [u8; size_of::<u64>()];

const TTY: u64 = 1;
const USER: u64 = 2;

/// Number of descriptors that become the command's streams.
pub const STREAMS: usize = 3;

/// Maximum number of `cgroup.procs` files: one in the v2 hierarchy, and one in a v1 hierarchy for each controller.
pub const MAX_PROCS_FILES: usize = 4;

/// Number of words before the groups.
const HEADER_WORDS: usize = 4;

/// Encodes a command; `mark` is an additional environment entry.
pub fn pack(command: &CommandSpec, mark: Option<&CString>) -> Vec<u8> {
    let user = command.user.as_ref();
    let groups = user.map_or(&[][..], |user| &user.groups);
    let lines = || command.attempts.iter().filter_map(|argv| argv.split_first());
    let variables = || command.env.iter().chain(mark);
    let pointers = 1 + lines().map(|(_, args)| args.len() + 2).sum::<usize>() + 1 + variables().count() + 1;
    let first = size_of::<Word>() * (HEADER_WORDS + groups.len().div_ceil(2) + pointers);
    let mut strings = Vec::new();
    let mut put = |text: &[u8]| {
        let offset = (first + strings.len()) as u64;
        strings.extend_from_slice(text);
        strings.push(0);
        offset
    };

    let mut words = vec![
        0,
        if command.tty { TTY } else { 0 } | if user.is_some() { USER } else { 0 },
        user.map_or(0, |user| u64::from(user.uid) | u64::from(user.gid) << 32),
        groups.len() as u64,
    ];
    words.extend(
        groups
            .chunks(2)
            .map(|two| u64::from(two[0]) | two.get(1).map_or(0, |second| u64::from(*second) << 32)),
    );
    words.push(put(command.cwd.as_bytes()));
    let (mut args, mut offsets): (&[CString], Vec<u64>) = (&[], Vec::new());
    for (program, rest) in lines() {
        words.push(put(program.to_bytes()));
        // The arguments are stored once even if the program is searched in several folders.
        if rest != args {
            (args, offsets) = (rest, rest.iter().map(|arg| put(arg.to_bytes())).collect());
        }
        words.extend(&offsets);
        words.push(0);
    }
    words.push(0);
    words.extend(variables().map(|variable| put(variable.to_bytes())));
    words.push(0);
    debug_assert_eq!(words.len() * size_of::<Word>(), first);

    strings.resize(strings.len().next_multiple_of(8), 0);
    words[0] = (first + strings.len()) as u64;
    let mut block: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    block.extend(strings);
    block
}

/// Waits without a deadline for the `cgroup.procs` files of the groups to enter, enters the groups and reports the
/// result. Returns `false` if the peer has disconnected. Does not allocate.
pub(super) fn receive_and_enter_groups(socket: BorrowedFd<'_>) -> bool {
    let mut word = Word::default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PROCS_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received.map_or(0, |received| received.bytes),
        }
    };
    let mut entered = Ok(());
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            rights.for_each(|procs| entered = entered.and(enter_procs(procs)));
        }
    }
    let reports = entered
        .map_or_else(|errno| StartReport::GroupFailed(errno.raw_os_error()), |()| StartReport::GroupEntered);
    received == size_of::<Word>() && send(socket, &reports.to_bytes(), SendFlags::NOSIGNAL).is_ok()
}

/// Moves this process into a cgroup. The descriptor stays open until the command is executed, because closing it would
/// use libc.
fn enter_procs(procs: OwnedFd) -> Result<(), Errno> {
    let entered = enter_group(&procs);
    let _ = procs.into_raw_fd();
    entered
}

/// Waits without a deadline for a block and for three descriptors. The block is stored at the start of `buffer`.
/// Further descriptors are `cgroup.procs` files, and the process enters their cgroups at once. Returns `None` if the
/// peer has disconnected or has sent other data. Does not allocate.
pub(super) fn receive<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [Word],
) -> Option<(&'a mut [Word], [RawFd; STREAMS])> {
    let mut fds = [-1; STREAMS];
    let mut filled = 0;
    let length = loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS + MAX_PROCS_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut rest = [IoSliceMut::new(&mut buffer.as_flattened_mut()[filled..])];
        match recvmsg(socket, &mut rest, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) if received.bytes > 0 => filled += received.bytes,
            Err(Errno::INTR) => continue,
            _ => return None,
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                for (number, fd) in rights.enumerate() {
                    match fds.get_mut(number) {
                        Some(slot) => *slot = fd.into_raw_fd(),
                        None => enter_procs(fd).ok()?,
                    }
                }
            }
        }
        let length = usize::try_from(u64::from_ne_bytes(*buffer.first()?)).ok()?;
        if filled >= size_of::<Word>() && filled >= length {
            break length;
        }
    };
    Some((buffer.get_mut(..length / size_of::<Word>())?, fds))
}

/// A decoded block: the addresses of the arguments for execve(2) and for other system calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnpackedCommand {
    pub(super) cwd: usize,
    /// The address of null-terminated arrays of pointers; a null pointer follows the last array.
    pub(super) argvs: usize,
    /// The address of a null-terminated array of pointers.
    pub(super) env: usize,
    /// Whether stdin is a terminal.
    pub(super) tty: bool,
    /// The user to which the process switches.
    pub(super) user: Option<RawUser>,
}

/// Replaces the offsets in the block by addresses, in place. Returns `None` if the block is malformed. Does not
/// allocate.
pub(super) fn unpack(block: &mut [Word]) -> Option<UnpackedCommand> {
    let base = block.as_ptr().expose_provenance();
    let word = |block: &[Word], at: usize| block.get(at).map(|word| u64::from_ne_bytes(*word));
    let length = word(block, 0)?;
    // The last byte must be NUL, so that every string ends within the block.
    if length != size_of_val(block) as u64 || block.last()?[7] != 0 {
        return None;
    }
    let (flags, ids) = (word(block, 1)?, word(block, 2)?);
    let groups = usize::try_from(word(block, 3)?).ok().filter(|count| *count <= block.len())?;
    // Returns whether this position contained an offset (and not a 0).
    let mut relocate = |at: usize| -> Option<bool> {
        match word(block, at)? {
            0 => Some(false),
            offset if offset >= length => None,
            offset => {
                block[at] = (base as u64 + offset).to_ne_bytes();
                Some(true)
            }
        }
    };
    let cwd = HEADER_WORDS + groups.div_ceil(2);
    if !relocate(cwd)? {
        return None;
    }
    let argvs = cwd + 1;
    let mut at = argvs;
    while relocate(at)? {
        at += 1;
        while relocate(at)? {
            at += 1;
        }
        at += 1;
    }
    at += 1;
    let env = at;
    while relocate(at)? {
        at += 1;
    }
    let user = (flags & USER != 0).then(|| RawUser {
        uid: ids as u32,
        gid: (ids >> 32) as u32,
        groups: ptr::with_exposed_provenance(base + HEADER_WORDS * size_of::<Word>()),
        count: groups,
    });
    let address = |at: usize| base + at * size_of::<Word>();
    let cwd = word(block, cwd)? as usize;
    Some(UnpackedCommand { cwd, argvs: address(argvs), env: address(env), tty: flags & TTY != 0, user })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

    use super::super::ProcessUser;
    use super::super::exec::{REPORT_BYTES, StartReport, StartStep};
    use super::super::spawn::{dev_null, pipe};
    use super::super::sys::ZygoteSlots;
    use super::*;

    fn command() -> CommandSpec {
        let strings = |texts: &[&str]| texts.iter().map(|text| CString::new(*text).unwrap()).collect();
        CommandSpec {
            attempts: vec![
                strings(&["/bin/a", "", "x y"]),
                strings(&["/usr/bin/a", "", "x y"]),
                strings(&["/bin/b"]),
            ],
            env: strings(&["A=1", "B="]),
            cwd: "/work".to_owned(),
            limits: None,
            tty: true,
            user: Some(ProcessUser { uid: 7, gid: 8, groups: vec![9, 10, 11] }),
            account: false,
            patience: None,
        }
    }

    fn words(block: &[u8]) -> Vec<Word> {
        block.chunks(8).map(|word| word.try_into().unwrap()).collect()
    }

    fn number(word: Word) -> u64 {
        u64::from_ne_bytes(word)
    }

    /// Returns the string at an address within `block`.
    fn text(block: &[Word], address: u64) -> String {
        let bytes = block.as_flattened();
        let at = address as usize - block.as_ptr().expose_provenance();
        let end = at + bytes[at..].iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[at..end].to_vec()).unwrap()
    }

    #[test]
    fn packed_command_is_unpacked_in_place() {
        let mark = CString::new("MARK=1").unwrap();
        let mut block = words(&pack(&command(), Some(&mark)));
        let unpacked = unpack(&mut block).unwrap();
        let at = |address: usize| (address - block.as_ptr().expose_provenance()) / 8;
        let list = |from: usize| -> Vec<String> {
            let words = block[from..].iter().map(|word| number(*word));
            words.take_while(|word| *word != 0).map(|word| text(&block, word)).collect()
        };
        let argvs = at(unpacked.argvs);
        assert_eq!(list(argvs), ["/bin/a", "", "x y"]);
        assert_eq!(list(argvs + 4), ["/usr/bin/a", "", "x y"]);
        assert_eq!(block[argvs + 2], block[argvs + 6], "arguments are stored twice");
        assert_eq!(list(argvs + 8), ["/bin/b"]);
        assert_eq!(number(block[argvs + 10]), 0);
        assert_eq!(at(unpacked.env), argvs + 11);
        assert_eq!(list(at(unpacked.env)), ["A=1", "B=", "MARK=1"]);
        assert_eq!(text(&block, unpacked.cwd as u64), "/work");
        assert!(unpacked.tty);
        let RawUser { uid, gid, groups, count } = unpacked.user.unwrap();
        assert_eq!((uid, gid, count), (7, 8, 3));
        let groups = at(groups.expose_provenance());
        assert_eq!(number(block[groups]), 9 | 10 << 32);
        assert_eq!(number(block[groups + 1]), 11);

        let plain = CommandSpec { tty: false, user: None, ..command() };
        let mut block = words(&pack(&plain, None));
        let unpacked = unpack(&mut block).unwrap();
        assert!(!unpacked.tty && unpacked.user.is_none());
    }

    /// If any single word is changed, the result either points into the block or is `None`.
    #[test]
    fn malformed_block_never_points_outside_of_itself() {
        let good = words(&pack(&command(), None));
        for at in 0..good.len() {
            for value in [0, 1, 8, 1 << 20, u64::MAX, number(good[0]) - 1, number(good[0])] {
                let mut block = good.clone();
                block[at] = value.to_ne_bytes();
                let base = block.as_ptr().expose_provenance();
                let range = base..base + 8 * block.len();
                let Some(unpacked) = unpack(&mut block) else { continue };
                assert!([unpacked.cwd, unpacked.argvs, unpacked.env].iter().all(|at| range.contains(at)));
                if let Some(RawUser { groups, count, .. }) = unpacked.user {
                    let groups = groups.expose_provenance();
                    assert!(range.contains(&groups) && groups + 4 * count <= range.end);
                }
            }
        }
        for length in 0..good.len() {
            assert!(unpack(&mut good[..length].to_vec()).is_none());
        }
    }

    /// Sends `block` to a waiting process. Returns the reports, the output and the exit status of the process.
    fn wait_with(slots: &mut ZygoteSlots, block: &[u8]) -> (Vec<StartReport>, String, WaitStatus) {
        let (mut near, far) = UnixStream::pair().unwrap();
        let far = OwnedFd::from(far);
        let pid = slots.spawn_waiting(far.as_fd(), false).unwrap();
        drop(far);
        let mut entered = Word::default();
        near.write_all(&entered).unwrap();
        near.read_exact(&mut entered).unwrap();
        assert_eq!(StartReport::from_bytes(entered), Some(StartReport::GroupEntered));
        let (out, out_child) = pipe().unwrap();
        let null = dev_null().unwrap();
        let fds = [null.as_fd(), out_child.as_fd(), out_child.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        // The block is sent in two parts, because a stream socket may split it anywhere.
        let (first, second) = block.split_at(block.len() / 2);
        let first = [std::io::IoSlice::new(first)];
        let sent = sendmsg(&near, &first, &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(sent, first[0].len());
        near.write_all(second).unwrap();
        drop(out_child);
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut reports, mut printed) = (Vec::new(), String::new());
        near.read_to_end(&mut reports).unwrap();
        std::fs::File::from(out).read_to_string(&mut printed).unwrap();
        let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
        let reports = reports
            .chunks(REPORT_BYTES)
            .map(|reports| StartReport::from_bytes(reports.try_into().unwrap()).unwrap())
            .collect();
        (reports, printed, status)
    }

    #[test]
    fn waiting_process_becomes_the_command() {
        let shell = |script: &str| CommandSpec {
            attempts: vec![
                vec![c"/nowhere/sh".to_owned()],
                vec![c"/bin/sh".to_owned(), c"-c".to_owned(), CString::new(script).unwrap()],
            ],
            env: vec![c"A=one two".to_owned()],
            cwd: "/usr".to_owned(),
            tty: false,
            user: None,
            ..command()
        };
        let mut slots = ZygoteSlots::default();
        // The Rust runtime ignores SIGPIPE, but in the program SIGPIPE has its default action, and no signal is
        // blocked.
        let script = "echo $A; pwd; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; exit 7";
        let (reports, printed, status) = wait_with(&mut slots, &pack(&shell(script), None));
        assert_eq!(reports, [StartReport::Accepted]);
        let none = "0000000000000000";
        let wanted = format!("one two\n/usr\nSigBlk:\t{none}\nSigIgn:\t{none}\n0\n1\n2\n3\n");
        assert_eq!((printed.as_str(), status.exit_status()), (wanted.as_str(), Some(7)));

        // A long command, a short command in the same slot, a command of another user, and commands of which a step
        // fails.
        let long = shell(&format!("echo {} | wc -c", "x".repeat(100_000)));
        assert_eq!(wait_with(&mut slots, &pack(&long, None)).1, "100001\n");
        let user = Some(ProcessUser { uid: 65534, gid: 65533, groups: vec![65530, 65531, 65532] });
        let nobody = CommandSpec { user, ..shell("id -u; id -G") };
        assert_eq!(wait_with(&mut slots, &pack(&nobody, None)).1, "65534\n65533 65530 65531 65532\n");
        let nowhere = CommandSpec { cwd: "/nowhere".to_owned(), ..shell("echo no") };
        let (reports, printed, _) = wait_with(&mut slots, &pack(&nowhere, None));
        assert_eq!(
            (reports, printed.as_str()),
            (vec![StartReport::Failed(StartStep::Cwd, libc::ENOENT)], "")
        );
        let nothing = CommandSpec { attempts: vec![vec![c"/etc/passwd".to_owned()]], ..shell("") };
        let (reports, _, status) = wait_with(&mut slots, &pack(&nothing, None));
        assert_eq!(reports, [StartReport::Accepted, StartReport::Failed(StartStep::Exec, libc::EACCES)]);
        assert_eq!(status.exit_status(), Some(127));
        // The peer disconnects, or it sends a malformed block.
        assert_eq!(wait_with(&mut slots, &[]).2.exit_status(), Some(0));
        assert_eq!(wait_with(&mut slots, &[8; 64]).2.exit_status(), Some(0));
    }

    #[test]
    fn many_processes_wait_at_the_same_time() {
        let mut slots = ZygoteSlots::default();
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let (near, far) = UnixStream::pair().unwrap();
                (slots.spawn_waiting(far.as_fd(), false).unwrap(), near)
            })
            .collect();
        for (pid, near) in waiting {
            drop(near);
            let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0));
        }
    }
}
