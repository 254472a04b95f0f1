"""The command line starts without importing the libraries that commands use."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hskd import processes, runtime
from hskd.cli.commands import BUILT_IN

HEAVY = ("torch", "transformers", "datasets", "pandas", "scipy", "sklearn", "matplotlib", "numpy", "pyarrow", "fsspec")
MODULES = (
    "hskd",
    "hskd.analysis",
    "hskd.cli.app",
    "hskd.cli.places",
    "hskd.cli.setting",
    "hskd.cli.store_alone",
    "hskd.grid.changes",
    "hskd.grid.spec",
    "hskd.heads",
    "hskd.remote",
    "hskd.selectors",
    "hskd.store_format.manifest",
    "hskd.students",
    "hskd.students.kinds",
    "hskd.tasks",
    "hskd.tasks.registry",
    "hskd.teachers.settings",
    "hskd.trials.config",
    "hskd.trials.settings",
)
"""Modules that only hold settings, in addition to those of the commands."""
GROUPS = {
    "store": ("size", "extract", "derive", "inspect", "verify"),
    "grid": ("search", "none-rates", "plan", "run", "status", "retry", "pack"),
    "cache": ("ls", "gc"),
}
USAGE_ERRORS = (
    "no-such-command",
    "--no-such-option",
    "demo --seeds 0",
    "teacher",
    "teacher --out t --dtype fp8",
    "teacher --out t --device gpu",
    "teacher --out t --label-type ranking",
    "teacher --out t --max-length 65536",
    "teacher --out t --no-such-option",
    "teacher --out t --task colla",
    "teacher --out t --epochs 0",
    "teacher --out t --plugins no_such_module",
    "general",
    "general --out g --heads 0",
    "student --teacher t",
    "student --teacher t --out s --kind nonsense",
    "student --teacher t --out s --checkpoint c",
    "student --teacher no-such-folder --out s",
    "store no-such-command",
    "store extract --out s",
    "store extract --teacher no-such-folder --out s",
    "store derive superset --spec nonsense --student-layers 3 --out s",
    "store inspect no-such-folder",
    "store size --teacher bert-base-uncased --spec nonsense --task mr --examples 10 --mean-tokens 5",
    "store verify",
    "distill --out d",
    "distill --student s --out d",
    "distill --student s --out d --store s --teacher t",
    "distill --student no-such-folder --out d --store s",
    "distill --student s --out d --store s --dtype fp8",
    "distill --student s --out d --store s --tau 0",
    "grid no-such-command",
    "grid run",
    "grid run no-such-preset",
    "grid run no-such-file.yaml",
    "grid run demo --set training.no_such_key=1",
    "grid run demo --workers 2 --ray",
    "grid plan demo --seeds 0",
    "grid status no-such-preset",
    "grid retry no-such-preset",
    "grid search no-such-preset",
    "report",
    "recommend",
    "compare",
    "overview",
    "knowledge",
    "push folder",
    "push folder no-url",
    "pull",
    "cache no-such-command",
    "bench --no-such-option",
)

# No case should import a heavy library, so one process runs all cases and reports the imports of each.
_CASES = f"""
import contextlib, importlib, io, json, sys
from pathlib import Path

def new_heavy(seen=set()):
    new = [name for name in {HEAVY} if name in sys.modules and name not in seen]
    seen.update(new)
    return new

outcomes = {{}}
for case in json.loads(sys.argv[1]):
    code = None
    if case.startswith("import "):
        importlib.import_module(case.removeprefix("import "))
    else:
        from hskd.cli.app import main
        sys.argv = ["hskd", *case.split()]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                main()
        except SystemExit as end:
            code = end.code or 0
    outcomes[case] = [code, new_heavy()]
Path("outcomes.json").write_text(json.dumps(outcomes))
"""


def python(code: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment or None,
        cwd=cwd,
    )


def commands() -> list[str]:
    """Return every command, including the commands of groups."""
    return [*BUILT_IN, *(f"{group} {name}" for group, names in GROUPS.items() for name in names)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | None, list[str]]]:
    """Exit code of each case, and the heavy libraries that it imported."""
    folder = tmp_path_factory.mktemp("startup")
    modules = dict.fromkeys([*MODULES, *(listing.target.partition(":")[0] for listing in BUILT_IN.values())])
    cases = [*(f"import {name}" for name in modules), "--help", "--version", *(f"{name} --help" for name in commands())]
    done = python(_CASES, json.dumps([*cases, *USAGE_ERRORS]), cwd=folder)
    assert done.returncode == 0, done.stderr
    return {case: (code, heavy) for case, (code, heavy) in json.loads((folder / "outcomes.json").read_text()).items()}


def test_settings_help_and_usage_errors_import_no_heavy_library(
    outcomes: dict[str, tuple[int | None, list[str]]],
) -> None:
    assert {case: heavy for case, (_, heavy) in outcomes.items() if heavy} == {}


def test_help_ends_with_0_and_a_usage_error_with_2(outcomes: dict[str, tuple[int | None, list[str]]]) -> None:
    assert {case: code for case, (code, _) in outcomes.items() if case.endswith("--help") and code != 0} == {}
    assert outcomes["--version"][0] == 0
    assert {case: outcomes[case][0] for case in USAGE_ERRORS if outcomes[case][0] != 2} == {}


def test_every_command_of_a_group_is_among_the_cases() -> None:
    from hskd.cli.commands import LazyCommand

    groups = {}
    for name, listing in BUILT_IN.items():
        command = LazyCommand(name, listing.target, listing.help).load()
        assert command.name == name and command.help
        if hasattr(command, "commands"):
            groups[name] = tuple(command.commands)
    assert {name: set(members) for name, members in groups.items()} == {
        name: set(members) for name, members in GROUPS.items()
    }


def test_completion_lists_the_commands() -> None:
    code = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
from hskd.cli.app import app
app(prog_name="hskd")
"""
    done = python(code, _HSKD_COMPLETE="complete_bash", COMP_WORDS="hskd gri", COMP_CWORD="1")
    assert done.stdout.splitlines() == ["grid", "[]"], done.stderr
    done = python(code, _HSKD_COMPLETE="complete_bash", COMP_WORDS="hskd grid r", COMP_CWORD="2")
    assert done.stdout.splitlines() == ["run", "retry", "[]"], done.stderr


def test_the_help_lists_every_command() -> None:
    listed = python("from hskd.cli.app import main; main()", "--help").stdout
    assert all(f"│ {name} " in listed for name in BUILT_IN)


def test_the_version_is_printed_with_those_of_python_and_the_libraries() -> None:
    done = python("from hskd.cli.app import main; main()", "--version")
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(printed)[:2] == ["hskd", "python"]
    assert {name: printed[name] for name in ("hskd", "torch", "transformers")} == {
        name: version(name) for name in ("hskd", "torch", "transformers")
    }


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with an installed package that adds one working command and one that cannot be imported."""
    (tmp_path / "extra_commands.py").write_text("def greet(name: str) -> None:\n    print('hello', name)\n")
    (tmp_path / "broken_commands.py").write_text("import a_package_that_is_not_there\n")
    info = tmp_path / "extra_commands-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-commands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hskd.commands]\ngreet = extra_commands:greet\nbroken = broken_commands:run\n"
    )
    return tmp_path


def test_a_plugin_that_cannot_be_imported_breaks_only_its_own_command(plugins: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python("from hskd.cli.app import main; main()", *arguments, PYTHONPATH=str(plugins), COLUMNS="200")

    listed = run("--help")
    assert listed.returncode == 0, listed.stderr
    assert "greet" in listed.stdout and "Added by the package extra-commands." in listed.stdout
    assert run("greet", "you").stdout == "hello you\n"
    assert run("grid", "--help").returncode == 0
    done = run("broken")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the package extra-commands adds this command, but broken_commands:run cannot be imported" in done.stderr
    assert "a_package_that_is_not_there" in done.stderr


def test_an_extra_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')"
    )
    results = Path(__file__).resolve().parents[2] / "results" / "demo-3-seeds"
    code = "from hskd.cli.app import main; main()"
    done = python(code, "report", str(results), "--out", str(tmp_path / "report"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "needs matplotlib, which is not installed: pip install 'hskd[analysis]'" in done.stderr


def test_the_public_names_are_there() -> None:
    done = python(
        "import hskd; assert set(hskd.__all__) <= set(dir(hskd)); print([getattr(hskd, n) for n in hskd.__all__])"
    )
    assert done.returncode == 0, done.stderr
    assert python("import hskd; hskd.no_such_name").stderr.endswith("module 'hskd' has no attribute 'no_such_name'\n")


@pytest.mark.parametrize(
    "imports", ["import hskd, transformers", "import transformers, hskd", "import hskd.tasks, transformers"]
)
def test_transformers_knows_the_rosita_student(imports: str) -> None:
    done = python(f"{imports}; print(transformers.AutoConfig.for_model('rosita').model_type)")
    assert done.stdout == "rosita\n", done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"},
        {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "3", "RANK": "-1"},
        {},
    ],
)
def test_a_launcher_is_understood_as_accelerate_understands_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils.environment import get_cpu_distributed_information

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = get_cpu_distributed_information()
    assert processes.launched() == (expected.rank, expected.world_size)


@pytest.mark.parametrize(
    ("name", "value", "bf16"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", False),
        ("ATEN_CPU_CAPABILITY", "default", False),
        ("ATEN_CPU_CAPABILITY", "avx512", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", True),
        ("ONEDNN_MAX_CPU_ISA", "ALL", True),
    ],
)
def test_auto_is_fp32_where_the_environment_rules_bf16_out(
    name: str, value: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for variable in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    if runtime.resolve_dtype("auto", torch.device("cpu")) == "fp32":
        pytest.skip("this CPU has no bf16")
    monkeypatch.setenv(name, value)
    assert runtime.resolve_dtype("auto", torch.device("cpu")) == ("bf16" if bf16 else "fp32")
