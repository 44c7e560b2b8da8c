#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs nvcc. What ptxas tells of every kernel, its registers and spills, is left beside the object.
before=
for word; do
  [ "$before" = -o ] && out=$word
  before=$word
done
"$@" 2> "$out.ptxas"
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$out.ptxas" >&2
exit $status
