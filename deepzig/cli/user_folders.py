"""Where a user's files belong by the XDG base directory specification.

Called by `config_file` and `chat_input`. Knows nothing of the files.
"""

import os
from pathlib import Path


def user_folder(variable: str, below_home: str) -> Path | None:
    """deepzig's folder below the one that `variable` names, if that is an absolute path, else below the home folder.

    None without a home: a user unknown to the system, as in containers, may have none.
    """
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named, "deepzig")
    try:
        return Path.home() / below_home / "deepzig"
    except RuntimeError:
        return None
