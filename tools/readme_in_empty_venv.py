"""Installs deepzig into an empty environment and types all of README.md, letter by letter: `make test-readme`.

Lines that call make are left to continuous integration, which runs them itself; those that make the environment and
enter it are left out, since this one has the Python that runs here. The hub of the model names is one on
loopback with the bundled model, so only pip needs the network. Port 8000 must be free, since README names it.
"""

import shutil
import tempfile
import threading
import venv
from pathlib import Path

from tests.hub import FakeHub
from tools.clean_wheel import NOT_COPIED
from tools.snippets import BUNDLED, ROOT, STAND_IN_REPOSITORIES, Walk, path_with, prepare, snippets_of

README = ROOT / "README.md"
INSTALL = "pip install ."
PATIENCE_S = 1800  # it compiles all kernels


def main() -> None:
    text = README.read_text(encoding="utf-8")
    hub = FakeHub(BUNDLED, set(STAND_IN_REPOSITORIES.findall(text)))
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as work:
        clone, home, folder = (Path(work) / name for name in ("clone", "venv", "folder"))
        shutil.copytree(ROOT, clone, ignore=NOT_COPIED)
        venv.create(home, with_pip=True)
        folder.mkdir()
        prepare(folder, text)
        environment = path_with(home / "bin") | {"HF_ENDPOINT": hub.address, "HF_HOME": str(Path(work) / "hub")}
        in_clone = Walk(clone, environment, patience_s=PATIENCE_S)
        with Walk(folder, environment, patience_s=PATIENCE_S) as elsewhere:
            is_installed = False
            for snippet in snippets_of(README):
                if snippet.language == "python":
                    print(f"line {snippet.line}: Python", flush=True)
                    elsewhere.python(snippet.text)
                for command in snippet.commands():
                    if command.program in ("make", ".") or command.plain.startswith("python3 -m venv "):
                        continue
                    print(f"line {command.line}: {command.text}", flush=True)
                    (in_clone if command.plain == INSTALL else elsewhere).command(command)
                    is_installed |= command.plain == INSTALL
            assert is_installed, f"{README} does not say {INSTALL}"
    print("everything that README.md says to type works in an empty environment")


if __name__ == "__main__":
    main()
