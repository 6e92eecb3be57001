"""The import direction of the packages: lower layers never import higher ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first; a module may import its own layer and those below it.
LAYERS: list[set[str]] = [
    {
        "loadgen",
        "loadgen.types",
        "loadgen.errors",
        "loadgen.clock",
        "loadgen.seeds",
        "loadgen.config",
        "loadgen.section",
        "loadgen.shipped",
        "loadgen.terminal",
        "loadgen.foreground",
    },
    {
        "loadgen.physics",
        "loadgen.arrivals",
        "loadgen.shaping",
        "loadgen.prompts",
        "loadgen.scenario",
        "loadgen.scenario_file",
        "loadgen.scenario_load",
        "loadgen.scenario_shaping",
        "loadgen.scenario_power",
        "loadgen.overrides",
        "loadgen.plan",
        "loadgen.sweep.figures",
        "loadgen.rundir",
        "loadgen.provenance",
        "loadgen.pacer",
        "loadgen.launch",
        "loadgen.launch_flags",
        "loadgen.server.prefix_cache",
        "loadgen.server.batch",
        "loadgen.server.policy",
        "loadgen.server.engine",
        "loadgen.server.tgi_policy",
        "loadgen.server.vllm_policy",
        "loadgen.server.gpu",
        "loadgen.server.limits",
        "loadgen.server.deployment",
        "loadgen.server.tokenizer",
        "loadgen.server.text",
        "loadgen.emulation",
        "loadgen.sidecar",
        "loadgen.sidecar.segments",
        "loadgen.sidecar.table",
        "loadgen.sidecar.events",
    },
    {"loadgen.clients", "loadgen.power", "loadgen.metrics", "loadgen.server"},
    {"loadgen.target", "loadgen.runner", "loadgen.progress"},
    {
        "loadgen.experiment",
        "loadgen.pool",
        "loadgen.sweep",
        "loadgen.uncertainty",
        "loadgen.doctor",
        "loadgen.sidecar.access",
        "loadgen.sidecar.directory",
        "loadgen.sidecar.exposition",
        "loadgen.sidecar.live",
        "loadgen.sidecar.routes",
        "loadgen.sidecar.sampler",
        "loadgen.sidecar.sources",
        "loadgen.sidecar.overhead",
        "loadgen.sidecar.service",
        "loadgen.sidecar.verb",
        "loadgen.sidecar.watch",
    },
    {"loadgen.verbs"},
    {"loadgen.cli"},
    {"loadgen.__main__"},
]
# Lowest first; a module or package of `analysis` imports itself and what is below it, never its neighbours.
ANALYSIS_LAYERS: list[set[str]] = [
    {"columns", "plain", "progress", "words"},
    {"manifest"},
    {"console", "run", "stats"},
    {"served"},
    {"floor", "latency", "macro", "server_metrics"},
    {"absent", "energy", "fail_if", "goodput", "sci"},
    {"attribution", "claims", "lint", "show", "timeline"},
    {"fit", "summary", "tables"},
    {"calibrate", "compare", "envelope", "sweeps"},
    {"capacity", "study"},
    {"figures"},
    {"report"},
]
ANALYSIS_MAY_IMPORT = {
    "loadgen.types",
    "loadgen.errors",
    "loadgen.config",
    "loadgen.rundir",
    "loadgen.physics",
    "loadgen.arrivals",
    "loadgen.sweep.figures",
    "loadgen.terminal",
}
EMULATING = {"calibrate", "capacity"}
"""What of `analysis` serves loads itself, on the emulator."""
EMULATING_MAY_IMPORT = ANALYSIS_MAY_IMPORT | {
    "loadgen.emulation",
    "loadgen.launch",
    "loadgen.plan",
    "loadgen.pool",
    "loadgen.progress",
    "loadgen.prompts",
    "loadgen.scenario",
    "loadgen.section",
    "loadgen.server.deployment",
    "loadgen.shaping",
    "loadgen.shipped",
}
HEAVY = {
    "torch",
    "transformers",
    "diffusers",
    "ray",
    "pynvml",
    "matplotlib",
    "scipy",
    "tokenizers",
    "zeus",
    "pyarrow",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    """The layer of a module: that of its longest listed prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for index, names in enumerate(LAYERS):
            if prefix in names and (prefix != "loadgen" or module == "loadgen"):
                return index
    raise AssertionError(f"{module} stands in no layer: add it to LAYERS")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at import time) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, ast.walk(tree))) - {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
        if inner is not node
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                at = ROOT / whole.replace(".", "/")
                is_module = at.with_suffix(".py").exists() or (at / "__init__.py").exists()
                found.append((whole if is_module else str(node.module), id(node) in top))
    return found


SOURCES = sorted((ROOT / "loadgen").rglob("*.py"))
STUDIES = sorted((ROOT / "analysis").rglob("*.py"))
FACE = ROOT / "analysis" / "__init__.py"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_module_imports_only_its_layer_and_below(path: Path) -> None:
    here = module_name(path)
    for module, _ in imports(path):
        if module.split(".")[0] == "loadgen" and module != "loadgen":
            assert layer(module) <= layer(here), f"{here} imports {module}"
        assert not module.startswith("analysis") or here == "loadgen.cli", f"{here} imports {module}"


@pytest.mark.parametrize("path", STUDIES, ids=module_name)
def test_analysis_sees_only_what_is_pure_or_on_disk(path: Path) -> None:
    emulates = path.parent.name in EMULATING
    for module, _ in imports(path):
        if module.split(".")[0] == "loadgen" and module != "loadgen":
            allowed = EMULATING_MAY_IMPORT if emulates else ANALYSIS_MAY_IMPORT
            assert any(f"{module}.".startswith(f"{name}.") for name in allowed), (
                f"{path.name} imports {module}"
            )


def analysis_layer(name: str) -> int:
    """The layer of a module or package right under `analysis`."""
    for index, names in enumerate(ANALYSIS_LAYERS):
        if name in names:
            return index
    raise AssertionError(f"analysis.{name} stands in no layer: add it to ANALYSIS_LAYERS")


@pytest.mark.parametrize("path", [path for path in STUDIES if path != FACE], ids=module_name)
def test_analysis_imports_only_what_is_below(path: Path) -> None:
    here = module_name(path).split(".")[1]
    for module, _ in imports(path):
        package, _, rest = module.partition(".")
        if package == "analysis":
            there = rest.split(".")[0]
            assert there, f"{path.name}: import analysis.MODULE, not analysis"
            assert there == here or analysis_layer(there) < analysis_layer(here), f"{here} imports {module}"


@pytest.mark.parametrize("path", SOURCES + STUDIES, ids=module_name)
def test_heavy_libraries_are_imported_where_they_are_used_only(path: Path) -> None:
    eager = {module.split(".")[0] for module, at_import in imports(path) if at_import}
    assert not eager & HEAVY


def test_the_package_has_no_import_cycles() -> None:
    graph = {
        module_name(path): {m for m, eager in imports(path) if eager and m.split(".")[0] == "loadgen"}
        for path in SOURCES
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in graph.get(module, set()) - {"loadgen", module}:
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
