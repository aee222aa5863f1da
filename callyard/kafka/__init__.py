"""Apache Kafka as a child process: for demos, tests, and whoever has no cluster."""
