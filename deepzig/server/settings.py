"""ServerSettings: where the server listens, whom it serves, and its limits. Made by `cli.serve`."""

import ipaddress
import re
from dataclasses import dataclass, field

from deepzig.errors import ServerError

MIN_KEY_LENGTH = 8
# deepseek: into reasoning_content; none: they stay in the content, marks and all; both: into both.
REASONING_FORMATS = ("deepseek", "none", "both")
# Of pages and of apps, as in app://obsidian.md.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class ServerSettings:
    """What an operator may set. Raises ServerError when made with a combination that is not safe."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False  # other machines may come without a key
    allowed_hosts: tuple[str, ...] = ()  # further names in the Host header
    allowed_origins: tuple[str, ...] = ()  # web pages and apps that may call, as in "https://chat.example"
    shutdown_timeout: float = 30.0  # seconds for running requests after SIGTERM
    max_body_bytes: int = 8 << 20
    max_connections: int = 1000
    receive_timeout: float = 30.0  # seconds for a client to send a whole request
    send_timeout: float = 30.0  # seconds that a client may leave its stream unread
    ping_interval: float = 10.0  # seconds between signs of life to a waiting client
    expert_load: bool = False  # count which experts are chosen
    reasoning_format: str = "deepseek"  # where reasoning goes, see REASONING_FORMATS

    def __post_init__(self) -> None:
        for key in self.api_keys:
            if problem := key_problem(key):
                raise ServerError(problem)
        if not (self.is_loopback or self.api_keys or self.insecure):
            raise ServerError(
                f"listening on {self.host} lets other machines in; give --api-key, or --insecure if that is meant"
            )
        if self.reasoning_format not in REASONING_FORMATS:
            raise ServerError(
                f"reasoning format {self.reasoning_format!r} is unknown; use {', '.join(REASONING_FORMATS)}"
            )
        object.__setattr__(self, "allowed_hosts", tuple(map(_name_alone, self.allowed_hosts)))
        object.__setattr__(self, "allowed_origins", tuple(map(_as_browsers_write, self.allowed_origins)))

    @property
    def is_loopback(self) -> bool:
        """Only programs on this machine can connect."""
        return is_loopback_host(self.host)


def key_problem(key: str) -> str | None:
    """Why an API key cannot be used, if so; does not tell the key."""
    if not (key.isascii() and key.isprintable()):
        return "an API key has characters other than printable ASCII; replace it"
    if len(key) < MIN_KEY_LENGTH:
        return f"an API key of {len(key)} characters is too short; use one of {MIN_KEY_LENGTH} or more"
    return None


def _name_alone(host: str) -> str:
    """The name or address as it is found in a Host header. Raises ServerError if there is more, as a port."""
    name = host.lower().removeprefix("[").removesuffix("]")
    if re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return name
    try:
        return str(ipaddress.IPv6Address(name))
    except ValueError:
        raise ServerError(f"{host!r} is no host as clients name one; give the name alone, as llm.example") from None


def _as_browsers_write(origin: str) -> str:
    """The origin as it stands in the header of that name. Raises ServerError if it is none."""
    written = origin.lower()
    if written == "null":
        return written
    found = _ORIGIN.fullmatch(written)
    if found is None:
        raise ServerError(f"origin {origin!r} is neither of the form https://name[:port] nor null; write it so")
    scheme, port = found.groups()
    return written.removesuffix(port) if port and port == _DEFAULT_PORTS.get(scheme) else written


def is_loopback_host(host: str) -> bool:
    """Whether a host name or address means this machine itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
