#!/bin/sh
# cargo's wrapper around rustc for the crates of this workspace: what tells libFuzzer where it has been goes into them alone,
# so that all they depend on is built once, for fuzzers and tests alike.
case " $* " in
*" --crate-name build_script_build "* | *" --print "*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing
