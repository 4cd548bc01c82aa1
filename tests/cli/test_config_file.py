"""The config file: what goes before what, mistakes in it, and how `deepzig info --config` shows it all."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from deepzig.cli.config_file import location
from deepzig.cli.naming import long_name, path_of, variables_of
from tests.cli.commands import all_options

Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = list(all_options())
TOO_SHORT = "an API key of 5 characters is too short; use one of 8 or more"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """write("threads = 1"): the config file from now on."""

    def write_file(text: str) -> Path:
        path = tmp_path / "deepzig.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("DEEPZIG_CONFIG", str(path))
        return path

    return write_file


def settings_of(run: Run, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = run("info", "--config", "--json", *arguments, env=env)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


Write = Callable[[str], Path]


def test_command_line_then_environment_then_file_then_default(run: Run, write: Write) -> None:
    def complaint(*arguments: str, **environment: str) -> str:
        return run("generate", "Hi", *arguments, env=environment).stderr.partition("' is no folder")[0]

    write('model = "everywhere"\n')
    assert complaint() == "Error: 'everywhere"
    write('model = "everywhere"\n[generate]\nmodel = "own"\n')
    assert complaint() == "Error: 'own"
    assert complaint(DEEPZIG_MODEL="variable") == "Error: 'variable"
    assert complaint("-m", "given", DEEPZIG_MODEL="variable") == "Error: 'given"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("thread = 1", "thread: there is no such option; did you mean threads?"),
        ("max_tokens = 1", "max_tokens: there is no such option; did you mean max-tokens?"),
        ("port = 1", "port: there is no such option; it belongs below [serve]"),
        ("xyz = 1", "xyz: there is no such option"),
        ("[serve]\nprot = 1", "serve.prot: there is no such option; did you mean port?"),
        ("[serv]\nport = 1", "serv: there is no such command; did you mean serve?"),
        ("[serve.port]\nx = 1", "serve.port: there is no such command"),
        ("help = true", "help: there is no such option"),
        ('threads = "two"', "threads: must be a whole number, not text"),
        ("threads = 1.5", "threads: must be a whole number, not a decimal number"),
        ("threads = true", "threads: must be a whole number, not true or false"),
        ("threads = 1979-05-27", "threads: must be a whole number, not a date"),
        ('temperature = "warm"', "temperature: must be a decimal number, not text"),
        ("model = ['a']", "model: must be text, not a list"),
        ("quiet = 1", "quiet: must be true or false, not a whole number"),
        ("stop = 'The end'", "stop: must be a list, in [ ]"),
        ("stop = [1]", "stop: must be text, not a whole number"),
        ("threads = 0", "threads: 0 is not in the range 1<=x<=1024."),
        ("[serve]\nport = 99999", "serve.port: 99999 is not in the range 0<=x<=65535."),
        ("cache-dtype = 'f64'", "cache-dtype: 'f64' is not one of 'f32', 'int8'."),
        ("[serve]\napi-key = ['first']", f"serve.api-key: {TOO_SHORT}"),
        ("threads = =", "Invalid value (at line 1, column 11)"),
        (f"stop = {'[' * 5000}", "lists or tables within each other are too deep"),
    ],
)
@pytest.mark.parametrize("command", [("kernels",), ("verify", "nowhere"), ("info", "--config")])
def test_a_mistake_is_told_by_every_command(
    run: Run, write: Write, text: str, complaint: str, command: tuple[str, ...]
) -> None:
    path = write(text)
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"Error: {path}: {complaint}"
    assert result.stderr.count("\n") == 2


def test_a_value_out_of_range_names_its_key(run: Run, write: Write) -> None:
    path = write("[serve]\nport = 99999\n")
    result = run("serve", "-q")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path}: serve.port: 99999 is not in the range")
    write('precision = "better"')
    assert f"{path}: precision: 'better' is not one of 'exact', 'fast'" in run("generate", "Hi").stderr


def test_a_file_that_is_named_must_be_there(run: Run, tmp_path: Path) -> None:
    result = run("kernels", env={"DEEPZIG_CONFIG": str(tmp_path / "none.toml")})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {tmp_path}/none.toml: no such file (DEEPZIG_CONFIG names it)")
    assert run("kernels", env={"DEEPZIG_CONFIG": os.devnull}).exit_code == 0
    assert "Is a directory" in run("kernels", env={"DEEPZIG_CONFIG": str(tmp_path)}).stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("generate", "--help")])
def test_help_does_not_look_at_the_file(run: Run, write: Write, arguments: tuple[str, ...]) -> None:
    write("this is no TOML")
    assert run(*arguments).exit_code == 0


def test_help_shows_the_defaults_of_deepzig(run: Run, write: Write) -> None:
    without = run("serve", "--help").stdout
    write("[serve]\nport = 8081\n")
    assert run("serve", "--help").stdout == without
    assert "8000" in without


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert location() == Path("/settings/deepzig/config.toml")
    monkeypatch.setenv("HOME", "/home/someone")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", ignored)
        assert location() == Path("/home/someone/.config/deepzig/config.toml")
    monkeypatch.setenv("DEEPZIG_CONFIG", "other.toml")
    assert location() == Path("other.toml")


def test_a_user_without_a_home_needs_no_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert run("kernels").exit_code == 0
    first = run("info", "--config").stdout.splitlines()[0]
    assert first == "config file: none; you have no home folder, DEEPZIG_CONFIG names one"


def test_a_home_that_is_no_folder_has_no_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts of services often have /dev/null."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert run("kernels", env={"HOME": "/dev/null"}).exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_home_of_somebody_else_has_no_file(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `sudo -u` leaves it; but a file that is there must be read."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / ".config/deepzig").mkdir(parents=True)
    file = tmp_path / ".config/deepzig/config.toml"
    file.touch(0)
    assert run("kernels", env={"HOME": str(tmp_path)}).exit_code == 2
    tmp_path.chmod(0)
    try:
        assert run("kernels", env={"HOME": str(tmp_path)}).exit_code == 0
    finally:
        tmp_path.chmod(0o700)


def test_the_file_of_the_desktop_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deepzig").mkdir()
    (tmp_path / "deepzig" / "config.toml").write_text("model = 'of the desktop'", encoding="utf-8")
    assert "'of the desktop' is no folder" in run("info", env={"XDG_CONFIG_HOME": str(tmp_path)}).stderr


def test_home_is_written_as_in_a_shell(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    write('model = "~/model"\nprompt-cache = "~/prompts"\nstop = ["~/x", "~"]')
    found = settings_of(run)["commands"]["generate"]
    assert found["model"]["value"] == "/home/someone/model"
    assert found["prompt-cache"]["value"] == "/home/someone/prompts"
    assert found["stop"]["value"] == ["/home/someone/x", "~"]


def toml_of(option: click.Option) -> tuple[str, Any]:
    """A value for the file, and what `info --config` makes of it."""
    if option.is_flag:
        return "true", True
    if isinstance(option.type, click.Choice):
        return json.dumps(str(option.type.choices[-1])), str(option.type.choices[-1])
    if isinstance(option.type, click.Path) and option.type.exists:
        return json.dumps(__file__), __file__
    if isinstance(option.type, click.types.IntParamType):
        return "3", 3
    if isinstance(option.type, click.types.FloatParamType):
        return "2", 2.0
    words = ["one long word", "another one"]
    return (json.dumps(words), words) if option.multiple else ('"word"', "word")


@pytest.mark.parametrize(
    ("context", "option"), OPTIONS, ids=lambda v: " ".join(path_of(v)) if isinstance(v, click.Context) else long_name(v)
)
def test_every_option_may_stand_in_the_file(
    run: Run, write: Write, context: click.Context, option: click.Option
) -> None:
    path, name = path_of(context), long_name(option)
    text, meant = toml_of(option)
    places = [(f"[{'.'.join(path)}]\n", ".".join((*path, name)))]
    if len(variables_of(option, path)) > 1:
        places.append(("", name))
    for table, key in places:
        write(f"{table}{name} = {text}\n")
        shown = settings_of(run)["commands"][" ".join(path)][name]
        if path == ("info",) and name in ("json", "config"):
            assert shown == {"value": True, "source": "command line", "name": None}
        else:
            assert shown == {"value": "(set)" if option.hide_input else meant, "source": "file", "name": key}


def test_sources_are_told(run: Run, write: Write) -> None:
    path = write("threads = 3\n[serve]\nport = 8080\n")
    env = {"DEEPZIG_PRECISION": "fast", "DEEPZIG_SERVE_SHUTDOWN_TIMEOUT": "5", "DEEPZIG_GENERATE_FILE": "nowhere"}
    shown = settings_of(run, "--text", __file__, env=env)
    assert shown["config_file"] == str(path)
    serve, info = shown["commands"]["serve"], shown["commands"]["info"]
    assert serve["threads"] == {"value": 3, "source": "file", "name": "threads"}
    assert serve["port"] == {"value": 8080, "source": "file", "name": "serve.port"}
    assert serve["precision"] == {"value": "fast", "source": "environment", "name": "DEEPZIG_PRECISION"}
    assert serve["shutdown-timeout"] == {
        "value": 5.0, "source": "environment", "name": "DEEPZIG_SERVE_SHUTDOWN_TIMEOUT"
    }  # fmt: skip
    assert serve["host"] == {"value": "127.0.0.1", "source": "default", "name": None}
    assert info["text"] == {"value": __file__, "source": "command line", "name": None}
    assert shown["commands"]["generate"]["file"]["value"] == "nowhere"


def test_people_see_what_is_shared_once(run: Run, write: Write) -> None:
    path = write('precision = "fast"\n[generate]\nthreads = 5\nstop = ["The end", "Moral"]\n')
    result = run("info", "--config", "-v")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [re.sub(r" +", " ", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == f"config file: {path}"
    assert lines.count("--precision fast file precision") == 1
    assert lines.index("all commands") < lines.index("--precision fast file precision") < lines.index("generate")
    assert lines.index("generate") < lines.index("--threads 5 file generate.threads") < lines.index("serve")
    assert lines.count("--stop 'The end' Moral file generate.stop") == 1  # as the variable has it
    assert lines.count("--think - default") == 1  # neither on nor off: the model decides
    assert lines.count("--verbose no default") == 1
    assert lines.index("info") < lines.index("--verbose yes command line")


def test_without_a_file_its_place_is_told(run: Run) -> None:
    first = run("info", "--config").stdout.splitlines()[0]
    assert first == f"config file: none; {location()} would be read"
    assert settings_of(run)["config_file"] is None


def test_secrets_are_not_shown(run: Run, write: Write) -> None:
    write('[serve]\napi-key = ["hush, hush"]\n')
    for arguments in (("--json",), ()):
        shown = run("info", "--config", *arguments).stdout
        assert "hush" not in shown and "(set)" in shown
    assert "hush" not in run("info", "--config", env={"DEEPZIG_SERVE_API_KEY": "hush"}).stdout
    assert settings_of(run, env={"DEEPZIG_CONFIG": os.devnull})["commands"]["serve"]["api-key"]["value"] == []


def test_every_option_that_takes_a_secret_says_so() -> None:
    secret = re.compile(r"(^|-)(key|token|password|secret)$")
    found = [option for _, option in OPTIONS if secret.search(long_name(option))]
    assert found
    assert [long_name(option) for option in found if not option.hide_input] == []


def test_without_a_file_no_toml_is_imported() -> None:
    code = "import sys; from deepzig.cli import main; main(['info', '--config'], 'deepzig', standalone_mode=False); "
    code += "print([name for name in ('tomllib', 'difflib', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_example_of_the_documents_is_valid(run: Run, write: Write) -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    write(example)
    found = settings_of(run)["commands"]
    assert found["generate"]["temperature"]["value"] == tomllib.loads(example)["generate"]["temperature"]
    assert found["serve"]["threads"]["value"] == 8
