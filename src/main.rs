//! The program. Everything it does is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    btcr2_aggregation::cli::main()
}
