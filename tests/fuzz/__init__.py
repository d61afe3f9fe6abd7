"""Fuzzing: damaged and hostile files must give an error, never a crash, a hang, or a read outside a map or buffer.

    make fuzz                                                    # every target, 1.1 million inputs in all
    python -m tests.fuzz.run --targets manifest --inputs 20000   # one of them, a shorter run
    python -m tests.fuzz.run --targets manifest --replay FILE    # one input again, with what it raises

How it works
------------
libFuzzer finds the inputs; it comes with atheris, and so do the address and undefined-behaviour sanitizers
(`asan_with_fuzzer.so`, preloaded into a fresh Python). Both sides guide it: the bytecode of the engine's modules that a
target imports, which atheris instruments, and csrc/, which `build.py` compiles once more, with g++'s sanitizers and
coverage, into build/fuzz/. `instrumentation.cpp` hands that coverage to libFuzzer, and makes a read outside a memory
map as visible to the sanitizer as one outside a buffer: guard pages around each map, and the end of its last page
poisoned, so that one byte too many is noticed. `worker.py` runs one target in one process, `run.py` builds, runs two
targets at a time and prints the table; it exits with 1 if one of them found something.

An input is bytes, as libFuzzer mutates them. A target reads its decisions from them with `choices.Choices`: which
valid files to start from, what to damage and how, then which calls to make. So a mutated byte is another decision,
and most inputs get past the magic, the counts and the sizes to where the interesting mistakes are.

A target raises nothing for an input that is handled well. What the code under test may raise, the target expects;
whatever else leaves it is a finding, and so are a report of a sanitizer, one second of processor time for one input,
and 2 GB of memory. Where it can, a target compares the answers with an oracle of its own that knows the files' bytes.

A new target is one file and one line
-------------------------------------
The file, `<name>_target.py`, has

    seeds() -> list[bytes]     inputs to start from, made by code
    make(folder) -> Target     a function of the bytes; it may write files in `folder`, which is in memory

and the line goes to `targets.py`. The test suite then runs it as well, on the plain build, with a fixed seed and
without coverage (`test_fuzz.py`), and `make fuzz` with all of the above. A finding is kept as
build/fuzz/findings/<target>/<kind>-<hash>: mend what it shows, with a test of its own beside the code it concerns.
"""
