# Starts the broker as its image does, with the agent that shows its metrics to Prometheus on
# JMX_EXPORTER_PORT. The image brings the agent (Prometheus' JMX exporter), under a name with its
# version in it. It is given to the broker alone: with KAFKA_OPTS in the service's `environment`,
# Kafka's tools in the container would load it too and fail on its port.
for agent in /usr/share/java/cp-base-new/jmx_prometheus_javaagent-*.jar; do
  [ -f "$agent" ] && export KAFKA_OPTS="-javaagent:$agent=$JMX_EXPORTER_PORT:/etc/jmx-exporter.yml"
done
exec /etc/confluent/docker/run
