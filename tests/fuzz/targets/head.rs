//! The gate's reader of request heads against the plainest one. The first byte says where the head arrives in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    berth::gate::reference::check_head(bytes, &berth::gate::reference::pieces(bytes.len(), *cut));
});
