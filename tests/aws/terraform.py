"""Terraform with the AWS provider from a directory of this machine, talking to a fake AWS and to nothing else."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.console import Problem, step
from tests.aws.translate import PROVIDER, Schema, Translation

VERSION = "5.100.0"
"""Of the AWS provider. pulumi-aws 7 bridges 6.x; what that has and this has not is in translate.NEWER."""
PLATFORM = f"linux_{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }"
MIRROR = "TF_PLUGIN_MIRROR"
"""Variable that names the directory with the provider; without it, the usual ones are looked through."""
OPTIONAL = Path("/opt")
"""Where images of machines put what no package manager does."""
SERVICES = (
    "acm budgets cloudwatch cloudwatchevents cloudwatchlogs ec2 ecr eks elasticache elbv2 iam kms route53 s3 "
    "secretsmanager sns sqs ssm sts"
)
"""Whose requests go to the fake. Those of another would reach AWS, with credentials that it refuses."""


def mirror() -> Path:
    """The directory that has the provider, as `terraform providers mirror` lays it out."""
    places = [Path(os.environ[MIRROR])] if MIRROR in os.environ else list(_usual())
    for place in places:
        provider = place / PROVIDER
        unpacked, packed = f"{VERSION}/{PLATFORM}", f"terraform-provider-aws_{VERSION}_{PLATFORM}.zip"
        if (provider / unpacked).is_dir() or (provider / packed).is_file():
            return place
    raise Problem(
        f"the AWS provider {VERSION} of Terraform is in none of {', '.join(map(str, places))}",
        f"where the network has it: `terraform providers mirror DIR` beside a file with "
        f"{json.dumps(_required())}, then {MIRROR}=DIR",
    )


def _usual() -> Iterator[Path]:
    """Its plugin cache, the directories where Terraform itself looks, and any of OPTIONAL."""
    if cache := os.environ.get("TF_PLUGIN_CACHE_DIR"):
        yield Path(cache)
    home = Path.home()
    yield home / ".terraform.d" / "plugins"
    shares = [os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")]
    shares += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    yield from (Path(share) / "terraform" / "plugins" for share in shares)
    yield from sorted(path.parents[len(Path(PROVIDER).parts) - 1] for path in OPTIONAL.glob(f"*/{PROVIDER}"))


def _required() -> dict[str, Any]:
    return {"terraform": {"required_providers": {"aws": {"source": "hashicorp/aws", "version": VERSION}}}}


class Failed(Exception):
    """What Terraform said."""


class Terraform:
    """A directory with a document, its state and its provider."""

    def __init__(self, directory: Path, endpoint: str = "http://127.0.0.1:1") -> None:
        program = shutil.which("terraform")
        if not program:
            raise Problem(
                "terraform is not on PATH",
                "install it (https://developer.hashicorp.com/terraform/install), 1.5 or later",
            )
        self.directory = directory
        self.endpoint = endpoint
        self._program = program
        directory.mkdir(parents=True, exist_ok=True)
        source = f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror()}"\n  }}\n}}\n'
        (directory / "terraformrc").write_text(f"{source}disable_checkpoint = true\n")
        self.write({})

    def write(self, document: Mapping[str, Any], provider: Mapping[str, Any] | None = None) -> None:
        fake = {
            **{"region": "us-east-1", "access_key": "fake", "secret_key": "fake", "max_retries": 2},
            **{"skip_credentials_validation": True, "skip_metadata_api_check": True, "skip_region_validation": True},
            **{"s3_use_path_style": True, "endpoints": [dict.fromkeys(SERVICES.split(), self.endpoint)]},
        }
        whole = _required() | {"provider": {"aws": fake | dict(provider or {})}} | dict(document)
        (self.directory / "main.tf.json").write_text(json.dumps(whole, indent=1))

    def translated(self, translation: Translation) -> None:
        self.write(translation.document(), translation.provider)

    def run(self, *arguments: str, accepted: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Everything that Terraform says goes to a file beside the document, too."""
        done = subprocess.run(
            [self._program, *arguments], cwd=self.directory, env=self._environment(), capture_output=True, text=True
        )
        (self.directory / f"{arguments[0]}.log").write_text(done.stdout + done.stderr)
        if done.returncode not in accepted:
            raise Failed(f"terraform {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def _environment(self) -> dict[str, str]:
        """Neither the user's Terraform settings nor their account, and no proxy between here and the fake."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TF_", "AWS_")) and not name.lower().endswith("_proxy")
        }
        return ours | {
            "TF_CLI_CONFIG_FILE": str(self.directory / "terraformrc"),
            "TF_IN_AUTOMATION": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def init(self) -> None:
        self.run("init", "-no-color", "-input=false")

    def schema(self) -> Schema:
        return Schema(json.loads(self.run("providers", "schema", "-json").stdout))

    def validate(self) -> list[str]:
        """What the provider finds wrong, each with the place in the document."""
        found = json.loads(self.run("validate", "-json", accepted=(0, 1)).stdout)
        return [
            f"{(item.get('snippet') or {}).get('context')}: {item['summary']}: {item['detail']}"
            for item in found["diagnostics"]
            if item["severity"] == "error"
        ]

    def apply(self) -> None:
        with step(f"terraform apply in {self.directory.name}"):
            self.run("apply", "-no-color", "-input=false", "-auto-approve")

    def changes(self) -> str:
        """What another `apply` would do; empty when nothing."""
        with step(f"terraform plan in {self.directory.name}"):
            done = self.run("plan", "-no-color", "-input=false", "-detailed-exitcode", accepted=(0, 2))
        return done.stdout if done.returncode else ""

    def destroy(self) -> None:
        with step(f"terraform destroy in {self.directory.name}"):
            self.run("destroy", "-no-color", "-input=false", "-auto-approve")

    def state(self) -> dict[str, dict[str, Any]]:
        """Attributes of what is there, by address."""
        shown = json.loads(self.run("show", "-json").stdout)
        resources = shown.get("values", {}).get("root_module", {}).get("resources", [])
        return {item["address"]: item["values"] for item in resources if item["mode"] == "managed"}

    def outputs(self) -> dict[str, Any]:
        return {name: item["value"] for name, item in json.loads(self.run("output", "-json").stdout).items()}
