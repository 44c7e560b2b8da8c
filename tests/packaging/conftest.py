# SPDX-License-Identifier: Apache-2.0
"""The source archive, and one build from it: the wheel with a generated op in it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import headrace
from tests.packaging import launcher

ROOT = Path(__file__).resolve().parents[2]
OP = "scale_rows"
TABLE = "kernels/common/tuned/some-card.json"  # as the tuner of a GPU writes one


def generate(tree, name=OP):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/new_op.py"), name, "--root", str(tree)],
        capture_output=True,
        text=True,
    )


def build(code, folder, cwd, env=None):
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=cwd,
        env={**os.environ, "HEADRACE_CUDA": "OFF", **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The source archive, as an unpacked folder."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    folder = tmp_path_factory.mktemp("sdist")
    build("import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])", folder, ROOT)
    (archive,) = folder.glob("headrace-*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def tree(sdist, tmp_path_factory):
    """The unpacked source archive with one op more, and a table of a device."""
    folder = shutil.copytree(sdist, tmp_path_factory.mktemp("tree") / sdist.name)
    (folder / TABLE).parent.mkdir(exist_ok=True)
    (folder / TABLE).write_text("{}")
    done = generate(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(tree, tmp_path_factory):
    """Built from that tree by a Python that has the build requirements and no torch.

    What the installed build compiled of the same files is not compiled again, and without such a
    build all in the quickest way: what is in a wheel is the same at every -O.
    """
    folder, clean = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("clean")
    (clean / "torch.py").write_text("raise ImportError('there is no torch at build time')\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {f"cmake.define.{name}": value for name, value in launcher.DEFINES.items()}
    build(
        f"import sys, scikit_build_core.build as b\nb.build_wheel(sys.argv[1], {settings})",
        folder,
        tree,
        {"PYTHONPATH": str(clean), "PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def site(wheel, tmp_path_factory):
    """The environment in which the wheel is what `import headrace` finds."""
    if not (Path(headrace.__file__).parent / "kernels").is_dir():
        pytest.skip("headrace is installed editable, which would hide the wheel")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return {**os.environ, "PYTHONPATH": str(folder)}
