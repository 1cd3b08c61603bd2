module blueprint/tools/external-secrets

go 1.26.0

// 1.3.2: of a newer one Go takes no tag, since the path has not its major version. Both serve external-secrets.io/v1.
require github.com/external-secrets/external-secrets v1.3.2
