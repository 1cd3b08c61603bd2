"""What outlives pods: the bucket with the models' weights, and the repository of images."""

import json
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.config import EksCluster
from infra.aws.policy import document

IMAGES = 100
"""Images that are kept. One is pushed for each change of the application, and those that run are among the last."""


class Storage(pulumi.ComponentResource):
    """Bucket and repository, and the key that both are encrypted with."""

    key: pulumi.Output[str]
    """ARN of the key."""
    bucket: pulumi.Output[str]
    repository: pulumi.Output[str]

    def __init__(self, name: str, eks: EksCluster, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:aws:Storage", name, None, opts)
        self._name, self._eks = name, eks
        self._child = pulumi.ResourceOptions(parent=self)
        # In a stack that may go, what is in them goes with it.
        self._keep = pulumi.ResourceOptions(parent=self, protect=eks.deletion_protection)
        key = aws.kms.Key(
            name,
            description=f"Weights and images of {eks.name}",
            enable_key_rotation=True,
            deletion_window_in_days=30 if eks.deletion_protection else 7,
            opts=self._keep,
        )
        aws.kms.Alias(name, name=f"alias/{eks.name}-storage", target_key_id=key.id, opts=self._child)
        self.key = key.arn
        self.bucket = self._bucket(key)
        self.repository = self._repository(key)
        self.register_outputs({"bucket": self.bucket, "repository": self.repository})

    def _bucket(self, key: aws.kms.Key) -> pulumi.Output[str]:
        bucket = aws.s3.Bucket(
            self._name, bucket=self._eks.bucket, force_destroy=not self._eks.deletion_protection, opts=self._keep
        )
        aws.s3.BucketOwnershipControls(
            self._name, bucket=bucket.id, rule={"object_ownership": "BucketOwnerEnforced"}, opts=self._child
        )
        private = aws.s3.BucketPublicAccessBlock(
            self._name,
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self._child,
        )
        versioning = aws.s3.BucketVersioning(
            self._name, bucket=bucket.id, versioning_configuration={"status": "Enabled"}, opts=self._child
        )
        aws.s3.BucketServerSideEncryptionConfiguration(
            self._name,
            bucket=bucket.id,
            rules=[
                {
                    "apply_server_side_encryption_by_default": {
                        "sse_algorithm": "aws:kms",
                        "kms_master_key_id": key.arn,
                    },
                    # Hundreds of GPUs reading shards would otherwise ask KMS for each object.
                    "bucket_key_enabled": True,
                }
            ],
            opts=self._child,
        )
        aws.s3.BucketLifecycleConfiguration(
            self._name,
            bucket=bucket.id,
            rules=[
                {
                    "id": "old-versions",
                    "status": "Enabled",
                    "filter": {},
                    "noncurrent_version_expiration": {"noncurrent_days": 30},
                },
                # Uploads of weights are long, and those that broke off are paid for and invisible.
                {
                    "id": "broken-uploads",
                    "status": "Enabled",
                    "filter": {},
                    "abort_incomplete_multipart_upload": {"days_after_initiation": 7},
                },
            ],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[versioning]),
        )
        aws.s3.BucketPolicy(
            self._name,
            bucket=bucket.id,
            policy=document(*_only_tls(bucket.arn)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[private]),
        )
        return bucket.id

    def _repository(self, key: aws.kms.Key) -> pulumi.Output[str]:
        repository = aws.ecr.Repository(
            self._name,
            name=self._eks.name,
            # A tag is a digest of what is in the image.
            image_tag_mutability="IMMUTABLE",
            image_scanning_configuration={"scan_on_push": True},
            encryption_configurations=[{"encryption_type": "KMS", "kms_key": key.arn}],
            force_delete=not self._eks.deletion_protection,
            opts=self._keep,
        )
        rules = [
            {
                "rulePriority": 1,
                "description": "What a broken push has left",
                "selection": {
                    "tagStatus": "untagged",
                    "countType": "sinceImagePushed",
                    "countUnit": "days",
                    "countNumber": 7,
                },
                "action": {"type": "expire"},
            },
            {
                "rulePriority": 2,
                "description": f"All but the last {IMAGES}",
                "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": IMAGES},
                "action": {"type": "expire"},
            },
        ]
        aws.ecr.LifecyclePolicy(
            self._name, repository=repository.name, policy=json.dumps({"rules": rules}), opts=self._child
        )
        return repository.repository_url


def _only_tls(bucket: pulumi.Output[str]) -> list[dict[str, Any]]:
    """Requests in the clear, or by an old TLS, are refused, whoever makes them."""
    common = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket, pulumi.Output.concat(bucket, "/*")],
    }
    return [
        {**common, "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
        {**common, "Condition": {"NumericLessThan": {"s3:TlsVersion": "1.2"}}},
    ]
