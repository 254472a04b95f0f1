"""sdist and wheel: their contents, and the demo from the wheel in an empty environment outside the repository."""

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

from hskd.analysis import finished
from hskd.analysis.finished import FILE, FinishedDemo
from hskd.artifacts import SCHEMAS
from hskd.results import load

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
    """Return the package files that git tracks or would track, by their path in the wheel."""
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
    # pytest reads its conftest.py from the repository. In a wheel it would be useless but harmless.
    assert not missing


@pytest.fixture(scope="module")
def environment(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with only the wheel. Dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    base = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", vars=base))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages)]
    run([*pip, str(built["wheel"])], folder)
    # Folders come after the wheel's. Their .pth files are not read, so this repository's editable install is not seen.
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return folder


def python(environment: Path) -> str:
    return str(environment / "venv" / "bin" / "python")


def plain(environment: Path) -> dict[str, str]:
    """Return environment variables without those that lead Python into the repository."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def test_the_wheel_imports_without_the_extras(environment: Path) -> None:
    """Distillation, its command and grids need neither plotting libraries nor pytest."""
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


class Demo:
    """``hskd demo --quick`` from the wheel: the real teacher, real sentences, every step."""

    def __init__(self, environment: Path) -> None:
        self.environment = environment
        self.out = environment / "results" / "demo-quick"
        self.work = environment / "work"
        self.first = self.run()

    def run(self, code: str = "from hskd.cli.app import main; main()") -> subprocess.CompletedProcess[str]:
        """Run the command as ``code`` does, in a process of its own."""
        return subprocess.run(
            [python(self.environment), "-c", code, "demo", "--quick"],
            cwd=self.environment,
            env=plain(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def stamps(self) -> dict[Path, int]:
        """Return modification times of the files of each artifact, except recipes, which every use touches."""
        files = [path for path in self.work.rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files if not path.name.endswith((".recipe.json", ".lock"))}


@pytest.fixture(scope="module")
def demo(environment: Path) -> Demo:
    """The quick demo, run once because it takes minutes."""
    return Demo(environment)


def test_the_quick_demo_ends_with_a_table_and_a_figure(demo: Demo) -> None:
    assert demo.first.returncode == 0, demo.first.stderr
    assert "figure: results/demo-quick/marginal_utility.png" in demo.first.stdout
    assert (demo.out / "marginal_utility.png").read_bytes().startswith(b"\x89PNG")
    trials = load(demo.out)
    assert sorted(trials["arm"]) == ["full", "none", *["spec"] * 6]
    specs = trials[trials["arm"] == "spec"]
    assert specs["fraction"].between(0.0005, 0.3).sum() >= 5
    assert specs["fraction"].is_monotonic_increasing
    assert trials["peak_memory_bytes"].max() < 4 * 2**30
    # Every arm trains for the same total number of epochs.
    assert (trials["hsk_epochs"] + trials["prediction_epochs"]).nunique() == 1


def test_a_second_run_prints_the_same_without_torch(demo: Demo) -> None:
    code = """
import sys
from hskd.cli.app import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "pandas", "matplotlib") if name in sys.modules])
"""
    again = demo.run(code)
    assert again.returncode == 0, again.stderr
    assert again.stdout == demo.first.stdout + "[]\n"


@pytest.mark.parametrize(
    "change",
    ["another seed", "a result is newer", "the figure is gone", "other instructions", "other code", "another model"],
)
def test_a_demo_that_differs_is_not_taken_for_the_finished_one(
    demo: Demo, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results" / "demo-quick"
    shutil.copytree(demo.out, folder)
    monkeypatch.chdir(tmp_path)
    out = Path("results", "demo-quick")
    assert FinishedDemo.of(out, "demo-quick", 1).summary() in demo.first.stdout
    if change == "a result is newer":
        os.utime(folder / "trials.parquet")
    elif change == "the figure is gone":
        (folder / "marginal_utility.png").unlink()
    elif change == "other instructions":
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2" if "ATEN_CPU_CAPABILITY" not in os.environ else "default")
    elif change == "other code":
        monkeypatch.setitem(SCHEMAS, "students", SCHEMAS["students"] + 1)
    elif change == "another model":
        (tmp_path / "model.safetensors").write_bytes(b"other weights")
        monkeypatch.setattr(finished, "minilm_folder", lambda: tmp_path)
    assert FinishedDemo.of(out, "demo-quick", 2 if change == "another seed" else 1).summary() is None


def test_without_its_summary_a_second_run_makes_nothing_anew(demo: Demo) -> None:
    (demo.out / FILE).unlink()
    before = demo.stamps()
    table = (demo.out / "trials.parquet").read_bytes()
    again = demo.run()
    assert again.returncode == 0, again.stderr
    assert demo.stamps() == before
    assert (demo.out / "trials.parquet").read_bytes() == table
    assert "HSK stage" not in again.stderr
    assert "teacher: " in demo.first.stderr and "teacher: " not in again.stderr
