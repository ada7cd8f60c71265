"""Who may import whom: the architecture diagram, enforced on the source text."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sglang_flowprefill
from sglang_flowprefill import kernels

PACKAGE = Path(sglang_flowprefill.__file__).parent
KERNELS = Path(kernels.__path__[0])
OURS = "sglang_flowprefill"

# What the modules of a folder may import beside the standard library, as module prefixes.
ALLOWED = {
    "core": {f"{OURS}.core", f"{OURS}.errors"},
    "executor": {
        f"{OURS}.executor",
        f"{OURS}.core",
        f"{OURS}.errors",
        "torch",
        "greenlet",
        "numpy",
    },
    "api": {f"{OURS}.api", f"{OURS}.core", f"{OURS}.errors", "msgspec"},
    "loop": {f"{OURS}.loop", f"{OURS}.core", f"{OURS}.errors"},
    "observe": {
        f"{OURS}.observe",
        f"{OURS}.loop",
        f"{OURS}.core",
        f"{OURS}.api.state",
        f"{OURS}.errors",
        "msgspec",
        "prometheus_client",
    },
    "sim": {f"{OURS}.sim", f"{OURS}.loop", f"{OURS}.core", f"{OURS}.errors"},
    "patching": {f"{OURS}.patching", f"{OURS}.errors"},
    "kernels": {f"{OURS}.kernels", f"{OURS}.cache", "torch", "triton"},
    "checks": {
        f"{OURS}.enablement",
        f"{OURS}.checks",
        f"{OURS}.cpu.defaults",
        f"{OURS}.patching",
        "packaging",
        "torch",
    },
    "cache.py": set(),
    "config.py": {f"{OURS}.core", f"{OURS}.errors"},
    "errors.py": set(),
    "enablement.py": set(),
    "testing.py": {f"{OURS}.core"},
    "__init__.py": {f"{OURS}.enablement", f"{OURS}.config", f"{OURS}.errors"},
}


def modules_of(part):
    """Return the source files of a folder or module."""
    root = KERNELS if part == "kernels" else PACKAGE / part
    files = [root] if root.suffix else sorted(root.rglob("*.py"))
    assert files, f"no source in {root}"
    return files


def imports_of(path):
    """Return every module that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.add(node.module)
    return found


def is_within(module, prefixes):
    """Tell whether a module is one of these or below one of them."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_downwards(part):
    """Each part sees only what stands below it."""
    forbidden = {
        f"{path.name} imports {module}"
        for path in modules_of(part)
        for module in imports_of(path)
        if module.partition(".")[0] not in sys.stdlib_module_names
        and module != OURS  # for the version; that it is light is tested below
        and not is_within(module, ALLOWED[part])
    }
    assert not forbidden


def test_only_the_adapter_imports_sglang():
    """If SGLang renames something tomorrow, one folder changes."""
    outside = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "adapter" not in path.parents]
    offenders = {
        path.relative_to(PACKAGE).as_posix()
        for path in [*outside, *modules_of("kernels")]
        if any(is_within(module, {"sglang"}) for module in imports_of(path))
    }
    assert not offenders


def test_nothing_below_imports_the_adapter():
    """The adapter knows the parts; only the command lines know the adapter."""
    allowed = {"launch_server.py", "commands/doctor.py", "commands/profile.py"}
    offenders = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if PACKAGE / "adapter" not in path.parents
        and any(is_within(module, {f"{OURS}.adapter"}) for module in imports_of(path))
    }
    assert offenders <= allowed


def imported_modules(tree_root, package):
    """Return, for each module of a package, which modules of it are imported at its start.

    Imports inside functions and for type checkers only are left out: they make no circle.
    """
    files = {
        ".".join([package, *path.relative_to(tree_root).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): path
        for path in tree_root.rglob("*.py")
    }
    graph = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom):
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                from_modules = members & files.keys()
                is_all_modules = len(from_modules) == len(members)
                graph[name] |= from_modules
                if not is_all_modules and node.module in files:
                    graph[name].add(node.module)
    return graph


def circle_in(graph):
    """Return modules that import one another in a circle, or nothing."""
    order = graphlib.TopologicalSorter(graph)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("package", [OURS, "bench"])
def test_no_modules_import_one_another_in_a_circle(package):
    """Each module can be understood with those below it alone."""
    root = Path(importlib.import_module(package).__file__).parent
    assert circle_in(imported_modules(root, package)) is None


def test_circles_are_found(tmp_path):
    """The guard can fail."""
    (tmp_path / "a.py").write_text("from package.b import name")
    (tmp_path / "b.py").write_text("import package.a")
    assert circle_in(imported_modules(tmp_path, "package")) is not None


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (OURS, ["torch", "sglang", "greenlet", "numpy", "msgspec"]),
        (f"{OURS}.core", ["torch", "sglang", "greenlet", "numpy", "msgspec"]),
        (f"{OURS}.loop", ["torch", "sglang", "greenlet", "numpy", "msgspec", "zmq"]),
        (f"{OURS}.loop.event_loop", ["torch", "sglang", "greenlet", "numpy", "msgspec", "zmq"]),
        (f"{OURS}.observe.telemetry", ["torch", "sglang", "greenlet", "numpy"]),
        (f"{OURS}.sim", ["torch", "sglang", "greenlet", "numpy", "msgspec"]),
        (f"{OURS}.testing", ["torch", "sglang", "greenlet", "numpy", "msgspec"]),
        (f"{OURS}.api", ["torch", "sglang", "greenlet", "numpy"]),
        (f"{OURS}.executor", ["sglang"]),
        (f"{OURS}.commands.patch", ["torch", "sglang", "greenlet", "numpy", "msgspec"]),
    ],
)
def test_importing_loads_nothing_heavy(module, heavy):
    """In a fresh interpreter, the light parts stay light."""
    program = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
