"""`deepzig completion SHELL`: the script that lets a shell complete commands, options and models.

Called by the command line, and by `options` for what may follow -m; calls click, whose scripts these are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepzig.cli.command import command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")
CACHED = "models--"  # the hub's folder of org/name is models--org--name


@command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands.

    Put the line for your shell into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:

    \b
        eval "$(deepzig completion bash)"
        eval "$(deepzig completion zsh)"
        deepzig completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # all of SHELLS are click's
    click.echo(kind(context.find_root().command, {}, "deepzig", "_DEEPZIG_COMPLETE").source())


def complete_model(_context: click.Context, _parameter: click.Parameter, begun: str) -> "list[CompletionItem[str]]":
    """Bundled models, hub models on this machine, and folders with a config.json; else any folder.

    The shell completes folders itself, but not if there are other answers.
    """
    from click.shell_completion import CompletionItem

    from deepzig.checkpoint.model_names import BUNDLED

    folders = (str(config.parent) for config in Path().glob("*/config.json"))
    found = [name for name in (*BUNDLED, *sorted(_on_this_machine()), *sorted(folders)) if name.startswith(begun)]
    return [CompletionItem(name) for name in found] or [CompletionItem(begun, type="dir")]


def _on_this_machine() -> Iterator[str]:
    """Names of the models in the hub's cache."""
    from huggingface_hub import constants

    for folder in Path(constants.HF_HUB_CACHE).glob(f"{CACHED}*/snapshots/*/config.json"):
        yield folder.parents[2].name.removeprefix(CACHED).replace("--", "/", 1)
