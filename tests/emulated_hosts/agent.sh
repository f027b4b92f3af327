#!/bin/sh
# Open MPI's way to another host: `agent.sh [options] 10.77.0.3 command...` runs the command in the third namespace.
while [ "${1#-}" != "$1" ]; do shift; done
index=$((${1##*.} - 1)); shift
exec "$(dirname "$0")/netns.sh" run "$index" sh -c "$*"
