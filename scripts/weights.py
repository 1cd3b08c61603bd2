"""`make weights`: a model of the hub, at one revision, in the stack's bucket.

First onto this machine, where a run goes on from what one that broke off has left; then, held against the hub's own
checksums, to s3://<bucket>/<model>/<revision>. SHA256SUMS goes last: where that is, everything is.
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Collection
from pathlib import Path

from app.builtin import cache_dir
from infra.config import StackConfig
from scripts import stack_file
from scripts.aws_cli import aws, cluster_of
from scripts.console import Problem, main, say, step

KINDS = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Weights that hold no code, and what belongs to them. Others on the hub are the same weights once more."""
SUMS = "SHA256SUMS"
USE = "make weights STACK=dev MODEL=Qwen/Qwen3-8B REVISION=b968826d9c46dd6066d109eabc6255188de91218"


def weights(stack_name: str, stack: StackConfig, model: str, revision: str) -> None:
    if not re.fullmatch(r"[-.\w]+/[-.\w]+", model):
        raise Problem(f"MODEL = {model!r} is no name on the hub", f"say {USE}")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise Problem(f"REVISION = {revision!r} is no commit, and what a branch names changes", f"say {USE}")
    bucket, prefix = cluster_of(stack_name, stack).bucket, f"{model}/{revision}"
    target, directory = f"s3://{bucket}/{prefix}", cache_dir() / "weights" / prefix
    found = aws("s3api", "list-objects-v2", "--bucket", bucket, "--prefix", f"{prefix}/{SUMS}") or {}
    if found.get("Contents"):
        say(f"{target} is there already")
        return
    try:
        with step(f"{model} from the hub to {directory}"):
            known = {name: sum_ for name, sum_ in hub_files(model, revision).items() if name.endswith(KINDS)}
            if not any(name.endswith(".safetensors") for name in known):
                raise Problem(f"{model} has no safetensors at {revision}", "choose a model that has")
            download(model, revision, directory, known)
    except Problem:
        raise
    # Its client lets through what its HTTP client raises, and has changed that more than once.
    except Exception as error:
        fix = "mend that (HF_TOKEN for a gated model), and run the same command again"
        raise Problem(f"the hub: {error}", fix) from None
    with step("checksums"):
        lines = [f"{checked(directory / name, known[name])}  {name}\n" for name in sorted(known)]
    (directory / SUMS).write_text("".join(lines))
    with step(f"to {target}"):
        # S3 computes each object's SHA-256 as well, and keeps it. What is there already is not sent again.
        only = ["--exclude", "*", *(argument for name in sorted(known) for argument in ("--include", name))]
        aws("s3", "sync", str(directory), target, "--checksum-algorithm", "SHA256", "--only-show-errors", *only)
        aws("s3", "cp", str(directory / SUMS), f"{target}/{SUMS}", "--only-show-errors")
    lines = [f"source: {target}", *size(directory)]
    say("\n".join(["\nin the stack file:\n", *(f"  {line}" for line in lines), f"\n{directory} may be deleted"]))


def size(directory: Path) -> list[str]:
    """The lines about the model's size, from its config.json and the headers of its safetensors; none where these are
    others than those of a plain transformer.

    Of quantised weights the parameters are packed, and their number is not that of the header's.
    """
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", config)
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    if "head_dim" not in text and {"hidden_size", "num_attention_heads"} <= text.keys():
        text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    if not all(isinstance(text.get(name), int) for name in names) or "quantization_config" in config:
        return []
    parameters = sum(map(_parameters, directory.glob("*.safetensors")))
    values = ", ".join(f"{name}: {text[name]}" for name in names)
    return ["size:", f"  {{ parameters_billion: {parameters / 1e9:.2f}, {values} }}"]


def _parameters(file: Path) -> int:
    """As many as its header says: https://github.com/huggingface/safetensors#format"""
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def hub_files(model: str, revision: str) -> dict[str, str | None]:
    """All files of the model, with the SHA-256 of those that the hub has one of: the large ones."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, revision=revision, files_metadata=True)
    return {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []}


def download(model: str, revision: str, directory: Path, names: Collection[str]) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(model, revision=revision, local_dir=directory, allow_patterns=list(names))


def checked(file: Path, known: str | None) -> str:
    """The file's SHA-256. Raises Problem, and removes the file, when the hub knows another one."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if known and found != known:
        file.unlink()
        raise Problem(f"{file} is not what the hub has: {found} and not {known}", "run the same command again")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--model", default="")
    parser.add_argument("--revision", default="")
    given = parser.parse_args()
    main(lambda: weights(given.stack, stack_file.read(given.stack), given.model, given.revision))
