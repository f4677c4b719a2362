//! Compares the gate's parser of chunked bodies with a simple reference parser. The first byte of the input chooses
//! where the body is split, the second the size limit.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [cut, cap, bytes @ ..] = input else { return };
    let cap = if *cap == 255 { u64::MAX } else { u64::from(*cap) * 8 };
    berth::gate::reference::check_chunks(bytes, &berth::gate::reference::pieces(bytes.len(), *cut), cap);
});
