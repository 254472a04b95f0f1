"""sdist and wheel: what is in them, and that the wheel works in an empty environment outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"hskd": "hskd", "analysis": "hskd/analysis", "benchmarks": "hskd/benchmarks"}
"""Folder of the repository -> folder in the wheel."""
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""

pytestmark = pytest.mark.timeout(900)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources(suffixes: tuple[str, ...]) -> set[str]:
    """Files of the packages that git tracks or would track, by their place in the wheel."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS], ROOT).splitlines()
    places = {Path(FOLDERS[Path(name).parts[0]], *Path(name).parts[1:]): ROOT / name for name in listed}
    return {place.as_posix() for place, path in places.items() if path.is_file() and path.suffix in suffixes}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of a copy of the repository, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    sdist = folder / run([sys.executable, "-c", BUILD, "sdist", str(folder)], source).splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    wheel = folder / run([sys.executable, "-c", BUILD, "wheel", str(folder)], unpacked).splitlines()[-1]
    return {"sdist": sdist, "wheel": wheel}


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the git repository")
def test_the_wheel_holds_one_package_with_every_module(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
        [top_level] = [name for name in names if name.endswith("top_level.txt")]
        assert archive.read(top_level).decode().split() == ["hskd"]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hskd"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    missing = sources((".py", ".yaml", ".j2", ".typed", ".json")) - names
    # pytest reads its conftest.py from the repository; in a wheel it would be there too, and harmless.
    assert not missing


@pytest.fixture(scope="module")
def environment(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel alone; dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    base = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", vars=base))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    run([*pip, str(built["wheel"])], folder)
    # Folders come after the wheel's; their .pth files are not read, so this repository's editable install is not seen.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return folder


def python(environment: Path) -> str:
    return str(environment / "venv" / "bin" / "python")


def plain(environment: Path) -> dict[str, str]:
    """Environment variables without those that lead Python into the repository."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def test_the_wheel_imports_without_the_extras(environment: Path) -> None:
    """Distillation, its command and grids need neither a plotting stack nor pytest."""
    code = """
import sys
extras = {"matplotlib", "seaborn", "pytest", "pytest_benchmark", "ray"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import hskd, hskd.grid.run
from hskd.cli.commands import BUILT_IN, LazyCommand
[getattr(hskd, name) for name in hskd.__all__]
for name, listing in BUILT_IN.items():
    LazyCommand(name, listing.target, listing.help).load()
print(hskd.__file__)
"""
    place = run([python(environment), "-c", code], environment, plain(environment)).strip()
    assert Path(place).is_relative_to(environment / "venv")


def test_the_demo_runs_from_the_wheel(environment: Path) -> None:
    command = [python(environment), "-m", "hskd", "demo", "--quick"]
    out = run(command, environment, plain(environment))
    figure = environment / "results" / "demo-quick" / "marginal_utility.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "figure: results/demo-quick/marginal_utility.png" in out
    # A second run prints the same, and imports nothing that it would run with.
    code = "import sys; from hskd.cli.app import app; app(standalone_mode=False); print('torch' in sys.modules)"
    again = run([python(environment), "-c", code, "demo", "--quick"], environment, plain(environment))
    assert again == out + "False\n"
