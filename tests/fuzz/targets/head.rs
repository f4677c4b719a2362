//! Compares the gate's parser of request heads with a simple reference parser. The first byte of the input chooses
//! where the head is split.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    berth::gate::reference::check_head(bytes, &berth::gate::reference::pieces(bytes.len(), *cut));
});
