"""Set-up that must happen before the first import of mlx: a fast BLAS where one is found, no compiling, checked shapes."""

import ctypes
import fcntl
import os
import signal
import sysconfig
from pathlib import Path

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "NO_PRELOAD" not in os.environ:
    libraries = Path(sysconfig.get_paths()["purelib"], "opencv_python.libs")
    for library in sorted(libraries.glob("libopenblasp*.so"))[:1]:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

import pytest
from jaxtyping import install_import_hook

install_import_hook("mlx_visalign", "typechecker.check")

# A shell that starts the tests in the background has Ctrl-C ignored, and nohup a closed terminal: some tests are about both.
for number, usual in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    """Sound inputs of every kind, an almost finished run of every method among them: see `spoiling`.

    Processes make the runs side by side, each those that no other has begun.
    """
    from small_runs import SETTINGS
    from spoiling import make_inputs, make_runs

    folder = made_once(tmp_path_factory, "kit", make_inputs)
    for wait in (False, True):
        for method in SETTINGS:
            made_once(tmp_path_factory, f"kit-{method}", lambda _, method=method: make_runs(folder, method), wait)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Sound inputs of every command, for those that only read them: see `spoiling`."""
    from spoiling import make_all_inputs

    return made_once(tmp_path_factory, "inputs", make_all_inputs)


def made_once(tmp_path_factory, name, make, wait=True):
    """What `make` makes in a new folder: once for all processes that tests run in, of which the others wait, or go on."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return shared / name
        if not (shared / f"{name}.made").exists():
            make(shared / name)
            (shared / f"{name}.made").touch()
    return shared / name
