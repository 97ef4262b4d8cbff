"""The public names: there, lazy, and nothing else."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlx_visalign
from mlx_visalign.policy import Policy, load


def test_the_public_names():
    assert (mlx_visalign.load, mlx_visalign.Policy) == (load, Policy)
    assert callable(mlx_visalign.align)
    with pytest.raises(AttributeError, match="no attribute 'alignn'"):
        _ = mlx_visalign.alignn


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert mlx_visalign.__version__ == project["version"]


def test_importing_the_package_loads_no_mlx():
    script = "import sys, mlx_visalign; print('mlx.core' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
