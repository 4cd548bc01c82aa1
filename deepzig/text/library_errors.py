"""What the `tokenizers` library raises, as an error for users. Called by the backends that use it."""

from collections.abc import Iterator
from contextlib import contextmanager

from deepzig.errors import TokenizerError, shown


@contextmanager
def library_errors(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever is raised into a TokenizerError of `what`, the library's reason and `remedy`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and its Rust panics are not even that
        raise TokenizerError(f"{what} ({shown(str(error))}); {remedy}") from error
