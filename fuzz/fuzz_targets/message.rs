#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| btcr2_aggregation_fuzz::message::check(data));
