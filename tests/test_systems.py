"""Nothing that one system alone has is needed to start: every module is imported without it."""

import subprocess
import sys

WITHOUT_POSIX = """
import builtins, importlib, pkgutil, signal
import torch  # which needs the signals of its own system

ONLY_POSIX = ("fcntl", "resource", "termios", "tty", "pwd", "grp")
imported = builtins.__import__

def on_windows(name, globals=None, *rest, **more):
    if name in ONLY_POSIX and str((globals or {}).get("__name__")).startswith("pixelbert"):
        raise ImportError(f"{globals['__name__']} imports {name}")
    return imported(name, globals, *rest, **more)

builtins.__import__ = on_windows
for name in ("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
import pixelbert
names = [module.name for module in pkgutil.walk_packages(pixelbert.__path__, "pixelbert.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_is_imported_where_posix_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80
