"""`python -m deepzig`, and the console script `deepzig`: the command line, which is imported in here."""

import signal


def main() -> None:
    """Run the command line. Until it is there Ctrl-C ends the program at once: nothing is open, nothing to be told."""
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell's `&` ignores it
    if catches:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deepzig.cli import main as command_line

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line(prog_name="deepzig")


if __name__ == "__main__":
    main()
