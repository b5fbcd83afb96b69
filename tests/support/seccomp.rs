//! Seccomp filters that refuse a system call, as container runtimes use them.

/// Which calls are refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    /// All calls.
    Always,
    /// Calls in which the argument with this index has this value.
    Is(u32, u32),
    /// Calls in which the argument with this index has a larger value.
    Above(u32, u32),
}

/// Makes a system call fail with `errno`, in this thread and in the processes that it starts later.
pub(crate) fn refuse(call: libc::c_long, when: When, errno: i32) {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).expect("16 bits"), jt, jf, k };
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let unless = |jump: u32, k, skip| statement(libc::BPF_JMP | jump | libc::BPF_K, 0, skip, k);
    let verdict = |what| statement(libc::BPF_RET | libc::BPF_K, 0, 0, what);
    // struct seccomp_data: the number of the call, 4 bytes of architecture, 8 bytes of address,
    // then arguments of 8 bytes each. The filter compares the low word of an argument.
    let low = if cfg!(target_endian = "little") { 0 } else { 4 };
    let argument = |number| load(16 + 8 * number + low);
    let test = match when {
        When::Always => vec![],
        When::Is(number, value) => vec![argument(number), unless(libc::BPF_JEQ, value, 1)],
        When::Above(number, value) => vec![argument(number), unless(libc::BPF_JGT, value, 1)],
    };
    let call = u32::try_from(call).expect("a small number");
    let skip = u8::try_from(test.len() + 1).expect("few");
    let refusal = verdict(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let mut filter = [vec![load(0), unless(libc::BPF_JEQ, call, skip)], test].concat();
    filter.extend([refusal, verdict(libc::SECCOMP_RET_ALLOW)]);
    let len = libc::c_ushort::try_from(filter.len()).expect("few");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to as many statements as it says, and both live across the call,
    // which copies them.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
