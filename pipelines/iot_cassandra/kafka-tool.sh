#!/bin/sh
# The exercise types Kafka's tools as /opt/kafka/bin/NAME.sh; in this image they are NAME, on the PATH.
exec "$(basename "$0" .sh)" "$@"
