"""How long people wait for the command line: from the start of the process to its help, or to the first byte of a text.

`python -m bench.startup`. Beside each time stands that of Python alone, in the same minute. Calls no module of deepzig:
it starts processes, as a shell does.
"""

import subprocess
import sys
from statistics import median
from time import perf_counter

RUNS = 10
PYTHON = [sys.executable, "-c", "print()"]
DEEPZIG = [sys.executable, "-m", "deepzig"]
COMMANDS = {
    "Python alone": PYTHON,
    "deepzig --help": [*DEEPZIG, "--help"],
    "deepzig generate --help": [*DEEPZIG, "generate", "--help"],
    "first token of stories": [*DEEPZIG, "generate", "-m", "stories", "Once upon a time"],
}


def seconds_to_first_byte(command: list[str]) -> float:
    """From the start of the process until it writes to stdout. Raises RuntimeError if it writes nothing."""
    started = perf_counter()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        first = process.stdout.read(1)
        elapsed = perf_counter() - started
        process.kill()
    if not first:
        raise RuntimeError(f"{' '.join(command)} printed nothing")
    return elapsed


def main() -> None:
    print(f"| {'seconds, ' + str(RUNS) + ' runs':<24} | median | lowest | highest |")
    print("|---|---:|---:|---:|")
    for name, command in COMMANDS.items():
        seconds_to_first_byte(command)  # fills the page cache and writes the bytecode
        seconds = [seconds_to_first_byte(command) for _ in range(RUNS)]
        print(f"| {name:<24} | {median(seconds):.3f} | {min(seconds):.3f} | {max(seconds):.3f} |")


if __name__ == "__main__":
    main()
