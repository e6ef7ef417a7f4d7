"""The scripts' own Python environment, inside the cache. Nothing is installed elsewhere.

Standard library only. `python3 -m venv` is tried first; where venv or ensurepip is missing
(as on a bare Debian) the packages go into a plain directory with `pip install --target`.
"""
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .cache import SCRIPTS, Cache, FetchError, default_dir, say, write_atomic

# onnx 1.22.0 needs Python 3.10; the older sets only miss conveniences, every recipe runs on them.
PINS = [
    ((3, 11), ["numpy==2.4.6", "onnx==1.22.0", "onnxruntime==1.31.1", "pillow==13.0.0"]),
    ((3, 10), ["numpy==2.2.6", "onnx==1.22.0", "onnxruntime==1.23.2", "pillow==12.3.0"]),
    ((3, 9), ["numpy==2.0.2", "onnx==1.19.1", "onnxruntime==1.19.2", "pillow==11.3.0"]),
]
MODULES = ("numpy", "onnx", "onnxruntime", "PIL")

# Stock clients of the inference service and a tester of its interface, in an environment of their own.
CLIENTS = ["tritonclient[http,grpc]==2.73.0", "schemathesis==4.32.5"]
CLIENT_MODULES = (*MODULES, "tritonclient", "schemathesis")


def pins():
    for version, packages in PINS:
        if sys.version_info[:2] >= version:
            return packages
    raise FetchError(f"Python {sys.version.split()[0]} is too old; run this with Python 3.9 or newer")


class Environment:
    """A Python that can import numpy, onnx, onnxruntime and PIL."""

    def __init__(self, cache: Cache, name: str = "python", further=()):
        self.cache = cache
        self.pins = [*pins(), *further]
        self.dir = cache.root / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
        self.venv_python = self.dir / "venv" / "bin" / "python"
        self.target = self.dir / "packages"
        self.marker = self.dir / "complete"

    def pip(self):
        """The command that runs pip: the environment's own where it has one, else the system's."""
        if self._works([str(self.venv_python), "-m", "pip"]):
            return [str(self.venv_python), "-m", "pip"]
        if self._works([sys.executable, "-m", "pip"]):
            return [sys.executable, "-m", "pip"]
        for name in ("pip3", "pip"):
            if shutil.which(name) and self._works([name]):
                return [name]
        raise FetchError("pip is not available; install it (on Debian: apt-get install python3-pip) and try again")

    @staticmethod
    def _works(pip) -> bool:
        try:
            return subprocess.run([*pip, "--version"], capture_output=True).returncode == 0
        except OSError:
            return False

    def ensure(self) -> None:
        wanted = "\n".join(self.pins)
        installed = self.venv_python.exists() or self.target.exists()
        if installed and self.marker.exists() and self.marker.read_text() == wanted:
            return
        say(f"  python environment in {self.dir}")
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        with tempfile.TemporaryFile() as log:
            made = subprocess.run([sys.executable, "-m", "venv", str(self.dir / "venv")], stdout=log, stderr=log)
        if made.returncode == 0 and self._works([str(self.venv_python), "-m", "pip"]):
            where = []
        else:
            say("  venv is not available here: installing into a plain directory instead")
            shutil.rmtree(self.dir / "venv", ignore_errors=True)
            where = ["--target", str(self.target)]
        cmd = [*self.pip(), "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *where, *self.pins]
        done = subprocess.run(cmd, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise FetchError(f"cannot install {', '.join(self.pins)}: {why}; check that pip reaches a package index")
        write_atomic(self.marker, wanted.encode())

    def command(self):
        """(argv prefix, environment variables) of this Python."""
        env = {**os.environ, "LARVATUS_CACHE": str(self.cache.root), "PYTHONDONTWRITEBYTECODE": "1"}
        paths = [str(SCRIPTS)]
        if self.venv_python.exists():
            argv = [str(self.venv_python)]
        else:
            argv = [sys.executable]
            paths.append(str(self.target))
        env["PYTHONPATH"] = os.pathsep.join(paths)
        return argv, env

    def run_module(self, module: str, *args: str) -> None:
        """Runs `python -m module args…`, its output passed through; raises if it fails."""
        argv, env = self.command()
        done = subprocess.run([*argv, "-m", module, *args], env=env)
        if done.returncode:
            raise FetchError(f"{module} {' '.join(args)} failed (its message is above)")


def enter(clients: bool = False) -> None:
    """Continues the running script inside the environment if its packages are not importable here."""
    if all(importlib.util.find_spec(m) for m in (CLIENT_MODULES if clients else MODULES)):
        return
    if os.environ.get("LARVATUS_ENTERED"):
        raise FetchError(f"the environment in {default_dir()} is incomplete; delete it and run scripts/fetch.py demo")
    cache = Cache(default_dir())
    environment = Environment(cache, "clients", CLIENTS) if clients else Environment(cache)
    environment.ensure()
    argv, env = environment.command()
    env["LARVATUS_ENTERED"] = "1"
    os.execve(argv[0], [*argv, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]], env)
