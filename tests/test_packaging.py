"""The wheel and the editable installation both give `bdg_fast` with `bdg_fast.kernels` inside."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bdg_fast
from bdg_fast.cli import main

ROOT = Path(__file__).resolve().parents[1]
USE_KERNELS = (
    "import torch, bdg_fast, bdg_fast.kernels\n"
    "print(bdg_fast.__file__, bdg_fast.kernels.__file__, sep='\\n')\n"
    "assert bdg_fast.mas_glcm(torch.rand(1, 3, 9, 9), impl='reference').shape == (1, 32, 32)\n"
)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bdg_fast", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_module_and_nothing_else(wheel):
    expected = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("bdg_fast/**/*.py")}
    expected |= {f"bdg_fast/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("kernels/**/*.py")}
    expected |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("bdg_fast/data/photos/*")}
    for folder in ("data/real", "models/analysis", "models/small"):
        expected |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob(f"bdg_fast/{folder}/*")}
    expected.add("bdg_fast/py.typed")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_wheel_imports_without_the_source_tree(wheel, tmp_path):
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path)
    run(*install, wheel, cwd=tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE_KERNELS}"
    package, kernels = run(sys.executable, "-I", "-c", code, cwd=tmp_path).split()
    assert Path(package) == tmp_path / "bdg_fast" / "__init__.py"
    assert Path(kernels) == tmp_path / "bdg_fast" / "kernels" / "__init__.py"


def test_this_installation_works_from_elsewhere(tmp_path):
    code = (
        f"import sys\n{USE_KERNELS}"
        "import importlib.util\n"
        "found = importlib.util.find_spec('kernels')\n"
        "print(found and found.origin)\n"
    )
    package, kernels, shadow = run(sys.executable, "-I", "-c", code, cwd=tmp_path).split()
    assert Path(package).parent.name == "bdg_fast"
    assert Path(kernels).is_file()
    assert shadow != kernels, "kernels/ must not be importable as a top-level module"


def test_version_is_stated_once():
    assert importlib.metadata.version("bdg-fast") == bdg_fast.__version__


def test_console_script(tmp_path, capsys):
    script = Path(sys.executable).with_name("bdg-fast")
    assert bdg_fast.__version__ in run(script, "--version", cwd=tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "usage: bdg-fast" in capsys.readouterr().out


def test_extras_have_long_and_short_names(wheel):
    file = zipfile.ZipFile(wheel)
    (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
    lines = file.read(name).decode().splitlines()
    extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra")}
    long = {"evaluation", "training", "wandb", "demo", "docs", "web", "table", "video", "diffusers", "ray", "dev"}
    assert extras == long | {"eval", "train"}
    needs = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
    for need, extra in (("pyiqa", "evaluation"), ("bdg-fast[evaluation]", "eval"), ("bdg-fast[training]", "train")):
        assert any(line.startswith(need) and re.search(f"extra == .{extra}.$", line) for line in needs), need


def test_constraints_pin_one_version_each_for_every_python():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    for version in ("3.10", "3.11", "3.14"):
        names = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": version})]
        assert len(names) == len(set(names))
        assert set(names) == {pin.name for pin in pins}
