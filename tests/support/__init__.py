"""What tests share: waiting for conditions, ports, the embedded Kafka's topics and records."""
