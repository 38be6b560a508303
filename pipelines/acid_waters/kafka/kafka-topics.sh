#!/bin/sh
# Kafka's tool under the name that its own distribution gives it: in the container if it runs, else
# natively. For the shell to find it: PATH=$PWD/kafka:$PATH
here=$(cd "$(dirname "$0")/.." && pwd)
service="label=com.docker.compose.service=kafka"
container=$(docker ps -q --filter label=com.docker.compose.project=acid_waters --filter $service 2>/dev/null)
if [ -n "$container" ]; then
  exec docker exec "$container" kafka-topics "$@"
fi
cd "$here/../.." && exec .venv/bin/python -m stack -f "$here/docker-compose.yml" exec kafka kafka-topics "$@"
