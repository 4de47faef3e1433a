"""Imports go one way (docs/architecture.md), and the package works without triton and without numba."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("bdg_fast", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FOLDERS = ("bdg_fast", "kernels", "benchmarks")
FILES = {module_name(path): path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")}


def imports(module: str) -> Iterator[str]:
    """Absolute names of all modules that `module` imports, at whatever depth the statement stands."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:  # `from . import ops` names a module, `from .ops import f` does not
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base


def layer(module: str) -> str:
    """`kernels.<op>.<part>`, or the first name below the top; the public package of an op has no part."""
    top, *names = module.split(".")
    if top != "bdg_fast":
        return top
    if names[:1] == ["kernels"]:
        op, part = (*names[1:], "", "")[:2]
        return f"kernels.{op}.{part.split('_')[0]}"  # cpu and cpu_kernels are one part
    return names[0] if names else ""


BACKENDS = {"reference", "triton", "cpu"}
PARTS = {"": {"api", "ops", "spec"}, "api": {"ops", "checks", "spec"}, "ops": {*BACKENDS, "spec"}, "spec": set()}
PARTS |= {backend: {"spec", "checks", "weights", "views"} for backend in BACKENDS}
SHARED = {"spec", "checks", "ops", *BACKENDS}  # an op may build on the same part of another, on its spec and checks
BASES = ("mas_glcm", "pixelwise")  # what other ops may build on
LIBRARIES = {"cpu": {"torch", "numpy", "numba", "llvmlite"}, "triton": {"torch", "triton"}, "spec": set()}
PACKAGE = {
    "": {"texture", "data", "evaluation", "kernel", "models", "restorer", "sampler", "schedule"},
    "analysis": {"data", "evaluation", "models", "texture"},
    "files": set(),
    "ranks": set(),
    "jobs": {"files"},
    "latent": {"files", "kernel", "models", "sampler", "tiles"},
    "losses": set(),
    "metrics": set(),
    "memory": set(),
    "backends": {"memory", "models"},
    "graphs": {"memory"},
    "tiles": {"backends", "models"},
    "bands": {"sampler", "tiles"},
    "noises": {"sampler"},
    "room": {"models", "tiles"},
    "transfers": set(),
    "streams": {"data"},
    "models": {"files", "kernel"},
    "schedule": set(),
    "sampler": {"kernel", "schedule"},
    "texture": {"kernel"},
    "data": {"files", "kernel"},
    "evaluation": {"", "texture", "data", "files", "kernel", "metrics"},
    "restorer": {
        "backends",
        "bands",
        "data",
        "graphs",
        "latent",
        "memory",
        "models",
        "noises",
        "room",
        "sampler",
        "streams",
        "tiles",
        "transfers",
    },
    "training": {
        "backends",
        "data",
        "files",
        "kernel",
        "latent",
        "losses",
        "metrics",
        "models",
        "ranks",
        "sampler",
        "schedule",
        "transfers",
    },
    "table": {"analysis", "data", "files"},
    "video": {"", "data", "files", "restorer"},
    "web": {"analysis", "data", "files", "restorer"},
    "cli": {
        "",
        "analysis",
        "backends",
        "texture",
        "data",
        "latent",
        "evaluation",
        "files",
        "jobs",
        "kernel",
        "memory",
        "models",
        "ranks",
        "restorer",
        "table",
        "training",
        "video",
        "web",
    },
}


def allowed(importer: str, imported: str) -> bool:
    """Whether a module of layer `importer` may import one of layer `imported`."""
    if importer == imported:
        return True
    if importer.startswith("kernels."):  # downwards inside one op; helpers belong to a part or see only spec
        _, op, part = importer.split(".")
        other = re.fullmatch(rf"kernels\.({'|'.join(BASES)})\.(\w+)", imported)
        if op not in BASES and other:
            return other[2] in SHARED & {part, "spec", "checks"}
        return imported in {f"kernels.{op}.{below}" for below in PARTS.get(part, {"spec"})}
    if importer == "benchmarks":  # measures everything, as tests check everything
        return True
    return ("kernel" if re.fullmatch(r"kernels\.\w+\.", imported) else imported) in PACKAGE[importer]


@pytest.mark.parametrize("module", sorted(FILES))
def test_import_direction(module):
    importer = layer(module)
    for name in imports(module):
        top = name.partition(".")[0]
        if top in ("bdg_fast", "benchmarks", "tests", "kernels"):
            assert name in FILES, f"{module} imports {name}, which is no module of this project"
            assert allowed(importer, layer(name)), f"{module} must not import {name}"
        elif importer.startswith("kernels."):
            libraries = LIBRARIES.get(importer.rpartition(".")[2], {"torch"})
            assert top in libraries or top in sys.stdlib_module_names, f"{module} must not import {top}"
        elif importer != "benchmarks":
            assert top not in ("triton", "numba"), f"{module} must leave {top} to the kernels"


def test_the_rules_refuse_what_they_should():
    for importer, imported in [
        ("kernels.mas_glcm.triton", "kernels.mas_glcm.cpu"),
        ("kernels.mas_glcm.reference", "kernels.mas_glcm.ops"),
        ("kernels.mas_glcm.api", "kernels.mas_glcm.triton"),
        ("kernels.mas_glcm.spec", "kernels.mas_glcm.reference"),
        ("kernels.mas_glcm.ops", "texture"),
        ("kernels.mas_glcm.", "kernels.mas_glcm.reference"),
        ("kernels.soft_glcm.api", "kernels.mas_glcm.ops"),
        ("kernels.soft_glcm.triton", "kernels.mas_glcm.cpu"),
        ("kernels.mas_glcm.api", "kernels.soft_glcm.api"),
        ("kernels.sampler_step.ops", "kernels.pixelwise.triton"),
        ("kernels.sampler_step.triton", "kernels.forward_process.triton"),
        ("kernels.pixelwise.triton", "kernels.mas_glcm.triton"),
        ("kernels.mas_glcm.triton", "kernels.pixelwise.triton"),
        ("texture", "kernels.mas_glcm.ops"),
        ("sampler", "kernels.sampler_step.api"),
        ("data", "texture"),
        ("data", "losses"),
        ("data", "kernels.pixelwise.reference"),
        ("models", "kernels.mas_glcm.api"),
        ("texture", "evaluation"),
        ("evaluation", "cli"),
        ("cli", "benchmarks"),
        ("schedule", "sampler"),
        ("backends", "sampler"),
        ("graphs", "restorer"),
        ("streams", "restorer"),
        ("models", "schedule"),
        ("models", "losses"),
        ("losses", "models"),
        ("models", "cli"),
        ("training", "restorer"),
        ("training", "evaluation"),
        ("restorer", "training"),
        ("evaluation", "training"),
        ("losses", "training"),
        ("training", "cli"),
        ("analysis", "restorer"),
        ("analysis", "cli"),
        ("", "cli"),
        ("", "web"),
        ("web", "cli"),
        ("table", "cli"),
        ("restorer", "web"),
        ("jobs", "restorer"),
        ("jobs", "cli"),
    ]:
        assert not allowed(importer, imported), (importer, imported)


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_is_lazy():
    run_python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import bdg_fast\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = loaded & {'triton', 'numba', 'matplotlib', 'skimage', 'PIL', 'torchvision'}\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.parametrize(("package", "impl"), [("triton", "triton"), ("numba", "cpu")])
def test_runs_without(package, impl):
    run_python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "import torch, bdg_fast\n"
        "images = torch.rand(2, 3, 20, 21)\n"
        "assert torch.equal(bdg_fast.mas_glcm(images), bdg_fast.mas_glcm(images, impl='reference'))\n"
        "try:\n"
        f"    bdg_fast.mas_glcm(images, impl={impl!r})\n"
        "except RuntimeError as error:\n"
        f"    assert {impl!r} in str(error) and {package!r} in str(error), error\n"
        "else:\n"
        "    raise AssertionError('a backend ran without its package')\n"
    )
