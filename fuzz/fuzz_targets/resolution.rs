#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| btcr2_aggregation_fuzz::resolution::check(data));
