#!/usr/bin/env bash
# Makes the present .proto files the released contract that tests/server/contract compares with. For the commit of a
# release: proto/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
set_file=$(mktemp)
trap 'rm -f "$set_file"' EXIT
protoc -I . --include_imports -o "$set_file" embergate/v1/*.proto
{
  echo "# The released contract; made by proto/pin_released.sh, not by hand."
  protoc --decode=google.protobuf.FileDescriptorSet google/protobuf/descriptor.proto <"$set_file"
} >embergate/v1/released.txtpb
