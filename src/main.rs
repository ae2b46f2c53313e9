//! The program. Its code is in the library's module `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    btcr2_aggregation::cli::main()
}
