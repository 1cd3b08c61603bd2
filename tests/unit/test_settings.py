"""The settings model: what it takes, and how it says no. Needs pydantic and PyYAML only."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import Model, Settings, SettingsError, load, parse, serve_config


def test_defaults_serve_the_builtin_model_on_a_laptop() -> None:
    (model,) = parse({}).models
    assert model.name == "chat"
    assert model.builtin == "smollm2-135m-instruct"
    assert model.engine.enforce_eager
    assert model.scaling.num_cpus <= 2


# Data, the start of the line about it, and what the fix must name.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": []}, "model = []: there is no such key", "did you mean models?"),
    ({"replicas": 1}, "replicas = 1: there is no such key", "use one of models"),
    (
        {"models": [{"engine": {"max_model_length": 1}}]},
        "models.0.engine.max_model_length = 1: there is no such key",
        "did you mean max_model_len?",
    ),
    (
        {"models": [{"engine": {"kv_cache_gib": 0.25}}]},
        "models.0.engine.kv_cache_gib = 0.25: does not fit",
        "make it a valid integer",
    ),
    (
        {"models": [{"engine": {"kv_cache_gib": 0}}]},
        "models.0.engine.kv_cache_gib = 0: does not fit",
        "greater than or equal to 1",
    ),
    (
        {"models": [{"engine": {"dtype": "int4"}}]},
        "models.0.engine.dtype = 'int4': does not fit",
        "'bfloat16', 'float16' or 'float32'",
    ),
    (
        {"models": [{"scaling": {"num_replicas": "2"}}]},
        "models.0.scaling.num_replicas = '2': does not fit",
        "make it a valid integer",
    ),
    (
        {"models": [{"scaling": {"num_replicas": True}}]},
        "models.0.scaling.num_replicas = True: does not fit",
        "make it a valid integer",
    ),
    (
        {"models": [{"scaling": {"num_cpus": float("inf")}}]},
        "models.0.scaling.num_cpus = inf: does not fit",
        "finite",
    ),
    ({"models": []}, "models = []: does not fit", "at least 1 item"),
    ({"models": {}}, "models = {}: does not fit", "make it a valid list"),
    ({"models": ["chat"]}, "models.0 = 'chat': does not fit", "dictionary"),
    ({"models": [{"name": "a--b"}]}, "models.0.name = 'a--b': does not fit", "pattern"),
    ({"models": [{"name": "a:b"}]}, "models.0.name = 'a:b': does not fit", "pattern"),
    (
        {"models": [{}, {"name": "x"}, {}]},
        "models.2.name = 'chat': models.0 has this name",
        "give each model its own",
    ),
    (
        {"models": [{"source": "builtin:gpt-5"}]},
        "models.0.source = 'builtin:gpt-5': there is no such built-in model",
        "use builtin:smollm2-135m-instruct",
    ),
    (
        {"models": [{"source": "weights"}]},
        "models.0.source = 'weights': says not where the weights are",
        "an absolute path",
    ),
]


@pytest.mark.parametrize(("data", "problem", "fix"), WRONG, ids=[p for _, p, _ in WRONG])
def test_wrong_settings_name_key_value_reason_and_fix(data: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(data)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(problem)
    _, _, after = line.partition("fix: ")
    assert fix in after


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"models": [{"nam": "x", "engine": {"dtype": 8, "kv_cache_gib": -1}}], "x": 1})
    keys = [line.split(" = ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    expected = ["models.0.engine.dtype", "models.0.engine.kv_cache_gib", "models.0.nam", "x"]
    assert sorted(keys) == expected


def test_a_long_value_does_not_drown_the_message() -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"models": ["x" * 10_000]})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("source", "from_hub"),
    [
        ("builtin:smollm2-135m-instruct", False),
        ("/models/llama", False),
        ("s3://weights/llama-3/8b", False),
        ("meta-llama/Llama-3.1-8B-Instruct", True),
    ],
)
def test_sources(source: str, from_hub: bool) -> None:
    (model,) = parse({"models": [{"source": source}]}).models
    assert model.source == source
    assert model.from_hub == from_hub


def test_settings_do_not_change() -> None:
    settings = parse({})
    with pytest.raises(ValidationError):
        settings.models = []


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("models:\n- name: small\n  engine: {max_model_len: 512}\n")
    (model,) = load(file).models
    assert (model.name, model.engine.max_model_len) == ("small", 512)
    file.write_text("")
    assert load(file) == Settings()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("models: [", "is not YAML"),
        ("- models", "holds ['models']"),
        ("0", "holds 0"),
        ("models: [{nam: x}]", "models.0.nam = 'x'"),
    ],
)
def test_load_names_the_file(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    assert "fix: " in str(caught.value)


def test_the_cluster_gets_the_same_settings() -> None:
    settings = Settings(models=[Model(), Model(name="org/big.model", source="org/big")])
    (application,) = serve_config(settings)["applications"]
    assert parse(application["args"]) == settings


def test_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; import app.settings as s; s.serve_config(s.parse({}));"
        "sys.exit(' '.join({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
