"""Audit: what happened to any call, how things stood at any moment, and all of it as files; read from Kafka alone."""
