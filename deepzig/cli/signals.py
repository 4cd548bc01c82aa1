"""The signals that end a program from outside, beside Ctrl-C: SIGTERM, and SIGHUP when its terminal is closed.

Called by `chat`, `generate` and `serve`, which may have a prompt cache to write. Knows no command.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

BY_SIGNAL = 128  # is added to the signal's number, as shells do

Handler = Callable[[int, FrameType | None], None]


def orderly_end() -> AbstractContextManager[None]:
    """Within this context the first signal ends the program by SystemExit, which lets everything be closed."""
    return handling((signal.SIGHUP, signal.SIGTERM), _end)


@contextmanager
def handling(signals: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    """Within this context they call `handler`, unless they are ignored, as nohup does; nothing in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: known for number in signals if (known := signal.getsignal(number)) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it comes twice, from the terminal and from the shell
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # who cannot wait may send another
    raise SystemExit(BY_SIGNAL + number)
