"""`deepzig serve`: the HTTP server and its web page.

Called by the command line; calls `server.listen`. Knows nothing of HTTP.
"""

import gc
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note, warn
from deepzig.cli.naming import Words
from deepzig.cli.options import (
    cache_options,
    compute_options,
    load_present,
    loading_options,
    model_folder,
    model_option,
)
from deepzig.cli.signals import handling
from deepzig.cli.text_files import read_text
from deepzig.errors import ServerError
from deepzig.server.settings import REASONING_FORMATS, key_problem

if TYPE_CHECKING:
    from deepzig.server.service import Service


class ApiKeys(Words):
    """Keys that are long enough; the error of one that is not names the option, variable or file that has it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if problem := key_problem(value):
            self.fail(problem, param, ctx)
        return value


@command()
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="0 takes a free one."
)
@click.option(
    "--api-key", "api_keys", multiple=True, type=ApiKeys(), metavar="KEY", hide_input=True,
    help="Key that clients must send, of 8 or more characters; may be repeated. DEEPZIG_SERVE_API_KEY keeps it out of "
    "the list of processes.",
)  # fmt: skip
@click.option(
    "--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with a key on each line."
)
@click.option("--insecure", is_flag=True, help="Serve other machines without a key.")
@click.option("--model-id", metavar="ID", help="Name of the model for clients.  [default: its folder's]")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
    help="Further name that clients may call it by, without scheme and port.",
)  # fmt: skip
@click.option(
    "--cors-origin", "allowed_origins", multiple=True, metavar="ORIGIN",
    help="Web pages and apps of this origin may call, such as https://chat.example or app://name.",
)  # fmt: skip
@click.option(
    "--shutdown-timeout", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long running requests may go on after SIGTERM or Ctrl-C; a second signal ends at once.",
)  # fmt: skip
@click.option(
    "--reasoning-format", type=click.Choice(REASONING_FORMATS), default="deepseek", show_default=True,
    help="Thoughts as reasoning_content, left in the content, or in both.",
)  # fmt: skip
@click.option("--expert-load", is_flag=True, help="Count which experts are chosen, for /status.")
@loading_options(compute_options, cache_options)
def serve(
    model: str,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    insecure: bool,
    model_id: str | None,
    allowed_hosts: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    shutdown_timeout: float,
    reasoning_format: str,
    expert_load: bool,
    loading: dict[str, Any],
) -> None:
    """Serve a model over HTTP, as OpenAI's API does, with a web page.

    \b
        deepzig serve
        deepzig serve -m ./DeepSeek-V2-Lite-Chat --port 8080
    """
    from deepzig.server.listen import Server, bind
    from deepzig.server.service import Service
    from deepzig.server.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=(*api_keys, *(_keys_of(api_key_file) if api_key_file else ())),
        insecure=insecure,
        allowed_hosts=allowed_hosts,
        allowed_origins=allowed_origins,
        shutdown_timeout=shutdown_timeout,
        expert_load=expert_load,
        reasoning_format=reasoning_format,
    )
    if settings.api_keys and loading["prompt_cache"] is not None:
        warn("--prompt-cache keeps nothing here, since prompts of API keys stay apart; leave out either")
        loading["prompt_cache"] = None  # prefixes that no key may use would take half of the cache
    model_folder(model)  # asks and downloads before there is a server
    if loading["n_machines"] > 1:
        from deepzig.distributed.ray_cluster import RayCluster

        RayCluster()  # in this thread, see there
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    service = Service(settings)
    server = Server(service)
    try:
        listener = bind(host, port)
    except OSError as error:
        raise ServerError(f"{host}:{port} cannot be listened on ({error.strerror}); take another --port") from error
    with listener, handling((signal.SIGHUP,), lambda _number, _frame: server.stop()):
        bound_port = listener.getsockname()[1]  # now: the server may be stopped before the model is loaded
        service.load(
            lambda: load_present(model, **loading),
            model_id,
            on_ready=lambda: _begin(service, bound_port),
            on_failure=server.stop,
        )
        server.run(sockets=[listener])
    if service.load_failure is not None:
        raise service.load_failure


def _keys_of(path: Path) -> list[str]:
    """Keys in a file. Raises ServerError if a line is no key, or if there are none: the server would be open to all."""
    lines = [line.strip() for line in read_text(path).removeprefix("\ufeff").splitlines()]
    keys = {number: line for number, line in enumerate(lines, start=1) if line and not line.startswith("#")}
    if not keys:
        raise ServerError(f"{path} has no key; write one on a line")
    for number, key in keys.items():
        if problem := key_problem(key):
            raise ServerError(f"{path}, line {number}: {problem}")
    return list(keys.values())


def _begin(service: "Service", port: int) -> None:
    """Announce the server, with garbage collection of the model off: it would stop all answers for 10 to 30 ms."""
    gc.collect()
    gc.freeze()
    _announce(service, port)


def _announce(service: "Service", port: int) -> None:
    """Tell people where the server is and what it serves."""
    settings, model = service.settings, service.loaded
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    key = "an API key is needed" if settings.api_keys else "no API key is needed"
    note(f"Serving {model.id} ({model.n_context} tokens of context) on http://{host}:{port}, {key}.")
    if settings.insecure and not settings.is_loopback and not settings.api_keys:
        warn("anybody who reaches this machine can use it (--insecure).")
    authorization = ' -H "Authorization: Bearer KEY"' if settings.api_keys else ""
    body = '{"prompt": "Once upon a time", "max_tokens": 32}'
    address = f"http://{host}:{port}"
    curl = f"curl {address}/v1/completions{authorization} -H 'Content-Type: application/json' -d '{body}'"
    note(f"Open {address}/ in a browser, or try: {curl}")
