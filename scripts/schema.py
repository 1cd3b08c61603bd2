"""`make schema`: writes what the pinned vLLM knows, and JSON schemas by which editors complete settings.

tests/app/test_schema.py holds the files against this. Runs where vLLM is installed.
"""

# pyright: reportMissingImports=false
# scripts/ are checked where the rest of them runs, and vLLM is not installed there.

import ast
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).parent.parent
VLLM = ROOT / "app" / "vllm.json"
SETTINGS = ROOT / "app" / "settings.schema.json"
STACK = ROOT / "infra" / "stack.schema.json"


def vllm() -> dict[str, Any]:
    """The names of vLLM's arguments, the choices of those whose types do not say them, and its histograms' bounds."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import LoadFormats
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.v1.metrics import loggers

    arguments = {field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(kind)}
    return {
        "arguments": sorted(arguments),
        "buckets": _buckets(inspect.getsource(loggers)),
        "load_format": sorted(get_args(LoadFormats)),
        "quantization": sorted(QUANTIZATION_METHODS),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
    }


def _buckets(source: str) -> dict[str, list[float]]:
    """Metric → upper bounds, of the latencies that objectives are about; vLLM has them only where it makes these."""
    keywords = (call.keywords for call in ast.walk(ast.parse(source)) if isinstance(call, ast.Call))
    made = ({keyword.arg: keyword.value for keyword in of_one} for of_one in keywords)
    found = {ast.unparse(one["name"]): one["buckets"] for one in made if one.keys() >= {"name", "buckets"}}
    wanted = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    return {name: ast.literal_eval(found[repr(f"vllm:{name}")]) for name in wanted}


def settings() -> dict[str, Any]:
    """The schema of a settings file."""
    from app.settings import Settings

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def stack() -> dict[str, Any]:
    """The schema of a Pulumi.<stack>.yaml: our keys in `config`, and whatever else Pulumi takes."""
    from infra.config import PROJECT, StackConfig

    ours = StackConfig.model_json_schema()
    keys = {f"{PROJECT}:{name}": value for name, value in ours["properties"].items()}
    others = {f"^(?!{PROJECT}:)": True}
    config = {"type": "object", "properties": keys, "patternProperties": others, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": ours["$defs"],
        "type": "object",
        "properties": {"config": config},
    }


def text(content: Any) -> str:
    """As it is in the file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    VLLM.write_text(text(vllm()))  # first: the settings model reads it
    SETTINGS.write_text(text(settings()))
    STACK.write_text(text(stack()))
