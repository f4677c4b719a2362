//! The gate's reader of chunked bodies against the plainest one. The first byte says where the body arrives in pieces,
//! the second how much is too much.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [cut, cap, bytes @ ..] = input else { return };
    let cap = if *cap == 255 { u64::MAX } else { u64::from(*cap) * 8 };
    berth::gate::reference::check_chunks(bytes, &berth::gate::reference::pieces(bytes.len(), *cut), cap);
});
